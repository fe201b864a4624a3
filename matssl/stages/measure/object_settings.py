"""Flags of the measurement of objects; nothing here imports torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from matssl.core.errors import UserError
from matssl.core.flags import Problem, flag

AXES = ("auto", "linear", "log")
# Sizes that no field has.
MOST_PIXELS, MOST_NM = 1e9, 1e12


class Given(NamedTuple):
    """A length or an area of a command line: its value, and whether in nm or else in pixels."""

    value: float
    physical: bool


def area(text: str) -> Given:
    """Return the area that ``--min_area`` gives: ``12``, ``12px``, ``0.05um2``.

    Raises:
        UserError: it is no area.
    """
    wanted = "is no area; write pixels, such as 12, or an area such as 0.05um2"
    value, unit = _parts("min_area", text, wanted)
    if unit.lower() in ("", "px", "px2", "px²", "pixel", "pixels"):
        return Given(_within("min_area", text, value, MOST_PIXELS), False)
    base = re.sub(r"(\^?2|²)$", "", unit)
    nm = _nm(base)
    if nm is None:
        raise UserError(f"--min_area {text!r} {wanted}")
    if base == unit:
        raise UserError(
            f"--min_area {text!r} is a length, and an area is wanted: write {text.strip()}2, or "
            "pixels such as 12"
        )
    return Given(_within("min_area", text, value * nm**2, MOST_NM**2), True)


def depth(text: str) -> Given:
    """Return the length that ``--separation_depth`` gives: ``2``, ``2px``, ``0.1um``.

    Raises:
        UserError: it is no length.
    """
    wanted = "is no length; write pixels, such as 2, or a length such as 0.1um"
    value, unit = _parts("separation_depth", text, wanted)
    if unit.lower() in ("", "px", "pixel", "pixels"):
        return Given(_within("separation_depth", text, value, MOST_PIXELS), False)
    nm = _nm(unit)
    if nm is None:
        raise UserError(f"--separation_depth {text!r} {wanted}")
    return Given(_within("separation_depth", text, value * nm, MOST_NM), True)


def _parts(name: str, text: str, wanted: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(\S*)\s*", text)
    try:
        return (float(match[1]) if match else math.nan), match[2] if match else ""
    except ValueError as error:
        raise UserError(f"--{name} {text!r} {wanted}") from error


def _within(name: str, text: str, value: float, most: float) -> float:
    if not 0 < value <= most:
        raise UserError(f"--{name} {text!r} must be a number above 0 with its unit, such as 12")
    return value


def _nm(word: str) -> float | None:
    # Reading pictures is not needed to read a flag that is not given.
    from matssl.data.readers.units import nm_per

    return nm_per(word)


def area_problem(text: str) -> str:
    """Return what is wrong with ``--min_area``, "" where nothing is."""
    try:
        area(text)
    except UserError as error:
        return str(error)
    return ""


def depth_problem(text: str) -> str:
    """Return what is wrong with ``--separation_depth``, "" where nothing is."""
    try:
        depth(text)
    except UserError as error:
        return str(error)
    return ""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ObjectSettings:
    """Flags of ``--what objects``."""

    min_area: str = flag(
        "10",
        "objects",
        "smallest object: pixels, such as 12, or an area, such as 0.05um2; how many are smaller is "
        "said",
        check=area_problem,
        first=True,
    )
    fill_holes: bool = flag(False, "objects", "count holes as part of the object around them")
    separate: bool = flag(
        False,
        "objects",
        "take touching objects apart at their necks (watershed of the distance to the edge)",
        first=True,
    )
    separation_depth: str | None = flag(
        None,
        "objects",
        "how much narrower than the smaller object a neck must be: pixels of radius, such as 2, or "
        "a length, such as 0.1um",
        auto="10 % of the radius of the smaller object, at least 1 px",
        check=depth_problem,
    )
    size_axis: str = flag(
        "auto",
        "objects",
        "axis of the size distribution; auto is log where D90 is more than four times D10",
        choices=AXES,
    )
    spheres: bool = flag(
        False,
        "objects",
        "sizes of spheres from those of their sections (Saltykov); only where objects are spheres",
    )

    def object_problems(self, wanted: tuple[str, ...]) -> list[Problem]:
        """Return what does not go together.

        Args:
            wanted: what ``--what`` names; empty where the classes decide.
        """
        wrong = []
        if self.separation_depth is not None and not self.separate:
            told = "--separation_depth acts with --separate"
            wrong.append(Problem(told, ("separation_depth", "separate")))
        given = {
            "fill_holes": self.fill_holes,
            "separate": self.separate,
            "size_axis": self.size_axis != "auto",
            "spheres": self.spheres,
        }
        if wanted and "objects" not in wanted:
            idle = [f"--{name}" for name, own in given.items() if own]
            if idle:
                told = f"{', '.join(idle)}: only --what objects takes it"
                wrong.append(Problem(told, ("what", *given)))
        return wrong
