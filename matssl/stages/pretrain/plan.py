"""How long a run is, and how often it is looked at: numbers computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matssl.core import optim
from matssl.stages.pretrain.settings import PretrainSettings

# Scores of the dense probe in a run where --probe_every says nothing else.
PROBES = 20
# Steps between them at least, for each pixel that a score takes beside one of a step's views: a
# score then takes 2 % of the time. Counted, not timed, so that a resumed run scores the same steps.
STEPS_A_PROBED_PIXEL = 40
# Health is looked at once an epoch, but not more often than this: small sets have short epochs.
MIN_STEPS_BETWEEN_REPORTS = 25
# Where neither recipe nor flags say how long: enough for 20 to 1000 micrographs in batches of 32.
DEFAULT_STEPS = 3000


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run, computed once."""

    total_steps: int
    steps_per_epoch: int
    report_every: int
    warmup: int
    lr: float
    probe_every: int


def make_plan(settings: PretrainSettings, steps_per_epoch: int, probed_pixels: int) -> Plan:
    """Return the numbers that follow from flags and pool.

    Args:
        settings: flags.
        steps_per_epoch: of the loader.
        probed_pixels: that one score of the dense probe takes, 0 without one.
    """
    total = settings.steps or (settings.epochs or 0) * steps_per_epoch or DEFAULT_STEPS
    probed = probed_pixels / (settings.batch_size * settings.view_size**2)
    epochs = max(1, math.ceil(MIN_STEPS_BETWEEN_REPORTS / steps_per_epoch))
    return Plan(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        report_every=epochs * steps_per_epoch,
        warmup=round(settings.warmup * total),
        lr=optim.scaled_lr(settings.lr, settings.batch_size, settings.lr_scaling),
        probe_every=settings.probe_every
        or max(1, round(total / PROBES), math.ceil(STEPS_A_PROBED_PIXEL * probed)),
    )
