"""The decoder of the small U-Net, in one piece with its encoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from matssl.models.decoders import Kind
from matssl.models.small_unet import WIDTHS, SmallUnet, SmallUnetDecoder


def _model(encoder: str, in_channels: int, classes: int) -> nn.Module:
    return SmallUnet(in_channels, classes)


def _alone(encoder: Any) -> nn.Module:
    return SmallUnetDecoder()


def _fine_blocks(decoder: Any) -> list[nn.Module]:
    return [decoder.up1, decoder.up2, decoder.up3]


SMALL_UNET = Kind(
    SmallUnetDecoder,
    _model,
    _alone,
    channels=WIDTHS[0],
    fine_blocks=_fine_blocks,
    fine_channels=WIDTHS[2::-1],
)
