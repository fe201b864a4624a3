"""Masks to be measured: those a user has finished, and of the other pictures the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from matssl.core.errors import UserError
from matssl.core.flags import flag
from matssl.core.labels import IGNORE
from matssl.core.parsing import parse_one
from matssl.core.run_folder import atomic_write_text
from matssl.core.tables import csv_text
from matssl.core.wording import counted
from matssl.page import labels, results

FROM = "from.csv"


@dataclass(frozen=True)
class CollectSettings:
    """Arguments of the step."""

    folder: str = flag("", "data", "folder of the pictures", required=True)
    labels: str = flag("", "data", "folder of their labels", required=True)
    run: str | None = flag(None, "data", "run of eval_model.py with masks of the others")
    complete: tuple[str, ...] = flag((), "data", "pictures of which every pixel is labelled")
    target: str = flag("", "results", "folder to make", required=True)


def collect(argv: Sequence[str]) -> int:
    """Write a mask of each picture, classes.yaml, and from.csv: who drew which.

    Raises:
        UserError: there is none, or a model that knows other classes.
    """
    args = parse_one(CollectSettings, argv, __doc__ or "")
    home, target = Path(args.labels), Path(args.target)
    classes = labels.read_classes(home)
    values = {c.name: c.value for c in classes.listed}
    drawn = [PurePosixPath(name).as_posix() for name in args.complete]
    rows, complete = [], set(drawn)
    if args.run:
        run = results.Prediction.of(Path(args.run), Path(args.folder))
        strange = [name for name in run.names if name not in values]
        if strange:
            raise UserError(
                f"the model knows the class {strange[0]}, your labels do not; teach it again"
            )
        table = np.full(256, IGNORE, np.uint8)
        table[: len(run.names)] = [values[name] for name in run.names]
        for image in run.masks:
            if image not in complete:
                mask = table[run.classes(image)]
                labels.write(target / labels.name_of(image), mask, classes)
                rows.append({"image": image, "mask": f"predicted by {Path(args.run).name}"})
    for image in drawn:
        path = home / labels.name_of(image)
        mask = labels.values(path)
        labels.write(target / labels.name_of(image), mask, classes)
        rows.append({"image": image, "mask": "drawn or corrected by you"})
    if not rows:
        raise UserError("there is no mask to measure: teach a model, or label every pixel")
    labels.write_classes(target, classes)
    atomic_write_text(target / FROM, csv_text(rows))
    own = len(complete)
    print(f"{counted(own, 'mask')} of yours, {counted(len(rows) - own, 'predicted one')}")
    return 0
