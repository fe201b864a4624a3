"""Encoder and decoder as one model: logits at the size of the input."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.models import small_unet
from matssl.models.decoders import DECODERS

# Five halvings.
STRIDE = 32


class SegmentationModel(nn.Module):
    """A model of segmentation-models-pytorch that takes any image size.

    Attributes:
        encoder: pyramid of features, the part that pretraining gives.
        decoder: from pyramid to full resolution.
        segmentation_head: from decoder channels to class logits.
        description: what :func:`build_model` needs to make it again.
    """

    def __init__(self, model: Any, description: dict[str, Any]) -> None:
        super().__init__()
        # The names are smp's, so that state dicts of smp models fit as they are.
        self.encoder: nn.Module = model.encoder
        self.decoder: nn.Module = model.decoder
        self.segmentation_head: nn.Module = model.segmentation_head
        self.description = description

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes, H, W) of images (B, C, H, W)."""
        height, width = x.shape[-2:]
        bottom, right = -height % STRIDE, -width % STRIDE
        if bottom or right:
            # Mirrored borders look like specimen; zeros would look like a dark phase.
            small = bottom >= height or right >= width
            x = F.pad(x, (0, right, 0, bottom), mode="replicate" if small else "reflect")
        logits = self.segmentation_head(self.decoder(self.encoder(x)))
        result: Tensor = logits[..., :height, :width]
        return result


def build_model(
    encoder: str, decoder: str, num_classes: int, in_channels: int = 1
) -> SegmentationModel:
    """Return a segmentation model with random weights.

    Args:
        encoder: any encoder name of segmentation-models-pytorch.
        decoder: a key of DECODERS.
        num_classes: channels of the logits.
        in_channels: channels of the input.

    Raises:
        UserError: no such encoder or decoder, or two that do not go together.
    """
    if decoder not in DECODERS:
        raise UserError(f"there is no decoder {decoder!r}; there are: {', '.join(DECODERS)}")
    small_unet.check_pair(encoder, decoder)
    try:
        model = DECODERS[decoder](
            encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes
        )
    except KeyError as error:
        raise UserError(
            f"there is no encoder {encoder!r}; resnet18, resnet34, resnet50 and resnet101 are usual"
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the encoder {encoder!r} does not go with the decoder {decoder} and {in_channels} "
            f"input channels ({reason}); resnet18, resnet34, resnet50 and resnet101 do"
        ) from error
    description = {
        "encoder": encoder,
        "decoder": decoder,
        "num_classes": num_classes,
        "in_channels": in_channels,
    }
    return SegmentationModel(model, description)
