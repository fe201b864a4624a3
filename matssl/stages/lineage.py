"""The weights a training starts from, and the chain behind them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from matssl import weights
from matssl.core import checkpoint
from matssl.core.damage import file_hash
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.data.preprocess import Preprocess
from matssl.models.segmentation import SegmentationModel
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


def start_model(model: SegmentationModel, path: Path) -> WeightsReport:
    """Fill a whole model, head included, from the checkpoint of a fine-tuning of the same kind.

    Args:
        model: filled in place.
        path: best.ckpt of a run.

    Raises:
        UserError: it cannot be read, or is of another model: all tensors arrive, or none.
    """
    payload = checkpoint.load(path, stage="finetune")
    state, own = payload["state"], model.state_dict()
    misfits = [
        name
        for name in sorted({*state, *own})
        if name not in state or name not in own or state[name].shape != own[name].shape
    ]
    if misfits:
        raise UserError(
            f"{path} is another model's: {len(misfits)} of {len(own)} tensors do not fit (first: "
            f"{misfits[0]})"
        )
    model.load_state_dict(state)
    encoder = [name for name in own if name.startswith("encoder.")]
    return WeightsReport(
        path=str(path),
        layout="a whole fine-tuned model",
        matched=len(encoder),
        total=len(encoder),
        dropped=(),
        notes=(f"decoder and head: all {len(own) - len(encoder)} tensors loaded",),
        sha256=file_hash(path),
        lineage=Lineage.read(payload["lineage"]),
        parts=("encoder", "decoder", "segmentation_head"),
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
