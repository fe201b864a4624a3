"""Flags, recipes and configuration files, resolved once into one frozen dataclass per stage.

The dataclasses hold the only defaults. What the user says comes on top in this order:
recipe, then ``--config FILE``, then flags. Nothing here imports torch, so ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from matssl.core.errors import UserError

RECIPE_FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def _flag(default: Any, group: str, help: str, **extra: Any) -> Any:
    """Return a dataclass field that also knows its command-line help."""
    return field(default=default, metadata={"group": group, "help": help, **extra})


@dataclass(frozen=True)
class RunConfig:
    """Flags that every stage has."""

    name: str | None = _flag(None, "run", "name of the run folder (default: from model and data)")
    seed: int = _flag(0, "run", "seed of every random draw")
    device: str = _flag("auto", "run", "auto, cpu, cuda or cuda:N")
    gpu_id: int | None = _flag(
        None, "run", "published spelling of --device cuda:N; the CPU where there is no GPU"
    )
    num_workers: int | None = _flag(
        None, "run", "prefetch threads, same bits for any number (default: 0 on a CPU, 4 on a GPU)"
    )
    threads: int | None = _flag(None, "run", "CPU threads of torch (default: all cores)")
    precision: str = _flag(
        "auto",
        "run",
        "auto is bf16 where the hardware has it",
        choices=("auto", "fp32", "bf16"),
    )
    config: str | None = _flag(None, "run", "YAML file of flags; stronger than the recipe")
    overwrite: bool = _flag(False, "run", "replace an existing run folder of this name")
    debug: bool = _flag(False, "run", "show the traceback of an error")
    quiet: bool = _flag(False, "run", "print only the result")

    def runtime(self) -> Any:
        """Return where the stage computes."""
        from matssl.core import runtime

        return runtime.setup(
            device=self.device,
            gpu_id=self.gpu_id,
            threads=self.threads,
            num_workers=self.num_workers,
            precision=self.precision,
            seed=self.seed,
            deterministic=getattr(self, "deterministic", None),
        )


@dataclass(frozen=True)
class SpeedConfig:
    """Flags of both trainings that trade start-up, speed and equal bits on a GPU."""

    compile: bool = _flag(
        False, "run", "compile the network: minutes at the start, faster steps on a GPU"
    )
    deterministic: bool = _flag(
        False, "run", "same bits on the same GPU, for some speed (a CPU always has them)"
    )


@dataclass(frozen=True)
class LabelConfig:
    """Flags of both stages that read masks."""

    splits: str | None = _flag(
        None, "data", "json, csv or txt file (or folder of them) that names the images of a split"
    )
    classes: str | None = _flag(
        None,
        "data",
        "class names in order (a,b,c), a YAML file that names and merges classes, or binary: all "
        "that is not 0 is one class",
    )


@dataclass(frozen=True)
class ImageConfig:
    """Flags that say how an image file becomes what the network sees."""

    color: str = _flag(
        "gray", "images", "real colour becomes luminance unless rgb", choices=("gray", "rgb")
    )
    window: str = _flag(
        "standard",
        "images",
        "grey levels shown to the network: percentiles of each image, the full range of its type, "
        "mean -/+ 3 standard deviations of each image, or two fixed values (--low, --high)",
        choices=("percentile", "dtype", "standard", "fixed"),
    )
    low: float = _flag(0.5, "images", "lower percentile, or grey value for --window fixed")
    high: float = _flag(99.5, "images", "upper percentile, or grey value for --window fixed")
    crop_bottom: str = _flag(
        "auto", "images", "rows of an information bar to cut off: a number or auto"
    )
    target_pixel_size: str | None = _flag(
        None, "images", "rescale every image to this pixel size, for example 50nm"
    )
    pixel_size: str | None = _flag(
        None, "images", "pixel size of all images, for example 12.5nm; beats metadata"
    )
    group_regex: str | None = _flag(
        None, "images", "regular expression whose first group names the specimen in a file name"
    )

    def record(self, in_channels: int, resize: int | None = None) -> Any:
        """Return the preprocessing record these flags ask for."""
        from matssl.data.preprocess import Preprocess

        return Preprocess.chosen(
            color=self.color,
            window=self.window,
            low=self.low,
            high=self.high,
            crop_bottom=self.crop_bottom,
            target_pixel_size=self.target_pixel_size,
            pixel_size=self.pixel_size,
            channels=in_channels,
            resize=resize,
        )


@dataclass(frozen=True)
class FinetuneConfig(RunConfig, SpeedConfig, LabelConfig, ImageConfig):
    """Flags of train_finetune.py."""

    output_dir: str = _flag("experiments", "run", "folder in which run folders are made")
    finetune_dataset: str = _flag("", "data", "folder of images with masks", required=True)
    recipe: str = _flag(
        "matssl",
        "run",
        "settings: ours (matssl), published ones of MatSSL (paper, and for its data sets metaldam, "
        "aachen, ebc) and of PSCL (pscl), or a file",
    )
    resume: bool = _flag(False, "run", "continue the run of this name where it stopped")
    tensorboard: bool = _flag(False, "run", "also write TensorBoard events (needs tensorboard)")
    note: str = _flag("", "run", "suffix of the run folder's name")
    val_fraction: float = _flag(
        0.2, "data", "share of the training groups that validates where there is no val split"
    )
    max_train_images: int | None = _flag(None, "data", "use only the first N after shuffling")
    data_ratio: float = _flag(1.0, "data", "use only this share of the training images")
    input_size: int | None = _flag(
        None, "images", "published square resize in pixels (default: native resolution)"
    )

    encoder: str = _flag(
        "auto",
        "model",
        "any encoder of segmentation-models-pytorch; auto: that of the weights, else resnet18",
    )
    decoder: str = _flag(
        "auto",
        "model",
        "decoder of the segmentation model; auto: that of the weights where they have one, else "
        "unet",
    )
    in_channels: int = _flag(1, "model", "input channels of the stem", choices=(1, 3))
    ssl_weights_path: str | None = _flag(
        None, "model", "weights of a pretraining run: a file, or a name of the model hub"
    )
    pretrained_decoder: bool = _flag(
        True, "model", "also start from the decoder where the weights have one (spark, pscl)"
    )
    pretrained: str | None = _flag(
        None, "model", "published spelling of --ssl_weights_path; none: random weights"
    )
    pretrained_model: str | None = _flag(
        None,
        "model",
        "the same by the SimCLR study's names, below experiments/pretrained_models",
        choices=("pets", "cifar", "baseline"),
    )
    weights: str = _flag(
        "none", "model", "start without --ssl_weights_path: none, imagenet or a file"
    )

    steps: int = _flag(500, "training", "optimiser steps")
    epochs: int | None = _flag(
        None, "training", "passes over the training images, instead of --steps"
    )
    custom_epochs: int | None = _flag(None, "training", "published spelling of --epochs")
    loss_function: str | None = _flag(
        None, "training", "published spelling of --loss: BCE, Dice or Focal"
    )
    custom_lr: float | None = _flag(None, "training", "published spelling of --lr")
    batch_size: int = _flag(4, "training", "crops a step, over all processes")
    crop_size: int | None = _flag(
        None, "training", "side of a training crop in pixels (default: 192, or --input_size)"
    )
    loss: str = _flag(
        "dice_ce",
        "training",
        "loss function",
        choices=("dice_ce", "dice", "ce", "focal", "bce"),
    )
    class_weights: str = _flag(
        "none",
        "training",
        "weights of the classes in the cross-entropy: none, balanced (by inverse root of the "
        "share), or one number a class (1,1,10,10)",
    )
    lr: float = _flag(1e-3, "training", "peak learning rate of AdamW")
    encoder_lr_factor: float = _flag(1.0, "training", "the encoder's rate relative to --lr")
    weight_decay: float = _flag(1e-2, "training", "weight decay")
    warmup: float = _flag(0.1, "training", "share of the steps with rising learning rate")
    schedule: str = _flag(
        "cosine",
        "training",
        "learning rate after the warm-up",
        choices=("cosine", "constant"),
    )
    clip: float = _flag(1.0, "training", "largest gradient norm; 0: no clipping")
    freeze_encoder_steps: int = _flag(
        0, "training", "steps during which the encoder, its BatchNorm included, stays as it is"
    )
    ema: float = _flag(0.99, "training", "decay of the averaged weights that are kept; 0: none")
    val_every: int = _flag(100, "training", "steps between two validations")
    patience: int = _flag(0, "training", "stop after so many validations without gain; 0: never")
    checkpoint_every: int = _flag(200, "training", "steps between two checkpoints")
    snapshot_every: int = _flag(
        0, "training", "steps between two models that are all kept, in snapshots/; 0: none"
    )

    rare_class_p: float = _flag(
        0.5, "augmentation", "share of crops centred on a class drawn uniformly"
    )
    d4: str = _flag(
        "full",
        "augmentation",
        "orientations drawn: all eight, without quarter turns, mirror only, none",
        choices=("full", "flips", "hflip", "none"),
    )
    scale_jitter: float = _flag(0.0, "augmentation", "crops are zoomed by up to this share")
    brightness: float = _flag(0.2, "augmentation", "grey shift, up to this share of the range")
    contrast: float = _flag(0.2, "augmentation", "contrast changes by up to this share")
    gamma: float = _flag(0.2, "augmentation", "log of the largest gamma")
    illumination: float = _flag(0.0, "augmentation", "slope of uneven light across a crop")
    blur_p: float = _flag(0.2, "augmentation", "share of blurred crops")
    noise_p: float = _flag(0.2, "augmentation", "share of crops with added noise")


@dataclass(frozen=True)
class EvaluateConfig(RunConfig, LabelConfig):
    """Flags of eval_model.py."""

    model_path: str = _flag(
        "", "model", "best.ckpt of train_finetune.py, or a raw state dict of smp", required=True
    )
    dataset: str = _flag("", "data", "folder of images, with or without masks", required=True)
    output_dir: str | None = _flag(
        None, "run", "folder the results go to (default: experiments/eval/NAME)"
    )
    dataset_name: str | None = _flag(None, "data", "name of the data set in the results")
    n_classes: int | None = _flag(
        None, "model", "number of classes the model must have; refused when it has another"
    )
    split: str | None = _flag(
        None, "data", "split to evaluate (default: test, else every image there is)"
    )
    group_regex: str | None = _flag(
        None, "data", "regular expression whose first group names the specimen in a file name"
    )
    pixel_size: str | None = _flag(
        None, "data", "pixel size of all images, for example 12.5nm; beats metadata"
    )
    input_size: int | None = _flag(
        None,
        "prediction",
        "square resize before prediction (default: as trained; 256 for a raw state dict, as "
        "published)",
    )
    batch_size: int = _flag(1, "prediction", "tiles predicted at once; no influence on results")
    tile_size: int | None = _flag(None, "prediction", "tile side in pixels (default: fitted)")
    overlap: int | None = _flag(None, "prediction", "overlap of tiles in pixels (default: fitted)")
    exclude_classes: str | None = _flag(
        None, "results", "names (a,b) that one further mean IoU leaves out"
    )
    tta: bool = _flag(False, "prediction", "average over the eight orientations of each tile")
    save_visualizations: bool = _flag(False, "results", "write one panel picture per image")
    save_probabilities: bool = _flag(False, "results", "write class probabilities as float16 TIFF")
    baselines: bool = _flag(
        True, "results", "also score majority, grey-level and pixel-classifier baselines"
    )
    bootstrap: int = _flag(
        2000, "results", "resamples of the specimens (images where each is one) for the intervals"
    )


Config = TypeVar("Config", bound=RunConfig)


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    description: str,
    choices: Mapping[str, Sequence[str]] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Config:
    """Return the resolved configuration: recipe, environment, ``--config``, then flags.

    Args:
        config_class: the stage's dataclass.
        argv: arguments without the program's name.
        description: first paragraph of ``--help``.
        choices: allowed values of fields whose tables live in other rooms, by field name.
        environment: settings that the recipe does not beat and everything else does.

    Raises:
        UserError: unknown flag, key or value, or a file that cannot be read.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    allowed = {name: tuple(values) for name, values in (choices or {}).items()}
    shown = _recipe_values(fields, argv, allowed) if {"-h", "--help"} & set(argv) else {}
    parser = _parser(fields, description, allowed, shown)
    flags = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    given = dict(flags)
    if flags.get("config"):
        given = _merged(_checked(_read_config(flags, config_class), fields, flags["config"]), flags)
    given = _merged(environment or {}, given)
    if {"steps", "epochs"} <= given.keys():
        raise UserError("--steps and --epochs are two plans; give one of them")
    # A wrong method is said before its recipe is looked for.
    _refuse_other_choices(given, fields, allowed)
    if "recipe" in fields:
        recipe = given.get("recipe", fields["recipe"].default)
        path = find_recipe(recipe, "finetune")
        values = _checked(read_yaml(path), fields, str(path))
    values = _merged(values, given)
    hints = typing.get_type_hints(config_class)
    typed = {k: _typed(v, hints[k], k) for k, v in values.items()}
    _refuse_other_choices(typed, fields, allowed)
    missing = [
        name for name, f in fields.items() if f.metadata.get("required") and not typed.get(name)
    ]
    if missing:
        raise UserError(f"missing {', '.join('--' + name for name in missing)}; see --help")
    return config_class(**typed)


def _recipe_values(
    fields: Mapping[str, dataclasses.Field[Any]],
    argv: Sequence[str],
    allowed: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Return what a run with these flags gets from its recipe, for ``--help``."""
    if "recipe" not in fields:
        return {}
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--recipe", default=str(fields["recipe"].default))
    said = known.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0]
    return read_yaml(find_recipe(said.recipe, "finetune"))


def _read_config(flags: Mapping[str, Any], config_class: type[RunConfig]) -> dict[str, Any]:
    """Return the settings in ``--config``, which may be a file of the SimCLR study."""
    from matssl.stages import published

    for told in published.notes(flags["config"], True) if not flags.get("quiet") else ():
        print(f"note    {told}", flush=True)
    return published.read(Path(flags["config"]), config_class is FinetuneConfig)


def _merged(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Return both layers; steps of one and epochs of the other are one plan, the stronger's."""
    plan = {"steps", "epochs"}
    said = plan & stronger.keys()
    kept = {k: v for k, v in weaker.items() if not (said and k in plan)}
    return {**kept, **stronger}


def _refuse_other_choices(
    values: Mapping[str, Any],
    fields: Mapping[str, dataclasses.Field[Any]],
    allowed: Mapping[str, Sequence[str]],
) -> None:
    for name, value in values.items():
        options = allowed.get(name, fields[name].metadata.get("choices"))
        if options and str(value) not in map(str, options):
            known = ", ".join(map(str, options))
            raise UserError(f"--{name} must be one of {known}, not {value}")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain values, in the order of the dataclass."""
    return dataclasses.asdict(config)


def find_recipe(recipe: str, model: str) -> Path:
    """Return the YAML file of ``recipe`` for ``model``; a path of a file is taken as it is.

    Raises:
        UserError: there is none; the sentence lists those there are.
    """
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe)
    path = RECIPE_FOLDER / f"{model}_{recipe}.yaml"
    if not path.is_file():
        names = sorted(p.stem.removeprefix(f"{model}_") for p in RECIPE_FOLDER.glob(f"{model}_*"))
        raise UserError(f"no recipe {recipe!r} for {model}; there are: {', '.join(names)}")
    return path


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are user errors like all others."""

    def error(self, message: str) -> typing.NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        for word in message.split():
            close = difflib.get_close_matches(word, known, n=1)
            if word.startswith("--") and word not in known and close:
                message += f"; did you mean {close[0]}?"
                break
        raise UserError(f"{message}; see --help")


def _parser(
    fields: Mapping[str, dataclasses.Field[Any]],
    description: str,
    choices: Mapping[str, Sequence[str]],
    shown: Mapping[str, Any],
) -> argparse.ArgumentParser:
    parser = _Parser(description=description, allow_abbrev=False)
    groups: dict[str, Any] = {}
    for f in sorted(fields.values(), key=lambda f: not f.metadata.get("required", False)):
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        help = f.metadata["help"]
        if f.metadata.get("required"):
            help += " (required)"
        elif "(default" not in help or shown.get(f.name) is not None:
            help = re.sub(r" \(default: [^)]*\)", "", help)
            default = shown.get(f.name, f.default)
            help += f" (default: {default})" if default not in (None, "") else ""
        options: dict[str, Any] = {"help": help.replace("%", "%%"), "default": argparse.SUPPRESS}
        if isinstance(f.default, bool):
            options["action"] = argparse.BooleanOptionalAction if f.default else "store_true"
        else:
            options["metavar"] = "X"
            options["type"] = str
            allowed = choices.get(f.name, f.metadata.get("choices"))
            if allowed:
                options["metavar"] = "{" + ",".join(str(a) for a in allowed) + "}"
        groups[title].add_argument(f"--{f.name}", **options)
    return parser


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: no file, no YAML, or no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form name: value")
    return content


def _checked(
    values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]], source: str
) -> dict[str, Any]:
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{source} has an unknown setting {key!r}{hint}")
    return dict(values)


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Return ``value`` as the field's type; YAML's ``1e-4``, which is a string, becomes a float."""
    options = [hint]
    if isinstance(hint, types.UnionType):
        options = [t for t in typing.get_args(hint) if t is not type(None)]
        if value is None:
            return None
    kind = options[0]
    try:
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind is int:
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        if kind is float:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        return str(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"--{name} must be {_KINDS[kind]}, not {value!r}") from None


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
