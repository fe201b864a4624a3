"""Settings of VICReg."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import flag
from matssl.methods import settings as shared
from matssl.methods.settings import GROUP, MethodSettings


@dataclass(frozen=True, repr=False, eq=False)
class VICRegSettings(MethodSettings):
    """Settings of VICReg; a hidden width of None is 8192, as in the paper."""

    invariance_weight: float = flag(
        25.0, GROUP, "weight of the distance of the two views", low=0, high=1e6
    )
    variance_weight: float = flag(
        25.0, GROUP, "weight of what lacks of a spread of 1 in each dimension", low=0, high=1e6
    )
    covariance_weight: float = flag(
        1.0, GROUP, "weight of the covariances of two dimensions", low=0, high=1e6
    )
    global_output_dim: int = shared.global_output_dim(8192)
    hidden_dim: int | None = shared.hidden_dim()
