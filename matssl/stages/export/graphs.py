"""The network of a trained model as it goes out: normalised images to logits, nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.forest.logistic import Linear
from matssl.models.pixels import PixelClassifier
from matssl.models.segmentation import SegmentationModel


class Outgoing(NamedTuple):
    """A network that can be written.

    Attributes:
        module: (N, C, H, W) to logits (N, K, H, W), on the CPU, in evaluation mode.
        multiple: of its H and W.
        encoder: its name.
        decoder: its name.
    """

    module: nn.Module
    multiple: int
    encoder: str
    decoder: str


class Bare(nn.Module):
    """A segmentation model for images whose sides are multiples already: it asks no shape."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.segmentation_head = model.segmentation_head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K, H, W) of images (N, C, H, W)."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return logits


class OnMaps(nn.Module):
    """A linear classifier on the maps of an encoder, all in torch.

    It commutes with bilinear interpolation, so scores instead of features are brought to full size.
    """

    def __init__(self, model: PixelClassifier) -> None:
        super().__init__()
        assert isinstance(model.classifier, Linear)
        self.encoder = model.encoder
        self.features = model.features
        self.register_buffer("weight", torch.from_numpy(model.classifier.weight))
        self.register_buffer("bias", torch.from_numpy(model.classifier.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores (N, K, H, W) of images (N, C, H, W)."""
        scores, start = self.get_buffer("bias")[None, :, None, None], 0
        for level in self.features.maps(x):
            part = self.get_buffer("weight")[start : start + level.shape[1]]
            start += level.shape[1]
            small = F.conv2d(level, part.T[:, :, None, None])
            size = x.shape[-2:]
            scores = scores + F.interpolate(small, size, mode="bilinear", align_corners=False)
        return scores


class Probable(nn.Module):
    """A network that gives probabilities, tempered as the model's own are."""

    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        self.module, self.temperature = module, temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (N, K, H, W) of images (N, C, H, W)."""
        return torch.softmax(self.module(x) / self.temperature, dim=1)


def outgoing(model: nn.Module, source: str) -> Outgoing:
    """Return the network of a model as it goes out.

    Args:
        model: of a segmenter.
        source: its file, named in errors.

    Raises:
        UserError: it is no network: a forest, or a classifier that looks at filters.
    """
    if isinstance(model, SegmentationModel):
        told = model.description
        return Outgoing(Bare(model).eval(), model.multiple, told["encoder"], told["decoder"])
    assert isinstance(model, PixelClassifier)
    if not isinstance(model.classifier, Linear) or model.features.filters:
        looks = "at filters of the picture" if model.features.filters else "through trees"
        raise UserError(
            f"{source} holds a classifier of pixels that looks {looks}, which no graph of a "
            "network can hold; a network or --head linear on an encoder's features can go out"
        )
    return Outgoing(OnMaps(model).eval(), model.multiple, model.features.name, "linear")
