"""Words that several rooms use: numbers with their nouns, and what speaks against weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The state of a run that has taken too few steps to be judged, and the states that are no reproach.
YOUNG = "too early"
SOUND = ("healthy", YOUNG)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def doubt(lineage: Sequence[Mapping[str, Any]]) -> str:
    """Return what speaks against using weights, by the state their pretraining ended in.

    Args:
        lineage: of the weights; entries of pretraining name it as ``verdict``.
    """
    states = [str(entry["verdict"]) for entry in lineage if entry.get("verdict")]
    if not states or states[-1] in SOUND:
        return ""
    return (
        f"the monitor called the pretraining {states[-1]!r}: its report.html has cause and advice; "
        "read it before you rely on these weights"
    )
