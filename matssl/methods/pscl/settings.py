"""Settings of PSCL, of both variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from matssl.core.flags import Problem, flag
from matssl.decoders import DECODERS, described
from matssl.methods import settings as shared
from matssl.methods.settings import GROUP, GuidedSettings, PoolFacts

# Where nothing says how many classes the labelled images have.
CLASSES = 4
FINE = tuple(name for name, decoder in DECODERS.items() if decoder.fine)
Settings = TypeVar("Settings", bound="PSCLSettings")


@dataclass(frozen=True, repr=False, eq=False)
class PSCLSettings(GuidedSettings):
    """What both variants share; ``num_classes`` is that of the labelled images."""

    global_local_ratio: float = flag(0.7, GROUP, "share of the patch loss", low=0, high=1)
    top_k: int | None = flag(
        None,
        GROUP,
        "cells a class and image at the coarsest scale",
        auto="as published",
        low=1,
        high=shared.WIDEST,
    )
    sample_ratio: float = flag(
        2.0,
        GROUP,
        "cells a class at each finer scale over those of the one before",
        above=0,
        high=1024,
    )
    decoder: str = flag(
        "unet",
        GROUP,
        f"the decoder that is trained with the encoder and kept. {described(FINE)}",
        choices=FINE,
    )
    num_classes: int = CLASSES

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        wrong = super().problems(batch_size)
        if self.global_local_ratio == 0:
            told = (
                "--global_local_ratio 0 leaves out the patch loss, and with it labels and decoder; "
                "take --model simclr or mocov2 instead"
            )
            wrong.append(Problem(told, ("global_local_ratio",)))
        return wrong

    def guided(self: Settings, pool: PoolFacts) -> Settings:
        """Return the settings with the number of classes of the labelled images."""
        if pool.num_classes is None:
            return self
        changed: dict[str, Any] = {"num_classes": pool.num_classes}
        return replace(self, **changed)


@dataclass(frozen=True, repr=False, eq=False)
class PSCLSimCLRSettings(PSCLSettings):
    """Settings of PSCL-SimCLR; ``top_k`` is 4 and ``hidden_dim`` 128 where None, as published.

    ``group_negatives`` is ours, and concerns the loss of whole images.
    """

    temperature: float = shared.temperature(0.5)
    global_output_dim: int = shared.global_output_dim(64)
    dense_output_dim: int = shared.dense_output_dim(64)
    hidden_dim: int | None = shared.hidden_dim()
    group_negatives: str = shared.group_negatives()

    def resolved(self, pool: PoolFacts) -> tuple[PSCLSimCLRSettings, tuple[str, ...]]:
        """Return the settings with the classes of its guides and the negatives of the pool."""
        return shared.negatives(self.guided(pool), pool)
