"""TIFF files by tifffile: which page, and its numbers as a viewer shows them.

Tags and their meaning: TIFF 6.0 (Adobe, 1992), section numbers at the functions.
"""

from __future__ import annotations

import itertools
import logging
import re
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.readers import orientation, photometric
from matssl.data.readers.calibration import Calibration, of_tiff
from matssl.data.readers.headers import first_line
from matssl.data.readers.units import nm_per

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

# Pages beyond are no choice of a preview or a picture, but a film.
MAX_PAGES = 4096
MAX_TAGS = 4096
# Plain pages that take more are mapped instead of read: their bytes then need no memory.
MAPPED_BYTES = 1 << 26
TRANSPARENCY = "MASK"
# Letters of tifffile for rows, columns and colours; all others count pictures.
PLANE = "YXS"
# What tifffile logs of the pixels themselves, where it gives zeros for what it lacks.
LOST = ("bytecounts", "stripoffsets", "data offset", "segments", "failed to read", "reshape")


@dataclass(frozen=True)
class Stored:
    """A page as the file stores it, upright.

    Attributes:
        pixels: (H, W) or (H, W, C), numbers as stored.
        calibration: what the tags say.
        facts: how the numbers are meant.
        orientation: see :mod:`matssl.data.readers.orientation`.
        notes: which page it is, where there are several.
    """

    pixels: Array
    calibration: Calibration
    facts: photometric.Facts
    orientation: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """What a stack says of its pages.

    Attributes:
        axis: what they count: Z, T, or I where it is not told.
        program: whose description it has: "imagej", "ome", or "".
        apart: entries of the description that say how far pages are apart; lengths of ImageJ in nm.
    """

    axis: str
    program: str
    apart: Mapping[str, Any]


def promise(path: Path, page: int | None) -> tuple[int, int, int, int]:
    """Return height, width, channels and bits that a page claims.

    Raises:
        UserError: no such page, or none with a picture.
    """
    import tifffile

    with listening(), tifffile.TiffFile(path) as file:
        chosen, _ = _chosen(file, path, page)
        return _size(chosen)


def stored(path: Path, page: int | None = None) -> Stored:
    """Return a page of a file.

    Args:
        path: of the file.
        page: counted from 0; None for the largest page, of equal ones the deepest, of those the
            first.

    Raises:
        UserError: damaged, no such page, or no picture in it; the file is named.
    """
    import tifffile

    try:
        with listening() as told, tifffile.TiffFile(path) as file:
            chosen, notes = _chosen(file, path, page)
            facts = photometric.facts(chosen, file.is_imagej)
            pixels = _pixels(file, chosen, path)
            _refuse_lost(path, told)
            notes = (*notes, *_perhaps_pages(file, chosen, pixels, path))
            turned = _tag(chosen, 274)
            turned = turned if turned in orientation.TURNS else orientation.UPRIGHT
            calibration = of_tiff(file, chosen)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{path} is stored in a way that is not read ({first_line(error)}); save it as plain "
            "grey or RGB TIFF"
        ) from error
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{path} is broken: {first_line(error)}") from error
    if turned != orientation.UPRIGHT:
        pixels = orientation.upright(pixels, turned)
    return Stored(pixels, calibration, facts, turned, notes)


def frames(path: Path) -> tuple[int, ...]:
    """Return the numbers of the pages that are frames of one stack, from 0; none where it is none.

    Raises:
        UserError: a page is damaged, or the pages are channels, or go in two directions, such as
            channels and depths.
    """
    import tifffile

    with listening(), tifffile.TiffFile(path) as file:
        count = _count(file)
        # First of all: the series of an OME file are read in short, without what a page says.
        pages = list(_pages(file, count)) if count > 1 else []
        directions = _lengths(file)
        if count < 2:
            if directions and (file.is_imagej or file.is_shaped):
                raise UserError(
                    f"{path} holds {max(directions.values())} pictures behind one page, as ImageJ "
                    "writes what is larger than 4 GB; save it as an image sequence"
                )
            return ()
        if len(pages) < count:
            told = "is broken" if count <= MAX_PAGES else f"is more than {MAX_PAGES} pages"
            raise UserError(f"{path}: page {len(pages) + 1} of {count} {told}; save the pages anew")
        found = _largest(pages)
    if len(found) < 2:
        return ()
    if list(directions) == ["C"]:
        raise UserError(
            f"{path} holds {directions['C']} channels of one picture, which are no frames beside "
            "each other; --page N reads one of them, and where they are frames, let the file say "
            "so (ImageJ: Image > Properties, slices instead of channels)"
        )
    if len(directions) > 1:
        words = {"C": "channels", "T": "times", "Z": "depths"}
        told = " and ".join(f"{n} {words.get(axis, 'pages')}" for axis, n in directions.items())
        raise UserError(
            f"{path} holds {told}, and frames go in one direction; save one of the others alone "
            "(ImageJ: Image > Color > Split Channels, Image > Stacks > Tools > Make Substack)"
        )
    return found


def _largest(pages: Sequence[TiffPage]) -> tuple[int, ...]:
    """Return the numbers of the pages that have size, channels and bits of the largest one."""
    kinds = [(_size(p), _photometric(p) != TRANSPARENCY and len(p.shape) > 1) for p in pages]
    best = max((size for size, shown in kinds if shown), key=_area, default=None)
    return tuple(n for n, kind in enumerate(kinds) if kind == (best, True))


def count(path: Path) -> int:
    """Return how many pages a file has."""
    import tifffile

    with listening(), tifffile.TiffFile(path) as file:
        return _count(file)


def alike(path: Path) -> int:
    """Return how many pages have the size of the largest one."""
    import tifffile

    with listening(), tifffile.TiffFile(path) as file:
        number = _count(file)
        return len(_largest(list(_pages(file, number)))) if number > 1 else 1


def kind(path: Path) -> Kind:
    """Return what a stack says of its pages."""
    import tifffile

    with listening(), tifffile.TiffFile(path) as file:
        letter = next((letter for letter in _lengths(file) if letter in "ZT"), "I")
        if file.is_ome:
            return Kind(letter, "ome", _apart(file.ome_metadata or ""))
        if not file.is_imagej:
            return Kind(letter, "", {})
        told = file.imagej_metadata or {}
    names = ("finterval", "fps") if letter == "T" else ()
    apart = {name: told[name] for name in names if name in told}
    unit = nm_per(str(told.get("unit", "")))
    if letter == "Z" and unit is not None and isinstance(told.get("spacing"), (int, float)):
        apart["spacing"] = told["spacing"] * unit
    return Kind(letter, "imagej", apart)


def _apart(metadata: str) -> dict[str, Any]:
    """Return how far pages of an OME file are apart, in its own words."""
    found: dict[str, Any] = {}
    for name in ("PhysicalSizeZ", "TimeIncrement"):
        match = re.search(rf'\b{name}="([0-9.eE+-]+)"', metadata)
        if match:
            unit = re.search(rf'\b{name}Unit="([^"]{{1,20}})"', metadata)
            found |= {name: float(match[1])} | ({f"{name}Unit": unit[1]} if unit else {})
    return found


def _lengths(file: TiffFile) -> dict[str, int]:
    """Return how many pictures a file says it holds, by tifffile's letter of each direction."""
    try:
        series = file.series[0]
        lengths = dict(zip(series.get_axes(False), series.get_shape(False), strict=True))
    except Exception:  # what metadata say of pages is asked, not needed
        return {}
    return {letter: n for letter, n in lengths.items() if letter not in PLANE and n > 1}


def _area(size: tuple[int, int, int, int]) -> tuple[int, int]:
    return size[0] * size[1], size[3]


def _chosen(file: TiffFile, path: Path, page: int | None) -> tuple[TiffPage, tuple[str, ...]]:
    """Return a page and, where there are several, which one in words."""
    count = _count(file)
    if page is not None:
        if page >= count:
            noun = "page" if count == 1 else "pages"
            raise UserError(f"{path} has {count} {noun}; page {page + 1} was asked for (--page)")
        return file.pages[page], (f"page {page + 1} of {count} is read",) if count > 1 else ()
    pages = list(_pages(file, count))
    pictures = [p for p in pages if len(p.shape) > 1]
    if not pictures:
        raise UserError(f"{path} holds no image")
    opaque = [p for p in pictures if _photometric(p) != TRANSPARENCY] or pictures
    best = max(opaque, key=_worth)
    inside = max(_inner(pages[0]), key=_worth, default=best)
    if _worth(inside)[0] > _worth(best)[0]:
        return inside, ("the picture inside page 1 is read, the largest of the file",)
    if count == 1:
        return best, ()
    number = next(i for i, p in enumerate(pages) if p is best)
    told = f"page {number + 1} of {count} is read"
    if any(_worth(p) != _worth(best) for p in pictures):
        smaller = any(_worth(p)[0] != _worth(best)[0] for p in pictures)
        told += f", the {'largest' if smaller else 'deepest'}"
    return best, (told,)


def _count(file: TiffFile) -> int:
    """Return how many pages are chained in a file, each at a place of its own (section 2).

    tifffile would follow a damaged chain through the pixels for minutes.
    """
    form, handle = file.tiff, file.filehandle
    handle.seek(form.offsetsize if form.offsetsize == 8 else 4)
    places: set[int] = set()
    while True:
        (place,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
        if not 0 < place < handle.size or place in places:
            break
        handle.seek(place)
        (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
        end = place + form.tagnosize + tags * form.tagsize + form.offsetsize
        if not 1 <= tags <= MAX_TAGS or end > handle.size:
            break
        places.add(place)
        handle.seek(end - form.offsetsize)
    # A first page that is damaged is refused for what is damaged.
    return max(1, len(places))


def _pages(file: TiffFile, count: int) -> Iterator[TiffPage]:
    """Yield the pages up to the first that cannot be understood."""
    yield file.pages[0]
    try:
        for number in range(1, min(count, MAX_PAGES)):
            yield file.pages[number]
    except Exception:  # what lies behind a damaged page is not to be had
        return


def _inner(page: TiffPage) -> list[TiffPage]:
    """Return the pictures that lie inside a page, as raw cameras put them there."""
    try:
        inside = list(itertools.islice(page.pages, 16)) if page.subifds else []
    except Exception:  # the page itself is whole
        return []
    return [p for p in inside if len(p.shape) > 1]


def _worth(page: TiffPage) -> tuple[int, int]:
    height, width, _, bits = _size(page)
    return height * width, bits


def _size(page: TiffPage) -> tuple[int, int, int, int]:
    bits = page.bitspersample
    depth = max(bits) if isinstance(bits, tuple) else bits
    return int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel), int(depth)


def _photometric(page: TiffPage) -> str:
    return str(getattr(page.photometric, "name", page.photometric))


def _tag(page: TiffPage, code: int) -> Any:
    return page.tags[code].value if code in page.tags else None


def _pixels(file: TiffFile, page: TiffPage, path: Path) -> Array:
    """Return (H, W) or (H, W, C) of a page, mapped where it is large and plain."""
    if page.imagedepth > 1:
        raise UserError(f"{path} has 3 dimensions in one page; a micrograph has two")
    _check_parts(file, page, path)
    size = int(np.prod(page.shape, dtype=np.int64)) * page.dtype.itemsize
    if size > MAPPED_BYTES and page.is_memmappable:
        place = page.dataoffsets[0]
        dtype = page.dtype.newbyteorder(file.byteorder)
        pixels = np.asarray(np.memmap(path, dtype, "r", offset=place, shape=page.shape))
    else:
        pixels = page.asarray()
    if pixels.ndim == 3 and page.axes[:1] == "S":
        # Channel by channel in the file (PlanarConfiguration 2).
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim != 2 and (pixels.ndim != 3 or page.axes[-1:] != "S" and page.axes[:1] != "S"):
        raise UserError(f"{path} has {pixels.ndim} dimensions; a micrograph has two")
    return pixels


def _perhaps_pages(file: TiffFile, page: TiffPage, pixels: Array, path: Path) -> tuple[str, ...]:
    """Return what is to be said of colours that may be the pages of a stack, nothing of others.

    tifffile takes an array (3 or 4, H, W) for planes of colours, unless it is told otherwise.

    Raises:
        UserError: the fourth plane is no transparency but a picture, so that they are pages.
    """
    written = file.is_shaped or str(_tag(page, 305)).startswith("tifffile")
    apart = page.planarconfig == 2 and _photometric(page) == "RGB"
    if not (written and apart) or pixels.ndim != 3 or (pixels[..., 1:3] == pixels[..., :1]).all():
        return ()
    told = f"{pixels.shape[2]} pages of a stack, which tifffile writes so"
    mend = 'save it again with photometric="minisblack"'
    if pixels.shape[2] == 4:
        clear = (pixels[..., 3] == 0) | (pixels[..., 3] == np.iinfo(page.dtype).max)
        if 2 * int(clear.sum()) < clear.size:
            raise UserError(
                f"{path} says that it holds colours and their transparency, but that is a picture "
                f"as well: these are {told}; {mend}. Where they are colours, save them without it"
            )
    return (f"planes read as colours; if they are {told}, {mend}",)


def _check_parts(file: TiffFile, page: TiffPage, path: Path) -> None:
    """Refuse a page whose strips or tiles lie beyond the file's end, or are absent.

    tifffile gives zeros for what is absent.

    Raises:
        UserError: the sentence says how many are absent.
    """
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = file.filehandle.size
    whole = sum(0 < start and 0 < count and start + count <= end for start, count in parts)
    wanted = int(np.prod(page.chunked, dtype=np.int64))
    # Uncompressed strips that follow each other may be one part to tifffile.
    each = page.compression != 1 or page.is_tiled
    if whole < len(parts) or (each and len(parts) < wanted) or not parts:
        lost = max(len(parts), wanted) - whole
        raise UserError(
            f"{path} is broken: {lost} of {max(len(parts), wanted)} parts of its picture are not "
            "in the file"
        )


def _refuse_lost(path: Path, told: list[str]) -> None:
    """Refuse what tifffile read and had something to say about, as far as it is of pixels."""
    for line in told:
        if any(word in line.lower() for word in LOST):
            raise UserError(f"{path} is damaged: {line[:160]}; get a whole copy of it")


class _Ear(logging.Filter):
    """Takes tifffile's log lines off the screen; what matters of them ends in our sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.of_thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a line for the thread that listens."""
        lines: list[str] | None = getattr(self.of_thread, "lines", None)
        if lines is None:
            return True
        if record.levelno >= logging.WARNING:
            lines.append(record.getMessage())
        return False


_ear = _Ear()


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what tifffile says in this thread instead of printing it."""
    logger = logging.getLogger("tifffile")
    if _ear not in logger.filters:
        logger.addFilter(_ear)
    lines: list[str] = []
    _ear.of_thread.lines = lines
    try:
        yield lines
    finally:
        _ear.of_thread.lines = None
