"""What the data rooms hand to the methods, and what the methods hand back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Views of B samples, with where each came from.

    Attributes:
        views: V tensors uint8 (B, C, H, W).
        maps: float32 (V, B, 2, 3), view pixels to image pixels (see ``core.geometry``).
        group: int64 (B,), the image or specimen a sample belongs to.
        index: int64 (B,), the sample's number in the data set.
    """

    views: tuple[Tensor, ...]
    maps: Tensor
    group: Tensor
    index: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; views stay uint8, so little is moved."""
        return Batch(
            tuple(view.to(device, non_blocking=True) for view in self.views),
            self.maps.to(device, non_blocking=True),
            self.group.to(device, non_blocking=True),
            self.index.to(device, non_blocking=True),
        )

    def pinned(self) -> Batch:
        """Return the batch in memory from which a GPU copies while it computes."""
        views = tuple(view.pin_memory() for view in self.views)
        rest = (self.maps.pin_memory(), self.group.pin_memory(), self.index.pin_memory())
        return Batch(views, *rest)

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
