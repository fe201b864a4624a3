"""What the training stages share: the clock, the console, the resume check."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from matssl.core.config import RunConfig
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime

# What may differ between a run and its continuation without changing the result.
FREE_ON_RESUME = {
    "resume",
    "overwrite",
    "quiet",
    "debug",
    "name",
    "num_workers",
    "cache_dir",
    "output_dir",
    "config",
    "checkpoint_every",
    "tensorboard",
    "test_folder",
}


class Clock:
    """Time spent waiting for data and computing, since the last restart."""

    def __init__(self, views_per_step: int) -> None:
        self.views_per_step = views_per_step
        self.steps = 0
        self.wait = self.busy = 0.0
        self.mark = time.perf_counter()

    def waited(self) -> None:
        """Note that the batch has come."""
        self._add("wait")

    def stepped(self) -> None:
        """Note that the step is done."""
        self._add("busy")
        self.steps += 1

    def restart(self) -> None:
        """Leave out what happened between two steps (checkpoints, reports)."""
        self.mark = time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        """Mean duration of a step."""
        return (self.wait + self.busy) / max(self.steps, 1)

    @property
    def speed(self) -> float:
        """Views a second."""
        return self.views_per_step / self.seconds_per_step if self.steps else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for data."""
        return self.wait / (self.wait + self.busy) if self.steps else 0.0

    def _add(self, kind: str) -> None:
        now = time.perf_counter()
        setattr(self, kind, getattr(self, kind) + now - self.mark)
        self.mark = now


def tensorboard(wanted: bool, folder: RunFolder, rt: Runtime) -> Any:
    """Return a TensorBoard writer for the run; None where none is wanted.

    Raises:
        UserError: the package is not installed.
    """
    if not wanted or not rt.is_main:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder.root / "tensorboard"))


def say(config: RunConfig, rt: Runtime, text: str) -> None:
    """Print a line above the progress bar, on one process, unless quiet."""
    if not config.quiet and rt.is_main:
        tqdm.write(text)
        sys.stdout.flush()


def minutes(seconds: float) -> str:
    """Return a duration for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def today() -> str:
    """Return date and time for the name of a run."""
    return time.strftime("%Y%m%d-%H%M%S")


def read_text(path: Path) -> str:
    """Return the content of a text file, nothing where it is absent."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def progress_bar(config: RunConfig, rt: Runtime, total: int, done: int) -> Any:
    """Return the one line of progress; nothing where no terminal shows it."""
    hidden = config.quiet or not rt.is_main or not sys.stderr.isatty()
    return tqdm(total=total, initial=done, disable=hidden, unit="step", dynamic_ncols=True)


def refuse_other_plan(before: Mapping[str, Any], now: Mapping[str, Any], instead: str) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Args:
        before: settings in the checkpoint.
        now: settings of the command.
        instead: what to do for another plan.

    Raises:
        UserError: the sentence names what differs.
    """
    changed = [k for k in now if k not in FREE_ON_RESUME and before.get(k) != now[k]]
    if changed:
        told = ", ".join(f"--{k} was {before.get(k)}, is {now[k]}" for k in changed[:4])
        raise UserError(f"--resume continues the same plan, but {told}; {instead}")


def stop(folder: RunFolder, rt: Runtime, step: int, exit_code: int) -> None:
    """Say how to go on after an interruption, and leave with the signal's exit code."""
    if rt.is_main:
        print(
            f"\nstopped at step {step}; continue with the same command and "
            f"--name {folder.root.name} --resume",
            flush=True,
        )
    raise SystemExit(exit_code if exit_code > 128 else 143)
