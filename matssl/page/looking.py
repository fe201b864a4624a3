"""What a folder holds, for the page: what ``matssl.tools.doctor`` says, as a file it can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.errors import UserError
from matssl.core.flags import flag, to_dict
from matssl.core.labels import IGNORE
from matssl.core.parsing import parse_one
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted
from matssl.stages.settings import LabelSettings, SpecimenSettings, ToolSettings

FACTS, SHEET = "facts.json", "sheet.png"


@dataclass(frozen=True)
class LookSettings(LabelSettings, SpecimenSettings, ToolSettings):
    """Arguments of a look; those of the doctor, and where to put what is found."""

    folder: str = flag("", "data", "images", required=True, positional=True, leads=paths.images)
    home: str = flag("", "results", "folder for what is found", required=True)
    labels: str = flag("", "results", "folder of the labels to make")


def _settings(argv: Sequence[str]) -> LookSettings:
    return parse_one(LookSettings, argv, __doc__ or "")


def look(argv: Sequence[str]) -> int:
    """Write facts.json and sheet.png; returns what the doctor would.

    Raises:
        UserError: there is no picture.
    """
    from matssl import contact_sheet, preflight
    from matssl.data import layouts, readers
    from matssl.data.preprocess import Preprocess

    args = _settings(argv)
    root, home = Path(args.folder), Path(args.home)
    record = Preprocess.chosen(
        channels=1,
        pixel_size=args.pixel_size,
        crop_bottom=args.crop_bottom or "auto",
        page=args.page,
    )
    refused = ""
    dataset = None
    try:
        dataset = layouts.find(
            root,
            classes=args.classes,
            mask_folder=args.mask_folder,
            pixel_size=args.pixel_size,
            need_masks=False,
        )
    except UserError as error:
        # What the pictures are is said all the same.
        refused = str(error)
    if dataset is None:
        images, left_out = layouts.unlabelled(root)
        found = preflight.examine(
            str(root), {"images": images}, record, left_out=left_out, looks=True
        )
    else:
        record = record.told(dataset.grouping.pixel_sizes)
        found = preflight.examine_dataset(dataset, record, masks=True, looks=True)
    print(found.text())
    home.mkdir(parents=True, exist_ok=True)
    contact_sheet.write(found, home / SHEET)
    table = None if dataset is None else dataset.table
    outliers = found.outliers
    facts = {
        "text": found.text(),
        "refused": refused,
        # So many pictures count as a specimen each, since nothing says which show one.
        "unsure": dataset.grouping.unsure if dataset is not None else 0,
        "grouped": dataset.grouping.source if dataset is not None else "",
        "settings": to_dict(args),
        "classes": list(table.names) if table is not None else [],
        "pictures": [
            {
                "image": _below(fact.path, root),
                "height": fact.shape[0],
                "width": fact.shape[1],
                "bits": fact.bits,
                "pixel_size": fact.pixel_size,
                "calibration": fact.calibration,
                "bar": fact.bar,
                "specimen": fact.specimen,
                "split": fact.split,
                "mask": fact.mask is not None and not fact.misread,
                "error": fact.error or "",
                "notes": [*fact.notes, *(one.text for one in outliers.get(fact.path, ()))],
            }
            for fact in sorted(found.facts, key=lambda one: readers.natural(_below(one.path, root)))
            if _below(fact.path, root).isprintable()
        ],
        "warnings": [*found.judged.warnings, *found.may_be_masks, *found.refusals],
    }
    atomic_write_text(home / FACTS, json.dumps(facts))
    return found.exit_code


def take_over(argv: Sequence[str]) -> int:
    """Write the masks that a folder has as labels of the page; masks that are there stay.

    Raises:
        UserError: it has none, or they cannot be read.
    """
    from matssl.data import layouts, readers
    from matssl.data.preprocess import Preprocess
    from matssl.page import labels

    args = _settings(argv)
    root, target = Path(args.folder), Path(args.labels)
    dataset = layouts.find(root, classes=args.classes, mask_folder=args.mask_folder)
    table = dataset.table
    assert table is not None
    record = Preprocess.chosen(channels=1)
    classes = labels.Classes.named(table.names)
    labels.write_classes(target, classes)
    done = 0
    for pair in dataset.pairs:
        path = target / labels.name_of(_below(pair.image, root))
        if pair.mask is None or path.exists():
            continue
        micrograph = readers.read(pair.image)
        mask = record.fitted(table.decode(readers.read_mask(pair.mask), str(pair.mask)), micrograph)
        rows = micrograph.pixels.shape[0] - mask.shape[0]
        if rows > 0:
            import numpy as np

            mask = np.pad(mask, ((0, rows), (0, 0)), constant_values=IGNORE)
        labels.write(path, mask, classes)
        done += 1
    print(f"{counted(done, 'mask')} taken over: {', '.join(table.names)}")
    return 0


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if root in path.parents else path.name
