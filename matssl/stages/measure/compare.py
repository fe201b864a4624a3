"""Two specimens beside each other (``--compare``): the difference with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.measure.intervals import Difference, Sample, difference_of
from matssl.stages.measure.inputs import Source

RULE = "Differences are those of the means over fields, with Welch's 95 % interval."


def check(pair: Sequence[str], source: Source) -> None:
    """Refuse specimens that are not among the masks.

    Args:
        pair: the two of ``--compare``; empty for none.
        source: of the masks.

    Raises:
        UserError: one is not there.
    """
    missing = [name for name in pair if name not in source.specimens]
    if missing:
        there = ", ".join(dict.fromkeys(source.specimens))
        raise UserError(f"--compare {missing[0]}: there is no such specimen, but {cut(there)}")


def row(pair: Sequence[str], found: Difference, unit: str, scale: float = 1.0) -> dict[str, object]:
    """Return a difference as cells of a table.

    Args:
        pair: first and second specimen.
        found: second minus first.
        unit: of the cells, for their heads.
        scale: by which values become that unit.
    """
    return {
        "first": pair[0],
        "second": pair[1],
        f"difference {unit}": scale * found.value,
        f"difference low {unit}": scale * found.low,
        f"difference high {unit}": scale * found.high,
        "degrees of freedom": found.degrees,
        "clear": "yes" if found.clear else "no" if found.low <= 0 <= found.high else "unknown",
    }


def rows(
    pair: Sequence[str],
    samples: Mapping[str, Mapping[str, Sample]],
    unit: str,
    scale: float = 1.0,
) -> list[dict[str, object]]:
    """Return a row a quantity: second specimen minus first.

    Args:
        pair: the two of ``--compare``; no rows where it is empty.
        samples: mean over fields of each quantity (or class), by specimen.
        unit: of the cells.
        scale: by which values become that unit.
    """
    if not pair:
        return []
    return [
        {"class": name} | row(pair, difference_of(own[pair[0]], own[pair[1]]), unit, scale)
        for name, own in samples.items()
        if pair[0] in own and pair[1] in own
    ]
