"""Annotation files as other programs and other versions write them; masks found by hand."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data.annotations import (
    Choices,
    Drawing,
    Marked,
    coco,
    cvat,
    ilastik,
    imagej,
    label_studio,
    labelme,
    napari_labels,
    napari_shapes,
    qupath,
    recognised,
    yolo,
)
from matssl.data.annotations.classes import of_drawings, renamed
from matssl.data.annotations.raster import paint

SQUARE = [(2, 2), (6, 2), (6, 5), (2, 5)]
NONE = Choices()


def _mask(drawing: Drawing, size: tuple[int, int] = (8, 10)) -> NDArray[np.uint8]:
    labels = dict.fromkeys(shape.label for shape in drawing.shapes)
    return paint(drawing, size, dict.fromkeys(labels, 1)).mask


def _square() -> NDArray[np.uint8]:
    mask = np.zeros((8, 10), np.uint8)
    mask[2:5, 2:6] = 1
    return mask


def _flat(points: list[tuple[int, int]]) -> list[int]:
    return [number for point in points for number in point]


# --- what a file is ---
def test_a_coco_file_with_its_categories_in_the_middle_is_one(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"picture_{i:06}.png", "x": "x" * 60} for i in range(1000)]
    outlines = [{"image_id": i, "category_id": 1, "segmentation": [_flat(SQUARE)]} for i in (0, 1)]
    content: dict[str, Any] = {"images": images, "categories": [{"id": 1, "name": "pore"}]}
    content |= {"annotations": outlines, "info": {"note": "x" * 70_000}}
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert recognised(tmp_path) == ["coco"]
    assert (_mask(coco.read(tmp_path, NONE).drawings[0]) == _square()).all()


def test_a_labelme_file_with_its_keys_sorted_is_one(tmp_path: Path) -> None:
    shapes = [{"label": "pore", "points": SQUARE}]
    content = {"imageData": "A" * 80_000, "imagePath": "a.png", "shapes": shapes, "x": "x" * 70_000}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert recognised(tmp_path) == ["labelme"]
    assert (_mask(labelme.read(tmp_path, NONE).drawings[0]) == _square()).all()


# --- questions ---
@pytest.mark.parametrize("empty", [[], [[]], None])
def test_an_empty_segmentation_of_coco_is_a_box_and_a_question(tmp_path: Path, empty: Any) -> None:
    box = {"image_id": 1, "category_id": 1, "segmentation": empty, "bbox": [2, 2, 4, 3]}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [box]}
    content |= {"categories": [{"id": 1, "name": "pore"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="--boxes"):
        coco.read(tmp_path, NONE)
    filled = coco.read(tmp_path, Choices(boxes="fill")).drawings[0]
    assert (_mask(filled) == _square()).all()


@pytest.mark.parametrize("letter", ["\n", "\x7f", "\x85", "\u2028", "\u2029", "\ud800", "\ufffe"])
def test_a_class_name_that_no_class_file_can_hold_is_refused(tmp_path: Path, letter: str) -> None:
    name = f"po{letter}re"
    content = {"imagePath": "a.png", "shapes": [{"label": name, "points": SQUARE}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="label is"):
        labelme.read(tmp_path, NONE)
    with pytest.raises(UserError, match="--rename"):
        renamed([f"pore={name}"])
    with pytest.raises(UserError, match="--classes"):
        of_drawings([], (), f"a,{name}", {})


@pytest.mark.parametrize("module", [napari_labels, ilastik])
def test_label_pictures_of_several_pages_are_refused_not_read_in_part(
    tmp_path: Path, module: Any
) -> None:
    tifffile.imwrite(tmp_path / "a_Labels.tif", np.stack([_square(), 2 * _square()]))
    with pytest.raises(UserError, match="2 label pictures, a page each"):
        module.read(tmp_path, NONE)


# --- Label Studio ---
def _tasks(tmp_path: Path, *annotations: dict[str, Any]) -> Path:
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": list(annotations)}
    (tmp_path / "t.json").write_text(json.dumps([task]))
    return tmp_path


def _region(points: list[tuple[int, int]], own: str = "r") -> dict[str, Any]:
    value = {"points": [[10 * x, 12.5 * y] for x, y in points], "polygonlabels": ["pore"]}
    size = {"original_width": 10, "original_height": 8}
    return {"id": own, "type": "polygonlabels", "from_name": "l", "value": value, **size}


OTHER = [(7, 6), (9, 6), (9, 8), (7, 8)]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("2024-01-01T23:00:00Z", "2024-01-02T01:00:00+05:00"),
        ("2024-01-01T23:00:00.500000Z", "2024-01-01T23:00:00Z"),
        ("2024-01-01T10:00:00+00:00", "2024-01-01T09:59:59.9Z"),
    ],
)
def test_the_newest_annotation_is_the_newest_in_any_time_zone(
    tmp_path: Path, good: str, bad: str
) -> None:
    place = _tasks(
        tmp_path,
        {"updated_at": bad, "result": [_region(OTHER)]},
        {"updated_at": good, "result": [_region(SQUARE)]},
    )
    found = label_studio.read(place, Choices(annotator="newest")).drawings[0]
    assert (_mask(found) == _square()).all()


def test_json_min_of_two_annotators_asks_whose_counts(tmp_path: Path) -> None:
    entries = [
        {
            **{"id": 1, "annotation_id": 10 * who, "image": "a.png", "annotator": who},
            **{"created_at": f"2024-01-0{who}T00:00:00Z", "updated_at": None},
            "tag": [{**region["value"], "original_width": 10, "original_height": 8}],
        }
        for who, region in ((1, _region(OTHER)), (2, _region(SQUARE)))
    ]
    (tmp_path / "t.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"1 picture .*by 1, 2\)\): --annotator says whose counts"):
        label_studio.read(tmp_path, NONE)
    for annotator in ("2", "newest"):
        (found,) = label_studio.read(tmp_path, Choices(annotator=annotator)).drawings
        assert (_mask(found) == _square()).all()
    (found,) = label_studio.read(tmp_path, Choices(annotator="1")).drawings
    assert not (_mask(found) == _square()).all()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_xml_of_windows_in_utf_16_is_read_and_a_false_first_line_is_told(
    tmp_path: Path, encoding: str
) -> None:
    points = ";".join(f"{x},{y}" for x, y in SQUARE)
    body = (
        '<annotations><version>1.1</version><image id="0" name="a.png" width="10" height="8">'
        f'<polygon label="pore" points="{points}" z_order="0"></polygon></image></annotations>'
    )
    file = tmp_path / "a.xml"
    for said in ("utf-16", "utf-8"):
        head = f'\ufeff<?xml version="1.0" encoding="{said}"?>\n'
        file.write_bytes((head + body).encode(encoding))
        assert cvat.recognise(file)
        if said == "utf-16":
            (found,) = cvat.read(tmp_path, NONE).drawings
            assert (_mask(found) == _square()).all()
        else:
            with pytest.raises(UserError, match=r"a\.xml is not in the encoding .* as UTF-8"):
                cvat.read(tmp_path, NONE)


@pytest.mark.parametrize("said", ["", "yesterday"])
def test_an_annotation_without_a_date_is_neither_newest_nor_oldest(
    tmp_path: Path, said: str
) -> None:
    place = _tasks(
        tmp_path,
        {"updated_at": said, "result": [_region(OTHER)]},
        {"updated_at": "2024-01-01T23:00:00Z", "result": [_region(SQUARE)]},
    )
    for annotator in ("newest", "oldest"):
        with pytest.raises(UserError, match="date"):
            label_studio.read(place, Choices(annotator=annotator))


def test_two_outlines_of_one_id_are_both_drawn(tmp_path: Path) -> None:
    place = _tasks(tmp_path, {"result": [_region(SQUARE), _region(OTHER)]})
    expected = _square()
    expected[6:8, 7:9] = 1
    assert (_mask(label_studio.read(place, NONE).drawings[0]) == expected).all()


# --- QuPath ---
def test_an_ellipse_of_qupath_is_one_where_qupath_says_so(tmp_path: Path) -> None:
    """QuPath writes isEllipse into the geometry (ROITypeAdapters.java), here with four points."""
    ring = [[1, 4], [5, 1], [9, 4], [5, 7], [1, 4]]
    geometry = {"type": "Polygon", "coordinates": [ring], "isEllipse": True}
    said = {"objectType": "annotation", "classification": {"name": "pore"}}
    feature = {"type": "Feature", "geometry": geometry, "properties": said}
    (tmp_path / "a.geojson").write_text(json.dumps([feature]))
    x, y = np.meshgrid(np.arange(10) + 0.5, np.arange(8) + 0.5)
    expected = ((x - 5) / 4) ** 2 + ((y - 4) / 3) ** 2 <= 1
    found = _mask(qupath.read(tmp_path, NONE).drawings[0])
    assert (found == expected).all() and expected.sum() > 30


# --- napari ---
def test_a_table_of_napari_in_another_order_holds_the_same_shapes(tmp_path: Path) -> None:
    rows = [
        f"{index},polygon,{vertex},3.0,{y - 0.5},{x - 0.5}"
        for index, points in enumerate((SQUARE, OTHER))
        for vertex, (x, y) in enumerate(points)
    ]
    header = "index,shape-type,vertex-index,axis-0,axis-1,axis-2"
    expected = _square()
    expected[6:8, 7:9] = 1
    for order in (range(8), (0, 4, 2, 6, 1, 5, 3, 7), (3, 2, 1, 0, 7, 6, 5, 4)):
        lines = [header, *(rows[i] for i in order)]
        lines[1] = lines[1].replace(",3.0,", ",3,", 1)
        (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
        assert (_mask(napari_shapes.read(tmp_path, NONE).drawings[0]) == expected).all()
    (tmp_path / "a.csv").write_text("\n".join([header, *rows, rows[0]]) + "\n")
    with pytest.raises(UserError, match="same vertex-index"):
        napari_shapes.read(tmp_path, NONE)


# --- ImageJ, YOLO ---
def test_classes_whose_names_differ_by_a_stroke_have_entries_of_their_own(tmp_path: Path) -> None:
    mask = _square()
    mask[0, 0] = 2
    imagej.write(tmp_path, [Marked("a.png", mask)], {1: "a/b", 2: "a_b"})
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(set(archive.namelist())) == 2
    (drawing,) = imagej.read(tmp_path, NONE).drawings
    assert (paint(drawing, mask.shape, {"a/b": 1, "a_b": 2}).mask == mask).all()


def test_a_class_number_below_zero_is_none(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    points = "0.1 0.1 0.5 0.1 0.5 0.5"
    (tmp_path / "labels" / "a.txt").write_text(f"0 {points}\n-1 {points}\n")
    with pytest.raises(UserError, match="line 2 is not of the form"):
        yolo.read(tmp_path, NONE)
