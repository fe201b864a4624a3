"""Say what a folder holds and what is wrong with it: ``python -m matssl.tools.doctor FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from matssl.core.errors import guard


def main(argv: Sequence[str]) -> int:
    """Print the preflight screen; returns 0, or 1 where something needs a look."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.doctor", description=__doc__.replace("``", "")
    )
    parser.add_argument("folder", help="images, with or without masks")
    parser.add_argument(
        "--pool", help="folder of a pretraining pool, to find copies of test images"
    )
    parser.add_argument("--splits", help="file that names the images of each split")
    parser.add_argument("--classes", help="class names or a YAML file")
    parser.add_argument("--group_regex", help="names the specimen in a file name")
    parser.add_argument("--pixel_size", help="pixel size of all images, for example 12.5nm")
    parser.add_argument("--crop_bottom", default="auto", help="rows of an information bar, or auto")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    from matssl import preflight
    from matssl.data import layouts, readers
    from matssl.data.preprocess import Preprocess

    record = Preprocess.chosen(channels=1, pixel_size=args.pixel_size, crop_bottom=args.crop_bottom)
    dataset = layouts.find(
        args.folder,
        splits=args.splits,
        classes=args.classes,
        group_regex=args.group_regex,
        need_masks=False,
    )
    pool = readers.find_images(args.pool) if args.pool else []
    found = preflight.examine_dataset(dataset, record, pool)
    print(found.text())
    return 1 if found.broken or found.duplicates else 0


if __name__ == "__main__":
    sys.exit(guard(main))
