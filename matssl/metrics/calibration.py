"""Whether probabilities mean what they say, and the one number that mends them.

A model is calibrated where, of all pixels to which it gives 80 %, 80 % are right. Temperature
scaling (Guo, Pleiss, Sun and Weinberger, ICML 2017, arXiv 1706.04599, equation 9) divides the
logits by one number. The order of the classes stays, and with it every mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, strips
from matssl.core.labels import IGNORE

# Bins of equal width between 0 and 1, as published.
BINS = 15
# Temperatures lie between these: images without an error would ask for 0.
LOWEST, HIGHEST = 0.1, 10.0
# Pixels that a temperature is fitted to, spread evenly over the images; more change its third
# digit at most.
MOST_PIXELS = 400_000
# Rows worked on at once: a strip of all classes stays small.
ROWS = 256
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Reliability:
    """How often pixels are right that are said to be right with a probability.

    Attributes:
        pixels: of each bin of the probability of the chosen class, int64 (BINS,).
        right: how many of them are right, int64 (BINS,).
        confidence: sum of their probabilities, float64 (BINS,).
    """

    pixels: NDArray[np.int64]
    right: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def __add__(self, other: Reliability) -> Reliability:
        """Return both together."""
        return Reliability(
            self.pixels + other.pixels,
            self.right + other.right,
            self.confidence + other.confidence,
        )

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1; NaN without pixels.

        The mean over pixels of how far the share of right ones of a bin lies from its mean
        probability (Guo et al., equation 3).
        """
        total = int(self.pixels.sum())
        return float(np.abs(self.right - self.confidence).sum() / total) if total else math.nan

    @property
    def excess(self) -> float:
        """Mean probability minus share of right pixels; above 0 the model is too sure."""
        total = int(self.pixels.sum())
        return float((self.confidence.sum() - self.right.sum()) / total) if total else math.nan

    @property
    def points(self) -> NDArray[np.float64]:
        """Mean probability, share of right pixels and share of all pixels of each bin, (n, 3).

        Bins without pixels are left out.
        """
        held = self.pixels > 0
        count = self.pixels[held]
        columns = (self.confidence[held] / count, self.right[held] / count, count / count.sum())
        return np.stack(columns, axis=1)

    def rows(self) -> list[dict[str, float]]:
        """Return a row for each bin that has pixels: its ends, pixels, probability and share."""
        edges = np.linspace(0, 1, BINS + 1)
        return [
            {
                "from": float(edges[i]),
                "to": float(edges[i + 1]),
                "pixels": int(self.pixels[i]),
                "mean_probability": float(self.confidence[i] / self.pixels[i]),
                "share_right": float(self.right[i] / self.pixels[i]),
            }
            for i in np.flatnonzero(self.pixels)
        ]


def reliability(probabilities: Array, truth: NDArray[np.uint8]) -> Reliability:
    """Return how sure and how right a prediction is, pixel by pixel, in BINS bins.

    Args:
        probabilities: (C, H, W), sum 1 over the classes.
        truth: class indices, uint8 (H, W); 255 counts for nothing.
    """
    pixels, right = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    confidence = np.zeros(BINS)
    for rows in strips(len(truth), ROWS):
        known = truth[rows] != IGNORE
        part = probabilities[:, rows]
        sure = part.max(axis=0)[known].astype(np.float64)
        hit = (part.argmax(axis=0) == truth[rows])[known]
        # An end of 1 belongs to the last bin.
        bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
        pixels += np.bincount(bins, minlength=BINS)
        right += np.bincount(bins[hit], minlength=BINS)
        confidence += np.bincount(bins, sure, BINS)
    return Reliability(pixels, right, confidence)


def before_and_after(
    probabilities: Array, truth: NDArray[np.uint8], temperature: float
) -> tuple[Reliability, Reliability]:
    """Return the reliability of probabilities before they were tempered, and as they are now.

    Args:
        probabilities: (C, H, W), tempered.
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        temperature: that tempered them.
    """
    after = reliability(probabilities, truth)
    if temperature == 1:
        return after, after
    before = []
    for rows in strips(len(truth), ROWS):
        part = np.array(probabilities[:, rows])
        temper(part, 1 / temperature)
        before.append(reliability(part, truth[rows]))
    return sum(before[1:], before[0]), after


def together(parts: Sequence[Reliability]) -> Reliability | None:
    """Return the pixels of several images in one; None without any."""
    if not parts:
        return None
    return sum(parts[1:], parts[0])


def temper(probabilities: Array, temperature: float) -> None:
    """Change probabilities to those of the logits divided by a temperature, in place.

    The softmax of z / T is p^(1/T) over its sum, so that nothing but probabilities is needed, and
    what was tempered is undone by 1 / T.

    Args:
        probabilities: float32 (C, H, W), sum 1 over the classes; may be memory-mapped.
        temperature: above 0; 1 changes nothing.
    """
    if temperature == 1:
        return
    for rows in strips(probabilities.shape[1], ROWS):
        probabilities[:, rows] = _tempered(_logs(probabilities[:, rows]), 1 / temperature)


def _logs(probabilities: Array) -> NDArray[np.float32]:
    """Return logarithms; of a probability too small for its type that of the smallest one."""
    return np.log(np.maximum(probabilities, TINY), dtype=np.float32)


def _tempered(logs: Array, inverse: float) -> Array:
    """Return the softmax over the first axis of logarithms times the inverse of a temperature."""
    scaled = logs * logs.dtype.type(inverse)
    scaled -= scaled.max(axis=0, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=0, keepdims=True)
    return scaled


class Sample(NamedTuple):
    """Pixels of one image, to fit a temperature to.

    Attributes:
        logs: logarithms of the probabilities, float64 (C, N).
        truth: class of each, int64 (N,).
    """

    logs: NDArray[np.float64]
    truth: NDArray[np.int64]


def thinned(masks: Sequence[NDArray[np.uint8]]) -> int:
    """Return of how many labelled pixels of all images one is taken, so that they are not too many.

    Args:
        masks: class indices or 255.
    """
    labelled = sum(int(np.count_nonzero(mask != IGNORE)) for mask in masks)
    return max(1, -(-labelled // MOST_PIXELS))


def sample(probabilities: Array, truth: NDArray[np.uint8], every: int) -> Sample:
    """Return every so-many-th labelled pixel of an image.

    Args:
        probabilities: (C, H, W), sum 1 over the classes.
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        every: 1 takes them all.
    """
    places = np.flatnonzero(truth.ravel() != IGNORE)[::every]
    rows, columns = np.divmod(places, truth.shape[1])
    logs = _logs(probabilities[:, rows, columns]).astype(np.float64)
    return Sample(logs, truth[rows, columns].astype(np.int64))


def fitted(samples: Sequence[Sample]) -> float:
    """Return the temperature at which true classes are most likely; 1 without pixels.

    The mean logarithm of the true class's probability is concave in the inverse of the
    temperature: its slope is the mean logarithm of the true class minus the one expected, and
    falls. Newton's steps find its root, halved intervals catch a step that leaves them.

    Args:
        samples: of all images.
    """
    if not sum(len(one.truth) for one in samples):
        return 1.0
    logs = np.concatenate([one.logs for one in samples], axis=1)
    truth = np.concatenate([one.truth for one in samples])
    true = float(logs[truth, np.arange(len(truth))].mean())

    def slope(inverse: float) -> tuple[float, float]:
        weights = _tempered(logs, inverse)
        mean = (weights * logs).sum(axis=0)
        square = (weights * logs**2).sum(axis=0)
        return true - float(mean.mean()), float((square - mean**2).mean())

    return 1 / _root(slope, 1 / HIGHEST, 1 / LOWEST)


def _root(slope: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Return where a falling function of (value, minus its derivative) is 0, or the nearer end."""
    here = 1.0
    for _ in range(60):
        value, fall = slope(here)
        low, high = (here, high) if value > 0 else (low, here)
        following = here + value / fall if fall > 0 else math.inf
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - here) < 1e-7 * here:
            return following
        here = following
    return here


def checked(value: object) -> float:
    """Return a temperature.

    Raises:
        ValueError: it is none, or none that is fitted here.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("its temperature is no number")
    if not LOWEST / 2 <= value <= HIGHEST * 2:
        raise ValueError(f"its temperature {value:.3g} is none")
    return float(value)
