"""Decoders by name; one of our own would get a file here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.models import small_unet
from matssl.models.small_unet import SmallUnet, SmallUnetDecoder, SmallUnetEncoder

DECODERS: dict[str, Callable[..., Any]] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "small_unet": SmallUnet,
}

# Channels of smp's decoder blocks, from stride 16 to 1.
CHANNELS = (256, 128, 64, 32, 16)
_PARTS = {"unet": UnetDecoder, "unetplusplus": UnetPlusPlusDecoder}


def build_decoder(name: str, encoder: nn.Module) -> nn.Module:
    """Return the decoder of :func:`build_model` alone, for an encoder that is there already.

    Args:
        name: "unet", "unetplusplus" or "small_unet".
        encoder: of segmentation-models-pytorch, five halvings; the small U-Net's own for that.

    Raises:
        KeyError: another name.
        UserError: a half of the small U-Net with another encoder or decoder.
    """
    small = isinstance(encoder, SmallUnetEncoder)
    small_unet.check_pair(small_unet.NAME if small else "another encoder", name)
    if small:
        return SmallUnetDecoder()
    decoder: nn.Module = _PARTS[name](
        encoder_channels=encoder.out_channels, decoder_channels=CHANNELS, n_blocks=len(CHANNELS)
    )
    return decoder


def fine_blocks(decoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of a decoder whose maps have strides 4, 2 and 1.

    Raises:
        UserError: the decoder has no such blocks.
    """
    if isinstance(decoder, UnetDecoder):
        return list(decoder.blocks)[-3:]
    if isinstance(decoder, UnetPlusPlusDecoder):
        # Of its grid of blocks these have seen all others of their size.
        return [decoder.blocks[f"x_0_{decoder.depth - n}"] for n in (2, 1, 0)]
    if isinstance(decoder, SmallUnetDecoder):
        return [decoder.up1, decoder.up2, decoder.up3]
    raise UserError(
        f"a decoder of the kind {type(decoder).__name__} has no maps at strides 4, 2 and 1; take "
        "--decoder unet, unetplusplus or small_unet"
    )


def fine_channels(decoder: nn.Module) -> tuple[int, ...]:
    """Return the channels of :func:`fine_maps`."""
    if isinstance(decoder, SmallUnetDecoder):
        return small_unet.WIDTHS[2::-1]
    return CHANNELS[-3:]


def check_side(decoder: nn.Module, side: int) -> None:
    """Refuse views that a decoder cannot take.

    Raises:
        UserError: U-Net++ and a side that five halvings do not divide.
    """
    if isinstance(decoder, UnetPlusPlusDecoder) and side % 32:
        raise UserError(
            f"--decoder unetplusplus takes views whose side is a multiple of 32, not {side}; "
            "change --view_size or take --decoder unet"
        )


def fine_maps(decoder: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """Return a decoder's maps at strides 4, 2 and 1, (B, C, H, W) each.

    Args:
        decoder: from :func:`build_decoder`.
        features: what its encoder returns.
    """
    maps: list[Tensor] = []
    # The decoders of the library return their last map alone.
    handles = [
        block.register_forward_hook(lambda _block, _inputs, output: maps.append(output))
        for block in fine_blocks(decoder)
    ]
    try:
        decoder(features)
    finally:
        for handle in handles:
            handle.remove()
    return maps
