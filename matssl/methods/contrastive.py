"""Contrastive losses as pure functions, in float32 and over all processes.

Suffixes: B samples on this process, N samples on all of them, D width of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Stacks the rows of all processes; the gradient of every process's loss comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Each process computes the whole loss; the sum, after DDP's mean, is its gradient once.
        total = gradient.clone()
        dist.all_reduce(total)
        start = dist.get_rank() * int(ctx.rows)
        return total[start : start + int(ctx.rows)]


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes, (B, ...) to (N, ...), with gradient; alone: ``x``."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def nt_xent(
    first_BD: Tensor,
    second_BD: Tensor,
    temperature: float,
    group_B: Tensor | None = None,
) -> Tensor:
    """NT-Xent, Eq. 1 of Chen et al. 2020 (arXiv:2002.05709), mean over all 2N rows.

    The positive of a row is the other view of its sample; all other rows are its negatives.

    Args:
        first_BD: embeddings of the first views, any length; normalised here.
        second_BD: embeddings of the second views.
        temperature: of the softmax.
        group_B: where given, rows of the same group are no negatives of each other. A row that
            keeps no negative contributes 0.

    Returns:
        Scalar, at least float32, the same on all processes.

    Raises:
        ValueError: the views differ in shape.
    """
    if first_BD.shape != second_BD.shape:
        raise ValueError(f"views of shapes {tuple(first_BD.shape)} and {tuple(second_BD.shape)}")
    dtype = torch.promote_types(first_BD.dtype, torch.float32)
    with torch.autocast(first_BD.device.type, enabled=False):
        first_ND = gather(F.normalize(first_BD.to(dtype), dim=1, eps=1e-12))
        second_ND = gather(F.normalize(second_BD.to(dtype), dim=1, eps=1e-12))
        rows_MD = torch.cat([first_ND, second_ND])
        count = len(first_ND)
        logits_MM = rows_MD @ rows_MD.T / temperature
        drop_MM = torch.eye(2 * count, dtype=torch.bool, device=rows_MD.device)
        positive_M = torch.arange(2 * count, device=rows_MD.device).roll(count)
        if group_B is not None:
            group_M = gather(group_B).repeat(2)
            same_MM = group_M[:, None] == group_M[None]
            same_MM[torch.arange(2 * count, device=same_MM.device), positive_M] = False
            drop_MM = drop_MM | same_MM
        logits_MM = logits_MM.masked_fill(drop_MM, float("-inf"))
        return F.cross_entropy(logits_MM, positive_M)


# Blocks of logits that InfoNCE holds, whatever the numbers of rows and negatives: 4 MB in float32,
# which a CPU's cache holds; a GPU wants fewer and larger ones.
ROWS_AT_ONCE = 1024
NEGATIVES_AT_ONCE = {"cpu": 1024, "cuda": 16_384}


class _RowsInfoNCE(torch.autograd.Function):
    """InfoNCE of each row and its gradient, a block of logits at a time.

    Keys and negatives have no gradient, so that of the queries is known as soon as the softmax is:
    it is kept instead of the logits, which would take R x K numbers until the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_RD: Tensor,
        key_RD: Tensor,
        negatives_KD: Tensor,
        temperature: float,
        query_group_R: Tensor | None,
        negative_group_K: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return loss (R,) and whether the positive is the nearest, bool (R,)."""
        count = len(query_RD)
        loss_R, gradient_RD = query_RD.new_empty(count), torch.empty_like(query_RD)
        hit_R = torch.empty(count, dtype=torch.bool, device=query_RD.device)
        step = NEGATIVES_AT_ONCE.get(query_RD.device.type, NEGATIVES_AT_ONCE["cpu"])
        for start in range(0, count, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            # Scaled here, the logits need no pass of their own for the temperature.
            query, key = query_RD[part] / temperature, key_RD[part]
            positive = (query * key).sum(1)
            # The positive is the first logit of a running softmax over the blocks of negatives.
            top, total = positive, torch.ones_like(positive)
            pull = torch.zeros_like(key)
            hit = torch.ones_like(positive, dtype=torch.bool)
            for first in range(0, len(negatives_KD), step):
                block = slice(first, first + step)
                negatives = negatives_KD[block]
                logits = query @ negatives.T
                if query_group_R is not None and negative_group_K is not None:
                    same = query_group_R[part, None] == negative_group_K[None, block]
                    logits.masked_fill_(same, float("-inf"))
                nearest = logits.amax(1)
                hit &= positive >= nearest
                higher = torch.maximum(top, nearest)
                shrink = (top - higher).exp_()
                weight = logits.sub_(higher[:, None]).exp_()
                total = total * shrink + weight.sum(1)
                pull = torch.addmm(pull * shrink[:, None], weight, negatives)
                top = higher
            own = (positive - top).exp_() / total
            loss_R[part] = top + total.log() - positive
            hit_R[part] = hit
            gradient_RD[part] = (pull / total[:, None] + (own - 1)[:, None] * key) / temperature
        ctx.save_for_backward(gradient_RD)
        ctx.mark_non_differentiable(hit_R)
        return loss_R, hit_R

    @staticmethod
    def backward(ctx: Any, gradient_R: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the queries."""
        (gradient_RD,) = ctx.saved_tensors
        return gradient_RD * gradient_R[:, None], None, None, None, None, None


def info_nce_rows(
    query_RD: Tensor,
    key_RD: Tensor,
    negatives_KD: Tensor,
    temperature: float,
    query_group_R: Tensor | None = None,
    negative_group_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of each query, Eq. 1 of He et al. 2020 (arXiv:1911.05722), in bounded memory.

    Args:
        query_RD: queries; normalised here, with gradient.
        key_RD: the positive key of each query; normalised here, without gradient.
        negatives_KD: unit rows, without gradient; there may be none.
        temperature: of the softmax.
        query_group_R: with ``negative_group_K``: negatives of the query's own group are left out.
            A row that keeps no negative has loss 0.
        negative_group_K: the group of each negative.

    Returns:
        Loss (R,), at least float32; whether the positive is nearer than all negatives, bool (R,).
    """
    dtype = torch.promote_types(query_RD.dtype, torch.float32)
    with torch.autocast(query_RD.device.type, enabled=False):
        query_RD = F.normalize(query_RD.to(dtype), dim=1, eps=1e-12)
        key_RD = F.normalize(key_RD.detach().to(dtype), dim=1, eps=1e-12)
        negatives_KD = negatives_KD.detach().to(dtype)
        result: tuple[Tensor, Tensor] = _RowsInfoNCE.apply(  # type: ignore[no-untyped-call]
            query_RD, key_RD, negatives_KD, temperature, query_group_R, negative_group_K
        )
    return result


def negative_cosine(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, Eq. 2 of Grill et al. 2020 (arXiv:2006.07733).

    Args:
        prediction_BD: with gradient; normalised here.
        target_BD: without gradient; normalised here.

    Returns:
        (B,), at least float32, from 0 to 4.
    """
    dtype = torch.promote_types(prediction_BD.dtype, torch.float32)
    prediction_BD = F.normalize(prediction_BD.to(dtype), dim=1, eps=1e-12)
    target_BD = F.normalize(target_BD.detach().to(dtype), dim=1, eps=1e-12)
    return 2 - 2 * (prediction_BD * target_BD).sum(1)


class _SharedMean(torch.autograd.Function):
    """The mean of a scalar over all processes; each keeps the gradient of its own, for DDP."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        total = x * share
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (share,) = ctx.saved_tensors
        return gradient * share, None


def shared_mean(values_R: Tensor) -> Tensor:
    """Return the mean of all rows of all processes, the same on each; 0 where there are none.

    The gradient is such that DDP's mean over the processes is that of the whole batch, also where
    the processes have different numbers of rows.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return values_R.mean() if len(values_R) else values_R.sum()
    count = torch.tensor(float(len(values_R)), dtype=values_R.dtype, device=values_R.device)
    everyone = count.clone()
    dist.all_reduce(everyone)
    share = count * dist.get_world_size() / everyone.clamp(min=1)
    own = values_R.mean() if len(values_R) else values_R.sum()
    result: Tensor = _SharedMean.apply(own, share)  # type: ignore[no-untyped-call]
    return result


def gather_in_order(x: Tensor) -> Tensor:
    """Return the rows of all processes in the order one process would have, without gradient.

    The loader deals the samples of a batch out like cards: process r has r, r + W, r + 2 W ...
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)
