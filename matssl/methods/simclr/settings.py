"""Settings of SimCLR."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.methods import settings as shared
from matssl.methods.settings import MethodSettings, PoolFacts


@dataclass(frozen=True, repr=False, eq=False)
class SimCLRSettings(MethodSettings):
    """Settings of SimCLR; a hidden width of None follows the encoder, as in the paper."""

    temperature: float = shared.temperature(0.1)
    global_output_dim: int = shared.global_output_dim(128)
    hidden_dim: int | None = shared.hidden_dim()
    group_negatives: str = shared.group_negatives()

    def resolved(self, pool: PoolFacts) -> tuple[SimCLRSettings, tuple[str, ...]]:
        """Return the settings with the negatives that the pool allows."""
        return shared.negatives(self, pool)
