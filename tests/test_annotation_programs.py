"""Files of ImageJ, QuPath, napari, ilastik and OME-Zarr become masks to the pixel, and back."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import tifffile
import zarr
from numpy.typing import NDArray
from shapely.geometry import Polygon

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data.annotations import FORMATS, Annotations, Choices, Marked, imagej, module_of
from matssl.data.annotations.drawing import is_ignored, stem_of
from matssl.data.annotations.napari_shapes import cut_open
from matssl.data.annotations.outlines import polygons
from matssl.data.annotations.raster import paint

SIZE = (40, 56)
# Blanks, a slash, a number at the end as ImageJ adds it, and letters of three scripts.
NAMES = {1: "Ferrit-Körner", 2: "α/β phase-2", 3: "炭化物"}
OURS = ["imagej", "qupath", "napari_labels", "napari_shapes", "ilastik", "ome_zarr", "ome_zarr_05"]
WRITTEN = [name for name in FORMATS if hasattr(module_of(name), "write")]


def _random(seed: int) -> NDArray[np.uint8]:
    """Holes, islands in them, touching classes, parts of one pixel, ignored pixels, at borders."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(9, 45, 2)
    coarse = rng.integers(0, 4, (height // 4 + 1, width // 4 + 1))
    mask = np.kron(coarse, np.ones((4, 4), int))[:height, :width].astype(np.uint8)
    noise = rng.random(mask.shape) < 0.08 * (seed % 3)
    mask[noise] = rng.integers(0, 4, noise.sum())
    mask[rng.random(mask.shape) < 0.02] = IGNORE
    return mask


def _mask(
    found: Annotations, size: tuple[int, int], values: Mapping[str, int]
) -> NDArray[np.uint8]:
    (drawing,) = found.drawings
    own = {s.label: IGNORE if is_ignored(s.label) else values[s.label] for s in drawing.shapes}
    painted = paint(drawing, size, own, None, IGNORE if found.uncovered == "ignore" else 0)
    assert drawing.ordered or not painted.overlaps
    return painted.mask


def _names(format_: str) -> dict[int, str]:
    # Scribbles have no background: what nobody drew upon is not labelled.
    return {0: "matrix", **NAMES} if format_ == "ilastik" else dict(NAMES)


@pytest.mark.parametrize("format_", WRITTEN)
@pytest.mark.parametrize("seed", range(3))
def test_a_mask_comes_back_to_the_pixel_with_its_names(
    format_: str, seed: int, tmp_path: Path
) -> None:
    mask, names = _random(seed), _names(format_)
    module: Any = module_of(format_)
    module.write(tmp_path, [Marked("Serie 1/p 1.tif", mask)], names)
    assert module.recognise(tmp_path)
    found = module.read(tmp_path, Choices())
    called = {stem_of(n) for d in found.drawings for n in (d.picture, *d.also)}
    assert "Serie 1/p 1" in called
    values = {name: number for number, name in names.items()}
    assert (_mask(found, mask.shape, values) == mask).all()


@pytest.mark.parametrize("format_", WRITTEN)
def test_two_pictures_of_one_name_in_two_folders_keep_their_masks(
    format_: str, tmp_path: Path
) -> None:
    masks = {f"S{n}/a.png": _random(n) for n in (1, 2)}
    module: Any = module_of(format_)
    module.write(tmp_path, [Marked(n, m) for n, m in masks.items()], _names(format_))
    found = module.read(tmp_path, Choices())
    assert sorted(
        stem_of(d.also[0] if "_Labels" in d.picture else d.picture) for d in found.drawings
    ) == ["S1/a", "S2/a"]


# --- ImageJ ---
def _roi(kind: int, name: str | None, points: object = None, **more: object) -> bytes:
    roi = roifile.ImagejRoi() if points is None else roifile.ImagejRoi.frompoints(points)
    roi.roitype = roifile.ROI_TYPE(kind)
    roi.name = name or ""
    for key, value in more.items():
        setattr(roi, key, value)
    return roi.tobytes()


def _set(file: Path, rois: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in rois.items():
            archive.writestr(f"{name}.roi", data)
    return file


SQUARE = [[2, 2], [12, 2], [12, 9], [2, 9]]


def test_the_class_of_a_roi_is_its_name_without_the_number_that_imagej_adds(
    tmp_path: Path,
) -> None:
    names = ["pore", "pore-1", "pore-12", "phase-2-1", "a-b"]
    rois = {name: _roi(0, name, SQUARE) for name in names}
    found = module_of("imagej").read(_set(tmp_path / "a.zip", rois), Choices())
    assert [s.label for s in found.drawings[0].shapes] == ["pore"] * 3 + ["phase-2", "a-b"]


def test_a_roi_that_nobody_named_has_the_class_of_its_group_or_is_a_question(
    tmp_path: Path,
) -> None:
    file = _set(tmp_path / "a.zip", {"0005-0007": _roi(0, "0005-0007", SQUARE, group=3)})
    (shape,) = module_of("imagej").read(file, Choices()).drawings[0].shapes
    assert shape.label == "group 3"
    file = _set(tmp_path / "b.zip", {"0005-0007": _roi(0, None, SQUARE)})
    with pytest.raises(UserError, match=r"0005-0007.*--label"):
        module_of("imagej").read(file, Choices())
    (shape,) = module_of("imagej").read(file, Choices(label="pore")).drawings[0].shapes
    assert shape.label == "pore"


def test_a_single_roi_called_as_its_picture_has_no_class(tmp_path: Path) -> None:
    file = tmp_path / "picture_3.roi"
    file.write_bytes(_roi(0, "picture_3", SQUARE))
    with pytest.raises(UserError, match="--label"):
        module_of("imagej").read(file, Choices())


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        # A rectangle counts its right and lower ends out: 10 x 7.
        (_roi(1, "a", left=2, top=2, right=12, bottom=9), np.s_[2:9, 2:12]),
        (_roi(1, "a", left=-4, top=-3, right=3, bottom=2), np.s_[0:2, 0:3]),
        # Sub-pixel corners: centres 2.5 to 11.5 lie between 2.4 and 11.6.
        (_roi(0, "a", [[2.4, 2.4], [11.6, 2.4], [11.6, 8.6], [2.4, 8.6]]), np.s_[2:9, 2:12]),
    ],
)
def test_rectangles_and_sub_pixel_outlines_hold_the_centres_inside(
    data: bytes, pixels: tuple[slice, slice], tmp_path: Path
) -> None:
    (tmp_path / "p.roi").write_bytes(data)
    right = np.zeros(SIZE, np.uint8)
    right[pixels] = 1
    found = module_of("imagej").read(tmp_path / "p.roi", Choices())
    assert (_mask(found, SIZE, {"a": 1}) == right).all()


def test_an_oval_holds_the_centres_that_its_equation_says(tmp_path: Path) -> None:
    (tmp_path / "p.roi").write_bytes(_roi(2, "a", left=5, top=3, right=31, bottom=23))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    right = ((x - 18) / 13) ** 2 + ((y - 13) / 10) ** 2 <= 1
    found = module_of("imagej").read(tmp_path / "p.roi", Choices())
    assert (_mask(found, SIZE, {"a": 1}) == right).all()


def test_corners_of_a_rounded_rectangle_are_quarters_of_circles(tmp_path: Path) -> None:
    data = _roi(1, "a", left=2, top=2, right=22, bottom=18, rounded_rect_arc_size=10)
    (tmp_path / "p.roi").write_bytes(data)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    # Within 5 of the rectangle that the centres of the corners span.
    dx = np.maximum(np.maximum(7 - x, x - 17), 0)
    dy = np.maximum(np.maximum(7 - y, y - 13), 0)
    found = module_of("imagej").read(tmp_path / "p.roi", Choices())
    assert (_mask(found, SIZE, {"a": 1}) == (np.hypot(dx, dy) < 5)).mean() > 0.998


def test_coordinates_above_32767_are_read_modulo_65536(tmp_path: Path) -> None:
    data = _roi(1, "a", left=40_000, top=2, right=40_010, bottom=9)
    (tmp_path / "p.roi").write_bytes(data)
    (shape,) = module_of("imagej").read(tmp_path / "p.roi", Choices()).drawings[0].shapes
    assert shape.rings[0][:, 0].tolist() == [40_000, 40_010, 40_010, 40_000]


def test_lines_and_points_are_counted_and_not_drawn(tmp_path: Path) -> None:
    rois = {"crack": _roi(5, "crack", SQUARE), "p": _roi(10, "p", [[3, 3]])}
    rois["pore"] = _roi(0, "pore", SQUARE)
    (drawing,) = module_of("imagej").read(_set(tmp_path / "a.zip", rois), Choices()).drawings
    assert dict(drawing.no_area) == {("segmented line", "crack"): 1, ("point", "p"): 1}
    assert len(drawing.shapes) == 1


def test_rois_on_several_slices_of_a_stack_are_refused(tmp_path: Path) -> None:
    rois = {f"a-{n}": _roi(0, f"a-{n}", SQUARE, position=n) for n in (1, 2)}
    with pytest.raises(UserError, match="2 slices"):
        module_of("imagej").read(_set(tmp_path / "a.zip", rois), Choices())
    # All on one slice are of one picture.
    rois = {f"a-{n}": _roi(0, f"a-{n}", SQUARE, position=2) for n in (1, 2)}
    assert module_of("imagej").read(_set(tmp_path / "b.zip", rois), Choices()).drawings


def test_what_we_write_has_the_area_of_the_pixels_to_roifile_and_shapely(tmp_path: Path) -> None:
    mask = _random(2)
    module_of("imagej").write(tmp_path, [Marked("p.png", mask)], NAMES)  # type: ignore[attr-defined]
    areas = dict.fromkeys(range(1, 4), 0.0)
    rois = roifile.roiread(tmp_path / "p.zip")
    for roi in rois:
        rings = [Polygon(ring) for ring in roi.coordinates(multi=True)]
        whole = rings[0]
        for ring in rings[1:]:
            whole = whole.symmetric_difference(ring)
        name = roi.name.rpartition("-")[0]
        if name in NAMES.values():
            areas[next(n for n, v in NAMES.items() if v == name)] += whole.area
    assert areas == {n: int((mask == n).sum()) for n in range(1, 4)}
    assert len({roi.name for roi in rois}) == len(rois)


# --- QuPath ---
def _feature(
    rings: object = None, kind: str = "Polygon", **properties: object
) -> dict[str, object]:
    rings = [[[2, 2], [12, 2], [12, 9], [2, 9], [2, 2]]] if rings is None else rings
    geometry = {"type": kind, "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _geojson(file: Path, content: object) -> Annotations:
    file.write_text(json.dumps(content), encoding="utf-8")
    return module_of("qupath").read(file, Choices())


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ({"name": "Karbid", "color": [1, 2, 3]}, "Karbid"),
        ({"name": "Karbid", "colorRGB": -3140401}, "Karbid"),
        ({"names": ["Phase", "Positive"], "color": [1, 2, 3]}, "Phase: Positive"),
        ("Karbid", "Karbid"),
    ],
)
def test_a_class_of_qupath_is_read_in_the_spellings_of_its_versions(
    said: object, label: str, tmp_path: Path
) -> None:
    found = _geojson(tmp_path / "a.geojson", [_feature(classification=said)])
    assert [s.label for s in found.drawings[0].shapes] == [label]


def test_objects_of_qupath_0_2_say_in_their_id_what_they_are(tmp_path: Path) -> None:
    one = {**_feature(classification={"name": "a"}), "id": "PathAnnotationObject"}
    other = {**_feature(classification={"name": "b"}), "id": "PathDetectionObject"}
    found = _geojson(tmp_path / "a.geojson", [one, other])
    assert [s.label for s in found.drawings[0].shapes] == ["a"]
    assert any("1 detection" in note for note in found.notes)


def test_inner_rings_are_holes_and_parts_lie_in_them(tmp_path: Path) -> None:
    box = [[2, 2], [30, 2], [30, 30], [2, 30], [2, 2]]
    hole = [[6, 6], [20, 6], [20, 20], [6, 20], [6, 6]]
    part = [[9, 9], [12, 9], [12, 12], [9, 12], [9, 9]]
    one = _feature([[box, hole], [part]], "MultiPolygon", classification="a")
    found = _geojson(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": [one]})
    assert _mask(found, SIZE, {"a": 1}).sum() == 28 * 28 - 14 * 14 + 9


def test_an_ellipse_of_qupath_is_the_one_in_its_bounding_box(tmp_path: Path) -> None:
    one = _feature(
        [[[5, 13], [18, 3], [31, 13], [18, 23], [5, 13]]], classification="a", isEllipse=True
    )
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    right = ((x - 18) / 13) ** 2 + ((y - 13) / 10) ** 2 <= 1
    found = _geojson(tmp_path / "a.geojson", one)
    assert (_mask(found, SIZE, {"a": 1}) == right).all()


def test_an_annotation_without_class_is_a_question_and_ignore_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="object 1 .*--label"):
        _geojson(tmp_path / "a.geojson", [_feature(objectType="annotation")])
    found = _geojson(tmp_path / "a.geojson", [_feature(classification={"name": "Ignore*"})])
    assert (_mask(found, SIZE, {}) == IGNORE).sum() == 70


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([_feature(objectType="cell", classification="a")], "1 cell and no annotation"),
        ([_feature(kind="Torus", classification="a")], "unknown geometry 'Torus'"),
        ([_feature(rings=[[[0, "x"]]], classification="a")], "point 1 is a list"),
        ([_feature(rings=[[[0, 1e99], [1, 2], [3, 4]]], classification="a")], "in no picture"),
        ({"type": "FeatureCollection"}, "neither features nor a geometry"),
        ([{**_feature(classification="a"), "geometry": None}], "geometry is missing"),
    ],
)
def test_what_is_no_annotation_of_qupath_is_told(
    content: object, told: str, tmp_path: Path
) -> None:
    (tmp_path / "a.geojson").write_text(
        json.dumps({"type": "Feature", "geometry": 0}) if content is None else json.dumps(content)
    )
    with pytest.raises(UserError, match=told):
        module = module_of("qupath")
        shutil.copy(tmp_path / "a.geojson", tmp_path / "b.geojson")
        text = (tmp_path / "b.geojson").read_text()
        if '"geometry"' not in text:
            (tmp_path / "b.geojson").write_text(text[:-1] + ', "geometry_": {"geometry": 1}}')
        module.read(tmp_path / "b.geojson", Choices())


def test_annotations_on_several_planes_are_refused(tmp_path: Path) -> None:
    features = []
    for z in (0, 1):
        one: Any = _feature(classification="a")
        one["geometry"]["plane"] = {"c": -1, "z": z, "t": 0}
        features.append(one)
    with pytest.raises(UserError, match="2 planes"):
        _geojson(tmp_path / "a.geojson", features)


# --- napari ---
HEAD = "index,shape-type,vertex-index,axis-0,axis-1\n"


def _csv(file: Path, kind: str, points: list[tuple[float, float]], head: str = HEAD) -> Path:
    rows = [f"0,{kind},{n},{row},{column}" for n, (row, column) in enumerate(points)]
    file.write_text(head + "\n".join(rows) + "\n")
    return file


def test_napari_counts_from_the_centre_of_the_first_pixel_rows_first(tmp_path: Path) -> None:
    # Rows 2 to 8 and columns 2 to 11: their centres are whole numbers.
    points = [(1.5, 1.5), (1.5, 11.5), (8.5, 11.5), (8.5, 1.5)]
    right = np.zeros(SIZE, np.uint8)
    right[2:9, 2:12] = 1
    found = module_of("napari_shapes").read(_csv(tmp_path / "p.csv", "polygon", points), Choices())
    assert (_mask(found, SIZE, {"shape": 1}) == right).all()


def test_an_ellipse_of_napari_lies_in_its_four_corners_turned_or_not(tmp_path: Path) -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    points = [(3.0, 5.0), (3.0, 31.0), (23.0, 31.0), (23.0, 5.0)]
    found = module_of("napari_shapes").read(_csv(tmp_path / "p.csv", "ellipse", points), Choices())
    right = ((x - 18) / 13) ** 2 + ((y - 13) / 10) ** 2 <= 1
    assert (_mask(found, SIZE, {"shape": 1}) == right).all()
    # A square on its corner: the circle in it of radius 10 / sqrt(2).
    points = [(5.0, 20.0), (15.0, 30.0), (25.0, 20.0), (15.0, 10.0)]
    found = module_of("napari_shapes").read(_csv(tmp_path / "q.csv", "ellipse", points), Choices())
    right = np.hypot(x - 20, y - 15) <= 50**0.5 + 1e-9
    assert (_mask(found, SIZE, {"shape": 1}) == right).all()


def test_paths_of_napari_have_no_area_and_its_class_is_what_label_says(tmp_path: Path) -> None:
    file = _csv(tmp_path / "p.csv", "path", [(1, 1), (5, 9), (7, 2)])
    (drawing,) = module_of("napari_shapes").read(file, Choices(label="crack")).drawings
    assert dict(drawing.no_area) == {("path", "crack"): 1} and not drawing.shapes


def test_shapes_on_several_planes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    head = "index,shape-type,vertex-index,axis-0,axis-1,axis-2\n"
    file.write_text(head + "0,polygon,0,1,2,3\n0,polygon,1,1,2,9\n0,polygon,2,2,9,9\n")
    with pytest.raises(UserError, match="2 planes"):
        module_of("napari_shapes").read(file, Choices())


@pytest.mark.parametrize("seed", range(4))
def test_a_hole_that_is_cut_open_takes_no_area(seed: int) -> None:
    mask = _random(seed) == 1
    for rings in polygons(mask):
        x, y = cut_open(rings).T
        area = abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2
        assert area == Polygon(rings[0], rings[1:]).area


def test_numbers_of_a_label_picture_are_classes_with_gaps(tmp_path: Path) -> None:
    values = np.zeros(SIZE, np.uint32)
    values[2:9, 2:12], values[20:22], values[30, 3] = 1, 12, 7
    tifffile.imwrite(tmp_path / "p.tif", values)
    found = module_of("napari_labels").read(tmp_path, Choices())
    assert found.labels == ("1", "7", "12")
    own = _mask(found, SIZE, {"1": 1, "7": 2, "12": 3})
    assert np.bincount(own.ravel()).tolist() == [SIZE[0] * SIZE[1] - 70 - 112 - 1, 70, 1, 112]


def test_more_numbers_than_classes_are_a_question_and_may_be_one_class(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", np.arange(400, dtype=np.uint32).reshape(20, 20))
    with pytest.raises(UserError, match="399 numbers.*--label NAME"):
        module_of("napari_labels").read(tmp_path, Choices())
    found = module_of("napari_labels").read(tmp_path, Choices(label="grain"))
    assert _mask(found, (20, 20), {"grain": 1}).sum() == 399


@pytest.mark.parametrize("format_", ["napari_labels", "ilastik"])
def test_colours_are_no_labels(format_: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p_Labels.tif", np.zeros((8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(UserError, match=r"holds no annotations of|holds colours"):
        module_of(format_).read(tmp_path, Choices())


def test_what_nobody_scribbled_upon_is_ignored_and_an_empty_picture_is_not_labelled(
    tmp_path: Path,
) -> None:
    values = np.zeros((1, 1, 1, *SIZE), np.uint8)
    values[..., 3:5, :] = 2
    tifffile.imwrite(tmp_path / "p_Labels.tiff", values, imagej=True, metadata={"axes": "TZCYX"})
    found = module_of("ilastik").read(tmp_path, Choices())
    mask = _mask(found, SIZE, {"2": 1})
    assert (mask == 1).sum() == 112 and (mask == IGNORE).sum() == mask.size - 112
    tifffile.imwrite(tmp_path / "p_Labels.tiff", np.zeros(SIZE, np.uint8))
    found = module_of("ilastik").read(tmp_path, Choices())
    assert not found.drawings[0].shapes and "without a scribble" in found.notes[0]


# --- OME-Zarr ---
def _labels(store: Path, values: NDArray[Any], version: str = "0.4", **more: object) -> Path:
    group = zarr.open_group(str(store), mode="w", zarr_format=2 if version == "0.4" else 3)
    labels = group.create_group("labels")
    label = labels.create_group("cells")
    axes = [{"name": n} for n in "tczyx"[-values.ndim :]]
    datasets = [{"path": "0"}]
    about = {"multiscales": [{"axes": axes, "datasets": datasets}], "image-label": dict(more)}
    listed: dict[str, object] = {"labels": ["cells"]}
    if version == "0.4":
        labels.attrs.update(listed)
        label.attrs.update(about)
    else:
        labels.attrs["ome"] = {"version": version, **listed}
        label.attrs["ome"] = {"version": version, **about}
    label.create_array("0", data=values, chunks=(16,) * values.ndim)
    return store


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_label_images_of_both_layouts_are_read_with_the_names_of_their_properties(
    version: str, tmp_path: Path
) -> None:
    values = np.zeros((1, 1, 1, *SIZE), np.int32)
    values[..., 2:9, 2:12], values[..., 20, :] = 3, 5
    properties = [{"label-value": 3, "class": "Karbid"}, {"label-value": 5, "area": 4.5}]
    _labels(tmp_path / "p.ome.zarr", values, version, properties=properties)
    found = module_of("ome_zarr").read(tmp_path, Choices())
    assert found.drawings[0].picture == "p" and found.drawings[0].size == SIZE
    mask = _mask(found, SIZE, {"Karbid": 1, "5": 2})
    assert (mask == 1).sum() == 70 and (mask == 2).sum() == 56


def test_of_several_label_images_one_must_be_named(tmp_path: Path) -> None:
    store = _labels(tmp_path / "p.zarr", np.ones(SIZE, np.uint8))
    shutil.copytree(store / "labels" / "cells", store / "labels" / "grains")
    (store / "labels" / ".zattrs").write_text('{"labels": ["cells", "grains"]}')
    with pytest.raises(UserError, match="cells, grains; --annotator NAME"):
        module_of("ome_zarr").read(tmp_path, Choices())
    found = module_of("ome_zarr").read(tmp_path, Choices(annotator="grains"))
    assert found.drawings[0].source.name == "grains"


def _changed(file: Path, **more: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


def test_hostile_stores_are_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    store = _labels(tmp_path / "p.zarr", np.ones(SIZE, np.uint8))
    array = store / "labels" / "cells" / "0" / ".zarray"
    whole = array.read_text()

    def told() -> str:
        with pytest.raises(UserError) as error:
            module_of("ome_zarr").read(tmp_path, Choices())
        array.write_text(whole)
        return str(error.value)

    _changed(array, shape=[1 << 20, 1 << 20])
    assert "more than a picture has" in told()
    _changed(array, chunks=[1 << 20, 1 << 20])
    assert "more than a picture has" in told()
    _changed(array, filters=[{"id": "pickle"}])
    assert "packed by 'pickle'" in told()
    _changed(array, dtype="|O")
    assert "are no labels" in told()
    _changed(array, shape=[2, *SIZE], chunks=[1, 16, 16])
    _changed(
        store / "labels" / "cells" / ".zattrs",
        multiscales=[{"axes": list("zyx"), "datasets": [{"path": "0"}]}],
    )
    assert "is a stack" in told()
    _changed(
        store / "labels" / "cells" / ".zattrs", multiscales=[{"datasets": [{"path": "../../../q"}]}]
    )
    assert "leads out of the folder" in told()


def test_our_store_opens_as_an_image_with_labels_of_its_pixel_size(tmp_path: Path) -> None:
    grey = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
    picture = tmp_path / "p.tif"
    tags: Any = {"resolution": (0.1, 0.1), "resolutionunit": 1, "metadata": None}
    tifffile.imwrite(picture, grey, description="ImageJ=1.54f\nunit=nm\n", **tags)
    mask = np.zeros(SIZE, np.uint8)
    mask[2:9, 2:12] = 1
    out = tmp_path / "out"
    for format_, version in (("ome_zarr", 2), ("ome_zarr_05", 3)):
        module: Any = module_of(format_)
        module.write(out / format_, [Marked("p.tif", mask, picture)], {1: "a"})
        group = zarr.open_group(str(out / format_ / "p.ome.zarr"), mode="r")
        assert group.metadata.zarr_format == version
        assert (np.asarray(group["0"]) == grey).all()
        said: Any = dict(group["labels/classes"].attrs)
        said = said if version == 2 else said["ome"]
        (scale,) = said["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [10.0, 10.0]}
        assert said["image-label"]["source"] == {"image": "../../"}


# --- broken files ---
def _example(format_: str, folder: Path) -> list[Path]:
    module: Any = module_of(format_)
    module.write(folder, [Marked("p.png", _random(1))], _names(format_))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _spoiled(data: bytes, rng: np.random.Generator) -> bytes:
    raw = bytearray(data)
    way = rng.integers(5)
    at = int(rng.integers(max(1, len(raw))))
    if way == 0:
        return bytes(raw[:at])
    if way == 1:
        for _ in range(int(rng.integers(1, 9))):
            raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
    elif way == 2:
        raw[at : at + 4] = struct.pack(">i", int(rng.choice([-1, 0, 2**31 - 1, -(2**31)])))
    elif way == 3:
        raw[at:at] = rng.integers(0, 256, 20, np.uint8).tobytes()
    else:
        del raw[at : at + int(rng.integers(1, 200))]
    return bytes(raw)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", OURS)
def test_broken_files_end_in_one_line_or_are_read(format_: str, tmp_path: Path) -> None:
    files = _example(format_, tmp_path)
    rng = np.random.default_rng(OURS.index(format_))
    refused = 0
    for _ in range(60):
        file = files[int(rng.integers(len(files)))]
        whole = file.read_bytes()
        if not whole:
            continue
        file.write_bytes(_spoiled(whole, rng))
        try:
            module_of(format_).recognise(tmp_path)
            module_of(format_).read(tmp_path, Choices())
        except UserError as error:
            refused += 1
            assert len(str(error)) < 600 and "\n" not in str(error)
        finally:
            file.write_bytes(whole)
    assert refused


def test_a_zip_that_unpacks_to_far_more_than_a_roi_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagej, "MOST_BYTES", 1000)
    rois = {f"a-{number}": _roi(0, "a", SQUARE) + bytes(500) for number in range(3)}
    with pytest.raises(UserError, match="no ROI set"):
        module_of("imagej").read(_set(tmp_path / "p.zip", rois), Choices())
