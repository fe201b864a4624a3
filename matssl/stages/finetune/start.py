"""How a fine-tuning begins: its settings, the look at its images, a model with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from matssl import hub, preflight
from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.core.runtime import Runtime
from matssl.data.crops import Labelled
from matssl.data.layouts import Dataset
from matssl.data.masks import ClassTable
from matssl.models import blocks
from matssl.models.segmentation import SegmentationModel, build_model, check_training
from matssl.preflight import Preflight
from matssl.stages import console, lineage, published, resume
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune import start_probe
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.finetune.start_settings import AUTO
from matssl.trained import ensemble
from matssl.weights import WeightsReport


def begun(settings: FinetuneSettings) -> tuple[FinetuneSettings, Runtime, Path]:
    """Return the settings without published spellings, where it computes, and the run's folder.

    Raises:
        UserError: settings that do not go together, or no such device.
    """
    settings = settings.resolved()
    wrong = settings.problems()
    if wrong:
        raise UserError("; ".join(problem.text for problem in wrong))
    console.check_tensorboard(settings.tensorboard)
    rt = settings.runtime()
    name = settings.name or reading.default_name(settings)
    root = Path(settings.output_dir) / "finetune" / name
    if settings.results_dir:
        root = Path(settings.results_dir)
        published.check_absent(root, settings.resume or settings.overwrite)
    return settings, rt, root


def examined(
    settings: FinetuneSettings, rt: Runtime, root: Path
) -> tuple[FinetuneSettings, Dataset, Dataset, Preflight]:
    """Look at the images, and say what was found.

    Args:
        settings: of the command.
        rt: one process prints.
        root: of the run, whose architecture counts where it goes on.

    Returns:
        The settings with encoder, decoder and size of the crops; the folder; the same with its
        labelled images alone; what they hold.

    Raises:
        UserError: anything that is wrong with folder, images or masks.
    """
    # Where the start is still to be chosen, its encoder is known when the images are.
    known_encoder = settings.sees_encoder and not start_probe.waits(settings)
    if known_encoder:
        settings = _named(settings, root)
    unmeasured = settings.record(settings.in_channels, settings.input_size)
    dataset, known, notes = reading.find(settings)
    unmeasured = unmeasured.told(dataset.grouping.pixel_sizes)
    unmeasured = unmeasured.among(dataset.neighbours(settings.input_depth, reading.OPENED))
    assert dataset.table is not None
    if settings.threshold is not None and dataset.table.num_classes != 2:
        raise UserError(
            f"--threshold is for two classes; the masks in {dataset.root} have "
            f"{dataset.table.num_classes} ({', '.join(dataset.table.names)}): --classes binary "
            "makes two of them"
        )
    if known_encoder and not settings.classifies:
        settings, told = _tried(settings, dataset.table)
        notes = (*notes, *told)
    found = preflight.examine_dataset(dataset, unmeasured, opened=reading.OPENED)
    found.judged.refuse_misfits()
    console.say(settings, rt, found.text())
    for note in notes:
        console.say(settings, rt, f"note    {note}")
    return settings, dataset, known, found


def _named(settings: FinetuneSettings, root: Path) -> FinetuneSettings:
    """Return the settings with encoder and decoder by their names; a head has no decoder."""
    encoder, decoder = reading.architecture(settings, root)
    encoder = reading.named_encoder(settings, encoder)
    if settings.classifies:
        decoder = settings.decoder
    return replace(settings, encoder=encoder, decoder=decoder)


def _tried(
    settings: FinetuneSettings, table: ClassTable
) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """Return the settings with the size of the crops, where a model can be built as they say.

    The second is what is to be said of it.
    """
    model = built(settings, table)
    if settings.finetune_blocks not in (blocks.ALL, blocks.NONE):
        blocks.wanted(model.encoder, settings.finetune_blocks, settings.encoder)
    if settings.layer_decay < 1:
        blocks.told_blocks(model.encoder, settings.encoder, "--layer_decay 1")
    if settings.whole_images:
        return settings, ()
    asked, settings = (
        settings.crop_size,
        replace(settings, crop_size=reading.crop_size(settings, model)),
    )
    if not asked or settings.input_size is not None or settings.crop_size == asked:
        return settings, ()
    return settings, (
        f"crops of {settings.crop_size} px instead of {asked}: whole patches of the encoder",
    )


def started(
    settings: FinetuneSettings, rt: Runtime, root: Path, inputs: Inputs
) -> tuple[FinetuneSettings, start_probe.Comparison | None]:
    """Return the settings with the start that is taken, and how it does beside others at hand.

    Args:
        settings: from :func:`examined`.
        rt: where it computes.
        root: of the run, whose start counts where it goes on.
        inputs: its images.

    Raises:
        UserError: see :func:`matssl.stages.finetune.start_probe.compared`.
    """
    if settings.resume:
        return _as_before(settings, root), None
    waited = start_probe.waits(settings)
    settings, found = start_probe.compared(settings, rt, inputs)
    if waited:
        settings, notes = _tried(_named(settings, root), inputs.table)
        for note in notes:
            console.say(settings, rt, f"note    {note}")
    if found is not None and found.warning and settings.quiet and rt.is_main:
        print(found.warning, flush=True)
    return settings, found


def _as_before(settings: FinetuneSettings, root: Path) -> FinetuneSettings:
    """Return the settings of a run that goes on with the start that was chosen at its beginning."""
    if settings.ssl_weights_path != AUTO:
        return settings
    recipe = resume.load(root, "finetune")[0]["recipe"]
    own = {name: recipe[name] for name in ("ssl_weights_path", "weights")}
    return replace(settings, **own)


def built(settings: FinetuneSettings, table: ClassTable) -> SegmentationModel:
    """Return the model of a run with random weights, the same ones whatever was drawn before."""
    torch.manual_seed(settings.seed)
    return build_model(
        settings.encoder,
        settings.decoder,
        table.num_classes,
        settings.in_channels,
        decoder_filters=settings.decoder_filters,
        batchnorm=settings.batchnorm,
    )


def filled(
    settings: FinetuneSettings, model: SegmentationModel, inputs: Inputs
) -> tuple[WeightsReport | None, Mapping[str, Any]]:
    """Fill a model with the weights that a run begins with.

    Returns:
        What arrived, None of random weights; what the model had learned from, where it was a whole
        fine-tuned one.

    Raises:
        UserError: see :func:`matssl.weights.load` and :func:`take_whole`.
    """
    if settings.resume:
        # Its weights lie in the checkpoint; the file it started from may be gone.
        return None, {}
    if settings.whole_model:
        return take_whole(settings, model, inputs.table)
    source = settings.ssl_weights_path or settings.weights
    decoder = settings.pretrained_decoder
    return lineage.start_weights(model, source, settings.encoder, inputs.record, decoder), {}


def take_whole(
    settings: FinetuneSettings, model: SegmentationModel, table: ClassTable
) -> tuple[WeightsReport, dict[str, Any]]:
    """Fill a model with all of a fine-tuned one, decoder and head included.

    Args:
        settings: whose weights are the file of that model.
        model: of the run.
        table: its classes.

    Returns:
        What arrived, and the progress of the run that made the file: what it has learned from.

    Raises:
        UserError: the file is no fine-tuned model, an ensemble, or one of other classes or of
            another network.
    """
    path = hub.locate(str(settings.start_file))
    payload = checkpoint.load(path, stage="finetune")
    found = ensemble.models(payload, path, None)
    other = found[0][0]
    if len(found) > 1 or not isinstance(other, SegmentationModel):
        raise UserError(f"--whole_model: {path} is no single network; give one of its models")
    names = ClassTable.from_dict(payload["classes"]).names
    if names != table.names:
        raise UserError(
            f"--whole_model: {path} knows {', '.join(names)}; the masks have "
            f"{', '.join(table.names)}. Leave --whole_model out to take its encoder alone"
        )
    if other.description != model.description:
        here, there = dict(model.description), dict(other.description)
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        told = "; ".join(f"{key} {there.get(key)} there, {here.get(key)} here" for key in keys)
        raise UserError(f"--whole_model: {path} is another network ({told})")
    return lineage.start_model(model, path), payload["progress"]


def sampled(settings: FinetuneSettings, table: ClassTable, images: Labelled) -> FinetuneSettings:
    """Return the settings with the side of a square that holds each image whole, where asked.

    Args:
        settings: with the side of a crop, where samples are crops.
        table: classes of the model.
        images: all that are learned from, in every fold.
    """
    if settings.crop_size is not None or settings.classifies:
        return settings
    return replace(settings, crop_size=reading.side_of_images(images, built(settings, table)))


def check_batches(settings: FinetuneSettings, model: SegmentationModel, images: int) -> None:
    """Refuse batches that the model cannot be trained with; see ``check_training``."""
    assert settings.crop_size is not None
    still = settings.freeze_encoder_steps >= reading.total_steps(settings, images)
    still = still or settings.finetune_blocks != blocks.ALL
    check_training(
        model,
        settings.batch_size,
        settings.crop_size,
        settings.in_channels,
        flag="--crop_size",
        frozen=model.encoder if still else None,
    )
