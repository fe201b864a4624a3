"""What the data rooms hand to the methods, and what the methods hand back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Views of B samples, with where each came from.

    Attributes:
        views: V tensors uint8 (B, C, H, W).
        maps: float32 (V, B, 2, 3), view pixels to image pixels (see ``core.geometry``); they stay
            in the memory of the CPU, which finds the places that correspond while a GPU computes.
        group: int64 (B,), the image or specimen a sample belongs to.
        index: int64 (B,), the sample's number in the data set; -1 for a labelled sample.
        labels: uint8 (B, H, W), classes of the first view's pixels, 255 where they are not known;
            None where the run has no labelled images.
        lot: int64 (B,), the production batch a sample is from, -1 where it is not known.
    """

    views: tuple[Tensor, ...]
    maps: Tensor
    group: Tensor
    index: Tensor
    labels: Tensor | None = None
    lot: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``, but for its maps; views stay uint8: little is moved."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, maps=self.maps)

    def pinned(self) -> Batch:
        """Return the batch in memory from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        rest = (self.maps, self.group, self.index, self.labels, self.lot)
        views = tuple(change(view) for view in self.views)
        return Batch(views, *(None if part is None else change(part) for part in rest))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Losses:
    """What one forward pass of a method gives.

    Attributes:
        total: scalar with gradient, float32.
        parts: named detached scalars for the log.
        embeddings: detached (V*B, d), rows of the first view first, for the monitor.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None


@dataclass(frozen=True)
class Panel:
    """A picture of what a method does, one row of images a sample.

    Attributes:
        title: what it shows, in one sentence.
        columns: name of each column.
        rows: for each sample one array a column, uint8 (H, W) or (H, W, 3).
        kinds: colour of each class, uint8 (C, 3); None where colours are of no class.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[NDArray[np.uint8], ...], ...]
    kinds: NDArray[np.uint8] | None = None
