"""What U-Net and U-Net++ of segmentation-models-pytorch share: blocks, and how they are built."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from matssl.models.decoders import Kind, Variant

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

    def model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
        return network(
            encoder,
            encoder_weights=None,
            in_channels=in_channels,
            classes=classes,
            decoder_channels=variant.channels or CHANNELS,
            decoder_attention_type=variant.attention,
        )

    def alone(channels: Sequence[int]) -> nn.Module:
        return decoder(encoder_channels=channels, decoder_channels=CHANNELS, n_blocks=len(CHANNELS))

    return Kind(
        decoder,
        model,
        alone,
        channels=CHANNELS[-1],
        fine_blocks=fine_blocks,
        fine_channels=CHANNELS[-3:],
    )
