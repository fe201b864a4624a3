"""VICReg: Bardes et al. 2022 (arXiv:2105.04906), neither negatives nor a second network.

Suffixes: N samples on all processes, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import gather
from matssl.methods.vicreg.settings import VICRegSettings
from matssl.models.encoders import average, pyramid, stage_channels

# Published width of the expander's layers.
WIDTH = 8192
# Added to a variance before its root, as published.
EPS = 1e-4


def expander(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return two times Linear - BN - ReLU, then Linear without bias; 4.2 of the paper."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


def variance(rows_ND: Tensor) -> Tensor:
    """Return what lacks of a standard deviation of 1, mean over the dimensions; Eq. 1.

    Args:
        rows_ND: embeddings; their variance is the unbiased one.
    """
    return F.relu(1 - rows_ND.var(0).add(EPS).sqrt()).mean()


def covariance(rows_ND: Tensor) -> Tensor:
    """Return the squared covariances of different dimensions over D, summed; Eq. 3 and 4."""
    centred = rows_ND - rows_ND.mean(0)
    matrix_DD = centred.T @ centred / (len(rows_ND) - 1)
    # All squares less those of the diagonal: no copy of D x D numbers without it.
    squares = matrix_DD.square().sum() - matrix_DD.diagonal().square().sum()
    return squares / rows_ND.shape[1]


class VICReg(SSLMethod):
    """Views of one image meet; each dimension keeps its spread and tells what no other does."""

    Settings = VICRegSettings

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: VICRegSettings,
    ) -> None:
        super().__init__(encoder, in_channels, mean, std)
        self.settings = settings
        self.expander = expander(
            stage_channels(encoder)[-1], settings.hidden_dim or WIDTH, settings.global_output_dim
        )

    def embed(self, view: Tensor) -> Tensor:
        """Return the expanded features of uint8 views, (B, D)."""
        return self.expander(average(pyramid(self.encoder, self.normalise(view))[-1]))

    def forward(self, batch: Batch) -> Losses:
        """Return the weighted sum of the three terms over the samples of all processes; Eq. 6.

        As in the published code the variance of the two views is averaged and their covariance
        summed. BatchNorm sees one view at a time.
        """
        settings = self.settings
        first, second = (self.embed(view) for view in batch.views)
        dtype = torch.promote_types(first.dtype, torch.float32)
        with torch.autocast(first.device.type, enabled=False):
            first_ND, second_ND = (gather(rows.to(dtype)) for rows in (first, second))
            apart = F.mse_loss(first_ND, second_ND)
            spread = (variance(first_ND) + variance(second_ND)) / 2
            related = covariance(first_ND) + covariance(second_ND)
            loss = (
                settings.invariance_weight * apart
                + settings.variance_weight * spread
                + settings.covariance_weight * related
            )
        parts = {"invariance": apart, "variance": spread, "covariance": related}
        embeddings = torch.cat([first, second]).detach()
        return Losses(loss, {name: value.detach() for name, value in parts.items()}, embeddings)
