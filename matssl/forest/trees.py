"""Trees of a random forest as plain arrays, and what they say of pixels.

The forest is scikit-learn's when it grows (:mod:`matssl.forest.growing`); what is kept are numbers
alone, and they are read here without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from matssl.forest import filters

LEAF = -1
# Pixels below which the parts of a tree are no longer followed one by one.
FEW = 256


@dataclass(frozen=True)
class Forest:
    """A random forest on the filters of a picture, on other features of its pixels, or on both.

    A node asks whether a feature is at most its threshold, and goes to its first child where it is.

    Attributes:
        roots: node of each tree that is asked first, int32 (T,).
        children: nodes that follow, int32 (N, 2); -1 twice in a leaf.
        feature: that a node asks for, int32 (N,); filters come first.
        threshold: float32 (N,).
        value: share of each class among the training pixels of a node, float32 (N, C).
        sigmas: scales of the filters in pixels; empty where filters take no part.
        channels: of the pictures.
    """

    roots: NDArray[np.int32]
    children: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    value: NDArray[np.float32]
    sigmas: tuple[float, ...]
    channels: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.value.shape[1]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name, for a checkpoint."""
        return {name: getattr(self, name) for name in ARRAYS}

    def of_pixels(self, features: NDArray[np.float32], jobs: int = 1) -> NDArray[np.float32]:
        """Return class probabilities of pixels, the mean over the trees, float32 (C, n).

        Args:
            features: float32 (F, n).
            jobs: threads; no influence on the result.
        """
        value = np.ascontiguousarray(self.value.T)
        # In double precision, so that many trees round no worse than one.
        out = np.zeros((self.num_classes, features.shape[1]), np.float64)
        with ThreadPoolExecutor(jobs) as pool:
            for first in range(0, len(self.roots), jobs):
                some = self.roots[first : first + jobs].tolist()
                for leaves in pool.map(partial(self._leaves, features=features), some):
                    for kind, shares in zip(out, value, strict=True):
                        kind += shares[leaves]
        out /= len(self.roots)
        return out.astype(np.float32)

    def _leaves(self, root: int, features: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the leaf of a tree in which each pixel ends.

        Pixels of a node stay together, in their order, so that the filter they are asked for is
        read from memory in that order. Where a node has few, what is left of the tree is followed
        level by level for all such pixels at once.
        """
        children, feature, threshold = self.children, self.feature, self.threshold
        leaves = np.empty(features.shape[1], np.intp)
        waiting = [(root, np.arange(features.shape[1]))]
        few: list[tuple[int, NDArray[np.intp]]] = []
        while waiting:
            node, pixels = waiting.pop()
            left, right = children[node]
            if left == LEAF:
                leaves[pixels] = node
            elif len(pixels) < FEW:
                few.append((node, pixels))
            else:
                near = features[feature[node]].take(pixels) <= threshold[node]
                waiting.append((int(left), pixels[near]))
                waiting.append((int(right), pixels[~near]))
        if few:
            self._levels(few, features, leaves)
        return leaves

    def _levels(
        self,
        parts: Sequence[tuple[int, NDArray[np.intp]]],
        features: NDArray[np.float32],
        leaves: NDArray[np.intp],
    ) -> None:
        pixels = np.concatenate([part for _, part in parts])
        nodes = np.repeat([node for node, _ in parts], [len(part) for _, part in parts])
        while len(pixels):
            far = features[self.feature[nodes], pixels] > self.threshold[nodes]
            nodes = self.children[nodes, far.view(np.uint8)]
            ended = self.children[nodes, 0] == LEAF
            leaves[pixels[ended]] = nodes[ended]
            pixels, nodes = pixels[~ended], nodes[~ended]


# What a checkpoint holds of a forest.
ARRAYS = ("roots", "children", "feature", "threshold", "value")


def checked(
    arrays: Mapping[str, NDArray[np.generic]],
    sigmas: Sequence[float],
    channels: int,
    classes: int,
    others: int = 0,
) -> Forest:
    """Return the forest that a file holds, where its arrays are one.

    Every node is asked once at most, so that no pixel walks in a circle: children come after
    their parent.

    Args:
        arrays: by the names of ARRAYS.
        sigmas: scales of the filters in pixels.
        channels: of the pictures.
        classes: number of classes.
        others: features beside the filters.

    Raises:
        KeyError: an array is absent.
        ValueError: they are no trees of these features and classes.
    """
    roots, children, feature = (
        np.asarray(arrays[name]).astype(np.int32) for name in ("roots", "children", "feature")
    )
    threshold, value = (np.asarray(arrays[n]).astype(np.float32) for n in ("threshold", "value"))
    scales = checked_sigmas(sigmas, others)
    forest = Forest(roots, children, feature, threshold, value, scales, int(channels))
    count = len(feature)
    if children.shape != (count, 2) or value.shape != (count, classes):
        raise ValueError(f"its arrays are no trees of {classes} classes")
    inner = children[:, 0] != LEAF
    known = filters.count(scales, forest.channels) + others
    sound = (
        threshold.shape == (count,)
        and len(roots) > 0
        and bool(((roots >= 0) & (roots < count)).all())
        and bool((children[inner] > np.flatnonzero(inner)[:, None]).all())
        and bool((children[inner] < count).all())
        and bool(((feature[inner] >= 0) & (feature[inner] < known)).all())
        and bool((np.abs(value.sum(axis=1) - 1) < 1e-3).all())
    )
    if not sound:
        raise ValueError(f"its arrays are no trees of {classes} classes on these features")
    return forest


# Scales that filters may have, in pixels.
LARGEST_SIGMA = 100.0


def checked_sigmas(sigmas: Sequence[float], others: int) -> tuple[float, ...]:
    """Return the scales that a file holds.

    Args:
        sigmas: of the filters in pixels.
        others: features beside the filters; with some there may be no filters.

    Raises:
        ValueError: they are no scales.
    """
    scales = tuple(float(sigma) for sigma in sigmas)
    if not (scales or others) or not all(0 < sigma <= LARGEST_SIGMA for sigma in scales):
        raise ValueError("the scales of its filters are none")
    return scales
