"""What a model must beat: four ways to segment without training a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.arrays import Array
from matssl.core.labels import IGNORE
from matssl.data.preprocess import quantise
from matssl.forest import growing, logistic
from matssl.metrics import overlap

# Pixels a training image gives to the pixel classifier, how strongly its weights are held, and the
# steps of its fit.
PIXELS_PER_IMAGE = 4000
PENALTY, STEPS = 2e-4, 200
# Ways to give classes to grey clusters that are all tried.
MOST_MEANINGS = 5**5
# Of the forest: trees, labelled pixels it learns from, pixels of an image that it answers for.
TREES, SAMPLES, ASKED = 50, 10_000, 1 << 17


@dataclass(frozen=True)
class Baseline:
    """A way to segment.

    Attributes:
        name: for tables.
        predict: float plane (H, W) or (H, W, 3) to uint8 class indices (H, W); 255 where it was
            not asked.
    """

    name: str
    predict: Callable[[Array], NDArray[np.uint8]]


def majority(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> Baseline:
    """Return the class with most labelled pixels, everywhere."""
    pixels = sum(
        np.bincount(mask[mask != IGNORE], minlength=num_classes)[:num_classes] for mask in masks
    )
    winner = int(np.argmax(pixels))
    return Baseline("majority class", lambda plane: np.full(plane.shape[:2], winner, np.uint8))


def grey_levels(
    planes: Sequence[Array], masks: Sequence[NDArray[np.uint8]], num_classes: int
) -> Baseline:
    """Return thresholds by Otsu (two classes) or k-means in each image's grey levels.

    The grey clusters of an image are ordered from dark to bright; each place in that order means
    the class with which the mean IoU of the labelled images is best. Several may mean one class, so
    that there it is never below the majority class.
    """
    votes = np.zeros((num_classes, num_classes), np.int64)
    for plane, mask in zip(planes, masks, strict=True):
        clusters = _grey_clusters(plane, num_classes)
        known = mask != IGNORE
        np.add.at(votes, (clusters[known], mask[known]), 1)
    meaning = _best_meaning(votes)
    name = "Otsu threshold" if num_classes == 2 else f"k-means of grey, k = {num_classes}"
    return Baseline(name, lambda plane: meaning[_grey_clusters(plane, num_classes)])


def forest(
    tensor: Callable[[Array], NDArray[np.float32]],
    planes: Sequence[Array],
    masks: Sequence[NDArray[np.uint8]],
    num_classes: int,
    threads: int = 1,
    seed: int = 0,
) -> Baseline:
    """Return a random forest on filters of the picture, what ilastik and Weka users have.

    It is that of ``train_finetune.py --head forest`` with fewer trees and pixels, so that it costs
    seconds, and it answers for ASKED pixels of an image at most, on a grid; 255 elsewhere.

    Args:
        tensor: plane to normalised input (C, H, W).
        planes: labelled images.
        masks: their class indices.
        num_classes: C.
        threads: no influence on the result.
        seed: of the pixels drawn and of the trees.
    """
    grown = growing.grow(
        planes,
        masks,
        num_classes,
        trees=TREES,
        samples=SAMPLES,
        seed=seed,
        jobs=threads,
        tensor=tensor,
    )

    def predict(plane: Array) -> NDArray[np.uint8]:
        answer = np.full(plane.shape[:2], IGNORE, np.uint8)
        step = int(np.ceil(np.sqrt(answer.size / ASKED)))
        grid = np.zeros(answer.shape, bool)
        grid[step // 2 :: step, step // 2 :: step] = True
        features = growing.at(tensor(plane), np.flatnonzero(grid), grown.forest.sigmas)
        found = grown.forest.of_pixels(np.ascontiguousarray(features.T), threads)
        answer[grid] = found.argmax(axis=0)
        return answer

    return Baseline("random forest on filters", predict)


def pixel_classifier(
    maps: Callable[[NDArray[np.float32]], list[NDArray[np.float32]]],
    multiple: int,
    tensor: Callable[[Array], NDArray[np.float32]],
    planes: Sequence[Array],
    masks: Sequence[NDArray[np.uint8]],
    num_classes: int,
    seed: int = 0,
) -> Baseline:
    """Return logistic regression on frozen encoder features at strides 2, 4 and 8.

    Interactive tools fit such a classifier to a few painted pixels. A linear classifier commutes
    with bilinear interpolation, so class scores instead of features are brought to full size.

    Args:
        maps: normalised image (C, H, W) to the encoder's maps, (D, h, w) each.
        multiple: of the sides of the encoder's input.
        tensor: plane to normalised input (C, H, W).
        planes: labelled images.
        masks: their class indices.
        num_classes: C.
        seed: of the pixels drawn.
    """
    rows, labels = [], []
    for number, (plane, mask) in enumerate(zip(planes, masks, strict=True)):
        places = _balanced_places(mask, num_classes, number, seed)
        image = _padded(tensor(plane), multiple)
        y, x = np.divmod(places, mask.shape[1])
        rows.append(_sampled(maps(image), x, y, image.shape[1:]))
        labels.append(mask.ravel()[places].astype(np.int64))
    features, target = np.concatenate(rows).astype(np.float64), np.concatenate(labels)
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    even = np.full(len(target), 1 / len(target))
    scaled = (features - mean) / spread
    found = logistic.solved(scaled, target, even, PENALTY, num_classes, steps=STEPS)
    weight = (found[:-1] / spread[:, None]).astype(np.float32)
    bias = (found[-1] - mean / spread @ found[:-1]).astype(np.float32)

    def predict(plane: Array) -> NDArray[np.uint8]:
        height, width = plane.shape[:2]
        image = _padded(tensor(plane), multiple)
        size = (image.shape[2], image.shape[1])
        scores = np.empty((num_classes, *image.shape[1:]), np.float32)
        scores[:] = bias[:, None, None]
        start = 0
        for level in maps(image):
            part = weight[start : start + len(level)]
            start += len(level)
            small = np.tensordot(part.T, level, axes=1)
            for own, plane_of_class in zip(scores, small, strict=True):
                own += cv2.resize(plane_of_class, size, interpolation=cv2.INTER_LINEAR)
        return scores[:, :height, :width].argmax(axis=0).astype(np.uint8)

    return Baseline("pixel classifier on encoder features", predict)


def _best_meaning(votes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the class of each cluster with which the mean IoU is best, uint8 (K,).

    All ways are tried where they are few; else each cluster in turn, from one class everywhere and
    from the most frequent class of each cluster, until nothing is gained.

    Args:
        votes: labelled pixels by cluster and class, int64 (K, C).
    """
    count, classes = votes.shape

    def score(meaning: Sequence[int]) -> float:
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts.T, np.asarray(meaning), votes)
        return overlap.miou(counts)

    if classes**count <= MOST_MEANINGS:
        best = max(itertools.product(range(classes), repeat=count), key=score)
        return np.array(best, np.uint8)
    starts = [[kind] * count for kind in range(classes)] + [votes.argmax(axis=1).tolist()]
    found = []
    for meaning in starts:
        before = -1.0
        while score(meaning) > before:
            before = score(meaning)
            for place in range(count):
                tried = [[*meaning[:place], k, *meaning[place + 1 :]] for k in range(classes)]
                meaning = max([meaning, *tried], key=score)
        found.append(meaning)
    return np.array(max(found, key=score), np.uint8)


def _grey_clusters(plane: Array, count: int) -> NDArray[np.int64]:
    """Return the grey cluster of each pixel, numbered from dark to bright."""
    gray = plane if plane.ndim == 2 else plane.mean(axis=2)
    levels = cv2.GaussianBlur(quantise(gray), (0, 0), 1.0)
    if count == 2:
        return (levels > cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0]).astype(np.int64)
    histogram = np.bincount(levels.ravel(), minlength=256).astype(float)
    centres = _kmeans_of_histogram(histogram, count)
    edges = (centres[1:] + centres[:-1]) / 2
    return np.searchsorted(edges, levels).astype(np.int64)


def _kmeans_of_histogram(histogram: Array, count: int) -> NDArray[np.float64]:
    """Return sorted k-means centres of grey levels, started at even quantiles."""
    levels = np.arange(len(histogram))
    cumulative = np.cumsum(histogram) / histogram.sum()
    centres = np.searchsorted(cumulative, (np.arange(count) + 0.5) / count).astype(float)
    for _ in range(50):
        nearest = np.abs(levels[:, None] - centres[None]).argmin(axis=1)
        moved = centres.copy()
        for c in range(count):
            weight = histogram * (nearest == c)
            if weight.sum() > 0:
                moved[c] = (weight * levels).sum() / weight.sum()
        if np.allclose(moved, centres):
            break
        centres = np.sort(moved)
    return centres


def _balanced_places(
    mask: NDArray[np.uint8], num_classes: int, number: int, seed: int
) -> NDArray[np.int64]:
    """Return flat places, the same number of each class where there are enough."""
    parts = []
    for index in range(num_classes):
        places = np.flatnonzero(mask == index)
        wanted = min(len(places), PIXELS_PER_IMAGE // num_classes)
        generator = rng.generator(seed, number, index, stream=rng.SUBSETS)
        parts.append(generator.choice(places, wanted, replace=False) if wanted else places[:0])
    return np.concatenate(parts)


def _padded(image: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
    """Return an image (C, H, W) with sides of the multiple, mirrored below and on the right."""
    more = [(0, -side % multiple) for side in image.shape[1:]]
    return np.pad(image, ((0, 0), *more), mode="symmetric")


def _sampled(
    maps: Sequence[NDArray[np.float32]],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    shape: Sequence[int],
) -> NDArray[np.float32]:
    """Return the features at pixels, (N, D): bilinear, the maps' channels side by side.

    Args:
        maps: (D, h, w) each, of one image.
        x: columns of the pixels.
        y: rows.
        shape: height and width of the image, which the maps cover.
    """
    parts = []
    for level in maps:
        corners = []
        for place, length, whole in ((y, level.shape[1], shape[0]), (x, level.shape[2], shape[1])):
            at = np.clip((place + 0.5) * length / whole - 0.5, 0, length - 1)
            low = np.floor(at).astype(np.int64)
            corners.append((low, np.minimum(low + 1, length - 1), (at - low).astype(np.float32)))
        (top, bottom, down), (left, right, across) = corners
        upper = level[:, top, left] * (1 - across) + level[:, top, right] * across
        lower = level[:, bottom, left] * (1 - across) + level[:, bottom, right] * across
        parts.append((upper * (1 - down) + lower * down).T)
    return np.concatenate(parts, axis=1)
