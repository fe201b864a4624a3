"""Measure mean and spread of grey levels: ``python -m matssl.tools.statistics FOLDER``.

FOLDER is a folder of images, with or without masks, or a JSON index. With masks, the images for
training are measured; all pixels count alike. Both trainings take the file by --statistics, so that
several of them see their images alike; without it, each measures its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.errors import UserError, guard
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import ImageSettings, ToolSettings

# What the program calls its file.
NAME = "dataset_stats.json"


@dataclass(frozen=True, repr=False, eq=False)
class StatisticsSettings(ImageSettings, ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "",
        "data",
        "folder of images, or a JSON index of them",
        required=True,
        positional=True,
        leads=paths.dataset,
    )
    output: str = flag(NAME, "results", "JSON file to be written", first=True)
    splits: str | None = flag(
        None,
        "data",
        "json, csv or txt file (or folder of them) that names the images of a split",
        leads=paths.splits,
    )
    split: str | None = flag(
        None, "data", "split to measure; all: every image", auto="train, where there are masks"
    )
    overwrite: bool = flag(False, "results", "replace a file that is there")


SETTINGS = StatisticsSettings


def problems(args: StatisticsSettings) -> list[Problem]:
    """Return what does not go together."""
    wrong = args.image_problems(1 if args.color == "gray" else 3)
    if args.statistics is not None:
        told = "--statistics gives mean and std to a training; here they are measured"
        wrong.append(Problem(told, ("statistics",)))
    return wrong


def main(argv: Sequence[str]) -> int:
    """Measure, write and print; returns 0."""
    args = parse_one(
        SETTINGS,
        argv,
        __doc__ or "",
        problems=problems,
        prog="python -m matssl.tools.statistics",
        here=True,
    )
    from matssl.data import layouts, statistics

    target = Path(args.output)
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} is there already; give another --output, or --overwrite")
    dataset = layouts.find(
        args.folder,
        splits=args.splits,
        group_regex=args.group_regex,
        specimens=args.specimens,
        pixel_size=args.pixel_size,
        need_masks=False,
        opened=(),
    )
    labelled = any(pair.mask is not None for pair in dataset.pairs)
    split = args.split or ("train" if labelled else "all")
    pairs = list(dataset.pairs) if split == "all" else list(dataset.split(split))
    if not pairs:
        raise UserError(
            f"{args.folder} has no split {split!r}; there are: {', '.join(dataset.splits)}, all"
        )
    record = args.record(1 if args.color == "gray" else 3).told(dataset.grouping.pixel_sizes)
    found, content = statistics.measured(record, [(pair.image, pair.mask) for pair in pairs])
    statistics.write({**content, "split": split}, target)
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (found.mean, found.std))
    print(
        f"mean {mean}, std {std} of {counted(len(pairs), 'image')} ({split}), --window "
        f"{record.window}: {target}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
