"""Studies: their files, the jobs they make, and the table that comes out."""

from __future__ import annotations

import csv
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from matssl.core.errors import UserError, guard
from matssl.measure import intervals
from matssl.metrics import SCORES, mean_name
from matssl.study.cells import cells
from matssl.study.commands import Commands, label_flags
from matssl.study.plan import FOLDER, Plan, read
from matssl.study.runner import ROOT, STAGES, Runner
from matssl.study.tables import markdown
from matssl.tools import study as tool

TINY = """
name: tiny
starts:
  random: none
  ssl:
    pretrain: {model: simclr}
pretrain:
  {steps: 2, batch_size: 4, view_size: 32, threads: 1, precision: fp32, cache_dir: none,
   encoder: tu-test_resnet}
datasets:
  phase: LABELLED
labels: [2]
seeds: [0]
finetune:
  {steps: 2, batch_size: 2, crop_size: 32, threads: 1, precision: fp32, quiet: true,
   encoder: tu-test_resnet}
evaluate: {threads: 1, precision: fp32}
"""


def _plan(**more: Any) -> Plan:
    content = {"starts": {"random": "none", "other": "w.pth"}, "datasets": {"a": "data/a"}, **more}
    return read(content, "x")


def _results(scores: dict[tuple[str, int], float]) -> dict[str, dict[str, Any]]:
    return {
        f"{start}-a-default-all-{seed}": {"miou": {"test": miou}, "images": 5}
        for (start, seed), miou in scores.items()
    }


def test_a_paired_difference_has_the_interval_of_student() -> None:
    mean, half = intervals.paired([0.5, 0.6, 0.7], [0.6, 0.65, 0.9])
    # Gains 0.10, 0.05, 0.20: mean 0.11667, s 0.07638, t(2) 4.303.
    assert mean == pytest.approx(0.1166667)
    assert half == pytest.approx(4.303 * 0.0763763 / math.sqrt(3), abs=1e-4)
    assert math.isnan(intervals.paired([0.5], [0.6])[1])


def test_the_table_pairs_only_the_seeds_that_both_starts_have() -> None:
    plan = _plan()
    scores = {("random", 0): 0.5, ("random", 1): 0.6, ("other", 1): 0.7, ("other", 2): 0.9}
    first, second = cells(plan, _results(scores))
    assert first.start == "random" and not first.gains and first.mean == pytest.approx(0.55)
    assert second.mean == pytest.approx(0.8) and second.gains["random"][0] == pytest.approx(0.1)
    text = markdown(plan, [first, second])
    assert "| a | 5 | random | 55.0 ± 7.1 | 2 |  |" in text
    assert "| a | 5 | other | 80.0 ± 14.1 | 2 | +10.0 |" in text
    both = cells(plan, _results({**scores, ("other", 0): 0.5}))
    assert "+5.0 [-58.5, +68.5]" in markdown(plan, both)


def test_a_study_of_arms_calls_them_arms_in_its_tables() -> None:
    plan = _plan()
    content = {"arms": {"random": "none"}, "datasets": {"a": "data/a"}, "labels": [5]}
    arms = read(content, "x")
    assert (plan.noun, arms.noun) == ("start", "arm")
    for one in (plan, arms):
        rows = cells(one, _results({("random", 0): 0.5}))
        assert f"| labelled images | {one.noun} | mIoU % |" in markdown(one, rows)
    with pytest.raises(UserError, match="'x' is none of its arms"):
        read({**content, "baseline": "x"}, "x")


def test_further_scores_get_columns_of_their_own() -> None:
    plan = _plan(columns=["mdice", "mdice_best_on_test"])
    found = _results({("random", 0): 0.5, ("random", 1): 0.6})
    for seed, result in enumerate(found.values()):
        result["scores"] = {"test": {"mdice": 0.7 + 0.1 * seed, "mdice_best_on_test": 0.9}}
    text = markdown(plan, cells(plan, found))
    assert text.splitlines()[0].endswith("| Dice % | Dice %, best on test |")
    assert text.splitlines()[2].endswith("| 75.0 ± 7.1 | 90.0 ± 0.0 |")
    assert plan.snapshots and not _plan(columns=["accuracy"]).snapshots


def test_the_mean_of_every_score_may_be_a_column() -> None:
    names = [mean_name(name) for name in SCORES if name != "IoU"]
    assert set(_plan(columns=names).columns) == set(names)
    # A run scored before a score was there leaves its cell empty.
    text = markdown(
        _plan(columns=names), cells(_plan(columns=names), _results({("other", 0): 0.5}))
    )
    assert text.splitlines()[2].endswith("|  " * len(names) + "|")


def test_guided_starts_are_pretrained_for_every_draw(tmp_path: Path) -> None:
    guided = {"pretrain": {"model": "pscl-simclr"}, "guided": True}
    content = {
        "starts": {"random": "none", "plain": {"pretrain": {"model": "simclr"}}, "guided": guided},
        "datasets": {"a": {"finetune_dataset": "data/a", "splits": "s.json", "classes": "binary"}},
        "labels": [1],
        "seeds": [0, 1],
        "pretrain": {"data_path": "pool"},
    }
    study = Commands(read(content, "x"), tmp_path, tmp_path / "out")
    words = [" ".join(w) for w in study.all() if w[0] == "train_ssl.py"]
    assert len(words) == 3
    for seed in (0, 1):
        own = next(w for w in words if f"--name guided-a-1-{seed}" in w)
        assert f"--labeled_path {tmp_path / 'data/a'} --seed {seed}" in own
        assert f"--splits {tmp_path / 's.json'} --classes binary --labeled_count 1" in own
    tuned = [w[-1] for w in study.all() if w[0] == "train_finetune.py"][2::3]
    assert [Path(w).parent.name for w in tuned] == ["guided-a-1-0", "guided-a-1-1"]
    text = markdown(study.plan, [])
    assert text.endswith("Pretraining of guided saw the labelled images of its draw.")


def test_each_test_split_is_a_row_of_its_own() -> None:
    plan = _plan(datasets={"a": {"finetune_dataset": "a", "test": ["test", "far"]}})
    found = {"random-a-default-all-0": {"miou": {"test": 0.5, "far": 0.25}, "images": 3}}
    assert [row.dataset for row in cells(plan, found)] == ["a (test)", "a (far)"]


def test_labels_become_flags_of_fine_tuning() -> None:
    assert label_flags("all") == []
    assert label_flags("20%") == ["--data_ratio", "0.2"]
    assert label_flags("5") == ["--max_train_images", "5"]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"startz": {}}, "unknown entry 'startz'; did you mean starts?"),
        ({"starts": {}}, "NAME: VALUE under 'starts'"),
        ({"starts": {"a": {"model": "byol"}}}, "must be none, imagenet, a weights file"),
        ({"datasets": {"a": {"splits": "s.json"}}}, "does not say its finetune_dataset"),
        ({"labels": ["few"]}, "labels are numbers of images"),
        ({"labels": []}, "at least one entry under labels"),
        ({"columns": ["iou"]}, "unknown column 'iou'; there are: mdice, mdice_without_class_0"),
        (
            {"starts": {"a": {"pretrain": {}, "guided": True}}, "labels": ["20%"]},
            "numbers of labelled images, not shares",
        ),
        ({"baseline": "none"}, "baseline 'none' is none of its starts"),
        ({"baseline": ["random", "x"]}, "baseline 'x' is none of its starts"),
        ({"independent": ["b"]}, "independent set 'b' is none of its rows: a"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        _plan(**entry)


@pytest.mark.parametrize(
    "path",
    [*sorted(FOLDER.glob("*.yaml")), *sorted((ROOT / "benchmarks").glob("*.yaml"))],
    ids=lambda p: p.stem,
)
def test_the_studies_of_toolkit_and_results_are_commands_that_exist(
    path: Path, tmp_path: Path
) -> None:
    plan = read(yaml.safe_load(path.read_text()), path.stem)
    plan = replace(plan, seeds=plan.seeds[:1])
    study = Commands(plan, tmp_path, tmp_path / "out")
    for script, *words in study.all():
        STAGES[script](words)


@pytest.fixture
def tiny(synthetic_folder: Path, pool_folder: Path, tmp_path: Path) -> list[str]:
    content = yaml.safe_load(TINY)
    content["pretrain"]["data_path"] = str(pool_folder)
    content["datasets"]["phase"] = str(synthetic_folder)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "studies")]


def _call(calls: list[str]) -> Any:
    """The commands in this process, which saves their start-up."""

    def call(self: Runner, words: list[str]) -> None:
        calls.append(words[0])
        module = importlib.import_module(words[0].removesuffix(".py"))
        code = guard(module.main, words[1:])
        if code:
            raise SystemExit(code)

    return call


@pytest.mark.usefixtures("no_drawing")
def test_a_study_runs_goes_on_where_it_stopped_and_writes_its_table(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Runner, "_call", _call(calls))
    out = tmp_path / "studies" / "tiny"
    assert guard(tool.main, [*tiny, "--starts", "ssl"]) == 0
    assert "1 of 2 runs done" in (out / "table.md").read_text()
    assert guard(tool.main, tiny) == 0
    assert calls.count("train_ssl.py") == 1 and calls.count("eval_model.py") == 2
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["start"], r["labels"], r["images"]) for r in rows] == [
        ("random", "2", "2"),
        ("ssl", "2", "2"),
    ]
    assert "2 of 2 runs done" in (out / "table.md").read_text()
    assert (out / "curves.png").stat().st_size > 0
    # What is done keeps its models, not the state that only a run to be continued needs.
    runs = out / "runs" / "finetune"
    assert len(list(runs.glob("*/best.ckpt"))) == 2 and not list(runs.glob("*/last.ckpt"))
    # One result is lost: only that job is evaluated again, nothing is trained twice.
    (out / "results" / "ssl-phase-default-2-0.json").unlink()
    calls.clear()
    assert guard(tool.main, tiny) == 0
    assert calls == ["eval_model.py"]


@pytest.mark.usefixtures("no_drawing")
def test_the_best_on_test_is_that_of_all_snapshots_on_every_split_also_after_a_break(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(Path(tiny[0]).read_text())
    folder = content["datasets"]["phase"]
    content["starts"] = {"random": "none"}
    content["datasets"]["phase"] = {"finetune_dataset": folder, "test": ["test", "val"]}
    content |= {"columns": ["mdice_best_on_test"]}
    content["finetune"] |= {"snapshot_every": 1}
    Path(tiny[0]).write_text(yaml.safe_dump(content, sort_keys=False))
    calls: list[str] = []
    real = _call(calls)
    asked: list[str] = []

    def breaks(self: Runner, words: list[str]) -> None:
        asked.extend(word for word in words if "step" in word and word.endswith(".ckpt"))
        if len(asked) == 2 and len(calls) == 2:
            raise SystemExit(130)
        real(self, words)

    monkeypatch.setattr(Runner, "_call", breaks)
    with pytest.raises(SystemExit):
        tool.main(tiny)
    assert guard(tool.main, tiny) == 0
    snapshots = len(set(asked))
    # One before the break and one at it, then all of them on both splits.
    assert snapshots == 2 and len(asked) == 2 + 2 * snapshots
    out = tmp_path / "studies" / "tiny"
    found = json.loads((out / "results" / "random-phase-default-2-0.json").read_text())
    for split in ("test", "val"):
        assert found["scores"][split]["mdice_best_on_test"] > 0
    assert not list((out / "runs").rglob("snapshots"))


@pytest.mark.usefixtures("no_drawing")
def test_a_study_that_changed_is_not_mixed_with_its_old_results(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Runner, "_call", _call(calls))
    content = yaml.safe_load(Path(tiny[0]).read_text())
    content |= {"starts": {"random": "none"}}
    Path(tiny[0]).write_text(yaml.safe_dump(content, sort_keys=False))
    assert guard(tool.main, tiny) == 0
    content["finetune"]["steps"] = 3
    Path(tiny[0]).write_text(yaml.safe_dump(content, sort_keys=False))
    calls.clear()
    assert guard(tool.main, tiny) == 2 and not calls
    assert "was run with other settings than the study has now" in capsys.readouterr().err


def test_a_dry_run_prints_the_commands_counts_them_and_does_nothing(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(tool.main, [*tiny, "--dry_run"]) == 0
    told = capsys.readouterr()
    scripts = [line.split()[1] for line in told.out.splitlines()]
    assert scripts == ["train_ssl.py", *["train_finetune.py", "eval_model.py"] * 2]
    assert told.err == "1 pretraining, 2 fine-tunings\n"
    assert not (tmp_path / "studies").exists()


def test_a_study_is_checked_before_its_first_hour(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path(tiny[0]).read_text())
    content["finetune"]["stepz"] = 3
    Path(tiny[0]).write_text(yaml.safe_dump(content))
    assert guard(tool.main, tiny) == 2
    assert "--stepz" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()
    del content["finetune"]["stepz"]
    content["datasets"]["phase"] = "absent"
    Path(tiny[0]).write_text(yaml.safe_dump(content))
    assert guard(tool.main, tiny) == 2
    assert "data set phase is not at" in capsys.readouterr().err


def test_lists_beside_a_study_are_found_and_everything_else_is_below_the_root(
    tmp_path: Path,
) -> None:
    home, root = tmp_path / "home", tmp_path / "root"
    home.mkdir()
    (home / "pool.txt").write_text("a.png\n")
    plan = _plan(
        starts={"x": {"pretrain": {"data_path": "pool", "file_list": "pool.txt"}}},
        datasets={"a": {"finetune_dataset": "labelled", "splits": "splits.json"}},
    )
    words = Commands(plan, root, tmp_path / "out", home).all()
    assert words[0][words[0].index("--file_list") + 1] == str(home / "pool.txt")
    assert words[0][words[0].index("--data_path") + 1] == str(root / "pool")
    assert words[1][words[1].index("--splits") + 1] == str(root / "splits.json")


def test_a_variant_may_be_of_some_data_sets_only() -> None:
    sets = {"a": "data/a", "b": "data/b"}
    variants = {"honest": {}, "square": {"input_size": 512, "datasets": ["b"]}}
    plan = _plan(datasets=sets, variants=variants)
    found = {(job.dataset, job.variant) for job in plan.jobs()}
    assert found == {("a", "honest"), ("b", "honest"), ("b", "square")}
    commands = Commands(plan, Path("root"), Path("out")).all()
    assert sum("--input_size" in words for words in commands) == 2 * len(plan.seeds)
    assert not any("--datasets" in words for words in commands)
    with pytest.raises(UserError, match="variant square names the unknown data set c"):
        _plan(datasets=sets, variants={"square": {"datasets": ["c"]}})


def test_a_part_of_the_variants_and_of_the_starts_can_be_run() -> None:
    plan = _plan(variants={"honest": {}, "square": {"input_size": 512}})
    names = [start.name for start in plan.starts]
    assert {job.start.name for job in plan.only().jobs()} == set(names)
    assert {job.start.name for job in plan.only(starts=names[1:]).jobs()} == set(names[1:])
    with pytest.raises(UserError, match="no start 'randum'; there are: random"):
        plan.only(starts=["randum"])
    assert {job.variant for job in plan.only(["square"]).jobs()} == {"square"}
    with pytest.raises(UserError, match="no variant 'squares'; there are: honest, square"):
        plan.only(["squares"])
