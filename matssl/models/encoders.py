"""Encoders of segmentation-models-pytorch as pyramids of feature maps."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import log2
from weakref import WeakKeyDictionary

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.models import classic_unet, small_unet, trial, vit

# Maps that are learned from: the deepest four, of most encoders at strides 4, 8, 16 and 32.
STAGES = 4
# Depth that is asked of the library: halvings of the image.
DEPTH = 5
# Stride of the deepest map of a dilated encoder.
DILATED_STRIDE = 16
# Images that a new encoder is tried on; a few want larger ones.
TRIALS = ((64, 96), (256, 320))
USUAL = "resnet18, resnet34, resnet50 and resnet101"
# What constructors of the libraries raise; OSError where a name would be fetched.
REFUSALS = (*trial.MISFITS, OSError)
# Of the maps that a classifier of pixels reads as a baseline.
FINE_STRIDES = (2, 4, 8)


@dataclass(frozen=True)
class Encoder:
    """What an encoder gives and needs, read off its maps.

    Attributes:
        channels: of its maps, the finest first; the image itself and maps without channels, by
            which the library fills up the pyramid of a transformer, are none.
        strides: of the same maps.
        multiple: sides of images are multiples of it.
        side: the only side of images it takes; None where it takes every multiple.
        refusal: what it says of other sides, empty where it takes them.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    side: int | None = None
    refusal: str = ""

    @property
    def dilated(self) -> bool:
        """Whether dilation keeps its last maps as large as those before them."""
        return len(set(self.strides)) < len(self.strides)


_FACTS: WeakKeyDictionary[nn.Module, Encoder] = WeakKeyDictionary()
_KINDS: dict[tuple[str, int, bool], Encoder] = {}


def build_encoder(name: str, in_channels: int = 1, dilated: bool = False) -> nn.Module:
    """Return an encoder with random weights; it has ``out_channels`` and returns its pyramid.

    Args:
        name: any encoder name of segmentation-models-pytorch, timm's with the prefix ``tu-``, or
            ``small_unet``, whose four stages have strides 1, 2, 4 and 8, ``classic_unet``, see
            :func:`matssl.models.classic_unet.shape`, or a vision transformer, see
            :func:`matssl.models.vit.named`.
        in_channels: channels of the input.
        dilated: whether the last stage keeps the size of the one before, at stride 16; all maps of
            a vision transformer have one size anyway.

    Raises:
        UserError: no encoder of this name, or one that cannot be used here; the library's own
            reason is said.
    """
    if name == small_unet.NAME:
        encoder: nn.Module = small_unet.SmallUnetEncoder(in_channels)
    elif classic_unet.is_classic(name):
        encoder = classic_unet.ClassicUnetEncoder(in_channels, *classic_unet.shape(name))
    elif vit.is_vit(name):
        try:
            encoder = vit.VitEncoder(name, in_channels)
        except REFUSALS as error:
            raise unusable(name, in_channels, "images of any size", error) from error
    else:
        stride = {"output_stride": DILATED_STRIDE} if dilated else {}
        try:
            encoder = smp.encoders.get_encoder(
                name, in_channels=in_channels, depth=DEPTH, weights=None, **stride
            )
        except REFUSALS as error:
            use = "dilation" if dilated else f"{DEPTH} halvings"
            raise unusable(name, in_channels, use, error) from error
    check_encoder(encoder, name, in_channels, dilated)
    return encoder


def unusable(name: str, in_channels: int, use: str, error: Exception) -> UserError:
    """Return the sentence on an encoder that a library does not build.

    Args:
        name: of the encoder.
        in_channels: that it was asked for.
        use: what else was asked of it, in words.
        error: of the library.
    """
    if isinstance(error, KeyError):
        return UserError(f"there is no encoder {name!r}; {USUAL} are usual")
    return UserError(
        f"--encoder {name} does not go with {use} and {counted(in_channels, 'input channel')} "
        f"({trial.reason(error)}); {USUAL} do"
    )


def encoder_facts(encoder: nn.Module) -> Encoder:
    """Return what an encoder gives and needs; found by a trial pass, once for each encoder.

    Args:
        encoder: from :func:`build_encoder`.

    Raises:
        Misfit: it takes no image at all.
    """
    known = _FACTS.get(encoder)
    if known is None:
        known = _FACTS[encoder] = _examined(encoder)
    return known


def check_encoder(
    encoder: nn.Module, name: str, in_channels: int, dilated: bool = False
) -> Encoder:
    """Return the facts of a new encoder; refuse one that takes images of one size alone, or none.

    Args:
        encoder: as the library built it.
        name: that the user gave.
        in_channels: of the encoder.
        dilated: whether it is dilated.

    Raises:
        UserError: its own reason is said.
    """
    # What is built alike is alike: of many encoders of one name only the first is tried.
    kind = (name, in_channels, dilated)
    if kind in _KINDS:
        _FACTS[encoder] = _KINDS[kind]
    try:
        found = encoder_facts(encoder)
    except trial.Misfit as misfit:
        raise UserError(
            f"--encoder {name} takes no images whose sides are multiples of 32 ({misfit}); "
            f"{USUAL} do"
        ) from misfit
    if found.side is not None:
        raise UserError(
            f"--encoder {name} takes images of {found.side} x {found.side} pixels alone "
            f"({found.refusal}), but micrographs come in any size; {USUAL} take them"
        )
    if len(found.strides) < STAGES:
        raise UserError(
            f"--encoder {name} has {len(found.strides)} feature maps and {STAGES} are needed; "
            f"{USUAL} have them"
        )
    _KINDS[kind] = found
    return found


def _examined(encoder: nn.Module) -> Encoder:
    """Return what the first size tells that an encoder takes.

    Raises:
        Misfit: it takes none.
    """
    if isinstance(encoder, vit.VitEncoder):
        strides = (encoder.stride,) * vit.MAPS
        return Encoder(encoder.out_channels, strides, encoder.multiple)
    own = "in_channels" if hasattr(encoder, "in_channels") else "_in_channels"
    channels: int = getattr(encoder, own)
    refusal = ""
    for height, width in (*TRIALS, *_own_sides(encoder)):
        try:
            maps = trial.attempt(encoder, (1, channels, height, width))
        except trial.Misfit as misfit:
            # Of the first size: what it says of others may be about the trial.
            refusal = refusal or str(misfit)
            continue
        # A few encoders cut borders off: the nearest power of two.
        found = [(m.shape[1], 2 ** round(log2(height / m.shape[-2]))) for m in maps if m.shape[1]]
        # Encoders of ours, which say their multiple, have no image before their maps.
        if found[0] == (channels, 1) and not hasattr(encoder, "multiple"):
            del found[0]
        strides = tuple(stride for _, stride in found)
        multiple: int = getattr(encoder, "multiple", None) or max(strides)
        anywhere = (height, width) in TRIALS
        return Encoder(
            channels=tuple(count for count, _ in found),
            strides=strides,
            multiple=multiple,
            side=None if anywhere else height,
            refusal="" if anywhere else refusal,
        )
    raise trial.Misfit(refusal)


def _own_sides(encoder: nn.Module) -> list[tuple[int, int]]:
    """Return the sizes that an encoder's layers name as theirs, as transformers of timm do."""
    named = {getattr(layer, "img_size", None) for layer in encoder.modules()}
    config = getattr(getattr(encoder, "model", None), "default_cfg", None) or {}
    named.add(tuple(config.get("input_size", ()))[1:])
    return sorted(size for size in named if isinstance(size, tuple) and len(size) == 2)


def usual_input(encoder: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std by which the library's own weights of an encoder had images normalised.

    Of grey levels in 0..1, three numbers each; None where the library does not say.

    Args:
        encoder: from :func:`build_encoder`.
    """
    if isinstance(encoder, (small_unet.SmallUnetEncoder, classic_unet.ClassicUnetEncoder)):
        return None
    config = getattr(getattr(encoder, "model", None), "default_cfg", None)
    if config is not None:
        mean, std = config.get("mean"), config.get("std")
        return (tuple(mean), tuple(std)) if mean and std and len(mean) == len(std) == 3 else None
    if type(encoder).__name__.startswith(("Inception", "Xception")):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pads_like_tensorflow(encoder: nn.Module) -> bool:
    """Return whether an encoder computes what TensorFlow's networks do with the same weights.

    They pad below and on the right alone where a stride leaves no other way, and have a BatchNorm
    eps of 0.001.
    """
    layers = list(encoder.modules())
    eps = {m.eps for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    strided = [m for m in layers if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    return eps == {1e-3} and all("Same" in type(m).__name__ for m in strided)


def pyramid(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the feature maps F1 to F4, of most encoders at strides 4, 8, 16 and 32.

    Args:
        encoder: from :func:`build_encoder`.
        x: (B, C, H, W), sides multiples of what :func:`encoder_facts` says.
    """
    features: list[Tensor] = encoder(x)
    return features[-STAGES:]


def maps_at(encoder: nn.Module, x: Tensor, strides: Container[int]) -> list[Tensor]:
    """Return the feature maps at some strides, as many as the encoder has there.

    Args:
        encoder: from :func:`build_encoder`.
        x: (B, C, H, W), sides multiples of what :func:`encoder_facts` says.
        strides: that are wanted.
    """
    own = encoder_facts(encoder).strides
    # The image itself and maps without channels may stand before them.
    maps = [level for level in encoder(x) if level.shape[1]][-len(own) :]
    return [level for level, stride in zip(maps, own, strict=True) if stride in strides]


class FineMaps(nn.Module):
    """The maps of an encoder that a classifier of pixels reads: strides 2, 4 and 8, else all.

    Attributes:
        encoder: from :func:`build_encoder`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        own = encoder_facts(encoder).strides
        # All maps of a vision transformer have the stride of its patches.
        self.wanted = FINE_STRIDES if set(own) & set(FINE_STRIDES) else own

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps (B, D, h, w) of images (B, C, H, W), sides multiples of the encoder's."""
        return maps_at(self.encoder, x, self.wanted)


def average(stage: Tensor) -> Tensor:
    """Return the spatial mean of a feature map, (B, C, H, W) to (B, C).

    Channels go last first: the gradient then has the map's own memory layout. That of
    ``stage.mean((2, 3))`` has not, and every layer below pays for it (6 % of a MatSSL step).
    """
    return stage.movedim(1, -1).flatten(1, 2).mean(1)


def sampled(
    maps: Sequence[Tensor], x: NDArray[np.int64], y: NDArray[np.int64], shape: Sequence[int]
) -> Tensor:
    """Return the features at pixels, (N, D): bilinear, the maps' channels side by side.

    Args:
        maps: (1, C, h, w) each, of one image.
        x: columns of the pixels.
        y: rows.
        shape: height and width of the image, which the maps cover.
    """
    grid = np.stack([(2 * x + 1) / shape[1] - 1, (2 * y + 1) / shape[0] - 1], axis=-1)
    points = torch.from_numpy(grid.astype(np.float32))[None, None].to(maps[0].device)
    parts = [
        F.grid_sample(level, points, mode="bilinear", padding_mode="border", align_corners=False)
        for level in maps
    ]
    return torch.cat(parts, dim=1)[0, :, 0].T


def stage_channels(encoder: nn.Module) -> list[int]:
    """Return the channels of F1 to F4."""
    return list(encoder_facts(encoder).channels[-STAGES:])


def set_batchnorm_training(module: nn.Module, training: bool) -> None:
    """Switch all BatchNorm layers of a module; a frozen encoder keeps their statistics."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(training)


def channels_last(module: nn.Module) -> nn.Module:
    """Return the module in the memory layout in which convolutions are quick."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
