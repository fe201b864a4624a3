"""Segmentation losses: pure functions of logits and class indices, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.labels import IGNORE
from matssl.models import thin_losses
from matssl.models.classic_unet import ClassicUnetEncoder
from matssl.models.small_unet import SmallUnetEncoder

# Gamma of the focal Tversky loss, as published.
FOCAL_GAMMA = 4 / 3


def dice(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Soft Dice loss, Milletari et al. 2016 (arXiv:1606.04797), for many classes.

    ``1 - 2 sum(p t) / (sum p + sum t)``, sums over all pixels of the batch, mean over the classes
    that are present in the batch: an absent class has no overlap to speak of.

    Args:
        logits: (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
        weight: not used; here for a common signature.
    """
    return _dice(_full(logits).softmax(dim=1), target)


def _dice(chance: Tensor, target: Tensor) -> Tensor:
    """Return the Dice loss of probabilities (B, C, H, W), see :func:`dice`."""
    known = target != IGNORE
    p = chance * known[:, None]
    t = F.one_hot(target.masked_fill(~known, 0), chance.shape[1]).movedim(-1, 1).to(p.dtype)
    t = t * known[:, None]
    overlap = (p * t).sum(dim=(0, 2, 3))
    truth = t.sum(dim=(0, 2, 3))
    size = p.sum(dim=(0, 2, 3)) + truth
    scores = 2 * overlap / size.clamp_min(1e-7)
    present = truth > 0
    if not present.any():
        return chance.sum() * 0
    return 1 - scores[present].mean()


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, mean over the pixels that count (weighted mean with class weights).

    Args:
        logits: (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
        weight: float (C,), of the classes.
        smoothing: share of the target that is spread over all classes (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
    """
    known = target != IGNORE
    if not known.any():
        return _full(logits).sum() * 0
    # The mean is taken here: torch's own adds in no fixed order on a GPU, so --deterministic
    # would refuse it.
    losses = F.cross_entropy(
        _full(logits),
        target,
        weight=weight,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=smoothing,
    )
    scale = known.sum() if weight is None else weight[target[known]].sum()
    return losses.sum() / scale


def dice_ce(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Sum of Dice and cross-entropy, whose labels may be smoothed."""
    return dice(logits, target) + cross_entropy(logits, target, weight, smoothing)


def focal(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Focal loss, Eq. 4 of Lin et al. 2017 (arXiv:1708.02002), mean over the pixels that count.

    Args:
        logits: (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
        weight: float (C,), of the classes.
        gamma: how much sure pixels are left out.
    """
    known = target != IGNORE
    if not known.any():
        return _full(logits).sum() * 0
    losses = F.cross_entropy(_full(logits), target, ignore_index=IGNORE, reduction="none")
    factor = (1 - torch.exp(-losses)) ** gamma
    scale = known.float()
    if weight is not None:
        scale = scale * weight[target.masked_fill(~known, 0)]
    return (factor * losses * scale).sum() / scale.sum()


def bce(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each class against the others, mean over pixels and classes."""
    known = target != IGNORE
    if not known.any():
        return _full(logits).sum() * 0
    full = _full(logits)
    one_hot = F.one_hot(target.masked_fill(~known, 0), logits.shape[1]).movedim(-1, 1)
    losses = F.binary_cross_entropy_with_logits(full, one_hot.to(full.dtype), reduction="none")
    scale = known[:, None].float().expand_as(losses)
    if weight is not None:
        scale = scale * weight.view(1, -1, 1, 1)
    return (losses * scale).sum() / scale.sum()


def dice_bce(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of Dice and binary cross-entropy, both of each class against the others.

    The probabilities of both are sigmoids, a class each. Dice is pooled over the batch, so that its
    size does not change what a class weighs; a class that is absent from it has none, see
    :func:`dice`, and costs in the cross-entropy alone.
    """
    return _dice(_full(logits).sigmoid(), target) + bce(logits, target, weight)


def tversky(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    share: float = 1.0,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.0,
) -> Tensor:
    """Cross-entropy and ``share`` times the Tversky loss; alpha, beta of 0.5 give dice_ce.

    See :func:`matssl.models.thin_losses.tversky`.
    """
    term = thin_losses.tversky(_full(logits).softmax(dim=1), target, alpha, beta, gamma)
    return cross_entropy(logits, target, weight, smoothing) + share * term


# The same to the power of 3/4, as published.
focal_tversky = partial(tversky, gamma=FOCAL_GAMMA)


def boundary(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    share: float = 0.1,
    progress: float = 1.0,
) -> Tensor:
    """Dice, cross-entropy and the boundary loss, whose part rises evenly to ``share``.

    See :func:`matssl.models.thin_losses.boundary`; the authors' "increase" strategy: from afar it
    would draw everything to empty masks.

    Args:
        logits: (B, C, H, W).
        target: int64 (B, H, W); 255 counts for nothing.
        weight: float (C,), of the classes in the cross-entropy.
        smoothing: see :func:`cross_entropy`.
        share: of the boundary loss at the end.
        progress: share of the training that is over.
    """
    term = thin_losses.boundary(_full(logits).softmax(dim=1), target)
    return dice_ce(logits, target, weight, smoothing) + share * progress * term


def cldice(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    share: float = 1.0,
) -> Tensor:
    """Dice, cross-entropy and ``share`` times clDice of the rare classes.

    See :func:`matssl.models.thin_losses.cldice`.
    """
    term = thin_losses.cldice(_full(logits).softmax(dim=1), target)
    return dice_ce(logits, target, weight, smoothing) + share * term


def _full(logits: Tensor) -> Tensor:
    """Return half precision as float32: sums over a batch of pixels need it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def kernels(model: nn.Module) -> list[nn.Parameter]:
    """Return the kernels that an L2 term is taken of: of decoder, head, and an encoder of ours.

    A pretrained backbone's are none of them.

    Args:
        model: a segmentation model.
    """
    own = isinstance(model.get_submodule("encoder"), (SmallUnetEncoder, ClassicUnetEncoder))
    parts = ("decoder.", "segmentation_head.", *(("encoder.",) if own else ()))
    return [p for n, p in model.named_parameters() if p.ndim == 4 and n.startswith(parts)]


def squares(weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of some tensors, in float32."""
    return torch.stack([weight.float().square().sum() for weight in weights]).sum()


def of_probabilities(loss: str, probabilities: Tensor, target: Tensor) -> Tensor:
    """Return a loss of class probabilities instead of logits.

    What takes each class against the others takes the probabilities so; the others are functions of
    the softmax, which the logarithm of the probabilities gives back.

    Args:
        loss: a key of LOSSES.
        probabilities: (B, C, H, W), sums of 1.
        target: int64 (B, H, W), class indices or 255.
    """
    least = torch.finfo(torch.float32).tiny
    logits = probabilities.float().clamp_min(least).log()
    if loss in SIGMOIDS:
        logits = logits - (1 - probabilities.float()).clamp_min(least).log()
    return LOSSES[loss](logits, target, None)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice_ce": dice_ce,
    "dice": dice,
    "ce": cross_entropy,
    "focal": focal,
    "bce": bce,
    "dice_bce": dice_bce,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "boundary": boundary,
    "cldice": cldice,
}
# Those that change as the training goes on.
RISING = ("boundary",)
# Those that take each class against the others.
SIGMOIDS = ("bce", "dice_bce")
