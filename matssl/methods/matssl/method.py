"""MatSSL: contrastive learning on gated features of all stages (arXiv:2507.18184)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import nt_xent
from matssl.methods.matssl.settings import MatSSLSettings
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import projector


class GatedFusion(nn.Module):
    """Concatenates the pooled stages, each channel times the sigmoid of its learned gate.

    The gates do not depend on the input. They start at 1, a factor of sigmoid(1) = 0.731.
    """

    def __init__(self, channels: Sequence[int], standardise: bool = False) -> None:
        super().__init__()
        self.gates = nn.ParameterList([nn.Parameter(torch.ones(c)) for c in channels])
        self.standardise = standardise

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, sum of C_s) of the stages' maps (B, C_s, H_s, W_s)."""
        pooled = [average(stage) for stage in maps]
        if self.standardise:
            pooled = [F.layer_norm(p, p.shape[1:]) for p in pooled]
        gated = [p * gate.sigmoid() for p, gate in zip(pooled, self.gates, strict=True)]
        return torch.cat(gated, dim=1)


class MatSSL(SSLMethod):
    """Gated fusion of the four pooled stages, a projection head, NT-Xent over the batch.

    The direct path of the gradient to the shallow stages is what the skips of a U-Net profit from.
    """

    Settings = MatSSLSettings

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: MatSSLSettings,
    ) -> None:
        super().__init__(encoder, in_channels, mean, std)
        channels = stage_channels(encoder)
        self.settings = settings
        self.fusion = GatedFusion(channels, settings.standardise_stages)
        hidden = settings.hidden_dim or 2048
        self.projector = projector(sum(channels), hidden, settings.global_output_dim)

    def embed(self, x: Tensor) -> Tensor:
        """Return the projection of normalised views, (B, C, H, W) to (B, D)."""
        return self.projector(self.fusion(pyramid(self.encoder, x)))

    def forward(self, batch: Batch) -> Losses:
        """Return NT-Xent of the two views; each view has its own BN statistics, as published."""
        first, second = (self.embed(self.normalise(view)) for view in batch.views)
        group = batch.group if self.settings.group_negatives == "drop" else None
        loss = nt_xent(first, second, self.settings.temperature, group)
        embeddings = torch.cat([first, second]).detach()
        parts = {"nt_xent": loss.detach()}
        for stage, gate in enumerate(self.fusion.gates, start=1):
            parts[f"gate{stage}"] = gate.detach().sigmoid().mean()
        return Losses(loss, parts, embeddings)
