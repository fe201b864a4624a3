"""DenseCL: Wang et al. 2021 (arXiv:2011.09157): MoCo v2 with a contrast of each cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core import geometry
from matssl.core.batch import Batch, Losses
from matssl.methods.contrastive import info_nce_rows, shared_mean
from matssl.methods.densecl.settings import DenseCLSettings
from matssl.methods.momentum import KeyQueue, MomentumMethod, slow_copy
from matssl.methods.settings import DEFAULT_QUEUE
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import dense_head, plain_head


@torch.no_grad()
def match(query_BPC: Tensor, key_BPC: Tensor) -> Tensor:
    """Return for each query cell the key cell of greatest cosine, int64 (B, P).

    Args:
        query_BPC: backbone features of the cells of one view.
        key_BPC: of the other view; ties go to the lowest index.
    """
    dtype = torch.promote_types(query_BPC.dtype, torch.float32)
    with torch.autocast(query_BPC.device.type, enabled=False):
        query_BPC = F.normalize(query_BPC.to(dtype), dim=2, eps=1e-12)
        key_BPC = F.normalize(key_BPC.to(dtype), dim=2, eps=1e-12)
        return (query_BPC @ key_BPC.transpose(1, 2)).argmax(2)


def queue_key(dense_BPD: Tensor) -> Tensor:
    """Return what enters the dense queue: the mean of the un-normalised cells, (B, D) unit rows."""
    dtype = torch.promote_types(dense_BPD.dtype, torch.float32)
    return F.normalize(dense_BPD.to(dtype).mean(1), dim=1, eps=1e-12)


def dense_weight(weight: float, step: int, warmup_steps: int) -> float:
    """Return the share of the dense loss: 0 during the first steps, then ``weight``."""
    return 0.0 if step < warmup_steps else weight


def cells(stage: Tensor) -> Tensor:
    """Return the cells of a feature map, (B, C, S, S) to (B, S*S, C), row by row."""
    return stage.movedim(1, -1).flatten(1, 2)


class DenseCL(MomentumMethod):
    """(1 - weight) x MoCo v2 of pooled features + weight x InfoNCE of cells that correspond."""

    Settings = DenseCLSettings

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: DenseCLSettings,
    ) -> None:
        momentum, schedule = settings.ema_momentum, settings.ema_schedule
        super().__init__(encoder, in_channels, mean, std, momentum, schedule, settings.bn_splits)
        channels = stage_channels(encoder)
        width, inner = channels[-1], channels[settings.dense_stage - 1]
        self.settings = settings
        self.head = plain_head(width, settings.hidden_dim or width, settings.global_output_dim)
        self.dense_head = dense_head(inner, settings.hidden_dim or inner, settings.dense_output_dim)
        self.key_encoder, self.key_head = slow_copy(self.encoder), slow_copy(self.head)
        self.key_dense_head = slow_copy(self.dense_head)
        keys = settings.queue_size or DEFAULT_QUEUE
        self.queue = KeyQueue(keys, settings.global_output_dim)
        self.dense_queue = KeyQueue(keys, settings.dense_output_dim)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (slow copy, online network)."""
        return [
            (self.key_encoder, self.encoder),
            (self.key_head, self.head),
            (self.key_dense_head, self.dense_head),
        ]

    def query(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return of uint8 views: embedding (B, D), cells (B, P, D'), their features (B, P, C)."""
        maps = pyramid(self.encoder, self.normalise(view))
        chosen = maps[self.settings.dense_stage - 1]
        return self.head(average(maps[-1])), cells(self.dense_head(chosen)), cells(chosen)

    def key(self, view: Tensor) -> tuple[Tensor, ...]:
        """Return the same by the momentum network, in the order of the views."""

        def embed(part: Tensor) -> tuple[Tensor, ...]:
            maps = pyramid(self.key_encoder, self.normalise(part))
            chosen = maps[self.settings.dense_stage - 1]
            dense = cells(self.key_dense_head(chosen))
            return self.key_head(average(maps[-1])), dense, cells(chosen)

        return self.shuffled(view, embed)

    def queued(self) -> int:
        """Return how many samples have a key in the queue."""
        return int(self.queue.filled)

    def forward(self, batch: Batch) -> Losses:
        """Return both losses against the queues as they were; the keys enter them afterwards."""
        settings, group = self.settings, batch.group
        # Keys first: what they need is free again before the query's maps wait for the way back.
        key, dense_key, key_features = self.key(batch.views[1])
        query, dense_query, query_features = self.query(batch.views[0])
        masked = settings.group_negatives == "drop"

        rows, row_group = self.queue.negatives()
        own, other = (group, row_group) if masked else (None, None)
        loss_B, hit_B = info_nce_rows(query, key, rows, settings.temperature, own, other)

        index, valid = self._pairs(batch, query_features, key_features)
        place = index.clamp(min=0)[..., None].expand(-1, -1, dense_key.shape[2])
        positives = dense_key.gather(1, place)
        rows, row_group = self.dense_queue.negatives()
        own, other = (None, None)
        if masked:
            own, other = group[:, None].expand_as(valid)[valid], row_group
        dense_R, dense_hit_R = info_nce_rows(
            dense_query[valid], positives[valid], rows, settings.temperature, own, other
        )

        if self.training:
            self.queue.push(key, group)
            self.dense_queue.push(queue_key(dense_key), group)
        weight = dense_weight(settings.dense_weight, int(self.step), settings.dense_warmup_steps)
        whole, dense = shared_mean(loss_B), shared_mean(dense_R)
        loss = (1 - weight) * whole + weight * dense
        parts = {"global": whole.detach(), "dense": dense.detach(), "top1": hit_B.float().mean()}
        # There on every process, also where no cell of its samples has a partner.
        parts["dense_top1"] = shared_mean(dense_hit_R.float())
        parts["matched"] = valid.float().mean()
        return Losses(loss, parts, torch.cat([query.detach(), key.to(query.dtype)]))

    def _pairs(self, batch: Batch, query_BPC: Tensor, key_BPC: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each query cell its key cell, int64 (B, P), and whether there is one."""
        if self.settings.dense_match == "features":
            index = match(query_BPC, key_BPC)
            return index, torch.ones_like(index, dtype=torch.bool)
        first, second = batch.maps.double().numpy()
        size, other = batch.views[0].shape[-1], batch.views[1].shape[-1]
        grid = round(query_BPC.shape[1] ** 0.5)
        cell, inside = geometry.correspondence(first, second, size, other, grid)
        device = query_BPC.device
        return torch.from_numpy(cell).to(device), torch.from_numpy(inside).to(device)
