"""A finished model fitted to the pictures it is asked about, without their masks.

A BatchNorm layer subtracts a mean and divides by a spread that were measured on training crops.
Where specimens or microscopes differ, the maps inside the network have others. They are measured on
tiles of the pictures that are to be predicted and mixed with those of the training (Schneider et
al. 2020, arXiv:2006.16971, Eq. 3 and 4): of n tiles and a prior that weighs as N of them,
``m = (N m_training + n m_pictures) / (N + n)``, the variance alike. No weight changes.

All tiles go through the network at once, so that what a layer measures has passed the layers before
it as they will be. Nothing is drawn: the same pictures give the same statistics in whatever order.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.preprocess import Preprocess
from matssl.models.forest import ForestModel
from matssl.tiles import starts
from matssl.trained.network import Network
from matssl.trained.segmenter import Picture, Segmenter, opened

# Tiles that the statistics are measured on, and their side: the memory of a picture of 1024 pixels.
MOST_TILES, SIDE = 16, 256
# Tiles that the statistics of the training weigh as much as.
PRIOR = 64.0
# A class that had a larger share of the tiles must not fall below half of it.
SMALL_SHARE, LEAST_LEFT = 0.002, 0.5

Statistics = Mapping[str, tuple[Tensor, Tensor]]
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Adaptation:
    """What came of fitting one network to pictures.

    Attributes:
        statistics: mean and variance of each BatchNorm layer by its name, mixed; those of the
            training where it was not adapted.
        tiles: that they were measured on.
        distance: of the pictures' statistics from those of the training: the median over the
            channels of a layer of ``|m' - m| / s + |ln(s' / s)|``, the mean over the layers.
        entropy: mean over the pixels of the tiles in nats, before and after.
        shares: of each class in the tiles, float64 (2, C), before and after.
        kept: why the network stays as it was trained, in words; "" where it is adapted.
    """

    statistics: Statistics = field(repr=False)
    tiles: int
    distance: float
    entropy: tuple[float, float]
    shares: NDArray[np.float64]
    kept: str = ""


def adapted(
    segmenter: Segmenter, pictures: Iterable[Picture], *, prior: float = PRIOR
) -> tuple[Segmenter, tuple[Adaptation, ...]]:
    """Return a copy of a model that is fitted to pictures, and what came of it for each network.

    The models of an ensemble are fitted each for itself.

    Args:
        segmenter: stays as it is.
        pictures: see :meth:`matssl.trained.segmenter.Segmenter.predict`; their order is invisible.
        prior: tiles of the pictures that the statistics of the training weigh as much as; 0: the
            pictures' own alone.

    Raises:
        UserError: a network without BatchNorm, or a picture that cannot be read.
    """
    check(segmenter)
    shown = list(pictures)
    planes = (segmenter.record.plane(opened(picture, segmenter.record)) for picture in shown)
    found = measured(segmenter, planes, len(shown), prior)
    return fitted(segmenter, found), found


def check(segmenter: Segmenter) -> None:
    """Refuse models whose statistics cannot be adapted.

    Raises:
        UserError: a network without BatchNorm, or a random forest.
    """
    for network in _networks(segmenter):
        if isinstance(network.model, ForestModel):
            raise UserError(
                f"--adapt fits BatchNorm layers to the pictures, and {segmenter.source} is a "
                "random forest; leave --adapt out"
            )
        if not layers(network.model):
            raise UserError(
                f"--adapt fits BatchNorm layers to the pictures, and {segmenter.source} has none; "
                "leave --adapt out"
            )


def layers(model: nn.Module) -> dict[str, BatchNorm]:
    """Return the BatchNorm layers of a model that keep statistics, by name."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm)}
    return {name: m for name, m in found.items() if m.running_mean is not None}


def measured(
    segmenter: Segmenter, planes: Iterable[Array], count: int, prior: float = PRIOR
) -> tuple[Adaptation, ...]:
    """Return what fitting a model to pictures comes to, for each of its networks.

    Args:
        segmenter: its networks have BatchNorm layers, see :func:`check`.
        planes: of the pictures, see :meth:`matssl.data.preprocess.Preprocess.plane`; one is held
            at a time.
        count: how many there are.
        prior: see :func:`adapted`.
    """
    multiple = int(getattr(segmenter.network.model, "multiple", 1))
    tiles = chosen(planes, count, -(-SIDE // multiple) * multiple)
    found = []
    for network, record in zip(_networks(segmenter), _records(segmenter), strict=True):
        tensors = torch.from_numpy(np.stack([record.tensor(tile) for tile in tiles]))
        found.append(_measured(network, tensors, prior))
    return tuple(found)


def fitted(segmenter: Segmenter, found: Sequence[Adaptation]) -> Segmenter:
    """Return a copy of a model with the statistics that :func:`measured` came to."""
    if all(one.kept for one in found):
        return segmenter
    networks = []
    for network, one in zip(_networks(segmenter), found, strict=True):
        model = copy.deepcopy(network.model)
        _put(model, one.statistics)
        networks.append(replace(network, model=model))
    members = tuple(
        replace(member, network=network)
        for member, network in zip(segmenter.members, networks, strict=False)
    )
    return replace(segmenter, network=networks[0], members=members)


def chosen(planes: Iterable[Array], count: int, side: int) -> list[Array]:
    """Return tiles (side, side) or (side, side, C) of pictures, at most MOST_TILES.

    Every picture gives as many, spread over it; of more pictures than tiles, some give none.

    Args:
        planes: (H, W) or (H, W, C) each. Which of them give tiles, and in which order, follows from
            what they show: the order in which they come does not count.
        count: how many there are.
        side: of a tile; smaller pictures are mirrored about their borders.

    Raises:
        ValueError: no picture.
    """
    each = max(1, MOST_TILES // max(1, count))
    found: list[tuple[str, list[Array]]] = []
    for plane in planes:
        digest = hashlib.sha256(np.ascontiguousarray(plane).data).hexdigest()
        found.append((digest, list(_of_picture(plane, side, each))))
        found = sorted(found, key=lambda one: one[0])[:MOST_TILES]
    if not found:
        raise ValueError("no picture to measure")
    return [tile for _, tiles in found for tile in tiles]


def _of_picture(plane: Array, side: int, most: int) -> Iterator[Array]:
    """Yield tiles of a picture, evenly from the upper left to the lower right."""
    height, width = plane.shape[:2]
    places = [(y, x) for y in starts(height, side, 0) for x in starts(width, side, 0)]
    numbers = np.array([len(places) // 2])
    if most > 1:
        numbers = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    for number in numbers:
        top, left = places[number]
        tile = plane[top : top + side, left : left + side]
        missing = [(0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)]
        yield np.pad(tile, missing[: plane.ndim], mode="symmetric")


def _measured(network: Network, tiles: Tensor, prior: float) -> Adaptation:
    """Return what fitting one network to tiles comes to."""
    model = network.model
    own = _statistics(model)
    plain, seen, _ = _passed(network, tiles, 1.0)
    share = prior / (prior + len(tiles))
    after, _, mixed = _passed(network, tiles, share)
    entropy = _entropy(plain), _entropy(after)
    shares = np.stack([_shares(plain), _shares(after)])
    kept = _kept(entropy, shares)
    return Adaptation(
        own if kept else mixed, len(tiles), _distance(model, seen), entropy, shares, kept
    )


def _kept(entropy: tuple[float, float], shares: NDArray[np.float64]) -> str:
    """Return why a network stays as it was trained, "" where nothing speaks against."""
    before, after = entropy
    if not after < before:
        return f"it would be less sure (entropy {before:.3f} to {after:.3f})"
    for number, (had, has) in enumerate(shares.T.tolist()):
        if had >= SMALL_SHARE and has < LEAST_LEFT * had:
            return f"class {number} would vanish ({100 * had:.2f} to {100 * has:.2f} %)"
    return ""


def _passed(network: Network, tiles: Tensor, share: float) -> tuple[Tensor, Statistics, Statistics]:
    """Send tiles through a network whose layers mix what they measure into their statistics.

    The network is afterwards as it was.

    Args:
        network: where it computes.
        tiles: float32 (n, C, S, S).
        share: of the training's statistics, 0 to 1.

    Returns:
        Probabilities (n, K, S, S), what each layer measured, and what it took.
    """
    model, own = network.model, _statistics(network.model)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    x = tiles.to(network.device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), network.autocast(), _measuring(model, own, share, seen):
        probabilities = model(x).float().softmax(dim=1)
        mixed = _statistics(model)
        _put(model, own)
    return probabilities, seen, mixed


@contextmanager
def _measuring(
    model: nn.Module, own: Statistics, share: float, seen: dict[str, tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Let each BatchNorm layer measure its input before it normalises it."""

    def measure(name: str, layer: BatchNorm, x: Tensor) -> None:
        others = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.float(), dim=others, correction=0)
        seen[name] = mean, variance
        layer.running_mean = share * own[name][0] + (1 - share) * mean
        layer.running_var = share * own[name][1] + (1 - share) * variance

    handles = [
        layer.register_forward_pre_hook(lambda m, given, name=name: measure(name, m, given[0]))
        for name, layer in layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _statistics(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, layer in layers(model).items():
        assert layer.running_mean is not None and layer.running_var is not None
        found[name] = layer.running_mean, layer.running_var
    return found


def _put(model: nn.Module, statistics: Statistics) -> None:
    for name, layer in layers(model).items():
        layer.running_mean, layer.running_var = statistics[name]


def _distance(model: nn.Module, seen: Statistics) -> float:
    """Return how far measured statistics are from the model's own, see :class:`Adaptation`."""
    found = []
    for name, layer in layers(model).items():
        mean, variance = _statistics(layer)[""]
        spread, other = (variance + layer.eps).sqrt(), (seen[name][1] + layer.eps).sqrt()
        apart = (seen[name][0] - mean).abs() / spread + (other / spread).log().abs()
        found.append(float(apart.median()))
    return float(np.mean(found))


def _entropy(probabilities: Tensor) -> float:
    return float(-torch.special.xlogy(probabilities, probabilities).sum(dim=1).mean())


def _shares(probabilities: Tensor) -> NDArray[np.float64]:
    count = probabilities.shape[1]
    pixels = probabilities.argmax(dim=1).flatten().bincount(minlength=count).cpu().numpy()
    return np.asarray(pixels / pixels.sum(), np.float64)


def _networks(segmenter: Segmenter) -> list[Network]:
    return [member.network for member in segmenter.members] or [segmenter.network]


def _records(segmenter: Segmenter) -> list[Preprocess]:
    return [member.record for member in segmenter.members] or [segmenter.record]
