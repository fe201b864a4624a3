"""What a pretraining run is watched by: the health of its embeddings, and the dense probe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matssl import monitor
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.core.runtime import Runtime
from matssl.methods.base import SSLMethod
from matssl.models.encoders import average
from matssl.stages.pretrain.inputs import Inputs, blank_share

# Pairs of views that the health of a run is measured on: with four times as many a look would take
# as long as five steps.
WATCHED_SAMPLES = 128


@dataclass
class Scores:
    """mIoU of the dense probe, 0 to 1: at the start, the last one, the best one and its step."""

    first: float = math.nan
    last: float = math.nan
    best: float = -1.0
    step: float = 0


class Watch:
    """Looks at a run from time to time; it never changes what is learned.

    Attributes:
        health: of the last look, None before the first.
        state: what the monitor said last, of this process or of the one before it.
        scores: of the dense probe.
    """

    def __init__(self, inputs: Inputs, method: SSLMethod, rt: Runtime, calmer: str) -> None:
        """Keep what is looked at.

        Args:
            inputs: of the run.
            method: that is trained.
            rt: where it computes.
            calmer: what to change where numbers run away, for messages.
        """
        self.inputs, self.method, self.rt, self.calmer = inputs, method, rt, calmer
        # Of the encoder at the last look, and its step, to see whether it moves at all.
        self.fingerprint, self.looked = fingerprint(method.encoder), 0
        self.blank = blank_share(inputs.pool, inputs.loader)
        self.scores = Scores()
        self.health: monitor.Health | None = None
        self.state = ""

    def look(self, step: int, losses: Sequence[float]) -> monitor.Health:
        """Measure and return the health of the embeddings of fixed samples.

        Args:
            step: steps taken.
            losses: of those since the last look.

        Raises:
            UserError: the weights are not finite.
        """
        self.check_weights(step)
        batch = self.inputs.watched.sample(WATCHED_SAMPLES).to(self.rt.device)
        self.method.eval()
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, maps: Sequence[Tensor]) -> None:
            seen.append(average(maps[-1]).float())

        with torch.inference_mode(), self.rt.autocast():
            # Not watched: what a method looks at here may be masked.
            self.method.observe(batch)
            watched = self.method.encoder.register_forward_hook(keep)
            try:
                embeddings = self.method.embed_views(batch).float()
            finally:
                watched.remove()
        features = torch.cat(seen) if seen else None
        signs = self._signs(batch, step, losses)
        self.health = monitor.examine(embeddings, features, signs)
        return self.health

    def _signs(self, batch: Batch, step: int, losses: Sequence[float]) -> monitor.Signs:
        """Return what the run's input, settings and weights say about its health."""
        method = self.method
        before, self.fingerprint = self.fingerprint, fingerprint(method.encoder)
        stepped, self.looked = step > self.looked, step
        measures = method.measures()
        return monitor.Signs(
            blank=self.blank,
            # Who fills in what is hidden needs no difference of views.
            same=monitor.same_views(*batch.views) if method.views > 1 else 0.0,
            moved=not stepped or before != self.fingerprint,
            temperature=getattr(method.settings, "temperature", None),
            queue=method.queued() / len(self.inputs.loader.tiles),
            prototypes=measures.get("prototypes_in_use"),
            undecided=measures.get("target_entropy", 0.0),
            loss=measures.get("masked_loss", math.nan),
            chance=measures.get("chance_loss"),
            steps=step,
            idle=float(np.mean(np.array(losses or [math.nan]) == 0)),
            pooled=method.pooled,
        )

    def row(self, health: monitor.Health, batch_size: int) -> dict[str, object]:
        """Return the columns of log.csv that a look fills."""
        return {
            "std": health.std,
            "ideal_std": health.ideal_std,
            "rank": health.rank,
            "dimensions": health.dimensions,
            "alignment": health.alignment,
            "uniformity": health.uniformity,
            "gap": health.gap,
            "auc": health.auc,
            "top1": health.top1,
            "feature_rank": health.feature_rank,
            "feature_dimensions": health.feature_dimensions,
            "queue_age": monitor.queue_age(self.method.queued(), batch_size),
            **self.method.measures(),
        }

    def score(self, step: int) -> tuple[dict[str, float], bool]:
        """Score the encoder by the dense probe; return the row of probe.csv, and if it is the best.

        Args:
            step: steps taken.

        Raises:
            UserError: the weights are not finite.
        """
        assert self.inputs.probe is not None
        started = time.perf_counter()
        self.check_weights(step)
        self.method.eval()
        miou = self.inputs.probe.score(self.method.encoder, self.rt.device, self.rt.autocast)
        seconds = time.perf_counter() - started
        self.scores.last = miou
        if step == 0:
            self.scores.first = miou
        better = miou > self.scores.best
        if better:
            self.scores.best, self.scores.step = miou, step
        return {"step": step, "probe_miou": miou, "seconds": seconds}, better

    def check_weights(self, step: int) -> None:
        """Refuse to go on from weights that are not finite, so that they are never saved.

        Raises:
            UserError: there are some.
        """
        if not torch.stack([p.isfinite().all() for p in self.method.parameters()]).all():
            raise UserError(f"the weights are not finite after step {step}; {self.calmer}")

    def to_dict(self) -> dict[str, object]:
        """Return what a checkpoint keeps of it."""
        return {
            **vars(self.scores),
            "state": self.state,
            "fingerprint": self.fingerprint,
            "looked": self.looked,
        }

    def restore(self, kept: Mapping[str, Any], step: int) -> None:
        """Go on from what :meth:`to_dict` returned; checkpoints of older versions lack some of it.

        Args:
            kept: of the checkpoint.
            step: of the checkpoint.

        Raises:
            TypeError, ValueError: something in it is not what was kept.
        """
        self.state = str(kept.get("state", ""))
        self.fingerprint = [float(number) for number in kept.get("fingerprint", [])]
        self.looked = int(kept.get("looked", step))
        for name, default in vars(self.scores).items():
            setattr(self.scores, name, type(default)(kept.get(name, default)))


def fingerprint(module: nn.Module) -> list[float]:
    """Return one number a parameter; equal ones tell that nothing was trained."""
    sums: list[float] = torch.stack(
        [p.detach().double().sum() for p in module.parameters()]
    ).tolist()
    return sums
