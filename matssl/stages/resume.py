"""How a run goes on: the check of its plan, its logs, and what its end leaves behind."""

from __future__ import annotations

import contextlib
import json
import math
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from matssl.core import checkpoint, textfiles
from matssl.core.damage import Damaged, damage_told
from matssl.core.errors import UserError
from matssl.core.run_folder import MARKS, RunFolder, atomic_write_text, read_text
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
    "unlabeled_path",
    "probe_path",
    "file_list",
    "list_root",
    "finetune_dataset",
    "splits",
    "mask_folder",
    "specimens",
    # The checkpoint holds the pipeline itself.
    "augmentation",
    # Who looks after a run, and which of its states are kept.
    "on_collapse",
    "on_bad_image",
    "snapshot_every",
    # Says something before the first step, and changes none.
    "first_answer",
    # It says something of the start and changes nothing.
    "check_start",
}
# What may differ where a run goes on elsewhere: the same plan, but sums are added in another order.
ROUNDING = {"device", "gpu_id", "threads", "compile", "deterministic"}


def load(
    root: Path, stage: str, use: Callable[[dict[str, Any]], None] | None = None
) -> tuple[dict[str, Any], str]:
    """Return the checkpoint that a run goes on from, and a note where it is not the last one.

    Where last.ckpt is torn or garbled, the one before it is taken.

    Args:
        root: folder of the run.
        stage: ssl or finetune.
        use: puts the checkpoint to use; where it cannot, the checkpoint is damaged. A UserError of
            another kind is no damage and goes through.

    Raises:
        Damaged: none of the two can be used.
        UserError: see :func:`matssl.core.checkpoint.load`.
    """

    def used(path: Path) -> dict[str, Any]:
        payload = checkpoint.load(path, stage=stage)
        with damage_told(path):
            _check(payload)
            if use is not None:
                use(payload)
        return payload

    last, previous = root / checkpoint.LAST, root / checkpoint.PREVIOUS
    try:
        if not last.is_file():
            raise Damaged(f"{last} is gone")
        return used(last), ""
    except Damaged as error:
        if not previous.is_file():
            raise
        try:
            payload = used(previous)
        except Damaged as second:
            raise Damaged(f"{error}; nor can the one before it be used: {second}") from second
        return payload, f"{error}; the run goes on from {previous}, step {payload['step']}"


def state_of(root: Path) -> str:
    """Return how far a run that is a part of another is: done, begun or new."""
    try:
        status = textfiles.read_json(root / "status.json")
        done = isinstance(status, Mapping) and status.get("state") == "done"
    except UserError:
        done = False
    if done and (root / "best.ckpt").is_file():
        return "done"
    return "begun" if any((root / name).is_file() for name in MARKS) else "new"


def _check(payload: Mapping[str, Any]) -> None:
    """Refuse the records of a checkpoint that no run has written.

    Raises:
        KeyError, TypeError, ValueError: what a part is not.
    """
    whole_number("step", payload["step"])
    for name in ("state", "optimizer", "recipe", "preprocess"):
        if not isinstance(payload[name], Mapping):
            raise TypeError(f"its {name} is no table")
    absent = {"seed", "encoder", "lr"} - set(payload["recipe"])
    if absent:
        raise ValueError(f"its recipe lacks {', '.join(sorted(absent))}")
    if not isinstance(payload["lineage"], list):
        raise TypeError("its lineage is no list")
    if not isinstance(payload.get("progress", {}), Mapping):
        raise TypeError("its progress is no table")


def whole_number(name: str, value: object, most: float = math.inf) -> int:
    """Return a count of a checkpoint.

    Args:
        name: for messages.
        value: in the checkpoint.
        most: what it can be at most.

    Raises:
        ValueError: it is none, or out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} {str(value)[:40]} is none of this run")
    return value


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], step: int) -> None:
    """Give an optimiser the state of a checkpoint.

    Args:
        optimizer: of the run.
        state: of the checkpoint.
        step: of the checkpoint.

    Raises:
        KeyError, TypeError, ValueError: the state is another optimiser's, or there is none.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    plain = optimizer.defaults.get("momentum") == 0
    if step and not state["state"] and not plain:
        raise ValueError("its optimizer has no state")
    for place, values in state["state"].items():
        for value in values.values():
            other = parameters[place].shape
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != other:
                raise ValueError("its optimizer has the state of other weights")
    optimizer.load_state_dict(state)


def refuse_other_plan(
    before: Mapping[str, object],
    now: Mapping[str, object],
    defaults: Mapping[str, object],
    instead: str,
) -> str:
    """Refuse to resume a run with other settings than it was started with.

    Returns:
        What is to be said where it goes on with another device or another number of threads, ""
        where it does not.

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
    told = ", ".join(f"--{k} was {was[k]}, is {now[k]}" for k in changed if k in ROUNDING)
    changed = [k for k in changed if k not in ROUNDING]
    if changed:
        told = ", ".join(f"--{k} was {was[k]}, is {now[k]}" for k in changed[:4])
        raise UserError(
            f"--resume continues the same plan, but {told}; repeat the flags of command.txt in the "
            f"run folder, or {instead}"
        )
    if not told:
        return ""
    return f"resumed elsewhere ({told}): the same plan, whose numbers may differ by rounding"


def rewind(folder: RunFolder, step: int) -> list[float]:
    """Bring the logs of a resumed run back to the checkpoint's step; return the losses till then.

    Steps after the checkpoint were lost with the process that took them and come again. What that
    process had half written is removed.

    Args:
        folder: of the run.
        step: of the checkpoint.
    """
    for name in ("steps.csv", "log.csv", "probe.csv", "semi.csv"):
        folder.truncate_csv(name, "step", step)
    losses = []
    log = folder.path("metrics.jsonl")
    kept = []
    for line in read_text(log).splitlines(keepends=True):
        row = _row(line)
        if row is not None and row[0] <= step:
            kept.append(line)
            losses.append(row[1])
    if folder.writer and log.is_file():
        atomic_write_text(log, "".join(kept))
        sweep(folder)
    return losses


def sweep(folder: RunFolder) -> None:
    """Remove what a process that was killed had half written."""
    if folder.writer:
        for rest in folder.root.rglob(".*"):
            if rest.is_file():
                rest.unlink()


def _row(line: str) -> tuple[int, float] | None:
    """Return step and loss of a line of metrics.jsonl; None where a power cut left half of it."""
    try:
        row = json.loads(line)
        step, loss = row["step"], row["loss"]
        return (int(step), math.nan if loss is None else float(loss)) if line[-1] == "\n" else None
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


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


def stop(
    folder: RunFolder, rt: Runtime, step: int, exit_code: int, again: str | None = None
) -> None:
    """Say how to go on after an interruption, and leave with the signal's exit code.

    Args:
        folder: of the run.
        rt: one process prints.
        step: the last one taken.
        exit_code: of the signal.
        again: flags that go on with it, where they are not the name of its folder and --resume.
    """
    if rt.is_main:
        print(
            f"\nstopped at step {step}; continue with the same command and "
            f"{again or f'--name {folder.root.name} --resume'}",
            flush=True,
        )
    raise SystemExit(exit_code if exit_code > 128 else 143)
