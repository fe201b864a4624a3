"""DPT: Ranftl et al. 2021 (arXiv:2103.13413), of segmentation-models-pytorch.

Tokens of four blocks of a vision transformer, each joined with its class token, are laid out as
maps at strides 4, 8, 16 and 32 and fused from the coarsest up. The library's own way doubles each
map, which asks for sides of twice the patch and for patches of a power of two; here each fused map
takes the size of the one it meets, which gives the same numbers where the library can run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from segmentation_models_pytorch.base import initialization
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from torch import Tensor, nn

from matssl.models import vit
from matssl.models.decoders import Kind, Variant
from matssl.models.decoders.tokens import resized

# Of the four maps, the finest first, and of their fusion.
INTERMEDIATE, FUSION = (256, 512, 1024, 1024), 256
# Of its map.
STRIDE = 2


class DptDecoder(DPTDecoder):  # type: ignore[misc]
    """From class tokens and maps to a map at half the size of the image."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, FUSION, 8 h, 8 w) of maps (B, D, h, w), class tokens before them if any."""
        maps, classes = features[-vit.MAPS :], features[: -vit.MAPS]
        laid = []
        for number, level in enumerate(maps):
            tokens = classes[number].flatten(1)[:, None] if classes else None
            laid.append(
                self.reassemble_blocks[number](self.projection_blocks[number](level, tokens))
            )
        fused: Tensor | None = None
        for number, block in enumerate(self.fusion_blocks):
            level = block.residual_conv_block1(laid[-1 - number])
            joined = level if fused is None else level + fused
            joined = block.residual_conv_block2(joined)
            above = laid[-2 - number].shape[-2:] if number + 1 < len(laid) else None
            size = above or (2 * joined.shape[-2], 2 * joined.shape[-1])
            larger = F.interpolate(joined, size=size, mode="bilinear", align_corners=True)
            fused = block.project(larger)
        assert fused is not None
        return fused


class Head(DPTSegmentationHead):  # type: ignore[misc]
    """The library's head, and the logits brought to the size of the image."""

    def __init__(self, channels: int, classes: int, patch: int) -> None:
        super().__init__(channels, classes, upsampling=STRIDE)
        self.larger = nn.Sequential(*resized(patch, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes, H, W)."""
        logits: Tensor = self.larger(super().forward(x))
        return logits


class Network(nn.Module):
    """Encoder, decoder and head, under smp's names and with its first weights."""

    def __init__(self, encoder: vit.VitEncoder, classes: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = _decoder(encoder, channels)
        self.segmentation_head = Head(channels[-1], classes, encoder.stride)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)


def _decoder(encoder: vit.VitEncoder, channels: tuple[int, ...]) -> DptDecoder:
    stride = vit.nominal(encoder.stride)
    return DptDecoder(
        encoder_out_channels=encoder.out_channels,
        encoder_output_strides=(stride,) * vit.MAPS,
        encoder_has_prefix_tokens=encoder.has_class,
        readout="cat" if encoder.has_class else "ignore",
        intermediate_channels=channels[:-1],
        fusion_channels=channels[-1],
    )


def _model(encoder: str, in_channels: int, classes: int, variant: Variant) -> nn.Module:
    # The deepest first, as of all decoders; then that of the fusion.
    given = variant.channels
    channels = (*given[3::-1], given[4]) if given else (*INTERMEDIATE, FUSION)
    return Network(vit.VitEncoder(encoder, in_channels), classes, channels)


def _alone(encoder: nn.Module) -> nn.Module:
    assert isinstance(encoder, vit.VitEncoder)
    return _decoder(encoder, (*INTERMEDIATE, FUSION))


DPT = Kind(DptDecoder, _model, _alone, channels=FUSION, stride=STRIDE)
