"""Several processes that share the tasks of a study (``--jobs``)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from matssl.study.queue import BUSY, FAILED, STOPPED, Queue, Task
from matssl.study.runner import Runner

# One thread for each of many processes: of every library that has its own.
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
} | {"OMP_WAIT_POLICY": "PASSIVE"}
# Seconds that workers have to save their runs after a signal.
TO_SAVE = 60.0


@dataclass
class Worker:
    """A process, the line to it, and what it does since when."""

    process: SpawnProcess
    line: Connection
    task: Task | None = None
    since: float = 0.0


def run(runner: Runner, jobs: int, minutes: float | None = None) -> Queue:
    """Do every task that is left in so many processes, of one thread each.

    Args:
        runner: the study; with ``threads`` of 1.
        jobs: processes at most.
        minutes: after which nothing starts; None: no limit.

    Returns:
        What became of them.

    Raises:
        SystemExit: interrupted; the runs are saved.
    """
    left = runner.queue(minutes)
    crew: list[Worker] = []
    with _one_thread(), signals() as received:
        try:
            while _turn(runner, left, crew, jobs):
                pass
        except KeyboardInterrupt:
            _dismiss(crew, save=True)
            print("stopped; the study goes on from here when it is started again", flush=True)
            raise SystemExit(128 + (received[0] if received else signal.SIGINT)) from None
        _dismiss(crew, save=False)
    return left


def _turn(runner: Runner, left: Queue, crew: list[Worker], jobs: int) -> bool:
    """Hand out what may start, and wait for what ends; return whether anything is to come."""
    while sum(worker.task is not None for worker in crew) < jobs:
        task = left.next()
        if task is None:
            break
        worker = next((w for w in crew if w.task is None), None) or _hired(runner, crew)
        worker.task, worker.since = task, time.monotonic()
        try:
            worker.line.send(task)
        except OSError:
            # It died since its last task.
            left.note(task, BUSY)
            crew.remove(worker)
    busy = [worker for worker in crew if worker.task is not None]
    if not busy:
        if left.over:
            return False
        time.sleep(0.5)
        return True
    ready = wait([w.line for w in busy] + [w.process.sentinel for w in busy], timeout=1.0)
    for worker in busy:
        if worker.line in ready or worker.process.sentinel in ready:
            _heard(runner, left, crew, worker)
    return True


def _heard(runner: Runner, left: Queue, crew: list[Worker], worker: Worker) -> None:
    """Take down what a worker says, or that it is no more."""
    task, worker.task = worker.task, None
    assert task is not None
    try:
        outcome, why = worker.line.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode
        outcome, why = FAILED, f"its process ended with {code} ({runner.log(task)})"
    if outcome == STOPPED:
        # By a signal to the worker alone: its run is saved, and goes on at the next start.
        outcome, why = FAILED, f"it was stopped ({why})"
    if outcome == FAILED:
        worker.line.close()
        crew.remove(worker)
    left.note(task, outcome, why)
    if outcome != BUSY:
        print(runner.line(task, left, time.monotonic() - worker.since), flush=True)


def _hired(runner: Runner, crew: list[Worker]) -> Worker:
    """Start a worker. Spawned, not forked: torch's threads and a GPU do not survive a fork."""
    from matssl.study import worker

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.work, args=(theirs, runner, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    crew.append(Worker(process, ours))
    return crew[-1]


def _dismiss(crew: list[Worker], save: bool) -> None:
    """End the workers; those that are at work have time to save their runs."""
    for worker in crew:
        worker.line.close()
        if save and worker.task is not None:
            worker.process.terminate()
    end = time.monotonic() + TO_SAVE
    for worker in crew:
        worker.process.join(max(0.0, end - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start inside the block have one thread for each library."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Let SIGTERM interrupt the block as Ctrl-C does; yields the signals that came."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
