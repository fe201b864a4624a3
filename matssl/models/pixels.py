"""A classifier of pixels in the place of a network: a forest or a linear one on frozen features.

Features are filters of the picture, the maps of a frozen encoder, or both. Arrays and encoder are
tensors of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.forest import filters, growing, logistic, trees
from matssl.forest.logistic import Linear
from matssl.forest.trees import Forest
from matssl.models.encoders import build_encoder, encoder_facts, maps_at, sampled
from matssl.tiles import plan, windows

# Entry of the description that says what kind of model it is; a network has none.
KIND, FOREST, LINEAR = "kind", "forest", "linear"
# Largest stride of the maps that are seen: a coarser one has too few cells in a labelled picture to
# learn from (see benchmarks/RESULTS.md).
COARSEST = 16
# Of the tensors of a checkpoint; a module has children of its own.
PREFIX = {FOREST: "tree_", LINEAR: "linear_"}


@dataclass(frozen=True)
class Features:
    """What a classifier sees of a pixel: filters first, then the maps of an encoder.

    Attributes:
        sigmas: scales of the filters in pixels; empty where filters take no part.
        channels: of the pictures.
        encoder: gives its feature maps, those up to stride 16 brought to full size; None: filters
            alone.
        name: of the encoder.
    """

    sigmas: tuple[float, ...]
    channels: int
    encoder: nn.Module | None = None
    name: str = ""

    @property
    def filters(self) -> int:
        """How many filters there are."""
        return filters.count(self.sigmas, self.channels)

    @property
    def others(self) -> int:
        """How many features come from the encoder."""
        return sum(count for count, _ in self.seen)

    @property
    def seen(self) -> tuple[tuple[int, int], ...]:
        """Channels and stride of each map of the encoder that is seen, the finest first."""
        if self.encoder is None:
            return ()
        facts = encoder_facts(self.encoder)
        pairs = tuple(zip(facts.channels, facts.strides, strict=True))
        # All of an encoder that has none so fine.
        return tuple(pair for pair in pairs if pair[1] <= COARSEST) or pairs

    @property
    def groups(self) -> list[str]:
        """What each feature is: a filter, or the map of the encoder that it is a channel of."""
        found = list(filters.names(self.sigmas, self.channels)) if self.sigmas else []
        for number, (count, stride) in enumerate(self.seen, start=1):
            found += [f"encoder, map {number} (stride {stride}, {count} channels)"] * count
        return found

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps that are seen of images (B, C, H, W), float32 (B, D, h, w) each."""
        if self.encoder is None:
            return []
        wanted = {stride for _, stride in self.seen}
        return [level.float() for level in maps_at(self.encoder, x, wanted)]

    def at(
        self,
        image: NDArray[np.float32],
        places: NDArray[np.int64],
        device: torch.device | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> NDArray[np.float32]:
        """Return the features of some pixels, float32 (n, F).

        The encoder sees the image in the tiles of a prediction; a pixel's features are those of the
        tile that counts most there.

        Args:
            image: normalised, float32 (channels, H, W).
            places: flat, in rising order.
            device: where the encoder lives.
            autocast: context of its forward passes.
        """
        parts = []
        if self.sigmas:
            parts.append(growing.at(image, places, self.sigmas))
        if self.encoder is not None:
            out = np.empty((len(places), self.others), np.float32)
            y, x = np.divmod(places, image.shape[2])
            multiple = encoder_facts(self.encoder).multiple
            tiling = plan(image.shape[1], image.shape[2], multiple=multiple)
            (height, width), shape = tiling.tile, image.shape
            down = _belonging(y, tiling.tops, height, shape[1])
            across = _belonging(x, tiling.lefts, width, shape[2])
            for row, top in enumerate(tiling.tops):
                for column, left in enumerate(tiling.lefts):
                    own = np.flatnonzero((down == row) & (across == column))
                    if not len(own):
                        continue
                    tile = image[:, top : top + height, left : left + width]
                    more = (0, height - tile.shape[1]), (0, width - tile.shape[2])
                    tile = np.pad(tile, ((0, 0), *more), mode="symmetric")
                    with torch.inference_mode(), (autocast or nullcontext)():
                        maps = self.maps(torch.from_numpy(tile)[None].to(device or "cpu"))
                    values = sampled(maps, x[own] - left, y[own] - top, (height, width))
                    out[own] = values.cpu().numpy()
            parts.append(out)
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _belonging(
    values: NDArray[np.int64], starts: tuple[int, ...], side: int, length: int
) -> NDArray[np.int64]:
    """Return the tile of each row, or column, whose blending weight is the largest there."""
    weight = np.zeros((len(starts), max(length, starts[-1] + side)), np.float32)
    for number, (start, own) in enumerate(zip(starts, windows(starts, side, length), strict=True)):
        weight[number, start : start + side] = own
    return np.asarray(weight.argmax(axis=0)[values], np.int64)


class PixelClassifier(nn.Module):
    """A classifier that lies in a checkpoint as a network does, and predicts whole images.

    Attributes:
        classifier: the trees, or the coefficients.
        features: what it sees.
        encoder: of its features, where they have one.
        description: what tells it in a checkpoint.
        whole: whether it takes whole images in strips: filters need no tiles.
    """

    def __init__(self, classifier: Forest | Linear, features: Features) -> None:
        super().__init__()
        self.classifier, self.features = classifier, features
        self.whole = features.encoder is None
        if features.encoder is not None:
            self.encoder = features.encoder.requires_grad_(False).eval()
            self.multiple = encoder_facts(features.encoder).multiple
        kind = FOREST if isinstance(classifier, Forest) else LINEAR
        self.description: dict[str, Any] = {
            KIND: kind,
            "num_classes": classifier.num_classes,
            "in_channels": classifier.channels,
            "sigmas": list(classifier.sigmas),
        }
        if features.encoder is not None:
            self.description["encoder"] = features.name
        for name, array in classifier.arrays().items():
            self.register_buffer(PREFIX[kind] + name, torch.from_numpy(np.array(array)))

    @classmethod
    def stored(cls, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> PixelClassifier:
        """Return the classifier of a checkpoint.

        Args:
            description: of the model.
            state: its tensors.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: they are none.
        """
        kind, name = description[KIND], str(description.get("encoder", ""))
        count, channels = int(description["num_classes"]), int(description["in_channels"])
        encoder = None
        if name:
            with torch.random.fork_rng(devices=[]):
                encoder = build_encoder(name, channels)
            head = "encoder."
            own = {k.removeprefix(head): state[k] for k in state if k.startswith(head)}
            encoder.load_state_dict(own)
        sigmas = tuple(float(sigma) for sigma in description["sigmas"])
        features = Features(sigmas, channels, encoder, name)
        known = trees.ARRAYS if kind == FOREST else logistic.ARRAYS
        arrays = {name: state[PREFIX[kind] + name].numpy() for name in known}
        if kind == FOREST:
            found = trees.checked(arrays, sigmas, channels, count, features.others)
            return cls(found, features)
        every = features.filters + features.others
        return cls(
            logistic.checked(arrays, sigmas, channels, count, every, features.others), features
        )

    def probabilities(
        self, image: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return what filters alone say of a whole image, float32 (num_classes, H, W), on the CPU.

        Args:
            image: normalised, float32 (C, H, W).
            out: is filled and returned, where given.
        """
        sigmas = self.features.sigmas
        if out is None:
            out = np.empty((self.classifier.num_classes, *image.shape[1:]), np.float32)
        for rows in self._strips(image.shape):
            found = filters.filtered(image, rows, sigmas)
            shares = self.classifier.of_pixels(
                found.reshape(len(found), -1), torch.get_num_threads()
            )
            out[:, rows] = shares.reshape(len(out), -1, image.shape[2])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return logs of probabilities (B, num_classes, H, W) of images (B, C, H, W)."""
        maps = self.features.maps(x)
        images = x.float().cpu().numpy()
        one = self._forest if isinstance(self.classifier, Forest) else self._linear
        # The maps may come in bfloat16; what is told from them counts in single precision.
        with torch.autocast(x.device.type, enabled=False):
            found = [
                one(image, [level[number : number + 1] for level in maps])
                for number, image in enumerate(images)
            ]
        return torch.stack(found).to(x.device)

    def _strips(self, shape: tuple[int, ...]) -> list[slice]:
        """Return rows whose features are held at once."""
        every = self.features.filters + self.features.others
        step = max(16, filters.NUMBERS // max(1, shape[2] * every))
        return [slice(top, min(top + step, shape[1])) for top in range(0, shape[1], step)]

    def _forest(self, image: NDArray[np.float32], maps: list[Tensor]) -> Tensor:
        """Return logs of the shares of the trees, float32 (num_classes, H, W)."""
        out = torch.empty(self.classifier.num_classes, *image.shape[1:])
        for rows in self._strips(image.shape):
            parts = []
            if self.features.sigmas:
                found = filters.filtered(image, rows, self.features.sigmas)
                parts.append(found.reshape(len(found), -1))
            if maps:
                y, x = (p.ravel() for p in np.mgrid[rows, : image.shape[2]])
                parts.append(sampled(maps, x, y, image.shape[1:]).T.cpu().numpy())
            features = np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])
            shares = self.classifier.of_pixels(features, torch.get_num_threads())
            out[:, rows] = torch.from_numpy(shares.reshape(len(out), -1, image.shape[2])).log()
        return out

    def _linear(self, image: NDArray[np.float32], maps: list[Tensor]) -> Tensor:
        """Return class scores, float32 (num_classes, H, W).

        A linear classifier commutes with bilinear interpolation, so scores instead of features are
        brought to full size.
        """
        assert isinstance(self.classifier, Linear)
        weight = torch.from_numpy(self.classifier.weight)
        scores = torch.from_numpy(self.classifier.bias)[:, None, None].repeat(1, *image.shape[1:])
        start = self.features.filters
        for rows in self._strips(image.shape) if start else ():
            found = torch.from_numpy(filters.filtered(image, rows, self.features.sigmas))
            scores[:, rows] += torch.einsum("fc,fhw->chw", weight[:start], found)
        for level in maps:
            part = weight[start : start + level.shape[1]].to(level.device)
            start += level.shape[1]
            small = torch.einsum("fc,bfhw->bchw", part, level)
            size = image.shape[1:]
            scores += F.interpolate(small, size=size, mode="bilinear", align_corners=False)[0].cpu()
        return scores


def is_classifier(description: object) -> bool:
    """Return whether the model of a checkpoint is a classifier of pixels, and no network."""
    return isinstance(description, Mapping) and description.get(KIND) in (FOREST, LINEAR)
