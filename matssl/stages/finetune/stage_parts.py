"""Which images each stage of a training learns from, and which choose its model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data import specimens
from matssl.data.layouts import Dataset, Pair
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.finetune.stage_plan import Stage


@dataclass(frozen=True)
class Part:
    """A stage with its images.

    Attributes:
        number: from 1.
        stage: as the file says it.
        train: images of its own data sets to learn from.
        replayed: images of former stages to learn from, too.
        val: images of its own data sets that choose the model.
    """

    number: int
    stage: Stage
    train: tuple[Pair, ...]
    replayed: tuple[Pair, ...]
    val: tuple[Pair, ...]

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.number:02d}_{self.stage.name}"

    @property
    def learned(self) -> tuple[Pair, ...]:
        """All images it learns from."""
        return (*self.train, *self.replayed)


def parted(known: Dataset, settings: FinetuneSettings, stages: Sequence[Stage]) -> list[Part]:
    """Return the images of each stage: of its data sets, with some of those before it.

    Args:
        known: images with their splits, without those of no label.
        settings: with the shares of validation and replay, and the seed.
        stages: as the file says them.

    Raises:
        UserError: a data set that is not there, or has no image to train on.
    """
    train, val = reading.parted(settings, known)
    parts: list[Part] = []
    for number, stage in enumerate(stages, start=1):
        own = [p for p in train if _is_of(p, stage.datasets, known.root)]
        absent = [name for name in stage.datasets if not _any_of(name, known)]
        if absent:
            raise UserError(
                f"{settings.stages}: stage {stage.name} names the data set {absent[0]}, which is "
                f"no folder in {known.root}; there are: {cut(', '.join(_folders(known)))}"
            )
        if not own:
            raise UserError(
                f"{settings.stages}: stage {stage.name} has no image to train on in "
                f"{', '.join(stage.datasets) or known.root}; --splits says which images train"
            )
        held = tuple(p for p in val if _is_of(p, stage.datasets, known.root))
        former = {p.image: p for part in parts for p in part.train}
        others = [p for image, p in former.items() if image not in {q.image for q in own}]
        share = settings.replay if stage.replay is None else stage.replay
        # So many that they are this share of all; there may be fewer.
        wanted = min(len(others), round(share / (1 - share) * len(own)))
        replayed = specimens.take(others, wanted, settings.seed + number) if wanted else ()
        parts.append(Part(number, stage, tuple(own), replayed, held))
    return parts


def _is_of(pair: Pair, datasets: Sequence[str], root: Path) -> bool:
    """Return whether an image lies in one of these folders, at any depth."""
    return not datasets or any(name in _above(pair, root) for name in datasets)


def _above(pair: Pair, root: Path) -> tuple[str, ...]:
    """Return the folders an image lies in, the data set's own folder among them."""
    return (root.name, *Path(os.path.relpath(pair.image, root)).parts[:-1])


def _any_of(name: str, known: Dataset) -> bool:
    return any(name in _above(pair, known.root) for pair in known.pairs)


def _folders(known: Dataset) -> list[str]:
    return sorted({_above(pair, known.root)[1] for pair in known.pairs if _nested(pair, known)})


def _nested(pair: Pair, known: Dataset) -> bool:
    return len(_above(pair, known.root)) > 1
