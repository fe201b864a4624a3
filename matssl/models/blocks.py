"""Blocks of an encoder, by which it is frozen: those of a pretrained network's deep fine-tuning.

A block is what the encoder's own code counts: layer1 to layer4 of a ResNet, the seven groups of an
EfficientNet, what lies between two poolings of a VGG, the levels of a U-Net. Encoders that count
nothing are parted by their feature maps. What comes before the first block is part of it, what
comes behind the last one of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.models import trial
from matssl.models.encoders import set_batchnorm_training

ALL, NONE = "all", "none"
# Names of parameters to the number of their block, counted from 1 or 0, the first that any has.
NUMBERED = (
    (r"(?:model\.)?layer([1-9])\.", 1),
    (r"(?:model\.)?(?:blocks|stages)[._](\d+)\.", 0),
    (r"stage([1-9])\.", 1),
    (r"model\.s([1-9])\.", 1),
    (r"features\.(?:denseblock|transition)([1-9])\.", 1),
    (r"(?:patch_embed|block|norm)(\d+)\.", 1),
    # Of the small U-Net the stem is the first level.
    (r"down([1-9])\.", 0),
)
SIDE = 64


def blocks(encoder: nn.Module) -> list[list[str]]:
    """Return the names of an encoder's parameters, block by block.

    Args:
        encoder: from :func:`matssl.models.encoders.build_encoder`.

    Raises:
        Misfit: it counts no blocks and its maps do not tell them.
    """
    names = [name for name, _ in encoder.named_parameters()]
    numbers = _numbered(names) or _of_layers(encoder) or _by_maps(encoder)
    found: list[list[str]] = [[] for _ in range(max(numbers.values(), default=0))]
    last = 1
    for name in names:
        last = numbers.get(name, last)
        found[last - 1].append(name)
    return [block for block in found if block]


def freeze(encoder: nn.Module, chosen: str, name: str) -> None:
    """Leave some blocks of an encoder to be trained and freeze the others, and every BatchNorm.

    Args:
        encoder: whose parameters are switched.
        chosen: "all", which leaves everything as it is, "none", or numbers such as "5,6,7".
        name: of the encoder, for messages.

    Raises:
        UserError: it has no such block, or none at all.
    """
    if chosen == ALL:
        return
    own = wanted(encoder, chosen, name)
    for key, parameter in encoder.named_parameters():
        parameter.requires_grad_(key in own)
    for layer in encoder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
    set_batchnorm_training(encoder, False)


def wanted(encoder: nn.Module, chosen: str, name: str) -> set[str]:
    """Return the names of the parameters of the blocks that are chosen.

    Args:
        encoder: see :func:`blocks`.
        chosen: "none", or numbers such as "5,6,7".
        name: of the encoder, for messages.

    Raises:
        UserError: it has no such block, or none at all.
    """
    if chosen == NONE:
        return set()
    found = told_blocks(encoder, name, "--finetune_blocks all or none")
    numbers = [int(word) for word in chosen.split(",")]
    if max(numbers) > len(found):
        raise UserError(
            f"--encoder {name} has {counted(len(found), 'block')}, 1 to {len(found)}; "
            f"--finetune_blocks names {max(numbers)}"
        )
    return {key for number in numbers for key in found[number - 1]}


def told_blocks(encoder: nn.Module, name: str, instead: str) -> list[list[str]]:
    """Return :func:`blocks` of an encoder that a flag needs them of.

    Args:
        encoder: see :func:`blocks`.
        name: of the encoder, for messages.
        instead: flag to take where it has none.

    Raises:
        UserError: it has none.
    """
    try:
        return blocks(encoder)
    except trial.Misfit as misfit:
        raise UserError(
            f"--encoder {name} has no blocks to choose from ({misfit}); take {instead}"
        ) from misfit


def _numbered(names: Sequence[str]) -> dict[str, int]:
    """Return the block of each parameter whose name counts it; nothing where none does."""
    for pattern, first in NUMBERED:
        matches = {name: re.match(pattern, name) for name in names}
        numbers = {name: int(match[1]) + 1 - first for name, match in matches.items() if match}
        if len(set(numbers.values())) > 1:
            return numbers
    return {}


def _of_layers(encoder: nn.Module) -> dict[str, int]:
    """Return the blocks of an EfficientNet or a VGG, whose lists of layers run on through them."""
    parts = getattr(encoder, "_blocks", None)
    if isinstance(parts, nn.ModuleList):
        return dict(_grouped(parts))
    features = getattr(encoder, "features", None)
    if not isinstance(features, nn.Sequential):
        return {}
    if not any(isinstance(layer, nn.MaxPool2d) for layer in features):
        return {}
    numbers, block = {}, 1
    for place, layer in features.named_children():
        block += isinstance(layer, nn.MaxPool2d)
        for key, _ in layer.named_parameters():
            numbers[f"features.{place}.{key}"] = block
    # Something other than convolutions in a row, such as the branches of an Inception.
    plain = all(not list(layer.children()) for layer in features)
    return numbers if plain else {}


def _grouped(parts: nn.ModuleList) -> Iterator[tuple[str, int]]:
    """Yield parameters of an EfficientNet with their group: one begins where the width changes."""
    group, before = 0, 0
    for place, part in enumerate(parts):
        kernels = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
        width = kernels[-1].out_channels
        group += width != before
        before = width
        for key, _ in part.named_parameters():
            yield f"_blocks.{place}.{key}", group


def _by_maps(encoder: nn.Module) -> dict[str, int]:
    """Return for each parameter the first feature map that depends on it.

    Raises:
        Misfit: the encoder cannot run without memory.
    """
    held = dict(encoder.named_parameters())
    weights = {k: torch.empty_like(v, device="meta").requires_grad_() for k, v in held.items()}
    buffers = {k: torch.empty_like(v, device="meta") for k, v in encoder.named_buffers()}
    own = "in_channels" if hasattr(encoder, "in_channels") else "_in_channels"
    images = torch.empty(1, getattr(encoder, own), SIDE, SIDE, device="meta")
    try:
        maps: list[Tensor] = torch.func.functional_call(encoder, {**weights, **buffers}, (images,))
        numbers: dict[str, int] = {}
        number = 0
        for level in (level for level in maps if level.requires_grad):
            values = list(weights.values())
            given = torch.autograd.grad(level.sum(), values, retain_graph=True, allow_unused=True)
            fresh = [k for k, g in zip(weights, given, strict=True) if g is not None]
            fresh = [key for key in fresh if key not in numbers]
            number += bool(fresh)
            numbers |= dict.fromkeys(fresh, number)
    except trial.MISFITS as error:
        raise trial.Misfit(trial.reason(error)) from error
    if number < 2:
        raise trial.Misfit("its maps depend on all of it")
    return numbers
