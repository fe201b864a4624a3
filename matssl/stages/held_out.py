"""The classifier's error in area fractions: where held-out truth lies, and words about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.core.tables import percent
from matssl.core.wording import counted
from matssl.measure import held_out
from matssl.measure.classifier import MIN_HELD_OUT, Corrected, Correction
from matssl.measure.held_out import Record

MISSING = (
    "The classifier's own error is not in these intervals: no held-out truth is known. "
    "train_finetune.py --folds makes it, and matssl.tools.measure takes it with --folds_from."
)
UNLABELLED = (
    "The error of the map itself is not in these intervals: without labels nothing tells it."
)


def in_run(run: Path) -> Path | None:
    """Return the file of held-out truth in a run folder, or in the folder of folds above one."""
    for place in (run / held_out.FILE, run.parent / held_out.FILE):
        if place.is_file():
            return place
    return None


def of_flag(run: str, names: Sequence[str]) -> Record:
    """Return the held-out truth that ``--folds_from`` names.

    Args:
        run: run folder of ``train_finetune.py --folds`` or of ``eval_model.py``.
        names: of the classes that are measured.

    Raises:
        UserError: there is none, or it is of other classes.
    """
    place = in_run(Path(run))
    if place is None:
        raise UserError(
            f"--folds_from {run} has no {held_out.FILE}; give a run of train_finetune.py --folds, "
            "or of eval_model.py on labelled images"
        )
    return held_out.read(place).ordered(names)


def beside_model(model: Path, names: Sequence[str]) -> Record | None:
    """Return the held-out truth beside a checkpoint; None where there is none of these classes."""
    place = in_run(model.parent)
    if place is None:
        return None
    found = held_out.read(place)
    return found.ordered(names) if sorted(found.classes) == sorted(names) else None


def stored(found: Correction) -> dict[str, object]:
    """Return a correction as plain values."""
    return {
        "mean": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "half_width_sampling": found.sampling,
        "half_width_classifier": found.classifier,
        "half_width": found.interval.half_width,
        "scale": found.interval.scale,
        "method": found.method,
        "outside": found.outside,
        "differs": found.off,
        "held_out_specimens": found.specimens,
        "held_out_images": found.images,
        "misfit_raw": found.misfit[0],
        "misfit_error_rates": found.misfit[1],
        "misfit_straight_line": found.misfit[2],
    }


def ends_text(entry: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Return a share in per cent with both ends of its interval, "" where there is none.

    Where nothing is known of the spread of the fields, what the model alone may be off by follows.

    Args:
        entry: plain values with "mean", "low" and "high"; of a corrected share with
            "half_width_classifier", too.
        digits: behind the point.
    """
    if entry is None:
        return ""
    mean = percent(entry["mean"], digits=digits)
    if math.isnan(entry["low"]):
        model = entry.get("half_width_classifier", math.nan)
        if math.isnan(model):
            return mean
        return f"{mean} (the model alone ± {percent(model, digits=digits)})"
    low, high = (percent(entry[name], digits=digits) for name in ("low", "high"))
    return f"{mean} ({low} to {high})"


def told(record: Record, found: Sequence[Corrected], names: Sequence[str]) -> list[str]:
    """Return what was corrected from what, and what to doubt in it, a sentence each.

    Args:
        record: the held-out truth.
        found: of every specimen, and of the mean over them.
        names: of the classes.
    """
    images, specimens = len(record.images), len(record.specimens)
    if specimens < MIN_HELD_OUT:
        return [
            f"The classifier's own error is not in these intervals: {record.source} holds "
            f"{counted(specimens, 'specimen')}, and {MIN_HELD_OUT} are needed to know it."
        ]
    corrected = any(one is not None for own in found for one in own.classes)
    known = f"{counted(images, 'held-out image')} of {counted(specimens, 'specimen')}"
    begun = "Corrected for the" if corrected else "Nothing is corrected for the"
    lines = [f"{begun} classifier's error known from {known} ({record.source})."]
    lines += [f"Doubt in the held-out truth: {doubt}." for doubt in record.doubts]
    if any(one.renormalised for one in found):
        lines.append("Each class was corrected against the rest, then divided by the sum of all.")
    for kind, name in enumerate(names):
        refused = next((one.refusals[kind] for one in found if one.refusals[kind]), "")
        own = [c for one in found if (c := one.classes[kind]) is not None]
        lines += _of_class(name, own, refused)
    return lines


def _of_class(name: str, own: Sequence[Correction], refused: str) -> list[str]:
    """Return what is to be said of the corrections of one class."""
    if refused:
        return [f"{name} is not corrected: {refused}."]
    if not own:
        return []
    raw, rated, lined = own[0].misfit
    ways = {"as predicted": raw, "by error rates": rated, "by a straight line": lined}
    off = ", ".join(f"{100 * v:.2f} {way}" for way, v in ways.items() if not math.isnan(v))
    methods = ", ".join(sorted({one.method for one in own}))
    lines = [
        f"{name}: corrected by {methods}; held-out specimens, each estimated from the others, are "
        f"off by (root mean square, per cent points) {off}."
    ]
    if own[0].left_out:
        few = counted(own[0].left_out, "held-out image")
        lines.append(f"{name}: {few} with nothing but it, or nothing of it, left out.")
    if outside := sum(one.outside for one in own):
        lines.append(
            f"Warning: {name}: {outside} of {len(own)} predicted fractions lie outside those of "
            "the held-out specimens; there no straight line is taken, errors by area and errors "
            "at borders cannot be told apart, and the interval covers both."
        )
    if biased := sum(one.off for one in own):
        lines.append(
            f"Warning: {name}: {biased} of {len(own)} predicted fractions lie outside the interval "
            "of the corrected one: the model's bias is larger than all that is uncertain."
        )
    return lines
