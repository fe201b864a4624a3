"""A checkpoint of torch to a segmenter: ours, an ensemble, or a bare state dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matssl import hub, weights
from matssl.core import checkpoint
from matssl.core.damage import damage_told
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.data import masks
from matssl.data.layouts import Lists
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.decoders import DECODERS
from matssl.models.segmentation import BackgroundLogit, build_model, check_input_size
from matssl.trained import ensemble
from matssl.trained.member import Member, checked_threshold
from matssl.trained.network import Network
from matssl.trained.segmenter import Segmenter, TrainedOn
from matssl.weights.containers import Content
from matssl.weights.folding import IMAGENET
from matssl.weights.whole import check_complete, segmentation_model

# Side of the square that the published code resizes images to.
PUBLISHED_SIZE = 256


def load(
    path: str | Path,
    device: str,
    precision: str,
    threads: int | None,
    input_size: int | None,
    encoder: str | None,
) -> Segmenter:
    """Return the model in a file of torch; see :meth:`Segmenter.load`, which has the defaults.

    Args:
        path: run folder, checkpoint, state dict, or name in the model hub.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32 or bf16.
        threads: CPU threads of torch, for the whole process; None leaves them as they are.
        input_size: side of a square that images are resized to; None keeps that of the training.
        encoder: name of the encoder of a raw state dict.

    Raises:
        UserError: no such file, one that is incomplete or no segmentation model, or no such device.
    """
    path = hub.locate(path)
    content = weights.read(path)
    # safetensors hold tensors alone, ours too: none of them is a checkpoint.
    if not checkpoint.is_own(content.payload):
        size = input_size or PUBLISHED_SIZE
        model, record, table, note = _published(content, size, encoder)
        network = Network.on(model, device, precision, threads)
        return Segmenter(network, record, table, str(path), raw=True, note=note)
    payload = checkpoint.checked(content.payload, path, stage="finetune")
    if encoder is not None:
        raise UserError(f"{path} says its encoder itself; leave --encoder out")
    members = []
    for model, record, temperature, of in ensemble.models(payload, path, input_size):
        network = Network.on(model, device, precision, threads)
        members.append(Member(network, record, temperature, of))
    lineage = Lineage.read(payload.get("lineage"))
    with damage_told(path):
        trained_on = _trained_on(payload)
        table = ClassTable.from_dict(payload["classes"])
        threshold = _threshold(payload, table)
        factors = ensemble.factors(payload, table.num_classes)
    first = members[0]
    return Segmenter(
        first.network,
        first.record,
        table,
        str(path),
        trained_on,
        lineage,
        temperature=first.temperature if len(members) == 1 else 1.0,
        members=tuple(members) if len(members) > 1 else (),
        threshold=threshold,
        factors=factors,
    )


def _threshold(payload: Mapping[str, Any], table: ClassTable) -> float | None:
    """Return the threshold a model was trained with, None where there is none.

    Raises:
        ValueError: it is none of its classes.
    """
    recipe = payload.get("recipe")
    value = recipe.get("threshold") if isinstance(recipe, Mapping) else None
    return checked_threshold(value, table.num_classes)


def _trained_on(payload: Mapping[str, Any]) -> TrainedOn:
    parts = (payload.get(name) for name in ("recipe", "progress"))
    settings, progress = (part if isinstance(part, Mapping) else {} for part in parts)
    return TrainedOn(
        dataset=settings.get("finetune_dataset"),
        splits=settings.get("splits"),
        group_regex=settings.get("group_regex"),
        mask_folder=settings.get("mask_folder"),
        specimens=settings.get("specimens"),
        seed=int(settings.get("seed", 0)),
        lists=Lists(
            tuple(settings.get("training_set", ())),
            tuple(settings.get("validation_set", ())),
            settings.get("auto_split"),
            settings.get("folds") is not None,
        ),
        images=frozenset(progress.get("train_images", [])),
        digests=frozenset(progress.get("train_digests", [])),
    )


def _published(
    content: Content, input_size: int, encoder: str | None
) -> tuple[nn.Module, Preprocess, ClassTable, str]:
    """Return the model of a raw state dict, as the MatSSL code publishes its fine-tuned ones.

    Such a file holds tensors alone. What they do not say is taken as published: images resized to
    a square and normalised like ImageNet's; of two classes, the second is every mask value above 0.
    """
    whole = segmentation_model(content, encoder)
    description = whole.description
    with torch.random.fork_rng(devices=[]):
        model = build_model(**description, variant=whole.variant)
    check_input_size(model, input_size)
    check_complete(content.path, whole, model.state_dict())
    model.load_state_dict(whole.state, strict=False)
    count, channels = description["num_classes"], description["in_channels"]
    if whole.sigmoid:
        count = 2
        model.segmentation_head.add_module("background", BackgroundLogit())
    given = whole.input or IMAGENET
    mean, std = given.mean, given.std
    if channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    record = Preprocess(
        window="dtype",
        resize=input_size,
        mean=tuple(mean),
        std=tuple(std),
        channels=channels,
        crop_bottom="auto",
    )
    two = count == 2
    numbered = ClassTable("index", tuple(MaskClass(i, f"class {i}", (i,)) for i in range(count)))
    table = masks.binary_table() if two else numbered
    meaning = "0 is background, every other value foreground" if two else f"0 to {count - 1}"
    normalised = "ImageNet normalisation" if whole.input in (None, IMAGENET) else given.name
    note = (
        f"model   raw state dict: {description['decoder']} on {description['encoder']}, {count} "
        f"classes, {channels} channels, read off its tensors\n"
        f"note    it does not say how to use it; assumed as published: images resized to "
        f"{input_size} x {input_size} (--input_size), {normalised}, mask values: {meaning}"
    )
    unsaid = DECODERS[description["decoder"]].unsaid
    note += f", {unsaid}" if unsaid else ""
    note = "\n".join([note, *(f"note    {line}" for line in whole.notes)])
    return model, record, table, note
