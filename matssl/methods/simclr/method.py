"""SimCLR: Chen et al. 2020 (arXiv:2002.05709)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import nt_xent
from matssl.methods.simclr.settings import SimCLRSettings
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import projector


class SimCLR(SSLMethod):
    """Pooled features of two views, a projection head, NT-Xent over the batch."""

    Settings = SimCLRSettings

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: SimCLRSettings,
    ) -> None:
        super().__init__(encoder, in_channels, mean, std)
        width = stage_channels(encoder)[-1]
        self.settings = settings
        self.projector = projector(
            width, settings.hidden_dim or width, settings.global_output_dim, last_shift=False
        )

    def embed(self, x: Tensor) -> Tensor:
        """Return the projection of normalised views, (B, C, H, W) to (B, D)."""
        return self.projector(average(pyramid(self.encoder, x)[-1]))

    def forward(self, batch: Batch) -> Losses:
        """Return NT-Xent of the two views; BN statistics are over both, as in the paper."""
        views = torch.cat([self.normalise(view) for view in batch.views])
        first, second = self.embed(views).chunk(2)
        group = batch.group if self.settings.group_negatives == "drop" else None
        loss = nt_xent(first, second, self.settings.temperature, group)
        embeddings = torch.cat([first, second]).detach()
        return Losses(loss, {"nt_xent": loss.detach()}, embeddings)
