"""What a stage says while it runs: lines, the progress bar, the clock, TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

from matssl.core.errors import UserError
from matssl.core.machine import Machine
from matssl.core.run_folder import RunFolder
from matssl.core.wording import counted

# Where no terminal shows the bar, a line tells of the progress this often.
SECONDS_BETWEEN_LINES = 60.0
# After so many steps their speed is known well enough to say how long the others take.
STEPS_TO_ESTIMATE = 3


class Quiet(Protocol):
    """Settings that say whether only the result is printed."""

    @property
    def quiet(self) -> bool:
        """Whether only the result is printed."""


class Clock:
    """Time spent waiting for data and computing, since the last restart."""

    def __init__(self, views_per_step: int) -> None:
        self.views_per_step = views_per_step
        self.steps = 0
        self.wait = self.busy = 0.0
        self.mark = self.last_line = time.perf_counter()

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

    def text(self) -> str:
        """Return speed and waiting in words."""
        return f"{self.speed:.0f} views/s, wait {100 * self.wait_share:.0f} %"

    def line_due(self) -> bool:
        """Return whether it is time for a plain line of progress; counts from the last yes."""
        if self.mark - self.last_line < SECONDS_BETWEEN_LINES:
            return False
        self.last_line = self.mark
        return True

    def _add(self, kind: str) -> None:
        now = time.perf_counter()
        setattr(self, kind, getattr(self, kind) + now - self.mark)
        self.mark = now


class Bar(Protocol):
    """A line of progress; a context that closes it."""

    @property
    def disable(self) -> bool | None:
        """Whether it is hidden."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> object:
        """Close the line."""

    def update(self) -> object:
        """Note that a step is done."""

    def set_postfix_str(self, s: str, refresh: bool = True) -> object:
        """Show a text behind the bar."""


class Writer(Protocol):
    """Takes the numbers of a run; a context that closes it."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> object:
        """Write what is left."""

    def add_scalar(self, name: str, value: float, step: int, /) -> object:
        """Take a number."""


class NoWriter(contextlib.AbstractContextManager["NoWriter"]):
    """Stands for the TensorBoard writer where none is wanted."""

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Forget the number."""


def check_tensorboard(wanted: bool) -> None:
    """Refuse ``--tensorboard`` where the package is missing, before anything is written.

    Raises:
        UserError: it is missing.
    """
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: pip install matssl[track]")


def tensorboard(wanted: bool, folder: RunFolder, rt: Machine, step: int = 0) -> Writer:
    """Return a writer of TensorBoard events, or one that forgets; a context that closes it.

    Args:
        wanted: the flag.
        folder: events go to its ``tensorboard`` folder.
        rt: one process writes.
        step: events after it, of a run that was killed, are hidden.
    """
    if not wanted or not rt.is_main:
        return NoWriter()
    check_tensorboard(wanted)
    from torch.utils.tensorboard import SummaryWriter

    events = str(folder.root / "tensorboard")
    return SummaryWriter(events, purge_step=step + 1)


def say(settings: Quiet, rt: Machine, text: str) -> None:
    """Print a line above the progress bar, on one process, unless quiet."""
    if not settings.quiet and rt.is_main:
        tqdm.write(text)
        sys.stdout.flush()


def minutes(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_bar(settings: Quiet, rt: Machine, total: int, done: int) -> Bar:
    """Return the one line of progress; nothing where no terminal shows it."""
    hidden = settings.quiet or not rt.is_main or not sys.stderr.isatty()
    return tqdm(total=total, initial=done, disable=hidden, unit="step", dynamic_ncols=True)


def specimens_text(fields: int, images: int, source: str) -> str:
    """Return over what fractions are means, where several images are of one specimen; else ""."""
    if fields == images:
        return ""
    source = f", {source}" if source else ""
    return f"  mean over {counted(fields, 'specimen')} of {counted(images, 'image')}{source}\n"
