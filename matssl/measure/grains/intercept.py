"""Boundary hits of test lines: Heyn's lines in several directions, and the rose they make (E112).

A hit is a change of grain along the line. Drawn boundary pixels were shared out to grains before,
so that no line slips through a thin boundary between two pixels, as a line at 45° does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Steps (rows down, columns right) from pixel to pixel along a line, by its direction in degrees
# counter-clockwise from x, y up.
HEYN: dict[float, tuple[int, int]] = {0.0: (0, 1), 45.0: (-1, 1), 90.0: (-1, 0), 135.0: (-1, -1)}
# Between them for the rose; all lines go through centres of pixels.
ROSE: dict[float, tuple[int, int]] = {
    math.degrees(math.atan2(-down, right)): (down, right)
    for down, right in (
        *((0, 1), (-1, 2), (-1, 1), (-2, 1)),
        *((-1, 0), (-2, -1), (-1, -1), (-1, -2)),
    )
}


@dataclass(frozen=True)
class Hits:
    """Boundary intersections of test lines; sums of them are those of several lines.

    Attributes:
        changes: of grain from one step to the next.
        touches: where the line was in the other grain for one step alone and came back: a tangent
            counts 1 and not 2.
        short: intercepts of one step between two other grains. Shorter ones are missed where both
            ends lie between two steps: as many as half of those that are one step long.
        length: of the lines, in pixels, from the first step to the last.
    """

    changes: int = 0
    touches: int = 0
    short: int = 0
    length: float = 0.0

    def __add__(self, other: Hits) -> Hits:
        return Hits(
            self.changes + other.changes,
            self.touches + other.touches,
            self.short + other.short,
            self.length + other.length,
        )

    @property
    def count(self) -> float:
        """P: intersections."""
        return self.changes - self.touches + self.short / 2

    @property
    def per_length(self) -> float:
        """P_L in 1/px; NaN without a line."""
        return self.count / self.length if self.length else math.nan

    @property
    def intercept(self) -> float:
        """Mean lineal intercept in pixels; NaN where nothing was hit."""
        return self.length / self.count if self.count else math.nan


def along(labels: NDArray[np.int32], step: tuple[int, int], spacing: int = 1) -> Hits:
    """Return the hits of parallel lines over a field.

    Args:
        labels: number of each pixel's grain from 1 on, 0 where it counts nowhere, (H, W).
        step: rows down and columns right from a pixel to the next on the line, as in ``ROSE``.
        spacing: distance of the lines in pixels; 1 takes every line through centres of pixels.
    """
    down, right = step
    if down < 0:
        # From below upwards is the same line.
        down, right = -down, -right
    if right < 0:
        labels, right = labels[:, ::-1], -right
    height, width = labels.shape
    once = labels[: max(0, height - down), : max(0, width - right)]
    next_ = labels[down:, right:]
    own = _chosen(once.shape, down, right, spacing)
    counted = (once > 0) & (next_ > 0) & own
    changes = int(((once != next_) & counted).sum())
    length = float(counted.sum()) * math.hypot(down, right)
    first = labels[: max(0, height - 2 * down), : max(0, width - 2 * right)]
    middle = labels[down : max(down, height - down), right : max(right, width - right)]
    last = labels[2 * down :, 2 * right :]
    alone = (first > 0) & (middle > 0) & (last > 0) & (first != middle) & (middle != last)
    alone &= own[: alone.shape[0], : alone.shape[1]]
    touches = int((alone & (first == last)).sum())
    return Hits(changes, touches, int(alone.sum()) - touches, length)


def _chosen(shape: tuple[int, ...], down: int, right: int, spacing: int) -> NDArray[np.bool_]:
    """Return the pixels on lines that are so far apart, of those from one step to the next."""
    apart = max(1, round(spacing * math.hypot(down, right)))
    y, x = np.ogrid[: shape[0], : shape[1]]
    number = x * down - y * right
    return np.asarray(np.broadcast_to((number - apart // 2) % apart == 0, shape))


def pieces(labels: NDArray[np.int32], degrees: float) -> tuple[int, float]:
    """Return number and total length in pixels of the intercepts on every line of a direction.

    They are read off one by one: each runs from boundary to boundary, the first and the last of a
    line from its first and to its last pixel. Their sum must be the length of the lines.

    Args:
        labels: as in :func:`along`.
        degrees: a direction of ``HEYN``.
    """
    step = HEYN[degrees]
    if not labels.size:
        return 0, 0.0
    lines = labels
    if step == (-1, 0):
        lines = labels.T
    elif step != (0, 1):
        lines = _diagonals(labels if step == (-1, 1) else labels[:, ::-1])
    flat = np.pad(lines, ((0, 0), (0, 1))).ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    sizes = np.diff(np.append(starts, len(flat))).astype(float)
    grains = flat[starts]
    inside = grains > 0
    before = np.concatenate([[0], grains[:-1]]) > 0
    after = np.concatenate([grains[1:], [0]]) > 0
    # A piece at the end of a line lacks half a step there.
    sizes -= 0.5 * ~before + 0.5 * ~after
    return int(inside.sum()), float(sizes[inside].sum()) * math.hypot(*step)


def _diagonals(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the lines of 45°, one a row, with 0 where a line is not in the field."""
    height, width = labels.shape
    wide = np.pad(labels, ((0, 0), (0, height)))
    return wide.ravel()[: height * (width + height - 1)].reshape(height, width + height - 1).T


@dataclass(frozen=True)
class Rose:
    """The mean intercepts of all directions as an ellipse.

    Attributes:
        anisotropy: intercept along the long axis over that across; 1 where there is no direction,
            None where it is too long to be told.
        degrees: of the long axis, counter-clockwise from x, y up, 0 to 180; None without one.
        along: mean intercept in its direction, px.
        across: at right angles to it.
    """

    anisotropy: float | None
    degrees: float | None
    along: float | None
    across: float | None


def rose(per_length: Mapping[float, float]) -> Rose:
    """Return the axes of the rose of intercepts.

    Grains that are isotropic but for a stretch have P_L² = a + b·cos 2(θ − φ): the intercepts
    1/P_L make an ellipse in polar coordinates. It is fitted to all directions by least squares, so
    that grains at 30° show their true axis, and not what 0° and 90° see of it.

    Args:
        per_length: boundary hits per length by direction in degrees, at least three.
    """
    turns = np.radians(2 * np.array(list(per_length)))
    squares = np.array(list(per_length.values())) ** 2
    if not np.isfinite(squares).all() or not squares.any():
        return Rose(None, None, None, None)
    terms = np.stack([np.ones_like(turns), np.cos(turns), np.sin(turns)], axis=1)
    mean, cosine, sine = np.linalg.lstsq(terms, squares, rcond=None)[0].tolist()
    swing = math.hypot(cosine, sine)
    across = 1 / math.sqrt(mean + swing)
    if swing <= 1e-9 * mean:
        return Rose(1.0, None, across, across)
    # Fewest hits along the long axis.
    degrees = math.degrees(math.atan2(-sine, -cosine)) / 2 % 180
    if swing >= mean:
        return Rose(None, degrees, None, across)
    along_ = 1 / math.sqrt(mean - swing)
    return Rose(along_ / across, degrees, along_, across)
