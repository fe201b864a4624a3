"""Pixel size and bar height as the makers write them: TIFF tags, and text files beside the image.

The tags and keys are facts of the file formats.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from matssl.data.readers.units import PRINT_UNITS, length, nm_per, number, possible, unit

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffTags

# A text beside an image that is longer is no description of it.
SIDECAR_BYTES = 1 << 20
# Sides of a pixel that differ by less are one length, rounded twice.
SQUARE = 0.005
WORD = r"([^\s;,]+(?:,\d[^\s;]*)?)"


@dataclass(frozen=True)
class Calibration:
    """What the metadata of a maker says.

    Attributes:
        pixel_size: nm; of pixels that are not square, the side of the square of the same area.
        bar_height: rows of the information bar, 0 where there is none; None where it says nothing.
        notes: what is to be known of them, in words.
        source: who says it, in a word or two.
        aspect: height of a pixel over its width.
    """

    pixel_size: float | None = None
    bar_height: int | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    aspect: float = 1.0

    @property
    def known(self) -> bool:
        """Whether it says anything of the image."""
        return self.pixel_size is not None or self.bar_height is not None


def of_tiff(file: TiffFile, page: TiffPage) -> Calibration:
    """Return what the tags of a TIFF file say of a page; empty where no maker is recognised."""
    height, width = int(page.imagelength), int(page.imagewidth)
    first = file.pages[0]
    for tags in (page.tags, first.tags):
        for reader, maker in ((_fei, "FEI"), (_zeiss, "Zeiss"), (_tescan, "Tescan")):
            found = reader(tags, height, width)
            if found is not None:
                return replace(found, source=maker)
    text = _description(first.tags)
    ome = _ome(text, height, width)
    if ome is not None:
        return replace(ome, source="OME")
    imagej = _imagej(text, page)
    return Calibration() if imagej is None else replace(imagej, source="ImageJ")


def calibrated(
    across: float | None,
    down: float | None = None,
    bar: int | None = None,
    notes: Iterable[str] = (),
) -> Calibration:
    """Return the calibration of two sides of a pixel, in nm; the second as the first where None.

    A pixel that is not square counts with its area, so that every area is right; lengths are then
    those of the square of that area. Both sides are said. What no micrograph has is left out.
    """
    told = list(notes)
    if across is not None and possible(across) is None:
        told.append(f"a pixel size of {across:.4g} nm is impossible and left out")
    across, down = possible(across), possible(down)
    aspect = 1.0
    if across is not None and down is not None and abs(down / across - 1) > SQUARE:
        told.append(
            f"pixels are not square ({across:.4g} x {down:.4g} nm): areas use both sides, lengths "
            "the square of that area"
        )
        across, aspect = math.sqrt(across * down), down / across
    return Calibration(across, bar, tuple(told), aspect=aspect)


def _fei(tags: TiffTags, height: int, width: int) -> Calibration | None:
    for code in (34680, 34682, 34683):
        if code not in tags:
            continue
        value = tags[code].value
        if isinstance(value, Mapping):
            scan, image = value.get("Scan", {}), value.get("Image", {})
        else:
            sections = parse_ini(_text(value))
            scan, image = sections.get("scan", {}), sections.get("image", {})
            if not scan:
                return _fei_xml(_text(value))
        pick = {str(k).lower(): v for k, v in {**image, **scan}.items()}
        size, tall = number(pick.get("pixelwidth")), number(pick.get("pixelheight"))
        field = number(pick.get("horfieldsize"))
        notes: tuple[str, ...] = ()
        if size and field and abs(field / width / size - 1) > 0.02:
            notes = ("pixel width and field width of the metadata disagree; the first is used",)
        if not size and field:
            size, tall = field / width, None
        rows = number(pick.get("resolutiony"))
        # Without the rows of the scan, nothing is known of a bar below them.
        bar = None
        if rows is not None:
            bar = int(height - rows) if 0 < height - rows < height / 2 else 0
        return calibrated(_nm(size), _nm(tall), bar, notes)
    return None


def _fei_xml(text: str) -> Calibration | None:
    """Read the XML of newer FEI files: metres, times a power of ten where an attribute says so."""
    sides = re.search(r"<PixelSize\b[^>]*>(.{0,2000}?)</PixelSize>", text, re.DOTALL)
    pairs = ((sides[1], ("X", "Y")) if sides else None, (text, ("PixelWidth", "PixelHeight")))
    for place in pairs:
        if place is None:
            continue
        found = []
        for name in place[1]:
            match = re.search(rf"<{name}\b([^>]*)>\s*([^<\s]+)", place[0])
            power = re.search(r"unitPrefixPower=[\"'](-?\d{1,2})[\"']", match[1]) if match else None
            size = number(match[2]) if match else None
            found.append(size * 10 ** int(power[1]) if size and power else size)
        if found[0] is not None:
            return calibrated(_nm(found[0]), _nm(found[1]))
    return None


def _zeiss(tags: TiffTags, height: int, width: int) -> Calibration | None:
    if 34118 not in tags:
        return None
    value = tags[34118].value
    if isinstance(value, Mapping):
        entry = value.get("ap_image_pixel_size")
        if entry is not None:
            # tifffile gives (label, number, unit), or (label, text) where the number has a comma.
            size = length(" ".join(str(part) for part in entry[1:]))
            if size is not None:
                return calibrated(size)
        binary = value.get("")
        # Metres on a screen of 1024 columns.
        size = number(binary[3]) if binary and len(binary) > 3 else None
        return calibrated(_nm(size * 1024 / width)) if size else Calibration()
    match = re.search(r"AP_IMAGE_PIXEL_SIZE\s*(?:Image Pixel Size)?\s*=\s*([^\r\n]+)", _text(value))
    return calibrated(length(match[1])) if match else Calibration()


def _tescan(tags: TiffTags, height: int, width: int) -> Calibration | None:
    if 50431 not in tags:
        return None
    return _tescan_text(_text(tags[50431].value), height)


def _tescan_text(text: str, height: int) -> Calibration:
    across, down = (re.search(rf"PixelSize{side}\s*=\s*{WORD}", text) for side in "XY")
    strip = re.search(rf"ImageStripSize\s*=\s*{WORD}", text)
    rows = _rows(strip[1]) if strip else None
    return calibrated(
        _nm(number(across[1])) if across else None,
        _nm(number(down[1])) if down else None,
        # More than half of a picture is no bar below it.
        rows if rows is not None and rows < height / 2 else None,
    )


def _ome(text: str, height: int, width: int) -> Calibration | None:
    """Read OME-XML; it knows nothing of bars, and its unit is µm where it names none."""
    if "OME" not in text or "<" not in text or "<!ENTITY" in text:
        return None
    try:
        root = ElementTree.fromstring(text.encode("utf-8"))
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    # A file may hold several pictures, a preview among them.
    pictures = [e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"]
    fitting = [p for p in pictures if (p.get("SizeX"), p.get("SizeY")) == (str(width), str(height))]
    if not pictures:
        return None
    pixels = (fitting or pictures)[0]
    sizes = []
    for side in "XY":
        value = number(pixels.get(f"PhysicalSize{side}"))
        scale = nm_per(pixels.get(f"PhysicalSize{side}Unit") or "µm")
        sizes.append(value * scale if value and scale else None)
    notes = []
    columns = pixels.get("SizeX")
    if not fitting and columns:
        notes = [f"the OME metadata speak of {columns[:20]} columns, the picture has {width}"]
    return calibrated(sizes[0], sizes[1], notes=notes) if sizes[0] else None


def _imagej(text: str, page: TiffPage) -> Calibration | None:
    """Read ImageJ's unit; plain resolution tags without it are an export's leftover.

    An inch or a centimetre is what ImageJ makes of a print resolution, and says nothing of the
    specimen.
    """
    entries = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    if "ImageJ" not in entries or "unit" not in entries or "XResolution" not in page.tags:
        return None
    known = unit(entries["unit"])
    if known is None:
        return None
    if known in PRINT_UNITS:
        return Calibration(
            notes=(f"the resolution in {known} is one of printing; the pixel size is unknown",)
        )
    down = unit(entries.get("yunit") or entries["unit"])
    sizes = [
        _fraction(page, tag, nm_per(name or ""))
        for tag, name in (("XResolution", known), ("YResolution", down))
    ]
    return calibrated(sizes[0], sizes[1]) if sizes[0] else None


def _fraction(page: TiffPage, tag: str, scale: float | None) -> float | None:
    """Return nm a pixel of a resolution, which counts pixels in a unit."""
    value = page.tags[tag].value if tag in page.tags else None
    if scale is None or not isinstance(value, tuple) or len(value) != 2:
        return None
    top, bottom = value
    return bottom / top * scale if top > 0 and bottom > 0 else None


def of_sidecar(path: Path, height: int, width: int) -> Calibration:
    """Return what the text file says that some microscopes write beside the image."""
    kind = path.suffix[1:]
    tescan = _beside(path, [f"-{k}.{e}" for k in (kind, kind.lower()) for e in ("hdr", "HDR")])
    if tescan is not None:
        return replace(_tescan_text(tescan, height), source="Tescan .hdr")
    text = _beside(path, [".txt", ".TXT", ".Txt"]) or ""
    if "$$SM_MICRON_BAR" in text or "$CM_FULL_SIZE" in text:
        return replace(_jeol(text, height), source="JEOL .txt")
    if "[SemImageFile]" in text:
        return replace(_hitachi(text, height, width), source="Hitachi .txt")
    return Calibration()


def _beside(path: Path, endings: Iterable[str]) -> str | None:
    """Return the text of the first of these files beside an image; None where there is none."""
    for ending in endings:
        place = path.with_name(path.stem + ending)
        try:
            status = place.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > SIDECAR_BYTES:
                continue
            return _text(place.read_bytes())
        except (OSError, ValueError):
            continue
    return None


def _jeol(text: str, height: int) -> Calibration:
    bar = re.search(rf"\$\$SM_MICRON_BAR\s+{WORD}", text)
    marker = re.search(r"\$\$SM_MICRON_MARKER\s+([^\r\n]+)", text)
    full = re.search(rf"\$CM_FULL_SIZE\s+{WORD}\s+{WORD}", text)
    size = length(marker[1]) if marker else None
    pixels = number(bar[1]) if bar else None
    size = size / pixels if size and pixels else None
    kept = _rows(full[2]) if full else None
    rows = 0 if kept is None else height - kept
    notes = ("pixel size from the drawn micron bar, good to about 1 %",) if size else ()
    return calibrated(size, None, rows if 0 < rows < height / 2 else None, notes)


def _hitachi(text: str, height: int, width: int) -> Calibration:
    size = re.search(rf"^PixelSize\s*=\s*{WORD}", text, re.MULTILINE)
    data = re.search(r"^DataSize\s*=\s*(\d{1,6})x(\d{1,6})\s*$", text, re.MULTILINE)
    value = number(size[1]) if size else None
    if value is None:
        return Calibration()
    columns, rows = (int(data[1]), int(data[2])) if data else (width, height)
    bar = height - rows if columns == width else 0
    return calibrated(
        value * columns / width if columns else value, None, bar if 0 < bar < height / 2 else None
    )


def parse_ini(text: str) -> dict[str, dict[str, str]]:
    """Return ``{section: {key: value}}`` of INI-like text, names in lower case."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1].lower(), {})
        elif "=" in line:
            key, value = line.split("=", 1)
            current[key.strip().lower()] = value.strip()
    return sections


def _rows(text: str) -> int | None:
    """Return a number of rows, None where the text is none."""
    return int(text) if re.fullmatch(r"\d{1,6}", text) else None


def _nm(metres: float | None) -> float | None:
    return None if metres is None else metres * 1e9


def _description(tags: TiffTags) -> str:
    return _text(tags["ImageDescription"].value) if "ImageDescription" in tags else ""


def _text(value: Any) -> str:
    """Return text of bytes, in the code page that fits: microscopes write all of them."""
    if not isinstance(value, bytes):
        return str(value)
    if value[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return value.decode("utf-16", "replace")
    if len(value) > 8 and value[1:9:2] == bytes(4):
        return value.decode("utf-16-le", "replace")
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError:
        # The micro sign of Japanese systems is a Greek letter of two bytes.
        page = "cp932" if b"\x83\xca" in value else "cp1252"
        return value.decode(page, "replace")
