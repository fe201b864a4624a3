"""U-Net++ of segmentation-models-pytorch."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import nn

from matssl.models.decoders import Kind

# Channels of the library's decoder blocks, from stride 16 to 1.
CHANNELS = (256, 128, 64, 32, 16)


def _model(encoder: str, in_channels: int, classes: int) -> nn.Module:
    model: nn.Module = smp.UnetPlusPlus(
        encoder, encoder_weights=None, in_channels=in_channels, classes=classes
    )
    return model


def _alone(encoder: Any) -> nn.Module:
    decoder: nn.Module = UnetPlusPlusDecoder(
        encoder_channels=encoder.out_channels, decoder_channels=CHANNELS, n_blocks=len(CHANNELS)
    )
    return decoder


def _fine_blocks(decoder: Any) -> list[nn.Module]:
    # Of its grid of blocks these have seen all others of their size.
    return [decoder.blocks[f"x_0_{decoder.depth - n}"] for n in (2, 1, 0)]


UNET_PLUS_PLUS = Kind(
    UnetPlusPlusDecoder,
    _model,
    _alone,
    channels=CHANNELS[-1],
    fine_blocks=_fine_blocks,
    fine_channels=CHANNELS[-3:],
)
