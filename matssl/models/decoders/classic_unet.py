"""The decoders of :mod:`matssl.models.classic_unet`, for its own encoder and for all others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from matssl.models.classic_unet import (
    DECODER_FILTERS,
    LEVELS,
    ClassicUnetDecoder,
    ClassicUnetEncoder,
    ClassicUnetPlusPlusDecoder,
    check_filters,
)
from matssl.models.decoders import Kind, Variant
from matssl.models.encoders import build_encoder

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
        full = isinstance(body, ClassicUnetEncoder)
        channels: Sequence[int] = body.out_channels  # type: ignore[assignment]
        # Other encoders have the image, or a map of its size, before their five.
        maps = channels if full else channels[1:]
        filters = check_filters(variant.channels, len(maps) - full, encoder)
        return Network(body, decoding(maps, full, filters, variant.batchnorm), classes)

    def alone(channels: Sequence[int]) -> nn.Module:
        full = len(channels) == LEVELS
        return decoding(channels if full else channels[1:], full, DECODER_FILTERS, False)

    return Kind(decoding, model, alone, channels=DECODER_FILTERS[-1])


CLASSIC_UNET = _kind(ClassicUnetDecoder)
CLASSIC_UNET_PLUS_PLUS = _kind(ClassicUnetPlusPlusDecoder)
