"""Vision transformers before the decoders of convolutional encoders: a pyramid of their blocks.

All maps of a vision transformer have the size of its patches. Before a decoder that goes up by
halves, the first block's map is enlarged by transposed convolutions to stride 2, the second to 4,
the third to 8, the fourth stays at 16 (as in the simple feature pyramid of ViTDet, Li et al. 2022,
arXiv:2203.16527, but of four blocks, as DPT has it). Of patches of 14 pixels the strides are 7/8 of
that, and the logits are brought to the size of the image at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segmentation_models_pytorch.base import initialization
from torch import Tensor, nn

from matssl.models import vit

# Channels of the four maps, the finest first; those of a ResNet's stages.
WIDTHS = (64, 128, 256, 512)


class Level(nn.Sequential):
    """A map of tokens to one of some channels, doubled or halved a few times."""

    def __init__(self, in_channels: int, out_channels: int, doublings: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 1)]
        for _ in range(doublings):
            layers += [
                nn.ConvTranspose2d(out_channels, out_channels, 2, stride=2, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        for _ in range(-doublings):
            layers.append(nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1))
        super().__init__(*layers)


class OnTokens(nn.Module):
    """A decoder of convolutional encoders behind the pyramid that it asks for.

    Attributes:
        levels: from a block's map to one of the pyramid, by number.
        decoder: the decoder itself.
    """

    def __init__(
        self,
        encoder: vit.VitEncoder,
        decoder: Callable[[Sequence[int]], nn.Module],
        wanted: Sequence[int] = range(vit.MAPS),
    ) -> None:
        """Make both.

        Args:
            encoder: whose maps are taken.
            decoder: channels of the maps, the image's first, to the decoder.
            wanted: numbers of the maps that it looks at, the finest first.
        """
        super().__init__()
        steps = vit.doublings(encoder.stride)
        self.stride = vit.nominal(encoder.stride)
        self.levels = nn.ModuleDict(
            {str(n): Level(encoder.out_channels[n], WIDTHS[n], steps[n]) for n in wanted}
        )
        initialization.initialize_decoder(self.levels)
        self.decoder = decoder((encoder.in_channels, *WIDTHS))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the decoder's map of the encoder's; class tokens before them are left out."""
        maps = features[-vit.MAPS :]
        # As large as an image of patches of 16 pixels; its pixels are not looked at.
        pyramid = [_blank(maps[0], self.stride)]
        for number, level in enumerate(maps):
            # A map that the decoder does not look at has a place, but no channels.
            wanted = str(number) in self.levels
            own = self.levels[str(number)](level) if wanted else _blank(level, 1)
            pyramid.append(own)
        result: Tensor = self.decoder(pyramid)
        return result


def _blank(level: Tensor, scale: int) -> Tensor:
    """Return a map without channels, so many times as large as another."""
    height, width = level.shape[-2:]
    return level.new_empty((level.shape[0], 0, scale * height, scale * width))


class Network(nn.Module):
    """Encoder, decoder and head, under smp's names."""

    def __init__(
        self, encoder: vit.VitEncoder, decoder: nn.Module, head: nn.Module, stride: int = 1
    ) -> None:
        """Join them.

        Args:
            encoder: gives the maps.
            decoder: of these maps.
            head: from the decoder's map to logits of the same size.
            stride: of the decoder's map, where the encoder's is a power of two.
        """
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.segmentation_head = nn.Sequential(head, *resized(encoder.stride, stride))


def resized(patch: int, stride: int) -> list[nn.Module]:
    """Return what brings logits to the size of the image; nothing where they have it.

    Args:
        patch: side of a patch.
        stride: of the logits, where that is a power of two.
    """
    scale = stride * patch / vit.nominal(patch)
    return [] if scale == 1 else [nn.Upsample(scale_factor=scale, mode="bilinear")]


def network(
    encoder: str,
    in_channels: int,
    classes: int,
    decoder: Callable[[Sequence[int]], nn.Module],
    channels: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    wanted: Sequence[int] = range(vit.MAPS),
) -> nn.Module:
    """Return a model of a vision transformer and a decoder of convolutional encoders.

    Args:
        encoder: its name.
        in_channels: of the image.
        classes: of the logits.
        decoder: see :class:`OnTokens`; with its first weights.
        channels: of the decoder's map.
        kernel: side of the head's.
        stride: of the decoder's map.
        wanted: see :class:`OnTokens`.
    """
    body = vit.VitEncoder(encoder, in_channels)
    whole = OnTokens(body, decoder, wanted)
    head = nn.Conv2d(channels, classes, kernel, padding=kernel // 2)
    initialization.initialize_head(head)
    return Network(body, whole, head, stride)


def initialised(decoder: nn.Module) -> nn.Module:
    """Return a decoder of the library with the weights that it starts from there."""
    initialization.initialize_decoder(decoder)
    return decoder
