"""Masks that came back: read, checked against their picture, stored.

What cannot be used is listed once with the reason, and looked at again when the file, its picture
or a second file for the same picture changes; it costs no other one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import counted
from matssl.data import bars, readers
from matssl.data.annotations import (
    Choices,
    Drawing,
    Format,
    ilastik,
    module_of,
    numbered,
    painting,
    recognised,
)
from matssl.data.annotations.drawing import is_background, is_ignored, stem_of
from matssl.data.annotations.raster import paint
from matssl.data.layouts import naming
from matssl.loop.context import Context, said
from matssl.loop.state import Label, Picture

# Files beside masks that say what their values mean.
BESIDE = (
    *("classes.yaml", "classes.yml", "classes.csv", "readme.txt", "specimens.csv"),
    *(numbered.NAMES, "label_config.xml"),
)
SHOWN = 16


@dataclass(frozen=True)
class Came:
    """What came back of a picture.

    Attributes:
        path: of the file.
        file: what it is called: path from the folder; of one of several pictures in it also which.
        names: of its picture, as the file says them, the likeliest first; () where it cannot be
            read.
        reason: why it cannot be used, as far as that is known; "".
        drawing: what an annotation file says of the picture; None where the file is a mask.
        uncovered: whether pixels that nothing is drawn on are not labelled, as with scribbles.
        picture: that it belongs to; None where none is found.
        mark: what tells it from what it was when it was looked at before.
        alone: whether an annotation file is of this picture alone.
    """

    path: Path
    file: str
    names: tuple[str, ...] = ()
    reason: str = ""
    drawing: Drawing | None = None
    uncovered: bool = False
    picture: Picture | None = None
    mark: str = ""
    alone: bool = False


def take_in(ctx: Context) -> list[Path]:
    """Take in masks that came back, and return the files that may still change."""
    came, waiting = new_files(ctx)
    if not came:
        return waiting
    taken: list[dict[str, object]] = []
    refused: dict[str, str] = {}
    bare: list[str] = []
    held = ctx.held_out()
    for one in came:
        try:
            label, changed = _label(ctx, one, held)
        except UserError as error:
            refused[one.file] = ctx.places.plain(said(error))
            continue
        if label is not None:
            taken.append({**label.stored(), "changed": changed})
            if one.drawing is not None and not one.drawing.shapes:
                bare.append(label.name)
        if one.drawing is not None and (left := painting.without_area([one.drawing])):
            ctx.warn(f"{one.file}: left out, without area: {left}")
    ctx.write("labels", taken=taken, files={x.file: x.mark for x in came}, refused=refused)
    if taken:
        ctx.say(f"corrected {counted(len(taken), 'mask')} came back")
    if bare:
        first = ctx.classes.names[0]
        ctx.say(f"confirmed without a shape, all of it is {first}: {', '.join(bare)}")
    for file, why in refused.items():
        ctx.warn(f"{file} is not used: {why}")
    return waiting


def new_files(ctx: Context) -> tuple[list[Came], list[Path]]:
    """Return what came back and was not seen as it is, and files that may still change."""
    ready, waiting = ctx.arrivals.whole(ctx.arrivals.corrected())
    own = {picture.digest for picture in ctx.state.pictures.values()}
    index, came = _index(ctx.state.pictures), []
    for path in ready:
        digest = ctx.arrivals.digest(path)
        # The picture itself, which some programs keep beside what they drew on it, says nothing.
        if path.name.lower() in BESIDE or digest in own:
            continue
        known = ctx.opened.get((path, digest))
        if known is None:
            known = ctx.opened[path, digest] = _opened(ctx, path)
        came += [replace(_matched(one, index), mark=digest[:SHOWN]) for one in known]
    ctx.arrivals.save()
    found = [one for one in _single(ctx, came) if ctx.state.files.get(one.file) != one.mark]
    return found, waiting


def _opened(ctx: Context, path: Path) -> list[Came]:
    """Return what a file says, by picture."""
    file = ctx.places.name(path)
    try:
        module = _format(path)
    except UserError as error:
        return [Came(path, file, reason=said(error))]
    if module is None and readers.is_image_name(path.name):
        inside, stem = path.relative_to(ctx.places.corrected).parent, naming.stem(path)
        stems = (stem, *naming.known(stem))
        return [Came(path, file, tuple((inside / name).as_posix() for name in stems))]
    if module is None:
        return [Came(path, file, reason="it is no picture and no annotation file that is read")]
    try:
        found = module.read(path, Choices())
    except UserError as error:
        return [Came(path, file, reason=said(error))]
    scribbled, many = found.uncovered == "ignore", len(found.drawings) > 1
    # A file of many pictures lists those that nobody has drawn on yet, too.
    begun = [one for one in found.drawings if one.shapes or one.no_area]
    return [
        Came(
            path,
            f"{file}, {one.picture}" if many else file,
            tuple(stem_of(name) for name in (one.picture, *one.also)),
            drawing=one,
            uncovered=scribbled,
            alone=not many,
        )
        for one in begun or found.drawings
    ]


def _format(path: Path) -> Format | None:
    """Return the module of the format of an annotation file, None where no format knows it.

    A picture is a mask, but for label pictures that have numbers of their own: ilastik's, and those
    beside which a table names them.

    Raises:
        UserError: several know it.
    """
    if readers.is_image_name(path.name):
        tiff = path.suffix.lower() in numbered.TIFF
        if tiff and path.stem.endswith(ilastik.SUFFIX):
            return module_of("ilastik")
        beside = (path.parent / numbered.NAMES).is_file()
        return module_of("napari_labels") if tiff and beside else None
    found = recognised(path)
    if len(found) > 1:
        raise UserError(
            f"it may be of {' or '.join(found)}; matssl.tools.annotations import --format makes "
            "a mask of it"
        )
    return module_of(found[0]) if found else None


def _matched(one: Came, index: Mapping[str, Picture]) -> Came:
    """Return what came back with its picture."""
    for name in one.names:
        for key in (_folded(name), _folded(PurePosixPath(name).name)):
            if key in index:
                return replace(one, picture=index[key])
    if one.reason:
        return one
    shown = one.names[0] if one.names else ""
    told = f"no picture of the folder is called {shown}; call it as its picture is called"
    return replace(one, reason=told)


def _single(ctx: Context, came: Sequence[Came]) -> Iterator[Came]:
    """Yield what came back with its whole mark; two for one picture are refused, never chosen."""
    files: dict[str, list[str]] = {}
    for one in came:
        if one.picture is not None:
            files.setdefault(one.picture.name, []).append(one.file)
    for one in came:
        picture = one.picture
        if picture is None:
            yield one
            continue
        others = [file for file in files[picture.name] if file != one.file]
        known = ctx.state.labels.get(picture.name)
        mark = f"{one.mark} {picture.name} {picture.digest[:SHOWN]}"
        if not others or (known is not None and known.file == one.file):
            yield replace(one, mark=mark)
        else:
            told = f"{picture.name} has {', '.join(others)}, too; remove all but one"
            yield replace(one, mark=f"{mark} {' '.join(others)}", reason=one.reason or told)


def _index(pictures: Mapping[str, Picture]) -> dict[str, Picture]:
    """Return pictures by what their masks may be called: path from the folder, key."""
    found: dict[str, Picture] = {}
    for name, picture in pictures.items():
        found.setdefault(_folded(PurePosixPath(name).with_suffix("").as_posix()), picture)
    for picture in pictures.values():
        found.setdefault(_folded(picture.key), picture)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _label(ctx: Context, one: Came, held: Mapping[str, str]) -> tuple[Label | None, float | None]:
    """Return what a file says of its picture, and which share of the prediction was changed.

    Returns:
        None for the label where the file says what is known already.

    Raises:
        UserError: it cannot be used; the sentence says why.
    """
    picture = one.picture
    if one.reason or picture is None:
        raise UserError(one.reason)
    name = picture.name
    if name in held:
        raise UserError(f"{name} is {held[name]}: no model learns from it")
    if name in ctx.state.broken:
        raise UserError(f"the picture cannot be read: {ctx.state.broken[name]}")
    if one.drawing is not None and not one.drawing.shapes and not _confirms(ctx, one, picture):
        left = painting.without_area([one.drawing])
        raise UserError(
            f"nothing with an area is drawn on it{f' ({left})' if left else ''}, so that nobody "
            f"knows whether it was looked at; where all of it is {ctx.classes.names[0]}, say so "
            "with a mask, or with a file without a shape for a picture that was asked for"
        )
    if one.drawing is not None:
        classes = _painted(ctx, one, picture, one.drawing)
    else:
        classes = ctx.classes.decode(readers.read_mask(one.path), str(one.path))
    if (classes == IGNORE).all():
        raise UserError("no pixel of it is labelled")
    label = stored(ctx, picture, ctx.places.root / name, classes, one.file)
    known = ctx.state.labels.get(name)
    if known is not None and (known.mask, known.picture) == (label.mask, label.picture):
        return None, None
    return label, _changed(ctx, picture, classes)


def _confirms(ctx: Context, one: Came, picture: Picture) -> bool:
    """Return whether a file without a shape says that all of its picture is of the first class.

    One that is of a single picture, which was laid out to be corrected, is put among the corrected
    files by somebody who looked at it: nothing was to be drawn, or all of it was deleted.
    """
    drawn = one.drawing
    asked = any(picture.name in round_.names for round_ in ctx.state.rounds)
    bare = drawn is not None and not drawn.shapes and not drawn.no_area
    return asked and bare and one.alone and not one.uncovered


def _painted(ctx: Context, one: Came, picture: Picture, drawn: Drawing) -> NDArray[np.uint8]:
    """Return the classes that an annotation file gives a picture.

    What nothing is drawn on is of the first class, as in the files that are laid out; where shapes
    of the first class are drawn, or the format has scribbles, it is not labelled.

    Raises:
        UserError: labels that are no classes, another size, or two classes at one pixel.
    """
    names = ctx.classes.names
    values: dict[str, int] = {}
    for label in dict.fromkeys(shape.label for shape in drawn.shapes):
        if label in names:
            values[label] = names.index(label)
        elif is_ignored(label) or is_background(label):
            values[label] = IGNORE if is_ignored(label) else 0
        else:
            told = f"; {numbered.NAMES} beside it names its numbers" if label.isdecimal() else ""
            raise UserError(f"it draws {label!r}; the classes are {', '.join(names)}{told}")
    height, width = ctx.record.read(ctx.places.root / picture.name).pixels.shape[:2]
    if drawn.size is not None and drawn.size != (height, width):
        raise UserError(
            f"it was drawn on {drawn.size[1]} x {drawn.size[0]} pixels, the picture has {width} x "
            f"{height}"
        )
    rest = IGNORE if one.uncovered or 0 in values.values() else 0
    painted = paint(drawn, (height, width), values, None, rest)
    if painted.overlaps and not drawn.ordered:
        (first, second), pixels = next(iter(painted.overlaps.items()))
        raise UserError(
            f"{first} and {second} are both drawn on {counted(pixels, 'pixel')}; draw each once"
        )
    return painted.mask


def stored(
    ctx: Context,
    picture: Picture,
    path: Path,
    classes: NDArray[np.uint8],
    file: str,
    specimen: str | None = None,
) -> Label:
    """Store a picture and its mask, and return them as a label.

    Args:
        ctx: of the loop.
        picture: what it is called.
        path: where the picture lies.
        classes: its mask, uint8 (H, W), 255 for none.
        file: where the mask came from.
        specimen: of a picture that is not in the folder.

    Raises:
        UserError: the mask does not fit the picture.
    """
    mask = ctx.places.keep_bytes(ctx.classes.encode(classes, shown=False), ".png")
    record = ctx.record
    micrograph = record.read(path)
    judged = bars.of_pairs(
        [(path, ctx.places.store / mask)], lambda _: micrograph, record.crop_bottom
    )
    if judged.misfits:
        height, width = micrograph.pixels.shape[:2]
        raise UserError(
            f"the mask has {classes.shape[1]} x {classes.shape[0]} pixels, the picture {width} x "
            f"{height}; a mask has its picture's size, or its width and up to a fifth fewer rows"
        )
    return Label(
        picture.name,
        picture.key,
        ctx.places.keep(path, path.suffix),
        mask,
        readers.digest(micrograph.pixels),
        specimen,
        file,
        micrograph.pixel_size or ctx.state.sizes.get(picture.name),
    )


def _changed(ctx: Context, picture: Picture, classes: NDArray[np.uint8]) -> float | None:
    """Return the share of labelled pixels that differ from what was laid out, None without it."""
    asked = [one for one in ctx.state.rounds if picture.name in one.names]
    if not asked:
        return None
    path = ctx.places.mask(asked[-1].masks[picture.name], picture.key)
    drawn = np.asarray(readers.read_mask(path))[: len(classes)] if path.is_file() else classes[:0]
    if drawn.shape != classes.shape:
        return None
    both = (classes != IGNORE) & (drawn != IGNORE)
    return float((drawn != classes)[both].mean()) if both.any() else None
