"""How a run goes on: the check of its plan, its logs, and what its end leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import traceback
from collections.abc import Iterator, Mapping

from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_write_bytes, read_text
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
    # Where the images lie; the checkpoint knows which they are.
    "data_path",
    "labeled_path",
    "probe_path",
    "file_list",
    "list_root",
    "finetune_dataset",
    "splits",
    "mask_folder",
}


def refuse_other_plan(
    before: Mapping[str, object],
    now: Mapping[str, object],
    defaults: Mapping[str, object],
    instead: str,
) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Args:
        before: settings in the checkpoint. One that is younger than the checkpoint had no effect
            then, which is what its default means.
        now: settings of the command.
        defaults: of all settings.
        instead: what to do for another plan.

    Raises:
        UserError: the sentence names what differs.
    """
    was = {k: before.get(k, defaults[k]) for k in now}
    changed = [k for k in now if k not in FREE_ON_RESUME and was[k] != now[k]]
    if changed:
        told = ", ".join(f"--{k} was {was[k]}, is {now[k]}" for k in changed[:4])
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
