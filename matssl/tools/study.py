"""Run a study: ``python -m matssl.tools.study FILE.yaml``; start it again to go on.

A study compares starts (random, ImageNet, weights files, pretraining runs) on data sets with
several numbers of labelled images and seeds. Every job is one of the three commands, as it is.
Results go to OUTPUT_DIR/NAME: table.md, table.csv, curves.png and the run folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matssl.core import config
from matssl.core.errors import guard
from matssl.core.wording import counted


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the study and write its table; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.study",
        description=__doc__.replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="YAML file, or the name of a study that comes with matssl")
    parser.add_argument(
        "--root", default="datasets", help="folder that paths in the file start from"
    )
    parser.add_argument("--output_dir", default="experiments/studies", help="folder of all studies")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those in the file")
    parser.add_argument("--variants", nargs="+", default=(), help="only these of the file's")
    parser.add_argument(
        "--starts", nargs="+", default=(), help="only these, so that processes can share a study"
    )
    parser.add_argument("--dry_run", action="store_true", help="check, print the commands, stop")
    parser.add_argument("--table", action="store_true", help="only write the table of what is done")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    from matssl.study import plan as plans
    from matssl.study.runner import Runner

    file = plans.find(args.study)
    content = config.read_yaml(file)
    if args.seeds:
        content["seeds"] = args.seeds
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


if __name__ == "__main__":
    sys.exit(guard(main))
