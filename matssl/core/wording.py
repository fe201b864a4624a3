"""Words that several rooms use: numbers with their nouns, and where weights come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The state of a run that has taken too few steps to be judged, and the states that are no reproach.
YOUNG = "too early"
SOUND = ("healthy", YOUNG)
# Entries of a lineage that are hashes, and how much of one people read.
HASHES = ("data", "sha256")
HASH_SHOWN = 16


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def lineage_lines(lineage: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the chain of what weights were trained from, one line a training.

    Hashes are cut to what tells them apart, and lists of them left out: those are for the
    comparison with test images, not for reading.
    """
    return [
        ", ".join(
            f"{name} {str(value)[:HASH_SHOWN] if name in HASHES else value}"
            for name, value in step.items()
            if not isinstance(value, list)
        )
        for step in lineage
    ]


def lineage_text(lineage: Sequence[Mapping[str, Any]]) -> str:
    """Return :func:`lineage_lines` as one text for a report."""
    return "\n".join(lineage_lines(lineage)) or "unknown"


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
