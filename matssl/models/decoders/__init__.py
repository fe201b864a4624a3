"""Decoders: a file here and a line in the table matssl.decoders each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.decoders import CLASSIC, DECODERS, check_pair, named
from matssl.models.classic_unet import ClassicUnetEncoder
from matssl.models.small_unet import NAME, SmallUnetEncoder
from matssl.models.vit import VitEncoder


@dataclass(frozen=True)
class Variant:
    """What one may choose of a decoder, where it is not the usual one.

    Attributes:
        attention: "scse" behind each block of a U-Net or U-Net++.
        channels: of the blocks, the deepest first, where they are not the usual ones.
        rates: of the dilated convolutions of DeepLabV3+, where they are not ours.
        batchnorm: behind each convolution of a classic U-Net.
    """

    attention: str | None = None
    channels: tuple[int, ...] | None = None
    rates: tuple[int, ...] | None = None
    batchnorm: bool = False


@dataclass(frozen=True)
class Kind:
    """How a decoder is built, with its model and alone.

    Attributes:
        made: class of the decoder.
        model: (encoder's name, input channels, classes, variant) to a model with the parts
            ``encoder``, ``decoder`` and ``segmentation_head``.
        alone: an encoder to the decoder of such a model.
        channels: of the map it gives.
        stride: of that map.
        fine_blocks: names of the decoder's parts whose maps have strides 4, 2 and 1, if any.
        fine_channels: of these maps.
    """

    made: type[nn.Module]
    model: Callable[[str, int, int, Variant], nn.Module]
    alone: Callable[[nn.Module], nn.Module]
    channels: int
    stride: int = 1
    fine_blocks: tuple[str, ...] = ()
    fine_channels: tuple[int, ...] = ()


def kind(name: str) -> Kind:
    """Return how a decoder of segmentation is built.

    Raises:
        UserError: there is none of this name.
    """
    if name not in DECODERS or not DECODERS[name].segments:
        offered = (n for n, decoder in DECODERS.items() if decoder.segments)
        raise UserError(
            f"there is no decoder {name!r} of segmentation models; there are: {', '.join(offered)}"
        )
    module, attribute = DECODERS[name].kind.split(":")
    found: Kind = getattr(importlib.import_module(module), attribute)
    return found


def channels_of(encoder: nn.Module) -> Sequence[int]:
    """Return the channels of an encoder's maps; of those of the library the image's first."""
    channels: Sequence[int] = encoder.out_channels  # type: ignore[assignment]
    return channels


def check_tokens(vision_transformer: bool, encoder: str, name: str) -> None:
    """Refuse a decoder of vision transformers on another encoder.

    Args:
        vision_transformer: whether the encoder is one.
        encoder: in the message.
        name: of the decoder.

    Raises:
        UserError: there are no tokens.
    """
    if DECODERS[name].tokens and not vision_transformer:
        raise UserError(
            f"--decoder {name} goes with vision transformers (dinov2-vit-s14, dinov3-vit-s16, "
            f"timm's), not with {encoder}; take --decoder unet"
        )


def build_decoder(name: str, encoder: nn.Module) -> nn.Module:
    """Return the decoder of :func:`matssl.models.segmentation.build_model` alone.

    Args:
        name: of a decoder of segmentation.
        encoder: that is there already, from ``build_encoder``.

    Raises:
        UserError: another name, or half of what is one piece.
    """
    small, classic = (isinstance(encoder, k) for k in (SmallUnetEncoder, ClassicUnetEncoder))
    check_pair(NAME if small else CLASSIC if classic else "another encoder", name)
    check_tokens(isinstance(encoder, VitEncoder), "this --encoder", name)
    return kind(name).alone(encoder)


def build_fine_decoder(name: str, encoder: nn.Module) -> nn.Module:
    """Return a decoder that has maps at strides 4, 2 and 1.

    Args:
        name: of the decoder.
        encoder: see :func:`build_decoder`.

    Raises:
        UserError: the decoder has no such maps.
    """
    if name in DECODERS and not DECODERS[name].fine:
        others = named(n for n, decoder in DECODERS.items() if decoder.fine)
        raise UserError(
            f"PSCL compares a decoder's maps at strides 4, 2 and 1; --decoder {name} has none: "
            f"take {others}"
        )
    return build_decoder(name, encoder)


def pixel_head(name: str, planes: int) -> nn.Module:
    """Return the layer from a decoder's map to an image of some planes, at full size."""
    found = kind(name)
    convolution = nn.Conv2d(found.channels, planes, 1)
    if found.stride == 1:
        return convolution
    larger = nn.Upsample(scale_factor=found.stride, mode="bilinear", align_corners=True)
    return nn.Sequential(convolution, larger)


def fine_channels(decoder: nn.Module) -> tuple[int, ...]:
    """Return the channels of :func:`fine_maps`."""
    return _kind_of(decoder).fine_channels


def fine_maps(decoder: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """Return a decoder's maps at strides 4, 2 and 1, (B, C, H, W) each.

    Args:
        decoder: from :func:`build_fine_decoder`.
        features: what its encoder returns.
    """
    blocks = [decoder.get_submodule(name) for name in _kind_of(decoder).fine_blocks]
    maps: list[Tensor] = []
    # The decoders of the library return their last map alone.
    handles = [
        block.register_forward_hook(lambda _block, _inputs, output: maps.append(output))
        for block in blocks
    ]
    try:
        decoder(features)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _kind_of(decoder: nn.Module) -> Kind:
    kinds = (kind(name) for name, known in DECODERS.items() if known.fine)
    return next(found for found in kinds if isinstance(decoder, found.made))
