"""Settings of BYOL."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.methods import settings as shared
from matssl.methods.settings import MethodSettings


@dataclass(frozen=True, repr=False, eq=False)
class BYOLSettings(MethodSettings):
    """Settings of BYOL; hidden layers of 4096 as in the paper."""

    global_output_dim: int = shared.global_output_dim(256)
    hidden_dim: int | None = shared.hidden_dim()
    ema_momentum: float = shared.ema_momentum(0.99)
    ema_schedule: str = shared.ema_schedule("cosine")
