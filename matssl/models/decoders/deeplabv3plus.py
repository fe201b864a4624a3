"""DeepLabV3+: Chen et al. 2018 (arXiv:1802.02611), of segmentation-models-pytorch.

Atrous spatial pyramid pooling on a dilated encoder, joined with its map at stride 4, which 48
channels bring along. The library's own rates are 12, 24 and 36; at an output stride of 16 the paper
has 6, 12 and 18. Its separable convolutions, 256 channels and dropout are the library's, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from torch import nn

from matssl.models import vit
from matssl.models.decoders import Kind, Variant, channels_of, tokens
from matssl.models.encoders import DEPTH, DILATED_STRIDE

CHANNELS, RATES, DROPOUT = 256, (6, 12, 18), 0.5
# Of its map; the head brings the logits to full size.
STRIDE = 4
# Maps of a vision transformer that it needs: those at strides 4 and 16.
LOOKED_AT = (1, 3)


def _model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
    rates = variant.rates or RATES
    if vit.is_vit(encoder):
        build = partial(_on_tokens, rates=rates)
        sizes = encoder, in_channels, classes
        return tokens.network(*sizes, build, CHANNELS, stride=STRIDE, wanted=LOOKED_AT)
    model: nn.Module = smp.DeepLabV3Plus(
        encoder,
        encoder_depth=DEPTH,
        encoder_weights=None,
        encoder_output_stride=DILATED_STRIDE,
        decoder_channels=CHANNELS,
        decoder_atrous_rates=rates,
        decoder_aspp_separable=True,
        decoder_aspp_dropout=DROPOUT,
        in_channels=in_channels,
        classes=classes,
        upsampling=STRIDE,
    )
    return model


def _decoder(channels: Sequence[int], depth: int, rates: tuple[int, ...] = RATES) -> nn.Module:
    decoder: nn.Module = DeepLabV3PlusDecoder(
        encoder_channels=channels,
        encoder_depth=depth,
        out_channels=CHANNELS,
        atrous_rates=rates,
        output_stride=DILATED_STRIDE,
        aspp_separable=True,
        aspp_dropout=DROPOUT,
    )
    return decoder


def _on_tokens(channels: Sequence[int], rates: tuple[int, ...] = RATES) -> nn.Module:
    return tokens.initialised(_decoder(channels, len(channels) - 1, rates))


def _alone(encoder: nn.Module) -> nn.Module:
    if isinstance(encoder, vit.VitEncoder):
        return tokens.OnTokens(encoder, _on_tokens, LOOKED_AT)
    return _decoder(channels_of(encoder), DEPTH)


DEEPLAB = Kind(DeepLabV3PlusDecoder, _model, _alone, channels=CHANNELS, stride=STRIDE)
