"""Weights of the best validations, averaged (``--average_checkpoints``).

The greedy soup of Wortsman et al. 2022 (arXiv:2203.05482) of models along one training, as in
stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407): in the order of their
validation each is added to the mean where validation gains by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from matssl.core import checkpoint
from matssl.core.run_folder import RunFolder
from matssl.data.crops import Labelled
from matssl.metrics import overlap
from matssl.stages.finetune import scores
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import KEPT, Learner
from matssl.stages.finetune.settings import FinetuneSettings

# In a checkpoint: the entry of its progress. In the run folder: what was tried.
KEY, FILE = "averaged", "averaged.json"


@dataclass(frozen=True)
class Kept:
    """A validated model.

    Attributes:
        step: after which it was validated.
        value: its validation; the larger, the better.
        state: its averaged weights, on the CPU.
    """

    step: int
    value: float
    state: Mapping[str, Tensor]


class Averaging:
    """The models of the best validations so far."""

    def __init__(self, most: int) -> None:
        """Begin without any.

        Args:
            most: how many are held; 0: none.
        """
        self.most = most
        self.held: list[Kept] = []

    def add(self, step: int, value: float, state: Mapping[str, Tensor]) -> None:
        """Hold a model where it is one of the best; of equal ones the earlier stays.

        Args:
            step: after which it was validated.
            value: its validation.
            state: its weights, which are copied.
        """
        if not self.most or not math.isfinite(value):
            return
        if len(self.held) == self.most and value <= self.held[-1].value:
            return
        own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self.held.append(Kept(step, value, own))
        self.held.sort(key=lambda kept: -kept.value)
        del self.held[self.most :]

    def state(self) -> dict[str, Tensor]:
        """Return the weights under the names of a checkpoint."""
        return {
            f"{KEPT}{number}.{name}": tensor
            for number, kept in enumerate(self.held)
            for name, tensor in kept.state.items()
        }

    def stored(self) -> dict[str, object]:
        """Return what the progress of a checkpoint says of them; nothing where none are held."""
        facts = [{"step": kept.step, "value": kept.value} for kept in self.held]
        return {KEY: facts} if self.most else {}

    def restore(self, payload: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` and :meth:`stored` returned.

        Raises:
            KeyError, TypeError, ValueError: they are garbled.
        """
        if not self.most:
            return
        self.held = []
        for number, fact in enumerate(payload["progress"][KEY]):
            prefix = f"{KEPT}{number}."
            state = {
                name.removeprefix(prefix): tensor
                for name, tensor in payload["state"].items()
                if name.startswith(prefix)
            }
            if not state:
                raise ValueError(f"it lacks the weights of step {fact['step']}")
            self.held.append(Kept(int(fact["step"]), float(fact["value"]), state))


def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of weights and BatchNorm statistics; counts are those of the first."""
    first = states[0]
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if tensor.dtype.is_floating_point
        else tensor
        for name, tensor in first.items()
    }


def soup(
    held: Sequence[Kept], score: Callable[[Mapping[str, Tensor]], float]
) -> tuple[list[Kept], float]:
    """Return the models whose mean is the best that was found greedily, and its validation.

    Args:
        held: the best first.
        score: validation of weights.
    """
    chosen, best = [held[0]], held[0].value
    for kept in held[1:]:
        value = score(mean([other.state for other in (*chosen, kept)]))
        if value > best:
            chosen, best = [*chosen, kept], value
    return chosen, best


def told(settings: FinetuneSettings, inputs: Inputs) -> str:
    """Return a note where averages are wanted and nothing validates; else nothing."""
    if not settings.average_checkpoints or inputs.val is not None:
        return ""
    return "note    --average_checkpoints is without effect: there are no validation images"


def finish(
    folder: RunFolder, averaging: Averaging, learner: Learner, val: Labelled | None, monitor: str
) -> tuple[str, float | None]:
    """Put the mean into best.ckpt where validation gains by it.

    Args:
        folder: of the run.
        averaging: its best models.
        learner: validates with the kept weights.
        val: validation images.
        monitor: what the kept model is the best in.

    Returns:
        What is to be said, "" where nothing was held; mean IoU of the mean, None where a single
        model is kept.
    """
    path = folder.root / "best.ckpt"
    if not averaging.held or val is None or not path.is_file():
        return "", None
    mious: dict[float, float] = {}

    def score(state: Mapping[str, Tensor]) -> float:
        own = learner.averaged
        try:
            learner.averaged = {
                name: tensor.to(learner.rt.device) for name, tensor in state.items()
            }
            counts, loss = learner.examine(val, lossy=monitor == "loss")
        finally:
            learner.averaged = own
        value = scores.monitored(monitor, counts, loss)
        mious[value] = overlap.miou(counts)
        return value

    chosen, value = soup(averaging.held, score)
    steps = sorted(kept.step for kept in chosen)
    facts = [{"step": kept.step, "value": kept.value} for kept in averaging.held]
    folder.write_json(FILE, {"held": facts, "averaged_steps": steps, "value": value})
    said = ", ".join(map(str, steps))
    if len(chosen) == 1:
        return f"averages of the {len(facts)} best validations are no better than step {said}", None
    payload = checkpoint.load(path, stage="finetune")
    miou = mious[value]
    # What compares trainings by their top compares what is kept of them.
    progress = {**payload["progress"], "best": miou, "top": value, "averaged_steps": steps}
    state = mean([kept.state for kept in chosen])
    checkpoint.save(path, {**payload, "state": state, "progress": progress})
    gain = f"validation mIoU {100 * payload['progress']['best']:.1f} -> {100 * miou:.1f}"
    return f"weights of steps {said} averaged: {gain}", miou
