"""The U-Net as it was published, the bigger sister of :mod:`matssl.models.small_unet`, and U-Net++.

Ronneberger et al. 2015 (arXiv:1505.04597): five levels of two 3x3 convolutions and ReLU, 2x2 max
pooling, 2x2 transposed convolutions of stride 2 on the way up. Zhou et al. 2018 (arXiv:1807.10165):
between encoder and decoder the whole triangle of nodes, each fed by the one below it and by all
before it in its row; without deep supervision. Convolutions are filled up at their borders, so that
maps keep their size, and start from a truncated He-normal distribution (He et al. 2015,
arXiv:1502.01852). Either decoder goes on any encoder whose maps halve. The number of filters makes
four or six levels of the five: that of SRPU-Model has 64 to 2048 in six. What comes out has the
size of the image with every number of levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.decoders import CLASSIC

FILTERS = (64, 128, 256, 512, 1024)
DECODER_FILTERS = (512, 256, 128, 64, 32)
LEVELS = (4, 5, 6)
# Standard deviation of a normal distribution that is cut off at two of them.
CUT_OFF = 0.87962566103423978


def encoder_name(filters: Sequence[int] = FILTERS, batchnorm: bool = False) -> str:
    """Return the name of an encoder: its filters are part of it, where they are not the usual ones.

    Args:
        filters: of the levels, the finest first.
        batchnorm: whether each convolution has a BatchNorm behind it.
    """
    words = [CLASSIC, *([] if tuple(filters) == FILTERS else map(str, filters))]
    return "-".join([*words, *(["bn"] if batchnorm else [])])


def is_classic(name: str) -> bool:
    """Return whether a name is that of an encoder of this file."""
    return name == CLASSIC or name.startswith(f"{CLASSIC}-")


def shape(name: str) -> tuple[tuple[int, ...], bool]:
    """Return the filters that the name of an encoder says, and whether it has BatchNorm.

    Raises:
        UserError: it says other than four, five or six whole numbers above 0.
    """
    levels = f"{{{LEVELS[0]},{LEVELS[-1]}}}"
    match = re.fullmatch(rf"{CLASSIC}((?:-[1-9]\d{{0,4}}){levels})?(-bn)?", name)
    if match is None:
        raise UserError(
            f"--encoder {name} says no four, five or six filters; write {CLASSIC}, {CLASSIC}-bn, "
            f"or as {encoder_name((32, 64, 128, 256, 512), True)}"
        )
    filters = tuple(map(int, match[1].split("-")[1:])) if match[1] else FILTERS
    return filters, match[2] is not None


class ConvBlock(nn.Module):
    """Two times 3x3 convolution, BatchNorm where it is wanted, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, batchnorm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for number, channels in enumerate((in_channels, out_channels), start=1):
            # The shift of a BatchNorm stands in for the bias.
            convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=not batchnorm)
            self.layers.add_module(f"conv{number}", convolution)
            if batchnorm:
                self.layers.add_module(f"norm{number}", nn.BatchNorm2d(out_channels))
            self.layers.add_module(f"relu{number}", nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        result: Tensor = self.layers(x)
        return result


class UpBlock(nn.Module):
    """Doubles the size of a map, lays others of that size beside it, convolves twice."""

    def __init__(self, below: int, beside: int, out_channels: int, batchnorm: bool) -> None:
        super().__init__()
        self.up = nn.Sequential()
        convolution = nn.ConvTranspose2d(below, out_channels, 2, stride=2, bias=not batchnorm)
        self.up.add_module("conv", convolution)
        if batchnorm:
            self.up.add_module("norm", nn.BatchNorm2d(out_channels))
        self.up.add_module("relu", nn.ReLU(inplace=True))
        self.block = ConvBlock(out_channels + beside, out_channels, batchnorm)

    def forward(self, x: Tensor, beside: Sequence[Tensor]) -> Tensor:
        """Return (B, out_channels, 2H, 2W) of (B, below, H, W) and maps of (2H, 2W)."""
        joined: Tensor = self.block(torch.cat([self.up(x), *beside], dim=1))
        return joined


class ClassicUnetEncoder(nn.Module):
    """Feature maps at strides 1, 2, 4, 8 and 16, one less or one more.

    Attributes:
        out_channels: of the maps.
        in_channels: of the image.
        multiple: sides of images are multiples of it.
    """

    def __init__(self, in_channels: int, filters: Sequence[int], batchnorm: bool) -> None:
        super().__init__()
        self.multiple = 2 ** (len(filters) - 1)
        self.in_channels, self.out_channels = in_channels, tuple(filters)
        pairs = zip((in_channels, *filters), filters, strict=False)
        self.blocks = nn.ModuleList(ConvBlock(*pair, batchnorm) for pair in pairs)
        he_normal(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, the finest first, of images (B, C, H, W)."""
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(nn.functional.max_pool2d(features[-1], 2)))
        return features


class ClassicUnetDecoder(nn.Module):
    """Back to the size of the image, a level a step.

    Attributes:
        out_channels: of the map it gives.
    """

    def __init__(
        self, channels: Sequence[int], full: bool, filters: Sequence[int], batchnorm: bool
    ) -> None:
        """Make a decoder.

        Args:
            channels: of the encoder's maps, the finest first, each half as large as the one before.
            full: whether the finest has the size of the image; else one more step leads to it.
            filters: of the steps, the deepest first.
            batchnorm: whether each convolution has a BatchNorm behind it, and no bias then.
        """
        super().__init__()
        self.levels = len(channels)
        beside = [*channels[-2::-1], *([] if full else [0])]
        below = (channels[-1], *filters)
        parts = zip(below, beside, filters, strict=False)
        self.blocks = nn.ModuleList(UpBlock(*part, batchnorm) for part in parts)
        self.out_channels = filters[len(beside) - 1]
        he_normal(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, out_channels, H, W) of the encoder's maps; the image may stand before them."""
        maps = features[-self.levels :]
        x = maps[-1]
        for number, block in enumerate(self.blocks):
            place = self.levels - 2 - number
            x = block(x, [maps[place]] if place >= 0 else [])
        return x


class ClassicUnetPlusPlusDecoder(nn.Module):
    """The triangle of nodes of U-Net++; each row has the filters of its step in the U-Net.

    Attributes:
        out_channels: of the map it gives.
    """

    def __init__(
        self, channels: Sequence[int], full: bool, filters: Sequence[int], batchnorm: bool
    ) -> None:
        """Make a decoder; the arguments are those of :class:`ClassicUnetDecoder`."""
        super().__init__()
        self.levels = len(channels)
        rows = filters[self.levels - 2 :: -1]
        self.nodes = nn.ModuleDict()
        for column in range(1, self.levels):
            for row in range(self.levels - column):
                # The first column is the encoder's; of the deepest row there is no other.
                below = channels[row + 1] if column == 1 else rows[row + 1]
                beside = channels[row] + (column - 1) * rows[row]
                node = UpBlock(below, beside, rows[row], batchnorm)
                self.nodes[f"x_{row}_{column}"] = node
        self.last = None if full else UpBlock(rows[0], 0, filters[self.levels - 1], batchnorm)
        self.out_channels = rows[0] if full else filters[self.levels - 1]
        he_normal(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, out_channels, H, W) of the encoder's maps; the image may stand before them."""
        rows = [[level] for level in features[-self.levels :]]
        for column in range(1, self.levels):
            for row in range(self.levels - column):
                node = self.nodes[f"x_{row}_{column}"]
                rows[row].append(node(rows[row + 1][column - 1], rows[row]))
        x = rows[0][-1]
        return x if self.last is None else self.last(x, [])


def usual_filters(maps: Sequence[int], full: bool) -> tuple[int, ...]:
    """Return the filters of a decoder's steps, the deepest first, where none are asked for.

    The published ones of five levels; of four or six, those of the encoder's own levels.

    Args:
        maps: channels of the encoder's maps, the finest first.
        full: whether the finest has the size of the image.
    """
    published = len(maps) == len(FILTERS) or not full
    return DECODER_FILTERS if published else tuple(maps[-2::-1])


def check_filters(
    filters: Sequence[int] | None,
    steps: int,
    encoder: str,
    usual: Sequence[int] = DECODER_FILTERS,
) -> tuple[int, ...]:
    """Return the filters of a decoder's steps.

    Args:
        filters: that were asked for, the deepest first; None: the usual ones. One more than
            there are steps is left, since the published list has five for either encoder.
        steps: that lead to the size of the image.
        encoder: its name, for the message.
        usual: see :func:`usual_filters`.

    Raises:
        UserError: too few or too many.
    """
    given = tuple(filters or usual)
    if not steps <= len(given) <= max(steps, len(DECODER_FILTERS)):
        raise UserError(
            f"--decoder_filters needs {steps} numbers on --encoder {encoder}, the deepest first, "
            f"not {len(given)}"
        )
    return given[:steps]


def he_normal(module: nn.Module) -> None:
    """Fill the convolutions of a module: normal with variance 2/n, cut off at two deviations.

    n is what one value of the output is a sum of; that of a 2x2 transposed convolution of stride 2
    is a sum over one pixel.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan = layer.in_channels * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.ConvTranspose2d):
            fan = layer.in_channels
        else:
            continue
        deviation = math.sqrt(2 / max(1, fan))
        spread = deviation / CUT_OFF
        nn.init.trunc_normal_(layer.weight, std=spread, a=-2 * spread, b=2 * spread)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
