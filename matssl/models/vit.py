"""Vision transformers of timm as encoders: four of their blocks as maps at the stride of a patch.

Dosovitskiy et al. 2021 (arXiv:2010.11929), with the trainings of DINOv2 (Oquab et al. 2023,
arXiv:2304.07193; register tokens: Darcet et al. 2023, arXiv:2309.16588) and DINOv3 (Simeoni et al.
2025, arXiv:2508.10104; rotary positions). Position embeddings that are learned for one size are
resampled to that of the image, bicubic, as timm does; rotary ones are computed for it. The maps
have the network's last norm on them, as DINOv2's own dense tasks take them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import log2
from typing import Any, NamedTuple, cast

import timm
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from matssl.core.errors import UserError

# Blocks whose tokens are kept, spread evenly over the network: 2, 5, 8, 11 of twelve.
MAPS = 4
_DINOV2 = {"s14": "small", "b14": "base", "l14": "large", "g14": "giant"}
_DINOV3 = {
    **{"s16": "small", "splus16": "small_plus", "b16": "base", "l16": "large"},
    **{"hplus16": "huge_plus", "7b16": "7b"},
}
# Short names of the encoders that one asks for, to timm's.
SHORT = {
    **{f"dinov2-vit-{k}": f"vit_{v}_patch14_dinov2" for k, v in _DINOV2.items()},
    **{f"dinov2-vit-{k}-reg": f"vit_{v}_patch14_reg4_dinov2" for k, v in _DINOV2.items()},
    **{f"dinov3-vit-{k}": f"vit_{v}_patch16_dinov3" for k, v in _DINOV3.items()},
}
# Files of timm whose networks are one row of blocks and take images of any size.
MODULES = ("vision_transformer", "eva", "deit")
# Between a name and its blocks.
AT = "@"


class Named(NamedTuple):
    """What the name of such an encoder says.

    Attributes:
        timm: name of the network in timm, a tag of weights perhaps behind it.
        blocks: numbers of the blocks that are kept, from 0; empty: spread evenly.
    """

    timm: str
    blocks: tuple[int, ...] = ()


def encoder_name(name: str, blocks: Sequence[int] = ()) -> str:
    """Return the whole name of an encoder: the blocks are part of it, where some are chosen."""
    return f"{name}{AT}{'-'.join(map(str, blocks))}" if blocks else name


def named(name: str) -> Named | None:
    """Return what a name says; None where it is that of no vision transformer.

    Args:
        name: short (``dinov2-vit-s14``) or timm's, with or without ``tu-`` before it and a tag
            behind it (``vit_small_patch14_dinov2.lvd142m``); ``@2-5-8-11`` may follow.

    Raises:
        UserError: no blocks behind the sign, or a short name that is none.
    """
    plain, sign, blocks = name.partition(AT)
    known = SHORT.get(plain, plain.removeprefix("tu-"))
    if known == plain and re.match(r"dinov\d", plain):
        raise UserError(f"there is no encoder {plain!r}; of DINO there are {', '.join(SHORT)}")
    if not timm.is_model(known):
        return None
    if timm.model_entrypoint(known).__module__.rpartition(".")[2] not in MODULES:
        return None
    if sign and not re.fullmatch(r"\d{1,3}(-\d{1,3})*", blocks):
        raise UserError(f"--encoder {name} names no blocks; write {plain}{AT}2-5-8-11")
    return Named(known, tuple(map(int, blocks.split("-"))) if sign else ())


def is_vit(name: str) -> bool:
    """Return whether a name is that of a vision transformer; see :func:`named`."""
    return named(name) is not None


class VitEncoder(nn.Module):
    """Class tokens and maps of four blocks.

    Attributes:
        model: timm's network, without its head and the blocks that nothing asks for.
        in_channels: of the image.
        out_channels: of the four maps.
        stride: of all maps: the side of a patch.
        multiple: sides of images are multiples of it: of a patch, of more than one where patches
            are so small that decoders make coarser maps of them.
        depth: blocks of the whole network.
        has_class: whether class tokens stand before the maps.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        """Build the network of a name, see :func:`named`, with random weights.

        Raises:
            UserError: blocks that it does not have.
        """
        super().__init__()
        said = named(name)
        if said is None:
            raise UserError(f"--encoder {name} is no vision transformer of timm")
        shape: dict[str, Any] = {
            "in_chans": in_channels,
            "num_classes": 0,
            "dynamic_img_size": True,
        }
        self.model = cast(Any, timm.create_model(said.timm, pretrained=False, **shape))
        self.depth = len(self.model.blocks)
        self.indices = _chosen(said.blocks, self.depth, name)
        # Parameters that no map depends on would stop several processes.
        self.model.prune_intermediate_layers(list(self.indices), prune_norm=False, prune_head=True)
        height, width = self.model.patch_embed.patch_size
        if height != width:
            raise UserError(f"--encoder {name} has patches of {height} x {width}, not square")
        self.in_channels, self.stride = in_channels, int(height)
        self.out_channels = (int(self.model.embed_dim),) * MAPS
        self.multiple = self.stride * 2 ** max(0, -min(doublings(self.stride)))
        self.has_class = getattr(self.model, "cls_token", None) is not None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps (B, D, H / stride, W / stride) of images (B, C, H, W), the first block first.

        Where the network has a class token, those of the same blocks stand before them,
        (B, D, 1, 1) each. Register tokens are left out.
        """
        prefixed = self.model.num_prefix_tokens > 0
        found = self.model.forward_intermediates(
            x,
            indices=list(self.indices),
            return_prefix_tokens=prefixed,
            norm=True,
            intermediates_only=True,
        )
        if not prefixed:
            return list(found)
        classes = [tokens[:, 0, :, None, None] for _, tokens in found] if self.has_class else []
        return [*classes, *(level for level, _ in found)]

    def resampled(self, position: Tensor) -> tuple[Tensor, str] | None:
        """Return position embeddings of another size at this network's, and what was done.

        Args:
            position: (1, tokens, D) of a square grid, those of class tokens first where the network
                has some.

        Returns:
            None where they are of no square grid or of another width.
        """
        own, grid = self.model.pos_embed, self.model.patch_embed.grid_size
        prefix = own.shape[1] - grid[0] * grid[1]
        side = round(max(position.shape[1] - prefix, 0) ** 0.5) if position.ndim == 3 else 0
        fits = side > 0 and side * side + prefix == position.shape[1]
        if not fits or position.shape[-1] != own.shape[-1]:
            return None
        found = resample_abs_pos_embed(position.float(), list(grid), num_prefix_tokens=prefix)
        return found, f"of {side} x {side} patches resampled to {grid[0]} x {grid[1]}"


def doublings(stride: int) -> tuple[int, ...]:
    """Return how often maps of a stride are doubled to make those of strides 2, 4, 8 and 16.

    Those of 14 pixels are taken for 16, and the last map is brought to the size of the image. Below
    0: halved.
    """
    return tuple(round(log2(stride / wanted)) for wanted in (2, 4, 8, 16))


def nominal(stride: int) -> int:
    """Return the power of two that a stride is taken for: 16 for 14."""
    return int(2 ** round(log2(stride)))


def _chosen(blocks: tuple[int, ...], depth: int, name: str) -> tuple[int, ...]:
    """Return the numbers of the blocks to keep.

    Raises:
        UserError: other than four of them, not in order, or not there.
    """
    if not blocks:
        return tuple(depth * part // MAPS - 1 for part in range(1, MAPS + 1))
    if len(blocks) != MAPS or list(blocks) != sorted(set(blocks)) or blocks[-1] >= depth:
        even = " ".join(str(number) for number in _chosen((), depth, name))
        raise UserError(
            f"--encoder_blocks needs {MAPS} different numbers in order, from 0 to {depth - 1} on "
            f"--encoder {name.partition(AT)[0]} (such as {even}), not "
            f"{' '.join(map(str, blocks))}"
        )
    return blocks
