"""Say what a folder holds and what is wrong with it: ``python -m matssl.tools.doctor FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.errors import guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import LabelSettings, SpecimenSettings, ToolSettings


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


SETTINGS = DoctorSettings


def main(argv: Sequence[str]) -> int:
    """Print the preflight screen; returns 0, or 1 where something needs a look.

    Raises:
        UserError: what training would refuse; after the screen.
    """
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.doctor")
    from matssl import preflight
    from matssl.data import layouts

    if args.pictures:
        from matssl import contact_sheet

        contact_sheet.check_path(Path(args.pictures), Path(args.folder))
    from matssl.data.preprocess import Preprocess

    record = Preprocess.chosen(
        channels=1,
        pixel_size=args.pixel_size,
        crop_bottom=args.crop_bottom or "auto",
        page=args.page,
    )
    dataset = layouts.find(
        args.folder,
        splits=args.splits,
        classes=args.classes,
        group_regex=args.group_regex,
        specimens=args.specimens,
        pixel_size=args.pixel_size,
        need_masks=False,
    )
    record = record.told(dataset.grouping.pixel_sizes)
    pool, left_out = layouts.unlabelled(args.pool) if args.pool else ([], [])
    found = preflight.examine_dataset(dataset, record, pool, left_out=left_out)
    print(found.text())
    if args.pictures:
        shown = contact_sheet.write(found, Path(args.pictures))
        print(f"  pictures     {args.pictures}: {shown}")
    # Training refuses them in the same words.
    found.judged.refuse_misfits()
    return 1 if found.broken or found.duplicates or found.judged.warnings else 0


if __name__ == "__main__":
    sys.exit(guard(main))
