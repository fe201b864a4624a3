"""Health of a pretraining run from its embeddings alone, and a verdict in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this share of the ideal spread, embeddings have collapsed to (nearly) one point.
COLLAPSED_STD = 0.3
# Below this share of the dimensions, they lie in a thin subspace.
THIN_RANK = 0.1
# From this share on an epoch without any gap has had time to learn.
LATE = 0.3


@dataclass(frozen=True)
class Health:
    """Measures on a fixed probe of two views a sample.

    Attributes:
        std: mean standard deviation of unit embeddings over their dimensions.
        ideal_std: what an even spread over the sphere gives, 1/sqrt(D).
        rank: RankMe, the effective number of dimensions in use.
        dimensions: D, or the number of samples where that is smaller.
        alignment: mean squared distance of the two views of a sample; 0 is perfect.
        uniformity: log mean Gaussian potential; 0 collapsed, about -4 evenly spread.
        gap: mean cosine of positive pairs minus that of negative pairs.
        auc: chance that a positive pair is more alike than a negative one.
    """

    std: float
    ideal_std: float
    rank: float
    dimensions: int
    alignment: float
    uniformity: float
    gap: float
    auc: float

    @property
    def collapsed(self) -> bool:
        """Whether the embeddings carry next to no information."""
        healthy = (
            self.std >= COLLAPSED_STD * self.ideal_std and self.rank >= THIN_RANK * self.dimensions
        )
        return not healthy

    def verdict(self, progress: float = 1.0) -> str:
        """Return state, cause and advice in one sentence.

        Args:
            progress: share of the training that is done; early runs get time.
        """
        if not math.isfinite(self.std):
            return "broken: embeddings are not finite; lower --lr"
        if self.std < COLLAPSED_STD * self.ideal_std:
            return (
                f"collapsed: all images get nearly the same embedding (std {self.std:.4f}, "
                f"{self.ideal_std:.4f} is ideal); lower --lr, or check that the views differ"
            )
        if self.rank < THIN_RANK * self.dimensions:
            return (
                f"thin: only {self.rank:.1f} of {self.dimensions} dimensions are in use; lower "
                "--lr, or raise --temperature where the method has one"
            )
        if self.gap < 0.05 and progress > LATE:
            return (
                "not learning: views of one image are no more alike than views of two; raise --lr, "
                "train longer, or soften the views (--scale_min, --noise_sigma)"
            )
        return (
            f"healthy: {self.rank:.0f} of {self.dimensions} dimensions in use, positives "
            f"{self.gap:.2f} closer than negatives"
        )


def examine(embeddings: Tensor) -> Health:
    """Return the health of embeddings (2N, D), rows of the first views first."""
    unit = F.normalize(embeddings.detach().double(), dim=1)
    if not bool(unit.isfinite().all()):
        # The spectrum of such a matrix is not defined; every measure says so.
        lost = math.nan
        return Health(
            lost, 1 / math.sqrt(unit.shape[1]), lost, min(unit.shape), lost, lost, lost, lost
        )
    first, second = unit.chunk(2)
    separation = gap(first, second)
    return Health(
        std=float(std(unit)),
        ideal_std=1 / math.sqrt(unit.shape[1]),
        rank=float(rankme(unit)),
        dimensions=min(unit.shape),
        alignment=float(alignment(first, second)),
        uniformity=float(uniformity(first)),
        gap=float(separation[0]),
        auc=float(separation[1]),
    )


def std(z: Tensor) -> Tensor:
    """Return the mean over dimensions of the (unbiased) std of normalised rows, (N, D) to ()."""
    return F.normalize(z, dim=1).std(dim=0).mean()


def rankme(z: Tensor) -> Tensor:
    """RankMe, Eq. 1 of Garrido et al. 2023 (arXiv:2210.02885): exp of the spectrum's entropy.

    Args:
        z: (N, D), neither centred nor normalised here.
    """
    values = torch.linalg.svdvals(z)
    p = values / values.sum() + 1e-7
    return torch.exp(-(p * p.log()).sum())


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, Wang & Isola 2020 (arXiv:2005.10242)."""
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Log mean of exp(-2 d^2) over pairs, Wang & Isola 2020 (arXiv:2005.10242)."""
    return torch.pdist(F.normalize(x, dim=1)).square().mul(-2).exp().mean().log()


def gap(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return positive-negative gap, AUC and top-1 of the cross-view cosines of (N, D) views."""
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    positive = cosines.diagonal().contiguous()
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    negative = cosines[off]
    order = negative.sort().values
    below = torch.searchsorted(order, positive)
    upto = torch.searchsorted(order, positive, right=True)
    auc = (below + upto).double().mean() / 2 / max(len(order), 1)
    top1 = (cosines.argmax(1) == torch.arange(len(x), device=x.device)).double().mean()
    return positive.mean() - negative.mean(), auc, top1
