"""What a linear read-out of frozen dense features knows of the classes of a few labelled images.

Pretraining has no score of its own. Where a few masks exist, ridge regression from the features of
the four stages (strides 4 to 32; 1 to 8 in the small U-Net) to the classes has a closed form, takes
about a second, and follows what fine-tuning will make of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import specimens
from matssl.data.crops import Labelled
from matssl.metrics import counts, overlap
from matssl.models.encoders import pyramid, sampled

# Windows of images that are looked at, for fitting and for scoring each, and their largest side.
WINDOWS, SIDE = 12, 256
# Pixels of a window that are looked at lie this far apart.
SPACING = 8
# Weight of the squared coefficients, relative to features of unit variance. Of 1e-3 to 10 this gave
# the best scores on five sets of micrographs, from random and from pretrained encoders.
RIDGE = 0.1


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
        tensor: Callable[[NDArray[np.float32]], NDArray[np.float32]],
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
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> float:
        """Return the mean IoU of the read-out on the scoring pixels, 0 to 1.

        Args:
            encoder: gives the pyramid; in eval mode.
            device: where it lives.
            autocast: context of the forward passes.
        """
        rows = [self._features(encoder, w, device, autocast) for w in self.fitted]
        target = torch.from_numpy(np.concatenate([w.target for w in self.fitted])).long()
        weight, bias = ridge(torch.cat(rows), target.to(device), self.num_classes)
        total = np.zeros((self.num_classes, self.num_classes), np.int64)
        for window in self.scored:
            scores = self._features(encoder, window, device, autocast) @ weight + bias
            predicted = scores.argmax(1).cpu().numpy().astype(np.uint8)
            total += counts.confusion(window.target, predicted, self.num_classes)
        return overlap.miou(total)

    def _features(
        self,
        encoder: nn.Module,
        window: Window,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> Tensor:
        image = torch.from_numpy(window.image)[None].to(device)
        with torch.inference_mode(), autocast():
            maps = pyramid(encoder, image.contiguous(memory_format=torch.channels_last))
        return sampled(
            [level.float() for level in maps], window.x, window.y, window.image.shape[1:]
        )


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
    tensor: Callable[[NDArray[np.float32]], NDArray[np.float32]],
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
    content = np.array(
        [
            np.bincount(
                data.masks[i][y : y + h : SPACING, x : x + w : SPACING].ravel(), minlength=256
            )[:num_classes]
            for i, y, x, h, w in boxes
        ]
    )
    rare_first = np.argsort(content.sum(0), kind="stable")
    order = [int(content[:, c].argmax()) for c in rare_first if content[:, c].any()]
    order += np.linspace(0, len(boxes) - 1, min(WINDOWS, len(boxes))).astype(int).tolist()
    chosen = sorted(dict.fromkeys(order[: max(WINDOWS, num_classes)]))
    return [w for place in chosen if len((w := _window(data, boxes[place], tensor)).target)]


def _starts(length: int, side: int) -> list[int]:
    """Return where windows of a side begin: as many as lie side by side, spread out."""
    count = max(1, length // side)
    return np.linspace(0, max(0, length - side), count).astype(int).tolist()


def _window(
    data: Labelled,
    box: tuple[int, int, int, int, int],
    tensor: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> Window:
    number, top, left, height, width = box
    plane = data.planes[number][top : top + height, left : left + width]
    mask = data.masks[number][top : top + height, left : left + width]
    image = tensor(np.ascontiguousarray(plane))
    down, right = height - plane.shape[0], width - plane.shape[1]
    if down or right:
        image = np.pad(image, ((0, 0), (0, down), (0, right)), mode="symmetric")
    y, x = np.mgrid[SPACING // 2 : mask.shape[0] : SPACING, SPACING // 2 : mask.shape[1] : SPACING]
    y, x = y.ravel(), x.ravel()
    known = mask[y, x] != IGNORE
    return Window(image, x[known], y[known], mask[y, x][known])
