"""Flags of ``matssl.tools.export_model``; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.flags import Problem, flag
from matssl.stages.settings import ToolSettings, weights_file

TARGETS = ("onnx", "openvino", "bioimageio", "torchscript")
# Folder of the files, beside the checkpoint.
FOLDER = "exported"


def run_problem(run: str) -> str:
    """Return what is wrong with the model to be exported, "" where nothing is."""
    if run in ("none", "imagenet"):
        return f"{run} names no fine-tuned model; give a run folder of train_finetune.py"
    return weights_file(run)


def pictures_problem(path: str) -> str:
    """Return what is wrong with ``--pictures``, "" where nothing is."""
    return "" if Path(path).exists() else f"--pictures {path}: there is no such file or folder"


@dataclass(frozen=True, repr=False, eq=False)
class ExportSettings(ToolSettings):
    """Flags of the command."""

    run: str = flag(
        "",
        "data",
        "run folder or checkpoint of train_finetune.py, also of an ensemble",
        required=True,
        positional=True,
        check=run_problem,
    )
    to: str = flag(
        "onnx",
        "results",
        "what is written: onnx and openvino run without torch, by eval_model.py too; bioimageio is "
        "a package for other programs; torchscript needs torch",
        choices=TARGETS,
        first=True,
    )
    output_dir: str | None = flag(
        None, "results", "folder to write", auto=f"{FOLDER}/ beside the checkpoint"
    )
    pictures: str | None = flag(
        None,
        "data",
        "picture or folder of pictures on which the file is compared with torch, beside synthetic "
        "ones",
        check=pictures_problem,
    )
    int8: bool = flag(
        False,
        "network",
        "whole numbers of 8 bits in the place of floats (--to openvino, --calibrate FOLDER)",
    )
    calibrate: str | None = flag(
        None,
        "data",
        "folder of micrographs by which --int8 chooses its scales, and on which its loss is "
        "measured; of scores too where it holds masks",
        leads=paths.dataset,
    )
    tile_size: int | None = flag(
        None,
        "network",
        "side of the square tiles of a network that takes no others (vision transformers)",
        auto="the first multiple of what it needs from 512 on",
        low=32,
        high=4096,
    )
    pack: bool = flag(
        False,
        "results",
        "also write pack.zip: all that a computer without a network needs (--to onnx or openvino)",
    )
    overwrite: bool = flag(False, "results", "replace the files of an earlier export")


def problems(args: ExportSettings) -> list[Problem]:
    """Return what does not go together."""
    wrong = []
    if args.int8 and args.to != "openvino":
        told = f"--int8 needs --to openvino, not {args.to}"
        wrong.append(Problem(told, ("int8", "to")))
    if args.int8 and args.calibrate is None:
        told = "--int8 needs --calibrate FOLDER, micrographs like those to be segmented"
        wrong.append(Problem(told, ("int8", "calibrate")))
    if args.calibrate is not None and not args.int8:
        wrong.append(Problem("--calibrate acts with --int8", ("calibrate", "int8")))
    if args.pack and args.to not in ("onnx", "openvino"):
        told = f"--pack is for a computer without torch: --to onnx or openvino, not {args.to}"
        wrong.append(Problem(told, ("pack", "to")))
    return wrong
