"""Which cells PSCL compares and how: pure functions for sampling, matching, prototypes, losses.

A cell is a place on the grid of one decoder map. Suffixes: B samples on this process, C classes,
M cells of a view, T templates (the sampled cells of the labelled view), D width of an embedding,
K rows of a queue, R rows of any number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matssl.core import geometry
from matssl.core.batch import Batch
from matssl.methods.contrastive import info_nce_rows

# Numbers in a block of similarities: 16 MB in float32 on a CPU, where a larger block would be new
# memory each time; a GPU wants fewer and larger ones.
NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}
# How quickly soft positives fade with their age in steps: those of the same production batch in
# the image loss, those of the same class, and what the same production batch adds to them.
IMAGE_DECAY, CLASS_DECAY, LOT_DECAY = 0.2, 0.2, 0.5


def at_once(device: torch.device, numbers: int) -> int:
    """Return how many pieces of so many numbers fit into a block, at least one."""
    return max(1, NUMBERS_AT_ONCE.get(device.type, NUMBERS_AT_ONCE["cpu"]) // max(1, numbers))


def pick(stage: Tensor, index_BT: Tensor) -> Tensor:
    """Return cells of a map, (B, C, S, S) to (B, T, C); an index of -1 takes any cell."""
    rows = stage.movedim(1, -1).flatten(1, 2)
    place = index_BT.clamp(min=0)[..., None].expand(-1, -1, rows.shape[2])
    return rows.gather(1, place)


def cell_pairs(batch: Batch, grid: int) -> tuple[Tensor, Tensor]:
    """Return for each cell of the first view the one of the second that shows the same place.

    Where cells of the second view are coarser, the first of those that share one keeps it: no cell
    is compared twice.

    Args:
        batch: of two square views.
        grid: cells along a side of both.

    Returns:
        int64 (B, M), -1 where there is none; bool (B, M), where there is one.
    """
    first, second = batch.maps.double().numpy()[:2]
    sizes = batch.views[0].shape[-1], batch.views[1].shape[-1]
    cells, inside = geometry.correspondence(first, second, *sizes, grid)
    device = batch.views[0].device
    index, valid = torch.from_numpy(cells).to(device), torch.from_numpy(inside).to(device)
    count = index.shape[1]
    own = torch.arange(count, device=index.device).expand_as(index)
    # Cells without a partner share a place of their own behind the others.
    place = index.where(valid, count)
    owner = torch.full_like(index[:, :1], count).repeat(1, count + 1)
    owner.scatter_reduce_(1, place, own, "amin")
    valid = valid & (owner.gather(1, place) == own)
    return index.where(valid, -1), valid


def coverage(labels_HW: Tensor, num_classes: int, grid: int) -> Tensor:
    """Return the share of each class's pixels in each cell, float32 (C, M).

    Args:
        labels_HW: uint8 classes; what is no class (255) counts as a pixel of none.
        num_classes: how many there are.
        grid: cells along a side.
    """
    classes = torch.arange(num_classes, device=labels_HW.device)
    masks = (labels_HW[None] == classes[:, None, None]).float()
    return F.adaptive_avg_pool2d(masks[None], grid)[0].flatten(1)


def take_cells(
    coverage_CM: Tensor, count: int, jitter_M: Tensor | None = None, free_M: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells that stand for each class: those it covers most, no cell twice.

    Classes choose in the order of the rows. A cell without a pixel of the class has weight 0: it
    fills a place, and is to be left out.

    Args:
        coverage_CM: share of each class in each cell.
        count: cells a class, at most M.
        jitter_M: added to the coverage for the choice alone, so that equal cells take turns.
        free_M: bool, the cells that may be taken; all where None.

    Returns:
        cells int64 (C, count); weights (C, count), the class's coverage over its sum; bool (C,),
        which classes have a cell at all.
    """
    count = min(count, coverage_CM.shape[1])
    score = coverage_CM if jitter_M is None else coverage_CM + jitter_M
    # Cells of the class come before all others, whatever the jitter.
    score = score.where(coverage_CM > 0, -1.0)
    taken = torch.zeros_like(coverage_CM[0], dtype=torch.bool) if free_M is None else ~free_M
    cells, weights = [], []
    for own, ranked in zip(coverage_CM, score, strict=True):
        order = ranked.masked_fill(taken, float("-inf")).argsort(descending=True, stable=True)
        chosen = order[:count]
        weights.append(own[chosen].masked_fill(taken[chosen], 0.0))
        taken = taken.index_fill(0, chosen, True)
        cells.append(chosen)
    weight = torch.stack(weights)
    total = weight.sum(1, keepdim=True)
    return torch.stack(cells), weight / total.where(total > 0, 1.0), total[:, 0] > 0


@torch.no_grad()
def take_most_similar(similarity_BTM: Tensor, taken_BM: Tensor) -> Tensor:
    """Return the cell of each template: in turn each takes the most similar one that is left.

    Args:
        similarity_BTM: of B images; ties go to the lowest cell.
        taken_BM: of the same type, -inf where a cell is taken and 0 elsewhere; what is taken here
            is added.

    Returns:
        int64 (B, T), -1 where no cell was left.
    """
    left = (taken_BM == 0).sum(1)
    similarity: Any = similarity_BTM
    taken: Any = taken_BM
    images: Any = torch.arange(len(taken_BM), device=taken_BM.device)
    if taken_BM.device.type == "cpu":
        # numpy's argmax is sixteen times as quick as torch's here; the memory is the same.
        similarity, taken, images = similarity.numpy(), taken.numpy(), images.numpy()
    chosen = []
    for turn in range(similarity.shape[1]):
        best = (similarity[:, turn] + taken).argmax(1)
        taken[images, best] = -np.inf
        chosen.append(best)
    if taken_BM.device.type == "cpu":
        chosen = [torch.from_numpy(best) for best in chosen]
    index = torch.stack(chosen, dim=1)
    turns = torch.arange(index.shape[1], device=index.device)
    # Every turn takes one cell, so the last turns go without where there are more of them.
    return index.where(turns < left[:, None], -1)


@torch.no_grad()
def match(templates_TD: Tensor, cells_BMD: Tensor, free_BM: Tensor) -> Tensor:
    """Return :func:`take_most_similar` of the cosines of templates and cells, in bounded memory.

    Args:
        templates_TD: unit rows, float32 or float64.
        cells_BMD: unit rows of the same type.
        free_BM: bool, the cells that may be taken.
    """
    taken_BM = torch.zeros_like(cells_BMD[..., 0]).masked_fill_(~free_BM, float("-inf"))
    turned_BDM, images = cells_BMD.transpose(1, 2), len(cells_BMD)
    with torch.autocast(cells_BMD.device.type, enabled=False):
        parts = [
            take_most_similar(torch.bmm(part.expand(images, -1, -1), turned_BDM), taken_BM)
            for part in templates_TD.split(at_once(cells_BMD.device, taken_BM.numel()))
        ]
    return torch.cat(parts, dim=1)


def prototypes(
    keys_BTD: Tensor, weight_T: Tensor, kind_T: Tensor, valid_BT: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return the mean key of each class in each image, unit rows (B, C, D), and whether there is.

    Args:
        keys_BTD: unit rows.
        weight_T: share of the template in its class, from :func:`take_cells`.
        kind_T: class of the template.
        valid_BT: which keys count.
        num_classes: C.
    """
    shares_BT = weight_T * valid_BT.to(weight_T.dtype)
    member_TC = F.one_hot(kind_T, num_classes).to(weight_T.dtype)
    with torch.autocast(keys_BTD.device.type, enabled=False):
        sums = torch.einsum("btd,bt,tc->bcd", keys_BTD, shares_BT, member_TC)
        return F.normalize(sums, dim=2, eps=1e-12), (shares_BT @ member_TC) > 0


def image_targets(lot_B: Tensor, queue_lot_K: Tensor, age_K: Tensor) -> Tensor:
    """Return how much a key counts as a positive: 0.2^age in the same production batch, (B, K).

    Args:
        lot_B: production batches, -1 where not known: equal to none.
        queue_lot_K: those of the keys.
        age_K: steps since a key entered, 1 for the newest; of the type of the result.
    """
    same_BK = (lot_B[:, None] == queue_lot_K) & (lot_B[:, None] >= 0)
    return same_BK.to(age_K.dtype) * IMAGE_DECAY**age_K


def cell_targets(
    lot_B: Tensor, num_classes: int, queue_lot_K: Tensor, queue_kind_K: Tensor, age_K: Tensor
) -> Tensor:
    """Return how much a prototype counts as a positive of a cell of each class, (B, C, K).

    Of the same class it is 0.2^age, and 0.5^age more in the same production batch.
    """
    kinds = torch.arange(num_classes, device=queue_kind_K.device)
    same_CK = (kinds[:, None] == queue_kind_K).to(age_K.dtype)
    same_BK = ((lot_B[:, None] == queue_lot_K) & (lot_B[:, None] >= 0)).to(age_K.dtype)
    return same_CK * (same_BK * LOT_DECAY**age_K + CLASS_DECAY**age_K)[:, None]


def pulls(targets: Tensor, rows_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Return what soft targets (..., K) pull towards, their weighted sum of rows, and their sum."""
    with torch.autocast(rows_KD.device.type, enabled=False):
        return targets @ rows_KD, targets.sum(-1)


def soft_info_nce_rows(
    query_RD: Tensor,
    key_RD: Tensor,
    negatives_KD: Tensor,
    temperature: float,
    pull_RD: Tensor,
    mass_R: Tensor,
    query_group_R: Tensor | None = None,
    negative_group_K: Tensor | None = None,
    shares: bool = True,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query against soft targets: y_0 = 1 for its key, y_j for the negatives.

    Targets are divided by their sum unless ``shares`` is false: the published ones are left as they
    are and sum to more than 1. Since
    ``-sum_j y_j log p_j = logsumexp(s) - sum_j y_j s_j``, the targets are needed only as the sum of
    the rows they pull towards, which is the same for all cells of one class in one image.

    Args:
        query_RD: queries; normalised here, with gradient.
        key_RD: the positive key of each query; normalised here, without gradient.
        negatives_KD: unit rows, without gradient; there may be none.
        temperature: of the softmax.
        pull_RD: sum_j y_j negatives_j, from :func:`pulls`.
        mass_R: sum_j y_j.
        query_group_R: see :func:`info_nce_rows`; what is left out needs a target of 0.
        negative_group_K: the same.
        shares: whether the targets are divided by their sum.

    Returns:
        Loss (R,), at least float32; whether the own key is the nearest, bool (R,).
    """
    loss_R, hit_R = info_nce_rows(
        query_RD, key_RD, negatives_KD, temperature, query_group_R, negative_group_K
    )
    with torch.autocast(query_RD.device.type, enabled=False):
        query = F.normalize(query_RD.to(loss_R.dtype), dim=1, eps=1e-12)
        key = F.normalize(key_RD.detach().to(loss_R.dtype), dim=1, eps=1e-12)
        wanted = (key + pull_RD.detach()) / (1 + mass_R.detach())[:, None]
        loss_R = loss_R + (query * (key - wanted)).sum(1) / temperature
        return (loss_R if shares else loss_R * (1 + mass_R.detach())), hit_R


class _ClassNTXent(torch.autograd.Function):
    """NT-Xent against the rows of other classes, a block of logits at a time.

    The gradient is known as soon as the softmax is: it is kept instead of the logits, of which
    there are as many as rows squared.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_RD: Tensor,
        kind_R: Tensor,
        partner_R: Tensor,
        valid_R: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean over the valid rows and the loss of each row (R,)."""
        count = valid_R.sum().clamp(min=1)
        loss_R, gradient_RD = rows_RD.new_zeros(len(rows_RD)), torch.zeros_like(rows_RD)
        step = at_once(rows_RD.device, 2 * len(rows_RD))
        for start in range(0, len(rows_RD), step):
            part = slice(start, start + step)
            logits = rows_RD[part] @ rows_RD.T / temperature
            positive = logits.gather(1, partner_R[part, None])
            other = (kind_R[part, None] != kind_R[None]) & valid_R[None]
            logits.masked_fill_(~other, float("-inf"))
            total = torch.logaddexp(logits.logsumexp(1, keepdim=True), positive)
            loss_R[part] = (total - positive)[:, 0] * valid_R[part]
            if ctx.needs_input_grad[0]:
                scale = valid_R[part, None].to(logits.dtype) / (count * temperature)
                weight = logits.sub_(total).exp_().mul_(scale)
                own = ((positive - total).exp() - 1) * scale
                weight.scatter_add_(1, partner_R[part, None], own)
                gradient_RD[part] += weight @ rows_RD
                gradient_RD.addmm_(weight.T, rows_RD[part])
        ctx.save_for_backward(gradient_RD)
        ctx.mark_non_differentiable(loss_R)
        return loss_R.sum() / count, loss_R

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the rows."""
        (gradient_RD,) = ctx.saved_tensors
        return gradient_RD * gradient, None, None, None, None


def class_nt_xent(
    first_RD: Tensor,
    second_RD: Tensor,
    kind_R: Tensor,
    temperature: float,
    valid_R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """NT-Xent whose negatives are the rows of other classes, whatever image or view they are from.

    Rows of the own class are left out. A row without negatives contributes 0.

    Args:
        first_RD: cells of the first views; normalised here.
        second_RD: the same places in the second views.
        kind_R: their classes.
        temperature: of the softmax.
        valid_R: bool, the pairs that count; all where None.

    Returns:
        Scalar, the mean over the 2R rows that count, at least float32, 0 where there are none;
        the loss of each row without gradient, (2R,), those of the first views first.
    """
    dtype = torch.promote_types(first_RD.dtype, torch.float32)
    with torch.autocast(first_RD.device.type, enabled=False):
        both = [F.normalize(rows.to(dtype), dim=1, eps=1e-12) for rows in (first_RD, second_RD)]
        count, device = len(first_RD), first_RD.device
        if valid_R is None:
            valid_R = torch.ones(count, dtype=torch.bool, device=device)
        partner = torch.arange(2 * count, device=device).roll(count)
        result: tuple[Tensor, Tensor] = _ClassNTXent.apply(  # type: ignore[no-untyped-call]
            torch.cat(both), kind_R.repeat(2), partner, valid_R.repeat(2), temperature
        )
    return result
