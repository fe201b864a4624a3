"""Area fractions of the classes (ASTM E1245): by field, by specimen, over specimens."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from matssl.core.wording import counted, cut
from matssl.data.readers import natural
from matssl.measure import classifier, correlation, fractions, tables
from matssl.measure.classifier import Corrected, Correction
from matssl.measure.correlation import Correlated
from matssl.measure.field import Field, Masked, averaged
from matssl.measure.fractions import Estimate
from matssl.measure.held_out import Record
from matssl.measure.intervals import MIN_SHARES, WANTED_ACCURACY
from matssl.pictures import fractions as pictures
from matssl.stages import held_out
from matssl.stages.measure import compare
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.settings import MeasureSettings

RULE = (
    "Area fraction (ASTM E1245, automatic): pixels of the class over the pixels that count (no "
    "bar, no ignored pixel). Of a specimen: mean over its fields, with the 95 % interval of "
    "Student's t; in the logit near 0 and 100 %. %RA is the half width over the mean; needed "
    "are so many fields in all (of the mean over specimens, so many specimens). A mean over "
    "specimens is a second number, and its interval speaks of other specimens."
)
WANTED_FIELDS = 30
# What the columns of specimens.csv begin with: other measurements have means of their own there.
NAME = "area fraction"


# A field, and how far each class reaches in it where that is of use.
Counted = tuple[Field, list[Correlated] | None]


class Shares(NamedTuple):
    """One specimen, or the mean over specimens.

    Attributes:
        name: of the specimen.
        fields: fractions of each class in each field, a sequence counted as one.
        estimates: of each class.
        corrected: the same without the classifier's error; None without held-out truth.
        left_out: whether it is a held-out specimen itself and was corrected from the others.
    """

    name: str
    fields: list[list[float]]
    estimates: list[Estimate]
    corrected: Corrected | None
    left_out: bool = False


class Fractions(Kind):
    """Area fraction of each class."""

    name: ClassVar[str] = "fractions"
    compares: ClassVar[bool] = True

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        super().__init__(settings, names, chosen)
        self.fields: list[Field] = []
        # Of each specimen: of each field that counts as one, what its frames tell by class.
        self.correlated: dict[str, dict[object, list[list[Correlated]]]] = {}
        # What this process has looked at, by specimen, in whatever order.
        self._seen: dict[str, set[object]] = {}
        self._looked = 0
        self.record: Record | None = None
        if settings.folds_from is not None:
            self.record = held_out.of_flag(settings.folds_from, self.names)

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Fractions are always measured."""
        return True

    @property
    def kept(self) -> Sequence[int]:
        """Indices of the classes that are shown."""
        return self.chosen or range(len(self.names))

    def look(self, one: Masked, draft: Path) -> Counted:
        """Count the areas of a field; of a specimen's first fields also how far phases reach."""
        field = one.field
        self._looked += 1
        seen = self._seen.setdefault(field.specimen, set())
        key = field.sequence or self._looked
        # From MIN_SHARES fields on their spread tells the interval. One that is among the first of
        # a specimen is among the first of those that this process sees.
        first = key in seen or len(seen) < MIN_SHARES
        if not (first and field.areas.sum()):
            return field, None
        seen.add(key)
        inside = one.mask < len(self.names)
        reach = [correlation.of_field(one.mask == k, inside) for k in range(len(self.names))]
        return field, reach

    def take(self, found: Counted, draft: Path, place: Path) -> bool:
        """Keep the areas of a field."""
        field, reach = found
        if field.areas.sum():
            known = self.correlated.setdefault(field.specimen, {})
            key = field.sequence or len(self.fields)
            if key in known or len(known) < MIN_SHARES:
                if reach is None:
                    # Another process saw the first frame of its sequence.
                    self._seen.pop(field.specimen)
                    return False
                known.setdefault(key, []).append(reach)
        self.fields.append(field)
        return True

    def result(self) -> Measured:
        """Return fractions by field, by specimen and over specimens."""
        names = sorted({field.specimen for field in self.fields}, key=natural)
        specimens = [one for one in map(self._specimen, names) if one.fields]
        mean = self._mean(specimens) if len(specimens) > 1 else None
        every = [*specimens, mean] if mean else specimens
        rows = [row for one in specimens for row in self._rows(one)]
        over = [_without_specimen(row) for row in self._rows(mean)] if mean else []
        found: dict[str, Sequence[Mapping[str, object]]] = {self.name: self._fields()}
        if over:
            found["fractions_over_specimens"] = over
        differences = self._differences(specimens)
        if differences:
            found["fractions_compared"] = differences
        return Measured(
            f"{RULE} {compare.RULE}" if differences else RULE,
            found,
            rows,
            {"specimens": rows, "over_specimens": over, "compared": differences},
            self._headline(every[-1:] if mean else every),
            # The screen shows the first rows alone.
            [self._shown(one, kind) for one in [*every[-1:], *every[:-1]] for kind in self.kept],
            [*_differences_text(differences), *self._notes(every)],
            functools.partial(self._draw, specimens),
        )

    def _fields(self) -> list[dict[str, object]]:
        """Return a row a field."""
        rows = []
        for field in self.fields:
            row: dict[str, object] = {"image": field.name, "specimen": field.specimen}
            row |= field.place
            shares = field.fractions.tolist()
            row |= {f"{NAME} {self.names[kind]} %": 100 * shares[kind] for kind in self.kept}
            row |= {"counted px": int(field.areas.sum()), "pixel size nm": field.pixel_size}
            rows.append(row)
        return rows

    def _specimen(self, name: str) -> Shares:
        """Return what the fields of a specimen say; those without a pixel that counts do not."""
        mine = [f for f in self.fields if f.specimen == name and f.areas.sum()]
        if not mine:
            return Shares(name, [], [], None)
        sequences = [f.sequence for f in mine]
        kinds = range(len(self.names))
        shares = [f.fractions.tolist() for f in mine]
        columns = [averaged([row[kind] for row in shares], sequences) for kind in kinds]
        own = [list(row) for row in zip(*columns, strict=True)]
        known = list(self.correlated[name].values()) if len(own) < MIN_SHARES else []
        estimates = [
            fractions.of_specimen(
                columns[kind],
                [correlation.of_sequence([frame[kind] for frame in one]) for one in known],
            )
            for kind in kinds
        ]
        left_out = self.record is not None and name in self.record.specimens
        others = self.record.without([name]) if self.record is not None else None
        return Shares(name, own, estimates, _corrected(estimates, others, False), left_out)

    def _mean(self, specimens: Sequence[Shares]) -> Shares:
        """Return the mean over specimens."""
        means = [np.mean(one.fields, axis=0).tolist() for one in specimens]
        count = sum(len(one.fields) for one in specimens)
        estimates = [
            fractions.of_specimens([row[kind] for row in means], count)
            for kind in range(len(self.names))
        ]
        name = f"mean of {len(specimens)} specimens"
        return Shares(name, means, estimates, _corrected(estimates, self.record, True))

    def _rows(self, one: Shares) -> list[dict[str, object]]:
        """Return a row a class of a specimen, or of the mean over specimens."""
        return [self._row(one, kind) for kind in self.kept]

    def _row(self, one: Shares, kind: int) -> dict[str, object]:
        estimate = one.estimates[kind]
        own = estimate.fraction
        row: dict[str, object] = {"specimen": one.name, "class": self.names[kind]}
        if estimate.over == "specimens":
            row["specimens"] = estimate.specimens
        row |= {
            "fields": estimate.fields,
            f"{NAME} %": 100 * own.mean,
            f"{NAME} std %": 100 * own.std,
            f"{NAME} ci95 half width %": 100 * own.half_width,
            f"{NAME} low %": 100 * own.low,
            f"{NAME} high %": 100 * own.high,
            f"{NAME} RA %": own.relative_accuracy,
            f"{NAME} {estimate.over if estimate.over == 'specimens' else 'fields'} needed for "
            f"{WANTED_ACCURACY:g} % RA": own.needed,
            f"{NAME} interval": _interval_words(estimate),
        }
        fixed = one.corrected.classes[kind] if one.corrected is not None else None
        return row if self.record is None else row | _corrected_cells(fixed)

    def _shown(self, one: Shares, kind: int) -> dict[str, object]:
        """Return a row of the short table."""
        estimate = one.estimates[kind]
        own = estimate.fraction
        relative = own.relative_accuracy
        row: dict[str, object] = {
            "specimen": cut(one.name, 40),
            "class": self.names[kind],
            "fields": estimate.fields,
            "area %": tables.fraction_text(own, 2),
            "%RA": "" if math.isnan(relative) else f"{relative:.1f}",
            f"needed for {WANTED_ACCURACY:g} % RA": own.needed,
        }
        if self.record is not None:
            fixed = one.corrected.classes[kind] if one.corrected is not None else None
            row["corrected %"] = held_out.ends_text(
                None if fixed is None else held_out.stored(fixed)
            )
        return row

    def _headline(self, every: Sequence[Shares]) -> list[tuple[str, str]]:
        """Return up to three classes in large figures, where one specimen or one mean is shown."""
        if len(every) != 1 or len(self.kept) > 3:
            return []
        return [
            (
                f"{tables.fraction_text(every[0].estimates[kind].fraction)} %",
                f"{self.names[kind]}, {cut(every[0].name, 40)}",
            )
            for kind in self.kept
        ]

    def _differences(self, specimens: Sequence[Shares]) -> list[dict[str, object]]:
        """Return second specimen minus first of ``--compare``, as predicted and corrected."""
        pair = self.settings.compare
        samples = {
            self.names[kind]: {one.name: one.estimates[kind].sample for one in specimens}
            for kind in self.kept
        }
        rows = [{"what": NAME} | row for row in compare.rows(pair, samples, "%", 100)]
        if not pair or self.record is None or len(samples) == 0:
            return rows
        others = self.record.without(pair)
        for kind in self.kept:
            own, name = samples[self.names[kind]], self.names[kind]
            known = classifier.rates(others.images, kind)
            if classifier.refusal(known) or not set(pair) <= set(own):
                continue
            found = classifier.difference(own[pair[0]], own[pair[1]], known)
            row = compare.row(pair, found, "%", 100)
            rows.append({"what": f"corrected {NAME}", "class": name} | row)
        return rows

    def _notes(self, every: Sequence[Shares]) -> list[str]:
        """Return what the numbers do not contain, and what to doubt."""
        notes = []
        if empty := sum(not field.areas.sum() for field in self.fields):
            notes.append(f"{counted(empty, 'field')} without a pixel that counts left out.")
        missing = set(self.settings.compare) - {one.name for one in every}
        notes += [f"No difference: no field of {name} counts." for name in sorted(missing)]
        notes += self._refusals(every)
        counts = [one.estimates[0].fields for one in every if one.estimates[0].over != "specimens"]
        fewest = min(counts, default=WANTED_FIELDS)
        if fewest < WANTED_FIELDS:
            notes.append(f"{WANTED_FIELDS} fields are wanted; the fewest here are {fewest}.")
        if any(e.over == "correlation" for one in every for e in one.estimates):
            notes.append(
                "Where the interval is by correlation it comes from within the fields (two-point "
                "correlation) and holds for a specimen that is alike everywhere."
            )
        if self.record is not None and not self.predicted:
            notes.append(
                "The masks are taken for predictions of the model whose held-out truth "
                "--folds_from names; leave it out where they were drawn by hand."
            )
        if self.record is not None:
            found = [one.corrected for one in every if one.corrected is not None]
            notes += held_out.told(self.record, found, self.names)
            own = [one.name for one in every if one.left_out and _any(one.corrected)]
            if own:
                notes.append(
                    f"{counted(len(own), 'specimen')} of the held-out truth measured here; each "
                    "was corrected from the others."
                )
        elif self.predicted:
            notes.append(held_out.MISSING)
        return notes

    def _refusals(self, every: Sequence[Shares]) -> list[str]:
        """Return why intervals are missing, each reason once."""
        reasons: dict[str, list[str]] = {}
        for one in every:
            for kind in self.kept:
                if refusal := one.estimates[kind].refusal:
                    places = reasons.setdefault(refusal, [])
                    places.append(f"{one.name} {self.names[kind]}")
        return [
            f"No interval ({len(places)}) for {cut(', '.join(places), 120)}: {reason}."
            for reason, places in reasons.items()
        ]

    def _draw(self, specimens: Sequence[Shares], folder: Path) -> list[tuple[Path, str]]:
        """Draw the fraction by specimen with both intervals."""
        path = folder / "fractions.png"
        panels = {
            self.names[kind]: [
                pictures.Bar(
                    one.name,
                    [row[kind] for row in one.fields],
                    _ends(one.estimates[kind]),
                    _fixed_ends(one.corrected.classes[kind] if one.corrected else None),
                )
                for one in specimens
            ]
            for kind in self.kept
        }
        pictures.by_specimen(panels, path)
        caption = "Area fraction by specimen: fields (grey), mean with its 95 % interval"
        if self.record is not None:
            caption += ", and corrected for the classifier's error with the interval of both errors"
        return [(path, f"{caption}.")]


def _corrected(
    estimates: Sequence[Estimate], record: Record | None, several: bool
) -> Corrected | None:
    if record is None:
        return None
    return classifier.of_classes([one.sample for one in estimates], record.images, several)


def _any(found: Corrected | None) -> bool:
    """Return whether any class was corrected."""
    return found is not None and any(one is not None for one in found.classes)


def _interval_words(estimate: Estimate) -> str:
    """Return by what the interval came about."""
    scale = estimate.fraction.scale
    if scale == "none":
        return f"none: {estimate.refusal}"
    return scale if estimate.over != "correlation" else f"correlation within the field, {scale}"


def _corrected_cells(found: Correction | None) -> dict[str, object]:
    ends = found.interval if found is not None else None
    return {
        "corrected %": None if found is None else 100 * found.value,
        "corrected low %": None if ends is None else 100 * ends.low,
        "corrected high %": None if ends is None else 100 * ends.high,
        "corrected half width from sampling %": None if found is None else 100 * found.sampling,
        "corrected half width from classifier %": (
            None if found is None else 100 * found.classifier
        ),
        "corrected half width from both %": None if ends is None else 100 * ends.half_width,
        "corrected by": None if found is None else found.method,
        "held-out specimens": None if found is None else found.specimens,
    }


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    own = estimate.fraction
    return own.mean, own.low, own.high


def _fixed_ends(found: Correction | None) -> tuple[float, float, float] | None:
    return None if found is None else (found.value, found.interval.low, found.interval.high)


def _differences_text(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a sentence a difference of ``--compare``."""
    lines = []
    for row in rows:
        value, low, high = (float(str(row[f"difference{end} %"])) for end in ("", " low", " high"))
        ends = "no interval" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"
        told = {"yes": "clear", "no": "not clear"}.get(str(row["clear"]), "unknown")
        lines.append(
            f"{row['second']} minus {row['first']}, {row['what']} of {row['class']}: {value:+.2f} "
            f"per cent points ({ends}): the difference is {told}."
        )
    return lines


def _without_specimen(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "specimen"}
