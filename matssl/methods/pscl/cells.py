"""Which cells PSCL compares: those of the labelled view's classes, and the cells most like them.

Suffixes as in ``patches``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core import palette
from matssl.core.batch import Batch, Panel
from matssl.methods.contrastive import gather_in_order
from matssl.methods.pscl import patches
from matssl.models.decoders import fine_channels, fine_maps
from matssl.models.encoders import average
from matssl.models.heads import grouped_head

# Strides of the decoder's maps, and names of their losses in the log.
STRIDES = (4, 2, 1)
# Equal cells of the labelled image take turns: this much of a coverage is drawn.
JITTER = 0.1
# Width of the hidden layers, as published.
HIDDEN = 128


@dataclass(frozen=True)
class Sampled:
    """The cells that are compared at one scale, T of each image.

    Attributes:
        query: int64 (B, T), cells of the first views, row by row.
        key: int64 (B, T), the same places in the second views.
        valid: bool (B, T), whether a cell was found.
        kind: int64 (T,), classes.
        weight: (T,), the cell's share in its class; sums to 1 over a class.
    """

    query: Tensor
    key: Tensor
    valid: Tensor
    kind: Tensor
    weight: Tensor

    @property
    def classes(self) -> Tensor:
        """How many classes the labelled view shows."""
        return torch.tensor(float(len(self.kind[self.weight > 0].unique())))


def cell_heads(decoder: nn.Module, hidden: int, out: int) -> nn.ModuleList:
    """Return a head for each of the decoder's three maps."""
    widths = fine_channels(decoder)
    return nn.ModuleList(grouped_head(width, min(hidden, width), out) for width in widths)


def look(
    encoder: nn.Module, decoder: nn.Module, head: nn.Module, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of normalised views: embedding (B, D), the decoder's maps at strides 4, 2 and 1."""
    features: list[Tensor] = encoder(x)
    coarse, middle, fine = fine_maps(decoder, features)
    return head(average(features[-1])), coarse, middle, fine


@torch.no_grad()
def unit(cells: Tensor) -> Tensor:
    """Return unit rows without gradient, at least float32."""
    dtype = torch.promote_types(cells.dtype, torch.float32)
    with torch.autocast(cells.device.type, enabled=False):
        return F.normalize(cells.detach().to(dtype), dim=-1, eps=1e-12)


@torch.no_grad()
def sample(
    batch: Batch,
    keys: Tensor,
    head: Callable[[Tensor], Tensor],
    num_classes: int,
    count: int,
    jitter_M: Tensor,
    shared: bool = True,
) -> Sampled:
    """Return the cells of one scale.

    The labelled view is the first of the batch over all processes. Its rarest class chooses first,
    so the numbers that classes go by change nothing. Where it shows no class, or there are no
    labels at all, no cell is valid.

    Args:
        batch: of two views.
        keys: the decoder's map of the second views, (B, C, S, S).
        head: from cells (..., C) to embeddings.
        num_classes: of the labels.
        count: cells a class.
        jitter_M: added to the coverage, so that equal cells take turns; 0 to 0.1.
        shared: whether the processes work on one batch; a picture is drawn by one alone.
    """
    images, grid, device = len(keys), keys.shape[-1], keys.device
    index, free = patches.cell_pairs(batch, grid)
    nothing = torch.zeros(1, dtype=torch.long, device=device)
    none = Sampled(
        query=nothing.expand(images, 1),
        key=nothing.expand(images, 1),
        valid=torch.zeros(images, 1, dtype=torch.bool, device=device),
        kind=nothing,
        weight=nothing.to(unit(keys[:0]).dtype),
    )
    if batch.labels is None:
        return none
    parallel = shared and dist.is_available() and dist.is_initialized()
    leads = not parallel or dist.get_rank() == 0

    shares = patches.coverage(batch.labels[0], num_classes, grid)
    order = shares.sum(1).argsort(stable=True)
    cells, weights, _ = patches.take_cells(shares[order], count, jitter_M, free[0])
    own, weight = cells.flatten(), weights.flatten()
    kind = order[:, None].expand_as(cells).flatten()
    templates = unit(head(patches.pick(keys[:1], index[:1, own])))[0]
    if parallel:
        kind, weight, templates = (gather_in_order(x[None])[0] for x in (kind, weight, templates))
    chosen = weight > 0
    if not chosen.any():
        return none
    own, kind, weight, templates = own[chosen], kind[chosen], weight[chosen], templates[chosen]

    found = [own[None]] if leads else []
    some = patches.at_once(device, keys[0, 0].numel() * templates.shape[1])
    for start in range(len(found), images, some):
        part = slice(start, start + some)
        candidates = unit(head(patches.pick(keys[part], index[part])))
        found.append(patches.match(templates, candidates, free[part]))
    query = torch.cat(found)
    key = index.gather(1, query.clamp(min=0))
    return Sampled(query, key, query >= 0, kind, weight.to(templates.dtype))


def sample_scales(
    batch: Batch,
    keys: Sequence[Tensor],
    heads: nn.Module,
    num_classes: int,
    count: int,
    ratio: float,
    seed: int,
    shared: bool = True,
) -> list[Sampled]:
    """Return the cells of each scale.

    Args:
        batch: of two views.
        keys: the decoder's maps of the second views, the coarsest first.
        heads: from cells to embeddings, one a scale.
        num_classes: of the labels.
        count: cells a class at the coarsest scale.
        ratio: cells of a scale over those of the coarser one.
        seed: of the choice among equal cells.
        shared: see :func:`sample`.
    """
    generator = torch.Generator().manual_seed(seed)
    result = []
    for scale, (stage, head) in enumerate(zip(keys, heads.children(), strict=False)):
        jitter = JITTER * torch.rand(stage.shape[-1] ** 2, generator=generator)
        number = cell_counts(count, ratio)[scale]
        result.append(
            sample(batch, stage, head, num_classes, number, jitter.to(stage.device), shared)
        )
    return result


def panel(batch: Batch, sampled: Sampled, grid: int) -> Panel | None:
    """Return the first views, and the sampled cells in both views in the colours of their classes.

    The labelled first sample is tinted with its labels.

    Args:
        batch: its first sample is labelled.
        sampled: cells of one scale.
        grid: cells along a side.

    Returns:
        None where the labelled view shows no class.
    """
    if batch.labels is None or not bool(sampled.valid.any()):
        return None
    kinds, labels = sampled.kind.cpu().numpy(), batch.labels[0].cpu().numpy()
    table = palette.distinct(int(kinds.max()) + 1)
    rows = []
    for sample, places in enumerate(zip(sampled.query, sampled.key, strict=True)):
        images = [view[sample].cpu().movedim(0, -1).numpy() for view in batch.views]
        valid = sampled.valid[sample].cpu().numpy()
        painted = [
            paint(image, place.cpu().numpy()[valid], table[kinds[valid]], grid)
            for image, place in zip(images, places, strict=True)
        ]
        plain = np.broadcast_to(images[0], (*images[0].shape[:2], 3)).copy()
        if sample == 0:
            known = labels < len(table)
            plain[known] = plain[known] // 2 + table[labels[known]] // 2
        rows.append((plain, *painted))
    title = (
        "Cells that are compared: of the first image by its labels, of the others the most similar"
    )
    return Panel(title, ("first view", "its cells", "in the second view"), tuple(rows), table)


def paint(
    image: NDArray[np.uint8], cells: NDArray[np.int64], colours: NDArray[np.uint8], grid: int
) -> NDArray[np.uint8]:
    """Return an image with cells in colours, uint8 (H, W, 3).

    Args:
        image: (H, W, 1) or (H, W, 3).
        cells: (N,), row by row on a grid x grid partition of the image.
        colours: (N, 3).
        grid: cells along a side.
    """
    height, width = image.shape[:2]
    table = np.full(grid * grid, -1)
    table[cells] = np.arange(len(cells))
    down, right = np.arange(height) * grid // height, np.arange(width) * grid // width
    owner = table[down[:, None] * grid + right]
    result = np.broadcast_to(image, (height, width, 3)).copy()
    result[owner >= 0] = colours[owner[owner >= 0]]
    return result


def cell_counts(count: int, ratio: float) -> list[int]:
    """Return how many cells a class has at each scale, the coarsest first."""
    return [max(1, round(count * ratio**scale)) for scale in range(len(STRIDES))]


def combined(
    whole: Tensor, cells: Sequence[Tensor], share: float, weights: Sequence[float] | None = None
) -> Tensor:
    """Return (1 - share) x loss of the images + share x mean over the scales of that of cells.

    Args:
        whole: loss of the images.
        cells: loss of each scale.
        share: of the loss of cells.
        weights: of the scales; None: all alike. Published for the variant with a queue is the mean
            over the rows of all scales: those of :func:`cell_counts`.
    """
    return (1 - share) * whole + share * _mixed(torch.stack(list(cells)), weights)


def _mixed(losses_S: Tensor, weights: Sequence[float] | None) -> Tensor:
    if weights is None:
        return losses_S.mean()
    weight_S = losses_S.new_tensor(weights)
    return (losses_S * weight_S).sum() / weight_S.sum()


def parts(
    whole: Tensor,
    cells: Sequence[Tensor],
    sampled: Sampled,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return the numbers for the log: both losses, that of each scale, classes at the coarsest."""
    named = {f"patch_{s}": loss.detach() for s, loss in zip(STRIDES, cells, strict=True)}
    patch = _mixed(torch.stack(list(named.values())), weights)
    classes = sampled.classes.to(patch.device)
    return {"global": whole.detach(), "patch": patch, **named, "classes": classes}
