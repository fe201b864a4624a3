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
    parser = _parser(fields, description, allowed, {})
    flags = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    given = dict(flags)
    if flags.get("config"):
        found = read_yaml(Path(flags["config"]))
        given = _merged(_checked(found, fields, flags["config"]), flags)
    given = _merged(environment or {}, given)
    _refuse_other_choices(given, fields, allowed)
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


def _merged(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    return {**weaker, **stronger}


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
