"""From a pool to batches of views: tiles, the order of an epoch, prefetching threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.core.geometry import apply_d4
from matssl.core.labels import IGNORE
from matssl.data import views
from matssl.data.cache import Pool
from matssl.data.device_views import Renderer
from matssl.data.prefetch import prefetched
from matssl.data.views import ViewAugmentation

# Share of a tile's pixels from which a class counts as shown.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Guides:
    """Labelled images, a tile of one of which stands at the front of every batch.

    Attributes:
        planes: uint8 (H, W) or (H, W, 3) each, as the pool's.
        masks: uint8 (H, W) each, class index or 255.
        lots: production batch of each image, -1 where it is not known.
        names: of the classes.
        beside: whether the tile stands beside the samples of the pool that a batch has, one less
            than its size, instead of in the place of the first of as many as its size.
    """

    planes: tuple[NDArray[np.uint8], ...]
    masks: tuple[NDArray[np.uint8], ...]
    lots: tuple[int, ...]
    names: tuple[str, ...] = ()
    beside: bool = False


def tile_boxes(shapes: Sequence[tuple[int, ...]], tile_size: int) -> NDArray[np.int64]:
    """Return the tiles of all images, int64 (T, 5): image, top, left, height, width.

    An image is cut into as few equal tiles of about ``tile_size`` as cover it, so that an epoch
    sees large images more often than small ones. An image below ``tile_size`` is one tile.
    """
    rows = []
    for image, shape in enumerate(shapes):
        height, width = shape[:2]
        down, across = max(1, round(height / tile_size)), max(1, round(width / tile_size))
        ys = np.linspace(0, height, down + 1).astype(int)
        xs = np.linspace(0, width, across + 1).astype(int)
        for y0, y1 in zip(ys[:-1], ys[1:], strict=True):
            for x0, x1 in zip(xs[:-1], xs[1:], strict=True):
                rows.append((image, y0, x0, y1 - y0, x1 - x0))
    return np.array(rows, np.int64)


def guide_boxes(
    masks: Sequence[NDArray[np.uint8]], tile_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return tiles of labelled images, as :func:`tile_boxes`, and how often each is drawn, (T,).

    Tiles overlap by half. What a labelled view teaches is how its classes differ, so tiles of one
    class alone are left out where others show it, too; and every class gets the same share of the
    draws, however few tiles show it.

    Args:
        masks: uint8 (H, W) each, class index or 255.
        tile_size: side of a tile; an image below it is one tile.
    """
    classes = [c for c in np.unique(np.concatenate([np.unique(m) for m in masks])) if c != IGNORE]
    boxes, shown = [], []
    for image, mask in enumerate(masks):
        height, width = (min(tile_size, side) for side in mask.shape)
        places = [
            np.linspace(0, side - tile, -(-2 * side // tile) - 1).astype(int)
            for side, tile in zip(mask.shape, (height, width), strict=True)
        ]
        top, left = (grid.ravel() for grid in np.meshgrid(*places, indexing="ij"))
        ones = np.ones_like(top)
        boxes.append(np.stack([image * ones, top, left, height * ones, width * ones], axis=1))
        sums = [cv2.integral((mask == c).astype(np.uint8)) for c in classes]
        bottom, right = top + height, left + width
        area = [s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left] for s in sums]
        shown.append(np.stack(area, axis=1) >= LEAST_SHARE * height * width)
    shows = np.concatenate(shown)
    several = shows.sum(1) > 1
    only_alone = ~shows[several].any(0)
    shows &= (several | shows[:, only_alone].any(1))[:, None]
    weight = (shows / np.maximum(shows.sum(0), 1)).sum(1)
    if not weight.any():
        # Hardly a pixel is labelled: no tile is better than another.
        weight = np.ones(len(shows))
    return np.concatenate(boxes), weight / weight.sum()


def check_batch(shapes: Sequence[tuple[int, ...]], tile_size: int, batch_size: int) -> None:
    """Refuse a batch that is larger than the set.

    Raises:
        UserError: the sentence names both numbers.
    """
    count = len(tile_boxes(shapes, tile_size))
    if batch_size > count:
        raise UserError(
            f"--batch_size {batch_size} is larger than the set ({count} tiles of "
            f"{len(shapes)} images); lower it to {count} or less"
        )


@dataclass(frozen=True)
class Drawn:
    """A batch before its views are made.

    Attributes:
        draws: of each view of a sample, the random part.
        images: of each view of a sample, int64 (B,): the plane each is cut from. Behind the planes
            of the pool are those of the labelled images.
        batch: everything else; it has no views.
    """

    draws: tuple[views.Draws, ...]
    images: tuple[NDArray[np.int64], ...]
    batch: Batch


class ViewLoader:
    """Batches of random views; the same bits for any number of threads and processes."""

    def __init__(
        self,
        pool: Pool,
        augmentations: Sequence[ViewAugmentation],
        batch_size: int,
        tile_size: int,
        seed: int,
        threads: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
        guides: Guides | None = None,
        lots: NDArray[np.int64] | None = None,
        beside: Sequence[tuple[int, ...]] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Make a loader.

        Args:
            pool: decoded images.
            augmentations: one for each view of a sample.
            batch_size: samples a step over all processes.
            tile_size: see :func:`tile_boxes`.
            seed: of every draw.
            threads: prefetching threads; 0 makes batches when they are asked for.
            rank: number of this process.
            world_size: number of processes; each gets its part of every batch.
            pin: make batches in pinned memory, for a GPU.
            guides: labelled images; the first sample of each batch is a tile of one of them.
            lots: production batch of each image of the pool, -1 where it is not known.
            beside: of each image of the pool the numbers of frames beside it in its sequence, one
                of which gives the further views of a sample, at the same place; None: the image
                itself gives all of them.
            device: where the views are made, all of a batch at once; None: on the CPU, one by one.

        Raises:
            UserError: fewer tiles than a batch, a batch that the processes cannot share, or
                labelled images in colour beside a gray pool.
        """
        self.tiles = tile_boxes(pool.shapes, tile_size)
        self.channels = pool.channels
        # Samples of the pool in a batch.
        self.drawn = batch_size - (guides is not None and guides.beside)
        check_batch(pool.shapes, tile_size, self.drawn)
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size} cannot be shared by {world_size} processes")
        self.pool, self.augmentations, self.seed = pool, tuple(augmentations), seed
        self.batch_size, self.threads = batch_size, threads
        self.rank, self.local, self.pin = rank, batch_size // world_size, pin
        self.groups = pool.groups[self.tiles[:, 0]]
        self.guides, self.lots, self.beside = guides, lots, beside
        if guides is not None:
            self.guides = replace(guides, planes=tuple(map(self._as_pool, guides.planes)))
            self.guide_tiles, self.guide_chances = guide_boxes(guides.masks, tile_size)
        self.renderer: Renderer | None = None
        if device is not None:
            labelled = () if self.guides is None else self.guides.planes
            planes = itertools.chain(map(pool.plane, range(len(pool))), labelled)
            self.renderer = Renderer(planes, self.channels, device)

    def _as_pool(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a labelled image with the pool's channels; gray is a colour, too.

        Raises:
            UserError: it is in colour, and the pool in gray.
        """
        if self.pool.stacks:
            return plane
        if plane.ndim == 3 and self.channels == 1:
            raise UserError("the labelled images are in colour, the pool is gray; use --color gray")
        gray_in_colour = plane.ndim == 2 and self.channels == 3
        return np.stack([plane] * 3, axis=2) if gray_in_colour else plane

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last, partial one is left out."""
        return len(self.tiles) // self.drawn

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from ``start_step`` on."""
        order = rng.epoch_order(self.seed, epoch, len(self.tiles))
        steps = range(start_step, self.steps_per_epoch)
        if self.renderer is None:
            yield from prefetched(lambda step: self._batch(order, epoch, step), steps, self.threads)
            return
        # Threads draw ahead; a device makes its batches in order.
        ahead = prefetched(lambda step: self._planned(order, epoch, step), steps, self.threads)
        yield from map(self._made, ahead)

    def sample(self, count: int) -> Batch:
        """Return a fixed batch of up to ``count`` samples for the monitor, spread over the set."""
        places = np.linspace(0, len(self.tiles) - 1, min(count, len(self.tiles))).astype(np.int64)
        return self._views(np.unique(places), epoch=(1 << 40))

    def guided_sample(self, count: int) -> Batch:
        """Return such a batch of ``count`` samples whose first one is labelled, where any is."""
        places = np.linspace(0, len(self.tiles) - 1, min(count, len(self.tiles))).astype(np.int64)
        return self._views(np.unique(places), 1 << 40, None if self.guides is None else 0)

    def _batch(self, order: NDArray[np.int64], epoch: int, step: int) -> Batch:
        made = self._made(self._planned(order, epoch, step))
        # Here, since this may be a prefetching thread.
        return made.pinned() if self.pin else made

    def _planned(self, order: NDArray[np.int64], epoch: int, step: int) -> Drawn:
        """Return the own part of a batch of an epoch."""
        start = step * self.drawn
        # Dealt out like cards: sample n of the batch goes to process n mod world size.
        world_size = self.batch_size // self.local
        batch = order[start : start + self.drawn]
        if self.drawn < self.batch_size:
            # Its place is taken by the labelled tile.
            batch = np.concatenate([batch[:1], batch])
        own = batch[self.rank :: world_size]
        guide = epoch * self.steps_per_epoch + step if self.guides and self.rank == 0 else None
        return self._drawn(own, epoch, guide)

    def _views(self, samples: NDArray[np.int64], epoch: int, guide: int | None = None) -> Batch:
        """Return the views of samples; the first is that of guide number ``guide`` instead.

        On the CPU wherever they were made: pictures are drawn of them.
        """
        made = self._made(self._drawn(samples, epoch, guide))
        return replace(made, views=tuple(view.cpu() for view in made.views))

    def _drawn(self, samples: NDArray[np.int64], epoch: int, guide: int | None) -> Drawn:
        """Return samples before their views are made, as :meth:`_views`."""
        tiles = self.tiles[samples]
        images = tiles[:, 0].copy()
        index, group = samples.copy(), self.groups[samples]
        lot = None if self.lots is None else self.lots[tiles[:, 0]]
        numbers = samples.copy()
        if guide is not None:
            assert self.guides is not None
            generator = rng.generator(self.seed, epoch, guide, stream=rng.GUIDES)
            chosen = generator.choice(len(self.guide_tiles), p=self.guide_chances)
            tiles[0] = self.guide_tiles[chosen]
            which = int(tiles[0, 0])
            images[0] = len(self.pool) + which
            # Numbers behind those of the pool, so that a guide's views are draws of their own.
            numbers[0] = len(self.tiles) + guide
            index[0], group[0] = -1, -1
            if lot is not None:
                lot[0] = self.guides.lots[which]
        drawn, cut_from, maps, labels = [], [], [], None
        for number, augmentation in enumerate(self.augmentations):
            draws = views.draw(augmentation, tiles[:, 1:], self.seed, epoch, numbers, number)
            if number == 1 and self.beside is not None:
                images = self._beside(tiles[:, 0], samples, epoch, images, guide is not None)
            drawn.append(draws)
            cut_from.append(images)
            maps.append(draws.maps(augmentation.size))
            if number == 0 and self.guides is not None:
                labels = np.full(
                    (len(samples), augmentation.size, augmentation.size), IGNORE, np.uint8
                )
                if guide is not None:
                    labels[0] = _seen(self.guides.masks[which], draws, augmentation.size)
        batch = Batch(
            views=(),
            maps=torch.from_numpy(np.stack(maps).astype(np.float32)),
            group=torch.from_numpy(group),
            index=torch.from_numpy(index),
            labels=None if labels is None else torch.from_numpy(labels),
            lot=None if lot is None else torch.from_numpy(lot),
        )
        return Drawn(tuple(drawn), tuple(cut_from), batch)

    def _made(self, drawn: Drawn) -> Batch:
        """Return the batch with its views."""
        made = []
        for augmentation, draws, images in zip(
            self.augmentations, drawn.draws, drawn.images, strict=True
        ):
            if self.renderer is not None:
                made.append(self.renderer.render(augmentation, draws, images))
                continue
            out = np.empty(
                (len(images), self.channels, augmentation.size, augmentation.size), np.uint8
            )
            views.render(augmentation, draws, [self._plane(int(i)) for i in images], out)
            made.append(torch.from_numpy(out))
        return replace(drawn.batch, views=tuple(made))

    def _plane(self, image: int) -> NDArray[np.uint8]:
        """Return a plane of the pool or, behind them, of the labelled images."""
        if image < len(self.pool):
            return self.pool.plane(image)
        assert self.guides is not None
        return self.guides.planes[image - len(self.pool)]

    def _beside(
        self,
        own: NDArray[np.int64],
        samples: NDArray[np.int64],
        epoch: int,
        images: NDArray[np.int64],
        guided: bool,
    ) -> NDArray[np.int64]:
        """Return for each sample a frame beside its image, drawn evenly.

        An image without such frames, and the labelled tile of a guided batch, keep their own.
        """
        assert self.beside is not None
        found = images.copy()
        for place in range(int(guided), len(samples)):
            frames = self.beside[int(own[place])]
            if frames:
                generator = rng.generator(
                    self.seed, epoch, int(samples[place]), stream=rng.NEIGHBOURS
                )
                found[place] = frames[int(generator.integers(len(frames)))]
        return found


def _seen(mask: NDArray[np.uint8], draws: views.Draws, size: int) -> NDArray[np.uint8]:
    """Return the mask as the first view of ``draws`` shows it, (size, size)."""
    top, left, height, width = draws.boxes[0].astype(int)
    crop = mask[top : top + height, left : left + width]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    return apply_d4(crop, bool(draws.flips[0]), int(draws.turns[0]))
