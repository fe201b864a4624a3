"""A study's tasks as jobs of a cluster (``--cluster``), through submitit: SLURM, or local ones.

The command that submits them waits for them, submits what they made possible, and again what was
lost with its machine. Jobs go by the same locks and write the same files as everywhere else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.core.run_folder import today
from matssl.core.wording import counted
from matssl.study import crew
from matssl.study.queue import BUSY, FAILED, STOPPED, Queue, Task
from matssl.study.runner import ROOT, Runner

# Times that a task is submitted whose job is lost: killed, out of time, gone with its machine.
TRIES = 5
# Seconds between two looks at the jobs.
LOOK = 1.0
# Seconds that a command has to save its run before its job ends.
TO_SAVE = 60.0
# Unless --cluster_options says it: longer than any task takes.
MINUTES = 24 * 60


class Work(Runner):
    """A runner inside of a job: what a scheduler ends before its time is begun there again."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(
            runner.plan,
            runner.commands.root,
            runner.out,
            runner.commands.home,
            runner.keep,
            runner.threads,
        )
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, task: Task) -> tuple[str, str]:
        """Do a task; return its outcome and what went wrong."""
        # Late: it imports what draws.
        from matssl.study import worker

        return worker.perform(self, task)

    def checkpoint(self, task: Task) -> Any:
        """Save the run before the job ends, and return what is submitted in its place.

        submitit calls this where SLURM says that the time is nearly over, or takes the machine away
        (the signal USR2).
        """
        import submitit.helpers

        if self._child is not None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(TO_SAVE)
        return submitit.helpers.DelayedSubmission(Work(self), task)

    def _execute(self, words: list[str]) -> int:
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        self._child = subprocess.Popen(command, pass_fds=[self._lock])
        try:
            return self._child.wait()
        except BaseException:
            self._child.terminate()
            raise
        finally:
            self._child = None


@dataclass
class Sent:
    """A task that is a job now."""

    task: Task
    job: Any
    since: float


def run(
    runner: Runner,
    jobs: int,
    minutes: float | None = None,
    *,
    cluster: str,
    options: Sequence[str] = (),
) -> Queue:
    """Do every task that is left as a job of its own.

    Args:
        runner: the study.
        jobs: at once at most.
        minutes: after which nothing is submitted; None: no limit.
        cluster: of :data:`matssl.study.CLUSTERS`.
        options: KEY=VALUE, parameters of submitit.

    Returns:
        What became of them.

    Raises:
        UserError: no submitit, no such cluster here, or an option that it does not know.
        SystemExit: interrupted; the jobs are cancelled, their runs saved.
    """
    executor = _executor(runner.out, cluster, jobs, options)
    left = runner.queue(minutes)
    sent: list[Sent] = []
    tries: dict[str, int] = {}
    with crew.signals() as received:
        try:
            while True:
                # SLURM itself holds an array's jobs back.
                free = jobs - len(sent) if cluster == "local" else None
                sent += _submitted(runner, executor, _ready(left, free), tries)
                if not sent and left.over:
                    return left
                for one in [one for one in sent if one.job.done()]:
                    sent.remove(one)
                    _heard(runner, left, one, tries)
                time.sleep(LOOK)
        except KeyboardInterrupt:
            for one in sent:
                one.job.cancel(check=False)
            told = f"{counted(len(sent), 'job')} cancelled" if sent else "stopped"
            print(f"{told}; the study goes on from here when it is started again", flush=True)
            raise SystemExit(128 + (received[0] if received else signal.SIGINT)) from None


def _ready(left: Queue, free: int | None) -> list[Task]:
    """Take the tasks that may start now, as many as there is room for."""
    ready: list[Task] = []
    while free is None or len(ready) < free:
        task = left.next()
        if task is None:
            break
        ready.append(task)
    return ready


def _submitted(
    runner: Runner, executor: Any, ready: Sequence[Task], tries: dict[str, int]
) -> list[Sent]:
    """Submit tasks, several as one array."""
    if not ready:
        return []
    with _on_path():
        jobs = executor.map_array(Work(runner), ready)
    for task, job in zip(ready, jobs, strict=True):
        tries[task.name] = tries.get(task.name, 0) + 1
        print(f"{task.name}: job {job.job_id}", flush=True)
    now = time.monotonic()
    return [Sent(task, job, now) for task, job in zip(ready, jobs, strict=True)]


def _heard(runner: Runner, left: Queue, one: Sent, tries: Mapping[str, int]) -> None:
    """Take down what became of a job; of a lost one the task waits again."""
    import submitit

    task = one.task
    try:
        outcome, why = one.job.result()
    except submitit.core.utils.FailedJobError as error:
        # A fault of the program, which another try would meet again.
        outcome, why = FAILED, f"{_last(str(error))} ({runner.log(task)})"
    except submitit.core.utils.UncompletedJobError:
        outcome, why = STOPPED, f"it ended without a word ({one.job.paths.stderr})"
    if outcome == STOPPED and tries[task.name] < TRIES:
        print(f"{task.name}: job {one.job.job_id} was lost, {why}; submitted again", flush=True)
        left.waiting.insert(0, task)
        return
    if outcome == STOPPED:
        outcome, why = FAILED, f"its job was lost {TRIES} times; the last one: {why}"
    left.note(task, outcome, why)
    if outcome != BUSY:
        print(runner.line(task, left, time.monotonic() - one.since), flush=True)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it failed"


def _executor(out: Path, cluster: str, jobs: int, options: Sequence[str]) -> Any:
    """Return what submits jobs.

    Raises:
        UserError: it is not here, or does not know an option.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError(
            "--cluster needs the package submitit: pip install matssl[cluster]"
        ) from None
    # One folder a start: local jobs are named by numbers of processes, which come again.
    folder = out / "cluster" / f"{today()}-{os.getpid()}"
    given = {"timeout_min": MINUTES, "name": "matssl", **_parameters(options)}
    if cluster == "slurm":
        given = {"slurm_array_parallelism": jobs, **given}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**given)
    except RuntimeError as error:
        raise UserError(
            f"--cluster {cluster}: {' '.join(str(error).split())}; run it where jobs are submitted"
        ) from error
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"--cluster_options {','.join(options)}: {' '.join(str(error).split())}"
        ) from error
    return executor


def _parameters(options: Sequence[str]) -> dict[str, object]:
    """Return KEY=VALUE with numbers as numbers."""
    found: dict[str, object] = {}
    for option in options:
        key, _, value = (part.strip() for part in option.partition("="))
        try:
            number = float(value)
        except ValueError:
            found[key] = value
        else:
            found[key] = int(number) if number.is_integer() else number
    return found


@contextlib.contextmanager
def _on_path() -> Iterator[None]:
    """Let jobs that are submitted inside the block find this package, installed or not."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
