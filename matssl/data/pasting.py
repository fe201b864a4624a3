"""Copy-paste: regions of rare classes of one labelled picture, put into crops of another.

Simple copy-paste (Ghiasi et al. 2021, arXiv:2012.07177) draws where a region goes at random; here
it goes where its surroundings are of the class that surrounded it (context as in Dvornik et al.
2018, arXiv:1807.07428), so that a crack of the oxide stays in oxide. Grey levels are moved and
scaled so that mean and spread of the surroundings agree: a region keeps its contrast to what lies
about it. What is pasted is whole, or a stretch of a line: a piece cut out of a wide phase would
have outlines that no phase has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.arrays import Array
from matssl.core.geometry import apply_d4
from matssl.core.labels import IGNORE

# Draws of pasting are none of the crops'; the sheet of an augmentation has view 1.
VIEW = 2
# Radius of a region, as shares of the side of a crop: what reaches further is cut off.
SMALLEST, LARGEST = 1 / 8, 1 / 2
# Pixels about a region: those blended into the crop, and those that tell its surroundings.
MARGIN, RING = 3, 8
# Regions in a crop at most; regions that are drawn for each, and places tried for it.
MOST, TRIES = 3, 4
# A line is at most so many pixels wide on either side of its middle.
HALF_WIDTH = 8
# Share of a region that must find room; fewer pixels than so many are noise of a mask.
ROOM, FEWEST = 0.5, 4
# Contrast of a region changes by this factor at most.
GAIN = 2.0


class Region(NamedTuple):
    """A region of a class with what lies about it.

    Attributes:
        plane: (h, w) or (h, w, C), grey levels.
        shape: bool (h, w), pixels of the class that are pasted.
        about: bool (h, w), surroundings of the class ``host`` within RING pixels.
        kind: the class.
        host: class that most of its surroundings are of.
    """

    plane: Array
    shape: NDArray[np.bool_]
    about: NDArray[np.bool_]
    kind: int
    host: int


class Pasting:
    """Regions of the labelled pictures, and the drawing of them.

    Classes that hold less than their even share of the labelled pixels are pasted, drawn by the
    inverse root of their share.
    """

    def __init__(
        self,
        planes: Sequence[Array],
        masks: Sequence[NDArray[np.uint8]],
        places: Sequence[Sequence[NDArray[np.int64]]],
        share: float,
        size: int,
        seed: int,
    ) -> None:
        """Look at the pictures.

        Args:
            planes: (H, W) or (H, W, C) each.
            masks: (H, W) each, class indices or 255.
            places: of each picture and class flat places to draw from.
            share: of the crops that are pasted into.
            size: side of a crop in pixels, by which regions are cut.
            seed: of the draws.
        """
        self.planes, self.masks, self.places = planes, masks, places
        self.share, self.size, self.seed = share, size, seed
        self.kinds, self.chances = rare(masks, len(places[0]))

    def __call__(
        self, plane: Array, mask: NDArray[np.uint8], step: int, sample: int
    ) -> tuple[Array, NDArray[np.uint8]]:
        """Return a crop, by chance with regions pasted into it; the arrays given stay as they are.

        Args:
            plane: (S, S) or (S, S, C).
            mask: (S, S).
            step: of the run.
            sample: of the step, over all processes.
        """
        generator = rng.generator(self.seed, step, sample, view=VIEW, stream=rng.CROPS)
        if not len(self.kinds) or generator.random() >= self.share:
            return plane, mask
        plane, mask = plane.copy(), mask.copy()
        for _ in range(1 + int(generator.integers(MOST))):
            drawn = (self._drawn(generator) for _ in range(TRIES))
            found = next((one for one in drawn if one is not None), None)
            if found is not None:
                paste(plane, mask, found, generator)
        return plane, mask

    def _drawn(self, generator: np.random.Generator) -> Region | None:
        """Return a region, turned at random; None where what was drawn is none."""
        kind = int(self.kinds[int(generator.choice(len(self.kinds), p=self.chances))])
        holders = [number for number, own in enumerate(self.places) if len(own[kind])]
        number = holders[int(generator.integers(len(holders)))]
        own = self.places[number][kind]
        place = int(own[int(generator.integers(len(own)))])
        y, x = divmod(place, self.masks[number].shape[1])
        radius = max(4, round(self.size * float(generator.uniform(SMALLEST, LARGEST))))
        element = bool(generator.integers(2)), int(generator.integers(4))
        found = region(self.planes[number], self.masks[number], (y, x), radius)
        if found is None:
            return None
        plane, shape, about = (apply_d4(part, *element) for part in found[:3])
        return Region(plane, shape, about, found.kind, found.host)


def rare(
    masks: Sequence[NDArray[np.uint8]], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the classes below their even share of the labelled pixels, and how often each comes.

    Args:
        masks: (H, W) each, class indices or 255.
        num_classes: how many there are.

    Returns:
        Class indices int64 (N,), and chances float64 (N,) of sum 1, by the inverse root of the
        share; both empty where all classes that there are have equal shares.
    """
    pixels = np.zeros(num_classes, np.int64)
    for mask in masks:
        pixels += np.bincount(mask[mask != IGNORE], minlength=num_classes)[:num_classes]
    there = np.count_nonzero(pixels)
    kinds = np.flatnonzero((pixels > 0) & (pixels * there < pixels.sum()))
    chances = 1 / np.sqrt(pixels[kinds])
    return kinds.astype(np.int64), chances / chances.sum() if len(kinds) else chances


def region(
    plane: Array, mask: NDArray[np.uint8], place: tuple[int, int], radius: int
) -> Region | None:
    """Return the connected part of a class that holds a place, within a circle about it.

    Args:
        plane: (H, W) or (H, W, C) grey levels of a picture.
        mask: (H, W), class indices or 255.
        place: row and column of a labelled pixel.
        radius: in pixels.

    Returns:
        None where it is too small, a piece of something wide, or nothing labelled of another class
        lies beside it.
    """
    y, x = place
    reach = radius + RING
    top, left = max(0, y - reach), max(0, x - reach)
    window = slice(top, y + reach + 1), slice(left, x + reach + 1)
    labels, kind = mask[window], int(mask[y, x])
    own = labels == kind
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    inside = (rows + top - y) ** 2 + (columns + left - x) ** 2 <= radius**2
    _, parts = cv2.connectedComponents((own & inside).astype(np.uint8), connectivity=8)
    shape = parts == parts[y - top, x - left]
    near = _grown(shape, RING) & ~own & (labels != IGNORE)
    if np.count_nonzero(shape) < FEWEST or not near.any():
        return None
    # Of 1 pixel beyond the window, so that the picture's edge cuts as the circle does.
    cut = np.pad(own & ~shape, 1, constant_values=True)
    if (_grown(np.pad(shape, 1), 1) & cut).any() and _half_width(shape) > HALF_WIDTH:
        return None
    host = int(np.bincount(labels[near]).argmax())
    return Region(plane[window], shape, near & (labels == host), kind, host)


def paste(
    plane: Array, mask: NDArray[np.uint8], given: Region, generator: np.random.Generator
) -> bool:
    """Put a region into a crop, in place; return whether it found room.

    Labels change where the crop is of the region's surrounding class alone: never where it is not
    labelled, nor over a third class. Where the crop is of the region's own class already, grey
    levels change and the label stays.

    Args:
        plane: (S, S) or (S, S, C), is changed.
        mask: (S, S), is changed.
        given: the region.
        generator: of the place.
    """
    room = np.flatnonzero(mask == given.host)
    for _ in range(TRIES if len(room) else 0):
        y, x = divmod(int(room[int(generator.integers(len(room)))]), mask.shape[1])
        inner, outer = _overlap(given.shape.shape, mask.shape, (y, x))
        labels = mask[outer]
        free = (labels == given.host) | (labels == given.kind)
        shape = given.shape[inner] & free
        if np.count_nonzero(shape) < max(FEWEST, ROOM * np.count_nonzero(given.shape)):
            continue
        about = _grown(given.shape[inner], RING) & (labels == given.host)
        if not about.any():
            continue
        levels = _matched(given.plane[inner], given.plane[given.about], plane[outer][about])
        weight = _weights(shape, given.about[inner] & (labels == given.host))
        weight = weight if plane.ndim == 2 else weight[..., None]
        plane[outer] += weight * (levels - plane[outer])
        labels[shape] = given.kind
        return True
    return False


def _matched(levels: Array, donor: Array, target: Array) -> Array:
    """Return grey levels with mean and spread of their surroundings as in the crop.

    Args:
        levels: (h, w) or (h, w, C).
        donor: (N,) or (N, C), surroundings of the region where it was.
        target: (M,) or (M, C), where it goes.
    """
    least = np.finfo(np.float32).eps
    gain = target.std(axis=0) / np.maximum(donor.std(axis=0), least)
    gain = np.clip(gain, 1 / GAIN, GAIN)
    moved = (levels - donor.mean(axis=0)) * gain + target.mean(axis=0)
    return np.asarray(moved, np.float32)


def _weights(shape: NDArray[np.bool_], beside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how much of each pixel is the region's: 1 inside, falling to 0 beside it."""
    distance = cv2.distanceTransform((~shape).astype(np.uint8), cv2.DIST_L2, 5)
    weight = np.clip(1 - distance / (MARGIN + 1), 0, 1).astype(np.float32)
    weight[~(shape | beside)] = 0
    return weight


def _half_width(shape: NDArray[np.bool_]) -> float:
    """Return the largest distance of a pixel of a shape from its edge."""
    padded = np.pad(shape, 1).astype(np.uint8)
    return float(cv2.distanceTransform(padded, cv2.DIST_L2, 5).max())


def _grown(shape: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return a shape with all pixels within some pixels of it, along rows and columns."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.dilate(shape.astype(np.uint8), kernel).astype(bool)


def _overlap(
    small: tuple[int, ...], large: tuple[int, ...], centre: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where a patch lies over a crop: rows and columns of the patch, and of the crop."""
    inner, outer = [], []
    for length, limit, middle in zip(small, large, centre, strict=True):
        start = middle - length // 2
        first, last = max(0, start), min(limit, start + length)
        inner.append(slice(first - start, last - start))
        outer.append(slice(first, last))
    return (inner[0], inner[1]), (outer[0], outer[1])
