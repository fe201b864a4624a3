"""Say what a folder holds and what is wrong with it: ``python -m matssl.tools.doctor FOLDER``.

Which pictures are micrographs and which are masks, and of which image; classes, specimens, splits,
information bars, pixel sizes and who says them. Training and evaluation take them so. Exit code 2
where training would refuse the folder, 1 where something needs a look; a picture that is less sharp
or noisier than the others is named and changes no exit code. --write_layout writes what was found
to FOLDER, to be edited: specimens.csv, classes.yaml and splits.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import (
    DEEPEST,
    DEPTH_HELP,
    LabelSettings,
    SpecimenSettings,
    ToolSettings,
    depth_problem,
)


@dataclass(frozen=True)
class DoctorSettings(LabelSettings, SpecimenSettings, ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "",
        "data",
        "images, with or without masks",
        required=True,
        positional=True,
        leads=paths.images,
    )
    pool: str | None = flag(
        None,
        "data",
        "folder of a pretraining pool, to find copies of test images",
        leads=paths.folder,
    )
    pictures: str | None = flag(
        None,
        "results",
        "write a contact sheet (PNG): each picture with its cut, its mask and its specimen",
    )
    input_depth: int = flag(1, "data", DEPTH_HELP, low=1, high=DEEPEST, check=depth_problem)
    quality: str | None = flag(
        None,
        "results",
        "write sharpness, noise and contrast of each picture, and which stand out (CSV)",
    )
    list: bool = flag(False, "data", "show every file, not only the first ones", first=True)
    write_layout: bool = flag(
        False,
        "data",
        "write specimens.csv, classes.yaml and splits.csv to the folder; nothing is overwritten",
        first=True,
    )


SETTINGS = DoctorSettings


# Files that are shown where not all are asked for.
SHOWN = 24


def main(argv: Sequence[str]) -> int:
    """Print the preflight screen; returns 0, 1 where a look is needed, 2 for a refusal.

    Raises:
        UserError: masks that do not fit their images; after the screen.
    """
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.doctor")
    from matssl import preflight
    from matssl.data import layouts, quality
    from matssl.data.layouts import written
    from matssl.data.preprocess import Preprocess

    if args.pictures:
        from matssl import contact_sheet

        contact_sheet.check_path(Path(args.pictures), Path(args.folder))
    if args.quality:
        quality.check_path(Path(args.quality), Path(args.folder))

    record = Preprocess.chosen(
        channels=args.input_depth,
        pixel_size=args.pixel_size,
        crop_bottom=args.crop_bottom or "auto",
        page=args.page,
        depth=args.input_depth,
    )
    root = Path(args.folder)
    try:
        dataset = layouts.find(
            root,
            splits=args.splits,
            classes=args.classes,
            mask_folder=args.mask_folder,
            group_regex=args.group_regex,
            specimens=args.specimens,
            pixel_size=args.pixel_size,
            need_masks=False,
            depth=args.input_depth,
            page=args.page,
        )
    except UserError:
        # What the pictures are is said all the same; the refusal follows.
        images, left_out = layouts.unlabelled(root)
        found = preflight.examine(
            str(root), {"images": images}, record, left_out=left_out, looks=True
        )
        print(found.text(), flush=True)
        raise
    record = record.told(dataset.grouping.pixel_sizes)
    pool, left_out = layouts.unlabelled(args.pool) if args.pool else ([], [])
    found = preflight.examine_dataset(
        dataset, record, pool, left_out=left_out, masks=True, looks=True
    )
    print(found.text())
    print(found.files(root, None if args.list else SHOWN), flush=True)
    if args.pictures:
        shown = contact_sheet.write(found, Path(args.pictures))
        print(f"  pictures     {args.pictures}: {shown}")
    if args.quality:
        quality.write(Path(args.quality), *found.qualities)
    # Training refuses them in the same words.
    found.judged.refuse_misfits()
    if args.write_layout:
        sizes = {fact.path: fact.pixel_size for fact in found.facts}
        for line in written.write(dataset, sizes):
            print(line)
    return found.exit_code


if __name__ == "__main__":
    sys.exit(guard(main))
