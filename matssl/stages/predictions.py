"""Predicted masks that a run left: where they lie, their classes, the picture of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data import readers


class Listed(NamedTuple):
    """What a run's table says of an image: its path, specimen, pixel size in nm, place.

    The place is a sequence with the number of a frame, None of an image of none.
    """

    image: Path
    group: str
    pixel_size: float | None
    place: tuple[str, int] | None = None


def folder(run: Path) -> Path | None:
    """Return where a run of eval_model.py or phase_map keeps its masks, None where it has none."""
    drawn = [run / kind / "index" for kind in ("masks", "maps")]
    return next((place for place in drawn if place.is_dir()), None)


def facts(run: Path) -> tuple[tuple[str, ...], list[Listed]]:
    """Return class names and the table of images of a run of eval_model.py or phase_map.

    Raises:
        UserError: it has none, or they are damaged.
    """
    table = run / "per_image.csv"
    try:
        if (run / "phases.json").is_file():
            names = textfiles.read_json(run / "phases.json")["phases"]
            table = run / "phase_fractions.csv"
        else:
            names = textfiles.read_json(run / "metrics.json")["classes"]
        if not names or not isinstance(names, (list, dict)) or not all(map(_is_name, names)):
            raise TypeError("no names")
        return tuple(names), [_listed(row) for row in textfiles.read_rows(table)]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{run} has masks but no results beside them; was the run broken off?"
        ) from error
    except ValueError as error:
        raise UserError(f"{table} is damaged: {error}; run the command that wrote it") from error


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _listed(row: Mapping[str, str]) -> Listed:
    size = row["pixel_size_nm"]
    number = float(size) if size else None
    if number is not None and not 0 < number < math.inf:
        raise ValueError(f"{cut(size, 40)} is no pixel size")
    image = Path(row["image"])
    # Tables of before tell it of pages of stacks alone, by their names.
    place, group = readers.told_page(image), row["group"]
    if row.get("sequence"):
        place = row["sequence"], int(row["frame"])
    elif place is not None and not group.endswith(place[0]):
        place = f"{group}/{place[0]}", place[1]
    return Listed(image, group, number, place)


def pictures(images: Path, names: Collection[str]) -> dict[str, Path]:
    """Return the pictures of a folder by the names that a run gives to their masks.

    Args:
        images: the folder.
        names: of the masks; pages of stacks are pictures where files alone do not have them.
    """
    from matssl.stages.drawing import output_names

    paths = readers.find_images(images)
    known = dict(zip(output_names(paths, images), paths, strict=True))
    if known.keys() >= set(names):
        return known
    paths = [picture for path in paths for picture in _pages(path)]
    return known | dict(zip(output_names(paths, images), paths, strict=True))


def _pages(path: Path) -> tuple[Path, ...]:
    try:
        return readers.frames(path) or (path,)
    except UserError:
        # What cannot be frames has no mask of one.
        return (path,)


def by_output(table: Sequence[Listed], names: Sequence[str]) -> dict[str, Listed]:
    """Return the line of a run's table by the name of its mask.

    That is the stem of the image; where two images share one, its folders stand before it, and its
    ending behind it where that is needed (:func:`matssl.stages.drawing.output_names`).
    """
    from matssl.stages.drawing import fitting

    wanted, found = set(names), dict[str, list[Listed]]()
    for row in table:
        parts = row.image.with_suffix("").parts
        ends = ["_".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        ends += [f"{end}_{row.image.suffix.lstrip('.')}" for end in ends]
        for name in {fitting(end) for end in ends} & wanted:
            found.setdefault(name, []).append(row)
    return {name: rows[0] for name, rows in found.items() if len(rows) == 1}
