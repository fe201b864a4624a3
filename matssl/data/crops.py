"""Labelled images in memory, and random crops of them that favour rare classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.arrays import Array, roomy
from matssl.core.errors import UserError
from matssl.core.geometry import apply_d4
from matssl.core.labels import IGNORE
from matssl.data import augmentation as augmenting
from matssl.data import bars, levels, pasting, readers
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import sequences

if TYPE_CHECKING:
    from torch import Tensor

# Enough places of a class to draw from; all of them would cost more memory than the image.
MAX_PLACES = 20_000


@dataclass(frozen=True)
class Labelled:
    """Decoded images with their masks.

    Attributes:
        planes: float32 (H, W), (H, W, 3) or (H, W, frames) each, nominally 0 to 1.
        masks: uint8 (H, W) each, class index or 255.
        pairs: where they came from.
        facts: bits and pixel size of each image.
        digests: SHA-256 of the pixels of each image as they lie in its file.
    """

    planes: tuple[Array, ...]
    masks: tuple[NDArray[np.uint8], ...]
    pairs: tuple[Pair, ...]
    facts: tuple[tuple[int, float | None], ...]
    digests: tuple[str, ...] = ()

    def take(self, numbers: Sequence[int]) -> Labelled:
        """Return the images of these numbers."""
        return Labelled(
            tuple(self.planes[i] for i in numbers),
            tuple(self.masks[i] for i in numbers),
            tuple(self.pairs[i] for i in numbers),
            tuple(self.facts[i] for i in numbers),
            tuple(self.digests[i] for i in numbers) if self.digests else (),
        )

    def identity(self) -> str:
        """Return the SHA-256 of all images and masks, wherever the files lie."""
        return readers.digest(np.array(self.digests), *self.masks)


@dataclass(frozen=True)
class CropAugmentation:
    """How training crops are drawn and changed.

    Attributes:
        size: side in pixels.
        rare_p: share of the crops of a batch that hold a pixel of a chosen class.
        d4: "full", "flips", "hflip" or "none"; "each": all eight in turn, for images that come in
            turn too.
        scale: log of the largest zoom.
        rotation: largest turn in degrees, either way, beside those of ``d4``.
        brightness: largest shift as a share of the grey range.
        contrast: log of the largest factor about the crop's mean.
        gamma: log of the largest exponent.
        illumination: largest slope of light across the crop, as a share of the grey range.
        blur_p: share of blurred crops, sigma up to 1.5 px.
        noise_p: share of noisy crops, sigma up to 0.03 of the grey range.
        paste_p: share of crops that regions of rare classes are pasted into.
        pipeline: changes the crops instead of ``d4`` and all that follows ``scale``; None for none.
    """

    size: int = 192
    rare_p: float = 0.5
    d4: str = "full"
    scale: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    illumination: float = 0.0
    blur_p: float = 0.0
    noise_p: float = 0.0
    paste_p: float = 0.0
    pipeline: augmenting.Pipeline | None = None

    @property
    def augmented(self) -> Mapping[str, object] | None:
        """The record of the pipeline, None without one."""
        return None if self.pipeline is None else self.pipeline.record


def load(pairs: Sequence[Pair], record: Preprocess, table: ClassTable) -> Labelled:
    """Return the images and masks of these pairs, decoded and cut alike.

    Raises:
        UserError: a file that cannot be read, sizes that differ, a value no class lists.
    """
    if not all(pair.image in record.bars for pair in pairs):
        told = ((pair.image, pair.mask) for pair in pairs)
        judged = bars.of_pairs(told, record.frame, record.crop_bottom)
        judged.refuse_misfits()
        record = record.knowing(judged.rows)
    planes, masks, facts, digests = [], [], [], []
    for pair in pairs:
        assert pair.mask is not None
        micrograph = record.frame(pair.image)
        raw = table.decode(readers.read_mask(pair.mask), str(pair.mask))
        masks.append(np.ascontiguousarray(record.mask(raw, micrograph)))
        if record.depth == 1:
            planes.append(record.plane(micrograph))
        facts.append((micrograph.bits, micrograph.pixel_size))
        digests.append(readers.digest(micrograph.pixels))
    if record.depth > 1:
        planes = _stacks([pair.image for pair in pairs], [mask.shape for mask in masks], record)
    return Labelled(tuple(planes), tuple(masks), tuple(pairs), tuple(facts), tuple(digests))


def _stacks(
    images: Sequence[Path], shapes: Sequence[tuple[int, ...]], record: Preprocess
) -> list[Array]:
    """Return the planes of images with their neighbours, (H, W, frames) each.

    Neighbours share their frames: images in a row take little more memory than at depth 1.

    Args:
        images: labelled ones.
        shapes: (H, W) of the plane of each.
        record: how they are read.

    Raises:
        UserError: a neighbour cannot be read, or differs from its frame in size.
    """
    planes: dict[int, Array] = {}
    for shape in dict.fromkeys(shapes):
        places = [place for place, own in enumerate(shapes) if own == shape]
        row, starts = sequences.chained([record.near(images[place]) for place in places])
        frames = roomy((len(row), *shape), np.float32)
        for number, path in enumerate(row):
            if number and row[number - 1] == path:
                frames[number] = frames[number - 1]
                continue
            plane = record.plane(record.frame(path))
            if plane.shape != shape:
                beside = next(
                    images[place] for place in places if path in record.near(images[place])
                )
                raise UserError(sequences.misfit(path, plane.shape, beside, shape))
            frames[number] = plane
        for place, start in zip(places, starts, strict=True):
            planes[place] = np.moveaxis(frames[start : start + record.depth], 0, 2)
    return [planes[place] for place in range(len(images))]


def labelled(pairs: Sequence[Pair], table: ClassTable) -> tuple[Pair, ...]:
    """Return the pairs whose mask has a pixel that counts; the others are not labelled yet.

    Raises:
        UserError: a mask that cannot be read, or holds a value no class lists.
    """
    if not table.ignore_values and table.rest_index != IGNORE:
        return tuple(pair for pair in pairs if pair.mask is not None)
    return tuple(
        pair
        for pair in pairs
        if pair.mask is not None
        and bool((table.decode(readers.read_mask(pair.mask), str(pair.mask)) != IGNORE).any())
    )


class CropLoader:
    """Batches of crops as a pure function of (seed, step)."""

    def __init__(
        self,
        data: Labelled,
        record: Preprocess,
        num_classes: int,
        augmentation: CropAugmentation,
        batch_size: int,
        seed: int,
        threads: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Make a loader; parameters as in ``data.datasets.ViewLoader``.

        Raises:
            UserError: the masks are all ignored, or the processes cannot share a batch.
        """
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size} cannot be shared by {world_size} processes")
        self.data, self.record, self.augmentation = data, record, augmentation
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.rank, self.local = rank, batch_size // world_size
        self.places = [_places(mask, num_classes, i, seed) for i, mask in enumerate(data.masks)]
        share = np.array([sum(len(p[c]) > 0 for p in self.places) for c in range(num_classes)])
        if not share.any():
            raise UserError("every pixel of the training masks is to be ignored")
        self.present = np.flatnonzero(share)
        # Of each image, what a crop that would show no labelled pixel is moved to.
        self.known = [np.concatenate(places) for places in self.places]
        self.pasting = None
        if augmentation.paste_p > 0:
            drawn = data.planes, data.masks, self.places
            self.pasting = pasting.Pasting(*drawn, augmentation.paste_p, augmentation.size, seed)
        used = data.planes if augmentation.pipeline else ()
        self.levels = [augmenting.levels(plane) for plane in used]

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 (b, C, S, S) and masks int64 (b, S, S) of steps start to stop."""
        yield from prefetched(self.batch, range(start, stop), self.threads)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's part of the batch of a step."""
        # Late: what only predicts reads labelled images without torch.
        import torch

        first = self.rank * self.local
        crops = [self._crop(step, first + i) for i in range(self.local)]
        images = torch.from_numpy(np.stack([image for image, _ in crops]))
        masks = torch.from_numpy(np.stack([mask for _, mask in crops]).astype(np.int64))
        return images.contiguous(memory_format=torch.channels_last), masks

    def _crop(self, step: int, sample: int) -> tuple[Array, Array]:
        generator = rng.generator(self.seed, step, sample, stream=rng.CROPS)
        augmentation = self.augmentation
        centred = round(augmentation.rare_p * self.batch_size)
        scale = float(np.exp(augmentation.scale * generator.uniform(-1, 1)))
        side = max(16, round(augmentation.size * scale))
        pivot = None
        if sample < centred:
            # The slots of successive steps walk through the classes, so none waits for luck.
            chosen = int(self.present[(step * centred + sample) % len(self.present)])
            holders = [i for i, p in enumerate(self.places) if len(p[chosen])]
            image = holders[int(generator.integers(len(holders)))]
            place = self.places[image][chosen]
            y, x = divmod(
                int(place[int(generator.integers(len(place)))]), self.data.masks[image].shape[1]
            )
            top, left = y - int(generator.integers(side)), x - int(generator.integers(side))
            # What was chosen stays in a crop that is turned about it.
            pivot = (y, x)
        else:
            image = self._image(step, sample, generator)
            height, width = self.data.masks[image].shape
            top = int(generator.integers(max(1, height - side + 1)))
            left = int(generator.integers(max(1, width - side + 1)))
            seen = self.data.masks[image][top : top + side, left : left + side]
            if len(self.known[image]) and (seen == IGNORE).all():
                place = self.known[image][int(generator.integers(len(self.known[image])))]
                y, x = divmod(int(place), width)
                top, left = y - int(generator.integers(side)), x - int(generator.integers(side))
        whole = self.data.planes[image], self.data.masks[image]
        if augmentation.rotation > 0:
            # Drawn where it is asked for alone, so that other runs keep their bits.
            angle = augmentation.rotation * float(generator.uniform(-1, 1))
            plane, mask = cut_turned(*whole, top, left, side, angle, pivot)
        else:
            plane, mask = cut(*whole, top, left, side)
        if self.pasting is not None:
            plane, mask = self.pasting(plane, mask, step, sample)
        if side != augmentation.size:
            shape = (augmentation.size, augmentation.size)
            kind = cv2.INTER_AREA if side > augmentation.size else cv2.INTER_LINEAR
            plane = levels.resized(plane, augmentation.size, kind)
            mask = cv2.resize(mask, shape, interpolation=cv2.INTER_NEAREST_EXACT)
        if augmentation.pipeline is not None:
            plane, mask = augmentation.pipeline(plane, mask, generator, self.levels[image])
            return self.record.tensor(plane), mask
        plane = photometry(plane, augmentation, generator)
        flip = augmentation.d4 != "none" and bool(generator.integers(2))
        turns = {"full": int(generator.integers(4)), "flips": 2 * int(generator.integers(2))}
        element = (flip, turns.get(augmentation.d4, 0))
        if augmentation.d4 == "each":
            # Eight passes show an image in each of its orientations once; images begin elsewhere.
            epoch = (step * self.batch_size + sample) // len(self.data.planes)
            element = ((epoch + image) % 8 >= 4, (epoch + image) % 4)
        plane, mask = apply_d4(plane, *element), apply_d4(mask, *element)
        return self.record.tensor(np.ascontiguousarray(plane)), np.ascontiguousarray(mask)

    def _image(self, step: int, sample: int, generator: np.random.Generator) -> int:
        count = len(self.data.planes)
        if self.augmentation.rare_p > 0:
            return int(generator.integers(count))
        # Without crops that follow the classes, each image comes once an epoch.
        epoch, place = divmod(step * self.batch_size + sample, count)
        return int(rng.epoch_order(self.seed, epoch, count)[place])


def photometry(
    plane: Array, augmentation: CropAugmentation, generator: np.random.Generator
) -> Array:
    """Return the crop with changed grey levels, blur and noise; float32, same shape.

    The changes act about the crop's own range and mean, so that their strength does not depend on
    how a microscope was set.
    """
    u = generator.uniform(-1, 1, size=8)
    result = plane.astype(np.float32)
    if augmentation.gamma > 0:
        low, high = float(result.min()), float(result.max())
        span = max(high - low, 1e-6)
        result = ((result - low) / span) ** float(np.exp(augmentation.gamma * u[0])) * span + low
    if augmentation.contrast > 0:
        centre = float(result.mean())
        result = (result - centre) * float(np.exp(augmentation.contrast * u[1])) + centre
    if augmentation.brightness > 0:
        result = result + float(augmentation.brightness * u[2])
    if augmentation.illumination > 0:
        angle, slope = np.pi * u[3], augmentation.illumination * abs(u[4])
        y = np.linspace(-0.5, 0.5, result.shape[0], dtype=np.float32)[:, None]
        x = np.linspace(-0.5, 0.5, result.shape[1], dtype=np.float32)[None]
        light = float(slope * np.sin(angle)) * y + float(slope * np.cos(angle)) * x
        result = result + (light if result.ndim == 2 else light[..., None])
    if abs(u[5]) < augmentation.blur_p:
        result = cv2.GaussianBlur(result, (0, 0), 0.3 + 1.2 * float(generator.random()))
    if abs(u[6]) < augmentation.noise_p:
        noise = generator.standard_normal(result.shape[:2], dtype=np.float32)
        noise *= np.float32(0.03 * abs(u[7]))
        result = result + (noise if result.ndim == 2 else noise[..., None])
    return result.astype(np.float32)


def _places(
    mask: NDArray[np.uint8], num_classes: int, number: int, seed: int
) -> list[NDArray[np.int64]]:
    """Return flat places of each class, at most MAX_PLACES of them, spread at random."""
    result = []
    for index in range(num_classes):
        places = np.flatnonzero(mask == index)
        if len(places) > MAX_PLACES:
            generator = rng.generator(seed, number, index, stream=rng.SUBSETS)
            places = places[generator.choice(len(places), MAX_PLACES, replace=False)]
        result.append(places)
    return result


def cut(
    plane: Array, mask: NDArray[np.uint8], top: int, left: int, side: int
) -> tuple[Array, NDArray[np.uint8]]:
    """Return a square of plane and mask, moved inside; a smaller image is mirrored, unlabelled."""
    top, left = _inside(mask.shape, top, left, side)
    plane, mask = (
        plane[top : top + side, left : left + side],
        mask[top : top + side, left : left + side],
    )
    bottom, right = side - mask.shape[0], side - mask.shape[1]
    if bottom or right:
        wide = ((0, bottom), (0, right))
        plane = np.pad(plane, wide if plane.ndim == 2 else (*wide, (0, 0)), mode="symmetric")
        mask = np.pad(mask, wide, constant_values=IGNORE)
    return plane, mask


def _inside(shape: tuple[int, ...], top: int, left: int, side: int) -> tuple[int, int]:
    """Return the corner of a square that is moved into an image, as far as it goes."""
    height, width = shape
    return min(max(top, 0), max(height - side, 0)), min(max(left, 0), max(width - side, 0))


def cut_turned(
    plane: Array,
    mask: NDArray[np.uint8],
    top: int,
    left: int,
    side: int,
    degrees: float,
    pivot: tuple[int, int] | None = None,
) -> tuple[Array, NDArray[np.uint8]]:
    """Return a turned square of plane and mask: grey levels linear between pixels, classes nearest.

    What lies beyond the image is mirrored, and unlabelled.

    Args:
        plane: (H, W) or (H, W, C).
        mask: (H, W).
        top: of the square before it is turned; it is moved into the image.
        left: as ``top``.
        side: of the square.
        degrees: anticlockwise turn of the content, as it is looked at.
        pivot: row and column that stay where they are in the square; None for its middle.
    """
    height, width = mask.shape
    top, left = _inside(mask.shape, top, left, side)
    middle = (side - 1) / 2
    y, x = (top + middle, left + middle) if pivot is None else pivot
    cos, sin = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    # From a place in the square, counted from the pivot, to the image.
    turn = np.array([[cos, -sin], [sin, cos]])
    start = turn @ np.array([left - x, top - y]) + np.array([x, y])
    corners = start + np.array([[0, 0], [side, 0], [0, side], [side, side]]) @ turn.T
    low, high = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 2
    rows, columns = np.arange(low[1], high[1]), np.arange(low[0], high[0])
    place = np.ix_(_mirrored(rows, height), _mirrored(columns, width))
    labels = mask[place].copy()
    labels[(rows < 0) | (rows >= height)] = IGNORE
    labels[:, (columns < 0) | (columns >= width)] = IGNORE
    matrix = np.column_stack([turn, start - low])
    shape = (side, side)
    linear = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    nearest = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return (
        cv2.warpAffine(np.ascontiguousarray(plane[place]), matrix, shape, flags=linear),
        cv2.warpAffine(labels, matrix, shape, flags=nearest, borderValue=IGNORE),
    )


def _mirrored(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return rows or columns of an image for those beyond its ends, the last one coming twice."""
    folded = np.mod(places, 2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)
