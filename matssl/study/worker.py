"""A worker of a study: a process that calls the commands one after the other, without their start.

Importing torch costs a command seconds; a worker does it once. What a command leaves in its process
is what the next one sets anew: seeds, threads, kernels. The bits are those of the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from matssl import pictures
from matssl.core.errors import UserError, guard
from matssl.study.queue import FAILED, STOPPED, Task
from matssl.study.runner import INTERRUPTED, ROOT, CommandFailed, Runner

# Number of prctl that says which signal comes when the parent ends (linux/prctl.h).
PARENT_DEATH = 1


class InProcess(Runner):
    """A runner that calls the commands in its own process."""

    def _execute(self, words: list[str]) -> int:
        # command.txt names the command.
        sys.argv[0] = str(ROOT / words[0])
        try:
            # Pictures that are thrown away are not drawn: that takes seconds of a small run.
            with pictures.undrawn() if self.keep == "none" else contextlib.nullcontext():
                return guard(_main(words[0]), words[1:])
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1


def work(line: Connection, runner: Runner, parent: int) -> None:
    """Do the tasks that come over the line; ends with it, or after a task that failed.

    Args:
        line: tasks come, pairs of outcome and reason go.
        runner: the study, as the parent has it.
        parent: process that this one ends with.
    """
    _end_with(parent)
    own = InProcess(
        runner.plan,
        runner.commands.root,
        runner.out,
        runner.commands.home,
        runner.keep,
        runner.threads,
    )
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            task = line.recv()
            outcome, why = perform(own, task)
            line.send((outcome, why))
            # What broke one command (a GPU in an error state) shall break no other.
            if outcome in (FAILED, STOPPED):
                return


def perform(runner: Runner, task: Task) -> tuple[str, str]:
    """Do a task with its output in a log of its own; return its outcome and what went wrong."""
    log = runner.log(task)
    with output_to(log):
        try:
            outcome, why = runner.perform(task), ""
        except CommandFailed as failure:
            # Below 0 the number of the signal that killed the command.
            stopped = failure.code in INTERRUPTED or failure.code < 0
            outcome = STOPPED if stopped else FAILED
            why = f"exit code {failure.code}"
        except KeyboardInterrupt:
            outcome, why = STOPPED, "interrupted"
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            outcome, why = FAILED, str(error)
        except Exception as error:
            traceback.print_exc()
            outcome, why = FAILED, type(error).__name__
    if outcome == FAILED:
        why = f"{last_line(log) or why} ({log})"
    _free_gpu()
    return outcome, why


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append all that this process prints inside the block to a file, libraries' output too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flush = (sys.stdout.flush, sys.stderr.flush)
    saved = [os.dup(1), os.dup(2)]
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for write in flush:
            write()
        for number in (1, 2):
            os.dup2(handle, number)
        yield
    finally:
        for write in flush:
            write()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(handle)


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _main(script: str) -> Callable[[Sequence[str]], int | None]:
    """Return the main function of one of the three commands."""
    name = script.removesuffix(".py")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(ROOT / script)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    found: Callable[[Sequence[str]], int | None] = sys.modules[name].main
    return found


def _end_with(parent: int) -> None:
    """Let SIGTERM come when the parent is killed (Linux), so that the run is saved."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _free_gpu() -> None:
    """Give the memory of a GPU back that the last command used; other workers share it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
