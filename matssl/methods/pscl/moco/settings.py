"""Settings of PSCL-MoCo."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem
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
    queue_size: int | None = shared.queue_size()
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
