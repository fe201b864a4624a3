"""Phases without labels: prototypes joined, features clustered, borders drawn where one sees them.

Suffixes: K prototypes or clusters, N phases, D width of a feature, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.arrays import roomy, variance

Floats = NDArray[np.float32]
# Rows of an image that are smoothed at once; more would only hold more memory.
STRIP = 1024
# Of images wider than 8192 the strips are lower: the filter holds a dozen copies of one.
STRIP_PIXELS = 1 << 23
# Of N phases none should be rarer than this part of 1 / N.
EVEN_SHARE = 0.1
# Share of the micrograph's variance below which grey levels are no border for the smoothing.
FLATNESS = 0.2


class JoinedPrototypes(nn.Module):
    """Log probability of each phase at each pixel: its prototypes' shares, added.

    Attributes:
        phase: int64 (K,), the phase of each prototype.
        multiple: of the sides of its input, for tiles.
    """

    phase: Tensor

    def __init__(
        self,
        scores: Callable[[Tensor], Tensor],
        phase: NDArray[np.int64],
        temperature: float,
        multiple: int,
    ) -> None:
        """Wrap a network.

        Args:
            scores: (B, C, H, W) to cosines with the prototypes (B, K, h, w).
            phase: of each prototype, 0 to N - 1, every one of them at least once.
            temperature: of the softmax over the prototypes.
            multiple: of the sides of its input.
        """
        super().__init__()
        self.scores, self.temperature, self.multiple = scores, temperature, multiple
        self.register_buffer("phase", torch.from_numpy(phase))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, H, W) of a network's input (B, C, H, W)."""
        scores = self.scores(x).float()
        fine = F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)
        shares = (fine / self.temperature).softmax(1)
        total = shares.new_zeros(len(x), int(self.phase.max()) + 1, *x.shape[-2:])
        return total.index_add_(1, self.phase.to(x.device), shares).clamp_min(1e-12).log()


class NearestCentre(nn.Module):
    """Logits of the clusters of features: the log density of equal round clusters.

    Attributes:
        centres: (N, D).
        multiple: of the sides of its input, for tiles.
    """

    centres: Tensor

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        centres: Floats,
        variance: float,
        multiple: int,
    ) -> None:
        """Wrap a network.

        Args:
            features: (B, C, H, W) to (B, D, h, w).
            centres: (N, D).
            variance: mean squared distance of a feature from its own centre.
            multiple: of the sides of its input.
        """
        super().__init__()
        self.features, self.variance, self.multiple = features, variance, multiple
        self.register_buffer("centres", torch.from_numpy(centres))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, H, W) of a network's input (B, C, H, W)."""
        centres = self.centres.to(x.device)
        features = self.features(x).float()
        # The length of the feature is common to all clusters, so the rest is linear in it.
        logits = torch.einsum("nd,bdhw->bnhw", centres, features)
        logits = logits - 0.5 * centres.square().sum(1)[:, None, None]
        fine = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return fine / max(self.variance, 1e-12)


def join(
    alike_KK: NDArray[np.float64], won_K: NDArray[np.float64], least: float, count: int | None
) -> NDArray[np.int64]:
    """Return the phase of each prototype, int64 (K,), the most frequent phase first.

    Two become one whose assignment is the sum of theirs: the two that compete most for the same
    cells, by the share of the smaller one's assignment that the other has at the same cells. A rare
    phase that nothing else claims stays; but what wins less than ``least``, or than a tenth of an
    even share while there are too many phases, goes first, the rarest before others.

    Args:
        alike_KK: products of the assignments of each two prototypes, summed over the cells.
        won_K: share of the cells that each prototype wins.
        least: share below which a prototype is no phase of its own.
        count: phases; None joins the rare ones only.

    Raises:
        ValueError: fewer phases are left than are wanted.
    """
    products, won = np.array(alike_KK, np.float64), np.array(won_K, np.float64)
    members = [[k] for k in range(len(products))]
    while len(members) > 1:
        # The assignments of a cell sum to 1, so that a row sums to all that its phase has.
        mass = np.maximum(products.sum(1), 1e-30)
        shared = products / np.minimum(mass, mass[:, None])
        np.fill_diagonal(shared, -np.inf)
        rare = int(won.argmin())
        enough = count is None or len(members) <= count
        if won[rare] < least or (not enough and won[rare] < EVEN_SHARE / (count or 1)):
            a, b = sorted((rare, int(shared[rare].argmax())))
        elif not enough:
            a, b = sorted(int(i) for i in np.unravel_index(shared.argmax(), shared.shape))
        else:
            break
        products[a] += products[b]
        products[:, a] += products[:, b]
        products = np.delete(np.delete(products, b, 0), b, 1)
        won[a] += won[b]
        won = np.delete(won, b)
        members[a] += members.pop(b)
    if count is not None and len(members) < count:
        raise ValueError(f"{count} phases of {len(members)} prototypes in use")
    phase = np.empty(len(alike_KK), np.int64)
    for number, place in enumerate(np.argsort(-won, kind="stable")):
        phase[members[place]] = number
    return phase


def cluster(features_RD: Floats, count: int) -> tuple[Floats, float]:
    """Return k-means centres (N, D), the largest cluster first, and the mean squared distance.

    Equal features give equal centres: the start is the same at every call.
    """
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-5)
    rows = np.ascontiguousarray(features_RD, np.float32)
    total, labels, centres = cv2.kmeans(rows, count, None, criteria, 4, cv2.KMEANS_PP_CENTERS)
    order = np.argsort(-np.bincount(labels.ravel(), minlength=count), kind="stable")
    return np.ascontiguousarray(centres[order], np.float32), float(total) / len(rows)


def label(probabilities_NHW: Floats, guide: Floats, radius: int) -> NDArray[np.uint8]:
    """Return the phase of each pixel, uint8 (H, W), smoothed up to the borders one sees.

    The probabilities go through a guided filter (He et al. 2013, doi:10.1109/TPAMI.2012.213):
    within ``radius`` pixels they are made a linear function of the micrograph, so that borders of
    phases settle on its edges and specks vanish. A majority vote over half the radius takes what is
    left.

    Args:
        probabilities_NHW: of the phases; may be memory-mapped, is not changed.
        guide: the micrograph, (H, W), on any scale.
        radius: in pixels; 0 smooths nothing.
    """
    height, width = probabilities_NHW.shape[1:]
    strip = min(STRIP, max(1, STRIP_PIXELS // width))
    result = roomy((height, width), np.uint8)
    spread = variance(guide)
    # Twice the filter, once the vote.
    margin = 3 * radius + 8
    for top in range(0, height, strip):
        first, last = max(0, top - margin), min(height, top + strip + margin)
        part = probabilities_NHW[:, first:last]
        if radius > 0:
            seen = cv2.GaussianBlur(np.ascontiguousarray(guide[first:last]), (0, 0), 1.0)
            part = _guided(part, seen, radius, FLATNESS * spread + 1e-6)
        winner = part.argmax(0).astype(np.uint8)
        if radius > 1:
            winner = _majority(winner, len(part), radius // 2)
        result[top : top + strip] = winner[top - first : top - first + strip]
    return result


def _guided(probabilities: Floats, guide: Floats, radius: int, flat: float) -> Floats:
    """Return each plane as a locally linear function of the guide (doi:10.1109/TPAMI.2012.213)."""

    def mean(plane: Any) -> Any:
        side = (2 * radius + 1, 2 * radius + 1)
        return cv2.boxFilter(plane, -1, side, borderType=cv2.BORDER_REFLECT)

    centre = mean(guide)
    variance = (mean(guide * guide) - centre * centre).clip(0) + np.float32(flat)
    result = np.empty(probabilities.shape, np.float32)
    for number, plane in enumerate(probabilities):
        plane = np.ascontiguousarray(plane)
        average = mean(plane)
        slope = (mean(plane * guide) - average * centre) / variance
        result[number] = mean(slope) * guide + mean(average - slope * centre)
    return result


def _majority(labels: NDArray[np.uint8], count: int, radius: int) -> NDArray[np.uint8]:
    """Return the most frequent label within a square about each pixel."""
    side = (2 * radius + 1, 2 * radius + 1)
    votes = [
        cv2.boxFilter((labels == n).astype(np.float32), -1, side, borderType=cv2.BORDER_REFLECT)
        for n in range(count)
    ]
    return np.stack(votes).argmax(0).astype(np.uint8)
