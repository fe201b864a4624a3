"""A random forest grown from labelled pixels; scikit-learn does it. Which pixels are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.forest import filters
from matssl.forest.trees import LEAF, Forest

# Trees, labelled pixels that they learn from at most, and pixels in a leaf at least.
TREES, SAMPLES, LEAST = 100, 20_000, 10


@dataclass(frozen=True)
class Grown:
    """A forest, and how it came about.

    Attributes:
        forest: the trees.
        pixels: that it learned from, of each class.
        importance: share of each feature in telling the classes apart, float64 (F,); sum 1.
    """

    forest: Forest
    pixels: tuple[int, ...]
    importance: NDArray[np.float64]


def grow(
    images: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.uint8]],
    num_classes: int,
    *,
    sigmas: Sequence[float] = filters.SIGMAS,
    trees: int = TREES,
    samples: int = SAMPLES,
    least: int = LEAST,
    seed: int = 0,
    jobs: int = 1,
    tensor: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> Grown:
    """Return a random forest (Breiman, Machine Learning 45, 2001) of labelled pixels.

    Every class gives the same number of pixels where it has as many, and of a class every image;
    the rest of the number goes to classes that have more. A few painted strokes suffice. Drawn
    alike, a rare class would be found everywhere, and by its share nowhere: classes weigh as the
    square root of their share of the labels. The same seed grows the same trees, whatever ``jobs``
    is.

    Args:
        images: float32 (channels, H, W) each; with ``tensor`` what it takes.
        masks: uint8 (H, W) each, class indices; 255 is not labelled.
        num_classes: C.
        sigmas: scales of the filters in pixels.
        trees: how many.
        samples: labelled pixels at most, over all images and classes.
        least: training pixels in a leaf.
        seed: of pixels and trees.
        jobs: threads.
        tensor: makes (channels, H, W) of an image when its turn comes.

    Raises:
        ValueError: no pixel is labelled.
    """
    channels = 1

    def features(picture: NDArray[np.float32], flat: NDArray[np.int64]) -> NDArray[np.float32]:
        nonlocal channels
        channels = len(picture)
        return at(picture, flat, sigmas)

    pixels = drawn(images, masks, num_classes, features, samples, seed, tensor)
    return planted(
        pixels, num_classes, sigmas, channels, trees=trees, least=least, seed=seed, jobs=jobs
    )


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels that a classifier learns from.

    Attributes:
        features: float32 (n, F).
        target: class of each, uint8 (n,).
        picture: number of the image each lies in, int64 (n,).
        column: that it lies in, int64 (n,).
        labelled: pixels of each class in all masks, drawn or not, int64 (C,).
    """

    features: NDArray[np.float32]
    target: NDArray[np.uint8]
    picture: NDArray[np.int64]
    column: NDArray[np.int64]
    labelled: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many of each class there are, int64 (C,)."""
        return np.bincount(self.target, minlength=len(self.labelled))[: len(self.labelled)]

    @property
    def weights(self) -> dict[int, float]:
        """What a pixel of each class that was drawn weighs: its class the root of its share."""
        counts = self.counts
        return {
            kind: float(np.sqrt(self.labelled[kind]) / counts[kind])
            for kind in np.flatnonzero(counts).tolist()
        }


def drawn(
    images: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.uint8]],
    num_classes: int,
    features: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]],
    samples: int,
    seed: int,
    tensor: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> Pixels:
    """Return the pixels that are learned from, see :func:`grow`.

    Args:
        images: float32 (channels, H, W) each; with ``tensor`` what it takes.
        masks: uint8 (H, W) each, class indices; 255 is not labelled.
        num_classes: C.
        features: image and flat places in rising order to float32 (n, F).
        samples: labelled pixels at most.
        seed: of the draw.
        tensor: makes (channels, H, W) of an image when its turn comes.

    Raises:
        ValueError: no pixel is labelled.
    """
    places = chosen(masks, num_classes, samples, seed)
    rows, labels, pictures, columns = [], [], [], []
    for number, (image, mask, flat) in enumerate(zip(images, masks, places, strict=True)):
        if not len(flat):
            continue
        rows.append(features(image if tensor is None else tensor(image), flat))
        labels.append(mask.ravel()[flat])
        pictures.append(np.full(len(flat), number))
        columns.append(flat % mask.shape[1])
    if not rows:
        raise ValueError("no pixel is labelled")
    return Pixels(
        np.concatenate(rows),
        np.concatenate(labels),
        np.concatenate(pictures),
        np.concatenate(columns),
        _has(masks, num_classes).sum(axis=0),
    )


def planted(
    pixels: Pixels,
    num_classes: int,
    sigmas: Sequence[float],
    channels: int,
    *,
    trees: int = TREES,
    least: int = LEAST,
    seed: int = 0,
    jobs: int = 1,
) -> Grown:
    """Return the forest of pixels that were drawn, see :func:`grow`.

    Args:
        pixels: from :func:`drawn`.
        num_classes: C.
        sigmas: scales of the filters among their features; empty where there are none.
        channels: of the pictures.
        trees: how many.
        least: training pixels in a leaf.
        seed: of the trees.
        jobs: threads.
    """
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        trees,
        min_samples_leaf=least,
        class_weight=pixels.weights,
        random_state=seed % (1 << 32),
        n_jobs=jobs,
    )
    model.fit(pixels.features, pixels.target)
    forest = _arrays(model, num_classes, tuple(sigmas), channels)
    told = np.asarray(model.feature_importances_, np.float64)
    return Grown(forest, tuple(pixels.counts.tolist()), told)


def chosen(
    masks: Sequence[NDArray[np.uint8]], num_classes: int, samples: int, seed: int
) -> list[NDArray[np.int64]]:
    """Return the pixels of each image that are learned from, flat places in their order.

    Args:
        masks: uint8 (H, W) each, class indices; 255 is not labelled.
        num_classes: C.
        samples: at most, over all images and classes.
        seed: of the draw.
    """
    has = _has(masks, num_classes)
    wanted = np.zeros_like(has)
    by_class = _shared(has.sum(axis=0), samples)
    for kind in range(num_classes):
        wanted[:, kind] = _shared(has[:, kind], int(by_class[kind]))
    found = []
    for number, mask in enumerate(masks):
        parts = [np.zeros(0, np.int64)]
        for kind in np.flatnonzero(wanted[number]).tolist():
            places = np.flatnonzero(mask == kind)
            generator = rng.generator(seed, number, kind, stream=rng.SUBSETS)
            parts.append(generator.choice(places, int(wanted[number, kind]), replace=False))
        found.append(np.sort(np.concatenate(parts)))
    return found


def at(
    image: NDArray[np.float32], places: NDArray[np.int64], sigmas: Sequence[float]
) -> NDArray[np.float32]:
    """Return the filters of some pixels, float32 (n, F), in strips.

    Args:
        image: float32 (C, H, W).
        places: flat, in rising order.
        sigmas: scales in pixels.
    """
    channels, height, width = image.shape
    count = len(filters.names(sigmas, channels))
    out = np.empty((len(places), count), np.float32)
    step = filters.strip(sigmas, channels, width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        first, last = np.searchsorted(places, (top * width, rows.stop * width))
        if last > first:
            flat = filters.filtered(image, rows, sigmas).reshape(count, -1)
            out[first:last] = flat[:, places[first:last] - top * width].T
    return out


def _has(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> NDArray[np.int64]:
    """Return the labelled pixels of each image and class, int64 (n, C)."""
    return np.array([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks])


def _shared(has: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return how many each gives of a total: all alike, those that have fewer all they have."""
    given = np.zeros_like(has)
    while True:
        left = total - int(given.sum())
        open_ = np.flatnonzero(given < has)
        if left <= 0 or not len(open_):
            return given
        each = left // len(open_)
        if not each:
            given[open_[:left]] += 1
            return given
        given[open_] = np.minimum(has[open_], given[open_] + each)


def _arrays(model: object, num_classes: int, sigmas: tuple[float, ...], channels: int) -> Forest:
    """Return the trees of scikit-learn's forest as arrays of our own."""
    roots, children, feature, threshold, value = [], [], [], [], []
    start = 0
    classes = np.asarray(model.classes_, np.int64)  # type: ignore[attr-defined]
    for one in model.estimators_:  # type: ignore[attr-defined]
        tree = one.tree_
        both = np.stack([tree.children_left, tree.children_right], axis=1)
        roots.append(start)
        children.append(np.where(both == LEAF, LEAF, both + start))
        feature.append(np.maximum(tree.feature, 0))
        threshold.append(_floor(tree.threshold))
        shares = tree.value[:, 0, :]
        shares = shares / shares.sum(axis=1, keepdims=True)
        wide = np.zeros((len(shares), num_classes))
        wide[:, classes] = shares
        value.append(wide)
        start += len(both)
    return Forest(
        np.array(roots, np.int32),
        np.concatenate(children).astype(np.int32),
        np.concatenate(feature).astype(np.int32),
        np.concatenate(threshold),
        np.concatenate(value).astype(np.float32),
        sigmas,
        channels,
    )


def _floor(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 that is not above: x <= t is the same for every float32 x."""
    near = threshold.astype(np.float32)
    below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near > threshold, below, near).astype(np.float32)
