"""Soft masks: values in heaps around the classes, as JPEG, resizing or a soft brush leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.data import readers
from matssl.data.masks import edges
from matssl.data.masks.survey import Survey, Total
from matssl.data.masks.table import MOST_CLASSES, SNAP_DISTANCE, plain
from matssl.data.masks.values import COLOR, channels

# So many values are kept as classes, if they are drawn as such.
FEW_VALUES = 8
# A value of a soft edge or of noise is hardly ever surrounded by its like.
HARDLY = 0.02
# A rarer one is a stray, unless it is drawn.
STRAY = 5e-4
# So near to one that is twenty times as frequent, a value is its noise.
NOISE = 8
# A heap holds at least this share of what is flat; at least this share of a mask is drawn in one
# value, which is never so in a picture, and of each heap of what is flat.
HEAP = 1e-3
DRAWN = 0.3
DRAWN_OF_A_HEAP = 0.2
# Of three and more classes: share of pixels, and of the pixels of a class, that look like the soft
# edge of two others; share of pixels that lie between heaps.
MOST_EDGES = 3e-3
MOST_OF_A_CLASS = 0.03
MOST_BETWEEN = 0.05
# So far from a mixture of two colours another one is a third; share of the pixels that may be such.
OFF_LINE = 150
MOST_OFF_LINE = 5e-4
# Of two classes: share of the pixels, and of those between the heaps, that are no edge but peaks.
MOST_PEAKS = 5e-4
MOST_OF_EDGES = 0.2


@dataclass(frozen=True)
class Heaps:
    """Values around which all others lie.

    Attributes:
        levels: the most frequent value of each heap, ascending.
        strays: other values.
        share: of the pixels whose value is more than ``NOISE`` from all levels, 0 to 1.
        unclear: values far from every heap that are drawn nevertheless.
        clear: whether this is a mask at all.
    """

    levels: tuple[int, ...]
    strays: tuple[int, ...]
    share: float
    unclear: tuple[int, ...] = ()
    clear: bool = True


def doubtful(total: Total) -> NDArray[np.bool_]:
    """Return which values are no classes by the way they are drawn, bool (N,)."""
    values, sizes = total.values, total.sizes
    hardly = total.drawn < HARDLY * sizes
    edge = total.between >= 0.5 * sizes
    rare = sizes < STRAY * total.pixels
    points = channels(values)
    noise = np.zeros(len(values), bool)
    for place in np.flatnonzero(hardly & ~edge & ~rare).tolist():
        near = np.abs(points - points[place]).max(axis=1) <= NOISE
        noise[place] = bool((sizes[near] >= 20 * sizes[place]).any())
    return np.asarray(hardly & (edge | rare | noise))


def is_soft(total: Total) -> bool:
    """Return whether some values of grey masks, or of masks of colours, are no classes."""
    found = doubtful(total)
    lit = total.values[-1] if len(total.values) else 0
    if lit < MOST_CLASSES:
        # Class numbers: a crack may be thin and rare, but most classes are drawn.
        edge = (total.drawn < HARDLY * total.sizes) & (total.between >= 0.5 * total.sizes)
        return len(edge) > FEW_VALUES and 2 * int(edge.sum()) > len(edge)
    return bool(found.any()) and line_between(total) is None


def line_between(total: Total) -> int | None:
    """Return the one value that is drawn in thin lines between others; None where none is.

    It may be a class of its own, as a grain boundary is, or a soft edge.
    """
    found = np.flatnonzero(doubtful(total))
    if len(found) != 1 or len(total.values) > FEW_VALUES:
        return None
    place = int(found[0])
    frequent = total.sizes[place] >= STRAY * total.pixels
    edge = total.between[place] >= 0.5 * total.sizes[place]
    return int(total.values[place]) if frequent and edge else None


def heaps(total: Total) -> Heaps:
    """Return the heaps in which the values of masks lie."""
    values, flat = total.values, total.flat
    points = channels(values)
    levels: list[int] = []
    members: list[int] = []
    drawn: list[int] = []
    for place in np.argsort(-flat, kind="stable").tolist():
        if flat[place] == 0:
            break
        near = [_far(points[place], points[level]) <= SNAP_DISTANCE for level in levels]
        if any(near):
            members[near.index(True)] += int(flat[place])
            drawn[near.index(True)] += int(total.drawn[place])
        else:
            levels.append(place)
            members.append(int(flat[place]))
            drawn.append(int(total.drawn[place]))
    whole = int(flat.sum())
    kept = [level for level, mass in zip(levels, members, strict=True) if mass >= HEAP * whole]
    if not kept:
        return Heaps((), (), 0.0, clear=False)
    pictured = [
        mass >= HEAP * whole and own < DRAWN_OF_A_HEAP * mass and not _is_end(points[level])
        for level, mass, own in zip(levels, members, drawn, strict=True)
    ]
    distances = np.abs(points[:, None] - points[kept][None]).max(axis=2).min(axis=1)
    odd = distances > SNAP_DISTANCE
    unclear = values[odd & (total.drawn > 0)]
    if points.shape[1] > 1 and len(kept) > 1:
        lost = odd & _off_lines(points, points[kept])
        if total.sizes[lost].sum() > MOST_OFF_LINE * total.pixels:
            unclear = values[lost]
    found = tuple(sorted(_end(int(values[place]), values) for place in kept))
    strays = ~np.isin(values, found)
    if points.shape[1] == 1 and len(kept) == 2 and _has_peaks(total, found):
        middle = _middle(total.values, found)
        unclear = values[middle & (total.between < total.sizes)]
    return Heaps(
        found,
        tuple(values[strays].tolist()),
        float(total.sizes[distances > NOISE].sum() / max(1, total.pixels)),
        tuple(unclear.tolist()),
        bool(
            len(kept) >= 2
            and (not any(pictured) or not odd.any())
            and total.drawn.sum() >= DRAWN * total.pixels
        ),
    )


def edges_are_few(
    surveys: Sequence[Survey],
    decode: Callable[[Array], NDArray[np.uint8]],
    num_classes: int,
    kind: str,
) -> bool:
    """Return whether hardly a pixel of a class is in truth the soft edge of two others.

    Args:
        surveys: of the masks, which are read again.
        decode: gives class indices of the raw values of one.
        num_classes: how many there are.
        kind: "index" where classes follow each other on the grey scale, "color" where not.
    """
    thin = np.zeros(num_classes, np.int64)
    sizes = np.zeros(num_classes, np.int64)
    for one in surveys:
        if len(one.values) > 2:
            raw = readers.read_mask(one.path)
            classes = decode(raw)
            firm = edges.drawn_as(plain(raw))[1]
            thin += edges.sandwiched(classes, firm, num_classes, kind == "index")
            sizes += np.bincount(classes.ravel(), minlength=256)[:num_classes]
    if thin.sum() > MOST_EDGES * sizes.sum():
        return False
    return bool((thin <= MOST_OF_A_CLASS * sizes).all())


def between_levels(total: Total, levels: Sequence[int]) -> float:
    """Return the share of pixels whose value is nearer to the middle of two levels than to one."""
    middle = _middle(total.values, levels)
    return float(total.sizes[middle].sum() / max(1, total.pixels))


def _middle(values: Array, levels: Sequence[int]) -> NDArray[np.bool_]:
    """Return which values are nearer to the middle of two levels than to one, bool (N,)."""
    points, known = channels(values), channels(np.array(levels, np.int64))
    distances = np.sort(np.abs(points[:, None] - known[None]).max(axis=2), axis=1)
    return np.asarray(3 * distances[:, 0] > distances[:, 1])


def _has_peaks(total: Total, levels: Sequence[int]) -> bool:
    """Whether values between two levels are drawn as specks of their own and not as edges."""
    middle = _middle(total.values, levels)
    edges_ = int(total.sizes[middle].sum())
    peaks = edges_ - int(total.between[middle].sum())
    return peaks > MOST_PEAKS * total.pixels and peaks > MOST_OF_EDGES * edges_


def _end(level: int, values: Array) -> int:
    """Return black, white or a pure colour where a heap lies at an end of the scale."""
    point = channels(np.array([level]))[0]
    if len(point) == 1:
        for end in (0, 255):
            if abs(level - end) <= NOISE and end in values:
                return end
        return level
    if not _is_end(point):
        return level
    red, green, blue = (255 if channel > 128 else 0 for channel in point.tolist())
    return COLOR | (red << 16) | (green << 8) | blue


def _is_end(point: Array) -> bool:
    """Whether a level is black, white or a pure colour, as those that people draw with are."""
    return bool(((point <= NOISE) | (point >= 255 - NOISE)).all())


def _off_lines(points: Array, levels: Array) -> NDArray[np.bool_]:
    """Return which colours are no mixture of two levels, bool (N,).

    Args:
        points: (N, 3).
        levels: (L, 3).
    """
    nearest = np.full(len(points), np.inf)
    for i, a in enumerate(levels):
        for b in levels[i + 1 :]:
            along = (b - a).astype(float)
            place = ((points - a) @ along / (along @ along)).clip(0, 1)
            away = np.linalg.norm(points - a - place[:, None] * along, axis=1)
            nearest = np.minimum(nearest, away)
    return nearest > OFF_LINE


def _far(a: Array, b: Array) -> int:
    return int(np.abs(a - b).max())
