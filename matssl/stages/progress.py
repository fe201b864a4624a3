"""What the training stages share: the clock, the console, the resume check."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from matssl import weights
from matssl.core.config import RunConfig
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_write_bytes
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data.preprocess import Preprocess
from matssl.weights import WeightsReport

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
    # Where the images lie; the checkpoint knows which they are.
    "data_path",
    "labeled_path",
    "probe_path",
    "file_list",
    "list_root",
    "finetune_dataset",
    "splits",
}

# Where no terminal shows the bar, a line tells of the progress this often.
SECONDS_BETWEEN_LINES = 60.0


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
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard")


def tensorboard(wanted: bool, folder: RunFolder, rt: Runtime, step: int = 0) -> Any:
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


def say(config: RunConfig, rt: Runtime, text: str) -> None:
    """Print a line above the progress bar, on one process, unless quiet."""
    if not config.quiet and rt.is_main:
        tqdm.write(text)
        sys.stdout.flush()


def minutes(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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


def start_weights(
    model: nn.Module, source: str | None, encoder: str, record: Preprocess, decoder: bool = True
) -> WeightsReport | None:
    """Fill a model's encoder before training; return None where it starts from random weights.

    Args:
        model: an encoder, or a model that has one.
        source: "imagenet", a file, "none" or None.
        encoder: its name.
        record: how the images of this training are normalised.
        decoder: whether a pretrained decoder is used.

    Raises:
        UserError: see :func:`matssl.weights.load`.
    """
    if source is None or source == "none":
        return None
    # Grey levels stretched image by image have unit variance, which is what ImageNet's networks
    # were given; grey levels left as they are differ from ImageNet's by a known mean and std.
    as_recorded = record.window == "dtype"
    return weights.start(
        model,
        source,
        encoder,
        in_channels=record.channels,
        mean=record.mean if as_recorded else None,
        std=record.std if as_recorded else None,
        decoder=decoder,
    )


def origin(started_from: WeightsReport | None, resumed: bool) -> str:
    """Return in words where the weights come from."""
    if resumed:
        return "weights of the checkpoint"
    return started_from.text() if started_from else "weights random"


def ancestors(started_from: WeightsReport | None) -> list[dict[str, Any]]:
    """Return the chain behind the weights a run starts from."""
    if started_from is None:
        return []
    file = {"weights": started_from.layout, "sha256": started_from.sha256}
    return [*started_from.lineage, file]


def given_folder(output_dir: str, name: str | None) -> Path:
    """Return the folder of the results of a stage that a flag names as a whole.

    Raises:
        UserError: a name is given as well.
    """
    if name:
        raise UserError("--output_dir is the folder of the results itself; leave out --name")
    return Path(output_dir)


def specimens_text(fields: int, images: int, regex: str | None) -> str:
    """Return over what fractions are means, where several images are of one specimen; else ""."""
    if fields == images:
        return ""
    source = "" if regex else ", as the file names have it (--group_regex)"
    return f"  mean over {counted(fields, 'specimen')} of {counted(images, 'image')}{source}\n"


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
        raise UserError(
            f"--resume continues the same plan, but {told}; repeat the flags of command.txt in the "
            f"run folder, or {instead}"
        )


def rewind(folder: RunFolder, step: int) -> list[float]:
    """Bring the logs of a resumed run back to the checkpoint's step; return the losses till then.

    Steps after the checkpoint were lost with the process that took them and come again. What that
    process had half written is removed.

    Args:
        folder: of the run.
        step: of the checkpoint.
    """
    for name in ("steps.csv", "log.csv", "probe.csv"):
        folder.truncate_csv(name, "step", step)
    losses = []
    log = folder.path("metrics.jsonl")
    kept = []
    for line in read_text(log).splitlines(keepends=True):
        # A power cut can leave half a line at the end.
        row = json.loads(line) if line.endswith("}\n") else {"step": step + 1}
        if row["step"] <= step:
            kept.append(line)
            losses.append(float(row["loss"]))
    if folder.writer and log.is_file():
        atomic_write_bytes(log, "".join(kept).encode("utf-8"))
        for rest in folder.root.glob(".*"):
            if rest.is_file():
                rest.unlink()
    return losses


@contextlib.contextmanager
def disk_errors(folder: RunFolder) -> Iterator[None]:
    """Turn a full disk inside the block into a sentence.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full: {folder.root} cannot be written; free some space and run again "
            "with --resume (the previous checkpoint is intact)"
        ) from error


def note_end(folder: RunFolder, step: int, error: BaseException) -> None:
    """Write why a run ended early to status.json, where the disk has room for that.

    Args:
        folder: of the run.
        step: the last one taken.
        error: what ended it; SystemExit and KeyboardInterrupt stand for an interruption.
    """
    stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
    reason = "interrupted" if stopped else f"{type(error).__name__}: {error}"
    cause: BaseException | None = error
    while cause is not None:
        # A failed write keeps its deleted file open, and with it the room on a full disk.
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__
    with contextlib.suppress(OSError, UserError):
        folder.status("stopped" if stopped else "failed", step=step, error=reason)


def stop(folder: RunFolder, rt: Runtime, step: int, exit_code: int) -> None:
    """Say how to go on after an interruption, and leave with the signal's exit code."""
    if rt.is_main:
        print(
            f"\nstopped at step {step}; continue with the same command and "
            f"--name {folder.root.name} --resume",
            flush=True,
        )
    raise SystemExit(exit_code if exit_code > 128 else 143)
