"""The benchmark of intervals: its worlds, its goings-on, and its count on labelled images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage
from matssl.core.errors import UserError

CLASSES = ["matrix", "pore"]


def _run(root: Path, seed: int, specimens: int, images: int, model: Path) -> Path:
    """Results of eval_model.py on labelled images, whose pores are missed by a quarter."""
    rng, entries = np.random.default_rng(seed), []
    for specimen in range(specimens):
        miss = rng.uniform(0.2, 0.3)
        for number in range(images):
            phase = int(10_000 * rng.uniform(0.1, 0.3))
            lost, false = int(miss * phase), int(0.02 * (10_000 - phase))
            confusion = [[10_000 - phase - false, false], [lost, phase - lost]]
            name = {"image": f"{specimen}_{number}", "specimen": f"{root.name} {specimen}"}
            entries.append(name | {"confusion": confusion})
    root.mkdir(parents=True)
    content = {"classes": CLASSES, "images": entries}
    (root / "confusion.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "metrics.json").write_text(json.dumps({"model": str(model)}), encoding="utf-8")
    return root


def test_cells_of_labelled_images_are_counted(tmp_path: Path) -> None:
    nowhere = tmp_path / "gone/best.ckpt"
    folds = _run(tmp_path / "folds", 1, 8, 3, nowhere)
    sets = [_run(tmp_path / f"set{k}", 10 + k, 6, 3, nowhere) for k in range(4)]
    cells, others = coverage.real([f"{run}={folds}" for run in sets])
    assert len(cells) == 8 and not others
    # Corrected they hold the truth; as predicted, a quarter is missing.
    assert all(c.both is not None and c.both.low <= c.truth <= c.both.high for c in cells)
    text = "\n".join(coverage.real_text(cells, "set x class"))
    assert "8 of 8 cells (set x class) hold the truth corrected; median width" in text
    assert "cells (set x class) hold the truth as predicted" in text


def test_the_folder_of_the_model_is_asked_where_no_folds_are_named(tmp_path: Path) -> None:
    folds = _run(tmp_path / "folds", 1, 8, 3, tmp_path)
    (folds / "fold_1").mkdir()
    run = _run(tmp_path / "set", 2, 6, 3, folds / "fold_1/best.ckpt")
    cells, others = coverage.real([str(run)])
    assert [cell.name for cell in cells] == ["set matrix", "set pore"] and not others


def test_without_any_each_specimen_is_measured_from_the_others(tmp_path: Path) -> None:
    run = _run(tmp_path / "set", 3, 6, 3, tmp_path / "gone/best.ckpt")
    cells, others = coverage.real([str(run)])
    assert not cells and len(others) == 12
    assert all(cell.both is not None for cell in others)


def test_a_run_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no confusion.json; give results of eval_model.py"):
        coverage.real([str(tmp_path)])


def test_it_goes_on_where_it_stopped_and_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "classifier": (coverage.corrected, ["specimens"]),
        "mean IoU": (coverage.scores, ["3 classes, 5 specimens"]),
    }
    monkeypatch.setattr(coverage, "PARTS", parts)
    argv = ["--worlds", "20", "--output_dir", str(tmp_path)]
    assert coverage.main(argv) == 0
    first = (tmp_path / "coverage.csv").read_text(encoding="utf-8")
    capsys.readouterr()
    assert coverage.main(argv) == 0
    assert (tmp_path / "coverage.csv").read_text(encoding="utf-8") == first
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| classifier | ours | naive t | bootstrap | posterior |" in table
    assert "| 3 classes, 5 specimens |" in table


@pytest.mark.parametrize("kind", ["specimen", "borders", "area"])
def test_a_simulated_image_has_the_share_and_errors_it_was_told(kind: str) -> None:
    matrix = coverage._image(np.random.default_rng(0), kind, 0.2, 0.1, 0.05)
    assert matrix.sum() == coverage.PIXELS and matrix[1].sum() == 0.2 * coverage.PIXELS
    assert 0 < matrix[1, 0] < matrix[1, 1] and 0 < matrix[0, 1] < matrix[0, 0]
