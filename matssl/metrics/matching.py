"""Objects of a prediction against those of the truth: which was found, how many, of what size.

Objects are the 8-connected parts of a class. Two are the same where their intersection over union
is at least one half; pairs are taken greedily, the best first, each object once. Panoptic quality:
Kirillov et al., "Panoptic segmentation", CVPR 2019, eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import strips
from matssl.core.labels import IGNORE
from matssl.core.matching import greedy

# Parts of fewer pixels are no objects: crumbs of a border, single pixels.
LEAST_PIXELS = 5


@dataclass(frozen=True)
class Matched:
    """The objects of one class in one field; sizes in pixels.

    Attributes:
        true: pixels of each true object, int64 (n,).
        predicted: pixels of each predicted object, int64 (m,).
        pairs: true and predicted object of each match, int64 (k, 2).
        ious: of the matches, float64 (k,).
        true_whole: whether a true object touches no edge of the field, bool (n,).
        predicted_whole: the same of the predicted ones, bool (m,).
        dropped: true and predicted parts that were too small for objects.
        overlap: pixels of the class in both, and in at least one of them.
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    pairs: NDArray[np.int64]
    ious: NDArray[np.float64]
    true_whole: NDArray[np.bool_]
    predicted_whole: NDArray[np.bool_]
    dropped: tuple[int, int]
    overlap: tuple[int, int]


def match(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], kind: int, least: int = LEAST_PIXELS
) -> Matched:
    """Return the objects of a class in a field, and which of them are the same.

    Ignored pixels of the truth are left out of the prediction too.

    Args:
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        prediction: class indices, same shape.
        kind: the class.
        least: pixels of an object at least.
    """
    own = (truth == kind).view(np.uint8)
    guess = ((prediction == kind) & (truth != IGNORE)).view(np.uint8)
    both = int(np.count_nonzero(own & guess))
    overlap = (both, int(np.count_nonzero(own)) + int(np.count_nonzero(guess)) - both)
    true_labels, true, true_whole, true_crumbs = parts(own, least)
    labels, predicted, whole, crumbs = parts(guess, least)
    pairs, ious = greedy(true_labels, labels, true, predicted)
    return Matched(true, predicted, pairs, ious, true_whole, whole, (true_crumbs, crumbs), overlap)


def parts(
    own: NDArray[np.uint8], least: int = LEAST_PIXELS
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_], int]:
    """Return the 8-connected parts of a mask that are objects.

    Args:
        own: 1 inside, uint8 (H, W).
        least: pixels of an object at least.

    Returns:
        The object of each pixel from 1 on, int32 (H, W); of each object its pixels and whether it
        touches no edge of the field; how many parts were too small.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(own, connectivity=8)
    stats = stats[1:]
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    kept = areas >= least
    if not kept.all():
        number = np.zeros(count, np.int32)
        number[1:][kept] = np.arange(1, int(kept.sum()) + 1)
        for rows in strips(len(labels)):
            labels[rows] = number[labels[rows]]
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    height, width = own.shape
    whole = (left > 0) & (top > 0) & (right < width) & (bottom < height)
    return labels, areas[kept], whole[kept], int((~kept).sum())


def scores(fields: Sequence[Matched]) -> dict[str, float]:
    """Return what the objects of one class come to over several fields.

    ``precision``, ``recall``, ``f1`` and ``pq`` (panoptic quality) lie between 0 and 1. A number
    is NaN where it does not exist: precision without predicted objects, recall without true ones,
    F1 and PQ without either. Two empty fields are therefore no failure, and no success.
    """
    true = sum(len(one.true) for one in fields)
    predicted = sum(len(one.predicted) for one in fields)
    found = sum(len(one.pairs) for one in fields)
    # Sorted, so that the sum is the same in every order of the fields.
    total = float(np.sort(np.concatenate([np.zeros(0), *(one.ious for one in fields)])).sum())
    half = (true + predicted) / 2
    return {
        "true": true,
        "predicted": predicted,
        "matched": found,
        "precision": _ratio(found, predicted),
        "recall": _ratio(found, true),
        "f1": _ratio(found, half),
        "pq": _ratio(total, half),
        "mean_iou_of_matches": _ratio(total, found),
        "count_error": _ratio(predicted - true, true),
        "dropped_true": sum(one.dropped[0] for one in fields),
        "dropped_predicted": sum(one.dropped[1] for one in fields),
    }


def diameters(pixels: NDArray[np.int64], pixel_area: float = 1.0) -> NDArray[np.float64]:
    """Return the diameters of circles of the same area, 2 sqrt(A / pi).

    Args:
        pixels: of each object.
        pixel_area: of one pixel; 1 gives pixels.
    """
    result: NDArray[np.float64] = 2 * np.sqrt(pixels * pixel_area / np.pi)
    return result


def sizes(fields: Sequence[Matched], pixel_areas: Sequence[float]) -> dict[str, float]:
    """Return how the sizes of predicted objects differ from those of true ones.

    Objects that touch an edge of the field are cut and left out on both sides. ``ks`` is the
    largest distance between the two cumulative distributions (Kolmogorov and Smirnov);
    ``matched_size_error`` the mean difference of the two diameters of a match, over their mean.

    Args:
        fields: of one class.
        pixel_areas: area of a pixel of each field, in the unit wanted, squared.
    """
    pairs = list(zip(fields, pixel_areas, strict=True))
    none = [np.zeros(0)]
    true = np.concatenate(none + [diameters(one.true[one.true_whole], a) for one, a in pairs])
    predicted = np.concatenate(
        none + [diameters(one.predicted[one.predicted_whole], a) for one, a in pairs]
    )
    off, base = [np.zeros(0)], [np.zeros(0)]
    for one, area in pairs:
        first, second = one.pairs.T
        both = one.true_whole[first] & one.predicted_whole[second]
        own = diameters(one.true[first[both]], area)
        off.append(diameters(one.predicted[second[both]], area) - own)
        base.append(own)
    truth, guess = _mean(true), _mean(predicted)
    return {
        "true_whole": len(true),
        "predicted_whole": len(predicted),
        "true_mean_diameter": truth,
        "predicted_mean_diameter": guess,
        "size_error": (guess - truth) / truth if len(true) else float("nan"),
        "ks": ks_distance(true, predicted),
        "matched_size_error": _mean(np.concatenate(off)) / _mean(np.concatenate(base)),
    }


def ks_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the largest distance between two empirical distributions; NaN where one is empty."""
    if not len(first) or not len(second):
        return float("nan")
    at = np.concatenate([first, second])
    one, other = (
        np.searchsorted(np.sort(values), at, side="right") / len(values)
        for values in (first, second)
    )
    return float(np.abs(one - other).max())


def union_iou(fields: Sequence[Matched]) -> tuple[float, int]:
    """Return unet-compare's "IOU mean" and in how many fields it is undefined.

    It is the mean over fields of the class as a whole: pixels in both over pixels in at least one.
    Fields where neither has any are undefined and left out (there they spoil the mean).
    """
    defined = [one.overlap[0] / one.overlap[1] for one in fields if one.overlap[1]]
    return _mean(np.sort(np.array(defined))), len(fields) - len(defined)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
