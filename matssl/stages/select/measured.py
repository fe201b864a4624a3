"""Pictures to candidates: what the model says of each, and what its features are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from matssl import selection
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data import readers
from matssl.data.readers import Micrograph
from matssl.selection import uncertainty
from matssl.selection.candidates import Box, Candidates, Numbers, cut
from matssl.selection.uncertainty import Map
from matssl.stages.failures import Failures
from matssl.stages.select.pool import Kept, Pool
from matssl.stages.select.settings import SelectSettings
from matssl.stages.select.source import Source, summary
from matssl.trained import passes
from matssl.trained.segmenter import Prediction, Segmenter


@dataclass(frozen=True)
class Seen:
    """What a model says of a picture.

    Attributes:
        prediction: its classes and probabilities.
        maps: of each measure by name, float32 (rows above the bar, W).
        band: where classes meet.
    """

    prediction: Prediction
    maps: dict[str, Map]
    band: NDArray[np.bool_]


@dataclass(frozen=True)
class Unit:
    """A candidate: a picture, or a region of one.

    Attributes:
        path: of the picture.
        specimen: of the picture.
        box: in pixels, above the information bar.
        whole: whether it is the whole picture.
        digest: of the picture's pixels.
        scores: by name.
        class_scores: (C,), see :func:`matssl.selection.uncertainty.class_entropy`.
        shares: (C,), mean probability of each class.
        features: (D,).
    """

    path: Path
    specimen: str
    box: Box
    whole: bool
    digest: str
    scores: dict[str, float] = field(default_factory=dict)
    class_scores: Numbers | None = None
    shares: Numbers | None = None
    features: Numbers | None = None


@dataclass(frozen=True)
class Eye:
    """Looks at one picture after another.

    Attributes:
        source: model and features.
        settings: of the command.
        by: what makes passes differ; None where none are asked for.
        place: folder for what is too large for the memory.
    """

    source: Source
    settings: SelectSettings
    by: passes.Kind | None
    place: Path

    def look(self, micrograph: Micrograph) -> Seen:
        """Return what the model says of a picture.

        Raises:
            ValueError: the model does not segment.
        """
        segmenter, settings = self.source.segmenter, self.settings
        if segmenter is None:
            raise ValueError("no model that segments")
        tile, overlap = settings.tile_size, settings.overlap
        with tempfile.TemporaryDirectory(prefix=".tiles", dir=self.place) as scratch:
            prediction = segmenter.predict(
                micrograph,
                tile_size=tile,
                overlap=overlap,
                tta=settings.tta,
                scratch=Path(scratch),
            )
            found = uncertainty.maps(prediction.probabilities)
            if self.by is not None:
                apart = uncertainty.Disagreement()
                each = passes.probabilities(
                    segmenter,
                    micrograph,
                    self.by,
                    settings.passes,
                    settings.seed,
                    tile_size=tile,
                    overlap=overlap,
                )
                for one, share in zip(each, passes.shares(segmenter, self.by), strict=False):
                    apart.add(one, share)
                found["bald"] = apart.map()
        band = uncertainty.band(prediction.classes[: prediction.rows], settings.band)
        return Seen(prediction, found, band)

    def units(self, path: Path, specimen: str, micrograph: Micrograph) -> list[Unit]:
        """Return the candidates of a picture."""
        shape = (self.source.record.kept_rows(micrograph), micrograph.pixels.shape[1])
        seen = None if self.source.segmenter is None else self.look(micrograph)
        cells = None if self.source.features is None else self.source.features.cells(micrograph)
        digest = readers.digest(micrograph.middle.pixels)
        boxes = cut(*shape, self.settings.region)
        found = []
        for box in boxes:
            unit = Unit(path, specimen, box, len(boxes) == 1, digest)
            if seen is not None:
                unit = scored(unit, seen)
            if cells is not None:
                unit = replace(unit, features=summary(cells, box, shape))
            found.append(unit)
        return found


def scored(unit: Unit, seen: Seen) -> Unit:
    """Return a candidate with its scores.

    Args:
        unit: of the picture.
        seen: the picture.
    """
    inside = unit.box.slices
    scores = {name: uncertainty.top_mean(plane[inside]) for name, plane in seen.maps.items()}
    for name in ("entropy", "margin"):
        plane = seen.maps[name][inside]
        scores[f"boundary_{name}"] = uncertainty.band_mean(plane, seen.band[inside])
    probabilities = seen.prediction.probabilities[:, inside[0], inside[1]]
    shares = np.array([float(np.mean(plane, dtype=np.float64)) for plane in probabilities])
    by_class = uncertainty.class_entropy(probabilities, seen.maps["entropy"][inside])
    return replace(unit, scores=scores, class_scores=by_class, shares=shares)


def measure(eye: Eye, pool: Pool, failed: Failures, quiet: bool) -> tuple[list[Unit], list[Kept]]:
    """Return the candidates of all pictures, and pictures that turn out not to be any.

    Args:
        eye: what looks.
        pool: the pictures.
        failed: takes those that cannot be looked at.
        quiet: whether no bar is shown.
    """
    units: list[Unit] = []
    kept: list[Kept] = []
    first: dict[str, Path] = {}
    record = eye.source.record
    bar = tqdm(total=len(pool.paths), desc="looking", disable=quiet or None)
    for path, specimen in zip(pool.paths, pool.specimens, strict=True):
        with failed.of(path):
            micrograph = record.read(path)
            digest = readers.digest(micrograph.middle.pixels)
            why = pool.digests.get(digest, "")
            if not why and digest in first:
                why = f"copy: the same pixels as {pool.name(first[digest])}"
            if why:
                kept.append(Kept(path, why))
            else:
                first[digest] = path
                units += eye.units(path, specimen, micrograph)
        bar.update()
    bar.close()
    return units, kept


def labelled_features(eye: Eye, paths: Sequence[Path], failed: Failures) -> Array | None:
    """Return the features of pictures that are labelled, (L, D); None where none are asked for."""
    if eye.source.features is None:
        return None
    found = []
    for path in paths:
        with failed.of(path):
            micrograph = eye.source.record.read(path)
            cells = eye.source.features.cells(micrograph)
            shape = (eye.source.record.kept_rows(micrograph), micrograph.pixels.shape[1])
            found += [summary(cells, box, shape) for box in cut(*shape, eye.settings.region)]
    return np.stack(found) if found else None


def joined(
    units: Sequence[Unit],
    labelled: Array | None,
    count: int,
    settings: SelectSettings,
    source: Source,
) -> Candidates:
    """Return candidates as arrays.

    Args:
        units: all of them.
        labelled: features of what is labelled.
        count: labelled pictures.
        settings: of the command.
        source: model and features.
    """

    def stacked(of: Callable[[Unit], Numbers | None]) -> Numbers | None:
        found = [value for value in map(of, units) if value is not None]
        return np.stack(found) if len(found) == len(units) else None

    names = tuple(units[0].scores)
    segmenter = source.segmenter
    pixels = None
    if segmenter is not None:
        known = np.array([float(kind.pixels) for kind in segmenter.table.classes])
        pixels = known if known.any() else None
    return Candidates(
        tuple(unit.specimen for unit in units),
        {name: np.array([unit.scores[name] for unit in units]) for name in names},
        stacked(lambda unit: unit.class_scores),
        stacked(lambda unit: unit.shares),
        stacked(lambda unit: unit.features),
        labelled,
        count,
        pixels,
        background(segmenter, settings.background),
        settings.power,
    )


def background(segmenter: Segmenter | None, name: str | None) -> int | None:
    """Return the index of the class that --background names, None where it names none.

    Raises:
        UserError: the model has no such class.
    """
    if segmenter is None or name is None:
        return None
    classes = segmenter.table.names
    if name not in classes:
        raise UserError(
            f"--background {name} is no class of {segmenter.source}; it has: {', '.join(classes)}"
        )
    return classes.index(name)


def needed(method: str) -> tuple[bool, bool, bool]:
    """Return whether a method needs class probabilities, several passes, features."""
    needs = selection.needs(method)
    return "probabilities" in needs, "passes" in needs, "features" in needs
