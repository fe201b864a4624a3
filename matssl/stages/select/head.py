"""A head on features that stay as they are: what a simulated annotator's labels make of them.

Logistic regression from the cells of a picture, and of their surroundings, to classes. A round of
it takes about a second, where fine-tuning takes minutes, so that methods can be compared with many
seeds. What it cannot show is what a network would learn of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.labels import IGNORE
from matssl.forest import logistic
from matssl.selection import uncertainty
from matssl.selection.candidates import Numbers

# Sides in cells of the squares that surroundings are averaged over.
AROUND = (5, 15)
# Columns that many features are reduced to, and standard deviations at which they are cut off.
COLUMNS, CUT_OFF = 64, 5.0
# Cells of a picture that are learned from, steps of the fit, weight of the squared coefficients.
CELLS, STEPS, PENALTY = 1500, 200, 1.0
# Of the boundary scores: cells within which another class is predicted.
BAND = 1


@dataclass(frozen=True)
class Picture:
    """A labelled picture as the head sees it.

    Attributes:
        cells: float32 (h, w, D), standardised, with surroundings.
        classes: uint8 (h, w), class index at the middle of each cell; 255 is not labelled.
        pixels: of each class in the whole mask, float64 (C,).
        summary: features that tell pictures apart, float64 (F,).
        specimen: it is of.
        name: of it in tables.
    """

    cells: NDArray[np.float32]
    classes: NDArray[np.uint8]
    pixels: Numbers
    summary: Numbers
    specimen: str
    name: str


def standardise(cells: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the cells of all pictures in the same columns, with their surroundings.

    No label takes part: means, spreads and (above 64 columns) principal components are those of
    all pictures.

    Args:
        cells: of each picture, (h, w, D).
    """
    every = np.concatenate([one.reshape(-1, one.shape[-1])[::7] for one in cells])
    every = every.astype(np.float64)
    mean, spread = every.mean(axis=0), np.maximum(every.std(axis=0), 1e-9)
    turn = np.eye(every.shape[1])
    if every.shape[1] > COLUMNS:
        scaled = (every - mean) / spread
        values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        turn = vectors[:, -COLUMNS:] / np.sqrt(np.maximum(values[-COLUMNS:], 1e-9))
    found = []
    for one in cells:
        flat = (one - mean) / spread @ turn
        flat = np.clip(flat, -CUT_OFF, CUT_OFF).astype(np.float32)
        parts = [flat, *(_averaged(flat, side) for side in AROUND)]
        found.append(np.concatenate(parts, axis=-1))
    return found


def _averaged(cells: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the mean over a square about each cell; borders are mirrored."""
    out = np.empty_like(cells)
    for column in range(cells.shape[-1]):
        plane = np.ascontiguousarray(cells[..., column])
        out[..., column] = cv2.blur(plane, (side, side), borderType=cv2.BORDER_REFLECT)
    return out


@dataclass(frozen=True)
class Head:
    """What was learned from some pictures.

    Attributes:
        weight: float64 (D, C).
        bias: float64 (C,); -inf of a class that was not seen.
    """

    weight: Numbers
    bias: Numbers

    def probabilities(self, picture: Picture) -> NDArray[np.float32]:
        """Return class probabilities of every cell, float32 (C, h, w)."""
        logits = picture.cells.astype(np.float64) @ self.weight + self.bias
        logits -= logits.max(axis=-1, keepdims=True)
        found = np.exp(logits)
        found /= found.sum(axis=-1, keepdims=True)
        return np.ascontiguousarray(np.moveaxis(found, -1, 0).astype(np.float32))


def fit(pictures: Sequence[Picture], num_classes: int, seed: int) -> Head:
    """Return what is learned from labelled pictures.

    Multinomial logistic regression; a class counts by the root of its number of cells, as in the
    dense probe. Of each picture at most 1500 cells are drawn.

    Args:
        pictures: at least one with a labelled cell.
        num_classes: C.
        seed: of the draw.

    Raises:
        ValueError: no cell is labelled.
    """
    rows, target = [], []
    for number, picture in enumerate(pictures):
        known = np.flatnonzero(picture.classes.ravel() != IGNORE)
        generator = rng.generator(seed, 0, number, stream=rng.SUBSETS)
        known = generator.permutation(known)[:CELLS]
        rows.append(picture.cells.reshape(-1, picture.cells.shape[-1])[known])
        target.append(picture.classes.ravel()[known])
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(target).astype(np.int64)
    if not len(y):
        raise ValueError("no cell is labelled")
    counts = np.bincount(y, minlength=num_classes)
    seen = np.flatnonzero(counts)
    weight = 1 / np.sqrt(counts[y])
    weight /= weight.sum()
    place = np.searchsorted(seen, y)
    own = logistic.solved(x, place, weight, PENALTY / len(y), len(seen), steps=STEPS)
    full, bias = np.zeros((x.shape[1], num_classes)), np.full(num_classes, -np.inf)
    full[:, seen], bias[seen] = own[:-1], own[-1]
    return Head(full, bias)


def scores(
    probabilities: NDArray[np.float32],
) -> tuple[dict[str, float], Numbers, Numbers]:
    """Return the scores of a picture, its scores by class, and the predicted share of each class.

    Args:
        probabilities: of its cells, (C, h, w).
    """
    maps = uncertainty.maps(probabilities)
    classes = probabilities.argmax(axis=0).astype(np.uint8)
    band = uncertainty.band(classes, BAND)
    found = {name: uncertainty.top_mean(plane) for name, plane in maps.items()}
    for name in ("entropy", "margin"):
        found[f"boundary_{name}"] = uncertainty.band_mean(maps[name], band)
    shares = probabilities.mean(axis=(1, 2), dtype=np.float64)
    return found, uncertainty.class_entropy(probabilities, maps["entropy"]), shares
