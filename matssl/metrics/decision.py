"""Which class a pixel is said to be: factors of the probabilities, chosen on validation images.

The most likely class makes the fewest pixel errors. Mean IoU weighs classes alike, and a class of
0.3 % of the pixels is rarely the most likely one where it is thin or unsure. Logit adjustment
(Menon et al. 2021, arXiv:2007.07314, section 4.2) multiplies the probability of each class by a
factor before the largest is taken. There the factor is the inverse of the class's share; here it is
the one with the largest mean IoU on validation images, and is kept only where it also pays on
images that it was not chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.metrics import counts as counting
from matssl.metrics import overlap
from matssl.metrics.calibration import Sample

# Logarithms of factors lie between minus and plus this, in so many steps to 1.
LIMIT, STEPS = 3.0, 20
# Times that each class is looked at; a gain below this ends the search.
SWEEPS, ENOUGH = 6, 1e-5
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Factors, and what they are worth.

    Attributes:
        offsets: logarithm of the factor of each class; 0 for all where the most likely class is
            kept.
        before: mean IoU of the most likely class, on the images.
        after: with the offsets, on the same images, which chose them.
        others: with offsets chosen on the other groups, each group's images by theirs; NaN where
            there is one group.
        groups: how many there are.
    """

    offsets: tuple[float, ...]
    before: float
    after: float
    others: float
    groups: int

    @property
    def pays(self) -> bool:
        """Whether offsets gain on images that did not choose them."""
        return bool(self.others > self.before)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {
            "offsets": list(self.offsets),
            "miou_most_likely": self.before,
            "miou_chosen": self.after,
            "miou_chosen_on_other_groups": None if np.isnan(self.others) else self.others,
            "groups": self.groups,
            "taken": self.pays,
        }


def chosen(samples: Sequence[Sample], groups: Sequence[str]) -> Choice:
    """Return the offsets with the largest mean IoU, and what they gain on groups left out.

    Args:
        samples: labelled pixels of each image; one has some.
        groups: specimen of each image.
    """
    classes = len(samples[0].logs)
    names = list(dict.fromkeys(groups))
    plain = [_counts(one, np.zeros(classes)) for one in samples]
    before = float(overlap.miou(np.sum(plain, axis=0)))
    offsets, after = best(samples)
    others = float("nan")
    if len(names) > 1:
        total = np.zeros((classes, classes), np.int64)
        for name in names:
            rest = [one for one, own in zip(samples, groups, strict=True) if own != name]
            found = best(rest)[0]
            for one, own in zip(samples, groups, strict=True):
                if own == name:
                    total += _counts(one, found)
        others = float(overlap.miou(total))
    return Choice(tuple(map(float, offsets)), before, after, others, len(names))


def best(samples: Sequence[Sample]) -> tuple[NDArray[np.float64], float]:
    """Return offsets of the classes with the largest mean IoU that was found, and that.

    One class after the other is given the best offset while the others keep theirs, until nothing
    gains. Of equally good ones the nearest to where it was is taken.

    Args:
        samples: labelled pixels of each image.
    """
    logs = np.concatenate([one.logs for one in samples], axis=1)
    truth = np.concatenate([one.truth for one in samples])
    classes = len(logs)
    offsets = np.zeros(classes)
    value = float(overlap.miou(_confusion(logs, truth)))
    for _ in range(SWEEPS):
        before = value
        for index in range(classes):
            # The class's own probability is no part of what it has to beat.
            shifted = logs + offsets[:, None]
            shifted[index] = -np.inf
            rival = shifted.argmax(axis=0)
            least = shifted.max(axis=0) - logs[index]
            scores = _along(least, rival, truth, index, classes)
            steps = np.arange(len(scores)) / STEPS - LIMIT
            found = float(np.nanmax(scores))
            if found > value + ENOUGH:
                good = np.flatnonzero(scores >= found - ENOUGH / 2)
                offsets[index] = steps[good[np.abs(steps[good] - offsets[index]).argmin()]]
                value = found
        offsets = np.clip(offsets - offsets[0], -LIMIT, LIMIT)
        if value - before < ENOUGH:
            break
    offsets = offsets - offsets.max()
    return offsets, float(overlap.miou(_confusion(logs + offsets[:, None], truth)))


def _along(
    least: NDArray[np.float64],
    rival: NDArray[np.int64],
    truth: NDArray[np.int64],
    index: int,
    classes: int,
) -> NDArray[np.float64]:
    """Return the mean IoU at each step of a class's offset, float64 (steps,).

    Args:
        least: offset above which each pixel is said to be the class.
        rival: what it is said to be below.
        truth: what it is.
        index: the class.
        classes: how many there are.
    """
    count = round(2 * LIMIT * STEPS) + 1
    place = np.floor((least + LIMIT) * STEPS).astype(np.int64) + 1
    place = np.clip(place, 0, count)
    flat = (place * classes + truth) * classes + rival
    cells = np.bincount(flat, minlength=(count + 1) * classes * classes)
    cells = cells.reshape(count + 1, classes, classes)
    # At a step the pixels of all places up to it are the class, the others their rival's.
    taken = np.cumsum(cells, axis=0)[:count]
    tables = cells.sum(axis=0)[None] - taken
    tables[:, :, index] += taken.sum(axis=2)
    right = np.diagonal(tables, axis1=1, axis2=2)
    union = tables.sum(axis=1) + tables.sum(axis=2) - right
    with np.errstate(invalid="ignore"):
        scores = np.where(union > 0, right / np.maximum(union, 1), np.nan)
    return np.asarray(np.nanmean(scores, axis=1), np.float64)


def _counts(one: Sample, offsets: NDArray[np.float64]) -> Counts:
    return _confusion(one.logs + offsets[:, None], one.truth)


def _confusion(logs: NDArray[np.float64], truth: NDArray[np.int64]) -> Counts:
    said = logs.argmax(axis=0).astype(np.uint8)
    return counting.confusion(truth.astype(np.uint8)[None], said[None], len(logs))


def checked(values: Sequence[float], classes: int) -> tuple[float, ...]:
    """Return factors of classes that a file holds; empty where it holds none.

    Raises:
        ValueError: they are none of so many classes.
    """
    found = tuple(float(value) for value in values)
    if found and not (len(found) == classes and all(0 < value <= 1 for value in found)):
        raise ValueError("its factors are none of its classes")
    return found
