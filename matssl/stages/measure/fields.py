"""Fields looked at by any process in any order, and taken by one in theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.stages import failures
from matssl.stages.failures import Failure
from matssl.stages.measure.inputs import Source
from matssl.stages.measure.kind import Kind


@dataclass(frozen=True)
class Looked:
    """What was found on a field.

    Attributes:
        found: by each measurement, in their order, up to one that failed.
        failure: why there is no more, None where all of them went well.
        left: name of the field and its pixels before and after ``--roi``, where there is one.
    """

    found: tuple[object, ...]
    failure: Failure | None
    left: tuple[str, tuple[int, int]] | None


@dataclass(frozen=True)
class Fields:
    """The fields of a command and what is measured on them.

    Attributes:
        source: of the masks.
        asked: measurements, each fed in its own process.
        place: folder for the pictures of fields, which all processes see.
    """

    source: Source
    asked: Sequence[Kind]
    place: Path

    def look(self, number: int) -> Looked:
        """Measure a field; what fails on it costs no other."""
        found: list[object] = []
        names: list[str] = []

        def look() -> None:
            one = self.source.open(number)
            names.append(one.field.name)
            for kind in self.asked:
                found.append(kind.look(one, self._draft(number, kind)))

        failure = failures.tried(look)
        # Told in the order of the fields, whoever opened them.
        left = self.source.left.pop(names[0], None) if names else None
        return Looked(tuple(found), failure, None if left is None else (names[0], left))

    def take(self, number: int, looked: Looked) -> None:
        """Keep what was found on a field; fields come in their order."""
        if looked.left is not None:
            name, left = looked.left
            self.source.left[name] = left
        try:
            # One that failed found nothing.
            for kind, found in zip(self.asked, looked.found, strict=False):
                draft = self._draft(number, kind)
                if not kind.take(found, draft, self.place):
                    kind.take(kind.look(self.source.open(number), draft), draft, self.place)
        finally:
            for kind in self.asked:
                # Of one that failed behind its picture.
                with contextlib.suppress(FileNotFoundError):
                    self._draft(number, kind).unlink()

    def _draft(self, number: int, kind: Kind) -> Path:
        """Return where the picture of a field lies until its turn comes."""
        return self.place / f".{number}_{kind.name}.png"
