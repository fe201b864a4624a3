"""COCO, CVAT, Label Studio, VIA and YOLO: read as their programs mean them, written and read."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data.annotations import (
    FORMATS,
    Annotations,
    Choices,
    Drawing,
    Marked,
    coco,
    cvat,
    label_studio,
    labelme,
    module_of,
    recognised,
    runs,
    via,
    yolo,
)
from matssl.data.annotations.drawing import Patch
from matssl.data.annotations.raster import covered, paint

NAMES = {1: "Ferrit-Körner", 2: '炭化物 <&"', 3: "Perlite lamellaire"}
WRITTEN = ("labelme", "coco", "cvat", "labelstudio")
NONE = Choices()


def _mask(seed: int, size: tuple[int, int] = (23, 31)) -> NDArray[np.uint8]:
    """Touching classes with holes, islands, single pixels, slots and ignored pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (size[0] // 4 + 1, size[1] // 4 + 1))
    mask = np.kron(coarse, np.ones((4, 4), np.uint8))[: size[0], : size[1]]
    specks = rng.random(size) < 0.1 * (seed % 3)
    mask[specks] = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), int(specks.sum()))
    return mask


def _painted(drawing: Drawing, size: tuple[int, int] = (23, 31)) -> NDArray[np.uint8]:
    values = {name: number for number, name in NAMES.items()} | {"__ignore__": 255, "ignore": 255}
    painted = paint(drawing, size, values)
    assert not painted.overlaps
    return painted.mask


# --- round trips ---
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_recognised_and_read_back_to_the_pixel(
    tmp_path: Path, name: str
) -> None:
    masks = {f"S {i % 2}/größe_{i}.png": _mask(i) for i in range(12)}
    masks["whole.png"], masks["empty.png"] = (
        np.full((9, 4), 2, np.uint8),
        np.zeros((5, 7), np.uint8),
    )
    module = module_of(name)
    module.write(tmp_path, [Marked(key, mask) for key, mask in masks.items()], NAMES)  # type: ignore[attr-defined]
    assert recognised(tmp_path) == [name]
    found = module.read(tmp_path, NONE)
    assert {drawing.picture for drawing in found.drawings} == set(masks)
    for drawing in found.drawings:
        mask = masks[drawing.picture]
        if drawing.shapes:
            assert drawing.size == mask.shape
        assert (_painted(drawing, mask.shape) == mask).all(), drawing.picture


def test_names_of_classes_come_back_in_their_order(tmp_path: Path) -> None:
    for name, module in (("a", coco), ("b", cvat)):
        module.write(tmp_path / name, [Marked("p.png", np.ones((3, 3), np.uint8))], NAMES)
        assert module.read(tmp_path / name, NONE).labels == tuple(NAMES.values())


# --- run lengths ---
@pytest.mark.parametrize("seed", range(10))
def test_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    mask = _mask(seed) == 1
    patch = Patch(0, 0, mask)
    text = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = runs.down_columns(patch, mask.shape)
    assert runs.to_text(counts) == text
    assert runs.from_text(text, "").tolist() == counts.tolist()
    found = np.zeros(mask.shape, bool)
    part = runs.columns(counts, mask.shape[0])
    found[:, part.column : part.column + part.pixels.shape[1]] = part.pixels
    assert (found == mask).all()
    # Of its own box in the picture.
    inner = np.zeros((40, 50), bool)
    inner[5:28, 7:38] = mask
    whole = runs.down_columns(Patch(5, 7, mask), (40, 50))
    assert (
        runs.to_text(whole)
        == oracle.encode(np.asfortranarray(inner.astype(np.uint8)))["counts"].decode()
    )


def test_large_run_lengths_are_those_of_pycocotools() -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((3000, 400), np.uint8, order="F")
    mask[2999, 0] = mask[0, 399] = 1
    mask[:, 100:300] = 1
    text = oracle.encode(mask)["counts"].decode()
    counts = runs.from_text(text, "")
    assert counts.sum() == mask.size and runs.to_text(counts) == text
    assert int(runs.columns(counts, 3000).pixels.sum()) == int(mask.sum())


def test_a_stream_of_label_studio_with_single_words_and_an_odd_size_is_read() -> None:
    """By hand: 1 x 2 pixels, (9, 9, 9, 0) and (0, 0, 0, 1), the second as four single words."""
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    bits += "1" + "00" + "010" + f"{9:08b}"  # three times 9
    bits += "0" + "01" + "0000" + f"{0:08b}"  # one word: the first alpha
    bits += "0" + "00" + "011" + f"{0:08b}{0:08b}{0:08b}{1:08b}"
    data = np.packbits([int(bit) for bit in bits]).tobytes()
    assert runs.alpha(data, (1, 2), "").pixels.tolist() == [[False, True]]
    with pytest.raises(UserError, match="cut off"):
        runs.alpha(data[:-1], (1, 2), "x")
    with pytest.raises(UserError, match="not the 16"):
        runs.alpha(data, (2, 2), "x")


def test_a_brush_longer_than_a_block_is_read_back() -> None:
    mask = np.zeros((300, 401), bool)
    mask[1:299, 1:400] = True
    assert (runs.alpha(runs.brush(mask), mask.shape, "").pixels == mask).all()


# --- COCO ---
def _coco(folder: Path, *annotations: dict[str, object], **more: object) -> Path:
    content = {
        "images": [{"id": 0, "file_name": "S1\\p.png", "width": 31, "height": 23}],
        "categories": [{"id": 90, "name": "a"}, {"id": 0, "name": "b"}],
        "annotations": [{"id": i, "image_id": 0, **a} for i, a in enumerate(annotations)],
    }
    (folder / "c.json").write_text(json.dumps(content | more))
    return folder


def test_coco_polygons_of_an_annotation_are_united_and_ids_may_be_0(tmp_path: Path) -> None:
    square, other = [2, 2, 8, 2, 8, 8, 2, 8], [5, 5, 11, 5, 11, 11, 5, 11]
    found = coco.read(_coco(tmp_path, {"category_id": 0, "segmentation": [square, other]}), NONE)
    (drawing,) = found.drawings
    assert drawing.picture == "S1/p.png" and drawing.size == (23, 31) and not drawing.ordered
    assert (paint(drawing, (23, 31), {"b": 1}).mask == 1).sum() == 36 + 36 - 9
    assert found.labels == ("a", "b")


@pytest.mark.parametrize("crowd", [0, 1])
def test_coco_run_lengths_are_told_by_their_type_and_not_by_iscrowd(
    tmp_path: Path, crowd: int
) -> None:
    runs_of = {"size": [23, 31], "counts": [0, 24, 23 * 31 - 24]}
    item = {"category_id": 90, "segmentation": runs_of, "iscrowd": crowd}
    (drawing,) = coco.read(_coco(tmp_path, item), NONE).drawings
    mask = paint(drawing, (23, 31), {"a": 1}).mask
    # Down the columns: the first and one pixel of the second.
    assert mask[:, 0].all() and mask[0, 1] and mask.sum() == 24


def test_coco_boxes_without_an_outline_are_a_question(tmp_path: Path) -> None:
    item = {"category_id": 90, "segmentation": [], "bbox": [1, 2, 4, 3]}
    with pytest.raises(UserError, match="--boxes"):
        coco.read(_coco(tmp_path, item), NONE)
    (drawing,) = coco.read(tmp_path, Choices(boxes="fill")).drawings
    assert paint(drawing, (23, 31), {"a": 1}).mask.sum() == 12
    (drawing,) = coco.read(tmp_path, Choices(boxes="skip")).drawings
    assert not drawing.shapes and drawing.no_area == {("box", "a"): 1}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"category_id": 7}, "no category has the id 7"),
        ({"category_id": 90, "image_id": 4}, "no image has the id 4"),
        ({"category_id": 90, "image_id": True}, "its id is True"),
        ({"category_id": 90, "segmentation": [[1, 2, 3]]}, "which is odd"),
        ({"category_id": 90, "segmentation": [[1, 2, 3, None]]}, "not two numbers"),
        ({"category_id": 90, "segmentation": "x"}, "not a list"),
        ({"category_id": 90, "segmentation": {"size": [23, 31]}}, "not a list"),
        ({"category_id": 90, "segmentation": {"size": [23, 31], "counts": [5]}}, "cover 5"),
        ({"category_id": 90, "segmentation": {"size": [23, 31], "counts": [-1, 714]}}, "cover"),
        ({"category_id": 90, "segmentation": {"size": [23, 31], "counts": [1.5]}}, "whole"),
        ({"category_id": 90, "segmentation": {"size": [23, 31], "counts": [1 << 80]}}, "whole"),
        ({"category_id": 90, "segmentation": {"size": [23, 31], "counts": "o"}}, "text of COCO"),
        ({"category_id": 90, "segmentation": {"size": [23, 31], "counts": "ööö"}}, "text of COCO"),
        ({"category_id": 90, "segmentation": {"size": [31, 23], "counts": [713]}}, "not 23 x 31"),
        ({"category_id": 90, "segmentation": {"size": [1e9, 1e9], "counts": [1]}}, "height"),
    ],
)
def test_coco_damaged_annotations_are_one_line(
    tmp_path: Path, item: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match="annotation 1") as told:
        coco.read(_coco(tmp_path, item), NONE)
    assert said in str(told.value)


def test_coco_ids_that_stand_twice_are_refused(tmp_path: Path) -> None:
    twice = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
    with pytest.raises(UserError, match="category 2"):
        coco.read(_coco(tmp_path, categories=twice), NONE)


# --- CVAT ---
def _cvat(folder: Path, body: str, head: str = "") -> Annotations:
    text = (
        f'<?xml version="1.0" encoding="utf-8"?>\n{head}<annotations><version>1.1</version><meta>'
        "<project><labels><label><name>a &amp; b</name></label><label><name>c</name></label>"
        "</labels></project></meta>"
        f'<image id="0" name="S 1/p.png" width="31" height="23">{body}</image></annotations>'
    )
    (folder / "annotations.xml").write_text(text, encoding="utf-8")
    return cvat.read(folder, NONE)


def test_cvat_is_painted_by_z_order_and_then_as_it_is_written(tmp_path: Path) -> None:
    found = _cvat(
        tmp_path,
        '<box label="c" z_order="2" xtl="0" ytl="0" xbr="4" ybr="4"/>'
        '<box label="a &amp; b" z_order="1" xtl="2" ytl="0" xbr="8" ybr="4"/>'
        '<polygon label="background" z_order="2" points="0,0;2,0;2,2;0,2"/>',
    )
    assert found.labels == ("a & b", "c")
    (drawing,) = found.drawings
    assert drawing.ordered and drawing.picture == "S 1/p.png"
    mask = paint(drawing, (23, 31), {"a & b": 1, "c": 2, "background": 0}).mask
    assert mask[0, :9].tolist() == [0, 0, 2, 2, 1, 1, 1, 1, 0]


def test_cvat_boxes_and_ellipses_turn_clockwise_about_their_centre(tmp_path: Path) -> None:
    found = _cvat(
        tmp_path,
        '<box label="c" xtl="2" ytl="8" xbr="12" ybr="12" rotation="90.00"/>'
        '<ellipse label="c" cx="20" cy="10" rx="9" ry="2" rotation="45"/>',
    )
    box, ellipse = found.drawings[0].shapes
    patch = covered(box, (23, 31))
    assert (patch.row, patch.column) == (5, 5) and patch.pixels.shape == (10, 4)
    assert patch.pixels.all()
    mask = paint(found.drawings[0], (23, 31), {"c": 1}).mask
    # Clockwise on the screen: from upper left to lower right.
    assert mask[15, 25] and mask[4, 14] and not mask[4, 25] and not mask[15, 14]
    assert ellipse.ellipse is not None and ellipse.ellipse.degrees == 45


def test_cvat_masks_run_along_the_rows_of_their_own_box(tmp_path: Path) -> None:
    mask = '<mask label="c" rle="1, 2, 2, 1" left="-1" top="3" width="3" height="2"/>'
    drawing = _cvat(tmp_path, mask).drawings[0]
    found = paint(drawing, (23, 31), {"c": 1}).mask
    # Rows 0 1 1 and 0 0 1, the first column outside.
    assert np.argwhere(found).tolist() == [[3, 0], [3, 1], [4, 1]]


def test_cvat_things_without_area_are_counted_and_points_of_a_skeleton_are_not(
    tmp_path: Path,
) -> None:
    drawing = _cvat(
        tmp_path,
        '<polyline label="c" points="1,1;2,2"/><tag label="c"/><points label="c" points="1,1"/>'
        '<skeleton label="c"><points label="d" points="1,1"/></skeleton>'
        '<polygon label="c" points="1,1;2,2"/>',
    ).drawings[0]
    kinds = ("polyline", "tag", "points", "skeleton", "polygon")
    assert drawing.no_area == {(kind, "c"): 1 for kind in kinds} and not drawing.shapes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<polygon label="c" points="1,1;2"/>', "x,y;x,y"),
        ('<polygon label="c" points="1,1;nan,2;3,3"/>', "in no picture"),
        ('<polygon points="1,1;2,2;3,3"/>', "--label"),
        ('<box label="c" xtl="a" ytl="0" xbr="1" ybr="1"/>', "xtl is 'a'"),
        ('<box label="c" ytl="0" xbr="1" ybr="1"/>', "xtl is missing"),
        ('<mask label="c" rle="1, 2" left="0" top="0" width="2" height="2"/>', "cover 3, not 4"),
        ('<mask label="c" rle="x" left="0" top="0" width="2" height="2"/>', "whole numbers"),
        ('<mask label="c" rle="4" left="0" top="0" width="1e9" height="2"/>', "width"),
        ('<blob label="c"/>', "no kind"),
        ('<box label="c" xtl="0" ytl="0" xbr="1" ybr="1" z_order="0.5"/>', "z_order"),
        ("<box", "no XML"),
    ],
)
def test_cvat_damaged_elements_are_one_line(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        _cvat(tmp_path, body)
    assert said in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;&x;">]>',
        '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
    ],
)
def test_cvat_entities_are_refused_before_they_are_looked_at(tmp_path: Path, head: str) -> None:
    with pytest.raises(UserError, match="document type"):
        _cvat(tmp_path, '<tag label="&x;"/>', head)


def test_cvat_for_video_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "v.xml"
    file.write_text("<annotations><meta></meta><track></track></annotations>")
    with pytest.raises(UserError, match="images 1.1"):
        cvat.read(file, NONE)
    file.write_text("<annotations><meta>" + "<a>" * 100_000)
    with pytest.raises(UserError, match="deeply"):
        cvat.read(file, NONE)


# --- Label Studio ---
def _result(kind: str, value: dict[str, object], **more: object) -> dict[str, object]:
    item = {"id": "r", "type": kind, "from_name": "t", "value": value, "image_rotation": 0}
    return item | {"original_width": 31, "original_height": 23} | more


def _studio(folder: Path, *results: dict[str, object], **more: object) -> Drawing:
    task: dict[str, object] = {"data": {"image": "/data/upload/3/1a2b3c4d-p.png"}}
    task["annotations"] = [{"result": list(results), "was_cancelled": False}]
    (folder / "t.json").write_text(json.dumps([task | more]))
    return label_studio.read(folder, NONE).drawings[0]


def test_label_studio_counts_in_percent_and_turns_about_the_corner(tmp_path: Path) -> None:
    percent = {"x": 1000 / 31, "y": 500 / 23, "width": 600 / 31, "height": 400 / 23}
    value = percent | {"rotation": 90, "rectanglelabels": ["a"]}
    drawing = _studio(tmp_path, _result("rectanglelabels", value))
    mask = paint(drawing, (23, 31), {"a": 1}).mask
    # About (10, 5), clockwise: 6 down and 4 to the left.
    assert mask[5:11, 6:10].all() and mask.sum() == 24
    assert drawing.picture == "p.png" and drawing.also == ("data/upload/3/1a2b3c4d-p.png",)


def test_label_studio_ellipse_has_its_centre_in_x_and_y(tmp_path: Path) -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "ellipselabels": ["a"]}
    drawing = _studio(tmp_path, _result("ellipselabels", value))
    found = drawing.shapes[0].ellipse
    assert found is not None
    assert (found.x, found.y) == (15.5, 11.5)
    assert (found.rx, found.ry) == pytest.approx((6.2, 2.3))


def test_label_studio_brush_and_label_may_be_two_results_of_one_id(tmp_path: Path) -> None:
    mask = _mask(3) == 2
    brush = _result("brush", {"format": "rle", "rle": list(runs.brush(mask))})
    drawing = _studio(tmp_path, brush, _result("labels", {"labels": ["a"]}))
    assert (paint(drawing, (23, 31), {"a": 1}).mask.astype(bool) == mask).all()


def test_label_studio_neither_predictions_nor_cancelled_ones_count_and_it_is_said(
    tmp_path: Path,
) -> None:
    whole = {"x": 0, "y": 0, "width": 100, "height": 100, "rectanglelabels": ["a"]}
    guess = {"result": [_result("rectanglelabels", whole)]}
    drawing = _studio(tmp_path, annotations=[guess | {"was_cancelled": True}], predictions=[guess])
    assert not drawing.shapes
    notes = label_studio.read(tmp_path, NONE).notes
    assert "1 cancelled annotation left out" in notes and "1 prediction left out" in notes


def test_label_studio_several_annotations_are_a_question(tmp_path: Path) -> None:
    def by(who: object, label: str, day: int) -> dict[str, object]:
        value = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": [label]}
        result = [_result("polygonlabels", value)]
        return {"completed_by": who, "result": result, "updated_at": f"2024-05-0{day}"}

    both = [by({"id": 4, "email": "m@x.org"}, "a", 2), by(7, "b", 1)]
    with pytest.raises(UserError, match="--annotator") as told:
        _studio(tmp_path, annotations=both)
    assert "m@x.org" in str(told.value) and "7" in str(told.value)
    for said, label in (("4", "a"), ("m@x.org", "a"), ("7", "b"), ("newest", "a"), ("oldest", "b")):
        drawing = label_studio.read(tmp_path, Choices(annotator=said)).drawings[0]
        assert [shape.label for shape in drawing.shapes] == [label]
    with pytest.raises(UserError, match="--annotator"):
        label_studio.read(tmp_path, Choices(annotator="8"))


def test_label_studio_json_min_has_the_control_for_a_key(tmp_path: Path) -> None:
    value = {"points": [[0, 0], [100, 0], [100, 100], [0, 100]], "polygonlabels": ["a"]}
    task = {"image": "/data/upload/p.png", "id": 1, "annotator": 2}
    item = value | {"original_width": 31, "original_height": 23}
    (tmp_path / "t.json").write_text(json.dumps([task | {"tag": [item]}]))
    assert recognised(tmp_path) == ["labelstudio"]
    (drawing,) = label_studio.read(tmp_path, NONE).drawings
    assert drawing.picture == "data/upload/p.png"
    assert paint(drawing, (23, 31), {"a": 1}).mask.all()


@pytest.mark.parametrize(
    ("said", "way"),
    [
        ("/data/local-files/?d=serie%20A%2Fkugel%2001.png", "serie A/kugel 01.png"),
        ("s3://bucket/S1/a%20b.png", "/S1/a b.png"),
        ("https://host/x/a.png?X-Amz-Date=1&Sig=a%2Fb", "/x/a.png"),
        ("C:\\Bilder\\100% neu #1.png", "C:\\Bilder\\100% neu #1.png"),
        (
            "/tasks/1/presign/?fileuri=" + base64.b64encode(b"s3://bucket/a/b.png").decode(),
            "/a/b.png",
        ),
    ],
)
def test_label_studio_addresses_become_paths(said: str, way: str) -> None:
    assert label_studio.address(said) == way


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (_result("polygonlabels", {"points": [], "polygonlabels": ["a", "b"]}), "leave it one"),
        (_result("polygonlabels", {"points": []}), "--label"),
        (_result("videorectangle", {}), "not read"),
        (_result("brushlabels", {"brushlabels": ["a"], "rle": [300]}), "list of bytes"),
        (_result("brushlabels", {"brushlabels": ["a"], "rle": "x"}), "format rle"),
        (_result("rectanglelabels", {"rectanglelabels": ["a"], "x": "1"}), "x is '1'"),
        (_result("rectanglelabels", {"rectanglelabels": ["a"]}, original_width=0), "width"),
        (_result("ellipselabels", {"ellipselabels": ["a"]}, image_rotation=90), "rotated"),
        (_result("ellipselabels", {"ellipselabels": [["a"]]}), "not a text"),
    ],
)
def test_label_studio_damaged_results_are_one_line(
    tmp_path: Path, result: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match="task 1, region 1") as told:
        _studio(tmp_path, result)
    assert said in str(told.value)


# --- VIA ---
def _via(folder: Path, *regions: dict[str, object], choices: Choices = NONE) -> Annotations:
    pictures = {"p.png12": {"filename": "p.png", "size": 12, "regions": list(regions)}}
    content = {"_via_settings": {}, "_via_img_metadata": pictures}
    (folder / "v.json").write_text(json.dumps(content))
    return via.read(folder, choices)


def _region(name: str, attributes: dict[str, object], **form: object) -> dict[str, object]:
    return {"shape_attributes": {"name": name, **form}, "region_attributes": attributes}


def test_via_ellipse_turns_by_radians_and_several_attributes_are_a_question(
    tmp_path: Path,
) -> None:
    ellipse = {"cx": 15, "cy": 11, "rx": 10, "ry": 2, "theta": np.pi / 2}
    regions = [
        _region("ellipse", {"phase": "a", "quality": "good"}, **ellipse),
        _region("polyline", {"phase": {"b": True, "c": False}}, all_points_x=[1], all_points_y=[1]),
    ]
    with pytest.raises(UserError, match="--attribute"):
        _via(tmp_path, *regions)
    (drawing,) = _via(tmp_path, *regions, choices=Choices(attribute="phase")).drawings
    mask = paint(drawing, (23, 31), {"a": 1}).mask
    assert mask[2:20, 15].all() and not mask[11, 5:12].any()
    assert drawing.no_area == {("polyline", "b"): 1}
    with pytest.raises(UserError, match="there are phase, quality"):
        _via(tmp_path, *regions, choices=Choices(attribute="class"))


def test_via_of_version_1_is_a_bare_dictionary(tmp_path: Path) -> None:
    region = _region("rect", {"x": "a"}, x=1, y=2, width=3, height=4)
    picture = {"filename": "p.png", "file_attributes": {}, "regions": {"0": region}}
    (tmp_path / "v.json").write_text(json.dumps({"p.png1": picture}))
    assert recognised(tmp_path) == ["via"]
    (drawing,) = via.read(tmp_path, NONE).drawings
    assert paint(drawing, (23, 31), {"a": 1}).mask.sum() == 12


# --- YOLO ---
def test_yolo_is_in_shares_and_finds_pictures_as_ultralytics_does(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names:\n  0: b\n  2: a\n")
    folder = tmp_path / "train" / "labels"
    folder.mkdir(parents=True)
    (folder / "4.2V-001.txt").write_text("2 0 0 1 0 1 0.5 0 0.5\n\n")
    (folder / "leer.txt").write_text("")
    assert recognised(tmp_path) == ["yolo"]
    found = yolo.read(tmp_path, NONE)
    one, other = found.drawings
    assert one.picture == "train/images/4.2V-001" and one.also == ("train/4.2V-001",)
    assert found.labels == ("b", "a") and not other.shapes
    mask = paint(one, (22, 31), {"a": 1}).mask
    assert mask[:11].all() and not mask[11:].any()


def test_a_table_of_measurements_is_not_of_yolo(tmp_path: Path) -> None:
    (tmp_path / "spectrum.txt").write_text("1 200.5 30 40 50 60 70\n")
    (tmp_path / "notes.txt").write_text("2 pictures of 3 and 4 of 5\n")
    assert recognised(tmp_path) == []
    (tmp_path / "p.txt").write_text("0 .5 1e-2 0.5 1. 0 1 " + "0.25 0.125 " * 10_000)
    assert recognised(tmp_path) == ["yolo"]
    assert len(yolo.read(tmp_path, NONE).drawings) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0 0 1 0 1 0.5 0", "no points of a segment"),
        ("7 0 0 1 0 1 1", "class 7"),
        ("0 0 0 1 0 nan 1", "no share"),
        ("0 0 0 50 0 30 1", "no share"),
        ("0 0.5 0.5 0.1 0.1", "--boxes"),
        ("0 0 0 1 0 x 1", "not of the form"),
    ],
)
def test_yolo_damaged_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "data.yaml").write_text("names: [b, c, a]")
    (tmp_path / "p.txt").write_text(f"2 0 0 1 0 1 1\n{line}\n")
    with pytest.raises(UserError, match=r"p\.txt, line 2") as told:
        yolo.read(tmp_path, NONE)
    assert said in str(told.value)


# --- damage ---
def _spoiled(data: bytes, rng: random.Random) -> bytes:
    """Cut off, turned about, doubled, or with other numbers and words in it."""
    kind = rng.randrange(6)
    at = rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(rng.randrange(256) for _ in range(8)) + data[at + 8 :]
    if kind == 2:
        words = (b"null", b"NaN", b"-1", b"1e999", b"99999999999", b"[]", b"{}", b'"x"', b"true")
        digits = [i for i in range(len(data)) if data[i : i + 1].isdigit()]
        at = rng.choice(digits) if digits else at
        return data[:at] + rng.choice(words) + data[at + 1 :]
    if kind == 3:
        return data[:at] + data[at : at + 40] * 3 + data[at:]
    if kind == 4:
        quotes = [i for i in range(len(data)) if data[i : i + 1] == b'"']
        at = rng.choice(quotes) if quotes else at
        return data[:at] + data[at + 1 :]
    return bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.003 else b for b in data)


# What no place of a file is meant to hold, or hardly one.
ODD: list[object] = [
    *(None, True, False, 0, -1, 1 << 70, -0.5, 1e308, float("nan"), float("inf"), "", " ", "x"),
    *("1", "\n", "../..", "\0", "a" * 3000, [], {}, [[]], [{}], {"": {}}, [1, 2], [[1, 2]], [None]),
    *({"size": [3, 3], "counts": "0"}, {"size": [1 << 15, 1 << 15], "counts": [1 << 30]}),
]


def _odd(content: object, rng: random.Random) -> object:
    """One value of a JSON file turned into another, taken out, or put in twice."""
    places: list[tuple[dict[object, object] | list[object], object]] = []
    level = [content]
    while level:
        one = level.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))  # type: ignore[arg-type]
        # Of long lists (points, bytes) some.
        keys = rng.sample(keys, 12) if len(keys) > 12 else keys
        for key in keys:
            places.append((one, key))  # type: ignore[arg-type]
            value = one[key]  # type: ignore[index]
            if isinstance(value, (dict, list)):
                level.append(value)
    for _ in range(rng.randrange(1, 3)):
        holder, key = rng.choice(places)
        try:
            if rng.random() < 0.2:
                del holder[key]  # type: ignore[arg-type]
            elif isinstance(holder, list) and rng.random() < 0.2:
                holder.append(holder[key])  # type: ignore[index,call-overload]
            else:
                holder[key] = rng.choice(ODD)  # type: ignore[index,call-overload]
        except (IndexError, KeyError):
            continue
    return content


def _examples(folder: Path) -> list[Path]:
    for name in WRITTEN:
        module_of(name).write(
            folder / name, [Marked("a.png", _mask(4)), Marked("b.png", _mask(5))], NAMES
        )  # type: ignore[attr-defined]
    (folder / "via").mkdir()
    _via(
        folder / "via",
        _region("polygon", {"x": "a"}, all_points_x=[1, 9, 9], all_points_y=[1, 1, 9]),
        _region("ellipse", {"x": "a"}, cx=15, cy=11, rx=10, ry=2, theta=1),
    )
    (folder / "yolo").mkdir()
    (folder / "yolo" / "a.txt").write_text("0 0 0 1 0 1 1\n1 0.1 0.1 0.2 0.1 0.2 0.3\n")
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md")


def test_spoiled_files_are_refused_in_one_line_or_read(tmp_path: Path) -> None:
    rng = random.Random(20)
    refused = 0
    for file in _examples(tmp_path):
        if file.name == label_studio.CONFIG:
            continue
        name = file.relative_to(tmp_path).parts[0]
        data = file.read_bytes()
        for turn in range(36):
            if file.suffix == ".json" and turn % 3:
                file.write_text(json.dumps(_odd(json.loads(data), rng)))
            else:
                file.write_bytes(_spoiled(data, rng))
            refused += _survives(lambda name=name, file=file: module_of(name).read(file, NONE))  # type: ignore[misc]
        file.write_bytes(data)
    assert refused > 100


def _survives(read: Callable[[], Annotations]) -> bool:
    try:
        for drawing in read().drawings:
            values = {shape.label: 1 for shape in drawing.shapes}
            paint(drawing, (23, 31), values)
    except UserError as error:
        assert len(str(error)) < 1500 and "Traceback" not in str(error)
        return True
    return False


def test_every_format_answers_whether_a_folder_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1, 2")
    (tmp_path / "y.txt").write_bytes(b"\xff\xfe\0")
    assert recognised(tmp_path) == [] and recognised(tmp_path / "absent") == []
    for name in ("labelme", "coco", "cvat", "labelstudio", "via", "yolo"):
        assert name in FORMATS
        with pytest.raises(UserError, match="holds no annotations of"):
            module_of(name).read(tmp_path, NONE)
    assert labelme.recognise(tmp_path) is False
