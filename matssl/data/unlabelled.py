"""Crops of pictures without labels: a weakly changed view, strongly changed ones, mixtures."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matssl.core import rng
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.geometry import apply_d4
from matssl.core.labels import IGNORE
from matssl.data.cache import Pool
from matssl.data.crops import CropAugmentation, cut, photometry
from matssl.data.datasets import tile_boxes
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess

# Area of the box of a mixture as a share of the crop, and its sides' ratio (UniMatch's code).
BOX_AREA, BOX_RATIO = (0.02, 0.4), (0.3, 1 / 0.3)
# Draws of a sample: place and turn, then each strong view, then the box of each.
PLACE, STRONG, BOX = 0, 1, 64


@dataclass(frozen=True)
class UnlabelledBatch:
    """Crops of a step, partners in pairs: the first and the second, the third and the fourth, ....

    Attributes:
        weak: float32 (B, C, S, S), cut, turned and mirrored.
        strong: the same crops with changed grey levels, blur and noise, their partners' inside the
            boxes; one tensor a view.
        boxes: bool (B, S, S), one a view.
        known: bool (B, S, S), pixels that show the picture, no mirrored border.
    """

    weak: Tensor
    strong: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    known: Tensor


def check_pairs(batch_size: int, world_size: int) -> None:
    """Refuse a batch of which a process would get an odd number of crops.

    Raises:
        UserError: it is one.
    """
    if batch_size % (2 * world_size):
        each = f" for each of {world_size} processes" if world_size > 1 else ""
        raise UserError(f"--unlabeled_batch must be an even number{each}, not {batch_size}")


class UnlabelledLoader:
    """Batches of unlabelled crops as a pure function of (seed, step)."""

    def __init__(
        self,
        pool: Pool,
        record: Preprocess,
        crops: CropAugmentation,
        batch_size: int,
        seed: int,
        views: int = 1,
        cutmix_p: float = 0.5,
        threads: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Make a loader.

        Args:
            pool: decoded pictures; its groups say which may be mixed.
            record: how planes become what the network sees.
            crops: size, orientations, and how far a strong view is changed.
            batch_size: crops a step over all processes.
            seed: of every draw.
            views: strong views of a crop.
            cutmix_p: share of the strong views that are mixtures of two crops.
            threads: prefetching threads; 0 makes batches when they are asked for.
            rank: number of this process.
            world_size: number of processes; each gets its part of every batch.

        Raises:
            UserError: a process would get an odd number of crops.
        """
        check_pairs(batch_size, world_size)
        self.pool, self.record, self.crops = pool, record, crops
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.views, self.cutmix_p = views, cutmix_p
        self.rank, self.local = rank, batch_size // world_size
        # Large pictures come more often: once for each crop's worth of them.
        self.images = tile_boxes(pool.shapes, crops.size)[:, 0]
        self.members = [np.flatnonzero(pool.groups == g) for g in range(len(pool.group_names))]
        self._order = functools.lru_cache(2)(
            lambda epoch: rng.epoch_order(seed, epoch, len(self.images))
        )

    def batches(self, start: int, stop: int) -> Iterator[UnlabelledBatch]:
        """Yield this process's part of the batches of steps start to stop."""
        yield from prefetched(self.batch, range(start, stop), self.threads)

    def batch(self, step: int) -> UnlabelledBatch:
        """Return this process's part of the batch of a step."""
        first = self.rank * self.local
        samples = range(first, first + self.local)
        planes, known = zip(*(self._crop(step, sample) for sample in samples), strict=True)
        strong, boxes = [], []
        for view in range(self.views):
            changed = [self._changed(planes[i], step, s, view) for i, s in enumerate(samples)]
            drawn = [self._box(step, sample, view) for sample in samples]
            mixed = [
                np.where(box if plane.ndim == 2 else box[..., None], changed[i ^ 1], plane)
                for i, (plane, box) in enumerate(zip(changed, drawn, strict=True))
            ]
            strong.append(self._tensor(mixed))
            boxes.append(torch.from_numpy(np.stack(drawn)))
        mask = torch.from_numpy(np.stack(known))
        return UnlabelledBatch(self._tensor(planes), tuple(strong), tuple(boxes), mask)

    def _tensor(self, planes: list[Array] | tuple[Array, ...]) -> Tensor:
        stacked = torch.from_numpy(np.stack([self.record.tensor(plane) for plane in planes]))
        return stacked.contiguous(memory_format=torch.channels_last)

    def picture(self, step: int, sample: int) -> int:
        """Return the number of the picture that a sample of a step is cut from.

        The first of two partners comes in the order of its epoch, the other is of the same group.
        """
        number = step * (self.batch_size // 2) + sample // 2
        epoch, place = divmod(number, len(self.images))
        image = int(self.images[self._order(epoch)[place]])
        if sample % 2 == 0:
            return image
        members = self.members[int(self.pool.groups[image])]
        draw = rng.generator(self.seed, step, sample, PLACE, rng.UNLABELLED)
        return int(members[int(draw.integers(len(members)))])

    def _crop(self, step: int, sample: int) -> tuple[Array, NDArray[np.bool_]]:
        """Return a turned crop, float32 nominally 0 to 1, and the pixels that show the picture."""
        image = self.picture(step, sample)
        draw = rng.generator(self.seed, step, sample, PLACE, rng.UNLABELLED)
        # What chose the picture.
        draw.integers(1 << 30)
        plane, side = self.pool.plane(image), self.crops.size
        height, width = plane.shape[:2]
        top = int(draw.integers(max(1, height - side + 1)))
        left = int(draw.integers(max(1, width - side + 1)))
        shown = np.broadcast_to(np.uint8(0), (height, width))
        piece, mask = cut(plane, shown, top, left, side)
        flip = self.crops.d4 != "none" and bool(draw.integers(2))
        turns = {"full": int(draw.integers(4)), "flips": 2 * int(draw.integers(2))}
        turns["each"] = turns["full"]
        element = (flip, turns.get(self.crops.d4, 0))
        whole = np.ascontiguousarray(apply_d4(piece, *element)).astype(np.float32)
        return whole * np.float32(1 / 255), np.ascontiguousarray(apply_d4(mask, *element)) != IGNORE

    def _changed(self, plane: Array, step: int, sample: int, view: int) -> Array:
        draw = rng.generator(self.seed, step, sample, STRONG + view, rng.UNLABELLED)
        return photometry(plane, self.crops, draw)

    def _box(self, step: int, sample: int, view: int) -> NDArray[np.bool_]:
        """Return where a view shows its partner: CutMix, Yun et al. 2019 (arXiv:1905.04899)."""
        draw = rng.generator(self.seed, step, sample, BOX + view, rng.UNLABELLED)
        side = self.crops.size
        box = np.zeros((side, side), bool)
        if draw.random() >= self.cutmix_p:
            return box
        area, ratio = draw.uniform(*BOX_AREA) * side * side, draw.uniform(*BOX_RATIO)
        height = min(side, max(1, round(float(np.sqrt(area / ratio)))))
        width = min(side, max(1, round(float(np.sqrt(area * ratio)))))
        top = int(draw.integers(side - height + 1))
        left = int(draw.integers(side - width + 1))
        box[top : top + height, left : left + width] = True
        return box
