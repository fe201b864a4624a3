"""Means over independent data sets in the table of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matssl.measure import intervals
from matssl.study import tables
from matssl.study.cells import cells
from matssl.study.means import markdown, means
from matssl.study.plan import Plan, read

SETS = ("a", "b", "far (other)", "kept out")


def _plan(**more: Any) -> Plan:
    content = {
        "starts": {"random": "none", "imagenet": "imagenet", "own": "w.pth"},
        "datasets": {
            "a": "a",
            "b": "b",
            "far": {"finetune_dataset": "far", "test": ["test", "other"]},
            "kept out": "c",
        },
        "labels": [1],
        "seeds": [0, 1],
        "baseline": ["random", "imagenet"],
        "independent": ["a", "b", "far (other)"],
        **more,
    }
    return read(content, "x")


def _results(scores: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Results by job name, of scores by arm and row of the table, one a seed."""
    found: dict[str, dict[str, Any]] = {}
    for arm, rows in scores.items():
        for row, values in rows.items():
            dataset, _, test = row.removesuffix(")").partition(" (")
            for seed, value in enumerate(values):
                name = f"{arm}-{dataset}-default-1-{seed}"
                entry = found.setdefault(name, {"miou": {}, "images": 1})
                entry["miou"][test or "test"] = value
    return found


SCORES = {
    "random": {"a": [0.5, 0.6], "b": [0.4, 0.4], "far (other)": [0.2, 0.3], "kept out": [0.9, 0.9]},
    "own": {"a": [0.6, 0.7], "b": [0.4, 0.5], "far (other)": [0.1, 0.2], "kept out": [0.1, 0.1]},
    "imagenet": {"a": [0.6, 0.6]},
}


def test_a_mean_is_over_the_sets_that_the_file_calls_independent() -> None:
    plan = _plan()
    random, imagenet, own = means(plan, cells(plan, _results(SCORES)))
    # (0.55 + 0.4 + 0.25) / 3, without the set that is kept out and the other split.
    assert random.miou == pytest.approx(0.4) and (random.sets, random.runs) == (3, 6)
    gain = own.gains["random"]
    # Gains by set: 0.1, 0.05, -0.1.
    assert gain.value == pytest.approx(0.05 / 3) and (gain.sets, gain.runs) == (3, 6)
    # The only set that falls falls by 0.1 with both seeds: its interval is a point.
    assert gain.lost == ("far (other)",) and gain.judged == 3
    # Another arm has one of the sets: said, and without an interval.
    assert (imagenet.sets, own.gains["imagenet"].sets) == (1, 1)


def test_the_interval_of_a_mean_is_that_over_sets_and_seeds() -> None:
    import numpy as np

    plan = _plan()
    own = means(plan, cells(plan, _results(SCORES)))[-1]
    gains = np.array([[0.1, 0.1], [0.0, 0.1], [-0.1, -0.1]])
    assert own.gains["random"].half == pytest.approx(
        intervals.over_sets_and_seeds(gains).half_width
    )


def test_the_mean_is_a_table_for_each_number_of_labels_and_says_how_many() -> None:
    plan = _plan()
    lines = markdown(plan, means(plan, cells(plan, _results(SCORES)))).splitlines()
    assert lines[0] == "### Mean over independent sets, labelled images: 1"
    assert lines[2].startswith("| arm | mIoU % | sets | runs | over random | over imagenet |")
    assert lines[5].startswith("| imagenet | 60.0 | 1 of 3 | 2 | +5.0 (1 set) |  |")
    assert "1 of 3 sets judged" in lines[5]
    assert lines[6].startswith("| own | 41.7 | 3 of 3 | 6 | +1.7 [")
    assert "far (other) (over random)" in lines[6]
    assert lines[-1].startswith("Independent sets: a, b, far (other). A mean is that of the sets'")


def test_without_independent_sets_there_is_no_mean() -> None:
    plan = _plan(independent=[])
    assert means(plan, cells(plan, _results(SCORES))) == []
    assert markdown(plan, []) == ""


def test_one_pretraining_run_behind_all_seeds_is_said() -> None:
    arms = {"random": "none", "own": "run"}
    more: dict[str, Any] = {"starts": arms, "pretraining": {"run": {"data_path": "p"}}}
    scores = {"random": SCORES["random"], "own": SCORES["own"]}
    for pretraining, seeds, told in (
        ([], [0, 1], "One pretraining run is behind all seeds of an arm"),
        ([0, 1], [0, 1], ""),
        ([0, 1], [0, 1, 2], "2 pretraining runs are behind the 3 seeds of an arm"),
    ):
        plan = _plan(**more, baseline="random", pretraining_seeds=pretraining, seeds=seeds)
        text = markdown(plan, means(plan, cells(plan, _results(scores))))
        assert told in text and ("behind" in text) == bool(told)


def test_draws_that_two_seeds_share_are_counted() -> None:
    plan = _plan(independent=[])
    found = _results({"random": {"a": [0.5, 0.6]}, "own": {"a": [0.5, 0.6]}})
    for name, entry in found.items():
        entry["drawn"] = ["1.png"] if name.startswith("random") else [f"{name[-1]}.png"]
    text = tables.markdown(plan, cells(plan, found))
    assert "| a | 1 | random | 55.0 ± 7.1 | 2 (1 draw) |" in text
    assert "| a | 1 | own | 55.0 ± 7.1 | 2 |" in text


def test_the_table_the_means_and_the_curves_of_a_partial_study_are_written(tmp_path: Path) -> None:
    plan = _plan()
    found = _results(SCORES)
    for entry in found.values():
        iou = {"matrix": 0.75, "crack": None}
        entry |= {"validation": 0.5, "seconds": 1.0, "iou": dict.fromkeys(entry["miou"], iou)}
    tables.write(plan, found, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "### Mean over independent sets" in text and "18 of 24 runs done" in text
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert lines[0] == "start,dataset,variant,labels,seed,test,class,iou"
    assert lines[1:3] == [
        "random,a,default,1,0,test,matrix,0.75",
        "random,a,default,1,0,test,crack,",
    ]
    assert (tmp_path / "curves.png").stat().st_size > 5000
