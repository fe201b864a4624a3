"""Layers and cracks: thickness along the normal, roughness, length of cracks, what is left out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import guard
from matssl.measure import intervals, units
from matssl.measure.cracks import find_cracks, length_of, smoothed
from matssl.measure.layers import Layer, find_layers, with_cracks
from matssl.tools import measure

pytestmark = pytest.mark.usefixtures("no_drawing")
Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 360, 600


def _grid(height: int = HEIGHT, width: int = WIDTH) -> tuple[NDArray[np.float64], ...]:
    y, x = np.mgrid[:height, :width] + 0.5
    return x, y


def _only(band: Mask, known: Mask | None = None) -> Layer:
    found = find_layers(band, known)
    assert len(found) == 1
    return found[0][0]


def _line(width: float, *points: tuple[float, float], shape: tuple[int, int] = (320, 320)) -> Mask:
    """Pixels whose centres lie within half a width of a chain of points (x, y)."""
    x, y = _grid(*shape)
    mask = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        mask |= (x - x0 - t * dx) ** 2 + (y - y0 - t * dy) ** 2 <= (width / 2) ** 2
    return mask


# --- thickness ---
def test_a_straight_layer_is_as_thick_as_it_has_rows() -> None:
    band = np.zeros((100, 200), bool)
    band[30:67] = True
    layer = _only(band)
    assert layer.thickness == pytest.approx(np.full(200, 37.0)) and not layer.curved
    assert layer.angle == 0 and layer.outside == layer.broken == 0
    assert layer.roughness[0].rq == pytest.approx(0, abs=1e-6)
    # Edges lie between pixels: above row 30, below row 66.
    assert layer.first[:, 1] == pytest.approx(np.full(200, 29.5))
    assert layer.second[:, 1] == pytest.approx(np.full(200, 66.5))


def test_sinus_edges_have_the_mean_the_spread_and_the_roughness_of_the_formula() -> None:
    x, y = _grid(480, 1000)
    upper = 150 + 10 * np.sin(2 * np.pi * x / 100)
    lower = 300 + 5 * np.sin(2 * np.pi * x / 50)
    layer = _only((y >= upper) & (y < lower))
    # Sinus: mean absolute value 2 a / pi, root mean square a / sqrt 2.
    assert layer.mean == pytest.approx(150, abs=0.1)
    assert layer.std == pytest.approx(math.sqrt(10**2 / 2 + 5**2 / 2), rel=0.02)
    assert layer.roughness[0].ra == pytest.approx(20 / math.pi, rel=0.02)
    assert layer.roughness[0].rq == pytest.approx(10 / math.sqrt(2), rel=0.02)
    assert layer.roughness[1].ra == pytest.approx(10 / math.pi, rel=0.03)
    assert layer.roughness[1].rq == pytest.approx(5 / math.sqrt(2), rel=0.03)


@pytest.mark.parametrize("degrees", [0, 7, 30, 45, 60, 90, 135])
def test_a_tilted_layer_is_measured_along_its_own_normal(degrees: float) -> None:
    x, y = _grid()
    angle = math.radians(degrees)
    away = (x - WIDTH / 2) * math.sin(angle) + (y - HEIGHT / 2) * math.cos(angle)
    layer = _only(np.abs(away) <= 30)
    assert layer.mean == pytest.approx(60, abs=0.3) and layer.std < 0.6
    off = (layer.angle - degrees + 90) % 180 - 90
    assert abs(off) < 0.2
    # At both ends the normals of a tilted layer leave the field.
    assert (layer.outside > 0) == (degrees not in (0, 90))


@pytest.mark.parametrize("radius", [400, 500, 2000])
def test_a_curved_layer_is_measured_along_the_radius(radius: float) -> None:
    x, y = _grid()
    away = np.hypot(x - WIDTH / 2, y - (HEIGHT / 2 + radius - 60))
    layer = _only(np.abs(away - radius) <= 25)
    assert layer.curved and layer.mean == pytest.approx(50, rel=0.01)
    assert layer.roughness[0].rq < 1.5


def test_a_wavy_layer_is_not_taken_for_a_curved_one() -> None:
    x, y = _grid()
    middle = 180 + 12 * np.sin(2 * np.pi * x / 120)
    layer = _only(np.abs(y - middle) <= 20)
    assert not layer.curved and layer.roughness[0].rq == pytest.approx(12 / math.sqrt(2), rel=0.03)


def test_a_wedge_has_smooth_edges() -> None:
    x, y = _grid()
    layer = _only((y > 100) & (y < 150 + x / 6))
    assert layer.roughness[0].rq < 0.4 and layer.roughness[1].rq < 0.4
    assert layer.thickness.max() - layer.thickness.min() == pytest.approx(100, abs=3)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_turned_or_mirrored_field_gives_the_same_numbers(turn: int, mirror: bool) -> None:
    x, y = _grid()
    band = (y > 80 + 6 * np.sin(x / 9)) & (y < 210 + 9 * np.cos(x / 23) + x / 20)
    plain = _only(band)
    turned = np.rot90(band[:, ::-1] if mirror else band, turn)
    layer = _only(np.ascontiguousarray(turned))
    assert (layer.mean, layer.std) == pytest.approx((plain.mean, plain.std), abs=0.02)
    rough = sorted(one.rq for one in layer.roughness)
    assert rough == pytest.approx(sorted(one.rq for one in plain.roughness), abs=0.02)
    assert layer.upright == (turn in (1, 3))


def test_twice_the_size_gives_twice_the_lengths() -> None:
    x, y = _grid()
    band = (y > 80 + 6 * np.sin(x / 9)) & (y < 210 + 9 * np.cos(x / 23))
    twice = _only(np.repeat(np.repeat(band, 2, axis=0), 2, axis=1))
    plain = _only(band)
    assert twice.mean == pytest.approx(2 * plain.mean, rel=0.002)
    assert twice.roughness[0].rq == pytest.approx(2 * plain.roughness[0].rq, rel=0.02)


# --- what is left out, and what is no layer ---
def test_columns_where_the_layer_leaves_the_field_are_dropped_and_counted() -> None:
    x, y = _grid(200, 400)
    upper = np.where((x > 150) & (x < 190), -5, 40)
    layer = _only((y >= upper) & (y < 120))
    assert layer.outside == 40 and len(layer.thickness) == 360
    assert layer.thickness == pytest.approx(np.full(360, 80.0), abs=0.1)


def test_pixels_that_count_nowhere_hide_an_edge() -> None:
    band = np.zeros((100, 200), bool)
    band[30:70] = True
    known = np.ones(band.shape, bool)
    known[60:80, 50:70] = False
    layer = _only(band & known, known)
    assert layer.outside == 20 and layer.mean == pytest.approx(40, abs=0.01)


def test_a_strip_that_counts_nowhere_ends_the_field_as_its_edge_does() -> None:
    band = np.zeros((100, 400), bool)
    band[30:70] = True
    known = np.ones(band.shape, bool)
    known[:, :100] = False
    layer = _only(band & known, known)
    assert len(layer.thickness) == 300 and layer.broken == 0 and layer.outside == 100
    assert layer.thickness == pytest.approx(np.full(300, 40.0))


def test_specks_of_a_prediction_change_a_thickness_by_less_than_a_percent() -> None:
    x, y = _grid()
    clean = (y > 100 + 8 * np.sin(x / 30)) & (y < 210)
    noise = np.random.default_rng(0).random(clean.shape)
    specked = (clean & (noise > 0.02)) | (~clean & (noise < 0.005))
    assert _only(specked).mean == pytest.approx(_only(clean).mean, rel=0.01)


def test_an_interrupted_layer_is_said() -> None:
    band = np.zeros((100, 400), bool)
    band[30:70] = True
    # A bridge of one row in another place keeps it one part; the notch is its edge.
    band[30:69, 200:220] = False
    layer = _only(band)
    assert layer.thickness.min() == pytest.approx(1, abs=0.3)
    found = find_layers(np.delete(band, 69, axis=0))
    # Two halves, of which none crosses the field.
    assert found == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, y: y > 100,
        lambda x, y: np.hypot(x - 300, y - 180) < 120,
        lambda x, y: (np.abs(y - 180) < 30) & (x < 350),
        lambda x, y: np.hypot(x % 40 - 20, y % 40 - 20) > 15,
        lambda x, y: x < 0,
        lambda x, y: x > 0,
    ],
    ids=["one edge", "disc", "ends inside", "matrix", "nothing", "everything"],
)
def test_what_has_no_two_edges_across_the_field_is_no_layer(
    draw: Callable[[NDArray[np.float64], NDArray[np.float64]], Mask],
) -> None:
    assert find_layers(draw(*_grid())) == []


def test_layers_of_one_class_are_told_apart_from_the_top() -> None:
    band = np.zeros((200, 300), bool)
    band[120:150] = band[20:30] = True
    assert [round(layer.mean) for layer, _ in find_layers(band)] == [10, 30]


def test_pores_inside_belong_to_the_thickness() -> None:
    band = np.zeros((100, 200), bool)
    band[30:70] = True
    band[45:55, 80:120] = False
    assert _only(band).thickness == pytest.approx(np.full(200, 40.0), abs=0.01)


def test_cracks_inside_belong_to_the_thickness_and_those_outside_do_not() -> None:
    band = np.zeros((120, 240), bool)
    band[30:70] = True
    cracks = np.zeros(band.shape, bool)
    # One through the whole layer and on into the substrate, one from the surface down.
    cracks[30:110, 100:103] = cracks[30:50, 160:163] = True
    layer = _only(with_cracks(band & ~cracks, cracks))
    assert layer.broken == 0 and layer.thickness == pytest.approx(np.full(240, 40.0), abs=3)
    assert layer.mean == pytest.approx(40, abs=0.1)


# --- cracks ---
@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("degrees", [0, 10, 22.5, 30, 45, 67, 90, 150])
def test_a_crack_is_as_long_in_any_direction(degrees: float, width: float) -> None:
    angle, length = math.radians(degrees), 200
    start = (250.5, 250.5) if degrees > 90 else (50.5, 250.5)
    end = (start[0] + length * math.cos(angle), start[1] - length * math.sin(angle))
    found, dropped = find_cracks(_line(width, start, end))
    # Steps of 1 and the square root of 2 give 214.6 at 30 and 216.5 at 22.5 degrees.
    assert len(found) == 1 and not dropped
    crack = found[0][0]
    assert crack.length == pytest.approx(length, rel=0.015) and crack.tips == 2
    assert abs((crack.angle - degrees + 90) % 180 - 90) < 1
    assert crack.width == pytest.approx(width, abs=1.1)


def test_a_crack_that_turns_a_corner_is_one() -> None:
    found, _ = find_cracks(_line(3, (80.5, 80.5), (230.5, 80.5), (230.5, 180.5)))
    assert len(found) == 1 and found[0][0].length == pytest.approx(250, rel=0.02)
    assert found[0][0].tips == 2


def test_a_forked_crack_is_one_with_the_length_of_all_its_branches() -> None:
    mask = _line(3, (160.5, 300.5), (160.5, 160.5), (80.5, 60.5))
    mask |= _line(3, (160.5, 160.5), (240.5, 60.5))
    crack = find_cracks(mask)[0][0][0]
    assert crack.tips == 3
    assert crack.length == pytest.approx(140 + 2 * math.hypot(80, 100), rel=0.02)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_cracks_that_cross_are_one_with_four_ends(width: float) -> None:
    mask = _line(width, (50.5, 50.5), (250.5, 250.5)) | _line(width, (50.5, 250.5), (250.5, 50.5))
    found, _ = find_cracks(mask)
    assert len(found) == 1 and found[0][0].tips == 4
    assert found[0][0].length == pytest.approx(400 * math.sqrt(2), rel=0.01)


def test_a_rough_outline_makes_no_branches() -> None:
    mask = _line(6, (50.5, 150.5), (250.5, 180.5))
    generator = np.random.default_rng(0)
    for grow in (True, False):
        other = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if not grow:
            other = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        mask = np.where(generator.random(mask.shape) < 0.15, other, mask)
    crack = max((one for one, _ in find_cracks(mask)[0]), key=lambda one: one.area)
    # Both caps belong to what is drawn, half of them to the middle line.
    assert crack.tips == 2 and 200 <= crack.length <= 212


def test_a_ring_has_the_length_of_its_circle() -> None:
    x, y = _grid(200, 200)
    ring = np.abs(np.hypot(x - 100, y - 100) - 60) <= 2
    crack = find_cracks(ring)[0][0][0]
    assert crack.length == pytest.approx(2 * math.pi * 60, rel=0.015) and crack.tips == 0


def test_corners_of_a_wide_crack_are_no_branches() -> None:
    mask = np.zeros((60, 260), bool)
    mask[20:31, 30:230] = True
    crack = find_cracks(mask)[0][0][0]
    assert crack.tips == 2 and crack.widest == pytest.approx(11, abs=0.1)
    # The middle line ends half a width before the tips.
    assert 185 <= crack.length <= 200


def test_short_specks_are_left_out_and_counted() -> None:
    mask = np.zeros((50, 50), bool)
    mask[5, 5] = mask[10:12, 10:12] = True
    mask[30, 5:45] = True
    found, dropped = find_cracks(mask, 5)
    assert [round(one.length) for one, _ in found] == [39] and dropped == 2
    # Alone they have no length, and are no error.
    assert find_cracks(mask[:20])[0][0][0].length == 0
    assert find_cracks(np.zeros((5, 5), bool)) == ([], 0)


def test_the_ends_of_a_smoothed_path_stay() -> None:
    path = np.array([[0.0, 0], [1, 0], [2, 1], [3, 1], [4, 2]])
    line = smoothed(path)
    assert line[0].tolist() == [0, 0] and line[-1].tolist() == [4, 2]
    assert length_of(line) == pytest.approx(math.hypot(4, 2), rel=0.01)
    assert length_of(path[:1]) == 0


# --- units and intervals ---
def test_lengths_of_a_table_have_one_unit() -> None:
    assert units.common([150], [1000.0]).name == "µm"
    assert units.common([150, 3], [2.0, 2.0]).name == "nm"
    assert units.common([150, 3], [2.0, None]) is units.PIXELS
    assert units.Unit("µm", 1e3).of(150, 500.0) == 75
    assert units.PIXELS.of(7, 500.0) == 7


def test_a_mean_over_fields_has_the_interval_of_student() -> None:
    mean = intervals.mean_of_fields([10, 12, 14, 16, 18])
    assert mean.mean == 14 and mean.std == pytest.approx(3.1623, abs=1e-4)
    assert mean.half_width == pytest.approx(3.926, abs=1e-3)
    assert math.isnan(intervals.mean_of_fields([1, 2]).half_width)


# --- the command ---
def _folder(root: Path, masks: dict[str, NDArray[np.uint8]], classes: str) -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name, mask in masks.items():
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
        cv2.imwrite(str(root / "images" / f"{name}.png"), mask * 60 + 20)
    (root / "classes.yaml").write_text(classes)
    return root


def _measured(folder: Path, out: Path, *more: str) -> list[dict[str, str]]:
    argv = [str(folder), "--what", "layers", "--output_dir", str(out), "--overwrite", *more]
    assert guard(measure.main, argv) == 0
    with open(out / "measure" / folder.name / "layers.csv", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _coating(thickness: int, cracks: int = 0) -> NDArray[np.uint8]:
    mask = np.zeros((120, 200), np.uint8)
    mask[30:] = 2
    mask[30 : 30 + thickness] = 1
    for number in range(cracks):
        mask[32 : 28 + thickness, 20 + 30 * number : 23 + 30 * number] = 3
    return mask


NAMES = "classes: {resin: 0, oxide: 1, substrate: 2, crack: 3}\n"


def test_the_command_measures_layers_and_their_cracks_by_specimen(tmp_path: Path) -> None:
    masks = {f"a_{n}": _coating(40 + n, n) for n in range(5)}
    folder = _folder(tmp_path / "data", masks, NAMES)
    rows = _measured(folder, tmp_path, "--pixel_size", "500nm", "--group_regex", "^(a)_")
    assert [row["class"] for row in rows] == ["oxide"] * 5
    assert [float(row["thickness mean (µm)"]) for row in rows] == [20, 20.5, 21, 21.5, 22]
    assert [int(row["cracks"]) for row in rows] == [0, 1, 2, 3, 4]
    # Four cracks in 200 px of half a micrometre.
    assert float(rows[4]["cracks per mm of layer"]) == pytest.approx(40)
    assert float(rows[4]["crack length (µm)"]) == pytest.approx(4 * 38 / 2, rel=0.05)
    out = tmp_path / "measure" / "data"
    with open(out / "specimens.csv", encoding="utf-8-sig") as file:
        specimens = list(csv.DictReader(file))
    assert len(specimens) == 1 and specimens[0]["class"] == "oxide"
    assert float(specimens[0]["thickness mean (µm)"]) == 21
    # s = 0.7906, t = 2.776.
    half = float(specimens[0]["thickness half width 95 % (µm)"])
    assert half == pytest.approx(0.9816, abs=1e-3)
    with open(out / "cracks.csv", encoding="utf-8-sig") as file:
        cracks = list(csv.DictReader(file))
    assert len(cracks) == 10 and {row["in layer"] for row in cracks} == {"oxide 1"}
    assert (out / "fields" / "a_1_layers.png").is_file()


def test_the_mean_over_specimens_is_a_number_of_its_own(tmp_path: Path) -> None:
    masks = {f"{name}_{n}": _coating(t) for name, t in (("a", 20), ("b", 40)) for n in range(2)}
    folder = _folder(tmp_path / "data", masks, NAMES)
    _measured(folder, tmp_path, "--group_regex", "^([ab])_")
    found = json.loads((tmp_path / "measure" / "data" / "measure.json").read_text())["layers"]
    assert sorted(row["thickness mean (px)"] for row in found["specimens"]) == [20, 40]
    (mean,) = found["over specimens"]
    assert mean["thickness mean (px)"] == 30 and mean["specimen"] == "mean of 2 specimens"
    assert mean["thickness half width 95 % (px)"] is None


def test_a_flag_of_layers_acts_on_layers_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(tmp_path), "--what", "fractions", "--min_crack", "9px"]
    assert guard(measure.main, argv) == 2
    assert "--min_crack: only --what layers takes it" in capsys.readouterr().err


def test_a_class_is_taken_for_cracks_by_its_shape_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "classes: {a: 0, b: 1, c: 2, d: 3}\n"
    folder = _folder(tmp_path / "data", {"one": _coating(60, 3)}, names)
    (row,) = _measured(folder, tmp_path)
    said = capsys.readouterr().out
    assert (row["class"], row["cracks"]) == ("b", "3")
    assert float(row["thickness mean (px)"]) == 60
    assert "cracks by their shape" in said and ": d." in said
    assert "Lengths in px: 1 field without a pixel size" in said


def test_cracks_outside_of_any_layer_are_counted_by_area(tmp_path: Path) -> None:
    mask = np.zeros((200, 250), np.uint8)
    mask[50, 20:121] = 1
    folder = _folder(tmp_path / "data", {"one": mask}, "classes: {coating: 0, Riss: 1}\n")
    (row,) = _measured(folder, tmp_path, "--pixel_size", "2um", "--class", "Riss")
    assert (row["class"], row["cracks"], row["layer"]) == ("Riss", "1", "")
    assert float(row["crack length (µm)"]) == pytest.approx(200)
    # 0.2 mm on 0.4 mm x 0.5 mm.
    assert float(row["crack length per area (mm/mm²)"]) == pytest.approx(1)


def test_the_shortest_crack_is_a_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((200, 250), np.uint8)
    mask[50, 20:121] = mask[90, 20:31] = 1
    folder = _folder(tmp_path / "data", {"one": mask}, "classes: {coating: 0, crack: 1}\n")

    def cracks(*more: str) -> str:
        return _measured(folder, tmp_path, *more)[0]["cracks"]

    assert cracks() == "2" and cracks("--min_crack", "11px") == "1"
    assert cracks("--min_crack", "19um", "--pixel_size", "2um") == "2"
    assert cracks("--min_crack", "21um", "--pixel_size", "2um") == "1"
    capsys.readouterr()
    argv = [str(folder), "--what", "layers", "--output_dir", str(tmp_path / "x")]
    for wrong, told in (("21um", "needs a pixel size"), ("3 foo", "--min_crack"), ("-1", "--min")):
        assert guard(measure.main, [*argv, "--overwrite", "--min_crack", wrong]) == 2
        assert told in capsys.readouterr().err
