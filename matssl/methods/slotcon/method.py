"""SlotCon: Wen et al. 2022 (arXiv:2205.15288): cells are grouped, and the groups contrasted.

Suffixes: B samples on this process, K prototypes, P cells of a view, D width of a cell's embedding,
S cells along a side, R rows of any number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core import palette
from matssl.core.batch import Batch, Losses, Panel
from matssl.methods.contrastive import gather, gather_in_order, shared_mean
from matssl.methods.momentum import MomentumMethod, slow_copy
from matssl.methods.slotcon.settings import SlotConSettings
from matssl.models.encoders import pyramid, stage_channels
from matssl.models.heads import CellProjector, row_predictor

# Keeps a slot defined that no cell wants.
EPS = 1e-6
# Views that share less of the smaller one are left out of the grouping loss.
LEAST_OVERLAP = 0.01


def assign(
    cells_BPD: Tensor, prototypes_KD: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how much each cell belongs to each prototype, and the slots; sections 3.1 and 3.2.

    Args:
        cells_BPD: embeddings, not normalised.
        prototypes_KD: any length.
        temperature: of the softmax over the prototypes.

    Returns:
        Cosines (B, K, P); attention (B, K, P), the softmax plus 1e-6; slots (B, K, D), the mean of
        the cells weighted with the attention. At least float32.
    """
    dtype = torch.promote_types(cells_BPD.dtype, torch.float32)
    with torch.autocast(cells_BPD.device.type, enabled=False):
        cells_BPD, prototypes_KD = cells_BPD.to(dtype), prototypes_KD.to(dtype)
        unit_BPD = F.normalize(cells_BPD, dim=2, eps=1e-12)
        scores_BKP = (unit_BPD @ F.normalize(prototypes_KD, dim=1, eps=1e-12).T).transpose(1, 2)
        attention_BKP = (scores_BKP / temperature).softmax(1) + EPS
        slots_BKD = attention_BKP / attention_BKP.sum(2, keepdim=True) @ cells_BPD
    return scores_BKP, attention_BKP, slots_BKD


def overlap(maps_2B23: Tensor, size: int, other_size: int) -> tuple[Tensor, Tensor]:
    """Return the box that two views share, and how much that is.

    Args:
        maps_2B23: view pixels to image pixels, of the first and of the second views.
        size: side of the first views in pixels.
        other_size: side of the second views.

    Returns:
        (B, 4) as left, top, right, bottom in image pixels; (B,), the area of the box as a share of
        the smaller view, 0 where there is none.
    """
    corners = []
    for maps_B23, side in zip(maps_2B23, (size, other_size), strict=True):
        start = maps_B23[:, :, 2]
        end = start + side * maps_B23[:, :, :2].sum(2)
        # D4 keeps a box upright; only which of its corners is the first changes.
        corners.append((torch.minimum(start, end), torch.maximum(start, end)))
    (first, first_end), (second, second_end) = corners
    low, high = torch.maximum(first, second), torch.minimum(first_end, second_end)
    area = (high - low).clamp(min=0).prod(1)
    smaller = torch.minimum((first_end - first).prod(1), (second_end - second).prod(1))
    return torch.cat([low, high], dim=1), area / smaller.clamp(min=1e-12)


def align(scores_BKSS: Tensor, maps_B23: Tensor, boxes_B4: Tensor, size: int) -> Tensor:
    """Return what a view says about a box of the image, upright, on as many cells, (B, K, S, S).

    One sample at the centre of each cell of the box, interpolated as ROI-align does: beyond the
    outermost centres the outermost cells count. Rows and columns are interpolated one after the
    other by products of matrices, whose gradient is the same bits each time on a GPU, too.

    Args:
        scores_BKSS: of the cells of a view.
        maps_B23: view pixels to image pixels, upright or turned by quarters.
        boxes_B4: left, top, right, bottom in image pixels.
        size: side of the view in pixels.
    """
    grid, dtype = scores_BKSS.shape[-1], scores_BKSS.dtype
    # Positions in large images need more digits than scores do.
    maps, boxes = maps_B23.double(), boxes_B4.double()
    # An axis of the image runs along one axis of the view: one of two factors is 0.
    factors_B2 = maps[:, :, :2].sum(2)
    swapped_B = maps[:, 0, 1].abs() > maps[:, 0, 0].abs()
    number = torch.arange(grid, device=boxes.device, dtype=boxes.dtype)
    corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    place_B2S = corner[..., None] + extent[..., None] * (number + 0.5) / grid
    pixels = (place_B2S - maps[:, :, 2, None]) / factors_B2[..., None]
    cells = (pixels / size * grid - 0.5).clamp(0, grid - 1)
    share_B2SS = (1 - (cells[..., None] - number).abs()).clamp(min=0).to(dtype)
    across_B1SS, down_B1SS = share_B2SS[:, :1], share_B2SS[:, 1:]
    upright = torch.where(swapped_B[:, None, None, None], scores_BKSS.transpose(2, 3), scores_BKSS)
    with torch.autocast(scores_BKSS.device.type, enabled=False):
        return down_B1SS @ upright @ across_B1SS.transpose(2, 3)


def distillation(
    student_RK: Tensor,
    teacher_RK: Tensor,
    center_K: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy of the student's assignment with the teacher's centred one; (R,).

    Args:
        student_RK: cosines, with gradient.
        teacher_RK: cosines of the same places, without gradient.
        center_K: without gradient; what is common to all its entries has no effect.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's; the smaller, the sharper the target.
    """
    target_RK = ((teacher_RK - center_K).detach() / teacher_temperature).softmax(1)
    return -(target_RK * (student_RK / student_temperature).log_softmax(1)).sum(1)


def active(scores_BKP: Tensor) -> Tensor:
    """Return whether a prototype wins a cell of a view anywhere, bool (B, K)."""
    won_BP = scores_BKP.argmax(1)
    shape = (len(scores_BKP), scores_BKP.shape[1])
    ones = torch.ones_like(won_BP, dtype=torch.bool)
    return ones.new_zeros(shape).scatter_(1, won_BP, ones)


def slot_contrast(
    query_BKD: Tensor,
    key_BKD: Tensor,
    query_active_BK: Tensor,
    key_active_BK: Tensor,
    predictor: nn.Module,
    temperature: float,
    group_B: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each slot that is active in both views, section 3.2; (R,).

    The positive is the same slot of the same sample; all other active keys of all samples are
    negatives.

    Args:
        query_BKD: slots of one view, with gradient.
        key_BKD: slots of the other view by the teacher, without gradient.
        query_active_BK: see :func:`active`.
        key_active_BK: of the other view.
        predictor: of the queries, (R, D) to (R, D).
        temperature: of the softmax.
        group_B: where given, slots of other samples of a sample's group are no negatives.

    Returns:
        One value a query, over all processes and the same on each; empty where there is none.
    """
    dtype = torch.promote_types(query_BKD.dtype, torch.float32)
    count = query_BKD.shape[1]
    # All slots are gathered, active or not, since their number is the same on every process.
    queries = gather(query_BKD).flatten(0, 1)
    keys = gather(key_BKD.detach()).flatten(0, 1)
    both = gather(torch.stack([query_active_BK, key_active_BK], 1).to(dtype)) > 0.5
    query_active, key_active = both[:, 0].flatten(), both[:, 1].flatten()
    query_rows = (query_active & key_active).nonzero()[:, 0]
    key_rows = key_active.nonzero()[:, 0]
    predicted = predictor(queries[query_rows])
    with torch.autocast(query_BKD.device.type, enabled=False):
        predicted = F.normalize(predicted.to(dtype), dim=1, eps=1e-12)
        unit = F.normalize(keys[key_rows].to(dtype), dim=1, eps=1e-12)
        logits = predicted @ unit.T / temperature
        if group_B is not None:
            group = gather(group_B).repeat_interleave(count)
            sample = torch.arange(len(group), device=group.device) // count
            same = group[query_rows, None] == group[key_rows]
            same &= sample[query_rows, None] != sample[key_rows]
            logits = logits.masked_fill(same, float("-inf"))
        labels = key_active.cumsum(0)[query_rows] - 1
        return F.cross_entropy(logits, labels, reduction="none")


def moved_center(center_K: Tensor, scores_K: Tensor, momentum: float) -> Tensor:
    """Return the centre after a step: c <- m c + (1 - m) mean score of the teacher."""
    return momentum * center_K + (1 - momentum) * scores_K


class Grouping(nn.Module):
    """The prototypes, each the direction of one kind of cell."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(count, width))

    def forward(self, map_BDSS: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return cosines (B, K, S, S) and slots (B, K, D) of a map."""
        cells_BPD = map_BDSS.movedim(1, -1).flatten(1, 2)
        scores_BKP, _, slots_BKD = assign(cells_BPD, self.prototypes, temperature)
        return scores_BKP.unflatten(2, map_BDSS.shape[-2:]), slots_BKD


class SlotCon(MomentumMethod):
    """Cells learn to be grouped alike in both views, groups to be told apart.

    The teacher follows encoder, projector and prototypes. It is what panels and phase maps show.
    """

    Settings = SlotConSettings
    pooled = False
    center: Tensor
    seen_share: Tensor
    seen_won: Tensor
    seen_entropy: Tensor
    seen_slots: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: SlotConSettings,
    ) -> None:
        momentum, schedule = settings.ema_momentum, settings.ema_schedule
        super().__init__(encoder, in_channels, mean, std, momentum, schedule)
        hidden, width = settings.hidden_dim or 4096, settings.global_output_dim
        count = settings.prototypes
        self.settings = settings
        channels = stage_channels(encoder)[settings.dense_stage - 1 :]
        self.projector = CellProjector(channels, hidden, width)
        self.grouping = Grouping(count, width)
        self.predictor = row_predictor(width, hidden)
        self.teacher_encoder = slow_copy(self.encoder)
        self.teacher_projector = slow_copy(self.projector)
        self.teacher_grouping = slow_copy(self.grouping)
        self.register_buffer("center", torch.zeros(count))
        # What was seen at the last look, for the log; no part of the method's state.
        self.register_buffer("seen_share", torch.zeros(count), persistent=False)
        self.register_buffer("seen_won", torch.zeros(count), persistent=False)
        self.register_buffer("seen_entropy", torch.zeros(()), persistent=False)
        self.register_buffer("seen_slots", torch.zeros(()), persistent=False)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (slow copy, online network)."""
        return [
            (self.teacher_encoder, self.encoder),
            (self.teacher_projector, self.projector),
            (self.teacher_grouping, self.grouping),
        ]

    def project(self, x: Tensor) -> Tensor:
        """Return the online embedding of each cell of normalised views, (B, D, S, S)."""
        maps = pyramid(self.encoder, x)
        return self.projector(maps[self.settings.dense_stage - 1 :])

    @torch.no_grad()
    def teach(self, x: Tensor) -> Tensor:
        """Return the teacher's embedding of each cell of normalised views, (B, D, S, S)."""
        maps = pyramid(self.teacher_encoder, x)
        return self.teacher_projector(maps[self.settings.dense_stage - 1 :])

    @torch.no_grad()
    def prototype_scores(self, x: Tensor) -> Tensor:
        """Return the teacher's cosines of an input of the network, (B, K, S, S)."""
        scores: Tensor = self.teacher_grouping(self.teach(x), self.settings.teacher_temperature)[0]
        return scores

    def forward(self, batch: Batch) -> Losses:
        """Return both losses, the sum of both directions; the centre moves afterwards."""
        settings = self.settings
        temperature, weight = settings.teacher_temperature, settings.group_loss_weight
        inputs = [self.normalise(view) for view in batch.views]
        # Teachers first: what they need is free again before maps wait for the way back.
        teachers = [self.teach(x) for x in inputs]
        students = [self.project(x) for x in inputs]
        scores, slots, targets, keys = [], [], [], []
        for student, teacher in zip(students, teachers, strict=True):
            score, slot = self.grouping(student, temperature)
            target, key = self.teacher_grouping(teacher, temperature)
            scores.append(score)
            slots.append(slot)
            targets.append(target.detach())
            keys.append(key)

        group, share = self._group_loss(batch, scores, targets)
        active_q = [active(score.flatten(2)) for score in scores]
        active_k = [active(target.flatten(2)) for target in targets]
        dropped = batch.group if settings.group_negatives == "drop" else None
        contrast = group.new_zeros(())
        for a, b in ((0, 1), (1, 0)):
            rows = slot_contrast(
                slots[a],
                keys[b],
                active_q[a],
                active_k[b],
                self.predictor,
                settings.temperature,
                dropped,
            )
            # Where no slot is active in both views there is nothing to tell apart: 0.
            contrast = contrast + 2 * settings.temperature * rows.sum() / max(len(rows), 1)
        if self.training:
            self._move_center(targets)
        loss = weight * group + (1 - weight) * contrast
        parts = {
            "group": group.detach(),
            "slot": contrast.detach(),
            "slots": torch.stack(active_k).sum(2).float().mean(),
            "overlapping": share,
        }
        embeddings = torch.cat([student.detach().mean((2, 3)) for student in students])
        return Losses(loss, parts, embeddings)

    def embed_views(self, batch: Batch) -> Tensor:
        """Return the mean over the cells of each view's online embedding, (2B, D).

        How the teacher groups the cells of these views is kept for :meth:`measures`.
        """
        inputs = [self.normalise(view) for view in batch.views]
        self._look([self.prototype_scores(x) for x in inputs])
        return torch.cat([self.project(x).mean((2, 3)) for x in inputs])

    def measures(self) -> dict[str, float]:
        """Return how the teacher groups the cells of the last look; nothing before the first.

        ``prototypes``: how many there are. ``prototype_usage``: exp of the entropy of the mean
        attention, 1 where one takes all cells. ``prototypes_in_use``: the same of the shares of the
        cells won. ``target_entropy``: mean entropy of the centred assignment over ln K, 0 where
        every cell has one prototype for certain, 1 where it has all. ``slots_per_view``: prototypes
        that win a cell of a view.
        """
        if not bool(self.seen_share.any()):
            return {}
        return {
            "prototypes": float(len(self.seen_won)),
            "prototype_usage": _perplexity(self.seen_share),
            "prototypes_in_use": _perplexity(self.seen_won),
            "target_entropy": float(self.seen_entropy),
            "slots_per_view": float(self.seen_slots),
        }

    def panel(self, batch: Batch) -> Panel:
        """Return the first views, which prototype wins each place, and both together."""
        view = batch.views[0]
        scores = self.prototype_scores(self.normalise(view))
        size = view.shape[-2:]
        labels = F.interpolate(scores, size=size, mode="bilinear").argmax(1).cpu().numpy()
        # The clearest colours for those that take most of the sheet.
        order = np.argsort(-np.bincount(labels.ravel(), minlength=scores.shape[1]), kind="stable")
        colours = np.empty((scores.shape[1], 3), np.uint8)
        colours[order] = palette.distinct(len(order))
        images = self.shown(view).cpu().movedim(1, -1).numpy()
        rows = []
        for image, label in zip(images, labels, strict=True):
            gray = image[..., 0] if image.shape[-1] == 1 else image
            painted = colours[label]
            mixed = 0.55 * image + 0.45 * painted
            rows.append((gray, painted, np.rint(mixed).astype(np.uint8)))
        used = len(np.unique(labels))
        title = f"Each place in the colour of its prototype: {used} of {len(order)} are seen here"
        return Panel(title, ("view", "prototype", "overlay"), tuple(rows))

    def _group_loss(
        self, batch: Batch, scores: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the distillation of both directions where the views overlap, and how many do."""
        settings = self.settings
        sizes = [view.shape[-1] for view in batch.views]
        moved = batch.maps.to(scores[0].device)
        boxes, share = overlap(moved.double(), sizes[0], sizes[1])
        kept = share >= LEAST_OVERLAP
        total = scores[0].new_zeros(())
        with torch.autocast(scores[0].device.type, enabled=False):
            students, teachers = (
                [
                    align(score[kept], maps[kept], boxes[kept], size).movedim(1, -1).flatten(0, 2)
                    for score, maps, size in zip(both, moved, sizes, strict=True)
                ]
                for both in (scores, targets)
            )
            for a, b in ((0, 1), (1, 0)):
                values = distillation(
                    students[a],
                    teachers[b],
                    self.center,
                    settings.student_temperature,
                    settings.teacher_temperature,
                )
                total = total + shared_mean(values)
        return total, kept.to(total.dtype).mean()

    @torch.no_grad()
    def _move_center(self, targets: Sequence[Tensor]) -> None:
        """Let the centre follow the teacher's mean cosine, over all cells of all processes."""
        means = torch.stack([target.mean((2, 3)) for target in targets], dim=1)
        mean = gather_in_order(means).mean((0, 1)).to(self.center.dtype)
        self.center.copy_(moved_center(self.center, mean, self.settings.center_momentum))

    @torch.no_grad()
    def _look(self, scores: Sequence[Tensor]) -> None:
        """Keep the measures of the cosines (B, K, S, S) of some views."""
        flat = torch.cat([score.flatten(2) for score in scores])
        temperature = self.settings.teacher_temperature
        target = ((flat - self.center[:, None]) / temperature).softmax(1)
        entropy = torch.special.entr(target).sum(1).mean() / math.log(flat.shape[1])
        won = F.one_hot(flat.argmax(1), flat.shape[1])
        self.seen_share.copy_((flat / temperature).softmax(1).mean((0, 2)))
        self.seen_won.copy_(won.double().mean((0, 1)))
        self.seen_entropy.copy_(entropy)
        self.seen_slots.copy_(won.any(1).sum(1).double().mean())


def _perplexity(shares: Tensor) -> float:
    """Return exp of the entropy: how many equal shares would be as even."""
    return float(torch.special.entr(shares.double()).sum().exp())
