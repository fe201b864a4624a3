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
            same_MM[torch.arange(2 * count), positive_M] = False
            drop_MM = drop_MM | same_MM
        logits_MM = logits_MM.masked_fill(drop_MM, float("-inf"))
        return F.cross_entropy(logits_MM, positive_M)


def info_nce(query_BD: Tensor, key_BD: Tensor, negatives_KD: Tensor, temperature: float) -> Tensor:
    """InfoNCE, Eq. 1 of He et al. 2020 (arXiv:1911.05722), mean over the queries.

    Args:
        query_BD: queries; normalised here, with gradient.
        key_BD: the positive key of each query; normalised, without gradient.
        negatives_KD: unit rows, without gradient.
        temperature: of the softmax.

    Returns:
        Scalar, at least float32.
    """
    dtype = torch.promote_types(query_BD.dtype, torch.float32)
    with torch.autocast(query_BD.device.type, enabled=False):
        query_BD = F.normalize(query_BD.to(dtype), dim=1, eps=1e-12)
        key_BD = F.normalize(key_BD.detach().to(dtype), dim=1, eps=1e-12)
        positive_B1 = (query_BD * key_BD).sum(1, keepdim=True)
        negative_BK = query_BD @ negatives_KD.detach().to(dtype).T
        logits = torch.cat([positive_B1, negative_BK], dim=1) / temperature
        target_B = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, target_B)
