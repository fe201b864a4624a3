"""What U-Net and U-Net++ of segmentation-models-pytorch share: blocks, and how they are built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from matssl.models import vit
from matssl.models.decoders import Kind, Variant, channels_of, tokens

# Channels of the library's decoder blocks, from stride 16 to 1.
CHANNELS = (256, 128, 64, 32, 16)


def of_library(
    network: Callable[..., nn.Module], decoder: type[nn.Module], fine_blocks: tuple[str, ...]
) -> Kind:
    """Return how a network of such blocks is built, whole and its decoder alone.

    Args:
        network: of the library, as ``smp.Unet``.
        decoder: its decoder's class.
        fine_blocks: see :class:`matssl.models.decoders.Kind`.
    """

    def on_tokens(channels: Sequence[int], filters: Sequence[int] = CHANNELS) -> nn.Module:
        # One halving less than of convolutional encoders: the coarsest map has stride 16.
        own = decoder(
            encoder_channels=channels, decoder_channels=filters[1:], n_blocks=len(filters) - 1
        )
        return tokens.initialised(own)

    def model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
        if vit.is_vit(encoder):
            filters = variant.channels or CHANNELS
            build = partial(on_tokens, filters=filters)
            return tokens.network(encoder, in_channels, classes, build, filters[-1], kernel=3)
        return network(
            encoder,
            encoder_weights=None,
            in_channels=in_channels,
            classes=classes,
            decoder_channels=variant.channels or CHANNELS,
            decoder_attention_type=variant.attention,
        )

    def alone(encoder: nn.Module) -> nn.Module:
        if isinstance(encoder, vit.VitEncoder):
            return tokens.OnTokens(encoder, on_tokens)
        return decoder(
            encoder_channels=channels_of(encoder),
            decoder_channels=CHANNELS,
            n_blocks=len(CHANNELS),
        )

    return Kind(
        decoder,
        model,
        alone,
        channels=CHANNELS[-1],
        fine_blocks=fine_blocks,
        fine_channels=CHANNELS[-3:],
    )
