"""Area fractions of the classes: by field, by specimen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from matssl.measure import intervals, tables
from matssl.measure.field import Field, Masked
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.settings import MeasureSettings


class Fractions(Kind):
    """Area fraction of each class (ASTM E1245)."""

    name: ClassVar[str] = "fractions"

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        super().__init__(settings, names, chosen)
        self.fields: list[Field] = []

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Fractions are always measured."""
        return True

    def add(self, one: Masked, place: Path) -> None:
        """Count the areas of a field."""
        self.fields.append(one.field)

    def result(self) -> Measured:
        """Return fractions by field and by specimen."""
        kept = self.chosen or range(len(self.names))
        rows, page = [], []
        for field in self.fields:
            cells = tables.fraction_cells(field, self.names)
            own = {self.names[i]: cells[self.names[i]] for i in kept}
            rows.append({"image": field.name, "specimen": field.specimen} | own)
        specimens = []
        for specimen in dict.fromkeys(field.specimen for field in self.fields):
            own_fields = [f for f in self.fields if f.specimen == specimen]
            for i in kept:
                values = [float(f.fractions[i]) for f in own_fields]
                found = intervals.phase_fraction(values)
                row: dict[str, object] = {"specimen": specimen, "class": self.names[i]}
                row |= {"fields": found.fields, "area fraction": found.mean}
                specimens.append(row | {"half width": found.half_width})
                page.append(row)
        return Measured(
            "Area fraction: pixels of the class over pixels that count (ASTM E1245).",
            {self.name: rows},
            specimens,
            {"specimens": specimens},
            page=page,
        )
