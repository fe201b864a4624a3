"""Studies as jobs of a cluster: what is submitted, what a lost job comes to, local jobs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import submitit
import yaml

from matssl.core.errors import UserError, guard
from matssl.study import cluster, queue
from matssl.study.cluster import TRIES, Work
from matssl.study.plan import read
from matssl.study.queue import DONE, FAILED, STOPPED, Task
from matssl.study.runner import Runner
from matssl.tools import study

CONTENT = """
starts: {random: none, own: {pretrain: {model: simclr}}}
datasets: {a: {finetune_dataset: data/a}}
labels: [1, all]
seeds: [0, 1]
pretrain: {data_path: pool}
"""


class Small(Work):
    """Does nothing but to note that it was done, and by which process; the first one is killed."""

    def perform(self, task: Task) -> str:
        """Note it."""
        mark = self.out / "begun" / task.name
        mark.parent.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            mark.write_text("")
            if task.name == "random-a-default-1-1":
                os.kill(os.getpid(), signal.SIGKILL)
        facts = {"miou": {"test": 0.5}, "images": 3, "process": os.getpid()}
        self._note(self.result(task.job), facts)
        return DONE


def _runner(out: Path) -> Runner:
    return Runner(read(yaml.safe_load(CONTENT), "x"), Path("root"), out)


class Job:
    """A job that has ended."""

    def __init__(self, number: int, found: object) -> None:
        self.job_id, self.found, self.cancelled = str(number), found, False
        self.paths = submitit.core.utils.JobPaths("cluster", self.job_id)

    def done(self) -> bool:
        return True

    def result(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Executor:
    """Ends every job at once, with what it is told for its task; remembers its arrays."""

    def __init__(self, runner: Runner, told: dict[str, list[object]]) -> None:
        self.runner, self.told, self.arrays = runner, told, list[list[str]]()

    def map_array(self, work: Work, tasks: Sequence[Task]) -> list[Job]:
        self.arrays.append([task.name for task in tasks])
        jobs = []
        for task in tasks:
            found = self.told.get(task.name, [])
            outcome = found.pop(0) if found else (DONE, "")
            if outcome == (DONE, "") and not task.pretrains:
                work._note(work.result(task.job), {"miou": {"test": 0.5}, "images": 3})
            jobs.append(Job(len(self.arrays), outcome))
        return jobs


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a study by jobs that end at once."""

    def run(told: dict[str, list[object]], where: str = "slurm", jobs: int = 2) -> Any:
        runner = _runner(tmp_path)
        executor = Executor(runner, told)
        monkeypatch.setattr(cluster, "_executor", lambda *args: executor)
        monkeypatch.setattr(cluster, "LOOK", 0.0)
        left = cluster.run(runner, jobs, cluster=where)
        return left, executor.arrays

    return run


def test_what_may_start_is_one_array_and_what_waits_follows_its_pretraining(submitted: Any) -> None:
    left, arrays = submitted({})
    tasks = [task.name for task in queue.tasks(read(yaml.safe_load(CONTENT), "x"))]
    first = [name for name in tasks if not name.startswith("own-")]
    assert arrays == [first, [name for name in tasks if name not in first]]
    assert not left.failed and left.done == set(tasks)


def test_local_jobs_are_no_more_than_asked_for(submitted: Any) -> None:
    left, arrays = submitted({}, "local", 2)
    assert {len(array) for array in arrays} <= {1, 2} and not left.failed
    assert sum(map(len, arrays)) == len(left.done)


def test_a_lost_job_is_submitted_again_and_at_last_given_up(
    submitted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = submitit.core.utils.UncompletedJobError("no result")
    left, arrays = submitted(
        {
            "random-a-default-1-0": [gone, (STOPPED, "exit code 143")],
            "random-a-default-all-0": [gone] * TRIES,
            "random-a-default-1-1": [(FAILED, "exit code 2 (log)")],
        }
    )
    flat = [name for array in arrays for name in array]
    assert flat.count("random-a-default-1-0") == 3
    assert flat.count("random-a-default-all-0") == TRIES
    # What failed by itself would fail again.
    assert flat.count("random-a-default-1-1") == 1
    assert left.failed.keys() == {"random-a-default-all-0", "random-a-default-1-1"}
    assert f"its job was lost {TRIES} times" in left.failed["random-a-default-all-0"]
    assert "submitted again" in capsys.readouterr().out


def test_jobs_of_the_local_executor_one_of_which_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Work", Small)
    monkeypatch.setattr(cluster, "LOOK", 0.1)
    # The job of a killed process has no result, however long one waits for it.
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)
    # What is pickled here is found there.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent))
    runner = _runner(tmp_path / "x")
    runner.plan = runner.plan.only(labels=["1"], starts=["random"])
    left = cluster.run(runner, 3, cluster="local", options=["timeout_min=5"])
    assert not left.failed and not left.waiting
    facts = [json.loads(path.read_text()) for path in sorted((tmp_path / "x/results").glob("*"))]
    assert len(facts) == 2 == len({fact["process"] for fact in facts})
    assert os.getpid() not in {fact["process"] for fact in facts}
    assert len(runner.results()) == 2


def test_what_cannot_be_submitted_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = _runner(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="srun.*run it where jobs are submitted"):
        cluster.run(runner, 1, cluster="slurm")
    with pytest.raises(UserError, match="--cluster_options slurm_partitoin=x: "):
        cluster.run(runner, 1, cluster="local", options=["slurm_partitoin=x"])
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install matssl\[cluster\]"):
        cluster.run(runner, 1, cluster="local")
    assert guard(study.main, ["x.yaml", "--cluster", "local", "--cluster_options", "time"]) == 2
    assert "KEY=VALUE is wanted" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text(CONTENT)
    assert guard(study.main, [str(tmp_path / "x.yaml"), "--cluster_options", "a=1"]) == 2
    assert "goes with --cluster" in capsys.readouterr().err
