"""The decoders of :mod:`matssl.models.classic_unet`, for its own encoder and for all others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from matssl.models.classic_unet import (
    DECODER_FILTERS,
    ClassicUnetDecoder,
    ClassicUnetEncoder,
    ClassicUnetPlusPlusDecoder,
    check_filters,
    usual_filters,
)
from matssl.models.decoders import Kind, Variant, channels_of, tokens
from matssl.models.encoders import build_encoder
from matssl.models.vit import MAPS, VitEncoder

Decoding = type[ClassicUnetDecoder] | type[ClassicUnetPlusPlusDecoder]


class Network(nn.Module):
    """Encoder, decoder and a linear layer of each pixel."""

    def __init__(
        self, encoder: nn.Module, decoder: ClassicUnetDecoder | ClassicUnetPlusPlusDecoder, n: int
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder.out_channels, n, 1))


def _kind(decoding: Decoding) -> Kind:
    """Return how a network with one of the two decoders is built."""

    def model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
        body = build_encoder(encoder, in_channels)
        if isinstance(body, VitEncoder):
            filters = check_filters(variant.channels, MAPS, encoder)
            decoder = on_tokens(body, filters, variant.batchnorm)
            return tokens.Network(body, decoder, nn.Conv2d(filters[-1], classes, 1))
        full, maps = _maps(body)
        usual = usual_filters(maps, full)
        filters = check_filters(variant.channels, len(maps) - full, encoder, usual)
        return Network(body, decoding(maps, full, filters, variant.batchnorm), classes)

    def on_tokens(body: VitEncoder, filters: Sequence[int], batchnorm: bool) -> nn.Module:
        return tokens.OnTokens(body, lambda c: decoding(c[1:], False, filters, batchnorm))

    def alone(encoder: nn.Module) -> nn.Module:
        if isinstance(encoder, VitEncoder):
            return on_tokens(encoder, DECODER_FILTERS[:MAPS], False)
        full, maps = _maps(encoder)
        return decoding(maps, full, usual_filters(maps, full), False)

    return Kind(decoding, model, alone, channels=DECODER_FILTERS[-1])


def _maps(encoder: nn.Module) -> tuple[bool, Sequence[int]]:
    """Return whether the finest map has the size of the image, and the channels of the maps."""
    full, channels = isinstance(encoder, ClassicUnetEncoder), channels_of(encoder)
    # Other encoders have the image, or a map of its size, before their five.
    return full, channels if full else channels[1:]


CLASSIC_UNET = _kind(ClassicUnetDecoder)
CLASSIC_UNET_PLUS_PLUS = _kind(ClassicUnetPlusPlusDecoder)
