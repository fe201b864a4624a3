"""The unlabelled part of a step: the teacher's word, when it counts, how much, and when no more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.runtime import Runtime
from matssl.data.unlabelled import UnlabelledBatch, UnlabelledLoader
from matssl.stages import resume
from matssl.stages.finetune.semi.base import Answers, Pseudo, SemiMethod
from matssl.stages.finetune.semi.thresholds import lost

# The validation is stable where it rises by no more than this, in mean IoU.
STABLE = 0.02
# Shares of the steps: the latest start by that rule, and the start without validation.
LATEST, UNVALIDATED = 0.4, 0.25
# Steepness of the rising weight, exp(-5 (1 - t/T)^2).
STEEP = 5.0
# Share of the encoder's channels that the dropped view lacks.
DROPPED = 0.5


@dataclass(frozen=True)
class Plan:
    """When and how much pictures without labels count.

    Attributes:
        total_steps: of the run.
        warmup: share of the steps before they do; None: until the validation is stable.
        ramp: share of the steps in which their weight rises.
        weight: of their loss in the end.
        guard: see :func:`matssl.stages.finetune.semi.thresholds.lost`.
        thresholds: probability from which each class is believed.
        shares: of the classes in the labelled pixels.
        validated: whether there are validation images.
    """

    total_steps: int
    warmup: float | None
    ramp: float
    weight: float
    guard: float
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    validated: bool = True

    @property
    def start(self) -> int:
        """The step from which they count at the latest, from 0."""
        share = self.warmup
        if share is None:
            share = LATEST if self.validated else UNVALIDATED
        return round(share * self.total_steps)

    def rate(self, since: int) -> float:
        """Return the weight so many steps after they began to count.

        ``weight exp(-5 (1 - t/T)^2)``, Tarvainen and Valpola 2017 (arXiv:1703.01780).
        """
        length = round(self.ramp * self.total_steps)
        part = 1.0 if length == 0 else min(1.0, since / length)
        return self.weight * math.exp(-STEEP * (1 - part) ** 2)


class Supervision:
    """Learning from pictures without labels, beside a labelled batch.

    Attributes:
        begun: the first step in which they count; None before.
        stopped: the step from which they count no more; None while they do.
        fallen: classes whose loss stopped them.
    """

    def __init__(
        self, method: SemiMethod, plan: Plan, loader: UnlabelledLoader, rt: Runtime
    ) -> None:
        self.method, self.plan, self.loader, self.rt = method, plan, loader, rt
        self.thresholds = torch.tensor(
            plan.thresholds if method.thresholded else [0.0] * len(plan.shares), device=rt.device
        )
        self.begun: int | None = None
        self.stopped: int | None = None
        self.fallen: tuple[int, ...] = ()
        # Of the last step; of the best validation so far.
        self.loss, self.rate, self.top = 0.0, 0.0, -1.0
        # Since the last validation: pixels of each class that the teacher said, those believed.
        self.said = np.zeros(len(plan.shares))
        self.believed = np.zeros(len(plan.shares))
        self._ahead: tuple[int, Iterator[UnlabelledBatch]] | None = None

    def step(self, step: int, model: nn.Module, averaged: Mapping[str, Tensor]) -> Exercise | None:
        """Return what the network has to learn from in this step; None where it is labels alone.

        Args:
            step: from 0.
            model: the network, whose mode is changed.
            averaged: weights and BatchNorm statistics of the teacher.
        """
        self.loss, self.rate = 0.0, 0.0
        if self.begun is None and step >= self.plan.start:
            self.begun = step
        if self.begun is None or self.stopped is not None or step < self.begun:
            return None
        self.rate = self.plan.rate(step - self.begun)
        batch = self._batch(step)
        device = self.rt.device
        weak = batch.weak.to(device, non_blocking=True)
        model.eval()
        with torch.no_grad(), self.rt.autocast():
            logits: Tensor = functional_call(model, dict(averaged), (weak,))
        known = batch.known.to(device)
        pseudo = Pseudo.of(logits.float().softmax(dim=1), known, self.thresholds)
        self._count(pseudo)
        boxes = [box.to(device) for box in batch.boxes]
        strong = [view.to(device, non_blocking=True) for view in batch.strong]
        images = torch.cat([*strong, weak] if self.method.dropped else strong)
        mixtures = tuple(pseudo.mixed(box) for box in boxes)
        return Exercise(self, images, len(weak), pseudo, mixtures)

    def _batch(self, step: int) -> UnlabelledBatch:
        """Return the crops of a step, made ahead by threads where steps follow each other."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self.loader.batches(step, self.plan.total_steps))
        batches = self._ahead[1]
        self._ahead = (step + 1, batches)
        return next(batches)

    def _count(self, pseudo: Pseudo) -> None:
        """Add what the teacher says of a batch, over all processes."""
        said = pseudo.chance.argmax(dim=1).masked_fill(~pseudo.known, IGNORE)
        classes = range(len(self.plan.shares))
        counts = [(labels == c).sum() for labels in (said, pseudo.labels) for c in classes]
        mean = self.rt.mean(torch.stack(counts).double())
        pixels = np.round(mean.cpu().numpy() * self.rt.world_size)
        self.said += pixels[: len(classes)]
        self.believed += pixels[len(classes) :]

    def looked_at(self, step: int, miou: float) -> tuple[dict[str, object], str]:
        """Decide by a validation, and return its row of semi.csv and what is to be said.

        Args:
            step: steps taken.
            miou: of the validation images; NaN without any.
        """
        plan, note = self.plan, ""
        total = self.said.sum()
        shares = self.believed / max(self.believed.sum(), 1.0)
        state = "stopped" if self.stopped is not None else "on" if total else "warm-up"
        row: dict[str, object] = {"step": step, "state": state}
        row |= {"weight": self.rate, "accepted": self.believed.sum() / total if total else math.nan}
        for c, share in enumerate(shares.tolist()):
            row |= {f"believed {c}": share if total else math.nan}
            row |= {f"said {c}": float(self.said[c] / total) if total else math.nan}
        if state == "on":
            # What it says, not what of that is believed: a class may be right and not sure yet.
            self.fallen = lost(self.said, plan.shares, plan.guard)
            if self.fallen:
                self.stopped = step
        waits = self.begun is None and plan.warmup is None and plan.validated
        if waits and self.top >= 0 and miou <= self.top + STABLE:
            self.begun = step
            note = "validation is stable: pictures without labels count from here on"
        if math.isfinite(miou):
            self.top = max(self.top, miou)
        self.said[:], self.believed[:] = 0, 0
        return row, note

    def stored(self) -> dict[str, object]:
        """Return plain values for a checkpoint."""
        return {
            "begun": self.begun,
            "stopped": self.stopped,
            "fallen": list(self.fallen),
            "top": self.top,
            "said": self.said.tolist(),
            "believed": self.believed.tolist(),
        }

    def restore(self, values: object) -> None:
        """Continue from what :meth:`stored` returned.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        if not isinstance(values, Mapping):
            raise TypeError("it has no record of the pictures without labels")
        facts: dict[str, Any] = dict(values)
        for name in ("begun", "stopped"):
            if facts[name] is not None:
                resume.whole_number(name, facts[name], self.plan.total_steps)
        self.begun, self.stopped = facts["begun"], facts["stopped"]
        self.fallen, self.top = tuple(map(int, facts["fallen"])), float(facts["top"])
        said, believed = (np.array(facts[name], np.float64) for name in ("said", "believed"))
        if said.shape != self.said.shape or believed.shape != self.said.shape:
            raise ValueError("its counts are of other classes")
        self.said, self.believed = said, believed


class Exercise:
    """What the network sees without labels in a step, and the loss of what it says.

    Attributes:
        images: float32 (N, C, S, S): the strong views one after the other, the weak view last
            where its features are dropped.
        extra: crops at the end of the network's answers that are of dropped features.
    """

    def __init__(
        self,
        of: Supervision,
        images: Tensor,
        count: int,
        weak: Pseudo,
        mixtures: tuple[Pseudo, ...],
    ) -> None:
        self.of, self.images, self.count = of, images, count
        self.weak, self.mixtures = weak, mixtures
        self.extra = count if of.method.dropped else 0

    def answered(self, parallel: nn.Module, encoder: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of labelled images, of these ones, and of those with dropped features.

        One pass for all: a BatchNorm sees them together, as in the published codes.

        Args:
            parallel: the network as it is called.
            encoder: of it.
            images: labelled ones, (B, C, S, S).
        """
        everything = torch.cat([images, self.images])
        if not self.extra:
            logits: Tensor = parallel(everything)
            return logits

        def double(module: nn.Module, given: tuple[Tensor, ...], maps: Any) -> list[Tensor]:
            return [torch.cat([m, self._dropped(m, given[0])]) for m in maps]

        hook = encoder.register_forward_hook(double)
        try:
            logits = parallel(everything)
        finally:
            hook.remove()
        return logits

    def _dropped(self, features: Tensor, images: Tensor) -> Tensor:
        """Return a map of the last crops with half of its channels left out; the image as it is."""
        last = features[-self.extra :]
        if features.shape == images.shape:
            return last
        return F.dropout2d(last, DROPPED)

    def loss(self, logits: Tensor) -> Tensor:
        """Return the loss of the answers, with its weight.

        Args:
            logits: of all but the labelled images.

        Raises:
            UserError: it is not finite.
        """
        method, n = self.of.method, self.count
        if len(logits) != len(self.images) + self.extra:
            raise ValueError(f"{len(logits)} answers to {len(self.images)} crops")
        strong = tuple(logits[i * n : (i + 1) * n] for i in range(method.views))
        dropped = logits[-n:] if self.extra else None
        loss = method.loss(Answers(strong, dropped), self.weak, self.mixtures)
        self.of.loss = float(self.of.rt.mean(loss.detach()))
        if not math.isfinite(self.of.loss):
            raise UserError(
                "the loss of the pictures without labels is not finite; lower --lr or set "
                "--precision fp32; the last checkpoint is from before"
            )
        return self.of.rate * loss
