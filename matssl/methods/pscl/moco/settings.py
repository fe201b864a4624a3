"""Settings of PSCL-MoCo."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem, flag
from matssl.methods import settings as shared
from matssl.methods.pscl.settings import PSCLSettings
from matssl.methods.settings import LotSettings, PoolFacts


@dataclass(frozen=True, repr=False, eq=False)
class PSCLMoCoSettings(PSCLSettings, LotSettings):
    """Settings of PSCL-MoCo; ``top_k`` is 30 and ``hidden_dim`` 128 where None, as published."""

    temperature: float = shared.temperature(0.5)
    global_output_dim: int = shared.global_output_dim(64)
    dense_output_dim: int = shared.dense_output_dim(64)
    hidden_dim: int | None = shared.hidden_dim()
    soft_targets: str = flag(
        "shares",
        shared.GROUP,
        "soft positives of a queue: shares of 1 with the own key, or beside it as they are, which "
        "makes rows with many of them weigh more, as published",
        choices=("shares", "raw"),
    )
    scale_mix: str = flag(
        "equal",
        shared.GROUP,
        "whether the three scales weigh alike in the patch loss, or by how many cells they have as "
        "published",
        choices=("equal", "cells"),
    )
    queue_size: int | None = shared.queue_size()
    queue_limit: str = shared.queue_limit()
    ema_momentum: float = shared.ema_momentum(0.99)
    ema_schedule: str = shared.ema_schedule("constant")
    bn_splits: int = shared.bn_splits()
    group_negatives: str = shared.group_negatives()

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        return super().problems(batch_size) + shared.split_problems(self.bn_splits, batch_size)

    def resolved(self, pool: PoolFacts) -> tuple[PSCLMoCoSettings, tuple[str, ...]]:
        """Return the settings with classes, negatives and a queue that fit guides and pool."""
        return shared.negatives_and_queue(self.guided(pool), pool)
