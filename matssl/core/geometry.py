"""Affine views of an image, the dihedral group D4, and which cell of one view lies in another.

Coordinates are continuous pixels: pixel (i, j) covers [j, j+1) x [i, i+1), its centre is
(j + 0.5, i + 0.5), the order is (x, y) with y down. A view is
``rot90^turns(hflip^flip(resize(crop)))``: flip first, then counter-clockwise quarter turns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array


def affines(boxes: Array, flips: Array, turns: Array, size: int) -> NDArray[np.float64]:
    """Return the maps from view pixels to source pixels of many views at once, (B, 2, 3).

    Args:
        boxes: (B, 4) crop boxes as top, left, height, width in source pixels.
        flips: (B,) whether the crop is mirrored before turning.
        turns: (B,) counter-clockwise quarter turns.
        size: side of the views in pixels.
    """
    boxes = np.asarray(boxes, np.float64)
    # Unit coordinates of the view -> unit coordinates of the crop, one table row per element.
    table = _UNIT_MAPS[np.asarray(flips, int), np.asarray(turns, int) % 4]
    top, left, height, width = boxes.T
    result = np.empty((len(boxes), 2, 3))
    result[:, 0, :2] = table[:, 0, :2] * (width / size)[:, None]
    result[:, 1, :2] = table[:, 1, :2] * (height / size)[:, None]
    result[:, 0, 2] = left + table[:, 0, 2] * width
    result[:, 1, 2] = top + table[:, 1, 2] * height
    return result


def _unit_maps() -> NDArray[np.float64]:
    """Return (2, 4, 2, 3): for each (flip, turns) the map from view to crop in [0, 1]^2."""
    # One counter-clockwise turn sends (u, v) to (v, 1 - u); its inverse sends (u, v) to (1-v, u).
    undo_turn = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    mirror = np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    maps = np.empty((2, 4, 2, 3))
    for flip in range(2):
        for turns in range(4):
            undo = np.linalg.matrix_power(undo_turn, turns)
            maps[flip, turns] = ((mirror if flip else np.eye(3)) @ undo)[:2]
    return maps


_UNIT_MAPS = _unit_maps()


def apply_d4(array: Array, flip: bool, turns: int) -> Array:
    """Return ``rot90^turns(hflip^flip(array))`` of an (H, W) or (H, W, C) array, as a view."""
    return np.rot90(array[:, ::-1] if flip else array, turns)


def transform(affine: Array, points: Array) -> NDArray[np.float64]:
    """Return ``points`` (..., N, 2) as (x, y) sent through ``affine`` (..., 2, 3)."""
    affine = np.asarray(affine, np.float64)
    linear, shift = affine[..., :2], affine[..., 2]
    return np.einsum("...ij,...nj->...ni", linear, points) + shift[..., None, :]


def invert(affine: Array) -> NDArray[np.float64]:
    """Return the inverse of each (2, 3) map in ``affine`` (..., 2, 3)."""
    affine = np.asarray(affine, np.float64)
    linear = np.linalg.inv(affine[..., :2])
    shift = -np.einsum("...ij,...j->...i", linear, affine[..., 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)


def cell_centres(size: int, grid: int) -> NDArray[np.float64]:
    """Return the centres of a grid x grid partition of a view, (grid*grid, 2) as (x, y) pixels."""
    centre = (np.arange(grid) + 0.5) * (size / grid)
    x, y = np.meshgrid(centre, centre)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def correspondence(
    affine_a: Array, affine_b: Array, size_a: int, size_b: int, grid: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each cell of view a the cell of view b that shows the same place.

    Args:
        affine_a: (B, 2, 3) maps of the first views to source pixels.
        affine_b: (B, 2, 3) maps of the second views.
        size_a: side of the first views in pixels.
        size_b: side of the second views in pixels.
        grid: cells along a side, the same in both views.

    Returns:
        index (B, grid*grid) int64, row-major cell of b, -1 outside; valid (B, grid*grid) bool.
    """
    source = transform(affine_a, cell_centres(size_a, grid))
    place = transform(invert(affine_b), source) * (grid / size_b)
    # A centre that falls on a cell edge may come out one rounding below it (5.9999999 for 6).
    cell = np.floor(place + 1e-9).astype(np.int64)
    valid = np.asarray(((cell >= 0) & (cell < grid)).all(axis=-1))
    index = np.asarray(np.where(valid, cell[..., 1] * grid + cell[..., 0], -1), np.int64)
    return index, valid


def distances(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance of each pixel to the nearest one outside a mask, float32 (H, W).

    Between the middles of pixels, exact but for rounding: squares of distances are whole numbers.
    OpenCV's own roots differ in their last bit from call to call, with where the memory lies.

    Args:
        mask: bool (H, W), True inside; one pixel at least is outside.
    """
    import cv2

    found = cv2.distanceTransform(
        np.asarray(mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return np.asarray(np.sqrt(np.rint(np.square(found, out=found), out=found), out=found))
