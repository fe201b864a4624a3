"""U-Net of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn

from matssl.models.decoders import Kind, Variant

# Channels of the library's decoder blocks, from stride 16 to 1.
CHANNELS = (256, 128, 64, 32, 16)


def _model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
    model: nn.Module = smp.Unet(
        encoder,
        encoder_weights=None,
        in_channels=in_channels,
        classes=classes,
        decoder_channels=variant.channels or CHANNELS,
        decoder_attention_type=variant.attention,
    )
    return model


def _alone(channels: Sequence[int]) -> nn.Module:
    decoder: nn.Module = UnetDecoder(
        encoder_channels=channels, decoder_channels=CHANNELS, n_blocks=len(CHANNELS)
    )
    return decoder


UNET = Kind(
    UnetDecoder,
    _model,
    _alone,
    channels=CHANNELS[-1],
    fine_blocks=("blocks.2", "blocks.3", "blocks.4"),
    fine_channels=CHANNELS[-3:],
)
