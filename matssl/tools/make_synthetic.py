"""Write synthetic micrographs with masks: ``python -m matssl.tools.make_synthetic FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import LARGEST_SEED, ToolSettings


@dataclass(frozen=True)
class SyntheticSettings(ToolSettings):
    """Flags of the command."""

    folder: str = flag("", "data", "folder to make", required=True, positional=True)
    kind: str = flag("two_phase", "data", "which specimen (see the error for all)")
    train: int = flag(2, "data", "labelled training images", low=0, high=100_000)
    val: int = flag(2, "data", "labelled validation images", low=0, high=100_000)
    test: int = flag(4, "data", "labelled test images", low=0, high=100_000)
    pool: int = flag(0, "data", "unlabelled images, in FOLDER/pool", low=0, high=100_000)
    size: int = flag(256, "data", "side in pixels", low=64, high=8192)
    seed: int = flag(0, "data", "seed of every draw", low=0, high=LARGEST_SEED)
    bar: bool = flag(False, "data", "draw an information bar")


SETTINGS = SyntheticSettings


def main(argv: Sequence[str]) -> int:
    """Write the set; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.make_synthetic")
    from matssl.data import synthetic

    if args.kind not in synthetic.KINDS:
        raise UserError(f"--kind is one of {', '.join(synthetic.KINDS)}, not {args.kind}")
    folder = Path(args.folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose a new folder")
    counts = (args.train, args.val, args.test)
    synthetic.write_dataset(folder, args.kind, *counts, args.size, args.seed, args.bar)
    if args.pool:
        synthetic.write_pool(folder / "pool", args.pool, args.size, args.seed + 1)
    print(f"{sum(counts)} labelled and {args.pool} unlabelled micrographs in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
