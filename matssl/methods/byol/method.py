"""BYOL: Grill et al. 2020 (arXiv:2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses
from matssl.methods.byol.settings import BYOLSettings
from matssl.methods.contrastive import negative_cosine, shared_mean
from matssl.methods.momentum import MomentumMethod, slow_copy
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import byol_head


class BYOL(MomentumMethod):
    """Predicts the slow network's projection of one view from the other view; no negatives."""

    Settings = BYOLSettings

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: BYOLSettings,
    ) -> None:
        super().__init__(
            encoder, in_channels, mean, std, settings.ema_momentum, settings.ema_schedule
        )
        hidden, out = settings.hidden_dim or 4096, settings.global_output_dim
        self.settings = settings
        self.projector = byol_head(stage_channels(encoder)[-1], hidden, out)
        self.predictor = byol_head(out, hidden, out)
        self.target_encoder = slow_copy(self.encoder)
        self.target_projector = slow_copy(self.projector)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (slow copy, online network)."""
        return [(self.target_encoder, self.encoder), (self.target_projector, self.projector)]

    def project(self, view: Tensor) -> Tensor:
        """Return the online projection of uint8 views, (B, D)."""
        return self.projector(average(pyramid(self.encoder, self.normalise(view))[-1]))

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """Return the slow network's projection, with batch statistics of its own, (B, D)."""
        deep = pyramid(self.target_encoder, self.normalise(view))[-1]
        return self.target_projector(average(deep))

    def forward(self, batch: Batch) -> Losses:
        """Return the squared distances of both directions, summed: 0 to 8."""
        first, second = batch.views
        # Targets first: what they need is free again before maps wait for the way back.
        targets = [self.target(second), self.target(first)]
        projections = [self.project(first), self.project(second)]
        predictions = [self.predictor(z) for z in projections]
        distances = [negative_cosine(p, t) for p, t in zip(predictions, targets, strict=True)]
        loss = shared_mean(distances[0] + distances[1])
        return Losses(loss, {"distance": loss.detach()}, torch.cat(projections).detach())
