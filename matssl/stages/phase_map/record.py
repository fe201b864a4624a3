"""What phases.json keeps beside fractions: all that its tables and page are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.data.preprocess import Preprocess

FILE = "phases.json"


@dataclass(frozen=True)
class Made:
    """How a phase map was made.

    Attributes:
        described: what the phases were found with, in words.
        joined: whether a phase is made of prototypes.
        lineage: of the weights, in words.
        doubt: about the pretraining, in words; "" for none.
        maps: name of the map of each image, in the order of phase_fractions.csv.
        images: how they were read.
    """

    described: str
    joined: bool
    lineage: str
    doubt: str
    maps: tuple[str, ...]
    images: Preprocess

    def stored(self) -> dict[str, object]:
        """Return plain values for phases.json."""
        return {
            "described": self.described,
            "joined": self.joined,
            "lineage": self.lineage,
            "doubt": self.doubt,
            "maps": list(self.maps),
            "images": self.images.to_dict(),
        }

    @staticmethod
    def read(stored: Any) -> Made:
        """Return what :meth:`stored` gave.

        Raises:
            UserError: a newer version wrote it.
            KeyError, TypeError, ValueError: nobody wrote it.
        """
        words = described, lineage, doubt = [stored[n] for n in ("described", "lineage", "doubt")]
        maps = stored["maps"]
        # The panels of these names are written: none may lead out of the run.
        plain = all(isinstance(name, str) and name == Path(name).name != ".." for name in maps)
        if not (plain and all(isinstance(word, str) for word in words)):
            raise ValueError("its words and names are none")
        images = Preprocess.from_dict(stored["images"])
        return Made(described, bool(stored["joined"]), lineage, doubt, tuple(maps), images)


@dataclass(frozen=True)
class Phases:
    """The phases of a run.

    Attributes:
        names: by index.
        origin: prototypes, or the cluster, of each.
        made: how; None for a run of a version that did not keep it.
        renamed: the names they had before, the oldest first.
    """

    names: tuple[str, ...]
    origin: list[list[int]]
    made: Made | None
    renamed: tuple[tuple[str, ...], ...] = ()

    @property
    def described(self) -> str:
        """What the phases were found with, in words."""
        return self.made.described if self.made else f"{len(self.names)}"

    @property
    def joined(self) -> bool:
        """Whether a phase is made of prototypes, as far as that is known."""
        return self.made.joined if self.made else any(len(own) > 1 for own in self.origin)

    def further(self) -> dict[str, object]:
        """Return what stands in phases.json beside the phases."""
        values: dict[str, object] = {}
        if self.made is not None:
            values["made"] = self.made.stored()
        if self.renamed:
            values["renamed from"] = [list(names) for names in self.renamed]
        return values


def read(root: Path) -> Phases:
    """Return the phases of a run.

    Args:
        root: of the run.

    Raises:
        UserError: phases.json is damaged, or of a newer version.
    """
    path = root / FILE
    content = textfiles.read_json(path)
    try:
        entries = sorted(content["phases"].items(), key=lambda pair: int(pair[1]["index"]))
        if not entries or [entry["index"] for _, entry in entries] != list(range(len(entries))):
            raise ValueError("its phases are not numbered from 0")
        names = tuple(str(name) for name, _ in entries)
        origin = [[int(number) for number in entry.get("prototypes", [])] for _, entry in entries]
        made = Made.read(content["made"]) if "made" in content else None
        return Phases(names, origin, made, _before(content.get("renamed from", []), len(names)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); run phase_map again"
        ) from error


def _before(stored: Sequence[Sequence[str]], count: int) -> tuple[tuple[str, ...], ...]:
    if not all(isinstance(names, list) and len(names) == count for names in stored):
        raise ValueError("its former names are none")
    return tuple(tuple(map(str, names)) for names in stored)
