"""Masks that number objects: each value is one compact region, and there are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.data.masks.values import BLACK, pack

# From so many values on, each of them one region, a mask numbers objects and no classes.
MANY = 8
# Fewer may do so; so many in several masks do where no two masks have the same number of them.
FEW = 3
ENOUGH = 6
# Share of the values that are one region, and of the pixels in such: an object may be cut in two,
# and 0/255 masks may lie beside.
MOSTLY = 0.9
MOST_PIXELS = 0.8
# Area of a region over that of the box around it: a disc has 0.79, a ring or a crack little.
COMPACT = 0.3
# Pixels of a mask in which few regions are not looked for: it would take minutes.
LARGE = 100_000_000
# Marks what lies between objects, as in the masks of Pascal VOC.
VOID = 255
# The other end of the scale of 16 bits, which lies around objects in some programs' masks.
WHITE_16 = 65_535
# After so many the values of a picture are known for what they are.
TRIED = 20
# Smaller ones are specks that make no object.
SMALLEST = 4


@dataclass(frozen=True)
class Objects:
    """What the values of a mask are as regions; background is no value of these.

    Attributes:
        background: code of what lies around them, None where nothing does.
        values: how many there are.
        single: how many are one compact region.
        pixels: share of the pixels in such.
        gapless: whether they are 1, 2, 3 ... without a gap.
        void: whether 255 marks what lies between them and is no number.
    """

    background: int | None = None
    values: int = 0
    single: int = 0
    pixels: float = 0.0
    gapless: bool = False
    void: bool = False

    @property
    def all_single(self) -> bool:
        """Whether nearly every value is one compact region."""
        return (
            self.values > 0 and self.single >= MOSTLY * self.values and (self.pixels >= MOST_PIXELS)
        )

    @property
    def numbered(self) -> bool:
        """Whether the mask alone shows that its values number objects."""
        return self.values >= MANY and self.all_single


def objects(mask: Array, values: Array, sizes: Array) -> Objects:
    """Return what the values of a mask are as regions.

    Args:
        mask: (H, W) or (H, W, 3).
        values: its codes in ascending order.
        sizes: pixels of each.
    """
    colored = mask.ndim == 3
    zero = BLACK if colored else 0
    background: int | None = zero if zero in values else None
    where: Array | None = None
    if background is None and len(values):
        most = int(sizes.argmax())
        if colored:
            where = _places(mask, values)
            # What lies around objects reaches to the edges; the largest of grains does not.
            if not _single(where, _boxes(where, len(sizes)), np.array([most]), sizes)[0]:
                background = int(values[most])
        elif int(values[most]) == WHITE_16:
            background = WHITE_16
    own = (values > 0) & (values != (-1 if background is None else background))
    number = int(own.sum())
    gapless = not colored and bool((values[own] == np.arange(1, number + 1)).all())
    too_large = number < MANY and mask.shape[0] * mask.shape[1] > LARGE
    if number < 2 or sizes[own].sum() < SMALLEST * number or too_large:
        return Objects(background, number, gapless=gapless)
    where = _places(mask, values) if where is None else where
    boxes = _boxes(where, len(sizes))
    single, pixels = _single(where, boxes, np.flatnonzero(own), sizes)
    share = pixels / max(1, int(sizes[own].sum()))
    found = Objects(background, number, single, share, gapless)
    rest = own & (values != VOID)
    if found.all_single or colored or not own[values == VOID].any():
        return found
    if not (values[rest] == np.arange(1, number)).all():
        return found
    single, pixels = _single(where, boxes, np.flatnonzero(rest), sizes)
    share = pixels / max(1, int(sizes[rest].sum()))
    found = Objects(background, number - 1, single, share, True, True)
    return found if found.numbered else Objects(background, number)


def numbers(mask: Array, own: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the objects of a mask that numbers them, from 1 on, int32 (H, W); 0 for none.

    Args:
        mask: (H, W) numbers of any depth, or (H, W, 3) colours.
        own: (H, W), pixels of objects; what lies around them and what is ignored is none.
    """
    codes = pack(mask)
    found = np.searchsorted(np.unique(codes[own]), codes) + 1
    return np.where(own, found, 0).astype(np.int32)


def _places(mask: Array, values: Array) -> Array:
    """Return the place of each pixel's value, (H, W), in as few bytes as hold it."""
    where = np.empty(mask.shape[:2], np.min_scalar_type(len(values)))
    for row in range(len(mask)):
        where[row] = np.searchsorted(values, pack(mask[row : row + 1])[0])
    return where


def _single(where: Array, boxes: Array, places: Array, sizes: Array) -> tuple[int, int]:
    """Return how many values are one compact region each, and their pixels.

    Args:
        where: (H, W), place of each pixel's value.
        boxes: (N, 4), first and last row and column of each value.
        places: those to look at.
        sizes: pixels of each value.
    """
    single = pixels = 0
    order = sorted(places.tolist(), key=lambda p: -int(sizes[p]))
    for seen, place in enumerate(order, 1):
        top, bottom, left, right = boxes[place]
        part = (where[top : bottom + 1, left : right + 1] == place).astype(np.uint8)
        # A layer goes from edge to edge; an object does not.
        layer = part.shape[0] == where.shape[0] or part.shape[1] == where.shape[1]
        compact = not layer and int(sizes[place]) >= max(SMALLEST, COMPACT * part.size)
        # Label 0 is what lies around.
        if compact and cv2.connectedComponents(part, connectivity=8)[0] == 2:
            single, pixels = single + 1, pixels + int(sizes[place])
        if seen >= TRIED and 2 * single < seen:
            return 0, 0
    return single, pixels


def _boxes(where: Array, number: int) -> Array:
    """Return first and last row and column of each value, (N, 4)."""
    height, width = where.shape
    boxes = np.empty((number, 4), np.int64)
    boxes[:] = (height, -1, width, -1)
    for row in range(height):
        line = where[row]
        starts = np.flatnonzero(np.concatenate(([True], line[1:] != line[:-1])))
        ends = np.append(starts[1:], width) - 1
        found = line[starts]
        np.minimum.at(boxes[:, 0], found, row)
        np.maximum.at(boxes[:, 1], found, row)
        np.minimum.at(boxes[:, 2], found, starts)
        np.maximum.at(boxes[:, 3], found, ends)
    return boxes


def number_objects(found: Sequence[Objects]) -> bool:
    """Return whether the masks of a set number objects.

    One of them shows it by many values that are one region each, or all together by few of them:
    1, 2, 3 ... in every mask, up to another number in each. The others must not speak against it.
    """
    lit = [one for one in found if one.values]
    if any(one.numbered for one in lit):
        return all(one.values <= 1 or 2 * one.single >= one.values for one in lit)
    return _few(lit, 2, FEW) and len({one.values for one in lit}) > 1 and _together(lit) >= ENOUGH


def may_number(found: Sequence[Objects]) -> Literal["", "perhaps", "likely"]:
    """Return whether a set in which each value is one region may number objects.

    "likely" where several masks do so, which classes hardly do; "perhaps" where there are too few.
    """
    lit = [one for one in found if one.values]
    if not _few(lit, 1, 2):
        return ""
    return "likely" if _few(lit, 2, FEW) and _together(lit) >= MANY else "perhaps"


def _few(lit: Sequence[Objects], masks: int, least: int) -> bool:
    """Whether each mask has the numbers 1, 2, 3 ..., one region each, and one has several."""
    return (
        len(lit) >= masks
        and all(one.gapless and (one.all_single or one.values == 1) for one in lit)
        and any(one.values >= least for one in lit)
    )


def _together(lit: Sequence[Objects]) -> int:
    return sum(one.values for one in lit)
