"""Point count after ASTM E562 (--grid), and regions of interest (--roi)."""

from __future__ import annotations

import base64
import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import guard
from matssl.measure import point_count
from matssl.tools import measure

pytestmark = pytest.mark.usefixtures("no_drawing")


# --- points ---
def test_points_are_evenly_spread_with_half_a_space_at_the_ends() -> None:
    assert point_count.places(100, 5).tolist() == [10, 30, 50, 70, 90]
    # Moved to where pixels meet, never to the edge.
    assert point_count.places(9, 2).tolist() == [2, 7]
    assert point_count.places(2, 1).tolist() == [1]
    assert point_count.places(3, 3).tolist() == [1, 2, 2]


def test_a_point_on_a_border_counts_one_half() -> None:
    mask = np.zeros((100, 100), np.uint8)
    # Points at 10, 30, 50, 70, 90: the border at 50 meets those of the middle row.
    mask[50:] = 1
    hits = point_count.count(mask, 2, 5, 5)
    assert hits.points == 25 and hits.border == 5
    assert hits.on.tolist() == [12.5, 12.5]
    mask[50:] = 0
    mask[49:] = 1
    assert point_count.count(mask, 2, 5, 5).on.tolist() == [10, 15]


def test_points_on_pixels_of_no_class_do_not_count() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 60:] = 255
    hits = point_count.count(mask, 1, 5, 5)
    assert hits.points == 15 and hits.on.tolist() == [15]


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_turned_or_mirrored_field_has_the_same_points(turn: int) -> None:
    generator = np.random.default_rng(1)
    small = generator.integers(0, 3, (10, 10)).astype(np.uint8)
    mask = np.kron(small, np.ones((12, 12), np.uint8))
    plain = point_count.count(mask, 3, 8, 8).on.tolist()
    assert point_count.count(np.rot90(mask, turn), 3, 8, 8).on.tolist() == plain
    assert point_count.count(mask[:, ::-1], 3, 8, 8).on.tolist() == plain


def test_the_mean_of_many_fields_is_that_of_the_area() -> None:
    """No bias: borders count half on both sides."""
    generator = np.random.default_rng(2)
    area, points = [], []
    for _ in range(60):
        centres = generator.uniform(0, 120, (12, 2))
        y, x = np.mgrid[:120, :120]
        gaps = [np.hypot(x - a, y - b) for a, b in centres]
        mask = (np.min(gaps, axis=0) < 14).astype(np.uint8)
        area.append(mask.mean())
        points.append(point_count.count(mask, 2, 10, 10).on[1] / 100)
    assert np.mean(points) == pytest.approx(np.mean(area), abs=0.008)


# --- ASTM E562 ---
def test_the_worked_example_of_ten_fields_of_a_hundred_points() -> None:
    hits = [22, 25, 19, 24, 28, 21, 23, 26, 20, 22]
    found = point_count.over_fields([(float(on), 100) for on in hits])
    assert found is not None
    assert found.mean == pytest.approx(0.23) and found.std == pytest.approx(0.02789, abs=1e-5)
    assert found.half_width == pytest.approx(0.01995, abs=1e-5)
    assert found.relative_accuracy == pytest.approx(8.67, abs=0.01)
    assert found.n == 10 and (found.low, found.high) == pytest.approx((0.21005, 0.24995), abs=1e-5)


def test_fields_without_a_point_are_none_and_a_phase_that_is_nowhere_has_no_accuracy() -> None:
    found = point_count.over_fields([(0.0, 0), (0.0, 25)])
    assert found is not None and (found.n, found.mean) == (1, 0)
    assert point_count.over_fields([(0.0, 0)]) is None
    assert math.isnan(found.relative_accuracy) and math.isnan(found.half_width)


# --- the command ---
def _data(root: Path, masks: dict[str, NDArray[np.uint8]], folder: str = "data") -> Path:
    for part in ("images", "masks"):
        (root / folder / part).mkdir(parents=True)
    for name, mask in masks.items():
        cv2.imwrite(str(root / folder / "masks" / f"{name}.png"), mask)
        cv2.imwrite(str(root / folder / "images" / f"{name}.png"), mask * 60 + 20)
    (root / folder / "classes.yaml").write_text("classes: {matrix: 0, particle: 1}\n")
    return root / folder


def _table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _run(folder: Path, out: Path, *more: object) -> int:
    argv = [folder, "--what", "fractions", "--output_dir", out, "--overwrite", *more]
    return guard(measure.main, [str(word) for word in argv])


def _striped(columns: int) -> NDArray[np.uint8]:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :columns] = 1
    return mask


def test_the_count_stands_beside_the_area_under_its_own_name(tmp_path: Path) -> None:
    masks = {f"s_{n}": _striped(n) for n in (12, 18, 25, 31, 42)}
    folder = _data(tmp_path, masks)
    words = ("--grid", "10x10", "--group_regex", "^(s)_", "--class", "particle")
    assert _run(folder, tmp_path, *words) == 0
    out = tmp_path / "measure" / "data"
    rows = _table(out / "point_count.csv")
    # Points at 5, 15, 25, ...: the border at 25 counts half of a column of ten.
    assert [float(row["points on it (P)"]) for row in rows] == [10, 20, 25, 30, 40]
    assert [row["points (P_T)"] for row in rows] == ["100"] * 5
    (specimen,) = _table(out / "specimens.csv")
    assert float(specimen["P_P mean (E562)"]) == pytest.approx(0.25)
    # s = 0.1118, t = 2.776.
    assert float(specimen["P_P half width 95 % (E562)"]) == pytest.approx(0.13882, abs=1e-4)
    assert float(specimen["%RA (E562)"]) == pytest.approx(55.53, abs=0.02)
    assert "ASTM E562" in (out / "report.html").read_text()
    assert (out / "fractions.csv").is_file()


def test_a_page_shows_the_points_on_the_pictures_to_count_by_hand(tmp_path: Path) -> None:
    folder = _data(tmp_path, {"a": _striped(50)})
    assert _run(folder, tmp_path, "--grid", "2x10") == 0
    text = (tmp_path / "measure" / "data" / "point_count.html").read_text(encoding="utf-8")
    data = json.loads(text.split("const D=")[1].split(";\nconst $")[0])
    (field,) = data["fields"]
    assert data["names"] == ["matrix", "particle"] and len(field["points"]) == 20
    # Fifty columns of particle: points at 5, 15, ... of 100.
    assert [on[1] for _, _, on in field["points"][:10]] == [1] * 5 + [0] * 5
    assert field["points"][0][:2] == [0.05, 0.25] and field["specimen"] == "a"
    assert base64.b64decode(field["picture"])[:2] == b"\xff\xd8"


@pytest.mark.parametrize("grid", ["10", "0x5", "10x", "x", "10x2000", "10x10x10", "-3x4"])
def test_a_grid_that_is_none_is_refused(
    grid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _data(tmp_path, {"a": _striped(5)})
    assert _run(folder, tmp_path / "out", "--grid", grid) == 2
    err = capsys.readouterr().err
    assert "--grid must be rows x columns" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- regions ---
def test_what_lies_outside_of_a_region_counts_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _data(tmp_path, {"a": _striped(40), "b": _striped(50)})
    inside = np.zeros((100, 100), np.uint8)
    inside[:, :80] = 255
    (tmp_path / "roi").mkdir()
    cv2.imwrite(str(tmp_path / "roi" / "a.png"), inside)
    cv2.imwrite(str(tmp_path / "roi" / "stray.png"), inside)
    assert _run(folder, tmp_path, "--roi", tmp_path / "roi", "--grid", "10x10") == 0
    said = capsys.readouterr().out
    assert "--roi: 1 of 2 fields have a region" in said and "the others count whole" in said
    assert "1 region of no field: stray" in said
    assert "--roi leaves 80.0 % of the pixels of 1 field, least of a.png: 80.0 %" in said
    out = tmp_path / "measure" / "data"
    rows = {row["image"]: row for row in _table(out / "fractions.csv")}
    shares = [float(row["area fraction particle %"]) for row in rows.values()]
    assert shares == pytest.approx([50, 50])
    points = {
        row["image"]: row for row in _table(out / "point_count.csv") if row["class"] == "matrix"
    }
    assert points["a.png"]["points (P_T)"] == "80" and points["b.png"]["points (P_T)"] == "100"
    (left,) = _table(out / "roi.csv")
    assert (left["image"], left["pixels left"], left["share left"]) == ("a.png", "8000", "0.8")
    assert str(tmp_path / "roi" / "a.png") in (out / "protocol.json").read_text()


def test_regions_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _data(tmp_path, {"a": _striped(40)})
    (tmp_path / "roi").mkdir()
    cv2.imwrite(str(tmp_path / "roi" / "other.png"), np.ones((100, 100), np.uint8))
    assert _run(folder, tmp_path / "out", "--roi", tmp_path / "roi") == 2
    assert "has the name of a field" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    cv2.imwrite(str(tmp_path / "roi" / "a.png"), np.ones((100, 90), np.uint8))
    assert _run(folder, tmp_path / "out", "--roi", tmp_path / "roi") == 2
    assert "a.png has 90 x 100 pixels, the field 100 x 100" in capsys.readouterr().err


def test_a_region_may_have_the_name_of_the_mask_and_be_drawn_in_colour(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "data").mkdir(exist_ok=True)
        noise = np.random.default_rng(3).integers(0, 255, (100, 100)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "data" / f"{name}.png"), noise)
        cv2.imwrite(str(tmp_path / "data" / f"{name}_mask.png"), 255 * _striped(40))
    inside = np.zeros((100, 100, 4), np.uint8)
    # Opaque black is outside as well.
    inside[..., 3] = 255
    inside[:, :50, :3] = 255
    (tmp_path / "roi").mkdir()
    cv2.imwrite(str(tmp_path / "roi" / "a_mask.png"), inside)
    cv2.imwrite(str(tmp_path / "roi" / "b.png"), inside)
    assert _run(tmp_path / "data", tmp_path, "--roi", tmp_path / "roi") == 0
    rows = _table(tmp_path / "measure" / "data" / "roi.csv")
    assert [(row["image"], row["share left"]) for row in rows] == [
        ("a.png", "0.5"),
        ("b.png", "0.5"),
    ]
