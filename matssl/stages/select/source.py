"""What MODEL gives: class probabilities where it segments, features where they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from matssl import hub, weights
from matssl.core import checkpoint
from matssl.core.arrays import Array
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.forest import filters, growing
from matssl.selection.candidates import Box, Numbers
from matssl.stages.select.settings import FILTERS
from matssl.trained.encoder import IMAGENET, RANDOM, Encoder
from matssl.trained.segmenter import Segmenter, opened
from matssl.weights import layouts

# Pixels between two cells of a grid of features, and how many cells a picture has at most.
PITCH, CELLS = 8, 65_536
# How pictures are read where no weights say it: each to zero mean and unit variance.
PLAIN = Preprocess(crop_bottom="auto")


@dataclass(frozen=True)
class Features:
    """What gives features: an encoder, or the forest's filters where there is none.

    Attributes:
        encoder: None for filters.
        record: how pictures are read for it.
    """

    encoder: Encoder | None
    record: Preprocess

    @property
    def text(self) -> str:
        """In words, what the features are."""
        if self.encoder is None:
            return f"{len(filters.names(filters.SIGMAS, 1))} filters of the picture (no network)"
        return f"the four stages of {self.encoder.name} ({self.encoder.source})"

    def cells(self, micrograph: Micrograph) -> NDArray[np.float32]:
        """Return features on a regular grid over the rows above the bar, float32 (h, w, D).

        Eight pixels from cell to cell, more in pictures above about 2000 pixels a side.
        """
        rows, columns = self.record.kept_rows(micrograph), micrograph.pixels.shape[1]
        pitch = max(PITCH, math.ceil(math.sqrt(rows * columns / CELLS)))
        height, width = max(1, rows // pitch), max(1, columns // pitch)
        if self.encoder is None:
            return self._filtered(micrograph, height, width)
        # The record here may know more of bars than that of the weights.
        encoder = Encoder(self.encoder.network, self.encoder.name, self.record, self.encoder.source)
        found = [
            _resized(level, height, width)
            for level in encoder.maps(opened(micrograph, self.record))
        ]
        return np.ascontiguousarray(np.moveaxis(np.concatenate(found), 0, -1))

    def _filtered(self, micrograph: Micrograph, height: int, width: int) -> NDArray[np.float32]:
        plane = self.record.plane(micrograph)
        image = self.record.tensor(plane)[:1]
        y, x = (
            np.floor((np.arange(count) + 0.5) * side / count).astype(np.int64)
            for count, side in zip((height, width), image.shape[1:], strict=True)
        )
        places = (y[:, None] * image.shape[2] + x[None]).ravel()
        return growing.at(image, places, filters.SIGMAS).reshape(height, width, -1)


@dataclass(frozen=True)
class Source:
    """What MODEL is.

    Attributes:
        segmenter: None where it cannot segment.
        features: None where they are not asked for.
        name: of the model in the name of a run.
    """

    segmenter: Segmenter | None
    features: Features | None
    name: str

    @property
    def record(self) -> Preprocess:
        """How pictures are read."""
        if self.segmenter is not None:
            return self.segmenter.record
        assert self.features is not None
        return self.features.record


def segments(model: str) -> bool:
    """Return whether a file holds a model that segments, not an encoder alone.

    Raises:
        UserError: there is no such file, or it holds no weights.
    """
    if model in (FILTERS, RANDOM, IMAGENET):
        return False
    content = weights.read(hub.locate(model))
    if checkpoint.is_own(content.payload):
        return content.payload.get("stage") == "finetune"
    return layouts.smp_prefix(content) is not None


def load_features(model: str, encoder: str, device: str, precision: str, seed: int) -> Features:
    """Return what gives features.

    Args:
        model: weights, or "filters".
        encoder: of weights that do not tell it.
        device: where the encoder computes.
        precision: fp32, bf16 or auto.
        seed: of random weights.

    Raises:
        UserError: it cannot be used.
    """
    if model == FILTERS:
        return Features(None, PLAIN)
    found = Encoder.load(model, encoder=encoder, device=device, precision=precision, seed=seed)
    return Features(found, found.record)


def of_segmenter(
    segmenter: Segmenter, encoder: str, device: str, precision: str, seed: int
) -> Features:
    """Return the features of a model's own encoder; of a classifier on filters these."""
    if segmenter.network.whole:
        return Features(None, segmenter.record)
    return load_features(segmenter.source, encoder, device, precision, seed)


def summary(cells: NDArray[np.float32], box: Box, shape: tuple[int, int]) -> Numbers:
    """Return mean and standard deviation of the cells of a region, float64 (2 D,).

    Args:
        cells: of the picture, (h, w, D).
        box: in pixels.
        shape: rows and columns of the picture in pixels.
    """
    parts = []
    for first, length, count, side in (
        (box.top, box.height, cells.shape[0], shape[0]),
        (box.left, box.width, cells.shape[1], shape[1]),
    ):
        start = min(count - 1, first * count // side)
        parts.append(slice(start, max(start + 1, round((first + length) * count / side))))
    own = cells[parts[0], parts[1]].reshape(-1, cells.shape[-1]).astype(np.float64)
    return np.concatenate([own.mean(axis=0), own.std(axis=0)])


def _resized(level: Array, height: int, width: int) -> Array:
    """Return a map (C, h, w) on another grid: averaged where it is finer, else interpolated."""
    x = torch.from_numpy(np.ascontiguousarray(level))[None]
    if x.shape[-2] >= height and x.shape[-1] >= width:
        return F.adaptive_avg_pool2d(x, (height, width))[0].numpy()
    return F.interpolate(x, (height, width), mode="bilinear")[0].numpy()
