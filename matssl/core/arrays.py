"""Arrays: their type, room for large ones outside the memory, and sums that need no copy of them.

What a sum over a large array costs is mostly the double-precision copy that numpy makes of it. The
sums here go block by block and still add in numpy's order, so that they give its bits.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from matssl.core.errors import UserError

Array = NDArray[Any]

# Arrays that take more lie in a file instead of in memory.
IN_MEMORY_BYTES = 1 << 28
# Rows of a picture that are worked on at once.
STRIP = 1024
# Numbers that are added at once; numpy's own pairwise sum ends at 128.
BLOCK = 1 << 20


def roomy(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array to be filled: in memory, or in a file that vanishes with it where large.

    The kernel writes the file's pages to the disk where the memory is needed, so that a picture may
    be larger than the memory.

    Raises:
        UserError: the temporary folder has no room for it.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # A mapped file that the disk turns out to have no room for ends the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except OSError as error:
        raise UserError(
            f"a large picture needs {size / 1e9:.1f} GB of {folder} ({error.strerror or error}); "
            "make room there, or name another folder in the variable TMPDIR"
        ) from error


Record = TypeVar("Record")


class Spool:
    """Room on the disk for the arrays of many records, which are looked at once more at the end.

    One file without a name, which vanishes with the process; the kernel reads its pages back where
    they are asked for, and drops them where the memory is needed.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def lay(self, record: Record, folder: Path) -> Record:
        """Return an equal record whose arrays lie in the file and cannot be written.

        Args:
            record: a dataclass; dataclasses in it are looked through.
            folder: where the file is made.

        Raises:
            OSError: the disk has no room for it.
        """
        arrays: list[Array] = []
        _each_array(record, arrays.append)
        starts = np.cumsum([0, *(-(-one.nbytes // ALIGNED) * ALIGNED for one in arrays)])
        if not starts[-1]:
            return record
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            # It lives as long as this does.
            weakref.finalize(self, self._file.close)
        file = self._file
        begin = -(-file.seek(0, os.SEEK_END) // mmap.ALLOCATIONGRANULARITY)
        begin *= mmap.ALLOCATIONGRANULARITY
        # Written, not mapped first: a mapped file that finds the disk full ends the process.
        for one, start in zip(arrays, starts[:-1].tolist(), strict=True):
            file.seek(begin + start)
            _write(file, one)
        file.truncate(begin + int(starts[-1]))
        view = mmap.mmap(file.fileno(), int(starts[-1]), access=mmap.ACCESS_READ, offset=begin)
        laid = iter(
            [
                np.frombuffer(view, one.dtype, one.size, start).reshape(one.shape)
                for one, start in zip(arrays, starts[:-1].tolist(), strict=True)
            ]
        )
        return _each_array(record, lambda _: next(laid))


# Arrays in one file begin at multiples of so many bytes.
ALIGNED = 64


def _each_array(record: Record, made: Callable[[Array], Array | None]) -> Record:
    """Return a dataclass with every array in it replaced by what is made of it."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            changed[field.name] = made(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = _each_array(value, made)
    return dataclasses.replace(record, **changed)  # type: ignore[type-var]


def _write(file: BinaryIO, values: Array) -> None:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    while len(data):
        data = data[file.write(data.data) :]


def strips(rows: int, height: int = STRIP) -> Iterator[slice]:
    """Yield slices that cover so many rows, from the top down."""
    for top in range(0, rows, height):
        yield slice(top, min(top + height, rows))


def variance(values: Array) -> float:
    """Return ``np.var(values, dtype=np.float64)`` to the last bit, without a copy of the array."""
    flat = np.ascontiguousarray(values).reshape(-1)
    mean = float(flat.mean(dtype=np.float64))

    def squares(part: Array) -> NDArray[np.float64]:
        distance: NDArray[np.float64] = np.subtract(part, mean, dtype=np.float64)
        return np.multiply(distance, distance, out=distance)

    return pairwise(flat, squares) / flat.size


def pairwise(values: Array, of: Callable[[Array], NDArray[np.float64]]) -> float:
    """Return the sum of ``of(values)`` as numpy adds it, by halves; ``of`` sees a block at a time.

    Args:
        values: (N,), contiguous.
        of: numbers to float64, one by one.
    """
    if len(values) <= BLOCK:
        return float(of(values).sum())
    # numpy's halves are multiples of eight, since it adds eight numbers at once.
    half = len(values) // 2
    half -= half % 8
    return pairwise(values[:half], of) + pairwise(values[half:], of)


def percentiles(values: Array, percent: tuple[float, float]) -> tuple[float, float]:
    """Return ``np.percentile(values, percent)``; of many 8-bit or 16-bit numbers by counting them.

    Args:
        values: any shape.
        percent: 0 to 100.
    """
    counted = values.dtype in (np.uint8, np.uint16) and values.nbytes > IN_MEMORY_BYTES
    if not counted:
        low, high = (float(v) for v in np.percentile(values, percent))
        return low, high
    counts = histogram(values)
    upto = np.cumsum(counts)
    found = []
    for share in percent:
        place = (values.size - 1) * np.true_divide(share, 100)
        below = int(np.floor(place))
        first, second = (
            int(np.searchsorted(upto, n, side="right"))
            for n in (below, min(below + 1, values.size - 1))
        )
        gamma, gap = place - below, float(second - first)
        found.append(second - gap * (1 - gamma) if gamma >= 0.5 else first + gap * gamma)
    return float(found[0]), float(found[1])


def histogram(values: Array, least: int = 0) -> NDArray[np.int64]:
    """Return how often each whole number occurs, int64, at least ``least`` of them.

    Args:
        values: unsigned whole numbers below 2^16, any shape.
        least: length of the result where no number is as large.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    highest = int(flat.max(initial=0))
    counts = np.zeros(max(least, highest + 1), np.int64)
    for start in range(0, len(flat), BLOCK):
        counts += np.bincount(flat[start : start + BLOCK], minlength=len(counts))
    return counts


def decided(
    probabilities: Array, threshold: float | None = None, factors: Sequence[float] = ()
) -> NDArray[np.uint8]:
    """Return the class of each pixel, uint8 (H, W).

    Args:
        probabilities: (C, H, W).
        threshold: of two classes, the second is where its probability is above; None: the most
            likely class.
        factors: of the probabilities of the classes, before the largest is taken; empty: none.
    """
    if threshold is None:
        if len(factors):
            probabilities = probabilities * np.asarray(factors, np.float32)[:, None, None]
        return probabilities.argmax(axis=0).astype(np.uint8)
    return (probabilities[1] > threshold).astype(np.uint8)
