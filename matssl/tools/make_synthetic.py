"""Write synthetic micrographs with masks: ``python -m matssl.tools.make_synthetic FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matssl.core.errors import UserError, guard


def main(argv: Sequence[str]) -> int:
    """Write the set; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.make_synthetic", description=__doc__.replace("``", "")
    )
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument(
        "--kind", default="two_phase", help="which specimen (see the error for all)"
    )
    parser.add_argument("--train", type=int, default=2, help="labelled training images")
    parser.add_argument("--val", type=int, default=2, help="labelled validation images")
    parser.add_argument("--test", type=int, default=4, help="labelled test images")
    parser.add_argument("--pool", type=int, default=0, help="unlabelled images, in FOLDER/pool")
    parser.add_argument("--size", type=int, default=256, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bar", action="store_true", help="draw an information bar")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    from matssl.data import synthetic

    if args.kind not in synthetic.KINDS:
        raise UserError(f"--kind is one of {', '.join(synthetic.KINDS)}, not {args.kind}")
    if args.folder.exists() and any(args.folder.iterdir()):
        raise UserError(f"{args.folder} is not empty; choose a new folder")
    if args.size < 64:
        raise UserError("--size must be at least 64")
    counts = (args.train, args.val, args.test)
    synthetic.write_dataset(args.folder, args.kind, *counts, args.size, args.seed, args.bar)
    if args.pool:
        synthetic.write_pool(args.folder / "pool", args.pool, args.size, args.seed + 1)
    print(f"{sum(counts)} labelled and {args.pool} unlabelled micrographs in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
