"""What a measurement is: it looks at field by field, and keeps numbers and never pixels."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from matssl.core.tables import Row
from matssl.measure.field import Field, Masked
from matssl.stages.measure.settings import MeasureSettings

# Draws into a folder; returns the files with their captions.
Draw = Callable[[Path], list[tuple[Path, str]]]


@dataclass(frozen=True)
class Measured:
    """What a measurement found.

    Attributes:
        rule: by which rule it was measured, in sentences: standard, what counts at an edge, unit.
        tables: rows by the name of their CSV file; the first is the measurement's own.
        specimens: a row a specimen and class, with the columns "specimen" and "class"; joined
            with those of other measurements to specimens.csv.
        summary: its part of measure.json, plain values.
        headline: large figures of the report, each (value, what it is).
        page: the short table of the report and of the screen.
        notes: what the numbers do not contain, and what to doubt, a sentence each.
        draw: draws its pictures.
    """

    rule: str
    tables: Mapping[str, Sequence[Row]]
    specimens: Sequence[Row]
    summary: Mapping[str, object]
    headline: Sequence[tuple[str, str]] = ()
    page: Sequence[Row] = ()
    notes: Sequence[str] = ()
    draw: Draw = lambda folder: []


class Kind(ABC):
    """A kind of measurement.

    Attributes:
        name: what ``--what`` calls it, and the name of its table.
        compares: whether it gives the difference of two specimens (``--compare``).
        predicted: whether a model made the masks, whose own error the numbers then hold.
    """

    name: ClassVar[str]
    compares: ClassVar[bool] = False
    predicted: bool = False

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        """Begin without a field.

        Args:
            settings: flags of the command.
            names: of all classes.
            chosen: indices of the classes that are asked for with ``--class``; empty for none.
        """
        self.settings, self.names, self.chosen = settings, tuple(names), tuple(chosen)
        self._given: set[Path] = set()

    def picture_of(self, field: Field, draft: Path, place: Path) -> Path:
        """Move the picture of a field to where it belongs; return its file.

        Args:
            field: fields of two folders, or of two formats, may have one name: numbers follow then.
            draft: where the picture lies.
            place: folder for the pictures of fields; it is there.
        """
        from matssl.stages.drawing import fitting

        stem = fitting(re.sub(r"[/\\]", "_", str(Path(field.name).with_suffix(""))))
        ends = ("", *(f"_{number}" for number in range(2, len(self._given) + 2)))
        paths = (place / f"{stem}{end}_{self.name}.png" for end in ends)
        path = next(path for path in paths if path not in self._given)
        self._given.add(path)
        draft.replace(path)
        return path

    @classmethod
    @abstractmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Return whether it is measured where ``--what`` does not say.

        Args:
            names: of the classes.
            labelled: whether the masks number objects.
        """

    def ready(self, labelled: bool) -> None:  # noqa: B027
        """Refuse what cannot be measured, before anything is written.

        Args:
            labelled: whether the masks number objects.

        Raises:
            UserError: in words, with the flag that helps.
        """

    def check(self, one: Masked) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse what cannot be measured, before anything is written.

        Args:
            one: the first field that can be read.

        Raises:
            UserError: a flag needs what the field lacks.
        """

    @abstractmethod
    def look(self, one: Masked, draft: Path) -> Any:
        """Measure a field, in any process and in any order.

        Args:
            one: the field; nothing of its pixels is kept.
            draft: file for a picture of this field; its folder is made where one is drawn.

        Returns:
            What :meth:`take` is given, in the process that sums up.
        """

    @abstractmethod
    def take(self, found: Any, draft: Path, place: Path) -> bool:
        """Keep what was found on a field; fields come in their order.

        Args:
            found: from :meth:`look`.
            draft: where a picture lies, if one was drawn.
            place: folder that it is to be moved to.

        Returns:
            False, and nothing is kept, where fields before it say that it must be looked at anew.
        """

    @abstractmethod
    def result(self) -> Measured:
        """Return what was found on all fields."""
