"""Point count of each class (``--grid``): ASTM E562 beside the area fraction of E1245."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from matssl.core.errors import UserError
from matssl.core.tables import Row
from matssl.measure import intervals, point_count
from matssl.measure.field import Field, Masked, together
from matssl.measure.point_count import Hits
from matssl.stages.measure import point_page
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.settings import MeasureSettings

RULE = (
    "Point fraction P_P (ASTM E562, manual point count, here on masks): a grid of {rows} x "
    "{columns} points on every field, 1 for a point on the class, 1/2 for one on its border; mean "
    "of the fields, 95 % interval by Student's t, %RA = 100 times half width over mean. It is "
    "another method than the area fraction of ASTM E1245, which counts every pixel."
)


# A field, its points, and its picture where one was drawn.
Found = tuple[Field, Hits, point_page.Counted | None]


class PointCount(Kind):
    """Point fraction of each class."""

    name: ClassVar[str] = "point_count"

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        super().__init__(settings, names, chosen)
        self.rows, self.columns = settings.grid_points
        self.hits: list[tuple[Field, Hits]] = []
        self.pictures: list[point_page.Counted] = []
        self._drawn = 0

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Only ``--grid`` asks for it."""
        return False

    def check(self, one: Masked) -> None:
        """Refuse a grid that is finer than the pixels."""
        if min(one.mask.shape) < 2 or one.mask.shape[0] < self.rows:
            raise UserError(
                f"--grid {self.rows}x{self.columns} has more rows than {one.field.name} has pixels"
            )
        if one.mask.shape[1] < self.columns:
            raise UserError(
                f"--grid {self.rows}x{self.columns} has more columns than {one.field.name} has "
                "pixels"
            )

    def look(self, one: Masked, draft: Path) -> Found:
        """Count the points of a field; the first ones that have a picture are drawn."""
        self.check(one)
        own = point_count.count(one.mask, len(self.names), self.rows, self.columns)
        # One that is among the first of all is among the first of this process.
        if self._drawn == point_page.MOST_FIELDS:
            return one.field, own, None
        grey = None if one.picture is None else one.picture()
        if grey is None or grey.shape != one.mask.shape:
            return one.field, own, None
        self._drawn += 1
        found = point_count.grid(one.mask, len(self.names), self.rows, self.columns)
        return one.field, own, point_page.field(one.field, grey, found, draft)

    def take(self, found: Found, draft: Path, place: Path) -> bool:
        """Keep the points of a field."""
        field, own, drawn = found
        self.hits.append((field, own))
        if drawn is None:
            return True
        if len(self.pictures) == point_page.MOST_FIELDS:
            draft.unlink()
            return True
        path = draft.replace(place / f"{len(self.pictures):03d}_grid.jpg")
        self.pictures.append(replace(drawn, picture=path))
        return True

    def result(self) -> Measured:
        """Return point fractions by field and by specimen."""
        kept = self.chosen or tuple(range(len(self.names)))
        table: list[Row] = []
        for field, own in self.hits:
            for kind in kept:
                row: dict[str, object] = {"image": field.name, "specimen": field.specimen}
                row |= {"class": self.names[kind], "points on it (P)": float(own.on[kind])}
                row |= {"points (P_T)": own.points, "points on a border": own.border}
                row["P_P (E562)"] = float(own.on[kind]) / own.points if own.points else None
                table.append(row)
        specimens = [
            self._specimen(specimen, kind)
            for specimen in dict.fromkeys(field.specimen for field, _ in self.hits)
            for kind in kept
        ]
        return Measured(
            RULE.format(rows=self.rows, columns=self.columns),
            {self.name: table},
            specimens,
            {"grid": [self.rows, self.columns], "specimens": specimens},
            page=[_short(row) for row in specimens],
            notes=self._notes(),
            draw=self._page,
        )

    def _page(self, folder: Path) -> list[tuple[Path, str]]:
        """Write the page on which the points are counted by hand."""
        if self.pictures:
            kept = self.chosen or tuple(range(len(self.names)))
            rule = RULE.format(rows=self.rows, columns=self.columns)
            point_page.write(folder / "point_count.html", self.pictures, self.names, kept, rule)
        return []

    def _specimen(self, specimen: str, kind: int) -> dict[str, object]:
        mine = [(field, hits) for field, hits in self.hits if field.specimen == specimen]
        parts = together([hits for _, hits in mine], [field.sequence for field, _ in mine])
        own = [
            (sum(float(hits.on[kind]) for hits in part), sum(hits.points for hits in part))
            for part in parts
        ]
        found = point_count.over_fields(own)
        row: dict[str, object] = {"specimen": specimen, "class": self.names[kind]}
        row["points (E562)"] = sum(points for _, points in own)
        if found is None:
            return row
        row |= {"fields (E562)": found.n, "P_P mean (E562)": found.mean}
        row |= {"P_P SD (E562)": found.std, "P_P half width 95 % (E562)": found.half_width}
        row |= {"P_P low (E562)": found.low, "P_P high (E562)": found.high}
        row |= {"interval (E562)": found.scale, "%RA (E562)": found.relative_accuracy}
        return row | {"fields for 10 %RA (E562)": found.needed}

    def _notes(self) -> list[str]:
        """Return what the count leaves out."""
        notes = []
        if self.pictures:
            notes.append("point_count.html shows the points on the pictures, to count by hand.")
        whole = self.rows * self.columns
        lost = sum(whole - hits.points for _, hits in self.hits)
        if lost:
            notes.append(
                f"{lost} of {whole * len(self.hits)} points lie on pixels that count nowhere and "
                "are left out."
            )
        fields: dict[str, list[str]] = {}
        for field, _ in self.hits:
            fields.setdefault(field.specimen, []).append(field.sequence)
        few = [n for n, own in fields.items() if len(together(own, own)) < intervals.MIN_FIELDS]
        if few:
            notes.append(
                f"No interval below {intervals.MIN_FIELDS} fields of a specimen; ASTM E562 wants "
                "30."
            )
        return notes


def _short(row: Mapping[str, object]) -> dict[str, object]:
    """Return what a page shows of a specimen: the point fraction in per cent."""
    ends = [row.get(f"P_P {name} (E562)") for name in ("mean", "low", "high")]
    mean, low, high = (float(v) if isinstance(v, float) else math.nan for v in ends)
    text = None if math.isnan(mean) else f"{100 * mean:.2f}"
    if text is not None and not math.isnan(low):
        text += f" ({100 * low:.2f} to {100 * high:.2f})"
    relative = row.get("%RA (E562)")
    known = isinstance(relative, float) and not math.isnan(relative)
    return {
        "specimen": row["specimen"],
        "class": row["class"],
        "fields": row.get("fields (E562)"),
        "points": row["points (E562)"],
        "point fraction P_P %": text,
        "%RA": f"{relative:.1f}" if known else None,
        "fields needed for 10 % RA": row.get("fields for 10 %RA (E562)"),
    }
