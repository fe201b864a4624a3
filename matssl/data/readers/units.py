"""Lengths with their units, however a program, a language or a code page spells them."""

from __future__ import annotations

import html
import math
import re
from typing import SupportsFloat

from matssl.core.errors import UserError

NM_PER_UNIT = {
    "pm": 1e-3,
    "nm": 1.0,
    "um": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "dm": 1e8,
    "m": 1e9,
    "å": 0.1,
    "inch": 2.54e7,
}
# Other spellings of these.
SPELLINGS = {
    "picomet": "pm",
    "nanomet": "nm",
    "micromet": "um",
    "millimet": "mm",
    "centimet": "cm",
    "decimet": "dm",
    "micron": "um",
    "mikron": "um",
    "mikromet": "um",
    "angstr": "å",
    "ångstr": "å",
    "inches": "inch",
}
WORDS = {"a": "å", "ang": "å", "in": "inch", '"': "inch", "mu": "um", "µ": "um", "u": "um"}
# Printers and scanners measure in these; a calibrated micrograph does not.
PRINT_UNITS = frozenset({"inch", "cm"})
# What no microscope resolves, and what no micrograph shows in one pixel, in nm.
SMALLEST, LARGEST = 1e-4, 1e8


def parse_pixel_size(text: str | None) -> float | None:
    """Return nm for a text such as ``12.5nm`` or ``0.1 um``; None for None.

    Raises:
        UserError: no number with a unit of length.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-ZµμåÅ]+)\s*", str(text))
    try:
        value = float(match[1]) * (nm_per(match[2]) or math.nan) if match else math.nan
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{text!r} is no pixel size; write a number and its unit, such as 12.5nm")
    if not SMALLEST <= value <= LARGEST:
        raise UserError(f"{text!r} is no pixel of a micrograph: between 0.0001nm and 100mm")
    return value


def unit(name: str) -> str | None:
    r"""Return the unit a metadata text means, a key of ``NM_PER_UNIT``; None for other words.

    Knows words (micrometer, Ångström), HTML (``&#181;m``) and escapes (``\u00B5m``), both Greek
    letters and the micro sign, and what becomes of it where UTF-8 is read as Latin-1.
    """
    word = html.unescape(name).strip().strip("\"'").strip()
    word = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), word)
    word = word.replace("Â", "").replace("Î¼", "µ").replace("μ", "µ").replace("Å", "å").lower()
    word = word.replace("å", "å").rstrip(".")
    if word.startswith("µm") or word.startswith("um"):
        word = "um" + word[2:]
    if word in NM_PER_UNIT:
        return word
    if word in WORDS:
        return WORDS[word]
    if word in ("meter", "metre", "meters", "metres"):
        return "m"
    return next((known for start, known in SPELLINGS.items() if word.startswith(start)), None)


def nm_per(name: str) -> float | None:
    """Return the nm in a unit, None where the word is no unit of length."""
    known = unit(name)
    return None if known is None else NM_PER_UNIT[known]


def number(value: object) -> float | None:
    """Return a positive number of a metadata text, also one with a decimal comma; else None."""
    if value is None or isinstance(value, bool):
        return None
    text: str | SupportsFloat = value if isinstance(value, (int, float)) else str(value).strip()
    if isinstance(text, str) and "." not in text:
        text = text.replace(",", ".")
    try:
        found = float(text)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) and found > 0 else None


def length(text: str) -> float | None:
    """Return nm of a text such as ``3,3 nm`` or ``1µm``; None where it is no length."""
    match = re.fullmatch(r"\s*([0-9][0-9.,eE+-]*?)\s*([^\W\d_].*|[µμ\"&\\].*)", text, re.DOTALL)
    if match is None:
        return None
    value, scale = number(match[1]), nm_per(match[2])
    return None if value is None or scale is None else value * scale


def possible(nm: float | None) -> float | None:
    """Return a pixel size that a micrograph can have, else None."""
    return nm if nm is not None and SMALLEST <= nm <= LARGEST else None
