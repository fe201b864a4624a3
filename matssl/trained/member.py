"""One of the models under a segmenter, and what computes it; without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import IN_MEMORY_BYTES, Array, strips
from matssl.data.preprocess import Preprocess

# More are no ensemble of ours.
MOST = 10_000


@dataclass(frozen=True)
class Maps:
    """The feature maps of a model's encoder, which a baseline reads.

    Attributes:
        of: image, float32 (C, H, W) with sides of the multiple, to maps, float32 (D, h, w) each.
        multiple: of the sides of its input.
    """

    of: Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
    multiple: int


class Engine(Protocol):
    """What computes: :class:`matssl.trained.network.Network` by torch, an exported file without."""

    @property
    def whole(self) -> bool:
        """Whether it looks at filters of the whole picture, which need no tiles."""

    @property
    def is_forest(self) -> bool:
        """Whether it is a forest on such filters."""

    @property
    def maps(self) -> Maps | None:
        """The maps of its encoder; None where it has none that can be read."""

    def probabilities(
        self,
        image: NDArray[np.float32],
        num_classes: int,
        *,
        tile_size: int | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 1,
        scratch: Path | None = None,
    ) -> NDArray[np.float32]:
        """Return class probabilities of an image, (num_classes, H, W).

        Args:
            image: normalised, float32 (C, H, W).
            num_classes: channels of the logits.
            tile_size: see :func:`matssl.tiles.plan`.
            overlap: see :func:`matssl.tiles.plan`.
            tta: average over the eight orientations of the image; eight times the time.
            batch_size: tiles computed at once.
            scratch: folder for a file that holds the result where it would crowd the memory; None
                keeps it in memory.
        """


@dataclass(frozen=True)
class Member:
    """One of several models.

    Attributes:
        network: what computes.
        record: how its images are normalised.
        temperature: of its probabilities.
        of: what their share in the mean is one part of: the number of models where all count alike.
    """

    network: Engine
    record: Preprocess
    temperature: float
    of: float = 1.0

    def probabilities(self, plane: Array, num_classes: int, **how: Any) -> Array:
        """Return its probabilities of a plane, float32 (C, H, W), not yet tempered.

        Args:
            plane: from :meth:`matssl.data.preprocess.Preprocess.plane`.
            num_classes: C.
            how: see :meth:`Engine.probabilities`.
        """
        return self.network.probabilities(self.record.tensor(plane), num_classes, **how)


def room(scratch: Path | None, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Return a file for a result that would crowd the memory; None where it would not.

    Args:
        scratch: folder of the file; None keeps everything in memory.
        shape: of the result, float32.
    """
    if scratch is None or 4 * int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY_BYTES:
        return None
    return np.memmap(scratch / "probabilities", np.float32, "w+", shape=shape)


def add(total: Array | None, one: Array, of: float) -> Array:
    """Return the sum with one more part; the first is changed in place.

    Args:
        total: so far, None before the first.
        one: float32 (C, H, W).
        of: what its share is one part of, see :class:`Member`.
    """
    for rows in strips(one.shape[1]):
        if total is None:
            one[:, rows] /= of
        else:
            total[:, rows] += one[:, rows] / of
    return one if total is None else total


def folder(scratch: Path | None, number: int) -> Path | None:
    """Return a folder of its own for the file of a member; None where all lies in memory."""
    if scratch is None:
        return None
    place = scratch / str(number)
    place.mkdir(exist_ok=True)
    return place


def checked_share(value: object) -> float:
    """Return the share of a model in the mean of several, of any sum.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MOST:
        raise ValueError("the share of one of its models is none")
    return float(value)


def checked_threshold(value: object, classes: int) -> float | None:
    """Return the threshold of two classes; None where there is none.

    Raises:
        ValueError: it is none of its classes.
    """
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and classes == 2 and 0 < float(str(value)) < 1):
        raise ValueError("its threshold is none of its classes")
    return float(str(value))
