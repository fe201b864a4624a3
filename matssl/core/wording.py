"""Words that several rooms use: numbers with their nouns, and the states of a run."""

from __future__ import annotations

# The state of a run that has taken too few steps to be judged, and the states that are no reproach.
YOUNG = "too early"
SOUND = ("healthy", YOUNG)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def cut(text: str, most: int = 200) -> str:
    """Return a text of a user's file for a message: of a long one the beginning."""
    return text if len(text) <= most else text[: most - 3] + "..."
