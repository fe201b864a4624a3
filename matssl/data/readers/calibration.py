"""Pixel size and bar height as the makers write them: TIFF tags, and text files beside the image.

The tags and keys are facts of the file formats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

from matssl.core.errors import UserError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffTags

NM_PER_UNIT = {
    "pm": 1e-3,
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
    "å": 0.1,
    "a": 0.1,
    "inch": 2.54e7,
}


@dataclass(frozen=True)
class Calibration:
    """What the metadata of a maker says; the pixel size is in nm."""

    pixel_size: float | None = None
    bar_height: int | None = None
    notes: tuple[str, ...] = ()


def parse_pixel_size(text: str | None) -> float | None:
    """Return nm for a text such as ``12.5nm`` or ``0.1 um``; None for None.

    Raises:
        UserError: no number with a unit of length.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-ZµμåÅ]+)\s*", str(text))
    try:
        value = float(match[1]) * NM_PER_UNIT[match[2].lower()] if match else math.nan
    except (KeyError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{text!r} is no pixel size; write a number and its unit, such as 12.5nm")
    return value


def of_tiff(file: TiffFile, height: int, width: int) -> Calibration:
    """Return what the tags of a TIFF file say; empty where no maker is recognised."""
    tags = file.pages[0].tags
    for reader in (_fei, _zeiss, _tescan):
        found = reader(tags, height, width)
        if found is not None:
            return found
    return _ome(file) or _imagej(file, tags) or Calibration()


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
        size = _number(pick.get("pixelwidth"))
        field = _number(pick.get("horfieldsize"))
        notes: tuple[str, ...] = ()
        if size and field and abs(field / width / size - 1) > 0.02:
            notes = ("pixel width and field width of the metadata disagree; the first is used",)
        if not size and field:
            size = field / width
        rows = _number(pick.get("resolutiony"))
        bar = int(height - rows) if rows and 0 < height - rows < height / 2 else 0
        return Calibration(size * 1e9 if size else None, bar, notes)
    return None


def _fei_xml(text: str) -> Calibration | None:
    match = re.search(r"<PixelSize>.*?<X[^>]*>\s*([0-9.eE+-]+)\s*</X>", text, re.DOTALL)
    match = match or re.search(r"<PixelWidth[^>]*>\s*([0-9.eE+-]+)", text)
    return Calibration(float(match[1]) * 1e9) if match else None


def _zeiss(tags: TiffTags, height: int, width: int) -> Calibration | None:
    if 34118 not in tags:
        return None
    value = tags[34118].value
    if isinstance(value, Mapping):
        entry = value.get("ap_image_pixel_size")
        if entry is not None:
            # tifffile gives (label, number, unit).
            number, unit = entry[-2:]
            scale = NM_PER_UNIT.get(str(unit).strip().lower())
            if scale and _number(number):
                return Calibration(float(number) * scale)
        binary = value.get("")
        if binary and len(binary) > 3 and _number(binary[3]):
            return Calibration(float(binary[3]) * 1e9 * 1024 / width)
        return Calibration()
    match = re.search(
        r"AP_IMAGE_PIXEL_SIZE\s*(?:Image Pixel Size)?\s*=\s*([0-9.eE+-]+)\s*(\S+)", _text(value)
    )
    if match and match[2].lower() in NM_PER_UNIT:
        return Calibration(float(match[1]) * NM_PER_UNIT[match[2].lower()])
    return Calibration()


def _tescan(tags: TiffTags, height: int, width: int) -> Calibration | None:
    if 50431 not in tags:
        return None
    return _tescan_text(_text(tags[50431].value))


def _tescan_text(text: str) -> Calibration:
    match = re.search(r"PixelSizeX\s*=\s*([0-9.eE+-]+)", text)
    strip = re.search(r"ImageStripSize\s*=\s*(\d+)", text)
    return Calibration(float(match[1]) * 1e9 if match else None, int(strip[1]) if strip else None)


def _ome(file: TiffFile) -> Calibration | None:
    text = file.ome_metadata if file.is_ome else None
    if not text:
        return None
    size = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', text)
    unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', text)
    scale = NM_PER_UNIT.get(unit[1].lower() if unit else "um")
    return Calibration(float(size[1]) * scale, 0) if size and scale else None


def _imagej(file: TiffFile, tags: TiffTags) -> Calibration | None:
    """Read ImageJ's unit; plain resolution tags without it are an export's leftover."""
    description = _text(tags["ImageDescription"].value) if "ImageDescription" in tags else ""
    unit = re.search(r"^unit=(.+)$", description, re.MULTILINE)
    if "ImageJ" not in description or unit is None or "XResolution" not in tags:
        return None
    name = unit[1].strip().lower().replace("\\u00b5", "µ")
    top, bottom = tags["XResolution"].value
    scale = NM_PER_UNIT.get(name)
    return Calibration(bottom / top * scale, 0) if scale and top else None


def of_sidecar(path: Path, height: int, width: int) -> Calibration:
    """Return what the text file says that some microscopes write beside the image."""
    stem, kind = path.with_suffix(""), path.suffix[1:]
    tescan = stem.with_name(f"{stem.name}-{kind}.hdr")
    if tescan.is_file():
        return _tescan_text(_text(tescan.read_bytes()))
    text_path = path.with_suffix(".txt")
    if not text_path.is_file() or text_path.stat().st_size > 1 << 20:
        return Calibration()
    text = _text(text_path.read_bytes())
    if "$$SM_MICRON_BAR" in text or "$CM_FULL_SIZE" in text:
        return _jeol(text, height)
    if "[SemImageFile]" in text:
        return _hitachi(text, height, width)
    return Calibration()


def _jeol(text: str, height: int) -> Calibration:
    bar = re.search(r"\$\$SM_MICRON_BAR\s+(\d+)", text)
    marker = re.search(r"\$\$SM_MICRON_MARKER\s+([0-9.]+)\s*(\S+)", text)
    full = re.search(r"\$CM_FULL_SIZE\s+(\d+)\s+(\d+)", text)
    size = None
    if bar and marker and marker[2].lower() in NM_PER_UNIT and int(bar[1]) > 0:
        size = float(marker[1]) * NM_PER_UNIT[marker[2].lower()] / int(bar[1])
    rows = height - int(full[2]) if full else 0
    notes = ("pixel size from the drawn micron bar, good to about 1 %",) if size else ()
    return Calibration(size, rows if 0 < rows < height / 2 else None, notes)


def _hitachi(text: str, height: int, width: int) -> Calibration:
    size = re.search(r"^PixelSize=([0-9.eE+-]+)", text, re.MULTILINE)
    data = re.search(r"^DataSize=(\d+)x(\d+)", text, re.MULTILINE)
    if not size:
        return Calibration()
    scale = int(data[1]) / width if data else 1.0
    rows = height - int(data[2]) if data and int(data[1]) == width else 0
    return Calibration(float(size[1]) * scale, rows if 0 < rows < height / 2 else None)


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


def _text(value: object) -> str:
    if isinstance(value, bytes):
        if value[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return value.decode("utf-16", "replace")
        return value.decode("utf-8", "replace")
    return str(value)


def _number(value: str | SupportsFloat | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
