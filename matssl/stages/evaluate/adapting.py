"""The model of an evaluation fitted to its pictures (``--adapt``), and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from matssl import report
from matssl.core.arrays import Array
from matssl.core.wording import counted
from matssl.data.layouts import Pair
from matssl.stages import failures
from matssl.stages.evaluate.adapt_settings import FOLDER, NONE, PICTURE, SPECIMEN, AdaptSettings
from matssl.trained import adaptation
from matssl.trained.adaptation import Adaptation
from matssl.trained.segmenter import Segmenter

TRANSDUCTIVE = (
    "the model was fitted to the very pictures it is scored on, without their masks (--adapt {}): "
    "compare with results that may do the same"
)
WITH = {FOLDER: "the folder", SPECIMEN: "its specimen", PICTURE: "itself"}


@dataclass(frozen=True)
class Fit:
    """What fitting a model to pictures that belong together came to.

    Attributes:
        name: of the pictures: the folder's, the specimen's, the picture's.
        found: of each network.
    """

    name: str
    found: tuple[Adaptation, ...]

    @property
    def done(self) -> int:
        """Number of networks that were adapted."""
        return sum(not one.kept for one in self.found)

    @property
    def outcome(self) -> str:
        """Whether the model was adapted, or why not."""
        if self.done == len(self.found):
            return "yes"
        why = next(one.kept for one in self.found if one.kept)
        return f"no: {why}" if not self.done else f"{self.done} of {len(self.found)}: {why}"

    def cells(self) -> dict[str, object]:
        """Return what per_image.csv holds of it: means over the networks."""
        return {
            "adapted to": self.name,
            "adapted": self.outcome,
            "adapted on tiles": self.found[0].tiles,
            "statistics distance": float(np.mean([one.distance for one in self.found])),
            "entropy before": float(np.mean([one.entropy[0] for one in self.found])),
            "entropy after": float(np.mean([one.entropy[1] for one in self.found])),
        }


@dataclass
class Fits:
    """A model and its copies that are fitted to pictures; one copy is held at a time.

    Attributes:
        segmenter: as it was trained.
        of_image: what each picture's own came to; empty without ``--adapt``.
    """

    segmenter: Segmenter
    of_image: Mapping[Path, Fit] = field(default_factory=dict)
    _last: tuple[Fit, Segmenter] | None = None

    def model(self, image: Path) -> Segmenter:
        """Return the model that a picture is predicted with."""
        fit = self.of_image.get(image)
        if fit is None:
            return self.segmenter
        if self._last is None or self._last[0] is not fit:
            self._last = fit, adaptation.fitted(self.segmenter, fit.found)
        return self._last[1]


def check(settings: AdaptSettings, segmenter: Segmenter) -> None:
    """Refuse ``--adapt`` of a model that has nothing to adapt.

    Raises:
        UserError: see :func:`matssl.trained.adaptation.check`.
    """
    if settings.adapt != NONE:
        adaptation.check(segmenter)


def warned(settings: AdaptSettings) -> list[str]:
    """Return what is to be known of the scores of an adapted model."""
    return [] if settings.adapt == NONE else [TRANSDUCTIVE.format(settings.adapt)]


def fits(
    settings: AdaptSettings,
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    root: Path,
    say: Callable[[str], None],
) -> Fits:
    """Return the model fitted to the pictures as ``--adapt`` says.

    Pictures that cannot be read are left out: they fail when they are predicted.

    Args:
        settings: of the command.
        segmenter: the model, see :func:`matssl.trained.adaptation.check`.
        pairs: the pictures.
        root: of the folder.
        say: prints a line.
    """
    if settings.adapt == NONE:
        return Fits(segmenter)
    parts: dict[str, list[Path]] = {}
    for pair in pairs:
        inside = pair.image.is_relative_to(root)
        own = str(pair.image.relative_to(root)) if inside else str(pair.image)
        name = {FOLDER: root.name, SPECIMEN: str(pair.group), PICTURE: own}[settings.adapt]
        parts.setdefault(name, []).append(pair.image)
    prior = adaptation.PRIOR if settings.adapt_prior is None else settings.adapt_prior
    found: dict[Path, Fit] = {}
    for name, images in sorted(parts.items()):
        planes = _planes(segmenter, images)
        first = next(planes, None)
        if first is None:
            continue
        every = (plane for part in ((first,), planes) for plane in part)
        fit = Fit(name, adaptation.measured(segmenter, every, len(images), prior))
        found |= dict.fromkeys(images, fit)
    say(_told(settings.adapt, list({id(fit): fit for fit in found.values()}.values())))
    return Fits(segmenter, found)


def _planes(segmenter: Segmenter, images: Sequence[Path]) -> Iterator[Array]:
    read = failures.attempt(segmenter.record.read, images)
    for number in range(len(images)):
        micrograph = read(number)
        if not isinstance(micrograph, Exception):
            yield segmenter.record.plane(micrograph)


def _told(way: str, found: Sequence[Fit]) -> str:
    """Return a line for the screen."""
    nouns = {
        FOLDER: ("folder", "folders"),
        SPECIMEN: ("specimen", None),
        PICTURE: ("picture", None),
    }
    of = {FOLDER: "folder", SPECIMEN: "specimen", PICTURE: "picture"}[way]
    done = sum(fit.done > 0 for fit in found)
    total = counted(len(found), *nouns[way])
    line = f"adapted to {done} of {total}, by the BatchNorm statistics of each {of}"
    left = [fit for fit in found if not fit.done]
    if left:
        line += f"; the others keep those of the training ({left[0].name}: {left[0].outcome[4:]})"
    return line


def stored(settings: AdaptSettings, found: Sequence[Fit | None]) -> dict[str, Any]:
    """Return what metrics.json holds of it; empty without ``--adapt``."""
    if settings.adapt == NONE:
        return {}
    unique = {id(fit): fit for fit in found if fit is not None}
    rows = [fit.cells() for fit in sorted(unique.values(), key=lambda fit: fit.name)]
    prior = adaptation.PRIOR if settings.adapt_prior is None else settings.adapt_prior
    facts = {"statistics_of": settings.adapt, "prior_tiles": prior, "parts": rows}
    return {"adaptation": facts}


def section(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the part of a report on it, nothing without ``--adapt``."""
    facts = summary.get("adaptation")
    if not facts:
        return []
    said = (
        "Before prediction, the mean and variance of every BatchNorm layer were measured on tiles "
        f"of the pictures of {WITH[facts['statistics_of']]}, without their masks, and mixed with "
        f"those of the training, which weigh as {facts['prior_tiles']:g} tiles. Distance: how far "
        "the two are apart, in standard deviations of the training. Entropy: how unsure the model "
        "is on these tiles, in nats; it stays as it was trained where it would be less sure, or "
        "where a class would vanish."
    )
    return [("Adapted to these pictures", report.table(facts["parts"]) + report.note(said))]
