"""What labelling programs write becomes masks to the pixel, and masks become their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data.annotations import Choices, Drawing, Marked, Shape, labelme
from matssl.data.annotations.drawing import (
    Ellipse,
    Patch,
    Points,
    box,
    label_of,
    picture_name,
    stem_of,
    turned,
)
from matssl.data.annotations.outlines import polygons
from matssl.data.annotations.raster import covered, paint

SIZE = (40, 56)


def _filled(shape: Shape, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    found = np.zeros(size, bool)
    patch = covered(shape, size)
    rows, columns = patch.pixels.shape
    found[patch.row : patch.row + rows, patch.column : patch.column + columns] = patch.pixels
    return found


def _slowly(rings: list[Points], size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """Independent: every centre against every edge, in whole rows."""
    found = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y, inside = column + 0.5, row + 0.5, False
            for ring in rings:
                for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
                    if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
                        inside = not inside
            found[row, column] = inside
    return found


def _random_mask(seed: int, size: tuple[int, int] = (23, 31)) -> NDArray[np.bool_]:
    """Holes, islands in holes, parts of one pixel, touching at corners and at the border."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((6, 8)) < 0.5
    mask = np.kron(coarse, np.ones((4, 4), bool))[: size[0], : size[1]]
    return mask ^ (rng.random(size) < 0.1 * (seed % 4))


# --- drawings to masks ---
def test_a_pixel_belongs_to_a_polygon_where_its_centre_lies_inside() -> None:
    shape = Shape("a", "polygon", (np.array([(1.0, 1.0), (4.5, 1.0), (4.5, 3.5), (1.0, 3.5)]),))
    right = np.zeros((5, 6), bool)
    # Centres 1.5, 2.5, 3.5 in x; 4.5 lies on the right outline. 1.5 and 2.5 in y, 3.5 below.
    right[1:3, 1:4] = True
    assert (_filled(shape, (5, 6)) == right).all()


@pytest.mark.parametrize("seed", range(6))
def test_polygons_are_filled_as_every_centre_against_every_edge_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-15, 70, (7, 2)), rng.uniform(0, 40, (5, 2)).round(seed % 3)]
    assert (_filled(Shape("a", "polygon", tuple(rings))) == _slowly(rings)).all()


def test_polygons_that_share_an_outline_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(3)
    line = np.stack([rng.uniform(5, 50, 30), np.linspace(0, 40, 30)], axis=1)
    left = np.concatenate([line, [(0, 40), (0, 0)]])
    right = np.concatenate([line[::-1], [(56, 0), (56, 40)]])
    one, other = (_filled(Shape("a", "polygon", (ring,))) for ring in (left, right))
    assert (one ^ other).all()


def test_a_ring_in_a_ring_is_a_hole_and_a_third_an_island() -> None:
    rings = (box(2, 2, 30, 30), box(6, 6, 20, 20), box(9, 9, 12, 12))
    assert _filled(Shape("a", "polygon", rings)).sum() == 28 * 28 - 14 * 14 + 3 * 3


def test_quarter_turns_and_mirrors_turn_the_mask_along() -> None:
    ring = np.random.default_rng(1).uniform(-3, 43, (9, 2))
    square = (40, 40)
    mask = _filled(Shape("a", "polygon", (ring,)), square)
    mirrored = ring * (-1, 1) + (40, 0)
    assert (_filled(Shape("a", "polygon", (mirrored,)), square) == mask[:, ::-1]).all()
    quarter = turned(ring, 90, 20, 20)
    assert (_filled(Shape("a", "polygon", (quarter,)), square) == np.rot90(mask, -1)).all()


def test_an_ellipse_holds_the_centres_that_its_equation_says() -> None:
    y, x = np.mgrid[:40, :56] + 0.5
    right = ((x - 20) / 13) ** 2 + ((y - 18.5) / 10) ** 2 <= 1
    assert (_filled(Shape("a", "oval", ellipse=Ellipse(20, 18.5, 13, 10))) == right).all()
    # (3.5, 0.5) lies on the circle about (0.5, 0.5) of radius 3.
    assert _filled(Shape("a", "circle", ellipse=Ellipse(0.5, 0.5, 3, 3)))[0, 3]


def test_a_turned_ellipse_is_the_polygon_of_its_outline() -> None:
    t = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    outline = np.stack([28 + 17 * np.cos(t), 20 + 6 * np.sin(t)], axis=1)
    ring = turned(outline, 33, 28, 20)
    ellipse = Shape("a", "ellipse", ellipse=Ellipse(28, 20, 17, 6, 33))
    assert (_filled(ellipse) == _filled(Shape("a", "polygon", (ring,)))).all()


def test_patches_are_clipped_to_the_picture() -> None:
    patch = Patch(-2, 53, np.ones((5, 9), bool))
    mask = _filled(Shape("a", "mask", patch=patch))
    assert mask.sum() == 3 * 3 and mask[:3, 53:].all()
    outside = Patch(50, -90, np.ones((5, 9), bool))
    assert not _filled(Shape("a", "mask", patch=outside)).any()


def _two(ordered: bool = False) -> Drawing:
    large, small = (
        Shape(n, "box", (b,)) for n, b in (("a", box(0, 0, 20, 20)), ("b", box(5, 5, 9, 9)))
    )
    alone = Shape("a", "box", (box(8, 8, 9, 30),))
    return Drawing("p.png", SIZE, (large, small, alone), Path("f"), ordered=ordered)


@pytest.mark.parametrize(
    ("overlap", "number", "at"),
    [
        # b has 16 pixels, one of which the third shape claims as well.
        ("last", 15, 1),
        ("first", 0, 1),
        ("smallest", 16, 2),
        ("largest", 0, 1),
        ("ignore", 0, 255),
    ],
)
def test_who_gets_a_pixel_that_two_classes_claim(overlap: str, number: int, at: int) -> None:
    painted = paint(_two(), SIZE, {"a": 1, "b": 2}, overlap)  # type: ignore[arg-type]
    assert (painted.mask == 2).sum() == number
    assert painted.mask[8, 8] == at
    assert painted.covered == 400 + 10


def test_pixels_that_two_classes_claim_are_counted_and_those_of_one_class_are_not() -> None:
    painted = paint(_two(), SIZE, {"a": 1, "b": 2})
    # One pixel goes from a to b and back.
    assert painted.overlaps == {("a", "b"): 16, ("b", "a"): 1} and painted.claimed == 16
    same = paint(_two(), SIZE, {"a": 1, "b": 1})
    assert same.overlaps == {} and not same.claimed


def test_shapes_that_hold_no_centre_are_counted() -> None:
    shapes = (
        Shape("a", "box", (box(3.6, 3.6, 4.4, 4.4),)),
        Shape("a", "box", (box(90, 0, 99, 9),)),
    )
    painted = paint(Drawing("p", SIZE, shapes, Path("f")), SIZE, {"a": 1}, uncovered=255)
    assert painted.empty == {"a": 2} and (painted.mask == 255).all() and not painted.covered


# --- masks to outlines ---
@pytest.mark.parametrize("seed", range(40))
def test_outlines_read_back_are_the_mask(seed: int) -> None:
    mask = _random_mask(seed)
    found = np.zeros(mask.shape, bool)
    for rings in polygons(mask):
        part = _filled(Shape("a", "polygon", tuple(rings)), mask.shape)
        assert not (found & part).any()
        found |= part
    assert (found == mask).all()


@pytest.mark.parametrize("seed", range(20))
def test_outlines_are_valid_polygons_with_holes_and_as_many_as_there_are_parts(seed: int) -> None:
    shapely = pytest.importorskip("shapely")
    from scipy import ndimage

    mask = _random_mask(seed)
    parts = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons(mask)]
    assert all(part.is_valid for part in parts)
    assert len(parts) == ndimage.label(mask)[1]
    assert sum(part.area for part in parts) == mask.sum()


def test_the_outline_of_a_pixel_has_its_four_corners_and_straight_edges_no_more() -> None:
    mask = np.zeros((4, 5), bool)
    mask[2, 3] = True
    assert polygons(mask)[0][0].tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]]
    mask[1:4, 0:5] = True
    assert len(polygons(mask)[0][0]) == 4
    assert polygons(np.zeros((3, 3), bool)) == []


def test_two_pixels_that_touch_at_a_corner_are_two_parts_and_a_hole_there_stays_one() -> None:
    assert [len(rings) for rings in polygons(np.eye(2, dtype=bool))] == [1, 1]
    ring = np.ones((4, 4), bool)
    ring[1, 1] = ring[0, 0] = False
    # The hole touches the outside at a corner.
    assert [len(rings) for rings in polygons(ring)] == [2]


# --- names ---
@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("..\\Bilder\\Probe 01.png", "Bilder/Probe 01.png"),
        ("C:\\Users\\M\u0061\u0308rz\\a.tif", "Users/M\u00e4rz/a.tif"),
        ("/data/./a.png", "data/a.png"),
    ],
)
def test_pictures_are_named_without_drive_and_by_composed_letters(said: str, name: str) -> None:
    assert picture_name(said) == name


def test_a_name_loses_the_ending_of_a_picture_and_nothing_else() -> None:
    assert [stem_of(n) for n in ("a/b.PNG", "4.2V-001", "x.json")] == ["a/b", "4.2V-001", "x.json"]
    assert label_of(" Ko\u0308rner ") == "K\u00f6rner"


# --- LabelMe ---
NAMES = {1: "Ferrit-Körner", 2: "炭化物", 3: "Perlite lamellaire"}


def _classes(seed: int, size: tuple[int, int] = (23, 31)) -> NDArray[np.uint8]:
    """Touching classes with holes, islands, single pixels and ignored ones."""
    mask = np.zeros(size, np.uint8)
    for number in (1, 2, 3, 255):
        mask[_random_mask(seed * 7 + number, size) & (mask == 0)] = number
    return mask


def _again(drawing: Drawing, size: tuple[int, int]) -> NDArray[np.uint8]:
    values = {name: number for number, name in NAMES.items()} | {"__ignore__": 255, "ignore": 255}
    assert drawing.size == size
    return paint(drawing, size, values).mask


@pytest.mark.parametrize("seed", range(8))
def test_labelme_reads_back_what_is_written(tmp_path: Path, seed: int) -> None:
    mask = _classes(seed)
    labelme.write(tmp_path, [Marked("S1/a b.png", mask)], NAMES)
    assert labelme.recognise(tmp_path)
    (drawing,) = labelme.read(tmp_path, Choices()).drawings
    assert drawing.picture == "S1/a b.png"
    assert (_again(drawing, mask.shape) == mask).all()


def _labelme(folder: Path, *shapes: dict[str, object], **more: object) -> Drawing:
    content = {"shapes": list(shapes), "imagePath": "p.png", "imageData": None, **more}
    (folder / "p.json").write_text(json.dumps(content), encoding="utf-8")
    return labelme.read(folder, Choices()).drawings[0]


def test_labelme_of_old_has_polygons_without_a_kind_and_no_size(tmp_path: Path) -> None:
    drawing = _labelme(tmp_path, {"label": "a", "points": [[1, 1], [9, 1], [9, 5], [1, 5]]})
    assert drawing.size is None and drawing.ordered
    assert _filled(drawing.shapes[0]).sum() == 8 * 4


def test_labelme_circle_rectangle_and_things_without_area(tmp_path: Path) -> None:
    drawing = _labelme(
        tmp_path,
        {"label": "a", "shape_type": "circle", "points": [[20, 20], [20, 15]]},
        {"label": "b", "shape_type": "rectangle", "points": [[30, 12], [24, 2]]},
        {"label": "c", "shape_type": "linestrip", "points": [[1, 1], [2, 2], [3, 1]]},
        {"label": "c", "shape_type": "polygon", "points": [[1, 1], [2, 2]]},
    )
    assert drawing.shapes[0].ellipse == Ellipse(20, 20, 5, 5)
    assert _filled(drawing.shapes[1]).sum() == 60
    assert drawing.no_area == {("linestrip", "c"): 1, ("polygon", "c"): 1}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"label": "a", "points": [[1, "x"]]}, "point 1"),
        ({"label": "a", "points": [[1, float("nan")], [2, 2], [3, 3]]}, "in no picture"),
        ({"label": "a", "points": [[1e300, 1], [2, 2], [3, 3]]}, "in no picture"),
        ({"label": "a", "points": {}}, "not a list"),
        ({"label": "", "points": []}, "--label"),
        ({"label": ["a"], "points": []}, "not a text"),
        ({"label": "a", "points": [], "shape_type": "spline"}, "'spline'"),
        ({"label": "a", "points": [[1, 1]], "shape_type": "circle"}, "1 point, not 2"),
        ({"label": "a", "points": [[1, 1]], "shape_type": "mask", "mask": None}, "missing"),
        ({"label": "a", "points": [[1, 1]], "shape_type": "mask", "mask": "?"}, "no base64"),
        ({"label": "a", "points": [[1, 1]], "shape_type": "mask", "mask": "aGFsbG8="}, "no PNG"),
    ],
)
def test_labelme_damaged_shapes_are_one_line_that_names_them(
    tmp_path: Path, shape: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=r"p\.json, shape 1") as told:
        _labelme(tmp_path, shape)
    assert said in str(told.value) and "\n" not in str(told.value)
