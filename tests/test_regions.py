"""Regions of the classes of a mask: what is one, its size, and the tables of the command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.measure.regions import find_regions, number
from matssl.tools import regions as tool


def _mask() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 2:8] = 1
    mask[6:9, 8:12] = 1  # touches the first at a corner
    mask[14:20, 20:24] = 1  # reaches the lower edge
    mask[12:14, 2:4] = 1  # four pixels
    mask[1:5, 20:25] = 2
    return mask


def test_regions_are_joined_at_corners_and_each_class_has_its_own() -> None:
    found = find_regions(_mask(), 3, min_area=1)
    sizes = {kind: sorted(r.area for r in found if r.kind == kind) for kind in range(3)}
    assert sizes == {0: [600 - 36 - 24 - 4 - 20], 1: [4, 24, 36], 2: [20]}
    joined = next(r for r in found if r.area == 36)
    assert joined.diagonal == pytest.approx(math.hypot(10, 7))
    assert joined.diameter == pytest.approx(math.sqrt(4 * 36 / math.pi))


def test_small_regions_are_left_out_and_the_last_one_is_not() -> None:
    found = find_regions(_mask(), 3)
    assert [r.area for r in found if r.kind == 1] == [36, 24]
    assert [r.area for r in find_regions(_mask(), 3, 20) if r.kind == 2] == [20]


def test_a_region_across_two_fields_counts_once_in_both() -> None:
    whole = np.zeros((20, 40), np.uint8)
    whole[5:15, 15:25] = 1
    halves = [find_regions(half, 2) for half in (whole[:, :20], whole[:, 20:])]
    counts = [number([r for r in half if r.kind == 1]) for half in halves]
    assert sum(counts) == 1 == number([r for r in find_regions(whole, 2) if r.kind == 1])


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _run_folder(root: Path) -> Path:
    """What eval_model.py leaves: two images of a batch and one of another, the last with a bar."""
    for name in ("480h_1", "480h_2", "24h_1"):
        mask = _mask()
        if name == "24h_1":
            mask[18:] = 255
        place = root / "masks" / "index" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), mask)
    (root / "metrics.json").write_text(json.dumps({"classes": ["matrix", "carbide", "pore"]}))
    lines = [f"x/{n}.tif,{n},100" for n in ("480h_1", "480h_2", "24h_1")]
    (root / "per_image.csv").write_text("image,group,pixel_size_nm\n" + "\n".join(lines) + "\n")
    return root


def test_predictions_are_measured_by_production_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run_folder(tmp_path / "run")
    assert tool.main([str(run), "--group_regex", "^([^_]+)_", "--min_area", "4"]) == 0
    out = run / "regions"
    rows = {(r["specimen"], r["class"]): r for r in _rows(out / "summary.csv")}
    assert set(rows) == {
        (batch, kind) for batch in ("480h", "24h", "all") for kind in ("matrix", "carbide", "pore")
    }
    carbide = rows["480h", "carbide"]
    assert (carbide["images"], carbide["regions"], carbide["at_edge"]) == ("2", "6", "2")
    # 2 x 2.5 regions on 2 x 20 x 30 pixels of 100 nm.
    assert float(carbide["per_mm2"]) == pytest.approx(5 / (1200 * 1e-8))
    assert float(carbide["mean_area_px"]) == pytest.approx(20)
    # Behind the bar is no field: there the region reaches the edge, too.
    assert rows["24h", "carbide"]["at_edge"] == "1"
    lines = _rows(out / "regions.csv")
    assert len(lines) == 15 and {row["area_nm2"] for row in lines} >= {"360000"}
    assert (out / "sizes.png").stat().st_size > 5000
    assert "carbide" in capsys.readouterr().out


def test_masks_of_a_labelled_folder_are_measured_and_nothing_is_written_there(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(synthetic_folder.rglob("*"))
    assert tool.main([str(synthetic_folder)]) == 0
    assert sorted(synthetic_folder.rglob("*")) == before
    out = tmp_path / "experiments" / "regions" / synthetic_folder.name
    assert {row["images"] for row in _rows(out / "summary.csv") if row["specimen"] == "all"} == {
        "8"
    }


def test_a_run_without_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "masks" / "index").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "index" / "a.png"), _mask())
    with pytest.raises(UserError, match="broken off"):
        tool.main([str(tmp_path)])
