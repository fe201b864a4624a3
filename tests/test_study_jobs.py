"""Studies whose arms have flags of their own, and whose jobs several processes share."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import start

import train_finetune
from matssl.core import checkpoint, locks
from matssl.core.errors import UserError, guard
from matssl.data import specimens
from matssl.data.layouts import Pair
from matssl.study import crew, queue
from matssl.study.commands import Commands
from matssl.study.plan import Plan, read
from matssl.study.queue import BUSY, DONE, FAILED, Queue
from matssl.study.runner import CommandFailed, Runner
from matssl.tools import study as tool

ARMS = """
datasets:
  a: {finetune_dataset: data/a, pool: data/a/all}
labels: [1, all]
seeds: [0, 1, 2]
pretrain: {data_path: pool, steps: 7}
pretraining:
  own: {encoder: tu-x}
  material: {data_path: $pool, weights: imagenet}
arms:
  random: none
  forest: {start: none, finetune: {head: forest, trees: 9}, evaluate: {tta: true}}
  own: {start: own, finetune: {encoder: tu-x}}
  own-semi: {start: own, finetune: {encoder: tu-x, unlabeled_path: $pool}}
  material: {start: material}
"""
# One forest and one network: seconds in all.
TINY = """
name: tiny
arms:
  forest: {start: none, finetune: {head: forest, trees: 2}}
  net: {start: none, finetune: {encoder: tu-test_resnet}}
datasets:
  phase: LABELLED
labels: [1]
seeds: [0]
finetune: {steps: 2, batch_size: 2, crop_size: 32, precision: fp32, quiet: true, device: cpu}
evaluate: {precision: fp32, device: cpu}
"""


def _plan(text: str = ARMS, **more: Any) -> Plan:
    return read({**yaml.safe_load(text), **more}, "x")


def _words(plan: Plan, script: str, name: str) -> str:
    found = [" ".join(words) for words in Commands(plan, Path("root"), Path("out")).all()]
    return next(w for w in found if w.startswith(script) and f"--name {name}" in w)


def test_an_arm_adds_flags_of_its_own_to_what_it_starts_from() -> None:
    plan = _plan()
    forest = _words(plan, "train_finetune.py", "forest-a-default-1-0")
    assert "--head forest --trees 9 --max_train_images 1" in forest and "--weights none" in forest
    assert "--tta" in _words(plan, "eval_model.py", "forest-a-default-1-0-test")
    plain = _words(plan, "train_finetune.py", "random-a-default-1-0")
    assert "--head" not in plain and "pool" not in plain
    assert "--tta" not in _words(plan, "eval_model.py", "random-a-default-1-0-test")


def test_arms_share_a_pretraining_run_and_name_the_pool_of_their_data_set() -> None:
    plan = _plan()
    commands = Commands(plan, Path("root"), Path("out")).all()
    names = [words[-1] for words in commands if words[0] == "train_ssl.py"]
    # The second is of the very material: one run for each data set.
    assert names == ["own", "material-a"]
    semi = _words(plan, "train_finetune.py", "own-semi-a-default-all-0")
    assert "--unlabeled_path root/data/a/all" in semi
    assert "--ssl_weights_path out/runs/ssl/own/encoder.safetensors" in semi
    made = _words(plan, "train_ssl.py", "material-a")
    assert "--data_path root/data/a/all --steps 7 --weights imagenet" in made


def test_fine_tuning_seeds_take_turns_among_the_pretraining_seeds() -> None:
    plan = _plan(pretraining_seeds=[3, 5])
    commands = Commands(plan, Path("root"), Path("out")).all()
    made = [" ".join(words) for words in commands if words[0] == "train_ssl.py"]
    assert sum("--seed 3" in words for words in made) == 2 and len(made) == 4
    used = [
        _words(plan, "train_finetune.py", f"own-a-default-1-{seed}").split("ssl/")[1].split("/")[0]
        for seed in plan.seeds
    ]
    assert used == ["own-p3", "own-p5", "own-p3"]


def test_starts_and_arms_are_one_list_and_a_name_stands_once() -> None:
    plan = _plan(starts={"first": "none"})
    assert [start.name for start in plan.starts][:2] == ["first", "random"]
    with pytest.raises(UserError, match="has random under starts and under arms"):
        _plan(starts={"random": "none"})


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"arms": {"a": {"finetune": {}}}}, "start a must be none, imagenet"),
        ({"arms": {"a": {"start": "none", "pretrain": {}}}}, "start a must be none, imagenet"),
        ({"arms": {"a": {"start": "none", "finetune": 3}}}, "start a must be none, imagenet"),
        ({"arms": {"a": {"start": "none", "guided": True}}}, "is guided, and nothing pretrains"),
        ({"arms": {"own": {"pretrain": {}}}}, "and so does own under pretraining"),
        ({"pretraining": {"imagenet": {}}}, "pretraining imagenet must be"),
        ({"arms": {"a": {"start": "none", "finetune": {"x": "$poll"}}}}, "data set a says no poll"),
        ({"finetune": {"x": "$poll"}}, "data set a says no poll"),
    ],
)
def test_arms_that_cannot_be_meant_are_refused(entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        _plan(**entry)


def test_a_part_of_the_data_sets_and_of_the_label_counts_can_be_run() -> None:
    plan = _plan().only(labels=["1"], datasets=["a"])
    assert {job.labels for job in plan.jobs()} == {"1"}
    with pytest.raises(UserError, match="no number of labels '3'; there are: 1, all"):
        plan.only(labels=["3"]) if "all" in plan.labels else _plan().only(labels=["3"])


def test_whole_seeds_come_first_and_of_each_seed_what_pretrains() -> None:
    names = [task.name for task in queue.tasks(_plan(pretraining_seeds=[3, 5]))]
    assert names[:3] == ["pretrain own-p3", "pretrain material-a-p3", "random-a-default-1-0"]
    assert names.index("pretrain own-p5") == names.index("material-a-default-all-0") + 1
    assert len(names) == 4 + 5 * 2 * 3


def test_a_job_waits_for_its_pretraining_and_fails_with_it() -> None:
    tasks = {task.name: task for task in queue.tasks(_plan().only(labels=["1"]))}
    left = Queue([tasks[name] for name in ("pretrain own", "own-a-default-1-0")])
    first = left.next()
    assert first is not None and first.pretrains
    assert left.next() is None and left.over
    left.note(first, BUSY)
    # Another process has it: asked for again later, and not at once.
    assert left.next() is None and not left.over
    left._later.clear()
    assert left.next() == first
    left.note(first, FAILED, "no disk")
    assert left.over and not left.waiting
    assert left.failed["own-a-default-1-0"] == "its pretrain own failed"


def test_nothing_starts_after_the_time_is_up() -> None:
    left = Queue(queue.tasks(_plan()), minutes=0)
    assert left.late and left.over and left.next() is None and left.waiting


@pytest.fixture
def tiny(synthetic_folder: Path, tmp_path: Path) -> list[str]:
    content = yaml.safe_load(TINY)
    content["datasets"]["phase"] = str(synthetic_folder)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "studies")]


def _runner(tiny: list[str], **more: Any) -> Runner:
    plan = read(yaml.safe_load(Path(tiny[0]).read_text()), "x")
    return Runner(plan, Path("datasets"), Path(tiny[2]) / "tiny", **more)


def _state(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoint.load(path)["state"]
    return state


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_network_beside_a_head_is_trained_once_for_both_arms(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path(tiny[0]).read_text())
    net = content["arms"].pop("net")
    told = {**net["finetune"], "average_with": "linear", "samples": 500, "l2": 0.5}
    content["arms"] = {"net": net, "both": {**net, "finetune": told}}
    # The arms differ in more than the head: their networks are not the same.
    assert read(content, "x").network(read(content, "x").jobs()[1]) is None
    net["finetune"]["l2"] = 0.5
    plan = read(content, "x")
    alone, both = plan.jobs()
    assert (plan.network(both), plan.network(alone)) == (alone, None)
    order = [task.name for task in queue.tasks(plan)]
    assert order == [both.name, alone.name] and queue.tasks(plan)[1].needs == both.name

    out = Path(tiny[2])
    shared = Runner(plan, Path("datasets"), out / "shared", keep="none")
    called: list[str] = []
    execute = Runner._execute
    monkeypatch.setattr(
        Runner, "_execute", lambda self, words: [called.append(words[0]), execute(self, words)][1]
    )
    assert not shared.run().failed
    assert called == ["train_finetune.py", "eval_model.py", "eval_model.py"]
    assert "[2/2] net-phase-default-1-0: mIoU" in capfd.readouterr().out
    single = Runner(plan.only(starts=["net"]), Path("datasets"), out / "single")
    assert not single.run().failed
    ours, theirs = (json.loads(r.result(alone).read_text()) for r in (shared, single))
    for key in ("miou", "scores", "iou", "drawn", "images"):
        assert ours[key] == theirs[key], key
    assert ours["validation"] == pytest.approx(theirs["validation"], abs=1e-12)
    assert ours["network_of"] == both.name
    # Where the pair has a result and the network alone has none, it trains by itself.
    shared.result(alone).unlink()
    left = shared.queue()
    assert [(task.name, task.needs) for task in left.waiting] == [(alone.name, "")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_worker_gives_the_bits_of_the_commands(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One worker does both jobs one after the other: what the first leaves must not matter."""
    runner = _runner(tiny, threads=1)
    left = crew.run(runner, 1)
    assert left.over and not left.failed
    told = capfd.readouterr().out
    assert "[2/2] net-phase-default-1-0: mIoU" in told
    name = "net-phase-default-1-0"
    own = runner.out / "runs" / "finetune" / name
    assert (own / "command.txt").read_text().startswith("python train_finetune.py ")
    assert "error" not in (runner.out / "logs" / f"{name}.log").read_text()
    words = json.loads((runner.out / "results" / f"{name}.json").read_text())["command"]
    assert "--threads" not in words
    words[words.index("--output_dir") + 1] = str(tmp_path / "again")
    assert guard(train_finetune.main, [*words[1:], "--threads", "1"]) == 0
    ours, theirs = (_state(f / "best.ckpt") for f in (own, tmp_path / "again" / "finetune" / name))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_several_jobs_at_once_need_no_worker_where_all_is_done(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner(tiny)
    for job in runner.plan.jobs():
        facts = {"miou": {"test": 0.5}, "images": 1, "validation": 0.5, "seconds": 1.0}
        runner._note(runner.result(job), {**facts, "command": runner.commands.finetune(job)})
    monkeypatch.setattr(crew, "_hired", None)
    monkeypatch.setattr(Runner, "write_table", lambda self: None)
    assert guard(tool.main, [*tiny, "--jobs", "2"]) == 0


@pytest.mark.usefixtures("no_drawing")
def test_a_failed_job_costs_no_other_and_is_tried_again(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def fails(self: Runner, words: list[str]) -> None:
        calls.append(words[0])
        if "forest" in words:
            raise CommandFailed(2)

    def noted(self: Runner, job: Any) -> None:
        self._call(self.commands.finetune(job))
        facts = {"miou": {"test": 0.5}, "images": 1, "validation": 0.5, "seconds": 1.0}
        self._note(self.result(job), {**facts, "command": self.commands.finetune(job)})

    monkeypatch.setattr(Runner, "_call", fails)
    monkeypatch.setattr(Runner, "_finetune", noted)
    assert guard(tool.main, tiny) == 1
    told = capsys.readouterr()
    assert "forest-phase-default-1-0: FAILED, exit code 2" in told.out
    assert "incomplete: 1 task of the study failed, tried again at the next start" in told.err
    assert "1 of 2 runs done" in told.out
    calls.clear()
    assert guard(tool.main, tiny) == 1 and len(calls) == 1


def test_a_task_that_another_process_has_is_left_to_it(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner(tiny)
    task = runner.queue().waiting[0]
    monkeypatch.setattr(Runner, "_finetune", lambda self, job: self._note(self.result(job), {}))
    (runner.out / "locks").mkdir(parents=True)
    handle = os.open(runner.out / "locks" / task.name, os.O_RDWR | os.O_CREAT)
    assert locks.hold(handle, wait=False)
    assert runner.perform(task) == BUSY and not runner.finished(task)
    os.close(handle)
    assert runner.perform(task) == DONE and runner.finished(task)


@pytest.mark.usefixtures("no_drawing")
def test_results_alone_make_the_table_and_nothing_else_is_kept_where_that_is_asked(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    def call(self: Runner, words: list[str]) -> None:
        module = importlib.import_module(words[0].removesuffix(".py"))
        code = guard(module.main, words[1:])
        if code:
            raise CommandFailed(code)

    monkeypatch.setattr(Runner, "_call", call)
    assert guard(tool.main, [*tiny, "--keep", "none", "--starts", "net"]) == 0
    out = tmp_path / "studies" / "tiny"
    assert not [path for path in (out / "runs").rglob("*") if path.is_file()]
    found = json.loads((out / "results" / "net-phase-default-1-0.json").read_text())
    assert len(found["drawn"]) == 1 and len(found["iou"]["test"]) > 1
    assert found["images"] == 1 and found["machine"].keys() >= {"commit", "gpus", "processor"}
    other = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(out / "results", other / "results")
    assert guard(tool.main, [tiny[0], "--output_dir", str(other.parent), "--table"]) == 0
    assert "1 of 2 runs done" in (other / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_study_leaves_no_worker_behind_and_goes_on(
    tiny: list[str], tmp_path: Path
) -> None:
    content = yaml.safe_load(Path(tiny[0]).read_text())
    content["arms"] = {"net": content["arms"]["net"]}
    content["finetune"] |= {"steps": 100_000, "val_every": 100_000, "checkpoint_every": 50}
    Path(tiny[0]).write_text(yaml.safe_dump(content, sort_keys=False))
    study = start(tmp_path / "printed.txt", "matssl/tools/study.py", *tiny, "--jobs", 2)
    folder = tmp_path / "studies" / "tiny" / "runs" / "finetune" / "net-phase-default-1-0"
    _until(lambda: (folder / "steps.csv").is_file())
    study.process.kill()
    study.wait()
    # The worker saves its run, and gives the lock free: nobody writes there any more.
    lock = os.open(tmp_path / "studies" / "tiny" / "locks" / folder.name, os.O_RDWR)
    _until(lambda: locks.hold(lock, wait=False))
    os.close(lock)
    saved = int(checkpoint.load(folder / "last.ckpt")["step"])
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped" and saved > 0


def _until(holds: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_each_seed_draws_its_own_labelled_pictures_where_there_are_several() -> None:
    pairs = [Pair(Path(f"{place}.png"), None, "train", "") for place in range(10)]
    draws = [specimens.take(pairs, 1, seed) for seed in range(10)]
    assert len(set(draws)) > 3
    assert len({specimens.take(pairs[:1], 1, seed) for seed in range(10)}) == 1
    # A larger number of labels holds the smaller of the same seed.
    for seed, draw in enumerate(draws):
        assert set(draw) <= set(specimens.take(pairs, 2, seed))
