"""ImageJ and Fiji: ``NAME.roi`` and ``NAME.zip`` (ROI sets), each named as its picture.

Read and written with roifile. The class of a ROI is its name without the number that ImageJ adds to
tell names apart (``pore-2``); of a ROI that nobody named (``0030-0040``), its group. Coordinates
count from the outer corner of the first pixel, whole ones and those of sub-pixel outlines. Shapes
do not lie above each other, so that two classes at one pixel are a question.

Written: a part without holes as a traced outline, one with holes as a composite.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_bytes
from matssl.core.wording import cut
from matssl.data.annotations import named, outlines, sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Marked,
    Points,
    Shape,
    box,
    label_of,
    stem_of,
)
from matssl.data.readers.headers import first_line

ENDINGS = (".roi", ".zip")
MAGIC = b"Iout"
# ROIs of a set, and bytes that they may have together.
MOST_ROIS, MOST_BYTES = 1 << 18, 1 << 26
# Types of ROI files.
POLYGON, RECT, OVAL, LINE, FREELINE, POLYLINE, NO_ROI, FREEHAND, TRACED, ANGLE, POINT = range(11)
KINDS = {
    **{POLYGON: "polygon", RECT: "rectangle", OVAL: "oval", FREEHAND: "freehand"},
    **{TRACED: "traced outline", LINE: "line", FREELINE: "freehand line", ANGLE: "angle"},
    **{POLYLINE: "segmented line", POINT: "point", NO_ROI: "nothing"},
}
WITHOUT_AREA = (LINE, FREELINE, POLYLINE, NO_ROI, ANGLE, POINT)
# Subtypes of rectangles: text and an image that lie over the picture.
TEXT, IMAGE = 1, 4
# Names that ImageJ makes from the place of a ROI: row-column, before it the slice of a stack.
DEFAULT_NAME = re.compile(r"\d{4,}-\d{4,}(-\d{4,})?(-\d+)?")
NUMBER = re.compile(r"(.+?)-\d+")
# Whole coordinates of traced outlines are read back up to here.
HIGHEST = 60_000
# Points of a quarter of a rounded corner.
ROUND = 16
IGNORED = "__ignore__"


def _is_one(path: Path) -> bool:
    try:
        if path.suffix.lower() == ".roi":
            with open(path, "rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        with zipfile.ZipFile(path) as archive:
            return any(_is_roi(info) for info in archive.infolist()[:MOST_ROIS])
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False


def _is_roi(info: zipfile.ZipInfo) -> bool:
    name = info.filename.rsplit("/", 1)[-1].lower()
    # What macOS puts beside each file begins so.
    return name.endswith(".roi") and not name.startswith("._")


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds ROIs of ImageJ."""
    return sources.recognised(path, ENDINGS, _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the ROI files of a folder hold, a file a picture.

    Raises:
        UserError: no such file, a damaged one, ROIs of several slices of a stack.
    """
    found, notes = sources.chosen(path, ENDINGS, _is_one, "ImageJ")
    root = path if path.is_dir() else path.parent
    return Annotations(tuple(_drawing(file, root, choices) for file in found), notes=notes)


def _drawing(file: Path, root: Path, choices: Choices) -> Drawing:
    names = named.pictures(file, root)
    unnamed = {name.rsplit("/", 1)[-1] for name in names}
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    slices: set[tuple[int, ...]] = set()
    for entry, data in _entries(file):
        where = f"{file}, {entry}" if entry else str(file)
        roi = _roi(data, where)
        slices.add((roi.position, roi.z_position, roi.t_position))
        said = _class(roi, "" if entry and stem_of_roi(entry) in unnamed else entry, unnamed)
        kind = KINDS.get(int(roi.roitype), "unknown")
        if int(roi.roitype) in WITHOUT_AREA or (
            int(roi.roitype) == RECT and int(roi.subtype) in (TEXT, IMAGE)
        ):
            no_area[kind, said or ""] += 1
            continue
        label = sources.label_or(said, choices.label, f"{where} ({kind})")
        shape = _shape(roi, label, kind, where)
        if shape is None:
            no_area[f"{kind} without area", label] += 1
        else:
            shapes.append(shape)
    slices.discard((0, 0, 0))
    if len(slices) > 1:
        raise UserError(
            f"{file} holds ROIs on {len(slices)} slices of a stack; save those of each slice as a "
            "file of its own, named as the picture of that slice"
        )
    return Drawing(names[0], None, tuple(shapes), file, no_area, names[1:])


def stem_of_roi(entry: str) -> str:
    """Return the name of a ROI file without its ending and folders."""
    name = entry.rsplit("/", 1)[-1]
    return name[:-4] if name.lower().endswith(".roi") else name


def _entries(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the ROIs of a file with their names in it, "" for a file of one ROI.

    Raises:
        UserError: it cannot be opened, or unpacks to more than any set of outlines.
    """
    try:
        if file.suffix.lower() == ".roi":
            if file.stat().st_size > MOST_BYTES:
                raise UserError(f"{file} is larger than any ROI")
            yield "", file.read_bytes()
            return
        with zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if _is_roi(info)]
            if len(infos) > MOST_ROIS or sum(info.file_size for info in infos) > MOST_BYTES:
                raise UserError(
                    f"{file} holds {len(infos):,} ROIs of "
                    f"{sum(info.file_size for info in infos) / 1e6:,.0f} MB; that is no ROI set"
                )
            for info in infos:
                yield info.filename, archive.read(info)
    except UserError:
        raise
    except (
        *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError, struct.error),
        *(zipfile.BadZipFile, zlib.error, MemoryError),
    ) as error:
        raise UserError(f"{file} cannot be read: {cut(first_line(error))}") from error


def _roi(data: bytes, where: str) -> Any:
    """Return what roifile reads.

    Raises:
        UserError: it is damaged.
    """
    roifile = named.package("roifile", "reading ROIs of ImageJ")
    if data[:4] != MAGIC:
        raise UserError(f"{where} is no ROI of ImageJ")
    try:
        return roifile.ImagejRoi.frombytes(data)
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{where} is damaged: {cut(first_line(error))}") from error


def _class(roi: Any, entry: str, unnamed: set[str]) -> str | None:
    """Return the class of a ROI, None where neither a name nor a group tells it.

    Args:
        roi: of roifile.
        entry: its name in the zip file, "" where there is none.
        unnamed: names of the picture, which are no classes.
    """
    name = label_of(str(roi.name or "").replace("\0", "")) or label_of(stem_of_roi(entry))
    if name and not DEFAULT_NAME.fullmatch(name) and name not in unnamed:
        numbered = NUMBER.fullmatch(name)
        return numbered[1] if numbered else name
    return f"group {int(roi.group)}" if int(roi.group) > 0 else None


def _shape(roi: Any, label: str, kind: str, where: str) -> Shape | None:
    """Return the shape of a ROI with an area; None where its outline has none.

    Raises:
        UserError: its path or its numbers are damaged.
    """
    if roi.multi_coordinates is not None:
        rings = [_checked(part, where) for part in _path(roi.multi_coordinates.tolist(), where)]
        rings = [ring for ring in rings if len(ring) > 2]
        return Shape(label, "composite", tuple(rings)) if rings else None
    if int(roi.roitype) in (RECT, OVAL):
        left, top, width, height = _bounds(roi)
        corners = _checked([(left, top), (left + width, top + height)], where)
        if not width > 0 or not height > 0 or len(corners) < 2:
            return None
        if int(roi.roitype) == OVAL:
            centre = left + width / 2, top + height / 2
            return Shape(label, kind, ellipse=Ellipse(*centre, width / 2, height / 2))
        arc = float(roi.rounded_rect_arc_size)
        return Shape(label, kind, (_rounded(left, top, width, height, arc),))
    # ImageJ keeps the outline of a turned ellipse or box as well.
    ring = _checked(roi.coordinates(), where)
    return Shape(label, kind, (ring,)) if len(ring) > 2 else None


def _checked(points: Sequence[Sequence[float]], where: str) -> Points:
    return sources.outline(points, where)


def _bounds(roi: Any) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a rectangle or an oval."""
    if roi.subpixelrect:
        return float(roi.xd), float(roi.yd), float(roi.widthd), float(roi.heightd)
    return (
        *(float(roi.left), float(roi.top)),
        *(float(roi.right - roi.left), float(roi.bottom - roi.top)),
    )


def _rounded(left: float, top: float, width: float, height: float, arc: float) -> Points:
    """Return the outline of a rectangle whose corners are quarters of circles of diameter arc."""
    plain = box(left, top, left + width, top + height)
    rx, ry = min(arc, width) / 2, min(arc, height) / 2
    if not arc > 0:
        return plain
    middles = np.array([(rx, ry), (-rx, ry), (-rx, -ry), (rx, -ry)]) + plain
    turns = np.linspace(0, np.pi / 2, ROUND)
    quarters = [
        middle + np.stack([rx * np.cos(turns + start), ry * np.sin(turns + start)], axis=1)
        for middle, start in zip(middles, np.pi * np.array([1, 1.5, 0, 0.5]), strict=True)
    ]
    return np.concatenate(quarters)


def _path(numbers: Sequence[float], where: str) -> list[list[tuple[float, float]]]:
    """Return the rings of a composite: 0 x y begins one, 1 x y goes on, 4 closes it.

    Raises:
        UserError: curves, which ImageJ does not write for areas, or a path that is none.
    """
    rings: list[list[tuple[float, float]]] = []
    at = 0
    while at < len(numbers):
        step = numbers[at]
        if step == 4:
            at += 1
            continue
        if step not in (0, 1) or at + 2 >= len(numbers) or (step == 1 and not rings):
            curve = step in (2, 3)
            told = "has curves in its path" if curve else "is damaged: its path is none"
            raise UserError(f"{where} {told}; save it as a traced or polygon selection")
        if step == 0:
            rings.append([])
        rings[-1].append((numbers[at + 1], numbers[at + 2]))
        at += 3
    return rings


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as ROI sets, a zip file a picture, in the folders of their pictures.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are drawn as ``__ignore__``.

    Raises:
        UserError: roifile is not installed.
    """
    named.package("roifile", "writing ROIs of ImageJ")
    for picture in pictures:
        file = folder / f"{stem_of(picture.picture)}.zip"
        data = io.BytesIO()
        # The same bytes every time: no clock.
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            taken: set[str] = set()
            for name, content in _written(picture, names):
                # a/b and a_b are two classes, and a zip has each name once.
                own = _entry_name(name)
                while own in taken:
                    own = f"_{own}"
                taken.add(own)
                entry = zipfile.ZipInfo(f"{own}.roi", (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, data.getvalue())


def _written(picture: Marked, names: Mapping[int, str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the ROIs of a mask; every name has a number, as ImageJ gives it."""
    for number, pixels in picture.layers(names):
        label = IGNORED if number == IGNORE else names[number]
        for count, rings in enumerate(outlines.polygons(pixels), 1):
            name = f"{label}-{count}"
            yield name, _bytes(name, rings)


def _entry_name(name: str) -> str:
    """Return the name of a ROI as a file in a zip; the ROI itself keeps the name whole."""
    return re.sub(r'[\\/:*?"<>|]', "_", name)


def _bytes(name: str, rings: Sequence[Points]) -> bytes:
    roifile = named.package("roifile", "writing ROIs of ImageJ")
    low = np.min([ring.min(axis=0) for ring in rings], axis=0).astype(int)
    high = np.max([ring.max(axis=0) for ring in rings], axis=0).astype(int)
    roi = roifile.ImagejRoi()
    roi.name = name
    roi.left, roi.top, roi.right, roi.bottom = (int(v) for v in (*low, *high))
    if len(rings) == 1 and high.max() <= HIGHEST:
        roi.roitype = roifile.ROI_TYPE.TRACED
        roi.integer_coordinates = rings[0].astype(np.int32) - low
        roi.n_coordinates = len(rings[0])
    else:
        roi.roitype = roifile.ROI_TYPE.RECT
        path = [
            number
            for ring in rings
            for number in (
                *(v for at, (x, y) in enumerate(ring) for v in (float(at > 0), x, y)),
                4.0,
            )
        ]
        roi.multi_coordinates = np.array(path, np.float32)
        roi.shape_roi_size = len(path)
    return roi.tobytes()
