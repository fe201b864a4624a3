"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number} {one if number == 1 else many or one + 's'}"
