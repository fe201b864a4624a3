"""Loss terms for rare and thin classes: pure functions of probabilities and class indices.

Each is added to another loss in :mod:`matssl.models.losses`. Pixels that are not labelled count for
nothing; a class that is absent from the batch has no term.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matssl.core import geometry
from matssl.core.arrays import Array
from matssl.core.labels import IGNORE

# Halvings of width that a skeleton is found by: lines of up to twice so many pixels.
SKELETON = 10


def tversky(
    chance: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.0
) -> Tensor:
    """Tversky loss, Salehi et al. 2017 (arXiv:1706.05721); with gamma above 1 the focal one.

    ``TI = TP / (TP + alpha FP + beta FN)`` of each class, sums over all pixels of the batch; the
    mean of ``(1 - TI)^(1 / gamma)`` over the classes that are present (Abraham and Khan 2018,
    arXiv:1810.07842, equation 4). Alpha and beta of 0.5 give Dice.

    Args:
        chance: probabilities (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
        alpha: weight of false positives.
        beta: weight of false negatives; the larger, the more of a rare class is found.
        gamma: 1, or above to look at the classes that are found worst.
    """
    p, t = _parts(chance, target)
    found, truth = (p * t).sum(dim=(0, 2, 3)), t.sum(dim=(0, 2, 3))
    false, missed = p.sum(dim=(0, 2, 3)) - found, truth - found
    index = found / (found + alpha * false + beta * missed).clamp_min(1e-7)
    present = truth > 0
    if not present.any():
        return chance.sum() * 0
    lost = (1 - index[present]).clamp_min(1e-7 if gamma != 1 else 0.0)
    return (lost ** (1 / gamma)).mean()


def boundary(chance: Tensor, target: Tensor) -> Tensor:
    """Boundary loss, Kervadec et al. 2019 (arXiv:1812.07032), equation 5, in pixels.

    Mean over labelled pixels of ``phi (p - t)``, where phi is the distance to the true boundary of
    a class, negative inside it; mean over the classes that are present. The published term
    ``phi p`` differs by a constant: here it is 0 where nothing is wrong, and never below.

    Args:
        chance: probabilities (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
    """
    p, t = _parts(chance, target)
    present = t.sum(dim=(0, 2, 3)) > 0
    if not present.any():
        return chance.sum() * 0
    truth = target.cpu().numpy()
    maps = np.stack([distances(one, chance.shape[1]) for one in truth])
    phi = torch.from_numpy(maps).to(chance.device, chance.dtype)
    summed = (phi * (p - t)).sum(dim=(0, 2, 3)) / (target != IGNORE).sum()
    return summed[present].mean()


def distances(target: Array, num_classes: int) -> Array:
    """Return signed distances to the boundary of each class, float32 (C, H, W), in pixels.

    As the authors' code has it: outside the distance to the nearest pixel of the class; inside
    minus the one to the nearest pixel of another, plus 1, so that it is 0 along the boundary. A
    class that is absent, or alone, has 0; so have pixels that are not labelled.

    Args:
        target: (H, W), class indices or 255.
        num_classes: C.
    """
    result = np.zeros((num_classes, *target.shape), np.float32)
    known = target != IGNORE
    for index in range(num_classes):
        inside, outside = target == index, known & (target != index)
        if not inside.any() or not outside.any():
            continue
        away, deep = geometry.distances(~inside), geometry.distances(~outside)
        result[index] = away * outside - (deep - 1) * inside
    return result


def cldice(chance: Tensor, target: Tensor, iterations: int = SKELETON) -> Tensor:
    """Soft clDice, Shit et al. 2021 (arXiv:2003.07311), algorithms 1 and 2, of the rare classes.

    ``1 - 2 P S / (P + S)``: P is the share of the predicted skeleton that lies in the true class, S
    the share of the true skeleton that is predicted, so that a line is not torn. Mean over the
    classes that hold less than their even share of the batch: wide ones have no skeleton to keep.

    Args:
        chance: probabilities (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
        iterations: of the skeleton.
    """
    p, t = _parts(chance, target)
    truth = t.sum(dim=(0, 2, 3))
    rare = (truth > 0) & (truth * (truth > 0).sum() < truth.sum())
    if not rare.any():
        return chance.sum() * 0
    p, t = p[:, rare], t[:, rare]
    over = (0, 2, 3)
    bones = skeleton(p, iterations)
    with torch.no_grad():
        true_bones = skeleton(t, iterations)
    precise = ((bones * t).sum(dim=over) + 1) / (bones.sum(dim=over) + 1)
    sensitive = ((true_bones * p).sum(dim=over) + 1) / (true_bones.sum(dim=over) + 1)
    return (1 - 2 * precise * sensitive / (precise + sensitive)).mean()


def skeleton(image: Tensor, iterations: int) -> Tensor:
    """Return the soft skeleton of maps (B, C, H, W) between 0 and 1: what openings take away.

    Args:
        image: probabilities or a mask.
        iterations: erosions; parts wider than twice so many pixels keep no middle line.
    """
    bones = F.relu(image - _opened(image))
    for _ in range(iterations):
        image = _eroded(image)
        more = F.relu(image - _opened(image))
        bones = bones + F.relu(more - bones * more)
    return bones


def _eroded(image: Tensor) -> Tensor:
    rows = -F.max_pool2d(-image, (3, 1), 1, (1, 0))
    return torch.minimum(rows, -F.max_pool2d(-image, (1, 3), 1, (0, 1)))


def _opened(image: Tensor) -> Tensor:
    return F.max_pool2d(_eroded(image), 3, 1, 1)


def _parts(chance: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and classes (B, C, H, W), 0 where nothing is labelled."""
    known = target != IGNORE
    t = F.one_hot(target.masked_fill(~known, 0), chance.shape[1]).movedim(-1, 1).to(chance.dtype)
    return chance * known[:, None], t * known[:, None]
