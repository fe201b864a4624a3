"""The weights a training starts from, and the chain behind them."""

from __future__ import annotations

from torch import nn

from matssl import weights
from matssl.core.lineage import Lineage
from matssl.data.preprocess import Preprocess
from matssl.weights import WeightsReport
from matssl.weights.folding import seen


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
    mean, std = seen(record)
    return weights.start(
        model,
        source,
        encoder,
        in_channels=record.channels,
        mean=mean,
        std=std,
        decoder=decoder,
        frames=record.depth,
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
