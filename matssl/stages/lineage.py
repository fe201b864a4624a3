"""The weights a training starts from, and the chain behind them."""

from __future__ import annotations

from torch import nn

from matssl import weights
from matssl.core.lineage import Lineage
from matssl.data.preprocess import Preprocess
from matssl.weights import WeightsReport


def start_weights(
    model: nn.Module, source: str | None, encoder: str, record: Preprocess, decoder: bool = True
) -> WeightsReport | None:
    """Fill a model's encoder before training; return None where it starts from random weights.

    Args:
        model: an encoder, or a model that has one.
        source: "imagenet", a file, "none" or None.
        encoder: its name.
        record: how the images of this training are normalised.
        decoder: whether a pretrained decoder is used.

    Raises:
        UserError: see :func:`matssl.weights.load`.
    """
    if source is None or source == "none":
        return None
    # Grey levels stretched image by image have unit variance, which is what ImageNet's networks
    # were given; grey levels left as they are differ from ImageNet's by a known mean and std.
    as_recorded = record.window == "dtype"
    return weights.start(
        model,
        source,
        encoder,
        in_channels=record.channels,
        mean=record.mean if as_recorded else None,
        std=record.std if as_recorded else None,
        decoder=decoder,
    )


def origin(started_from: WeightsReport | None, resumed: bool) -> str:
    """Return in words where the weights come from."""
    if resumed:
        return "weights of the checkpoint"
    return started_from.text() if started_from else "weights random"


def ancestors(started_from: WeightsReport | None) -> Lineage:
    """Return the chain behind the weights a run starts from."""
    if started_from is None:
        return Lineage()
    file = {"weights": started_from.layout, "sha256": started_from.sha256}
    return started_from.lineage.then(file)
