"""Settings of MoCo v2."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem, flag
from matssl.methods import settings as shared
from matssl.methods.settings import MethodSettings, PoolFacts


@dataclass(frozen=True, repr=False, eq=False)
class MoCoV2Settings(MethodSettings):
    """Settings of MoCo v2; a hidden width of None is the encoder's, as in the paper."""

    temperature: float = shared.temperature(0.2)
    global_output_dim: int = shared.global_output_dim(128)
    hidden_dim: int | None = shared.hidden_dim()
    queue_size: int | None = shared.queue_size()
    queue_limit: str = shared.queue_limit()
    ema_momentum: float = shared.ema_momentum(0.999)
    ema_schedule: str = shared.ema_schedule("constant")
    bn_splits: int = shared.bn_splits()
    symmetric: bool = flag(False, shared.GROUP, "also the second view against the first")
    group_negatives: str = shared.group_negatives()

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        return shared.split_problems(self.bn_splits, batch_size)

    def resolved(self, pool: PoolFacts) -> tuple[MoCoV2Settings, tuple[str, ...]]:
        """Return the settings with the negatives that the pool allows and a queue that fits it."""
        return shared.negatives_and_queue(self, pool)
