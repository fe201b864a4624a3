"""Run a study: ``python -m matssl.tools.study FILE.yaml``; start it again to go on.

A study compares starts (random, ImageNet, weights files, pretraining runs) on data sets with
several numbers of labelled images and seeds. Every job is one of the three commands, as it is.
Results go to OUTPUT_DIR/NAME: table.md, table.csv, curves.png and the run folders.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matssl.core.errors import guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one, read_settings
from matssl.core.wording import counted
from matssl.stages.settings import BAR_HELP, LARGEST_SEED, ToolSettings, bar_problem


@dataclass(frozen=True)
class StudySettings(ToolSettings):
    """Flags of the command."""

    study: str = flag(
        "",
        "run",
        "YAML file, or the name of a study that comes with matssl",
        required=True,
        positional=True,
    )
    root: str = flag("datasets", "data", "folder that paths in the file start from")
    output_dir: str = flag("experiments/studies", "run", "folder of all studies")
    seeds: tuple[int, ...] = flag(
        (), "run", "instead of those in the file", low=0, high=LARGEST_SEED
    )
    variants: tuple[str, ...] = flag((), "run", "only these of the file's")
    starts: tuple[str, ...] = flag((), "run", "only these, so that processes can share a study")
    crop_bottom: str | None = flag(
        None, "data", BAR_HELP, auto="as the file says of each folder", check=bar_problem
    )
    dry_run: bool = flag(False, "run", "check, print the commands, stop")
    table: bool = flag(False, "run", "only write the table of what is done")


SETTINGS = StudySettings


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the study and write its table; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.study")
    from matssl.study import plan as plans
    from matssl.study.runner import Runner

    file = plans.find(args.study)
    content = read_settings(file)
    if args.seeds:
        content["seeds"] = list(args.seeds)
    if args.crop_bottom is not None:
        _cut(content, args.crop_bottom)
    plan = plans.read(content, file.stem)
    out = Path(args.output_dir) / plan.name
    part = plan.only(args.variants, args.starts)
    runner = Runner(part, Path(args.root), out, file.parent)
    if not args.table:
        runner.check()
    if args.dry_run:
        commands = runner.commands.all()
        for words in commands:
            print("python", " ".join(words))
        scripts = [words[0] for words in commands]
        pretrainings, tunings = (scripts.count(f"train_{s}.py") for s in ("ssl", "finetune"))
        # Beside the commands, which may be piped into a shell.
        told = f"{counted(pretrainings, 'pretraining')}, {counted(tunings, 'fine-tuning')}"
        print(told, file=sys.stderr)
        return 0
    if not args.table:
        runner.run()
    Runner(plan, Path(args.root), out, file.parent).write_table()
    return 0


def _cut(content: dict[str, Any], rows: str) -> None:
    """Put ``--crop_bottom`` into the content of a study's file, above all that the file says."""
    starts = content.get("starts")
    known = starts.values() if isinstance(starts, dict) else ()
    places = [content.setdefault("pretrain", {})]
    places += [start.get("pretrain") for start in known if isinstance(start, dict)]
    if isinstance(content.get("datasets"), dict):
        places += content["datasets"].values()
    for place in places:
        # What is no table is refused where the plan is read.
        if isinstance(place, dict):
            place["crop_bottom"] = rows
    if isinstance(content.get("evaluate"), dict):
        content["evaluate"].pop("crop_bottom", None)


if __name__ == "__main__":
    sys.exit(guard(main))
