"""How many steps, where too few images are labelled to set some aside: folds inside them tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from matssl.core.labels import IGNORE
from matssl.core.wording import counted
from matssl.data import specimens
from matssl.data.crops import Labelled
from matssl.metrics import overlap
from matssl.models.segmentation import Description, SegmentationModel, build_model
from matssl.stages import console
from matssl.stages.console import STEPS_TO_ESTIMATE, Clock
from matssl.stages.finetune.learner import Learner


@dataclass(frozen=True)
class Choice:
    """What the folds say, as folds.json has it.

    Attributes:
        steps: at which the mean over the folds is the best.
        miou: that mean, validation by validation.
        every: steps between two validations.
    """

    steps: int
    miou: tuple[float, ...]
    every: int

    def to_dict(self) -> dict[str, object]:
        """Return plain values for a JSON file."""
        return {**asdict(self), "miou": list(self.miou)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Choice:
        """Return what :meth:`to_dict` wrote."""
        return Choice(int(values["steps"]), tuple(values["miou"]), int(values["every"]))


def choose_steps(
    data: Labelled,
    start: Mapping[str, Tensor],
    description: Description,
    learner: Callable[[SegmentationModel, Labelled], Learner],
    val_every: int,
    say: Callable[[str], None],
) -> Choice | None:
    """Return the number of steps at which held-out training images do best.

    Each image is held out once (a single one by halves), the same plan is followed on the others,
    and the step of the best mean mIoU is taken. None where there are no two parts with labels.

    Args:
        data: all labelled images.
        start: the weights that every fold starts from.
        description: what ``build_model`` needs to make the model again.
        learner: makes the learner of a model and of the images it may see.
        val_every: steps between two validations.
        say: prints a line.
    """
    pairs = parts(data)
    few = f"only {counted(len(data.planes), 'labelled image')} and no validation split"
    if not pairs:
        say(f"{few}, whose labels cannot be parted: all steps are taken")
        return None
    say(f"{few}: {counted(len(pairs), 'fold')} inside choose the number of steps")
    curves = []
    total = 0
    clock = Clock(1)
    for number, (train, held) in enumerate(pairs, start=1):
        model = build_model(**description)
        model.load_state_dict(start)
        learning = learner(model, train)
        total = learning.schedule.total_steps
        curve = []
        every = counted(min(val_every, total), "step")
        say(f"fold {number} of {len(pairs)}: {counted(total, 'step')}, a score every {every}")
        clock.restart()
        for step, (images, target) in enumerate(learning.loader.batches(0, total)):
            learning.learn(step, learning.schedule.rate(step), images, target)
            clock.stepped()
            if clock.steps == STEPS_TO_ESTIMATE and step + 1 < total:
                seconds = clock.seconds_per_step * (total * len(pairs) - clock.steps)
                say(f"estimate {console.minutes(seconds)} for all folds, without scores")
            if (step + 1) % val_every == 0 or step + 1 == total:
                curve.append(overlap.miou(learning.validate(held)))
                told = f"{100 * curve[-1]:.1f}" if np.isfinite(curve[-1]) else "none"
                say(f"fold {number}, step {step + 1}/{total}: held-out mIoU {told}")
                clock.restart()
        curves.append(curve)
        say(f"fold {number}: best held-out mIoU {100 * np.nanmax(curve):.1f}")
    # Held-out parts have labels; a score that is undefined all the same counts for nothing.
    known = np.array([curve for curve in curves if np.isfinite(curve).any()])
    if not len(known):
        return None
    mean = np.nan_to_num(np.nanmean(known, axis=0))
    chosen = min((int(mean.argmax()) + 1) * val_every, total)
    say(f"the folds choose {chosen} steps")
    return Choice(chosen, tuple(mean.tolist()), val_every)


def parts(data: Labelled) -> list[tuple[Labelled, Labelled]]:
    """Return (train, held out) parts: one image each, or the halves of a single image.

    Halves are those of the labelled pixels, which are those of the image where all are labelled. A
    fold without labels in both of its parts is left out.
    """
    count = len(data.planes)
    if count > 1:
        held_out = specimens.folds(data.pairs, count, 0)
        pairs = [
            (data.take([i for i in range(count) if i not in held]), data.take(held))
            for held in held_out
        ]
    else:
        middle = _middle(data.masks[0])
        plane, mask = data.planes[0], data.masks[0]
        left = replace(data, planes=(plane[:, :middle],), masks=(mask[:, :middle],))
        right = replace(data, planes=(plane[:, middle:],), masks=(mask[:, middle:],))
        pairs = [(left, right), (right, left)]
    return [pair for pair in pairs if all(_has_labels(part) for part in pair)]


def _middle(mask: NDArray[np.uint8]) -> int:
    """Return the column before which half of the labelled pixels lie."""
    before = np.cumsum((mask != IGNORE).sum(axis=0))
    return int((2 * before <= before[-1]).sum())


def _has_labels(data: Labelled) -> bool:
    return any(bool((mask != IGNORE).any()) for mask in data.masks)
