"""Settings of MatSSL."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import flag
from matssl.methods import settings as shared
from matssl.methods.settings import MethodSettings, PoolFacts


@dataclass(frozen=True, repr=False, eq=False)
class MatSSLSettings(MethodSettings):
    """Settings of MatSSL.

    ``standardise_stages`` is ours: stages differ in activation scale and nothing in the published
    method equalises them.
    """

    temperature: float = shared.temperature(0.07)
    global_output_dim: int = shared.global_output_dim(128)
    hidden_dim: int | None = shared.hidden_dim()
    group_negatives: str = shared.group_negatives()
    standardise_stages: bool = flag(
        False, shared.GROUP, "bring the pooled stages to one scale before the gates"
    )

    def resolved(self, pool: PoolFacts) -> tuple[MatSSLSettings, tuple[str, ...]]:
        """Return the settings with the negatives that the pool allows."""
        return shared.negatives(self, pool)
