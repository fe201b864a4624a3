"""PSCL, patch-sampled contrastive learning: images and cells, guided by one labelled image.

Published as code (github.com/neulmc/PSCL) with two variants. Both train encoder and decoder: the
pooled features of an image are contrasted, and so are cells of the decoder's maps at strides 4, 2
and 1. Which cells: those that cover the classes of the labelled first sample, and in every other
image the ones most similar to them. Suffixes as in ``patches``.
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
from matssl.core.batch import Batch, Losses, Panel
from matssl.decoders import check_side
from matssl.methods import patches
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import gather, gather_in_order, nt_xent, shared_mean
from matssl.methods.momentum import MomentumMethod, slow_copy
from matssl.models.decoders import build_fine_decoder, fine_channels, fine_maps
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import grouped_head, plain_head, split_batchnorm

# Strides of the decoder's maps, and names of their losses in the log.
STRIDES = (4, 2, 1)
# Equal cells of the labelled image take turns: this much of a coverage is drawn.
JITTER = 0.1
# Width of the hidden layers, as published.
HIDDEN = 128


@dataclass(frozen=True)
class PSCLSimCLRSettings:
    """Settings of PSCL-SimCLR; ``top_k`` is 4 and ``hidden_dim`` 128 where None, as published.

    ``group_negatives`` is ours, and concerns the loss of whole images.
    """

    temperature: float = 0.5
    global_local_ratio: float = 0.7
    top_k: int | None = None
    sample_ratio: float = 2.0
    num_classes: int = 4
    decoder: str = "unet"
    global_output_dim: int = 64
    dense_output_dim: int = 64
    hidden_dim: int | None = None
    group_negatives: str = "keep"


@dataclass(frozen=True)
class PSCLMoCoSettings:
    """Settings of PSCL-MoCo; ``top_k`` is 30 and ``hidden_dim`` 128 where None, as published."""

    temperature: float = 0.5
    global_local_ratio: float = 0.7
    top_k: int | None = None
    sample_ratio: float = 2.0
    num_classes: int = 4
    decoder: str = "unet"
    global_output_dim: int = 64
    dense_output_dim: int = 64
    hidden_dim: int | None = None
    queue_size: int = 504
    ema_momentum: float = 0.99
    ema_schedule: str = "constant"
    bn_splits: int = 1
    group_negatives: str = "keep"


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
        number = max(1, round(count * ratio**scale))
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


def combined(whole: Tensor, cells: Sequence[Tensor], share: float) -> Tensor:
    """Return (1 - share) x loss of the images + share x mean over the scales of that of cells.

    Published for the variant with a queue is the mean over the rows of all scales, of which the
    finest then has four times as many as the coarsest.
    """
    return (1 - share) * whole + share * torch.stack(list(cells)).mean()


def parts(whole: Tensor, cells: Sequence[Tensor], sampled: Sampled) -> dict[str, Tensor]:
    """Return the numbers for the log: both losses, that of each scale, classes at the coarsest."""
    named = {f"patch_{s}": loss.detach() for s, loss in zip(STRIDES, cells, strict=True)}
    patch = torch.stack(list(named.values())).mean()
    classes = sampled.classes.to(patch.device)
    return {"global": whole.detach(), "patch": patch, **named, "classes": classes}


class PSCLSimCLR(SSLMethod):
    """NT-Xent of images, and of cells against the cells of other classes in all images."""

    Settings = PSCLSimCLRSettings
    TOP_K = 4
    labelled = True
    step: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: PSCLSimCLRSettings,
    ) -> None:
        super().__init__(encoder, in_channels, mean, std)
        hidden = settings.hidden_dim or HIDDEN
        self.settings = settings
        self.decoder = build_fine_decoder(settings.decoder, encoder)
        self.head = plain_head(stage_channels(encoder)[-1], hidden, settings.global_output_dim)
        self.cell_heads = cell_heads(self.decoder, hidden, settings.dense_output_dim)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def check_views(self, side: int) -> None:
        """Refuse views that the decoder cannot take."""
        check_side(self.settings.decoder, side)

    def after_step(self, progress: float) -> None:
        """Count the steps: what is drawn in one is the same after a resume."""
        self.step += 1

    def forward(self, batch: Batch) -> Losses:
        """Return both losses; BatchNorm sees one view at a time, as published."""
        settings = self.settings
        first, *queries = self._look(batch.views[0])
        second, *keys = self._look(batch.views[1])
        group = batch.group if settings.group_negatives == "drop" else None
        whole = nt_xent(first, second, settings.temperature, group)
        scales = self._sample(batch, keys)
        losses = [
            self._cell_loss(head, query, key, cells)
            for head, query, key, cells in zip(self.cell_heads, queries, keys, scales, strict=True)
        ]
        loss = combined(whole, losses, settings.global_local_ratio)
        embeddings = torch.cat([first, second]).detach()
        return Losses(loss, parts(whole, losses, scales[0]), embeddings)

    def embed_views(self, batch: Batch) -> Tensor:
        """Return the embeddings of both views, (2B, D); no labels are needed, no decoder runs."""
        views = [pyramid(self.encoder, self.normalise(view))[-1] for view in batch.views]
        return torch.cat([self.head(average(deep)) for deep in views]).detach()

    def panel(self, batch: Batch) -> Panel | None:
        """Return the cells of the coarsest scale in both views; the first sample is labelled."""
        keys = self._look(batch.views[1])[1:]
        return panel(batch, self._sample(batch, keys[:1], shared=False)[0], keys[0].shape[-1])

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return what fine-tuning may use: encoder and decoder."""
        return {"encoder": self.encoder.state_dict(), "decoder": self.decoder.state_dict()}

    def _look(self, view: Tensor) -> tuple[Tensor, ...]:
        return look(self.encoder, self.decoder, self.head, self.normalise(view))

    def _sample(self, batch: Batch, keys: Sequence[Tensor], shared: bool = True) -> list[Sampled]:
        """Return the cells of each scale; without training the same ones at any step."""
        count, seed = self.settings.top_k or self.TOP_K, int(self.step) + 1 if self.training else 0
        classes, ratio = self.settings.num_classes, self.settings.sample_ratio
        return sample_scales(batch, keys, self.cell_heads, classes, count, ratio, seed, shared)

    def _cell_loss(self, head: nn.Module, queries: Tensor, keys: Tensor, cells: Sampled) -> Tensor:
        """Return the loss of one scale over the cells of all processes."""
        both = [patches.pick(queries, cells.query), patches.pick(keys, cells.key)]
        # Each process has T cells an image, found or not, so that rows can be gathered.
        first, second = (gather(head(rows)).flatten(0, 1) for rows in both)
        valid = gather(cells.valid.long()).flatten() > 0
        kind = cells.kind.repeat(len(valid) // len(cells.kind))
        return patches.class_nt_xent(first, second, kind, self.settings.temperature, valid)[0]


class StampedQueue(nn.Module):
    """The last K keys as unit rows, with class, production batch, group and step of entry.

    Written as if keys were pushed one by one; all state is in buffers.
    """

    rows: Tensor
    kind: Tensor
    lot: Tensor
    group: Tensor
    born: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, width))
        for name in ("kind", "lot", "group", "born"):
            self.register_buffer(name, torch.full((length,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def written(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return rows (n, D), classes, batches, groups and ages in steps (n,) of what was written.

        The newest key is one step old.
        """
        filled = int(self.filled)
        age = (step - self.born[:filled]).clamp(min=1).to(self.rows.dtype)
        return self.rows[:filled], self.kind[:filled], self.lot[:filled], self.group[:filled], age

    @torch.no_grad()
    def push(self, keys: Tensor, kind: Tensor, lot: Tensor, group: Tensor, step: Tensor) -> None:
        """Write keys (n, D), normalised; the oldest make room. The same on every process."""
        length, count = len(self.rows), len(keys)
        # Of more keys than the queue has room for only the last stay.
        keep = slice(max(0, count - length), count)
        places = ((self.pointer + torch.arange(count, device=keys.device)) % length)[keep]
        self.rows[places] = unit(keys[keep]).to(self.rows.dtype)
        self.kind[places], self.lot[places], self.group[places] = kind[keep], lot[keep], group[keep]
        self.born[places] = step
        self.pointer.copy_((self.pointer + count) % length)
        self.filled.copy_((self.filled + count).clamp(max=length))


class PSCLMoCo(MomentumMethod):
    """Soft InfoNCE of images against a queue, and of cells against queues of class prototypes.

    Keys of the same production batch, and prototypes of the same class, are positives too, the
    more the younger they are.
    """

    Settings = PSCLMoCoSettings
    TOP_K = 30
    labelled = True
    uses_lots = True

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: PSCLMoCoSettings,
    ) -> None:
        momentum, schedule = settings.ema_momentum, settings.ema_schedule
        super().__init__(encoder, in_channels, mean, std, momentum, schedule, settings.bn_splits)
        hidden, width = settings.hidden_dim or HIDDEN, settings.dense_output_dim
        self.settings = settings
        self.decoder = split_batchnorm(
            build_fine_decoder(settings.decoder, encoder), settings.bn_splits
        )
        self.head = plain_head(stage_channels(encoder)[-1], hidden, settings.global_output_dim)
        self.cell_heads = cell_heads(self.decoder, hidden, width)
        self.key_encoder, self.key_decoder = slow_copy(self.encoder), slow_copy(self.decoder)
        self.key_head, self.key_cell_heads = slow_copy(self.head), slow_copy(self.cell_heads)
        self.queue = StampedQueue(settings.queue_size, settings.global_output_dim)
        # A prototype of each class for as many images.
        length = settings.queue_size * settings.num_classes
        self.cell_queues = nn.ModuleList(StampedQueue(length, width) for _ in STRIDES)

    def check_views(self, side: int) -> None:
        """Refuse views that the decoder cannot take."""
        check_side(self.settings.decoder, side)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (slow copy, online network)."""
        return [
            (self.key_encoder, self.encoder),
            (self.key_decoder, self.decoder),
            (self.key_head, self.head),
            (self.key_cell_heads, self.cell_heads),
        ]

    def forward(self, batch: Batch) -> Losses:
        """Return both losses against the queues as they were; the keys enter them afterwards."""
        query, *queries = look(
            self.encoder, self.decoder, self.head, self.normalise(batch.views[0])
        )
        key, *keys = self._keys(batch.views[1])
        lot = torch.full_like(batch.group, -1) if batch.lot is None else batch.lot
        whole, hit = self._image_loss(query, key, lot, batch.group)
        scales = self._sample(batch, keys)
        losses, entering = [], []
        for s, cells in enumerate(scales):
            loss, prototypes = self._cell_loss(s, queries[s], keys[s], cells, lot)
            losses.append(loss)
            entering.append(prototypes)
        if self.training:
            self._enqueue(key, entering, lot, batch.group)
        loss = combined(whole, losses, self.settings.global_local_ratio)
        numbers = {**parts(whole, losses, scales[0]), "top1": hit.float().mean()}
        return Losses(loss, numbers, torch.cat([query.detach(), key.to(query.dtype)]))

    def embed_views(self, batch: Batch) -> Tensor:
        """Return query and key embeddings, (2B, D); no labels are needed, no decoder runs."""
        networks = [(self.encoder, self.head), (self.key_encoder, self.key_head)]
        return torch.cat(
            [
                head(average(pyramid(encoder, self.normalise(view))[-1]))
                for (encoder, head), view in zip(networks, batch.views, strict=True)
            ]
        ).detach()

    def queued(self) -> int:
        """Return how many samples have a key in the queue."""
        return int(self.queue.filled)

    def measures(self) -> dict[str, float]:
        """Return how full the queues are, 0 to 1."""
        fullest = self.cell_queues[0]
        assert isinstance(fullest, StampedQueue)
        return {
            "queue_filled": float(self.queue.filled) / len(self.queue.rows),
            "prototypes_filled": float(fullest.filled) / len(fullest.rows),
        }

    def panel(self, batch: Batch) -> Panel | None:
        """Return the cells of the coarsest scale in both views; the first sample is labelled."""
        keys = self._keys(batch.views[1])[1:]
        return panel(batch, self._sample(batch, keys[:1], shared=False)[0], keys[0].shape[-1])

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return what fine-tuning may use: encoder and decoder."""
        return {"encoder": self.encoder.state_dict(), "decoder": self.decoder.state_dict()}

    @torch.no_grad()
    def _keys(self, view: Tensor) -> tuple[Tensor, ...]:
        """Return embedding and maps by the momentum network, in the order of the views."""

        def embed(part: Tensor) -> tuple[Tensor, ...]:
            return look(self.key_encoder, self.key_decoder, self.key_head, self.normalise(part))

        return self.shuffled(view, embed)

    def _sample(self, batch: Batch, keys: Sequence[Tensor], shared: bool = True) -> list[Sampled]:
        """Return the cells of each scale; without training the same ones at any step."""
        count, seed = self.settings.top_k or self.TOP_K, int(self.step) + 1 if self.training else 0
        classes, ratio = self.settings.num_classes, self.settings.sample_ratio
        heads = self.key_cell_heads
        return sample_scales(batch, keys, heads, classes, count, ratio, seed, shared)

    def _image_loss(
        self, query: Tensor, key: Tensor, lot: Tensor, group: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of whole images, and whether each key is the nearest."""
        rows, _, lots, groups, age = self.queue.written(self.step)
        targets = patches.image_targets(lot, lots, age)
        own = None
        if self.settings.group_negatives == "drop":
            own = group
            targets = targets.masked_fill(group[:, None] == groups, 0.0)
        loss_B, hit_B = patches.soft_info_nce_rows(
            query,
            key,
            rows,
            self.settings.temperature,
            *patches.pulls(targets, rows),
            own,
            None if own is None else groups,
        )
        return shared_mean(loss_B), hit_B

    def _cell_loss(
        self, scale: int, queries: Tensor, keys: Tensor, cells: Sampled, lot: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the loss of one scale and the prototypes that enter its queue."""
        head, key_head = self.cell_heads[scale], self.key_cell_heads.get_submodule(str(scale))
        query = head(patches.pick(queries, cells.query))
        with torch.no_grad():
            key = unit(key_head(patches.pick(keys, cells.key)))
        count = self.settings.num_classes
        prototypes = patches.prototypes(key, cells.weight, cells.kind, cells.valid, count)
        queue = self.cell_queues[scale]
        assert isinstance(queue, StampedQueue)
        rows, kinds, lots, _, age = queue.written(self.step)
        # The same for all cells of one class in one image.
        pull, mass = patches.pulls(patches.cell_targets(lot, count, lots, kinds, age), rows)
        loss_R, _ = patches.soft_info_nce_rows(
            query.flatten(0, 1),
            key.flatten(0, 1),
            rows,
            self.settings.temperature,
            pull[:, cells.kind].flatten(0, 1),
            mass[:, cells.kind].flatten(),
        )
        weight_R = (cells.weight * cells.valid).flatten()
        return weighted_mean(loss_R, weight_R), prototypes

    @torch.no_grad()
    def _enqueue(
        self,
        key: Tensor,
        entering: Sequence[tuple[Tensor, Tensor]],
        lot: Tensor,
        group: Tensor,
    ) -> None:
        """Write the keys and prototypes of all processes, image by image."""
        lots, groups = gather_in_order(lot), gather_in_order(group)
        self.queue.push(gather_in_order(key), torch.full_like(lots, -1), lots, groups, self.step)
        for queue, (prototypes, present) in zip(self.cell_queues, entering, strict=True):
            assert isinstance(queue, StampedQueue)
            rows, there = gather_in_order(prototypes), gather_in_order(present.long()) > 0
            image, kind = there.nonzero(as_tuple=True)
            queue.push(rows[there], kind, lots[image], groups[image], self.step)


def weighted_mean(values_R: Tensor, weight_R: Tensor) -> Tensor:
    """Return the weighted mean over the rows of all processes, 0 where all weights are 0.

    Its gradient is such that DDP's mean over the processes is that of the whole batch.
    """
    total, processes = weight_R.sum(), 1
    if dist.is_available() and dist.is_initialized():
        processes = dist.get_world_size()
        total = gather_in_order(total[None]).sum()
    own = (values_R * weight_R).sum() * processes / total.where(total > 0, 1.0)
    return shared_mean(own[None])
