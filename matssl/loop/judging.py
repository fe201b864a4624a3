"""Whether a new model takes the place of the best: scores by specimen, their difference, the rule.

Both models are scored on the same frozen images. A specimen's score is the mean IoU of the pixels
of its images together, over the classes that it holds or that were predicted there. The gain is the
mean over specimens of the differences; its 95 % interval is Student's t over them
(:func:`matssl.measure.intervals.paired`), from :data:`matssl.measure.intervals.MIN_FIELDS` on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matssl.core.tables import percent
from matssl.core.wording import counted
from matssl.loop.settings import CLEAR
from matssl.measure import intervals, score_intervals
from matssl.measure.held_out import Record
from matssl.metrics import overlap

# A class may lose so much of its IoU where no interval judges.
POINT = 0.01


@dataclass(frozen=True)
class Scores:
    """What a model scores on frozen images.

    Attributes:
        specimens: mean IoU of each, 0 to 1; those without a labelled pixel are left out.
        classes: IoU of each over all pixels; NaN where it is in neither truth nor prediction.
        miou: mean of them.
        ends: 95 % interval of ``miou`` over specimens, None where they are too few.
        images: how many.
    """

    specimens: Mapping[str, float]
    classes: Mapping[str, float]
    miou: float
    ends: tuple[float, float] | None
    images: int

    @staticmethod
    def of(record: Record) -> Scores:
        """Return the scores of an evaluation, from its confusion matrices."""
        sums: dict[str, np.ndarray] = {}
        for one in record.images:
            sums[one.specimen] = sums.get(one.specimen, 0) + one.confusion
        specimens = {name: overlap.miou(counts) for name, counts in sorted(sums.items())}
        total = np.sum(list(sums.values()), axis=0)
        counts = [one.confusion for one in record.images]
        groups = [one.specimen for one in record.images]
        return Scores(
            {name: value for name, value in specimens.items() if not math.isnan(value)},
            dict(zip(record.classes, overlap.iou(total).tolist(), strict=True)),
            overlap.miou(total),
            score_intervals.mean_iou(counts, groups).ends,
            len(record.images),
        )

    def stored(self) -> dict[str, object]:
        """Return plain values for a line."""
        return {
            "miou": self.miou,
            "interval_95": self.ends,
            "classes": dict(self.classes),
            "specimens": dict(self.specimens),
            "images": self.images,
        }

    @staticmethod
    def read(values: Mapping[str, object]) -> Scores:
        """Return the scores of a line, in which NaN is null."""

        def numbers(name: str) -> dict[str, float]:
            held = values[name]
            assert isinstance(held, Mapping)
            return {str(k): math.nan if v is None else float(v) for k, v in held.items()}

        ends = values["interval_95"]
        assert ends is None or isinstance(ends, (list, tuple))
        low_high = None if ends is None else (float(ends[0]), float(ends[1]))
        miou = values["miou"]
        return Scores(
            numbers("specimens"),
            numbers("classes"),
            math.nan if miou is None else float(str(miou)),
            low_high,
            int(str(values["images"])),
        )


@dataclass(frozen=True)
class Verdict:
    """What becomes of a new model.

    Attributes:
        promoted: whether it takes the place of the best.
        unproven: whether it does so without an interval that says so.
        gain: mean difference of the specimens' scores, 0 to 1.
        half_width: of its 95 % interval; NaN where there is none.
        specimens: how many were compared.
        reason: a sentence.
    """

    promoted: bool
    unproven: bool
    gain: float
    half_width: float
    specimens: int
    reason: str

    def stored(self) -> dict[str, object]:
        """Return plain values for a line."""
        low, high = self.gain - self.half_width, self.gain + self.half_width
        return {"gain": self.gain, "low": low, "high": high, "compared": self.specimens}


def verdict(new: Scores, best: Scores, rule: str) -> Verdict:
    """Judge a new model against the best.

    Args:
        new: its scores.
        best: those of the best on the same images.
        rule: clear or rising, see :class:`matssl.loop.settings.LoopSettings`.
    """
    both = [name for name in new.specimens if name in best.specimens]
    first = [best.specimens[name] for name in both]
    second = [new.specimens[name] for name in both]
    if not both:
        return Verdict(False, False, math.nan, math.nan, 0, "no validation image can be scored")
    gain, half = intervals.paired(first, second)
    many = len(both) >= intervals.MIN_FIELDS
    half = half if many else math.nan
    number = counted(len(both), "specimen")
    said = f"mean IoU {_points(gain)} points over {number}"
    if many:
        said += f", 95 % interval {_points(gain - half)} to {_points(gain + half)}"
    if many and gain - half > 0:
        return Verdict(True, False, gain, half, len(both), f"{said}: clearly better")
    if many and rule == CLEAR:
        worse = "clearly worse" if gain + half < 0 else "not clearly better"
        return Verdict(False, False, gain, half, len(both), f"{said}: {worse}")
    fallen = _fallen(new.classes, best.classes)
    if not gain > 0:
        return Verdict(False, False, gain, half, len(both), f"{said}: no gain")
    if fallen:
        name, loss = fallen[0]
        told = f"{said}, but {name} falls by {percent(loss)} points"
        return Verdict(False, False, gain, half, len(both), told)
    few = f"{counted(len(both), 'specimen')} cannot prove it" if not many else "not proven"
    told = f"{said}, and no class falls by more than a point: {few}"
    return Verdict(True, True, gain, half, len(both), told)


def _fallen(new: Mapping[str, float], best: Mapping[str, float]) -> Sequence[tuple[str, float]]:
    """Return the classes that lose more than a point of IoU, the greatest loss first.

    A class that the new model no longer scores in (NaN) was in the prediction alone: no loss.
    """
    losses = [(name, best[name] - value) for name, value in new.items()]
    return sorted(
        ((n, x) for n, x in losses if not math.isnan(x) and x > POINT), key=lambda i: -i[1]
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
