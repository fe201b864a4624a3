"""Held-out truth: what a classifier says of images that it did not learn from, and the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import cut

# The file of it in a run folder, and the largest number of pixels in one of its cells.
FILE = "confusion.json"
LARGEST = 2**53


@dataclass(frozen=True)
class HeldOut:
    """An image whose truth is known and that the model did not learn from.

    Attributes:
        image: its file, as it was named.
        specimen: which it shows.
        confusion: pixels by class, rows truth, columns prediction, int64 (C, C).
    """

    image: str
    specimen: str
    confusion: NDArray[np.int64]


@dataclass(frozen=True)
class Record:
    """Held-out truth of a model.

    Attributes:
        classes: their names.
        images: what was held out.
        doubts: why it may flatter the model, a sentence each: images that chose the step.
        source: where it was read.
    """

    classes: tuple[str, ...]
    images: tuple[HeldOut, ...]
    doubts: tuple[str, ...] = ()
    source: str = ""

    @property
    def specimens(self) -> tuple[str, ...]:
        """Names of the specimens that were held out."""
        return tuple(dict.fromkeys(one.specimen for one in self.images))

    def without(self, specimens: Sequence[str]) -> Record:
        """Return the record without some specimens."""
        left = tuple(one for one in self.images if one.specimen not in specimens)
        return Record(self.classes, left, self.doubts, self.source)

    def ordered(self, names: Sequence[str]) -> Record:
        """Return the record with its classes in another order.

        Args:
            names: the same classes.

        Raises:
            UserError: they are others.
        """
        if sorted(names) != sorted(self.classes):
            raise UserError(
                f"{self.source} speaks of {cut(', '.join(self.classes))}, the masks of "
                f"{cut(', '.join(names))}; both must be of one model"
            )
        places = np.array([self.classes.index(name) for name in names])
        turned = tuple(
            HeldOut(one.image, one.specimen, one.confusion[np.ix_(places, places)])
            for one in self.images
        )
        return Record(tuple(names), turned, self.doubts, self.source)

    def stored(self) -> dict[str, object]:
        """Return the record as plain values, as :data:`FILE` holds it."""
        return {
            "classes": list(self.classes),
            "images": [
                {
                    "image": one.image,
                    "specimen": one.specimen,
                    "confusion": one.confusion.tolist(),
                }
                for one in self.images
            ],
            "doubts": list(self.doubts),
        }


def read(path: Path) -> Record:
    """Return the held-out truth in a file.

    Raises:
        UserError: there is none, or it is not what a run writes.
    """
    content = textfiles.read_json(path)
    try:
        return _record(content, str(path))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged ({cut(str(error))}); run the command that wrote it once more"
        ) from error


def _record(content: object, source: str) -> Record:
    if not isinstance(content, Mapping):
        raise TypeError("no table")
    classes = tuple(_word(name) for name in content["classes"])
    if not classes or len(set(classes)) < len(classes):
        raise ValueError("classes without names of their own")
    images = tuple(
        HeldOut(_word(one["image"]), _word(one["specimen"]), _matrix(one, len(classes)))
        for one in content["images"]
    )
    doubts = tuple(_word(doubt) for doubt in content.get("doubts") or ())
    return Record(classes, images, doubts, source)


def _word(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError("a name is missing")
    return value


def _matrix(entry: Mapping[str, object], classes: int) -> NDArray[np.int64]:
    rows = np.array(entry["confusion"], dtype=np.float64)
    if rows.shape != (classes, classes):
        raise ValueError(f"a matrix of {rows.shape} for {classes} classes")
    if not bool(np.all(rows >= 0) and np.all(rows == np.floor(rows)) and rows.sum() < LARGEST):
        raise ValueError("pixels that are no whole numbers")
    if math.isnan(float(rows.sum())):
        raise ValueError("pixels that are no numbers")
    return rows.astype(np.int64)
