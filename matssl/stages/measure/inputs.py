"""What is measured: the masks of a run, of a labelled folder or of a folder of masks, as fields."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import counted
from matssl.data import bars, layouts, masks, readers
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import Grouping, group
from matssl.data.specimens.sequences import Frame, Sequences
from matssl.measure.field import Field, Masked, areas, squared
from matssl.stages import predictions
from matssl.stages.measure.settings import MeasureSettings

# Said where fields are frames of sequences; so many of these are named.
FRAMES = (
    "frames beside each other are alike, so that a sequence counts as one field in every interval; "
    "what lies in several frames counts in each. Frames far enough apart to be fields go into "
    "files of their own, out of the stack and of the columns sequence and frame"
)
SHOWN = 3
# What rows over specimens are called in specimens.csv: no specimen can be.
MEANS = re.compile(r"all together|all specimens|mean of \d+ specimens", re.IGNORECASE)
# From a run of which stage its masks are.
EVALUATION, PHASES = "eval_model.py", "matssl.tools.phase_map"


@dataclass(frozen=True)
class Source:
    """Masks to be measured.

    Attributes:
        what: they are, in words: predictions of a run, masks of a labelled folder.
        root: folder they come from.
        names: of the classes.
        count: how many fields there are.
        open: gives a field by its number with its pixels; raises UserError where it cannot be
            read.
        files: the mask of each field.
        grouping: which specimen each is of, and who says so.
        notes: what was taken for what, in words.
        labelled: whether the masks number objects.
        predicted: whether a model made the masks, whose own error the numbers then hold.
        specimens: which each field is of.
        images: the micrograph of each field, where there are any.
        regions: pictures of what counts (``--roi``).
        left: pixels that count before and after ``--roi``, by field; filled as fields are opened.
        frames: which frame of which sequence each field is; empty where none is.
    """

    what: str
    root: Path
    names: tuple[str, ...]
    count: int
    open: Callable[[int], Masked]
    files: tuple[Path, ...]
    grouping: Grouping
    notes: tuple[str, ...] = ()
    labelled: bool = False
    predicted: bool = False
    specimens: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    regions: tuple[Path, ...] = ()
    left: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    frames: tuple[Frame | None, ...] = ()


def find(settings: MeasureSettings) -> Source:
    """Return the masks that a command names.

    Raises:
        UserError: there are none, or they do not fit.
    """
    folder = Path(settings.input)
    predicted = predictions.folder(folder)
    if predicted is not None:
        return _counting(settings, _of_run(settings, folder, predicted))
    if (folder / "status.json").is_file():
        raise UserError(
            f"{folder} is a run without predicted masks; give the results of {EVALUATION} or of "
            f"{PHASES}, or a labelled folder"
        )
    return _counting(settings, _of_labels(settings, folder))


def _counting(settings: MeasureSettings, source: Source) -> Source:
    """Return the masks by specimen, with what ``--roi`` leaves of them, in square pixels.

    Raises:
        UserError: a specimen is called as a row of means is.
    """
    for name in source.specimens:
        if MEANS.fullmatch(name.strip()):
            raise UserError(
                f"a specimen is called {name!r}, as the row of means over specimens is; give it "
                "another name (specimens.csv, --group_regex)"
            )
    source = _ordered(_framed(source))
    if settings.roi is not None:
        # It needs the type of what it gets.
        from matssl.stages.measure import roi

        source = roi.within(settings.roi, source)
    open_ = source.open
    return replace(source, open=lambda number: squared(open_(number)))


def _framed(source: Source) -> Source:
    """Return the masks with the place of each in its sequence, and a note where they have one.

    Raises:
        UserError: specimens cut through a sequence.
    """
    known = {p: f for p, f in zip(source.files, source.frames, strict=False) if f is not None}
    if not known:
        return source
    sequences = Sequences(known)
    sequences.refuse_cut(source.files, source.specimens, source.grouping.source)
    open_ = source.open

    def opened(number: int) -> Masked:
        one, frame = open_(number), source.frames[number]
        if frame is None:
            return one
        return replace(one, field=replace(one.field, sequence=frame.sequence, frame=frame.number))

    members = list(sequences.members.items())
    named = ", ".join(f"{name} ({len(frames)})" for name, frames in members[:SHOWN])
    more = " ..." if len(members) > SHOWN else ""
    note = (
        f"{len(known)} of {counted(source.count, 'field')} are frames of "
        f"{counted(len(members), 'sequence')}, {named}{more}: {FRAMES}"
    )
    return replace(source, open=opened, notes=(*source.notes, note))


def _pages(files: Sequence[Path], page: int | None) -> list[Path]:
    """Return the masks in files: each page of a stack, or the one that ``--page`` names.

    Raises:
        UserError: pages that are channels, or go in two directions.
    """
    if page is None:
        return [mask for path in files for mask in readers.frames(path) or (path,)]
    return [readers.page_path(path, page) if readers.alike(path) > 1 else path for path in files]


def _ordered(source: Source) -> Source:
    """Return the masks by specimen in natural order, those of one as they were."""
    order = sorted(range(source.count), key=lambda i: readers.natural(source.specimens[i]))
    open_ = source.open
    images = source.images and tuple(source.images[i] for i in order)
    frames = source.frames and tuple(source.frames[i] for i in order)
    return replace(
        source,
        open=lambda number: open_(order[number]),
        files=tuple(source.files[i] for i in order),
        specimens=tuple(source.specimens[i] for i in order),
        images=images,
        frames=frames,
    )


def _of_run(settings: MeasureSettings, folder: Path, predicted: Path) -> Source:
    """Return a run's predictions; the run's table says specimens and pixel sizes."""
    if settings.crop_bottom:
        raise UserError(
            f"--crop_bottom acts on a labelled folder; in {folder} the rows were cut off when it "
            f"was made: give --crop_bottom to {EVALUATION} or {PHASES}"
        )
    if settings.classes or settings.mask_folder or settings.split:
        raise UserError(
            f"{folder} says its classes and masks itself; leave --classes, --mask_folder and "
            "--split out"
        )
    files = readers.find_images(predicted)
    names, table = predictions.facts(folder)
    listed = predictions.by_output(table, [path.stem for path in files])
    images = _images_beside(settings, files)
    given = readers.parse_pixel_size(settings.pixel_size)
    grouping = group(files, predicted, regex=settings.group_regex, specimens=settings.specimens)
    sizes = dict(zip(files, _sizes(grouping, files), strict=True))
    record = _record(settings)
    own = list(grouping.names)
    for number, path in enumerate(files):
        if path.stem in listed and not grouping.told:
            own[number] = listed[path.stem].group
    frames = [grouping.sequences.frames.get(path) for path in files]
    for number, path in enumerate(files):
        row = listed.get(path.stem)
        if frames[number] is None and row is not None and row.place is not None:
            frames[number] = Frame(*row.place)

    def opened(number: int) -> Masked:
        path, specimen = files[number], own[number]
        row = listed.get(path.stem)
        size = given or sizes[path] or (row.pixel_size if row else None)
        mask = np.asarray(readers.read_mask(path)).astype(np.uint8, copy=False)
        # Rows of a cut-off information bar are no field.
        kept = np.flatnonzero((mask < len(names)).any(axis=1))
        mask = mask[: kept[-1] + 1 if len(kept) else 0]
        image = images.get(path.stem) or (row.image if row else None)
        field = Field(image or path, path.stem, specimen, areas(mask, len(names)), size)
        one = Masked(field, mask, picture=_picture(image, record, mask.shape))
        if given or sizes[path] or image is None or not readers.file_of(image).is_file():
            return one
        try:
            return replace(one, aspect=record.read(image).aspect)
        except UserError:
            # The mask alone is needed.
            return one

    what = "phase maps" if predicted.parent.name == "maps" else "predicted masks"
    return Source(
        what,
        folder,
        names,
        len(files),
        opened,
        tuple(files),
        grouping,
        predicted=True,
        specimens=tuple(own),
        frames=tuple(frames),
    )


def _sizes(grouping: Grouping, files: Sequence[Path]) -> list[float | None]:
    """Return the pixel sizes that specimens.csv says, in nm."""
    return [grouping.pixel_sizes.get(path) for path in files]


def _images_beside(settings: MeasureSettings, files: Sequence[Path]) -> dict[str, Path]:
    """Return the micrographs of ``--images`` by their stem."""
    if settings.images is None:
        return {}
    found = predictions.pictures(Path(settings.images), [path.stem for path in files])
    if not any(path.stem in found for path in files):
        raise UserError(
            f"no file in {settings.images} has the name of a mask (first: {files[0].name}); give "
            "the folder of the micrographs with --images"
        )
    return found


def _picture(
    image: Path | None, record: Preprocess, shape: tuple[int, ...]
) -> Callable[[], Array] | None:
    """Return what reads the micrograph of a mask: its rows above the bar, grey levels as stored."""
    if image is None or not readers.file_of(image).is_file():
        return None

    def read() -> Array:
        pixels = record.read(image).pixels
        if pixels.ndim == 3:
            pixels = readers.from_array(pixels).pixels
        return pixels[: shape[0], : shape[1]]

    return read


def _record(settings: MeasureSettings) -> Preprocess:
    """Return how micrographs are read: for their size, their bar and their grey levels."""
    return Preprocess.chosen(
        channels=1,
        page=settings.page,
        pixel_size=settings.pixel_size,
        crop_bottom=settings.crop_bottom or "auto",
    )


def _of_labels(settings: MeasureSettings, folder: Path) -> Source:
    """Return the masks of a labelled folder, or a folder of masks with or without images."""
    root, mask_folder = folder, settings.mask_folder
    if settings.images is not None:
        root, mask_folder = Path(settings.images), str(folder.resolve())
    dataset = layouts.find(
        root,
        group_regex=settings.group_regex,
        specimens=settings.specimens,
        pixel_size=settings.pixel_size,
        classes=settings.classes,
        mask_folder=mask_folder,
        # Masks may lie alone.
        need_masks=mask_folder is not None,
        whole=True,
        page=settings.page,
        pages=True,
    )
    if dataset.table is None:
        return _of_masks(settings, folder)
    table = dataset.table
    pairs = [pair for pair in dataset.pairs if pair.mask is not None]
    if settings.split is not None:
        pairs = [pair for pair in pairs if pair.split == settings.split]
        if not pairs:
            raise UserError(
                f"{root} has no split {settings.split!r}; there are: {', '.join(dataset.splits)}"
            )
    record = _record(settings).told(dataset.grouping.pixel_sizes)
    judged = bars.of_pairs(
        [(pair.image, pair.mask) for pair in pairs], record.read, record.crop_bottom
    )
    judged.refuse_misfits()
    record = record.knowing(judged.rows)
    images = [pair.image for pair in pairs]
    called = _called(images, [image.name for image in images], root)

    def opened(number: int) -> Masked:
        pair = pairs[number]
        assert pair.mask is not None
        micrograph = record.read(pair.image)
        raw = readers.read_mask(pair.mask)
        decoded = table.decode(raw, str(pair.mask))
        mask = record.mask(decoded, micrograph)
        labels = _numbers(table, raw, decoded)
        if labels is not None:
            labels = np.where(mask == IGNORE, 0, record.mask(labels, micrograph))
        own = areas(mask, table.num_classes)
        field = Field(pair.image, called[number], pair.group, own, micrograph.pixel_size)
        one = Masked(field, mask, labels, _picture(pair.image, record, mask.shape))
        return replace(one, aspect=micrograph.aspect)

    notes = (*dataset.notes, *judged.notes, *judged.warnings)
    if settings.split is None:
        # All splits are measured; how they would be cut is of no use here.
        notes = tuple(note for note in notes if note != dataset.cut.text)
    return Source(
        "masks of a labelled folder",
        root,
        table.names,
        len(pairs),
        opened,
        tuple(pair.mask for pair in pairs if pair.mask is not None),
        dataset.grouping,
        tuple(notes),
        labelled=table.instances,
        specimens=tuple(pair.group for pair in pairs),
        images=tuple(images),
        frames=tuple(dataset.grouping.sequences.frames.get(image) for image in images),
    )


def _called(files: Sequence[Path], names: Sequence[str], root: Path) -> list[str]:
    """Return what each file is called: its name; of two that share one the path below the root."""
    often = Counter(names)
    return [
        name if often[name] == 1 else Path(os.path.relpath(path, root)).as_posix()
        for path, name in zip(files, names, strict=True)
    ]


def _of_masks(settings: MeasureSettings, folder: Path) -> Source:
    """Return the files of a folder that holds masks alone."""
    stored = readers.find_images(folder)
    if not stored:
        raise UserError(f"no images in {folder}")
    files = _pages(stored, settings.page)
    if settings.split is not None:
        raise UserError(f"{folder} holds masks alone, in no splits; leave --split out")
    table: ClassTable
    table, told = masks.find_table(files, settings.classes, folder, whole=True)
    given = readers.parse_pixel_size(settings.pixel_size)
    grouping = group(files, folder, regex=settings.group_regex, specimens=settings.specimens)
    sizes = _sizes(grouping, files)
    called = _called(files, [path.stem for path in files], folder)

    def opened(number: int) -> Masked:
        path = files[number]
        raw = readers.read_mask(path)
        mask = table.decode(raw, str(path))
        size = given or sizes[number]
        own = areas(mask, table.num_classes)
        field = Field(path, called[number], grouping.names[number], own, size)
        return Masked(field, mask, _numbers(table, raw, mask))

    note = f"{counted(len(stored), 'file')} without images beside, taken for masks (--images)"
    if len(files) > len(stored):
        note += f": {counted(len(files), 'page')}, each a field"
    return Source(
        "masks",
        folder,
        table.names,
        len(files),
        opened,
        tuple(files),
        grouping,
        (note, *told),
        labelled=table.instances,
        specimens=grouping.names,
        frames=tuple(grouping.sequences.frames.get(path) for path in files),
    )


def _numbers(table: ClassTable, raw: Array, mask: NDArray[np.uint8]) -> NDArray[np.int32] | None:
    """Return the numbers of objects where masks number them, None where they hold classes."""
    if not table.instances:
        return None
    return masks.numbers(masks.plain(raw, table.alpha), mask == 1)


def chosen(settings: MeasureSettings, source: Source) -> tuple[int, ...]:
    """Return the indices of the classes that ``--class`` names, empty where it names none.

    Raises:
        UserError: a name that is no class.
    """
    words = [word.strip() for word in (settings.class_ or "").split(",") if word.strip()]
    wrong = [word for word in words if word not in source.names]
    if wrong:
        raise UserError(f"--class {wrong[0]}: the classes are {', '.join(source.names)}")
    return tuple(dict.fromkeys(source.names.index(word) for word in words))
