"""BubbleFinder: round bubbles with their radius, touching ones apart.

The intent of unet-compare's algorithm (blobs by the Laplacian of Gaussian and circles by Hough,
pooled by clusters of their centres) without its faults: on masks bubbles are parts taken apart by
the watershed of their distance, with a radius that is no whole number. On grey pictures the pooled
detectors work as they were meant to.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.measure.defects.found import Defects, Floats, Mask, Shape
from matssl.measure.objects import separation, shapes

# What is smaller is no bubble, in pixels of radius.
LEAST_RADIUS = 1.0
# Laplacian of Gaussian: sigmas, threshold on an image from 0 to 1, share of overlap that is one.
SIGMAS, SIGMA_STEPS, THRESHOLD, OVERLAP = (1.0, 9.0), 10, 0.25, 0.9
# Hough: side of the blur, distance of centres, edge level, votes, radii.
BLUR, HOUGH_DISTANCE, HOUGH_EDGE, HOUGH_VOTES, HOUGH_RADII = 5, 1.0, 0.1, 15.0, (1, 17)
# Centres this near in pixels are one bubble.
CLUSTER = 5.0
# Share of a smaller circle within a larger one from which on it is no bubble of its own.
HIDDEN = 0.5


def bubbles(inside: Mask, radii: tuple[float, float] | None = None) -> Defects:
    """Return the bubbles of a mask.

    Touching ones are taken apart (:mod:`matssl.measure.objects.separation`). The radius is that of
    the circle of equal area; of a bubble that touches another one or the border that of the circle
    through its free outline, since its area lacks what the other one covers.

    Args:
        inside: pixels of bubbles (H, W).
        radii: smallest and largest radius that is kept, px; None keeps all from LEAST_RADIUS on.
    """
    known = np.zeros(inside.shape, bool)
    labels = separation.separated(inside, known) if inside.any() else inside.astype(np.int32)
    count = int(labels.max(initial=0))
    parts = cv2.connectedComponents(inside.astype(np.uint8))[0] - 1
    if not count:
        return Defects(np.zeros(0), labels, (), _steps(0, 0, 0, 0))
    found = shapes.measured(labels, count)
    x, y, r = found.x - 0.5, found.y - 0.5, found.diameter / 2
    for number, circle in _fitted(labels, count).items():
        x[number - 1], y[number - 1], r[number - 1] = circle
    low, high = radii or (LEAST_RADIUS, math.inf)
    small = r < max(low, LEAST_RADIUS)
    kept = ~small & (r <= high)
    numbers = np.zeros(count + 1, np.int32)
    numbers[1:][kept] = np.arange(1, int(kept.sum()) + 1)
    circles = tuple(
        Shape(np.array([[a, b]]), float(c))
        for a, b, c in zip(x[kept], y[kept], r[kept], strict=True)
    )
    steps = _steps(parts, count, int(small.sum()), int((r > high).sum()))
    return Defects(2 * r[kept], numbers[labels], circles, steps)


def _steps(parts: int, separated: int, small: int, large: int) -> dict[str, int]:
    steps = {"parts": parts, "after separation": separated, "too small": small}
    steps |= {"too large": large} if large else {}
    return steps | {"kept": separated - small - large}


def _fitted(labels: NDArray[np.int32], count: int) -> dict[int, tuple[float, float, float]]:
    """Return circles (x, y, r) through the free outlines of those that touch others or the border.

    Points lie half-way between a pixel inside and its neighbour outside, where the outline is.
    """
    touching = np.zeros(count + 1, bool)
    points: list[tuple[NDArray[np.int64], Floats, Floats]] = []
    height, width = labels.shape
    rows, columns = np.mgrid[:height, :width]
    for first, second, down, right in (
        (np.s_[:, :-1], np.s_[:, 1:], 0.0, 0.5),
        (np.s_[:-1], np.s_[1:], 0.5, 0.0),
    ):
        a, b = labels[first], labels[second]
        meets = (a != b) & (a > 0) & (b > 0)
        touching[a[meets]] = touching[b[meets]] = True
        free = (a != b) & ((a == 0) | (b == 0))
        owner = np.maximum(a[free], b[free]).astype(np.int64)
        points.append((owner, columns[first][free] + right, rows[first][free] + down))
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[side] = True
    touching[0] = False
    owners, xs, ys = (np.concatenate(part) for part in zip(*points, strict=True))
    order = np.argsort(owners, kind="stable")
    owners, xs, ys = owners[order], xs[order], ys[order]
    found = {}
    for number in np.flatnonzero(touching).tolist():
        begin, end = np.searchsorted(owners, [number, number + 1])
        circle = fit_circle(xs[begin:end], ys[begin:end])
        if circle is not None:
            found[number] = circle
    return found


def fit_circle(x: Floats, y: Floats) -> tuple[float, float, float] | None:
    """Return centre and radius of the least-squares circle through points (Pratt 1987, Taubin).

    Args:
        x: (N,) of the points.
        y: of these.

    Returns:
        None where they are few, or lie on a line: then there is no circle.
    """
    if len(x) < 8:
        return None
    middle_x, middle_y = float(x.mean()), float(y.mean())
    u, v = x - middle_x, y - middle_y
    square = u**2 + v**2
    mean = float(square.mean())
    scaled = (square - mean) / (2 * math.sqrt(mean)) if mean > 0 else square
    # Taubin's method (1991) is free of the bias of the algebraic fit on short arcs.
    matrix = np.column_stack([scaled, u, v])
    weights = np.linalg.svd(matrix, full_matrices=False)[2][-1]
    lead = weights[0] / (2 * math.sqrt(mean)) if mean > 0 else 0.0
    if abs(lead) < 1e-9:
        return None
    centre = -weights[1:] / (2 * lead)
    constant = -mean * lead
    radius = math.sqrt(max(float(centre @ centre) - constant / lead, 0.0))
    if not 0 < radius < 4 * math.sqrt(mean):
        return None
    return middle_x + float(centre[0]), middle_y + float(centre[1]), radius


def detected(grey: Floats, radii: tuple[float, float] | None = None) -> Defects:
    """Return bright round spots of a grey picture: blobs and circles, pooled.

    Args:
        grey: (H, W) from 0 to 1; bubbles are brighter than what lies around them.
        radii: smallest and largest radius that is kept, px.
    """
    blobs = _blobs(grey)
    circles = _hough(grey)
    pooled = _apart(_pooled(np.concatenate([blobs, circles])))
    low, high = radii or (LEAST_RADIUS, math.inf)
    kept = pooled[(pooled[:, 2] >= max(low, LEAST_RADIUS)) & (pooled[:, 2] <= high)]
    circles_ = [Shape(np.array([[x, y]]), float(r)) for x, y, r in kept]
    labels = np.zeros(grey.shape, np.int32)
    # The largest come first, so that a smaller one that overlaps has pixels of its own.
    for number, shape in enumerate(circles_, 1):
        canvas = np.zeros(grey.shape, np.uint8)
        shape.fill(canvas, 1)
        labels[canvas > 0] = number
    there = np.bincount(labels.ravel(), minlength=len(kept) + 1)[1:] > 0
    numbers = np.concatenate([[0], np.where(there, np.cumsum(there), 0)]).astype(np.int32)
    own = tuple(shape for shape, seen in zip(circles_, there, strict=True) if seen)
    steps = {"blobs": len(blobs), "circles": len(circles), "pooled": len(pooled)}
    return Defects(2 * kept[there, 2], numbers[labels], own, steps | {"kept": len(own)})


def _blobs(grey: Floats) -> Floats:
    """Return blobs (N, 3) as x, y, r by the Laplacian of Gaussian (Lindeberg 1998)."""
    from skimage.feature import blob_log

    found = blob_log(
        grey,
        min_sigma=SIGMAS[0],
        max_sigma=SIGMAS[1],
        num_sigma=SIGMA_STEPS,
        threshold=THRESHOLD,
        overlap=OVERLAP,
    )
    return np.column_stack([found[:, 1], found[:, 0], found[:, 2] * math.sqrt(2)])


def _hough(grey: Floats) -> Floats:
    """Return circles (N, 3) as x, y, r by Hough's transform."""
    blurred = cv2.GaussianBlur(np.rint(255 * grey).astype(np.uint8), (BLUR, BLUR), 0)
    # What is fainter is no bubble for the blobs either.
    blurred[blurred < THRESHOLD * 255] = 0
    found = cv2.HoughCircles(
        blurred,
        cv2.HOUGH_GRADIENT,
        1,
        HOUGH_DISTANCE,
        param1=HOUGH_EDGE,
        param2=HOUGH_VOTES,
        minRadius=HOUGH_RADII[0],
        maxRadius=HOUGH_RADII[1],
    )
    return (
        np.zeros((0, 3))
        if found is None
        else found.reshape(-1, found.shape[-1])[:, :3].astype(float)
    )


def _pooled(found: Floats) -> Floats:
    """Return one circle a cluster of centres, its mean; circles of their own are kept (DBSCAN)."""
    if not len(found):
        return found.reshape(0, 3)
    from sklearn.cluster import DBSCAN

    own = DBSCAN(eps=CLUSTER, min_samples=2).fit(found[:, :2]).labels_
    means = [found[own == number].mean(axis=0) for number in range(own.max() + 1)]
    return np.array([*means, *found[own == -1]]).reshape(-1, 3)


def _apart(circles: Floats) -> Floats:
    """Return circles without those that lie for the most part in a larger one."""
    kept: list[Floats] = []
    for circle in circles[np.argsort(-circles[:, 2], kind="stable")]:
        area = math.pi * circle[2] ** 2
        if all(_lens(circle, other) < HIDDEN * area for other in kept):
            kept.append(circle)
    return np.array(kept).reshape(-1, 3)


def _lens(first: Floats, second: Floats) -> float:
    """Return the area that two circles (x, y, r) share."""
    (a, b), gap = sorted((first[2], second[2])), math.hypot(*(first[:2] - second[:2]))
    if gap >= a + b:
        return 0.0
    if gap <= b - a:
        return float(math.pi * a**2)
    one = math.acos((gap**2 + a**2 - b**2) / (2 * gap * a))
    two = math.acos((gap**2 + b**2 - a**2) / (2 * gap * b))
    return float(a**2 * (one - math.sin(2 * one) / 2) + b**2 * (two - math.sin(2 * two) / 2))
