"""Write the JSON index files of SRPU-Model: ``python -m matssl.tools.index FOLDER``.

FOLDER holds data sets, each with raw_images and masks_3class. Written are NAME.json (labelled) and
NAME_ssl.json (all images) of each, master_labeled_dataset.json and master_ssl_dataset.json, and the
train, val and test files of the labelled master with a summary. Whole sequences are split: 4.2V-001
is frame 1 of 4.2V. Every command here takes an index in place of a folder, or with --splits.
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
from matssl.stages.settings import LARGEST_SEED, ToolSettings

MODES = ("generate_all", "generate_labeled_unlabeled", "split_labeled")
# What the program writes its index files to, beside the folder of the data sets.
JSON = "json"
MOST_FRAMES = 31


@dataclass(frozen=True, repr=False, eq=False)
class IndexSettings(ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "",
        "data",
        "folder of the data sets, or of one of them",
        required=True,
        positional=True,
        leads=paths.folder,
    )
    mode: str = flag(
        "generate_all",
        "data",
        "index and splits, the index alone, or the splits of an index that is there",
        choices=MODES,
        first=True,
    )
    output_dir: str | None = flag(
        None, "results", "folder of the index files", auto="json beside FOLDER", first=True
    )
    input_json: str | None = flag(
        None,
        "data",
        "index to split",
        auto="master_labeled_dataset.json in --output_dir",
        leads=paths.file,
    )
    depth: int = flag(
        1,
        "data",
        "frames of a sample, an odd number: neighbours by number",
        low=1,
        high=MOST_FRAMES,
    )
    val_split: float = flag(0.1, "data", "share of the labelled images for val", low=0, below=1)
    test_split: float = flag(0.1, "data", "share of the labelled images for test", low=0, below=1)
    seed: int = flag(42, "data", "seed of the splits", low=0, high=LARGEST_SEED)


SETTINGS = IndexSettings


def problems(args: IndexSettings) -> list[Problem]:
    """Return what does not go together."""
    wrong = []
    if args.depth % 2 == 0:
        told = f"--depth must be odd, so that a frame is in the middle, not {args.depth}"
        wrong.append(Problem(told, ("depth",)))
    if args.val_split + args.test_split >= 1:
        told = (
            f"--val_split {args.val_split:g} and --test_split {args.test_split:g} leave nothing "
            "for training"
        )
        wrong.append(Problem(told, ("val_split", "test_split")))
    if args.input_json and args.mode != "split_labeled":
        told = "--input_json acts with --mode split_labeled"
        wrong.append(Problem(told, ("input_json", "mode")))
    return wrong


def main(argv: Sequence[str]) -> int:
    """Write the index files; returns 0."""
    args = parse_one(
        SETTINGS,
        argv,
        __doc__ or "",
        problems=problems,
        prog="python -m matssl.tools.index",
        here=True,
    )
    from matssl.data.layouts import index_files

    root = Path(args.folder)
    target = Path(args.output_dir) if args.output_dir else root.resolve().parent / JSON
    files: dict[Path, int] = {}
    notes: list[str] = []
    if args.mode != "split_labeled":
        found = index_files.write_all(root, target, args.depth)
        files, notes = {**found.files}, [*found.notes]
    source = Path(args.input_json) if args.input_json else target / f"{index_files.MASTER}.json"
    if args.mode == "split_labeled" and not source.is_file():
        raise UserError(f"there is no index {source} to split; --input_json names one")
    if args.mode != "generate_labeled_unlabeled" and source.is_file():
        parted = index_files.split(source, target, args.val_split, args.test_split, args.seed)
        files |= parted.files
        notes += parted.notes
    for path, samples in files.items():
        print(f"written {path}: {counted(samples, 'sample')}")
    for note in notes:
        print(f"note    {note}")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
