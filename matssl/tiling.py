"""Prediction of images of any size in tiles by a torch module; see :mod:`matssl.blending`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl import blending
from matssl.core.arrays import Array
from matssl.tiles import MULTIPLE


def predict(
    model: nn.Module | Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    tta: bool = False,
    batch: int = 1,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[object]] | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return class probabilities float32 (K, H, W) of an image.

    Args:
        model: (B, C, h, w) to logits (B, K, h, w), in evaluation mode.
        image: normalised, float32 (C, H, W); may be memory-mapped.
        tile_size: see :func:`matssl.tiles.plan`; its multiple is the model's own where it says one.
        overlap: see :func:`matssl.tiles.plan`.
        tta: see :func:`matssl.blending.blended`.
        batch: tiles computed at once; no influence on the result beyond rounding.
        device: where the model lives; the CPU when None.
        autocast: makes the context of the forward passes.
        out: float32 (K, H, W), filled and returned.
    """
    device = device or torch.device("cpu")
    context = autocast or nullcontext

    def probabilities(tiles: Array) -> Array:
        stack = torch.from_numpy(tiles).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), context():
            values = model(stack.to(device)).float().softmax(dim=1).cpu().numpy()
        return np.asarray(values)

    return blending.blended(
        probabilities,
        image,
        tile_size=tile_size,
        overlap=overlap,
        # Filled up by the model itself, tiles would get mirrored pixels where the image has others.
        multiple=getattr(model, "multiple", MULTIPLE),
        tta=tta,
        batch=batch,
        out=out,
    )
