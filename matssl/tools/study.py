"""Run a study: ``python -m matssl.tools.study FILE.yaml``; start it again to go on.

A study compares arms (random, ImageNet, weights files, pretraining runs, each with flags of its
own) on data sets with several numbers of labelled images and seeds. Every job is one of the three
commands, as it is. Results go to OUTPUT_DIR/NAME: table.md, table.csv, classes.csv, curves.png, run
folders, and results/, small files that alone suffice for --table. Several processes may share one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matssl.core.errors import Incomplete, UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one, read_settings
from matssl.core.wording import counted
from matssl.stages.settings import BAR_HELP, LARGEST_SEED, ToolSettings, bar_problem
from matssl.study import CLUSTERS, KEEP


def option_problem(option: str) -> str:
    """Return what is wrong with a word of ``--cluster_options``."""
    key, sign, value = option.partition("=")
    if key.strip().isidentifier() and sign and value.strip():
        return ""
    return f"--cluster_options {option}: KEY=VALUE is wanted, as in timeout_min=240"


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
    starts: tuple[str, ...] = flag((), "run", "only these of the file's starts and arms")
    datasets: tuple[str, ...] = flag((), "run", "only these of the file's")
    labels: tuple[str, ...] = flag((), "run", "only these numbers of labelled images of the file's")
    jobs: int = flag(
        1,
        "run",
        "so many jobs at once, each with one thread and its output in OUTPUT_DIR/NAME/logs; 1: one "
        "after the other, on the screen",
        low=1,
        high=1024,
        first=True,
    )
    cluster: str | None = flag(
        None,
        "run",
        "each task as a job of a cluster, through submitit: slurm (arrays of jobs), or local "
        "(processes here, to try it); --jobs: so many at once",
        auto="here",
        choices=CLUSTERS,
    )
    cluster_options: tuple[str, ...] = flag(
        (),
        "run",
        "KEY=VALUE,... for submitit: timeout_min, cpus_per_task, mem_gb, gpus_per_node, "
        "slurm_partition, slurm_account, ...",
        check=option_problem,
    )
    minutes: float | None = flag(
        None,
        "run",
        "minutes after which no job is started any more",
        auto="until all are done",
        low=0,
        high=1_000_000,
    )
    keep: str = flag(
        KEEP[0],
        "run",
        "of a job whose scores are noted: its models and reports, or none of them (scores alone)",
        choices=KEEP,
    )
    crop_bottom: str | None = flag(
        None, "data", BAR_HELP, auto="as the file says of each folder", check=bar_problem
    )
    dry_run: bool = flag(False, "run", "check, print the commands, stop")
    table: bool = flag(False, "run", "only write the table of what is done")


SETTINGS = StudySettings


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the study and write its table; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.study")
    if args.cluster_options and args.cluster is None:
        raise UserError("--cluster_options goes with --cluster, which is not given")
    from matssl.study import cluster, crew
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
    part = plan.only(args.variants, args.starts, args.datasets, args.labels)
    # A job of SLURM has cores of its own.
    threads = 1 if args.jobs > 1 and args.cluster != "slurm" else None
    runner = Runner(part, Path(args.root), out, file.parent, args.keep, threads)
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
    failed: dict[str, str] = {}
    whole = Runner(plan, Path(args.root), out, file.parent)
    if not args.table:
        if args.cluster is not None:
            left = cluster.run(
                runner,
                args.jobs,
                args.minutes,
                cluster=args.cluster,
                options=args.cluster_options,
            )
        elif args.jobs > 1:
            left = crew.run(runner, args.jobs, args.minutes)
        else:
            left = runner.run(args.minutes)
        failed = left.failed
        if left.late and left.waiting:
            told = counted(len(left.waiting), "task is", "tasks are")
            print(f"time is up: {told} left for the next start", flush=True)
    if args.table or whole.results():
        whole.write_table()
    if failed:
        raise Incomplete(
            f"{counted(len(failed), 'task')} of the study failed, tried again at the next start: "
            + "; ".join(f"{name}: {why}" for name, why in failed.items())
        )
    return 0


def _cut(content: dict[str, Any], rows: str) -> None:
    """Put ``--crop_bottom`` into the content of a study's file, above all that the file says."""
    places = [content.setdefault("pretrain", {})]
    for key in ("starts", "arms"):
        known = content[key].values() if isinstance(content.get(key), dict) else ()
        places += [start.get("pretrain") for start in known if isinstance(start, dict)]
    if isinstance(content.get("pretraining"), dict):
        places += content["pretraining"].values()
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
