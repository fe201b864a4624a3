"""Settings of DenseCL."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem, flag
from matssl.methods import settings as shared
from matssl.methods.settings import MethodSettings, PoolFacts


@dataclass(frozen=True, repr=False, eq=False)
class DenseCLSettings(MethodSettings):
    """Settings of DenseCL; a hidden width of None is that of the head's input, as in the paper.

    ``dense_match`` and ``dense_stage`` are ours: "geometry" pairs cells that show the same place
    instead of those that look alike, and at 128 pixels stage 4 has no more than 4 x 4 cells.
    """

    temperature: float = shared.temperature(0.2)
    global_output_dim: int = shared.global_output_dim(128)
    dense_output_dim: int = shared.dense_output_dim(128)
    dense_weight: float = flag(0.5, shared.GROUP, "share of the dense loss", low=0, high=1)
    dense_match: str = flag(
        "features",
        shared.GROUP,
        "a cell's positive is the most similar one or the one at the same place",
        choices=("features", "geometry"),
    )
    dense_stage: int = shared.dense_stage()
    dense_warmup_steps: int = flag(0, shared.GROUP, "first steps without dense loss", low=0)
    hidden_dim: int | None = shared.hidden_dim()
    queue_size: int | None = shared.queue_size()
    queue_limit: str = shared.queue_limit()
    ema_momentum: float = shared.ema_momentum(0.999)
    ema_schedule: str = shared.ema_schedule("constant")
    bn_splits: int = shared.bn_splits()
    group_negatives: str = shared.group_negatives()

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        return shared.split_problems(self.bn_splits, batch_size)

    def resolved(self, pool: PoolFacts) -> tuple[DenseCLSettings, tuple[str, ...]]:
        """Return the settings with the negatives that the pool allows and a queue that fits it."""
        return shared.negatives_and_queue(self, pool)
