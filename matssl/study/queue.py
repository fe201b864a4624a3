"""What a study has to do, in order: which task may start now, and what became of the others."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from matssl.study.plan import Job, Plan

# What becomes of a task: done; failed; in the hands of another process; stopped by a signal.
DONE, FAILED, BUSY, STOPPED = "done", "failed", "busy", "stopped"
# Seconds after which a task is asked for again that another process had.
AGAIN = 5.0


@dataclass(frozen=True)
class Task:
    """A pretraining run, or a fine-tuning run with its evaluations.

    Attributes:
        name: of its lock, its log and its lines.
        job: that it is, or the first of those it pretrains for.
        pretrains: which of both it is.
        needs: name of the task that has to be done before: a pretraining, or the job that trains
            the same network and scores it, too; "" for none.
    """

    name: str
    job: Job
    pretrains: bool = False
    needs: str = ""

    def without(self, done: Collection[str]) -> Task:
        """Return the task where these are done: nothing trains its network any more."""
        if self.needs not in done or self.pretrains:
            return self
        return replace(self, needs=pretraining(self.job) if self.job.start.run else "")


def pretraining(job: Job) -> str:
    """Return the name of the task that makes a job's weights."""
    return f"pretrain {job.source}"


def tasks(plan: Plan) -> list[Task]:
    """Return all tasks; seed by seed, and of each seed first what pretrains: it takes longest."""
    found: dict[str, Task] = {}
    for seed in plan.seeds:
        jobs = [job for job in plan.jobs() if job.seed == seed]
        for job in jobs:
            if job.start.run:
                found.setdefault(pretraining(job), Task(pretraining(job), job, pretrains=True))
        trained = {twin.name: job.name for job in jobs if (twin := plan.network(job)) is not None}
        # What trains for two comes first.
        for job in sorted(jobs, key=lambda job: job.name in trained):
            needs = pretraining(job) if job.start.run else ""
            found[job.name] = Task(job.name, job, needs=trained.get(job.name, needs))
    return list(found.values())


class Queue:
    """The tasks that are left, and what may start now.

    Args:
        todo: tasks in order; without a pretraining that nothing waits for.
        done: names of those that are done already.
        minutes: after which nothing starts; None: no limit.
    """

    def __init__(
        self, todo: Sequence[Task], done: Iterable[str] = (), minutes: float | None = None
    ) -> None:
        self.waiting = list(todo)
        self.done, self.failed = set(done), dict[str, str]()
        self._later: dict[str, float] = {}
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def late(self) -> bool:
        """Whether the time is up, so that nothing starts any more."""
        return self._end is not None and time.monotonic() >= self._end

    @property
    def over(self) -> bool:
        """Whether nothing will start any more, unless what runs makes it possible."""
        return self.late or not any(not t.needs or t.needs in self.done for t in self.waiting)

    def next(self) -> Task | None:
        """Take the first task that may start now; None where there is none."""
        if self.late:
            return None
        now = time.monotonic()
        for task in self.waiting:
            known = not task.needs or task.needs in self.done
            if known and self._later.get(task.name, 0.0) <= now:
                self.waiting.remove(task)
                return task
        return None

    def note(self, task: Task, outcome: str, why: str = "") -> None:
        """Take down what became of a task: DONE, FAILED, BUSY or STOPPED."""
        if outcome == DONE:
            self.done.add(task.name)
        elif outcome == FAILED:
            self.failed[task.name] = why
            for other in [t for t in self.waiting if t.needs == task.name]:
                self.waiting.remove(other)
                self.failed[other.name] = f"its {task.name} failed"
        else:
            self._later[task.name] = time.monotonic() + AGAIN
            self.waiting.insert(0, task)
