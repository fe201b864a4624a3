"""How little a model knows: of pixels from class probabilities, and of regions from pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, roomy, strips

Map = NDArray[np.float32]
# Share of the pixels of a region, the most uncertain ones, that stand for it: few unsure places of
# a large picture are what an annotator would mend.
TOP = 0.1
# Where several passes are kept at once, their sum of entropies is exact to this.
TINY = 1e-12


def entropy(probabilities: Array) -> Array:
    """Return -sum p ln p over the classes in nats, (...) of (C, ...); Shannon 1948."""
    p = np.asarray(probabilities)
    p = p if p.dtype.kind == "f" else p.astype(np.float64)
    # 0 ln 0 is 0.
    return -(p * np.log(np.maximum(p, TINY))).sum(axis=0)


def relative_entropy(probabilities: Array) -> Array:
    """Return the entropy over that of equal classes, ln C: 0 to 1 for any number of classes."""
    return entropy(probabilities) / math.log(max(2, len(probabilities)))


def margin(probabilities: Array) -> Array:
    """Return 1 - (p1 - p2) of the two likeliest classes, 0 to 1 (Scheffer et al. 2001)."""
    two = np.partition(np.asarray(probabilities), -2, axis=0)[-2:]
    return 1 - (two[1] - two[0])


def least_confidence(probabilities: Array) -> Array:
    """Return 1 - p1 of the likeliest class, 0 to 1 - 1/C (Lewis and Gale 1994)."""
    return 1 - np.asarray(probabilities).max(axis=0)


class Disagreement:
    """BALD of passes that come one by one, so that no more than two are in memory.

    H(mean p) - mean H(p), the mutual information of class and model (Houlsby et al. 2011,
    arXiv:1112.5745; with dropout Gal et al. 2017, arXiv:1703.02910): what passes disagree about. 0
    where all of them say the same, however unsure.
    """

    def __init__(self) -> None:
        self.count, self.weight = 0, 0.0
        self.total: Array | None = None
        self.within: Array | None = None

    def add(self, probabilities: Array, share: float = 1.0) -> None:
        """Take one more pass.

        Args:
            probabilities: of the classes, (C, H, W).
            share: in the means, beside those of the other passes.
        """
        if self.total is None or self.within is None:
            self.total = np.zeros(probabilities.shape, np.float32)
            self.within = np.zeros(probabilities.shape[1:], np.float32)
        for rows in strips(probabilities.shape[1]):
            part = probabilities[:, rows]
            self.total[:, rows] += part if share == 1 else share * part
            self.within[rows] += share * entropy(part)
        self.count += 1
        self.weight += share

    def map(self) -> Map:
        """Return their disagreement in nats, float32 (H, W).

        Raises:
            ValueError: fewer than two passes.
        """
        if self.count < 2 or self.total is None or self.within is None:
            raise ValueError("BALD needs two passes or more")
        found = roomy(self.within.shape, np.float32)
        for rows in strips(len(found)):
            mean = self.total[:, rows] / self.weight
            found[rows] = np.maximum(entropy(mean) - self.within[rows] / self.weight, 0)
        return found


def band(classes: NDArray[np.uint8], reach: int) -> NDArray[np.bool_]:
    """Return where another class lies within ``reach`` pixels (of a square), bool (H, W).

    Dilation minus erosion of every class, the background among them.

    Args:
        classes: uint8 (H, W), all of them predicted.
        reach: pixels, 1 or more.
    """
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    # Beyond the picture there is no other class.
    return cv2.dilate(classes, square) != cv2.erode(classes, square)


def top_mean(values: Array, share: float = TOP) -> float:
    """Return the mean of the largest values of an array, of a tenth of them where nothing is said.

    Args:
        values: any shape, not empty.
        share: of them, above 0 to 1; at least one counts.
    """
    flat = np.asarray(values).ravel()
    count = max(1, round(share * flat.size))
    if count == flat.size:
        return float(flat.mean(dtype=np.float64))
    return float(np.partition(flat, flat.size - count)[-count:].mean(dtype=np.float64))


def band_mean(values: Array, inside: NDArray[np.bool_]) -> float:
    """Return the mean of values where classes meet; of all of them where none meet.

    A picture of one predicted class is judged by the whole of it: that no boundary is predicted
    does not make it sure.

    Args:
        values: (h, w).
        inside: of the band, bool (h, w).
    """
    chosen = values[inside] if inside.any() else values
    return float(np.mean(chosen, dtype=np.float64))


def maps(probabilities: Array) -> dict[str, Map]:
    """Return relative entropy, margin and least confidence of every pixel, float32 (H, W) each.

    Args:
        probabilities: (C, H, W).
    """
    shape = probabilities.shape[1:]
    measures = {
        "entropy": relative_entropy,
        "margin": margin,
        "least_confidence": least_confidence,
    }
    found = {name: roomy(shape, np.float32) for name in measures}
    for rows in strips(shape[0]):
        for name, measure in measures.items():
            found[name][rows] = measure(probabilities[:, rows])
    return found


def class_entropy(probabilities: Array, entropies: Array) -> NDArray[np.float64]:
    """Return mean over the pixels of p_c H, float64 (C,): how much unsure area each class may have.

    Soft, so that a class that is nowhere the likeliest still has a score: a model of few labels
    never predicts a rare class.

    Args:
        probabilities: (C, h, w).
        entropies: (h, w), relative.
    """
    return np.array(
        [float(np.mean(plane * entropies, dtype=np.float64)) for plane in probabilities]
    )
