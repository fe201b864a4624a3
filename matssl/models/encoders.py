"""Encoders of segmentation-models-pytorch as pyramids of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.models import small_unet

# Stages at strides 4, 8, 16, 32.
STAGES = 4


def build_encoder(name: str, in_channels: int = 1) -> nn.Module:
    """Return an encoder with random weights; it has ``out_channels`` and returns its pyramid.

    Args:
        name: any encoder name of segmentation-models-pytorch, timm's with the prefix ``tu-``, or
            ``small_unet``, whose four stages have strides 1, 2, 4 and 8.
        in_channels: channels of the input.

    Raises:
        UserError: no encoder of this name.
    """
    if name == small_unet.NAME:
        return small_unet.SmallUnetEncoder(in_channels)
    try:
        encoder: nn.Module = smp.encoders.get_encoder(
            name, in_channels=in_channels, depth=5, weights=None
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"there is no encoder {name!r}; resnet18, resnet34, resnet50 and resnet101 are usual"
        ) from error
    return encoder


def pyramid(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the feature maps F1 to F4 at strides 4, 8, 16 and 32.

    Args:
        encoder: from :func:`build_encoder`.
        x: (B, C, H, W), sides multiples of 32.
    """
    features: list[Tensor] = encoder(x)
    return features[-STAGES:]


def average(stage: Tensor) -> Tensor:
    """Return the spatial mean of a feature map, (B, C, H, W) to (B, C).

    Channels go last first: the gradient then has the map's own memory layout. That of
    ``stage.mean((2, 3))`` has not, and every layer below pays for it (6 % of a MatSSL step).
    """
    return stage.movedim(1, -1).flatten(1, 2).mean(1)


def sampled(
    maps: Sequence[Tensor], x: NDArray[np.int64], y: NDArray[np.int64], shape: Sequence[int]
) -> Tensor:
    """Return the features at pixels, (N, D): bilinear, the maps' channels side by side.

    Args:
        maps: (1, C, h, w) each, of one image.
        x: columns of the pixels.
        y: rows.
        shape: height and width of the image, which the maps cover.
    """
    grid = np.stack([(2 * x + 1) / shape[1] - 1, (2 * y + 1) / shape[0] - 1], axis=-1)
    points = torch.from_numpy(grid.astype(np.float32))[None, None].to(maps[0].device)
    parts = [
        F.grid_sample(level, points, mode="bilinear", padding_mode="border", align_corners=False)
        for level in maps
    ]
    return torch.cat(parts, dim=1)[0, :, 0].T


def stage_channels(encoder: Any) -> list[int]:
    """Return the channels of F1 to F4."""
    return list(encoder.out_channels[-STAGES:])


def set_batchnorm_training(module: nn.Module, training: bool) -> None:
    """Switch all BatchNorm layers of a module; a frozen encoder keeps their statistics."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(training)


def channels_last(module: nn.Module) -> nn.Module:
    """Return the module in the memory layout in which convolutions are quick."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
