"""PSCL, patch-sampled contrastive learning: images and cells, guided by one labelled image.

Published as code (github.com/neulmc/PSCL) with two variants. Both train encoder and decoder: the
pooled features of an image are contrasted, and so are cells of the decoder's maps at strides 4, 2
and 1. Which cells: those that cover the classes of the labelled first sample, and in every other
image the ones most similar to them. Suffixes as in ``patches``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses, Panel
from matssl.decoders import check_side
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import gather, nt_xent
from matssl.methods.pscl import patches
from matssl.methods.pscl.cells import (
    HIDDEN,
    Sampled,
    cell_heads,
    combined,
    look,
    panel,
    parts,
    sample_scales,
)
from matssl.methods.pscl.settings import PSCLSimCLRSettings
from matssl.models.decoders import build_fine_decoder
from matssl.models.encoders import average, pyramid, stage_channels
from matssl.models.heads import plain_head


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
        sampled = self._sample(batch, keys[:1], shared=False)[0]
        seen = replace(batch, views=tuple(map(self.shown, batch.views)))
        return panel(seen, sampled, keys[0].shape[-1])

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
