"""What a linear read-out of frozen dense features knows of the classes of a few labelled images.

Pretraining has no score of its own. Where a few masks exist, ridge regression from the features of
the four stages (strides 4 to 32; 1 to 8 in the small U-Net) to the classes has a closed form, takes
about a second, and follows what fine-tuning will make of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import specimens
from matssl.data.crops import Labelled
from matssl.data.specimens import Pair
from matssl.measure import intervals
from matssl.measure.intervals import MIN_FIELDS, Interval
from matssl.metrics import counts, overlap
from matssl.models.encoders import pyramid, sampled

# Windows of images that are looked at, for fitting and for scoring each, and their largest side.
WINDOWS, SIDE = 12, 256
# Pixels of a window that are looked at lie this far apart.
SPACING = 8
# Weight of the squared coefficients, relative to features of unit variance. Of 1e-3 to 10 this gave
# the best scores on five sets of micrographs, from random and from pretrained encoders.
RIDGE = 0.1
# Blocks of the cross-validation: their largest side, and how many there are at most. Fewer and
# larger ones leave wider intervals.
BLOCK, BLOCKS = 192, 20
# Pixels of a block that lie nearer to its border are not looked at: twice as many part what fits
# from what scores.
MARGIN = 16
# Pixels that are looked at, about, in all blocks together.
ROWS = 4000
# Folds of blocks, and of specimens at most.
FOLDS, MOST_FOLDS = 4, 8

Context = Callable[[], AbstractContextManager[object]]
ToTensor = Callable[[NDArray[np.float32]], NDArray[np.float32]]
# Number of the image, top, left, height and width.
Box = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Window:
    """A piece of a labelled image and the pixels of it that count.

    Attributes:
        image: float32 (C, H, W), normalised, sides multiples of what the encoder needs.
        x: columns of the pixels, int64 (n,).
        y: rows.
        target: classes, uint8 (n,).
    """

    image: NDArray[np.float32]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    target: NDArray[np.uint8]


class DenseProbe:
    """Fits on some labelled images and scores on others; on parts of an image that is alone.

    Attributes:
        opened: the labelled images it was made of, by their part in it.
    """

    def __init__(
        self,
        train: Labelled,
        val: Labelled | None,
        num_classes: int,
        tensor: ToTensor,
        seed: int,
        multiple: int,
    ) -> None:
        """Choose the windows.

        Args:
            train: labelled images; what is not in ``val`` fits.
            val: images that score; None cuts them from ``train``, whole specimens where it has
                several.
            num_classes: of the masks.
            tensor: plane to normalised input (C, H, W).
            seed: of the cut.
            multiple: of the sides of windows, as the encoders that will be scored need it.

        Raises:
            UserError: fewer than two classes can be fitted and scored.
        """
        self.num_classes = num_classes
        self.opened = {"probe": train} | ({} if val is None else {"probe val": val})
        if val is None:
            kept, held = specimens.cut_validation(train.pairs, 0.3, seed)
            if held:
                place = {pair.image: i for i, pair in enumerate(train.pairs)}
                val = train.take([place[pair.image] for pair in held])
                train = train.take([place[pair.image] for pair in kept])
        if val is not None:
            self.fitted = _windows(train, num_classes, tensor, multiple)
            self.scored = _windows(val, num_classes, tensor, multiple)
        else:
            # One specimen: fields of its images like those of a chessboard.
            self.fitted = _windows(train, num_classes, tensor, multiple, colour=0)
            self.scored = _windows(train, num_classes, tensor, multiple, colour=1)
        known = [{int(c) for w in part for c in w.target} for part in (self.fitted, self.scored)]
        if len(known[0]) < 2 or len(known[0] & known[1]) < 2:
            raise UserError(
                "--probe_path needs at least two classes in the images that fit the probe and in "
                "those that score it; give more labelled images"
            )

    @property
    def pixels(self) -> int:
        """How many pixels the encoder sees for one score."""
        return sum(w.image.shape[1] * w.image.shape[2] for w in self.fitted + self.scored)

    def score(
        self,
        encoder: nn.Module,
        device: torch.device,
        autocast: Context,
    ) -> float:
        """Return the mean IoU of the read-out on the scoring pixels, 0 to 1.

        Args:
            encoder: gives the pyramid; in eval mode.
            device: where it lives.
            autocast: context of the forward passes.
        """
        rows = [_features(encoder, w, device, autocast) for w in self.fitted]
        target = torch.from_numpy(np.concatenate([w.target for w in self.fitted])).long()
        weight, bias = ridge(torch.cat(rows), target.to(device), self.num_classes)
        total = np.zeros((self.num_classes, self.num_classes), np.int64)
        for window in self.scored:
            scores = _features(encoder, window, device, autocast) @ weight + bias
            predicted = scores.argmax(1).cpu().numpy().astype(np.uint8)
            total += counts.confusion(window.target, predicted, self.num_classes)
        return overlap.miou(total)


@dataclass(frozen=True)
class Block:
    """A window of the cross-validation.

    Attributes:
        window: what is seen of it.
        fold: in which it is held out.
        unit: what it is a sample of: its specimen, or itself.
    """

    window: Window
    fold: int
    unit: str


class CrossProbe:
    """Scores encoders on the very images that are learned from, each part held out once.

    Specimens are held out whole; where all images are of one, images are; of a single image blocks,
    which an encoder sees one by one, with a gap between them. The same pixels score every encoder,
    so that two of them are compared in pairs.

    Attributes:
        blocks: what is fitted and scored.
        unit: what the blocks are samples of, in words: specimens, images or blocks.
        classes: that are scored: those of which two units show a pixel.
    """

    def __init__(
        self, data: Labelled, num_classes: int, tensor: ToTensor, seed: int, multiple: int
    ) -> None:
        """Choose the blocks.

        Args:
            data: labelled images.
            num_classes: of the masks.
            tensor: plane to normalised input (C, H, W).
            seed: of the folds.
            multiple: of the sides of blocks, as the encoders that will be scored need it.

        Raises:
            UserError: too few labels to hold some out.
        """
        self.num_classes = num_classes
        boxes = _spread(data, num_classes, seed, multiple)
        total = sum(h * w for _, _, _, h, w in boxes)
        spacing = max(2, round(math.sqrt(total / ROWS)))
        found = []
        for box in boxes:
            margin = min(MARGIN, min(box[3:]) // 8)
            window = _window(data, box, tensor, spacing, margin)
            found += [(box, window)] if len(window.target) else []
        self.unit, units, folds = _folded(data, found, seed)
        self.blocks = [
            Block(window, fold, unit)
            for (_, window), unit, fold in zip(found, units, folds, strict=True)
        ]
        shown: dict[int, set[tuple[str, int]]] = {}
        for block in self.blocks:
            for value in np.unique(block.window.target).tolist():
                shown.setdefault(value, set()).add((block.unit, block.fold))
        self.classes = sorted(
            value for value, own in shown.items() if len(own) > 1 and len({f for _, f in own}) > 1
        )
        if len(self.classes) < 2:
            raise UserError("fewer than two classes lie in two parts of the labelled images each")

    def counts(
        self, encoder: nn.Module, device: torch.device, autocast: Context
    ) -> NDArray[np.int64]:
        """Return the confusion matrix of each unit, int64 (units, C, C), rows truth.

        Args:
            encoder: gives the pyramid; in eval mode.
            device: where it lives.
            autocast: context of the forward passes.
        """
        rows = [_features(encoder, block.window, device, autocast) for block in self.blocks]
        names = list(dict.fromkeys(block.unit for block in self.blocks))
        found = np.zeros((len(names), self.num_classes, self.num_classes), np.int64)
        for fold in sorted({block.fold for block in self.blocks}):
            own = [i for i, block in enumerate(self.blocks) if block.fold != fold]
            target = np.concatenate([self.blocks[i].window.target for i in own])
            truth = torch.from_numpy(target).long().to(device)
            weight, bias = ridge(torch.cat([rows[i] for i in own]), truth, self.num_classes)
            for block, features in zip(self.blocks, rows, strict=True):
                if block.fold != fold:
                    continue
                said = (features @ weight + bias).argmax(1).cpu().numpy().astype(np.uint8)
                one = counts.confusion(block.window.target, said, self.num_classes)
                found[names.index(block.unit)] += one
        return found

    def score(self, found: NDArray[np.int64]) -> float:
        """Return the mean IoU of :meth:`counts` over the scored classes, 0 to 1."""
        return float(overlap.iou(found.sum(axis=0))[self.classes].mean())

    def gain(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Interval:
        """Return the 95 % interval of second minus first, of :meth:`score`: a paired jackknife.

        Without ends below MIN_FIELDS units.
        """

        def gain(kept: NDArray[np.bool_]) -> float:
            return self.score(second[kept]) - self.score(first[kept])

        units = np.arange(len(first))
        without = [gain(units != unit) for unit in units] if len(units) > 1 else []
        return intervals.jackknife(gain(units >= 0), without, -1.0, 1.0)


def _spread(data: Labelled, num_classes: int, seed: int, multiple: int) -> list[Box]:
    """Return the boxes of a cross-validation: of a single image many, of others about as many each.

    Of several images each gives those that show most of a class, every class in its turn.
    """
    pairs = specimens.take(data.pairs, BLOCKS, seed)
    numbers = [i for i, pair in enumerate(data.pairs) if pair in pairs]
    found: list[Box] = []
    # Of an image so many along its shorter side that all together have enough.
    parts = math.ceil(math.sqrt(BLOCKS / len(numbers)))
    for place, number in enumerate(numbers):
        mask = data.masks[number]
        side = max(multiple, min(BLOCK, min(mask.shape) // parts) // multiple * multiple)
        boxes = [
            (number, top, left, side, side)
            for top in _starts(mask.shape[0], side)
            for left in _starts(mask.shape[1], side)
        ]
        if len(numbers) == 1:
            return _chosen(data, boxes, num_classes, BLOCKS, BLOCKS)
        own = -(-BLOCKS // len(numbers))
        content = _content(data, boxes, num_classes)
        turns = [(place * own + turn) % num_classes for turn in range(own)]
        order = [int(content[:, c].argmax()) for c in turns if content[:, c].any()]
        order += np.linspace(0, len(boxes) - 1, own).astype(int).tolist()
        found += [boxes[n] for n in sorted(list(dict.fromkeys(order))[:own])]
    return found


def _folded(
    data: Labelled, found: Sequence[tuple[Box, Window]], seed: int
) -> tuple[str, list[str], list[int]]:
    """Return what blocks are samples of, which each is a sample of, and the fold of each."""
    kind, names = "specimens", [data.pairs[box[0]].group for box, _ in found]
    if len(set(names)) < 2:
        kind, names = "images", [str(box[0]) for box, _ in found]
    own = [str(place) for place in range(len(found))]
    if len(set(names)) < 2:
        return "blocks of the image", own, _apart([window.target for _, window in found])
    groups = sorted(set(names))
    count = min(len(groups), MOST_FOLDS)
    parts = [Pair(Path(name), None, name, "train") for name in groups]
    held = specimens.grouped_folds(parts, count, seed)
    fold = {groups[i]: number for number, part in enumerate(held) for i in part}
    folds = [fold[name] for name in names]
    if len(groups) < MIN_FIELDS:
        return f"blocks of {len(groups)} {kind}", own, folds
    return kind, names, folds


def _apart(targets: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Return a fold for each block so that every class lies in as many folds as can be.

    Blocks with the rarest class go first, each into the fold that has the fewest of its class.
    """
    content = np.array([np.bincount(target, minlength=256) for target in targets])
    blocks = (content > 0).sum(axis=0)
    rarest = [min(np.flatnonzero(own).tolist(), key=lambda c: blocks[c]) for own in content]
    have = np.zeros((FOLDS, 256), np.int64)
    folds = [0] * len(targets)
    for place in sorted(range(len(targets)), key=lambda i: blocks[rarest[i]]):
        sizes = have.sum(axis=1)
        fold = min(range(FOLDS), key=lambda f: (have[f, rarest[place]], sizes[f]))
        folds[place] = fold
        have[fold, content[place] > 0] += 1
    return folds


def _features(
    encoder: nn.Module, window: Window, device: torch.device, autocast: Context
) -> Tensor:
    """Return the features at the pixels of a window, (n, D)."""
    image = torch.from_numpy(window.image)[None].to(device)
    with torch.inference_mode(), autocast():
        maps = pyramid(encoder, image.contiguous(memory_format=torch.channels_last))
    return sampled([level.float() for level in maps], window.x, window.y, window.image.shape[1:])


def ridge(features: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return weights (D, C) and bias (C,) of ridge regression to one-hot classes.

    A class counts by the root of its number of rows: each alike would paint rare classes over the
    others, each row alike would forget them. Features are standardised, which the returned weights
    undo.

    Args:
        features: float (N, D).
        target: int64 (N,).
        num_classes: C; those without a row get a bias that never wins.
    """
    share = torch.bincount(target, minlength=num_classes).to(features.dtype)
    weight_N = share.clamp_min(1).rsqrt()[target]
    weight_N = (weight_N / weight_N.sum())[:, None]
    mean = (weight_N * features).sum(0)
    centred = features - mean
    scale = (weight_N * centred.square()).sum(0).sqrt().clamp_min(1e-6)
    x = centred / scale
    y = torch.nn.functional.one_hot(target, num_classes).to(features.dtype)
    y_mean = (weight_N * y).sum(0)
    gram = (x * weight_N).T @ x
    gram.diagonal().add_(RIDGE)
    weight = torch.linalg.solve(gram, (x * weight_N).T @ (y - y_mean))
    weight = weight / scale[:, None]
    bias = y_mean - mean @ weight
    return weight, torch.where(share > 0, bias, torch.full_like(bias, -torch.inf))


def _windows(
    data: Labelled,
    num_classes: int,
    tensor: ToTensor,
    multiple: int,
    colour: int | None = None,
) -> list[Window]:
    """Return windows that show every class, then others spread over the images.

    With a ``colour`` only the dark (0) or light (1) fields of a chessboard, at least 2 x 2 of them.
    """
    boxes = []
    for number, mask in enumerate(data.masks):
        most = SIDE if colour is None else min(SIDE, min(mask.shape) // 2)
        height, width = (max(multiple, min(most, n) // multiple * multiple) for n in mask.shape)
        for row, top in enumerate(_starts(mask.shape[0], height)):
            for column, left in enumerate(_starts(mask.shape[1], width)):
                if colour is None or (row + column) % 2 == colour:
                    boxes.append((number, top, left, height, width))
    if not boxes:
        return []
    chosen = _chosen(data, boxes, num_classes, max(WINDOWS, num_classes), WINDOWS)
    return [w for box in chosen if len((w := _window(data, box, tensor)).target)]


def _chosen(
    data: Labelled, boxes: Sequence[Box], num_classes: int, most: int, spread: int
) -> list[Box]:
    """Return boxes that show every class, the rarest first, then so many spread over all."""
    content = _content(data, boxes, num_classes)
    rare_first = np.argsort(content.sum(0), kind="stable")
    order = [int(content[:, c].argmax()) for c in rare_first if content[:, c].any()]
    order += np.linspace(0, len(boxes) - 1, min(spread, len(boxes))).astype(int).tolist()
    return [boxes[place] for place in sorted(dict.fromkeys(order[:most]))]


def _content(data: Labelled, boxes: Sequence[Box], num_classes: int) -> NDArray[np.int64]:
    """Return about how many pixels of each class boxes show, int64 (boxes, C)."""
    return np.array(
        [
            np.bincount(
                data.masks[i][y : y + h : SPACING, x : x + w : SPACING].ravel(), minlength=256
            )[:num_classes]
            for i, y, x, h, w in boxes
        ]
    )


def _starts(length: int, side: int) -> list[int]:
    """Return where windows of a side begin: as many as lie side by side, spread out."""
    count = max(1, length // side)
    return np.linspace(0, max(0, length - side), count).astype(int).tolist()


def _window(
    data: Labelled, box: Box, tensor: ToTensor, spacing: int = SPACING, margin: int = 0
) -> Window:
    number, top, left, height, width = box
    plane = data.planes[number][top : top + height, left : left + width]
    mask = data.masks[number][top : top + height, left : left + width]
    image = tensor(np.ascontiguousarray(plane))
    down, right = height - plane.shape[0], width - plane.shape[1]
    if down or right:
        image = np.pad(image, ((0, 0), (0, down), (0, right)), mode="symmetric")
    first = spacing // 2 + margin
    rows, columns = (n - margin for n in mask.shape)
    y, x = np.mgrid[first:rows:spacing, first:columns:spacing]
    y, x = y.ravel(), x.ravel()
    known = mask[y, x] != IGNORE
    return Window(image, x[known], y[known], mask[y, x][known])
