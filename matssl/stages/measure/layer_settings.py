"""Flags of the measurement of layers and cracks; nothing here imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from matssl.core.errors import UserError
from matssl.core.flags import Problem, flag
from matssl.stages.settings import length_problem

# Length of the shortest crack where --min_crack says none.
SHORTEST_CRACK = "5px"


def min_crack_problem(text: str) -> str:
    """Return what is wrong with ``--min_crack``, "" where nothing is."""
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?( ?px)?", text):
        return ""
    return length_problem("min_crack", text, "no length", "5px or 0.5um")


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LayerSettings:
    """Flags of ``--what layers``."""

    min_crack: str = flag(
        SHORTEST_CRACK,
        "layers",
        "shortest crack, along its middle line: pixels, such as 5, or a length, such as 0.5um; how "
        "many are shorter is said",
        check=min_crack_problem,
    )

    @property
    def shortest_crack(self) -> tuple[float, float | None]:
        """What ``--min_crack`` says: px, and nm where it has a unit of length.

        Raises:
            UserError: a unit that is none.
        """
        text = self.min_crack.removesuffix("px").strip()
        try:
            return float(text), None
        except ValueError:
            from matssl.data.readers import parse_pixel_size

            try:
                return 0.0, parse_pixel_size(text)
            except UserError as error:
                told = f"--min_crack {text!r} is no length; write 5px or 0.5um"
                raise UserError(told) from error

    def layer_problems(self, wanted: tuple[str, ...]) -> list[Problem]:
        """Return what does not go together.

        Args:
            wanted: what ``--what`` names; empty where the classes decide.
        """
        if wanted and "layers" not in wanted and self.min_crack != SHORTEST_CRACK:
            told = "--min_crack: only --what layers takes it"
            return [Problem(told, ("what", "min_crack"))]
        return []
