"""Flags of train_ssl.py that every method has; those of a method lie beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from matssl import methods
from matssl.core import parsing, paths
from matssl.core.errors import UserError
from matssl.core.flags import Command, Parsed, Problem, declared, flag, peek
from matssl.methods import METHODS
from matssl.methods.settings import GuidedSettings, MethodSettings
from matssl.stages.settings import (
    DEEPEST,
    MASK_FOLDER_HELP,
    ImageSettings,
    RunSettings,
    TrainingSettings,
    classes_problem,
    weights_file,
)

DESCRIPTION = (
    "Pretrain an encoder on a folder of unlabelled micrographs. Weights, pictures and a report go "
    "to experiments/ssl/NAME. Next: train_finetune.py --ssl_weights_path "
    "experiments/ssl/NAME/encoder.safetensors"
)


@dataclass(frozen=True, repr=False, eq=False)
class PretrainSettings(RunSettings, TrainingSettings, ImageSettings):
    """Flags of train_ssl.py."""

    model: str = flag("matssl", "method", "self-supervised method", first=True)
    data_path: str = flag(
        "",
        "data",
        "folder of unlabelled micrographs, or a JSON index of them",
        required=True,
        leads=paths.dataset,
    )
    recipe: str = flag(
        "matssl",
        "run",
        "published settings (paper) or ours for micrographs (matssl), or a file; "
        "the defaults shown are those of the --model and --recipe beside --help",
        first=True,
    )
    test_folder: str | None = flag(
        None,
        "data",
        "labelled folder whose images must not be in the pool; copies are reported",
        leads=paths.folder,
    )
    on_bad_image: str = flag(
        "skip", "data", "what to do with unreadable files", choices=("skip", "stop")
    )
    cache_dir: str | None = flag(
        None, "data", "folder of the decoded pool", auto="OUTPUT_DIR/cache; none: no cache"
    )
    file_list: str | None = flag(
        None,
        "data",
        "text file of further image paths, one a line, relative to --list_root",
        leads=paths.file_list,
    )
    list_root: str | None = flag(
        None, "data", "folder the paths of --file_list start from", leads=paths.folder
    )

    view_size: int = flag(128, "views", "side of a view in pixels", low=32, high=8192)
    tile_size: int | None = flag(
        None,
        "views",
        "side of the tiles an image counts for in an epoch",
        auto="2 x view",
        low=32,
        high=1_000_000,
    )
    views_on: str = flag(
        "cpu",
        "views",
        "where views are made: one by one on the CPU, or all of a batch at once on --device, whose "
        "memory holds the whole pool then; a few pixels differ by a grey level or two",
        choices=("cpu", "device"),
    )
    scale_min: float = flag(
        0.3, "views", "smallest crop, as a share of the tile's area", above=0, high=1
    )
    scale_max: float = flag(
        1.0, "views", "largest crop, as a share of the tile's area", above=0, high=1
    )
    d4: str = flag(
        "full",
        "views",
        "orientations drawn: all eight, without quarter turns, mirror only, none",
        choices=("full", "flips", "hflip", "none"),
    )
    brightness: float = flag(0.3, "views", "brightness changes by up to this share", low=0, high=10)
    contrast: float = flag(0.3, "views", "contrast changes by up to this share", low=0, high=10)
    gamma: float = flag(0.3, "views", "log of the largest gamma", low=0, high=10)
    photometry_p: float = flag(
        0.8, "views", "share of views with changed grey levels", low=0, high=1
    )
    solarise_p: float = flag(0.0, "views", "share of solarised views", low=0, high=1)
    blur_p: float = flag(0.5, "views", "share of blurred views", low=0, high=1)
    second_blur_p: float | None = flag(
        None, "views", "the same of the second view", auto="as the first", low=0, high=1
    )
    second_solarise_p: float | None = flag(
        None,
        "views",
        "share of solarised second views",
        auto="as the first",
        low=0,
        high=1,
    )
    first_view: str = flag(
        "crop",
        "views",
        "whether the first view is a crop like the second, or the whole tile upright; then the "
        "second is a crop of each side, between the roots of --scale_min and --scale_max",
        choices=("crop", "whole"),
    )
    frame_positives: int = flag(
        0,
        "views",
        "the second view shows a frame of the sequence up to so many frames away, at the same "
        "place, instead of the image itself; 0: the image",
        low=0,
        high=DEEPEST // 2,
    )
    blur_sigma: float = flag(1.0, "views", "largest Gaussian blur in view pixels", low=0, high=1000)
    noise_p: float = flag(0.5, "views", "share of views with added noise", low=0, high=1)
    noise_sigma: float = flag(
        0.02, "views", "largest noise as a share of the grey range", low=0, high=10
    )

    encoder: str = flag(
        "resnet18",
        "method",
        "any encoder of segmentation-models-pytorch; vision transformers of timm (dinov2-vit-s14, "
        "...) but for spark and pscl",
        first=True,
    )
    weights: str = flag(
        "none",
        "method",
        "start: none, imagenet or a weights file",
        first=True,
        leads=weights_file,
    )
    in_channels: int = flag(
        1,
        "method",
        "input channels of the stem: 1 or 3; as many as --input_depth where that is above 1",
        low=1,
        high=DEEPEST,
    )
    splits: str | None = flag(
        None,
        "data",
        "names the training and validation images of --labeled_path and --probe_path; others are "
        "never opened",
        leads=paths.splits,
    )
    classes: str | None = flag(
        None,
        "data",
        "classes of the masks of --labeled_path and --probe_path, as of train_finetune.py",
        check=classes_problem,
        leads=paths.class_file,
    )
    mask_folder: str | None = flag(
        None, "data", "of --labeled_path and --probe_path: " + MASK_FOLDER_HELP
    )
    probe_path: str | None = flag(
        None,
        "data",
        "folder of a few images with masks on which a linear read-out scores the encoder from time "
        "to time; the best one is kept as encoder_best.safetensors",
        leads=paths.folder,
    )
    probe_every: int | None = flag(
        None,
        "training",
        "steps between two scores of --probe_path",
        auto="20 in a run, fewer where they would take more than 2 % of its time",
        low=1,
    )
    snapshot_every: int = flag(
        0, "training", "steps between two encoders that are all kept, in snapshots/; 0: none", low=0
    )

    steps: int | None = flag(
        None,
        "training",
        "optimiser steps",
        auto="the recipe's plan, else 3000",
        low=1,
        excludes="epochs",
        first=True,
    )
    epochs: int | None = flag(
        None,
        "training",
        "passes over the tiles, instead of --steps",
        low=1,
        excludes="steps",
        first=True,
    )
    batch_size: int = flag(
        32, "training", "samples a step, over all processes", low=2, high=1 << 20, first=True
    )
    optimizer: str = flag(
        "sgd",
        "training",
        "optimiser",
        choices=("sgd", "lars", "lars_byol", "lamb", "adam", "adamw"),
    )
    lr: float = flag(0.1, "training", "learning rate, before --lr_scaling", above=0, high=1000)
    lr_scaling: str = flag(
        "none",
        "training",
        "linear: lr x batch/256; sqrt: lr x sqrt(batch); sqrt_32: lr x sqrt(batch/32)",
        choices=("none", "linear", "sqrt", "sqrt_32"),
    )
    momentum: float = flag(0.9, "training", "momentum of SGD and LARS", low=0, below=1)
    weight_decay: float = flag(1e-4, "training", "weight decay", low=0, high=1000)
    weight_decay_end: float | None = flag(
        None,
        "training",
        "weight decay of the last step, along a cosine",
        auto="constant",
        low=0,
        high=1000,
    )
    decay_all: bool = flag(
        False, "training", "weight decay also of biases and normalisation layers"
    )
    warmup: float = flag(
        0.05, "training", "share of the steps with rising learning rate", low=0, below=1
    )
    schedule: str = flag(
        "cosine",
        "training",
        "learning rate after the warm-up; cosine_epoch changes once an epoch, cosine_floor is "
        "SparK's",
        choices=("cosine", "cosine_epoch", "cosine_floor", "constant"),
    )
    clip: float = flag(0.0, "training", "largest gradient norm; 0: no clipping", low=0, high=1e9)
    on_collapse: str = flag(
        "warn", "training", "what to do when embeddings collapse", choices=("warn", "stop")
    )

    def problems(self) -> list[Problem]:
        """Return what does not go together, one sentence each."""
        wrong = self.image_problems(self.in_channels)
        if self.scale_min > self.scale_max:
            told = "--scale_min and --scale_max are shares of the area, 0 < min <= max <= 1"
            wrong.append(Problem(told, ("scale_min", "scale_max")))
        if self.resume and not self.name:
            wrong.append(Problem("--resume needs the --name of the run", ("name",)))
        return wrong


class Resolved(NamedTuple):
    """What a command line of train_ssl.py says.

    Attributes:
        run: flags that every method has.
        method: the method's own.
        idle: names of given flags that have no effect with this method.
    """

    run: PretrainSettings
    method: MethodSettings
    idle: tuple[str, ...]


def command(model: str, others: bool = True) -> Command:
    """Return the command line of train_ssl.py for a method.

    Args:
        model: whose flags it has.
        others: whether those of other methods are understood, too.
    """
    own = methods.settings_class(model)
    kinds = [methods.settings_class(name) for name in methods.distinct()] if others else []
    return Command(
        DESCRIPTION,
        (PretrainSettings, own),
        tuple(kind for kind in kinds if kind is not own),
        methods.recipes(model),
        model,
        {"model": tuple(METHODS)},
    )


def resolve(
    argv: Sequence[str],
    environment: Mapping[str, object] | None = None,
    here: bool = False,
) -> Resolved:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        environment: settings that beat the recipe alone.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """

    def read(path: str) -> Mapping[str, object]:
        from matssl.stages import published

        kinds = (PretrainSettings, *map(methods.settings_class, methods.distinct()))
        own = {name for kind in kinds for name in declared(kind)}
        return published.read(path, finetune=False, own=own)

    model = peek(argv, "model")
    file = peek(argv, "config")
    asked = bool({"-h", "--help"} & set(argv))
    if model is None and file and not asked:
        # What is wrong with the file is told with all else.
        with suppress(UserError):
            model = str(read(file).get("model", PretrainSettings.model))
    if model not in METHODS:
        # Which ones there are is said with all else that is wrong.
        model = str(PretrainSettings.model)
    parsed = parsing.parse(
        command(model, not asked),
        argv,
        environment=environment,
        read=read,
        problems=_problems,
        here=here,
    )
    run, method = _parts(parsed)
    if run.input_depth > 1:
        run = replace(run, in_channels=run.input_depth)
    return Resolved(run, method, (*parsed.unused, *_without_effect(run, method)))


def _parts(parsed: Parsed) -> tuple[PretrainSettings, MethodSettings]:
    return parsed.section(PretrainSettings), parsed.section(MethodSettings)


def _problems(parsed: Parsed) -> list[Problem]:
    run, method = _parts(parsed)
    return run.problems() + method.problems(run.batch_size)


def _without_effect(run: PretrainSettings, method: MethodSettings) -> list[str]:
    """Return names of common flags that were changed and act on nothing in this run."""
    names = []
    if run.probe_path is None:
        names = ["probe_every"] + (
            [] if isinstance(method, GuidedSettings) else ["splits", "classes", "mask_folder"]
        )
    found = [name for name in names if getattr(run, name) is not None]
    return found + ["frame_positives"] * (run.frame_positives > 0 and not method.paired)
