"""Cracks: how many, how long along their skeleton, how wide.

A crack is a connected part (8-connected); one that turns a corner or forks is one. Its length is
that of the smoothed middle line: steps of 1 and of the square root of 2 along the pixels of a
skeleton are up to 8 % too long.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import geometry
from matssl.measure.field import Field

# Gaussian along the middle line that takes the steps of the pixels out of it, in pixels.
SMOOTH = 2.0
# A branch is one that reaches this many pixels, or half of the half width, beyond the outline that
# its fork would have without it.
BEYOND, SHARE = 3.0, 0.5
# Gaussians end here; beyond it they add nothing.
REACH = 4
Mask = NDArray[np.bool_]
Pixel = tuple[int, int]
_AROUND = [(-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]


@dataclass(frozen=True)
class Crack:
    """A crack; lengths in pixels.

    Attributes:
        area: its pixels.
        length: of its middle line, all branches together; it ends half a width before the tips.
        width: mean, area over length; NaN for a speck without a length.
        widest: largest width along the middle line.
        x: of the centre of mass.
        y: of it.
        angle: of the line between its two farthest points, degrees counter-clockwise from x.
        tips: free ends of the middle line.
        edge: whether it touches the edge of the field, so that a part of it may be missing.
        paths: smoothed middle lines, each (N, 2) as x, y.
    """

    area: int
    length: float
    width: float
    widest: float
    x: float
    y: float
    angle: float
    tips: int
    edge: bool
    paths: tuple[NDArray[np.float64], ...]


def find_cracks(mask: Mask, shortest: float = 0.0) -> tuple[list[tuple[Crack, Pixel]], int]:
    """Return the cracks of a mask, and how many shorter parts were left out.

    Args:
        mask: pixels of the class (H, W).
        shortest: length below which a part is no crack, px.

    Returns:
        Each crack with one of its pixels (row, column).
    """
    from skimage.morphology import skeletonize

    count, labels, facts, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    height, width = mask.shape
    found, dropped = [], 0
    for number in range(1, count):
        left, top, wide, high, area = (int(v) for v in facts[number])
        inner = (slice(top, top + high), slice(left, left + wide))
        part, depth = _without_pits(np.pad(labels[inner] == number, 1))
        lines, tips = middle_lines(np.asarray(skeletonize(part)), depth)
        # Padding moved all by one.
        paths = tuple(line + np.array([left - 1, top - 1]) for line in lines)
        length = sum(length_of(path) for path in paths)
        if length < shortest:
            dropped += 1
            continue
        edge = left == 0 or top == 0 or left + wide == width or top + high == height
        deepest = float(depth.max())
        row, column = np.argwhere(labels[inner] == number)[0]
        x, y = (float(v) for v in centres[number])
        crack = Crack(
            area,
            length,
            area / length if length else math.nan,
            2 * deepest - 1,
            x,
            y,
            _angle(paths),
            tips,
            edge,
            paths,
        )
        found.append((crack, (int(row) + top, int(column) + left)))
    return found, dropped


def _without_pits(part: Mask) -> tuple[Mask, NDArray[np.float32]]:
    """Return a part without holes smaller than the square of its width, and its depth.

    A pixel that is missing in a crack is no second branch around it.
    """
    depth = _depth(part)
    count, around, facts, _ = cv2.connectedComponentsWithStats(
        (~part).astype(np.uint8), connectivity=4
    )
    small = facts[:, cv2.CC_STAT_AREA] <= max(1.0, 2 * float(depth.max()) - 1) ** 2
    # Number 0 is the part; what holds the corner lies outside.
    small[0] = small[around[0, 0]] = False
    if not small.any():
        return part, depth
    whole = part | small[around]
    return whole, _depth(whole)


def _depth(part: Mask) -> NDArray[np.float32]:
    """Return the distance of each pixel to the outside."""
    return geometry.distances(part)


def length_of(path: NDArray[np.float64]) -> float:
    """Return the length of a path (N, 2), px."""
    return float(np.hypot(*np.diff(path, axis=0).T).sum()) if len(path) > 1 else 0.0


def middle_lines(
    skeleton: Mask, depth: NDArray[np.float32]
) -> tuple[list[NDArray[np.float64]], int]:
    """Return the branches of a skeleton as smoothed lines, and how many free ends they have.

    Branches from a fork to a free end that hardly reach beyond the outline there are corners and
    bumps of it, and left out.

    Args:
        skeleton: one pixel wide, with a margin of one pixel (H, W).
        depth: distance of each pixel to the outside.

    Returns:
        Lines (N, 2) as x, y.
    """
    around = _neighbours(skeleton)
    while True:
        branches = _branches(around)
        spurs = [
            branch
            for branch in branches
            if len(around[branch[0]]) == 1 != len(around[branch[-1]]) and _is_spur(branch, depth)
        ]
        spurs += [
            branch[::-1]
            for branch in branches
            if len(around[branch[-1]]) == 1 != len(around[branch[0]])
            and _is_spur(branch[::-1], depth)
        ]
        forks = {branch[-1] for branch in spurs}
        if not spurs or len(branches) - len(spurs) < 1:
            break
        # One at a fork and time: the last two are its continuation, not corners.
        taken = [min((b for b in spurs if b[-1] == fork), key=len) for fork in forks]
        for branch in taken:
            _cut_off(around, branch)
    tips = sum(len(own) == 1 for own in around.values())
    return [smoothed(np.array(branch)[:, ::-1].astype(float)) for branch in _branches(around)], tips


def _is_spur(branch: Sequence[Pixel], depth: NDArray[np.float32]) -> bool:
    """Return whether a branch from a free end to a fork is a corner or a bump of the outline."""
    tip, fork = float(depth[branch[0]]), float(depth[branch[-1]])
    return len(branch) - 1 + tip - fork <= max(BEYOND, SHARE * fork)


def smoothed(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a path (N, 2) with the steps of its pixels smoothed out; its ends stay in place."""
    if len(path) < 3:
        return path
    closed = bool((path[0] == path[-1]).all())
    places = np.arange(-REACH * int(SMOOTH), REACH * int(SMOOTH) + 1)
    weights = np.exp(-0.5 * (places / SMOOTH) ** 2)
    weights /= weights.sum()
    reach = len(places) // 2
    if closed:
        ring = path[:-1]
        wide = ring[np.arange(-reach, len(ring) + reach) % len(ring)]
    else:
        # Turned about its ends, so that the line goes on straight beyond them.
        most = min(reach, len(path) - 1)
        head, tail = 2 * path[0] - path[most:0:-1], 2 * path[-1] - path[-2 : -most - 2 : -1]
        wide = np.concatenate([head, path, tail])
        short = reach - most
        wide = np.pad(wide, ((short, short), (0, 0)), "edge")
    result = np.column_stack([np.convolve(column, weights, "valid") for column in wide.T])
    if closed:
        return np.concatenate([result, result[:1]])
    result[0], result[-1] = path[0], path[-1]
    return result


def per_length(count: int, length: float, size: float | None) -> dict[str, float]:
    """Return how many cracks there are per length of a layer, by the head of its column.

    Args:
        count: cracks.
        length: of the layer, px.
        size: nm of a pixel; None counts per 1000 px.
    """
    if size is None:
        return {"cracks per 1000 px of layer": 1000 * count / length}
    return {"cracks per mm of layer": count / (length * size * 1e-6)}


def per_area(
    cracks: Sequence[tuple[float, float | None]], fields: Sequence[Field]
) -> dict[str, float]:
    """Return the length of cracks per area that counts, by the head of its column.

    Args:
        cracks: length in px and nm of a pixel of each.
        fields: those they were looked for on.
    """
    pixels = [int(field.areas.sum()) for field in fields]
    if not sum(pixels):
        return {}
    if any(field.pixel_size is None for field in fields):
        return {"crack length per area (px/Mpx)": 1e6 * sum(v for v, _ in cracks) / sum(pixels)}
    area = sum(
        n * ((field.pixel_size or 0) * 1e-6) ** 2 for n, field in zip(pixels, fields, strict=True)
    )
    length = sum(v * (size or 0) * 1e-6 for v, size in cracks)
    return {"crack length per area (mm/mm²)": length / area}


def _neighbours(skeleton: Mask) -> dict[Pixel, list[Pixel]]:
    """Return which pixels each one is joined with: diagonally where no third one joins them."""
    pixels = {(int(r), int(c)) for r, c in np.argwhere(skeleton)}
    around: dict[Pixel, list[Pixel]] = {}
    for row, column in pixels:
        own = []
        for down, right in _AROUND:
            other = (row + down, column + right)
            if other not in pixels:
                continue
            corner = down and right
            if corner and ((row + down, column) in pixels or (row, column + right) in pixels):
                continue
            own.append(other)
        around[row, column] = own
    return around


def _branches(around: Mapping[Pixel, Sequence[Pixel]]) -> list[list[Pixel]]:
    """Return the runs of pixels between free ends and forks; a ring ends where it begins."""
    nodes = [pixel for pixel, own in around.items() if len(own) != 2]
    seen: set[tuple[Pixel, Pixel]] = set()
    found = []
    for node in nodes:
        if not around[node]:
            found.append([node])
        for first in around[node]:
            if (node, first) in seen:
                continue
            branch = [node, first]
            while len(around[branch[-1]]) == 2:
                one, two = around[branch[-1]]
                branch.append(two if one == branch[-2] else one)
            seen |= {(branch[0], branch[1]), (branch[-1], branch[-2])}
            found.append(branch)
    left = set(around) - {pixel for branch in found for pixel in branch}
    while left:
        ring = deque([min(left)])
        while True:
            following = [p for p in around[ring[-1]] if p in left and p not in ring]
            if not following:
                break
            ring.append(following[0])
        left -= set(ring)
        found.append([*ring, ring[0]])
    return found


def _cut_off(around: dict[Pixel, list[Pixel]], branch: Sequence[Pixel]) -> None:
    """Take a branch out, all but the fork at its end."""
    for pixel in branch[:-1]:
        around.pop(pixel, None)
    if branch[-1] in around:
        around[branch[-1]] = [p for p in around[branch[-1]] if p != branch[-2]]


def _angle(paths: Sequence[NDArray[np.float64]]) -> float:
    """Return the direction of the two points of lines that are farthest apart, degrees."""
    points = np.concatenate(paths).astype(np.float32)
    if len(points) > 2:
        points = cv2.convexHull(points).reshape(-1, 2)
    gaps = points[:, None] - points[None]
    first, second = np.unravel_index(np.argmax((gaps**2).sum(axis=2)), gaps.shape[:2])
    right, down = points[second] - points[first]
    if right == down == 0:
        return math.nan
    angle = (math.degrees(math.atan2(-down, right)) + 90) % 180 - 90
    return 90.0 if angle == -90 else angle
