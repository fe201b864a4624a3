"""MoCo v2: Chen et al. 2020 (arXiv:2003.04297), after He et al. 2020 (arXiv:1911.05722)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses
from matssl.methods.contrastive import info_nce_rows, shared_mean
from matssl.methods.mocov2.settings import MoCoV2Settings
from matssl.methods.momentum import KeyQueue, MomentumMethod, slow_copy
from matssl.methods.settings import DEFAULT_QUEUE
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import plain_head


class MoCoV2(MomentumMethod):
    """A query of one view against the key of the other and a queue of older keys."""

    Settings = MoCoV2Settings

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: MoCoV2Settings,
    ) -> None:
        momentum, schedule = settings.ema_momentum, settings.ema_schedule
        super().__init__(encoder, in_channels, mean, std, momentum, schedule, settings.bn_splits)
        width = stage_channels(encoder)[-1]
        self.settings = settings
        self.head = plain_head(width, settings.hidden_dim or width, settings.global_output_dim)
        self.key_encoder, self.key_head = slow_copy(self.encoder), slow_copy(self.head)
        self.queue = KeyQueue(settings.queue_size or DEFAULT_QUEUE, settings.global_output_dim)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (slow copy, online network)."""
        return [(self.key_encoder, self.encoder), (self.key_head, self.head)]

    def query(self, view: Tensor) -> Tensor:
        """Return the embedding of uint8 views by the online network, (B, D)."""
        return self.head(average(pyramid(self.encoder, self.normalise(view))[-1]))

    def key(self, view: Tensor) -> Tensor:
        """Return the embedding by the momentum network, in the order of the views, (B, D)."""

        def embed(part: Tensor) -> tuple[Tensor, ...]:
            deep = pyramid(self.key_encoder, self.normalise(part))[-1]
            return (self.key_head(average(deep)),)

        return self.shuffled(view, embed)[0]

    def queued(self) -> int:
        """Return how many samples have a key in the queue."""
        return int(self.queue.filled)

    def forward(self, batch: Batch) -> Losses:
        """Return InfoNCE against the queue as it was before; the keys enter it afterwards."""
        first, second = batch.views
        rows, group = self.queue.negatives()
        masked = self.settings.group_negatives == "drop"
        own, other = (batch.group, group) if masked else (None, None)
        views = [(first, second), (second, first)][: 2 if self.settings.symmetric else 1]
        # Keys first: what they need is free again before a query's maps wait for the way back.
        keys = [self.key(other_view) for _, other_view in views]
        pairs = [(self.query(view), key) for (view, _), key in zip(views, keys, strict=True)]
        losses, hits = [], []
        for query, key in pairs:
            loss_B, hit_B = info_nce_rows(query, key, rows, self.settings.temperature, own, other)
            losses.append(shared_mean(loss_B))
            hits.append(hit_B.float().mean())
        if self.training:
            # Keys of the first view first.
            for _, key in reversed(pairs):
                self.queue.push(key, batch.group)
        # The two directions are summed, as published.
        loss = torch.stack(losses).sum()
        parts = {"info_nce": loss.detach(), "top1": torch.stack(hits).mean()}
        query, key = pairs[0]
        return Losses(loss, parts, torch.cat([query.detach(), key.to(query.dtype)]))
