"""The phases of a set of micrographs, found in cells of a few of them: joined or clustered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl import phases
from matssl.core import checkpoint
from matssl.core.damage import damage_told
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.core.wording import counted
from matssl.data.preprocess import Preprocess
from matssl.methods import method_class
from matssl.methods.slotcon.method import SlotCon
from matssl.models.encoders import build_encoder, encoder_facts
from matssl.trained.encoder import Encoder, around
from matssl.trained.network import Network

# What the phases are found on: cells of so many images, of windows of this side in large ones.
SAMPLED_IMAGES, WINDOW = 64, 512
# Cells that an image gives to the clustering of features.
CELLS_PER_IMAGE = 1024
# Prototypes that win less of the cells are no phase of their own.
LEAST_SHARE = 0.01
DEFAULT_CLUSTERS = 4
ONE_PHASE = (
    "the prototypes of this run all win the same places, so there is one phase: they have not "
    "parted yet, or the images are of one phase; train longer, or lower --teacher_temperature"
)


@dataclass(frozen=True)
class Source:
    """What a checkpoint of pretraining gives.

    Attributes:
        scores: input (B, C, H, W) to cosines with prototypes, or to features; (B, D, h, w).
        temperature: of the prototypes' softmax; None where there are features to cluster.
        network: what the scores are computed with.
        multiple: of the sides of its input.
        record: how images are read.
        method: of the pretraining.
        lineage: the chain of what it was trained from.
    """

    scores: Callable[[Tensor], Tensor]
    temperature: float | None
    network: Network
    multiple: int
    record: Preprocess
    method: str
    lineage: Lineage

    def described(self, origin: Sequence[Sequence[int]]) -> str:
        """Return in words what phases are made of.

        Args:
            origin: prototypes, or the cluster, of each phase.
        """
        if self.temperature is None:
            return f"{len(origin)} clusters of the features of a {self.method} encoder"
        return f"{len(origin)}, of {counted(sum(map(len, origin)), 'prototype')}"


def load(path: Path | str, device: str, precision: str) -> Source:
    """Return what maps phases in a checkpoint of pretraining.

    Args:
        path: run folder, or its last.ckpt.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32 or bf16.

    Raises:
        UserError: no such checkpoint, one of another stage, or one that is incomplete.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "last.ckpt").is_file():
            raise UserError(f"{path} holds no last.ckpt; give the run folder of train_ssl.py")
        path = path / "last.ckpt"
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds an encoder alone; a phase map needs the last.ckpt of its run, which "
            "also says how images are read"
        )
    payload = checkpoint.load(path)
    if payload.get("stage") == "finetune":
        raise UserError(
            f"{path} is a segmentation model with classes of its own; "
            f"eval_model.py --model_path {path} --dataset FOLDER draws them"
        )
    payload = checkpoint.checked(payload, path, stage="ssl")
    lineage = Lineage.read(payload.get("lineage"))
    with damage_told(path):
        record, method = Preprocess.from_dict(payload["preprocess"]), payload["method"]
        if method == "slotcon":
            slots = _prototypes(payload, record)
            network = Network.on(slots, device, precision)
            temperature = slots.settings.teacher_temperature
            multiple = encoder_facts(slots.encoder).multiple
            scores = slots.prototype_scores
            return Source(scores, temperature, network, multiple, record, method, lineage)
        name = payload["recipe"]["encoder"]
        encoder = Encoder.load(path, encoder=name, device=device, precision=precision)
    scores, network, multiple = encoder.unit_features, encoder.network, encoder.multiple
    return Source(scores, None, network, multiple, record, method, lineage)


def _prototypes(payload: Mapping[str, Any], record: Preprocess) -> SlotCon:
    """Return the method with its prototypes as the checkpoint has them."""
    settings = payload["recipe"]
    channels = settings["in_channels"]
    encoder = build_encoder(settings["encoder"], channels)
    kind = method_class("slotcon")
    method = kind.from_settings(encoder, channels, record.mean, record.std, settings)
    method.load_state_dict(payload["state"])
    assert isinstance(method, SlotCon)
    return method


def find(
    source: Source, record: Preprocess, paths: Sequence[Path], wanted: int | None
) -> tuple[nn.Module, list[list[int]]]:
    """Return the model of the phases' logits, and which prototypes each phase is made of.

    Args:
        source: what says how cells are alike.
        record: how the images are read.
        paths: of the images.
        wanted: how many phases; None leaves the prototypes, or takes DEFAULT_CLUSTERS clusters.

    Raises:
        UserError: fewer phases than were asked for, or only one.
    """
    places = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLED_IMAGES, len(paths))).astype(int))
    sampled = [paths[int(place)] for place in places]
    cells = (_cells(source, record, path) for path in sampled)
    if source.temperature is None:
        count = wanted or DEFAULT_CLUSTERS
        rows = np.concatenate([_spread(part, CELLS_PER_IMAGE) for part in cells])
        if len(np.unique(rows, axis=0)) < count:
            raise UserError(f"these images have fewer than {count} kinds of cells")
        centres, variance = phases.cluster(rows, count)
        nearest = phases.NearestCentre(source.scores, centres, variance, source.multiple)
        return nearest, [[i] for i in range(count)]
    won, alike = np.zeros(1), np.zeros((1, 1))
    for part in cells:
        assignment = torch.from_numpy(part).double().div(source.temperature).softmax(1).numpy()
        won = won + np.bincount(part.argmax(1), minlength=part.shape[1])
        alike = alike + assignment.T @ assignment
    phase = _joined(alike, won / won.sum(), wanted)
    model = phases.JoinedPrototypes(source.scores, phase, source.temperature, source.multiple)
    return model, [np.flatnonzero(phase == i).tolist() for i in range(int(phase.max()) + 1)]


def _joined(
    alike: NDArray[np.float64], won: NDArray[np.float64], wanted: int | None
) -> NDArray[np.int64]:
    """Return the phase of each prototype; a sentence where there are too few of them."""
    try:
        phase = phases.join(alike, won, LEAST_SHARE, wanted)
    except ValueError:
        used = len(set(phases.join(alike, won, LEAST_SHARE, None)))
        if used > 1:
            raise UserError(
                f"the prototypes of this run tell {used} phases apart in these images; "
                f"ask for --phases {used} or fewer"
            ) from None
        raise UserError(ONE_PHASE) from None
    if phase.max() == 0:
        raise UserError(ONE_PHASE)
    return phase


def _spread(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return at most ``count`` rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def _cells(source: Source, record: Preprocess, path: Path) -> NDArray[np.float32]:
    """Return what the network says of the cells of an image, float32 (R, D)."""
    plane = record.plane(record.read(path))
    rows = []
    for top, left in windows(plane.shape[0], plane.shape[1]):
        image = record.tensor(plane[top : top + WINDOW, left : left + WINDOW])
        (found,) = around(lambda x: [source.scores(x)], image, source.network, source.multiple)
        rows.append(found.reshape(len(found), -1).T)
    return np.concatenate(rows)


def windows(height: int, width: int) -> list[tuple[int, int]]:
    """Return where the windows of an image begin: one, or two along each longer side."""
    tops, lefts = (
        [min(max(0, place - WINDOW // 2), side - WINDOW) for place in (side // 4, 3 * side // 4)]
        if side > WINDOW
        else [0]
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]
