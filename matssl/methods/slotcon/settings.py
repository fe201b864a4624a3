"""Settings of SlotCon."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import flag
from matssl.methods import settings as shared
from matssl.methods.settings import GROUP, MethodSettings, PoolFacts


@dataclass(frozen=True, repr=False, eq=False)
class SlotConSettings(MethodSettings):
    """Settings of SlotCon; a hidden width of None is 4096, as in the paper.

    Ours are ``dense_stage``, the finest stage whose cells are grouped (the deeper ones are laid on
    its grid; 4 is the paper's), and ``group_negatives``.
    """

    prototypes: int = flag(
        256, GROUP, "number of prototypes, 8 to 32 for phases", low=2, high=shared.WIDEST
    )
    group_loss_weight: float = flag(0.5, GROUP, "share of the grouping loss", low=0, high=1)
    teacher_temperature: float = flag(
        0.07, GROUP, "temperature of the teacher's assignment", above=0, high=1000
    )
    student_temperature: float = flag(
        0.1, GROUP, "temperature of the student's assignment", above=0, high=1000
    )
    center_momentum: float = flag(0.9, GROUP, "how slowly the centre follows", low=0, below=1)
    temperature: float = shared.temperature(0.2)
    global_output_dim: int = shared.global_output_dim(256)
    hidden_dim: int | None = shared.hidden_dim()
    dense_stage: int = shared.dense_stage()
    ema_momentum: float = shared.ema_momentum(0.99)
    ema_schedule: str = shared.ema_schedule("cosine")
    group_negatives: str = shared.group_negatives()

    def resolved(self, pool: PoolFacts) -> tuple[SlotConSettings, tuple[str, ...]]:
        """Return the settings with the negatives that the pool allows."""
        return shared.negatives(self, pool)
