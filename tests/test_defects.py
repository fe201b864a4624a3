"""unet-compare's post-processor: CHAC, BubbleFinder, BBox; its files; its faults, repaired."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from matssl.core.errors import UserError, guard
from matssl.measure.defects import boxes, bubbles, chac, found
from matssl.stages.measure import levels
from matssl.tools import measure

pytestmark = pytest.mark.usefixtures("no_drawing")
Mask = NDArray[np.bool_]
BINS = ("--histogram_bins", "0", "100", "20")


def _discs(shape: tuple[int, int], *discs: tuple[float, float, float]) -> Mask:
    """Pixels whose centres (half a pixel in) lie in one of the discs x, y, r."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    mask = np.zeros(shape, bool)
    for cx, cy, r in discs:
        mask |= (x - cx) ** 2 + (y - cy) ** 2 <= r * r
    return mask


def _cells(pitch: int = 40, count: int = 5, width: int = 2) -> Mask:
    """Square grains between lines."""
    mask = np.zeros((pitch * count + width,) * 2, bool)
    for place in range(0, pitch * count + width, pitch):
        mask[place : place + width] = mask[:, place : place + width] = True
    return mask


# --- CHAC ---
def test_chac_keeps_whole_convex_grains_and_says_what_it_left_out() -> None:
    mask = _cells()
    # Two grains become an L of three with another: not convex.
    mask[50:72, 80:82] = mask[80:82, 50:72] = False
    # Cut through the outer grains.
    found_ = chac.chac(mask[5:-5, 5:-5])
    assert found_.steps == {
        "parts": 23,
        "after opening": 23,
        "at the border": 16,
        "not convex": 1,
        "kept": 6,
    }
    # 38 x 38 pixels: 2 sqrt(A / pi), not 2 sqrt(A) / pi, and not the area within pixel centres.
    assert found_.size == pytest.approx([2 * 38 / math.sqrt(math.pi)] * 6)
    assert sorted(np.unique(found_.labels).tolist()) == list(range(7))
    assert int((found_.labels == 1).sum()) == 38 * 38


def test_the_equivalent_diameter_of_a_disc_is_its_diameter() -> None:
    # Fault F-U1: 2 sqrt(A) / pi gives 44.6 for 80; the square of 80 has 90.27.
    disc = chac.chac(~_discs((200, 200), (100, 100, 40))).size
    assert disc == pytest.approx([80], abs=0.05)
    square = np.ones((200, 200), bool)
    square[50:130, 50:130] = False
    assert chac.chac(square).size == pytest.approx([90.27], abs=0.01)


def test_the_opening_takes_threads_out() -> None:
    mask = np.ones((60, 60), bool)
    mask[20:40, 20:40] = False
    mask[30, 40:50] = False
    mask[5:7, 5:7] = False
    steps = chac.chac(mask).steps
    assert (steps["parts"], steps["after opening"], steps["kept"]) == (2, 1, 1)


def test_a_grain_within_another_is_one_of_its_own() -> None:
    mask = _discs((120, 120), (60, 60, 30)) & ~_discs((120, 120), (60, 60, 26))
    mask[:4] = mask[-4:] = mask[:, :4] = mask[:, -4:] = True
    found_ = chac.chac(mask)
    assert found_.steps["at the border"] == 0 and found_.steps["kept"] == 2


def test_the_published_masks_give_the_published_numbers() -> None:
    root = os.environ.get("MATSSL_DATA")
    folder = Path(root or "") / "tem" / "gb_512" / "annotations"
    if root is None or not folder.is_dir():
        pytest.skip("MATSSL_DATA names no folder with tem/gb_512")
    steps: dict[str, int] = {}
    sizes: list[float] = []
    for path in sorted(folder.glob("*.png")):
        one = chac.chac(levels.read(path) > levels.THRESHOLD)
        steps = {name: steps.get(name, 0) + number for name, number in one.steps.items()}
        sizes += one.size.tolist()
    assert list(steps.values()) == [6789, 6751, 1800, 1335, 3616]
    assert np.mean(sizes) == pytest.approx(33.51, abs=0.005)


# --- BubbleFinder ---
def test_discs_are_found_with_their_radius() -> None:
    # Faults F-U5 and F-U7: none below 4 or above 20 px was found, and radii were whole numbers.
    generator = np.random.default_rng(0)
    true: list[tuple[float, float, float]] = []
    for _ in range(1500):
        r = generator.uniform(3, 25)
        x, y = generator.uniform(r + 2, 598 - r, 2)
        # A gap of one pixel between pixels needs a little more between circles.
        if all(math.hypot(x - a, y - b) > r + q + 1.5 for a, b, q in true):
            true.append((x, y, r))
    defects = bubbles.bubbles(_discs((600, 600), *true))
    circles = np.array([[*(s.points[0] + 0.5), s.radius] for s in defects.shapes])
    off = [np.abs(circles - one).max(axis=1).min() for one in np.array(true)]
    assert np.mean(np.array(off) < 0.5) >= 0.98 and len(circles) <= 1.02 * len(true)
    assert {round(r) for _, _, r in true} >= {4, 10, 20, 24}


def test_touching_discs_come_apart_with_the_radii_of_both() -> None:
    # Worked example 6: radii 10 and 8, centres 16 apart; areas 316 and 189 lack the overlap.
    defects = bubbles.bubbles(_discs((200, 200), (100.5, 100.5, 10), (116.5, 100.5, 8)))
    assert sorted(np.bincount(defects.labels.ravel())[1:].tolist()) == [189, 316]
    assert sorted(s.radius for s in defects.shapes) == pytest.approx([8, 10], abs=0.2)
    equal = bubbles.bubbles(_discs((200, 200), (100, 100, 10), (118, 100, 10)))
    assert [s.radius for s in equal.shapes] == pytest.approx([10, 10], abs=0.1)
    assert equal.steps["parts"] == 1 and equal.steps["kept"] == 2


def test_a_bubble_that_the_border_cuts_has_its_radius() -> None:
    defects = bubbles.bubbles(_discs((100, 100), (3, 50, 12)))
    assert defects.size / 2 == pytest.approx([12], abs=0.2)


def test_an_empty_mask_has_no_bubbles() -> None:
    # Fault F-U6: nothing detected was a crash.
    for one in (bubbles.bubbles(np.zeros((20, 20), bool)), bubbles.detected(np.zeros((20, 20)))):
        assert one.count == 0 and one.shapes == () and one.steps["kept"] == 0
    assert chac.chac(np.ones((20, 20), bool)).count == 0
    assert boxes.boxes(np.zeros((20, 20), bool)).count == 0


def test_specks_and_radii_beyond_the_bounds_are_left_out_and_counted() -> None:
    mask = _discs((120, 120), (30, 30, 4), (80, 80, 15))
    mask[5, 5] = True
    assert bubbles.bubbles(mask).steps["too small"] == 1
    bounded = bubbles.bubbles(mask, (5, 10))
    assert (bounded.steps["too small"], bounded.steps["too large"], bounded.count) == (2, 1, 0)
    assert bubbles.bubbles(mask, (3, 10)).size == pytest.approx([8], abs=0.3)


def test_blobs_and_circles_of_a_grey_picture_are_pooled_to_one_a_bubble() -> None:
    # The intent of the algorithm on grey levels: neither nothing (F-U5) nor halos.
    y, x = np.mgrid[:140, :140]
    grey = np.zeros((140, 140))
    true = ((30, 30, 5), (80, 40, 8), (95, 95, 12), (30, 100, 3))
    for cx, cy, r in true:
        grey[np.hypot(x - cx, y - cy) <= r] = 1.0
    defects = bubbles.detected(grey)
    assert defects.count == 4 and defects.steps["blobs"] >= 4 and defects.steps["circles"] > 0
    for cx, cy, r in true:
        gaps = [float(np.hypot(*(s.points[0] - (cx, cy)))) for s in defects.shapes]
        nearest = defects.shapes[int(np.argmin(gaps))]
        assert min(gaps) < 1.5 and nearest.radius == pytest.approx(r, abs=1)


def test_a_circle_through_points_is_that_circle() -> None:
    turn = np.linspace(0, 1.2, 20)
    circle = bubbles.fit_circle(3 + 7 * np.cos(turn), -2 + 7 * np.sin(turn))
    assert circle == pytest.approx((3, -2, 7))
    assert bubbles.fit_circle(np.arange(20.0), np.arange(20.0)) is None
    assert bubbles.fit_circle(np.zeros(3), np.zeros(3)) is None


# --- BBox ---
def test_a_box_has_the_pixels_of_its_part_and_no_more() -> None:
    # Fault F-U11: an object of 4 x 4 filled 25 pixels.
    mask = np.zeros((30, 40), bool)
    mask[3:7, 4:8] = True
    mask[10:13, 20:24] = True
    defects = boxes.boxes(mask)
    assert sorted(defects.size.tolist()) == pytest.approx([5, math.sqrt(32)])
    assert int(defects.covered().sum()) == 16 + 12


def test_parts_that_touch_at_corners_are_one_and_holes_hide_none() -> None:
    mask = np.zeros((30, 30), bool)
    mask[2, 2] = mask[3, 3] = True
    mask[10:25, 10:25] = True
    mask[12:23, 12:23] = False
    mask[16, 16] = True
    assert boxes.boxes(mask).steps == {"parts": 3, "kept": 2}


# --- comparison ---
def test_two_empty_unions_have_no_iou() -> None:
    # Fault F-U8: 0/0 spoiled the mean.
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert math.isnan(found.union_iou(empty, empty))
    assert found.union_iou(empty, full) == 0 and found.union_iou(full, full) == 1


def test_merged_defects_show_in_the_matches_although_the_union_hides_them() -> None:
    two = np.zeros((20, 40), bool)
    two[5:15, 5:15] = two[5:15, 17:27] = True
    one = two.copy()
    one[9:11, 15:17] = True
    truth, prediction = boxes.boxes(two), boxes.boxes(one)
    assert found.union_iou(two, one) > 0.98
    same = found.matched(truth, prediction)
    assert (same.true, same.predicted, len(same.pairs)) == (2, 1, 0)
    assert len(found.matched(truth, truth).pairs) == 2


def test_bins_are_as_many_as_asked_for_and_what_lies_beyond_is_counted() -> None:
    # Fault F-U9: num was edges, and sizes out of range vanished.
    own = found.histogram([-1, 0, 4.9, 5, 10, 10.1, 12], 0, 10, 2)
    assert own.edges.tolist() == [0, 5, 10] and own.counts.tolist() == [2, 2]
    assert (own.below, own.above) == (1, 2)
    other = found.histogram([1, 1, 1], 0, 10, 2)
    # 2 and 3, 2 and 0; 1 below, 2 above.
    assert own.distance(other) == 1 + 2 + 1 + 2
    assert found.histogram([], 0, 10, 3).counts.tolist() == [0, 0, 0]


# --- what a mask file means ---
def test_a_prediction_is_cut_at_a_probability_and_never_stretched(tmp_path: Path) -> None:
    # Fault F-U2: predictions were stretched, so that p = 0.02 became white, and 0.9 black.
    for name, p in (("low", 0.02), ("high", 0.9)):
        picture = np.full((20, 20), round(255 * p), np.uint8)
        picture[0, 0] = 0
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    files = sorted(tmp_path.iterdir())
    scale = levels.scale(files, "--seg_dir")
    shares = {path.stem: scale.foreground(levels.read(path)).mean() for path in files}
    assert shares == {"low": 0, "high": pytest.approx(399 / 400)}


@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 1), np.uint8), ((0, 255), np.uint8), ((0, 65535), np.uint16)]
)
def test_white_is_what_the_file_calls_white(
    values: tuple[int, int], dtype: type, tmp_path: Path
) -> None:
    mask: NDArray[np.integer] = np.full((10, 10), values[0], dtype)
    mask[:4] = values[1]
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), mask)
    assert int(levels.scale([path], "x").foreground(levels.read(path)).sum()) == 40


def test_a_one_beside_soft_predictions_is_a_low_probability(tmp_path: Path) -> None:
    for name, top in (("a", 1), ("b", 200)):
        picture = np.zeros((10, 10), np.uint8)
        picture[:5] = top
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    files = sorted(tmp_path.iterdir())
    scale = levels.scale(files, "x")
    assert [int(scale.foreground(levels.read(p)).sum()) for p in files] == [0, 50]


def test_ones_beside_white_are_not_taken_for_background(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:4], mask[8:] = 1, 255
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    with pytest.raises(UserError, match="1 and 255 side by side"):
        levels.scale([tmp_path / "a.png"], "--ann_dir")


def test_probabilities_as_floats_colours_and_class_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    tifffile.imwrite(tmp_path / "p.tif", share)
    path = tmp_path / "p.tif"
    assert int(levels.Scale().foreground(levels.read(path)).sum()) == int((share > 128 / 255).sum())
    colour = np.zeros((10, 10, 3), np.uint8)
    colour[:3] = (0, 255, 0)
    cv2.imwrite(str(tmp_path / "c.png"), colour)
    assert int(levels.Scale().foreground(levels.read(tmp_path / "c.png")).sum()) == 30
    folder = tmp_path / "numbers"
    folder.mkdir()
    cv2.imwrite(str(folder / "n.png"), np.arange(100, dtype=np.uint8).reshape(10, 10) % 3)
    argv = ["--algorithm", "bbox", "--seg_dir", str(folder), "--img_scale", "1", *BINS]
    assert guard(measure.main, [*argv, "--results_dir", str(tmp_path / "out")]) == 2
    assert "class numbers up to 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the command ---
def _written(folder: Path, **masks: Mask) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        cv2.imwrite(str(folder / f"{name}.png"), 255 * mask.astype(np.uint8))
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.name != "objects.csv" else ","))


def test_the_command_writes_the_files_of_unet_compare_and_a_table_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _discs((80, 80), (20, 20, 8), (55, 50, 12))
    two = _discs((80, 80), (40, 40, 20))
    nothing = np.zeros((80, 80), bool)
    seg = _written(tmp_path / "seg", a=one, b=two, c=nothing)
    ann = _written(tmp_path / "ann", a=two, b=two, c=nothing)
    tem = _written(tmp_path / "tem", a=one, b=two, c=nothing)
    out = tmp_path / "results"
    argv = ["--algorithm", "bubblefinder", "--seg_dir", seg, "--img_scale", "0.5", "--tem_dir", tem]
    argv += ["--ann_dir", ann, "--results_dir", out, "--histogram_bins", "0", "20", "10"]
    assert guard(measure.main, [str(word) for word in argv]) == 0
    said = capsys.readouterr().out
    for folder in ("detected_defects", "GT_comparison"):
        assert sorted(p.name for p in (out / folder).iterdir()) == ["a.png", "b.png", "c.png"]
    names = "defect_sizes.csv GT_defect_sizes.csv iou.csv info.out defect_size_histogram.png"
    assert all((out / name).is_file() for name in names.split())
    sizes = _rows(out / "defect_sizes.csv")
    assert list(sizes[0]) == ["0", "1"] and [row["0"] for row in sizes] == ["a", "a", "b"]
    # Diameters in nm: half of those in pixels.
    assert [float(row["1"]) for row in sizes] == pytest.approx([8, 12, 20], abs=0.2)
    ious = {row["0"]: row["1"] for row in _rows(out / "iou.csv")}
    assert float(ious["b"]) == 1 and 0 < float(ious["a"]) < 0.5 and ious["c"] == ""
    info = (out / "info.out").read_text()
    assert info in said
    for line in (
        "Selected algorithm: BubbleFinder",
        f"Segmentation directory path: {seg}",
        "Number of detected defects: 3",
        "GT number of detected defects: 2",
        "IOU undefined, neither has a defect: 1 image, left out",
        "Same defects (IOU of their pixels at least 0.5): 1; precision 0.333333, recall 0.5, "
        "F1 0.4",
    ):
        assert line in info.splitlines(), line
    assert f"Defect size mean (nm): {np.mean([float(r['1']) for r in sizes]):.6g}" in info
    # The population's, as there.
    assert f"standard deviation (nm): {np.std([float(r['1']) for r in sizes]):.6g}" in info
    # Fault F-U10: no positions were written.
    table = _rows(out / "objects.csv")
    assert len(table) == 3 and float(table[0]["x (nm)"]) == pytest.approx(10, abs=0.1)
    for column in ("id", "class", "y (nm)", "area (nm²)", "ECD (nm)", "Feret max (nm)"):
        assert column in table[0]
    assert {"circularity", "bbox left (px)", "touches edge", "defect size (nm)"} <= set(table[0])


def test_outlines_are_violet_and_the_truth_is_green(tmp_path: Path) -> None:
    mask = _discs((80, 80), (40, 40, 20))
    seg, out = _written(tmp_path / "seg", a=mask), tmp_path / "out"
    argv = ["--algorithm", "BBOX", "--seg_dir", str(seg), "--img_scale", "1", *BINS]
    argv += ["--ann_dir", str(seg), "--results_dir", str(out), "--quiet"]
    assert guard(measure.main, argv) == 0
    black, green, violet = (0, 0, 0), (0, 255, 0), (200, 0, 200)
    for name, wanted in (
        ("detected_defects", {black, violet}),
        ("GT_comparison", {black, green, violet}),
    ):
        drawn = np.asarray(cv2.imread(str(out / name / "a.png")))
        assert set(map(tuple, drawn.reshape(-1, 3).tolist())) == wanted


def test_a_folder_without_a_defect_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seg = _written(tmp_path / "seg", a=np.zeros((40, 40), bool))
    for name in ("chac", "BubbleFinder", "BBox"):
        out = tmp_path / name
        argv = ["--algorithm", name, "--seg_dir", str(seg), "--img_scale", "1", *BINS]
        assert guard(measure.main, [*argv, "--results_dir", str(out)]) == 0
        assert (out / "defect_sizes.csv").read_text() == "0\t1\n"
    told = capsys.readouterr().out
    assert "Defect size mean (nm): undefined" in told and "nan" not in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--algorithm CHAC", "needs --seg_dir, --img_scale, --histogram_bins"),
        ("--algorithm Chaos", "--algorithm must be one of CHAC, BubbleFinder, BBox"),
        ("--seg_dir SEG --img_scale 2", "--seg_dir, --img_scale: only --algorithm takes it"),
        ("ALL --histogram_bins 0 10", "three numbers, start stop num, not 2"),
        ("ALL --histogram_bins 10 5 3", "start below stop"),
        ("ALL --histogram_bins 0 5 2.5", "a whole number of bins"),
        ("ALL --img_scale 0", "--img_scale must be above 0"),
        ("ALL --what objects", "--what: of no effect with --algorithm"),
        ("SEG ALL", "INPUT: of no effect with --algorithm"),
        ("ALL --bubble_radius 1 2", "only --algorithm BubbleFinder takes it"),
        ("ALL --ann_dir gone", "there is no folder gone"),
        ("ALL --results_dir x --name y", "--name: of no effect with --results_dir"),
        ("", "missing INPUT"),
    ],
)
def test_what_is_missing_or_wrong_is_told_before_anything_is_read(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fault F-U9: missing flags failed late.
    seg = str(_written(tmp_path / "seg", a=np.zeros((40, 40), bool)))
    every = ["--algorithm", "CHAC", "--seg_dir", seg, "--img_scale", "1", *BINS]
    argv: list[str] = []
    for word in words.split():
        argv += every if word == "ALL" else [seg if word == "SEG" else word]
    before = sorted(tmp_path.rglob("*"))
    assert guard(measure.main, argv) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_partners_that_lack_or_differ_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((40, 40), bool)
    seg = _written(tmp_path / "seg", a=mask, b=mask, c=mask)
    tem = _written(tmp_path / "tem", a=mask)
    argv = ["--algorithm", "CHAC", "--seg_dir", str(seg), "--img_scale", "1", *BINS]
    argv += ["--results_dir", str(tmp_path / "out")]
    assert guard(measure.main, [*argv, "--tem_dir", str(tem)]) == 2
    assert "lacks 2 images: b, c" in capsys.readouterr().err
    wide = _written(tmp_path / "wide", a=mask, b=mask[:, :30], c=mask[:20])
    assert guard(measure.main, [*argv, "--ann_dir", str(wide)]) == 2
    err = capsys.readouterr().err
    assert "b.png has 30 x 40 pixels" in err and "c.png has 40 x 20 pixels" in err
    assert not (tmp_path / "out").exists()


def test_grey_levels_are_those_of_the_predictions(tmp_path: Path) -> None:
    soft = cv2.GaussianBlur(_discs((100, 100), (50, 50, 6)).astype(np.float32), (0, 0), 1)
    (tmp_path / "seg").mkdir()
    cv2.imwrite(str(tmp_path / "seg" / "a.png"), np.rint(250 * soft).astype(np.uint8))
    # A faint one stays faint: levels are not stretched.
    cv2.imwrite(str(tmp_path / "seg" / "b.png"), np.rint(20 * soft).astype(np.uint8))
    argv = ["--algorithm", "BubbleFinder", "--bubble_source", "grey", "--img_scale", "1", *BINS]
    argv += ["--seg_dir", str(tmp_path / "seg"), "--results_dir", str(tmp_path / "out")]
    assert guard(measure.main, argv) == 0
    (row,) = _rows(tmp_path / "out" / "defect_sizes.csv")
    assert row["0"] == "a" and float(row["1"]) == pytest.approx(12, abs=2)
