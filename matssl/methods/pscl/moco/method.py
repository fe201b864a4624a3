"""PSCL-MoCo, the variant of PSCL with queues of keys and of class prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses, Panel
from matssl.decoders import check_side
from matssl.methods.contrastive import gather_in_order, shared_mean
from matssl.methods.momentum import MomentumMethod, slow_copy
from matssl.methods.pscl import patches
from matssl.methods.pscl.cells import (
    HIDDEN,
    STRIDES,
    Sampled,
    cell_counts,
    cell_heads,
    combined,
    look,
    panel,
    parts,
    sample_scales,
    unit,
)
from matssl.methods.pscl.moco.settings import PSCLMoCoSettings
from matssl.methods.settings import DEFAULT_QUEUE
from matssl.models.decoders import build_fine_decoder
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import plain_head, split_batchnorm


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
        keys = settings.queue_size or DEFAULT_QUEUE
        # Soft positives are shares of a whole, or as they are.
        self.shares = settings.soft_targets == "shares"
        self.scale_weights: list[int] | None = None
        if settings.scale_mix == "cells":
            self.scale_weights = cell_counts(settings.top_k or self.TOP_K, settings.sample_ratio)
        self.queue = StampedQueue(keys, settings.global_output_dim)
        # A prototype of each class for as many images.
        length = keys * settings.num_classes
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
        # Keys first: what they need is free again before the query's maps wait for the way back.
        key, *keys = self._keys(batch.views[1])
        query, *queries = look(
            self.encoder, self.decoder, self.head, self.normalise(batch.views[0])
        )
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
        mix = self.scale_weights
        loss = combined(whole, losses, self.settings.global_local_ratio, mix)
        numbers = {**parts(whole, losses, scales[0], mix), "top1": hit.float().mean()}
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
        sampled = self._sample(batch, keys[:1], shared=False)[0]
        seen = replace(batch, views=tuple(map(self.shown, batch.views)))
        return panel(seen, sampled, keys[0].shape[-1])

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
            self.shares,
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
            shares=self.shares,
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
