"""The decoder of the small U-Net, in one piece with its encoder."""

from __future__ import annotations

from torch import nn

from matssl.models.decoders import Kind, Variant
from matssl.models.small_unet import WIDTHS, SmallUnet, SmallUnetDecoder


def _model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
    return SmallUnet(in_channels, classes)


def _alone(encoder: nn.Module) -> nn.Module:
    return SmallUnetDecoder()


SMALL_UNET = Kind(
    SmallUnetDecoder,
    _model,
    _alone,
    channels=WIDTHS[0],
    fine_blocks=("up1", "up2", "up3"),
    fine_channels=WIDTHS[2::-1],
)
