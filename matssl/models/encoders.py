"""Encoders of segmentation-models-pytorch as pyramids of feature maps."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from matssl.core.errors import UserError

# Stages at strides 4, 8, 16, 32.
STAGES = 4


def build_encoder(name: str, in_channels: int = 1) -> nn.Module:
    """Return an encoder with random weights; it has ``out_channels`` and returns its pyramid.

    Args:
        name: any encoder name of segmentation-models-pytorch, timm's with the prefix ``tu-``.
        in_channels: channels of the input.

    Raises:
        UserError: no encoder of this name.
    """
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
