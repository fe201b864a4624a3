"""Masks to be exported or compared: of a run, of a labelled folder or of a folder of masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import counted
from matssl.data import layouts, masks, readers
from matssl.data.annotations.pairing import size_of
from matssl.data.masks import ClassTable
from matssl.stages import predictions

IndexMask = NDArray[np.uint8]


@dataclass(frozen=True)
class OneMask:
    """A mask that can be opened.

    Attributes:
        picture: path of its picture below its folder, with /; the mask's own where no picture is
            known. A page of a stack lies in the folder of the stack.
        image: the picture; None where it is not there.
        file: the mask.
    """

    picture: str
    image: Path | None
    file: Path


@dataclass(frozen=True)
class Masks:
    """Masks with the names of their classes.

    Attributes:
        what: they are, in words.
        root: folder they come from.
        names: of the classes, by their number.
        masks: ordered by picture.
        table: what the values in the files mean; None where they are class numbers.
        notes: what was noticed, in words.
        named: whether somebody named the classes (a model, a class file); names of values of which
            nothing is known are made up.
        pages: how many of the pictures are pages of stacks that were written as files.
    """

    what: str
    root: Path
    names: tuple[str, ...]
    masks: tuple[OneMask, ...]
    table: ClassTable | None = None
    notes: tuple[str, ...] = ()
    named: bool = True
    pages: int = 0

    def open(self, one: OneMask) -> IndexMask:
        """Return a mask as class numbers, uint8 (H, W), 255 for none, as large as its picture.

        Rows that it lacks below (an information bar that was cut off) are of no class.

        Raises:
            UserError: it cannot be read, or is of another size than its picture.
        """
        raw = readers.read_mask(one.file)
        if self.table is None:
            mask = np.array(raw, np.uint8)
            mask[mask >= len(self.names)] = IGNORE
        else:
            mask = self.table.decode(raw, str(one.file))
        if one.image is None:
            return mask
        size = size_of(one.image)
        if mask.shape == size:
            return mask
        if mask.shape[1] != size[1] or mask.shape[0] > size[0]:
            raise UserError(
                f"{one.file} has {mask.shape[1]} x {mask.shape[0]} pixels, its picture "
                f"{one.image.name} {size[1]} x {size[0]}"
            )
        whole = np.full(size, IGNORE, np.uint8)
        whole[: len(mask)] = mask
        return whole


def find(folder: Path, images: str | None, classes: str | None, flag: str = "--images") -> Masks:
    """Return the masks that a folder holds.

    Args:
        folder: a run of eval_model.py or of phase_map, a labelled folder (also one with annotation
            files), or a folder of masks.
        images: folder of the pictures, where they are elsewhere.
        classes: a class file or names of the classes, for masks that are no run's.
        flag: that names the pictures, for messages.

    Raises:
        UserError: there are none, or they do not fit.
    """
    predicted = predictions.folder(folder)
    if predicted is not None:
        if classes:
            raise UserError(f"{folder} is a run and names its classes; leave --classes out")
        return _of_run(folder, predicted, images, flag)
    if (folder / "status.json").is_file():
        raise UserError(
            f"{folder} is a run without predicted masks; give the results of eval_model.py or of "
            "phase_map, or a folder of masks"
        )
    pictures = not folder.is_dir() or bool(readers.listing(folder).images)
    if images is None and not pictures:
        raise UserError(f"{folder} holds no pictures; {flag} says where they are")
    dataset = None
    if pictures:
        dataset = layouts.find(folder, classes=classes, need_masks=False, whole=True, pages=True)
    if images is not None and (dataset is None or dataset.table is None):
        # Masks or annotation files without their pictures.
        place = str(folder.resolve())
        dataset = layouts.find(images, classes=classes, mask_folder=place, whole=True, pages=True)
    if dataset is None or dataset.table is None:
        return _of_masks(folder, classes)
    found = [
        OneMask(_below(pair.image, dataset.root), pair.image, pair.mask)
        for pair in dataset.pairs
        if pair.mask is not None
    ]
    named = dataset.made is not None or _is_named(classes, dataset.class_folder)
    return Masks(
        "masks" if dataset.made is None else dataset.layout,
        folder,
        dataset.table.names,
        _ordered(found),
        dataset.table,
        tuple(note for note in dataset.notes if note != dataset.cut.text),
        named,
    )


def _is_named(classes: str | None, folder: Path) -> bool:
    return classes is not None or masks.class_file(None, folder) is not None


def _below(path: Path, root: Path) -> str:
    if readers.told_page(path) is not None:
        path = path.parent.parent / path.name
    return Path(os.path.relpath(path, root)).as_posix()


def _pages(files: Sequence[Path]) -> list[Path]:
    return [page for path in files for page in readers.frames(path) or (path,)]


def _ordered(found: Sequence[OneMask]) -> tuple[OneMask, ...]:
    return tuple(sorted(found, key=lambda one: readers.natural(one.picture)))


def _of_run(folder: Path, predicted: Path, images: str | None, flag: str) -> Masks:
    """Return a run's predictions; pictures are those of its table, or of ``--images``."""
    files = readers.find_images(predicted)
    names, table = predictions.facts(folder)
    pictures: Mapping[str, Path]
    if images is None:
        listed = predictions.by_output(table, [path.stem for path in files])
        pictures = {name: row.image for name, row in listed.items()}
        home = _common([row.image for row in table])
    else:
        home = Path(images)
        pictures = predictions.pictures(home, [path.stem for path in files])
        if not any(path.stem in pictures for path in files):
            raise UserError(
                f"no picture in {images} has the name of a mask (first: {files[0].name}); give the "
                f"folder of the micrographs with {flag}"
            )
    found = []
    for path in files:
        image = pictures.get(path.stem)
        picture = path.name if image is None else _below(image, home)
        there = image if image is not None and readers.file_of(image).is_file() else None
        found.append(OneMask(picture, there, path))
    absent = sum(one.image is None for one in found)
    notes = (
        (f"{counted(absent, 'picture')} not found: {flag} says where they are",) if absent else ()
    )
    what = "phase maps" if predicted.parent.name == "maps" else "predicted masks"
    return Masks(what, folder, names, _ordered(found), notes=notes)


def _common(images: Sequence[Path]) -> Path:
    """Return the folder that pictures of a run lie in or below."""
    paths = [path.parent if readers.told_page(path) else path for path in images]
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()


def _of_masks(folder: Path, classes: str | None) -> Masks:
    """Return the files of a folder that holds masks alone."""
    files = _pages(readers.find_images(folder))
    table, told = masks.find_table(files, classes, folder, whole=True)
    root = folder if folder.is_dir() else folder.parent
    note = f"{counted(len(files), 'file')} without images beside, taken for masks"
    found = [OneMask(_below(path, root), None, path) for path in files]
    named = _is_named(classes, root)
    return Masks("masks", folder, table.names, _ordered(found), table, (note, *told), named)


def together(one: Masks, other: Masks, classes: str | None) -> tuple[Masks, Masks]:
    """Return two sets of masks of which nobody named the values, with one table for both.

    Raises:
        UserError: the masks of both cannot be of one kind.
    """
    if one.named or other.named or one.table is None or other.table is None:
        return one, other
    files = [mask.file for masks_ in (one, other) for mask in masks_.masks]
    table, told = masks.find_table(files, classes, None, whole=True)
    notes = tuple(dict.fromkeys(told))
    return (
        replace(one, table=table, names=table.names, notes=(*one.notes, *notes)),
        replace(other, table=table, names=table.names),
    )
