"""Settings of train_finetune.py: the only defaults, their ranges, and what does not go together."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matssl.core import parsing, paths
from matssl.core.flags import Command, Problem, declared, flag, peek, to_dict
from matssl.decoders import described, segmenting
from matssl.stages.finetune import forest_settings
from matssl.stages.finetune.augmentation_settings import AugmentationSettings
from matssl.stages.finetune.forest_settings import ForestSettings
from matssl.stages.finetune.ingredient_settings import IngredientSettings
from matssl.stages.finetune.rare_settings import THIN_LOSSES, RareSettings
from matssl.stages.finetune.sections import ListSettings, NetworkSettings, ScoreSettings
from matssl.stages.finetune.semi_settings import SemiSettings
from matssl.stages.finetune.stage_plan import StagedSettings
from matssl.stages.finetune.start_settings import AUTO, StartSettings, start_problem
from matssl.stages.settings import (
    DEEPEST,
    ImageSettings,
    LabelSettings,
    RunSettings,
    TrainingSettings,
    weights_file,
)

DESCRIPTION = (
    "Train a segmentation model on a folder of images with masks, from pretrained weights or from "
    "random ones. The model and a report go to experiments/finetune/NAME. Next: eval_model.py "
    "--model_path experiments/finetune/NAME/best.ckpt"
)
RECIPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recipes")
# Side of a training crop where nothing says another.
CROP_SIZE = 192
# The keys of matssl.models.losses.LOSSES; a test holds that they agree.
LOSSES = ("dice_ce", "dice", "ce", "focal", "bce", "dice_bce", *THIN_LOSSES)
# Values of --class_weights that are no numbers.
NAMED_WEIGHTS = ("none", "balanced")
# Value of --folds for as many as there are specimens.
ALL, MOST_FOLDS = "all", 1000


def loss_problem(name: str) -> str:
    """Return what is wrong with a published name of a loss, "" where nothing is."""
    if name.lower() in LOSSES:
        return ""
    return f"--loss_function must be BCE, Dice or Focal, not {name}"


def folds_problem(text: str) -> str:
    """Return what is wrong with ``--folds``, "" where nothing is."""
    if text == ALL or (text.isascii() and text.isdigit() and 2 <= int(text[:9]) <= MOST_FOLDS):
        return ""
    return f"--folds must be 2 to {MOST_FOLDS}, or {ALL} (a fold for each specimen), not {text}"


def given_weights(class_weights: str) -> tuple[float, ...]:
    """Return the class weights that are given as numbers; empty where they are none above 0."""
    try:
        given = tuple(float(word) for word in class_weights.split(","))
    except ValueError:
        return ()
    return given if all(0 < value < math.inf for value in given) else ()


def class_weights_problem(class_weights: str) -> str:
    """Return what is wrong with ``--class_weights``, "" where nothing is."""
    if class_weights in NAMED_WEIGHTS or given_weights(class_weights):
        return ""
    return (
        "--class_weights must be none, balanced or numbers above 0, one for each class (1,1,10), "
        f"not {class_weights}"
    )


def study_weights(name: str) -> str:
    """Return what is wrong with the weights of the SimCLR study of a name."""
    from matssl.stages import published

    return "" if name == "baseline" else weights_file(published.STUDY_WEIGHTS.format(name))


@dataclass(frozen=True, repr=False, eq=False)
class FinetuneSettings(
    RunSettings,
    TrainingSettings,
    LabelSettings,
    ImageSettings,
    NetworkSettings,
    ScoreSettings,
    ListSettings,
    ForestSettings,
    AugmentationSettings,
    IngredientSettings,
    RareSettings,
    SemiSettings,
    StagedSettings,
    StartSettings,
):
    """Flags of train_finetune.py."""

    finetune_dataset: str = flag(
        "",
        "data",
        "folder of images with masks, or a JSON index of them",
        required=True,
        leads=paths.dataset,
    )
    recipe: str = flag(
        "matssl",
        "run",
        "settings: ours (matssl), published ones of MatSSL (paper, and for its data sets metaldam, "
        "aachen, ebc) and of PSCL (pscl), or a file",
        first=True,
    )
    note: str = flag("", "run", "suffix of the run folder's name")
    val_fraction: float = flag(
        0.2,
        "data",
        "share of the training groups that validates where there is no val split; 0: none, nor do "
        "folds inside a few images choose the number of steps",
        low=0,
        below=1,
    )
    folds: str | None = flag(
        None,
        "data",
        "cross-validation: train so many models (2 or more; all: one for each specimen), each "
        "without the specimens of its fold, which it is then scored on; test images stay closed",
        auto="one model",
        first=True,
        check=folds_problem,
    )
    max_train_images: int | None = flag(None, "data", "use only the first N after shuffling", low=1)
    data_ratio: float = flag(
        1.0,
        "data",
        "use only this share of the training images",
        above=0,
        high=1,
    )
    input_size: int | None = flag(
        None,
        "images",
        "published square resize in pixels",
        auto="native resolution",
        low=1,
        high=8192,
    )

    encoder: str = flag(
        "auto",
        "model",
        "any encoder of segmentation-models-pytorch or vision transformer of timm "
        "(dinov2-vit-s14, dinov3-vit-s16, ...); auto: that of the weights, else resnet18",
        first=True,
    )
    decoder: str = flag(
        "auto",
        "model",
        "decoder of the segmentation model; auto: that of the weights where they have one, else "
        f"unet. {described(segmenting())}",
        choices=("auto", *segmenting()),
        first=True,
    )
    in_channels: int = flag(
        1,
        "model",
        "input channels of the stem: 1 or 3; as many as --input_depth where that is above 1",
        low=1,
        high=DEEPEST,
    )
    ssl_weights_path: str | None = flag(
        None,
        "model",
        "weights of a pretraining run: a file, or a name of the model hub; auto: the best start at "
        "hand, by a linear read-out on the labelled images",
        first=True,
        leads=start_problem,
    )
    pretrained_decoder: bool = flag(
        True, "model", "also start from the decoder where the weights have one (spark, pscl)"
    )
    pretrained: str | None = flag(
        None,
        "model",
        "published spelling of --ssl_weights_path; none: random weights",
        leads=weights_file,
    )
    pretrained_model: str | None = flag(
        None,
        "model",
        "the same by the SimCLR study's names, below experiments/pretrained_models",
        choices=("pets", "cifar", "baseline"),
        leads=study_weights,
    )
    weights: str = flag(
        "none",
        "model",
        "start without --ssl_weights_path: none, imagenet or a file",
        leads=weights_file,
    )

    steps: int = flag(500, "training", "optimiser steps", low=1, excludes="epochs", first=True)
    epochs: int | None = flag(
        None,
        "training",
        "passes over the training images, instead of --steps",
        low=1,
        excludes="steps",
    )
    custom_epochs: int | None = flag(None, "training", "published spelling of --epochs", low=1)
    loss_function: str | None = flag(
        None, "training", "published spelling of --loss: BCE, Dice or Focal", check=loss_problem
    )
    custom_lr: float | None = flag(
        None, "training", "published spelling of --lr", above=0, high=1000
    )
    batch_size: int = flag(4, "training", "crops a step, over all processes", low=1, high=1 << 20)
    crop_size: int | None = flag(
        None,
        "training",
        "side of a training crop in pixels",
        auto="192, to a multiple of patches; or --input_size",
        low=1,
        high=8192,
        excludes="whole_images",
    )
    loss: str = flag("dice_ce", "training", "loss function", choices=LOSSES)
    class_weights: str = flag(
        "none",
        "training",
        "weights of the classes in the cross-entropy: none, balanced (by inverse root of the "
        "share), or one number a class (1,1,10,10)",
        check=class_weights_problem,
        commas=True,
    )
    lr: float = flag(1e-3, "training", "peak learning rate of AdamW", above=0, high=1000)
    encoder_lr_factor: float = flag(
        1.0, "training", "the encoder's rate relative to --lr", low=0, high=1000
    )
    weight_decay: float = flag(1e-2, "training", "weight decay", low=0, high=1000)
    warmup: float = flag(
        0.1, "training", "share of the steps with rising learning rate", low=0, below=1
    )
    schedule: str = flag(
        "cosine",
        "training",
        "learning rate after the warm-up",
        choices=("cosine", "constant"),
    )
    clip: float = flag(1.0, "training", "largest gradient norm; 0: no clipping", low=0, high=1e9)
    freeze_encoder_steps: int = flag(
        0,
        "training",
        "steps during which the encoder, its BatchNorm included, stays as it is",
        low=0,
    )
    ema: float = flag(
        0.99,
        "training",
        "decay of the averaged weights that are kept; 0: none",
        low=0,
        below=1,
    )
    val_every: int = flag(
        100, "training", "steps between two validations", low=1, excludes="val_epochs"
    )
    patience: int = flag(
        0, "training", "stop after so many validations without gain; 0: never", low=0
    )
    snapshot_every: int = flag(
        0, "training", "steps between two models that are all kept, in snapshots/; 0: none", low=0
    )

    rare_class_p: float = flag(
        0.5, "augmentation", "share of crops centred on a class drawn uniformly", low=0, high=1
    )
    d4: str = flag(
        "full",
        "augmentation",
        "orientations drawn: all eight, without quarter turns, mirror only, none; each: all eight "
        "in turn",
        choices=("full", "flips", "hflip", "none", "each"),
    )
    scale_jitter: float = flag(
        0.0,
        "augmentation",
        "log of the largest zoom: crops show a field of e^-X to e^X times their side, drawn evenly "
        "in the log (0.69: half to twice, as multi-scale training has it)",
        low=0,
        high=2,
    )
    rotation: float = flag(
        0.0, "augmentation", "crops are turned by up to so many degrees either way", low=0, high=180
    )
    brightness: float = flag(
        0.2, "augmentation", "grey shift, up to this share of the range", low=0, high=10
    )
    contrast: float = flag(
        0.2, "augmentation", "contrast changes by up to this share", low=0, high=10
    )
    gamma: float = flag(0.2, "augmentation", "log of the largest gamma", low=0, high=10)
    illumination: float = flag(
        0.0, "augmentation", "slope of uneven light across a crop", low=0, high=10
    )
    blur_p: float = flag(0.2, "augmentation", "share of blurred crops", low=0, high=1)
    noise_p: float = flag(0.2, "augmentation", "share of crops with added noise", low=0, high=1)

    @property
    def again(self) -> str | None:
        """Flags that go on with a run that was broken off; None where only its folder tells."""
        if self.results_dir:
            return f"--results_dir {self.results_dir} --resume"
        return f"--name {self.name} --resume" if self.name else None

    @property
    def start_file(self) -> str | None:
        """File, or name in the hub, of the weights the training starts from; None without one."""
        source = self.ssl_weights_path or self.pretrained or self.weights
        return None if source in ("none", "imagenet", AUTO) else source

    @property
    def started(self) -> bool:
        """Whether weights are given that the training starts from, ImageNet's among them."""
        return (self.ssl_weights_path or self.pretrained or self.weights) != "none"

    @property
    def sees_encoder(self) -> bool:
        """Whether an encoder takes part: that of a network, or one whose maps are features."""
        return not self.classifies or self.seen(self.started) != "filters"

    def problems(self) -> list[Problem]:
        """Return what does not go together, one sentence each."""
        wrong = self.image_problems(self.in_channels)
        if self.class_weights != "none" and self.resolved().loss == "dice":
            told = "--class_weights act in a cross-entropy; --loss dice has none"
            wrong.append(Problem(told, ("class_weights", "loss", "loss_function")))
        if self.data_ratio < 1 and self.max_train_images is not None:
            told = "give --data_ratio or --max_train_images, not both"
            wrong.append(Problem(told, ("data_ratio", "max_train_images")))
        again, staged = self.resume and self.folds is None, self.stages is not None
        wrong += self.forest_problems(again, self.resolved().started, staged)
        if self.resume and not (self.name or self.results_dir):
            wrong.append(Problem("--resume needs the --name of the run", ("name",)))
        wrong += self.network_problems(self.encoder, self.decoder)
        if self.whole_model and self.start_file is None:
            told = "--whole_model needs the file of a fine-tuned model in --weights"
            wrong.append(Problem(told, ("whole_model", "weights", "ssl_weights_path")))
        wrong += self.sample_problems(self.input_size, self.rare_class_p, self.d4)
        wrong += self.list_problems(self.splits, self.name)
        several = {"folds": self.folds, "stages": self.stages, "results_dir": self.results_dir}
        wrong += self.start_problems(self.ssl_weights_path, self.classifies)
        wrong += self.ingredient_problems(self.classifies, several)
        wrong += self.loss_problems(self.resolved().loss, self.threshold, self.average_with)
        wrong += self.staged_problems(self.folds, self.classifies, self.results_dir)
        others = {"folds": self.folds, "stages": self.stages, "whole_images": self.whole_images}
        others |= {"head": self.classifies, "input_depth": self.input_depth > 1}
        wrong += self.semi_problems(others, self.compile, self.ensemble)
        return wrong

    def resolved(self) -> FinetuneSettings:
        """Return the settings with the published spellings in our own fields."""
        new = self
        if new.pretrained_model:
            from matssl.stages import published

            named = published.STUDY_WEIGHTS.format(new.pretrained_model)
            new = replace(new, pretrained="none" if new.pretrained_model == "baseline" else named)
        if new.pretrained:
            none = new.pretrained == "none"
            new = replace(new, ssl_weights_path=None if none else new.pretrained)
        if new.loss_function:
            new = replace(new, loss=new.loss_function.lower())
        if new.custom_lr:
            new = replace(new, lr=new.custom_lr)
        if new.custom_epochs:
            new = replace(new, epochs=new.custom_epochs)
        if new.input_depth > 1:
            new = replace(new, in_channels=new.input_depth)
        if new.note and new.name:
            new = replace(new, name=f"{new.name}-{new.note}", note="")
        return new

    def unheeded(self) -> list[str]:
        """Return the flags that were given and that a head without a network does not heed.

        As they are typed.
        """
        own, heeded = (
            to_dict(self),
            (*forest_settings.HEEDED, *(forest_settings.OF_ENCODERS if self.sees_encoder else ())),
        )
        plain = to_dict(resolve(["--finetune_dataset", ".", "--recipe", self.recipe]))
        return [
            known.word
            for name, known in declared(FinetuneSettings).items()
            if (known.flag.group in forest_settings.GROUPS and name not in heeded)
            or name in forest_settings.UNHEEDED
            if own[name] not in (plain[name], known.default)
        ]


def resolve(argv: Sequence[str], here: bool = False) -> FinetuneSettings:
    """Return what a command line says, with the published spellings in our own fields.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """

    def read(path: str) -> Mapping[str, Any]:
        from matssl.stages import published

        return published.read(path, finetune=True, own=declared(FinetuneSettings))

    command = Command(
        DESCRIPTION,
        (FinetuneSettings,),
        recipes=RECIPES,
        owner="fine-tuning",
        prog="train_finetune.py",
    )
    environment = None
    if peek(argv, "pretrained_model") and not peek(argv, "config"):
        from matssl.stages import published

        # The study's command without a file.
        environment = published.STUDY_TUNED | published.STUDY_COMMAND
    parsed = parsing.parse(
        command,
        argv,
        environment=environment,
        read=read,
        problems=lambda found: found.section(FinetuneSettings).problems(),
        here=here,
    )
    return parsed.section(FinetuneSettings).resolved()
