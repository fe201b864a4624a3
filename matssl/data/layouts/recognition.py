"""How a folder is laid out: by the names of folders, by what pictures hold, or by annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from matssl.data import readers
from matssl.data.layouts import annotated, anywhere, outlines
from matssl.data.layouts.pairing import (
    SPLITS,
    Found,
    Layout,
    by_split,
    folders_in,
    split_name,
)
from matssl.data.layouts.survey import (
    ELSEWHERE,
    MASK,
    MASKS_ELSEWHERE,
    OTHER,
    LeftOut,
    Survey,
    named_masks,
    other_files,
    refuse_run,
    summed,
)
from matssl.data.layouts.survey import listed as _listed
from matssl.data.layouts.survey import survey as _survey
from matssl.data.masks import class_file
from matssl.data.readers import Listing

# Where the names of folders say nothing and what pictures hold says all.
BY_CONTENT = "masks found by few values, stem and size"
GIVEN = "masks in --mask_folder"
IN_SPLITS = "data sets in train, val and test"
ANNOTATED = "images with annotations of "
# What a folder that no layout knows is called.
IMAGES_ONLY = "images only"


class Recognised(NamedTuple):
    """How a folder is laid out.

    Attributes:
        name: of the layout.
        found: its images.
        left_out: pictures that are no micrographs, and why.
        told: what was noticed, in words.
        made: folder of masks that were made of annotation files, None where there are none.
        class_folder: folder whose class file says what the masks mean, None for the data set's.
        home: folder of the data set, where it is not the one that was asked for.
        sequence: what tells sequences of images by their names, where the layout says so.
    """

    name: str
    found: list[Found]
    left_out: list[LeftOut]
    told: list[str]
    made: Path | None = None
    class_folder: Path | None = None
    home: Path | None = None
    sequence: str | None = None


def recognise(
    root: Path,
    mask_folder: str | None,
    layouts: Mapping[str, Layout],
    classes: str | None = None,
    drawn: bool = True,
) -> Recognised:
    """Return how a folder is laid out.

    Names of folders that are known go first, as they did before pictures were looked at. Files of
    labelling programs are read where there are no masks.

    Args:
        root: the folder, or one image.
        mask_folder: ``--mask_folder``.
        layouts: that may be known.
        classes: ``--classes``, for annotation files.
        drawn: whether annotation files are read.

    Raises:
        UserError: images and masks that do not fit, or annotation files that leave something open.
    """
    if not root.is_dir():
        alone = [Found(path, None, "") for path in readers.find_images(root)]
        return Recognised(IMAGES_ONLY, alone, [], [])
    refuse_run(root)
    listed = _listed(root)
    paths, told = listed.images, outlines.notes(listed.others)
    every = tuple(layouts.values())
    if mask_folder is not None:
        images = _survey(root, (), found=listed).images
        drawings = annotated.place(root, mask_folder)
        if drawings is not None:
            programs = annotated.in_folder(drawings)
            return _annotated(root, drawings, images, programs, classes, listed)
        found = anywhere.given(root, images, mask_folder)
        # Masks bring their class file along, as import writes it, unless the data set has one.
        inside = anywhere.place(root, mask_folder)[0]
        own = class_file(None, root) is None and class_file(None, inside) is not None
        said = inside if own else None
        left_out = _elsewhere(root, listed, found)
        return Recognised(GIVEN, found, left_out, told, class_folder=said)
    programs = annotated.formats(root, listed.others) if drawn else []
    if not programs or named_masks(root, paths, every):
        for name, layout in layouts.items():
            pairs = layout.pairs(root)
            if pairs:
                return Recognised(name, pairs, _elsewhere(root, listed, pairs), told)
    seen = _survey(root, every, pairing=True, found=listed)
    if seen.matched.images:
        pairs = anywhere.pairs(root, seen.images, seen.matched)
        used = {item.mask for item in pairs}
        left_out = [out for out in seen.left_out if out.why != MASK]
        left_out += _unused_masks(root, paths, seen, used)
        return Recognised(BY_CONTENT, pairs, left_out, told)
    if programs:
        try:
            return _annotated(root, root, seen.images, programs, classes, listed)
        except annotated.Undrawn as error:
            told = [str(error)]
    parts = _in_splits(root, layouts)
    if parts:
        return Recognised(IN_SPLITS, parts, _elsewhere(root, listed, parts), told)
    found = [Found(image, None, "") for image in seen.images]
    return Recognised(IMAGES_ONLY, found, list(seen.left_out), told)


def _annotated(
    root: Path,
    source: Path,
    images: Sequence[Path],
    programs: Sequence[str],
    classes: str | None,
    listed: Listing,
) -> Recognised:
    """Return the images of a folder with masks made of the annotation files of another, or its own.

    Raises:
        UserError: see :func:`matssl.data.layouts.annotated.decoded`.
    """
    made = annotated.decoded(root, source, images, programs, classes)
    found = anywhere.split(root, [(image, made.masks.get(image)) for image in images])
    # The annotation files are in use, and no pictures that are not read.
    left_out = [out for out in _elsewhere(root, listed, found) if out.why != OTHER]
    name = f"{ANNOTATED}{made.program}"
    return Recognised(name, found, left_out, list(made.notes), made.folder, made.folder)


def _in_splits(root: Path, layouts: Mapping[str, Layout]) -> list[Found]:
    """Return the pairs of the data sets in folders called train, val and test; none without train.

    Each of them may be laid out as it likes: train/S1/images beside train/S1/masks.
    """
    folders = [path for path in folders_in(root) if split_name(path.name) in SPLITS]
    if "train" not in map(split_name, (path.name for path in folders)):
        return []
    found: list[Found] = []
    for folder in folders:
        if readers.listing(folder).images:
            split = split_name(folder.name)
            pairs = recognise(folder, None, layouts, drawn=False).found
            found += [replace(item, split=split if item.mask else "predict") for item in pairs]
    return (by_split(found) or []) if any(item.mask for item in found) else []


def _unused_masks(
    root: Path, paths: Sequence[Path], seen: Survey, used: set[Path | None]
) -> list[LeftOut]:
    """Return masks that belong to no pair: those of layouts deeper in the folder."""
    known = set(seen.images) | {path for path in used if path is not None}
    drawn = {out.path for out in seen.left_out if out.why != MASK}
    rest = [p for p in paths if p not in known and drawn.isdisjoint((p, *p.parents))]
    return summed(root, rest, MASKS_ELSEWHERE, paths)


def _elsewhere(root: Path, listed: Listing, found: list[Found]) -> list[LeftOut]:
    """Return what lies below a folder and its layout has no place for."""
    parts = (path for item in found for path in (item.image, item.mask) if path is not None)
    known = {readers.file_of(path) for path in parts}
    rest = [path for path in listed.images if path not in known]
    return [*summed(root, rest, ELSEWHERE, listed.images), *other_files(listed)]
