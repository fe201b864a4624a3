"""A pool of micrographs, decoded once into one flat memory-mapped file of grey levels."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from matssl.core import locks
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_path, atomic_write_bytes
from matssl.data import readers
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import sequences

VERSION = 4
MAX_BAD_SHARE = 0.1
HEAD_BYTES = 1 << 16
# Left free on the disk of the cache.
SPARE_BYTES = 1 << 26
# Images kept decoded when there is no cache file.
DECODED_IN_MEMORY = 64
LARGE_PIXELS = 1 << 26


class Pool:
    """Decoded uint8 planes of a set of images.

    Attributes:
        groups: int64 (n,), number of the group of each image.
        group_names: name of each group.
        sources: path of each image.
        shapes: (height, width[, 3]) of each plane as it was read.
        coloured: whether any has colours; every plane has three channels then.
        stacks: of each image the numbers of itself and its neighbours, the earliest first; empty
            where planes are single pictures. The file holds each frame once.
        rejected: (path, reason) of files that could not be read.
        digests: SHA-256 of the pixels of each plane.
        hash: of all planes and the record: the same wherever and whenever the files were copied.
    """

    def __init__(
        self,
        index: dict[str, Any],
        data: Path | None,
        record: Preprocess,
        specimens: Sequence[str],
    ) -> None:
        self.sources: list[str] = index["sources"]
        self.shapes: list[tuple[int, ...]] = [tuple(shape) for shape in index["shapes"]]
        self.coloured = any(len(shape) == 3 for shape in self.shapes)
        self.stacks: list[tuple[int, ...]] = []
        self.rejected: list[tuple[str, str]] = [(p, why) for p, why in index["rejected"]]
        self.hash: str = index["hash"]
        self.digests: list[str] = index["digests"]
        self.bits: list[int] = index["bits"]
        groups = [specimens[place] for place in index["kept"]]
        self.group_names = list(dict.fromkeys(groups))
        numbers = {name: number for number, name in enumerate(self.group_names)}
        self.groups: NDArray[np.int64] = np.array([numbers[name] for name in groups], np.int64)
        self._record, self._file = record, data
        self._offsets: list[int] = index["offsets"]
        self._data = None if data is None else np.memmap(data, np.uint8, "r")
        # Planes of the file that were compared with their digests, and those that differed.
        self._checked: set[int] = set()
        self._mended: dict[int, NDArray[np.uint8]] = {}
        self._decode = functools.lru_cache(DECODED_IN_MEMORY)(self._decoded)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def channels(self) -> int:
        """Channels of every plane."""
        return len(self.stacks[0]) if self.stacks else 3 if self.coloured else 1

    def stack(self, neighbours: Mapping[Path, tuple[Path, ...]], depth: int) -> None:
        """Make of every plane one of the picture and its neighbours, (H, W, frames).

        Args:
            neighbours: of each picture that has some, itself in the middle.
            depth: frames of a stack; a picture without neighbours stands for them, too.

        Raises:
            UserError: a frame and a neighbour differ in size.
        """
        numbers = {Path(source): i for i, source in enumerate(self.sources)}
        self.stacks = [
            tuple(numbers[other] for other in neighbours.get(path, (path,) * depth))
            for path in numbers
        ]
        self.refuse_misfits(self.stacks)

    def refuse_misfits(self, near: Sequence[tuple[int, ...]]) -> None:
        """Refuse frames of a sequence that differ in size.

        Args:
            near: of each image the numbers of others that go with it.

        Raises:
            UserError: it names the first two.
        """
        for i, numbers in enumerate(near):
            other = next((j for j in numbers if self.shapes[j] != self.shapes[i]), None)
            if other is not None:
                own, its = self.shapes[i], self.shapes[other]
                raise UserError(sequences.misfit(self.sources[i], own, self.sources[other], its))

    def plane(self, i: int) -> NDArray[np.uint8]:
        """Return plane ``i``, uint8 (H, W); read-only.

        (H, W, 3) where the pool has colours, (H, W, frames) where neighbours are stacked.
        """
        if self.stacks:
            return self._stacked(self.stacks[i])
        plane = self._read(i)
        return (
            np.repeat(plane[..., None], 3, axis=2) if self.coloured and plane.ndim == 2 else plane
        )

    def _stacked(self, stack: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return frames behind each other; those that follow each other in the file as they lie."""
        planes = [self._read(j) for j in stack]
        size, first = planes[0].size, self._offsets[stack[0]]
        row = all(self._offsets[j] == first + n * size for n, j in enumerate(stack))
        if self._data is None or not row or not self._mended.keys().isdisjoint(stack):
            return np.stack(planes, axis=2)
        frames = self._data[first : first + len(stack) * size]
        return np.moveaxis(frames.reshape(len(stack), *planes[0].shape), 0, 2)

    def _read(self, i: int) -> NDArray[np.uint8]:
        if self._data is None:
            return self._decode(i)
        if i in self._mended:
            return self._mended[i]
        shape = self.shapes[i]
        start = self._offsets[i]
        plane = self._data[start : start + int(np.prod(shape))].reshape(shape)
        if i not in self._checked:
            # Once a run: bytes of a file can change on the disk.
            if readers.digest(plane) != self.digests[i]:
                return self._mend(i)
            self._checked.add(i)
        return plane

    def _mend(self, i: int) -> NDArray[np.uint8]:
        """Return a plane whose bytes in the cache are damaged, read from its image again.

        Raises:
            UserError: the image is another one by now.
        """
        plane = self._decoded(i)
        if readers.digest(plane) != self.digests[i]:
            raise UserError(
                f"the cache {self._file} is damaged, and {self.sources[i]} is not the image it was "
                "made of; remove the cache and start again"
            )
        if not self._mended:
            print(
                f"warning the cache {self._file} is damaged: what differs is read from its images "
                "again; remove the file, and the next run makes a new one",
                file=sys.stderr,
                flush=True,
            )
        self._mended[i] = plane
        return plane

    def _decoded(self, i: int) -> NDArray[np.uint8]:
        plane = self._record.plane_u8(self._record.frame(self.sources[i]))
        plane.flags.writeable = False
        return plane


def build(
    paths: Sequence[Path],
    record: Preprocess,
    *,
    groups: Sequence[str] | None = None,
    cache_dir: Path | None,
    workers: int = 0,
    on_bad: str = "skip",
    quiet: bool = False,
    approve: Callable[[list[tuple[int, ...]]], None] | None = None,
) -> Pool:
    """Return the pool of these images, decoding only what no earlier run decoded.

    Args:
        paths: image files.
        record: how files become planes; its mean and std do not matter here.
        groups: specimen of each image; None makes each its own.
        cache_dir: folder of cache files; None decodes on the fly and gives the same planes.
        workers: decoding threads; 0 takes two.
        on_bad: "skip" leaves unreadable files out (up to 10 %), "stop" ends at the first.
        quiet: no progress bar.
        approve: gets the shapes of all planes before anything is written; may refuse them.

    Raises:
        UserError: unreadable files, nothing left, or a disk too small for the cache.
    """
    preprocessing = {
        k: v for k, v in record.to_dict().items() if k not in ("mean", "std", "channels", "depth")
    }
    # Absent files are told here, before anything is written.
    keys = [f"{_file_key(path)}|{record.bars.get(path)}" for path in paths]
    groups = [str(path) for path in paths] if groups is None else groups
    told = {str(path): size for path in paths if (size := record.sizes.get(path)) is not None}
    whole = hashlib.sha256(
        json.dumps([VERSION, preprocessing, keys, *([told] if told else [])]).encode()
    ).hexdigest()
    if cache_dir is None:
        index, shapes = _scan(paths, record, workers, on_bad, quiet)
        return Pool(_complete(index, shapes, preprocessing), None, record, groups)
    data, table = cache_dir / f"pool-{whole[:20]}.u8", cache_dir / f"pool-{whole[:20]}.json"
    cached = _open(data, table, paths, record, groups, preprocessing)
    if cached is not None:
        return _checked(cached, on_bad)
    # The lock lies beside the system's temporary files, so that a refusal leaves no trace here.
    # It is the user's own: a file of another one in the shared folder would stop everybody.
    name = f"matssl-{os.getuid()}-{whole[:20]}.lock"
    with _locked(Path(tempfile.gettempdir()) / name):
        # Another process may have built it while this one waited.
        cached = _open(data, table, paths, record, groups, preprocessing)
        if cached is not None:
            return _checked(cached, on_bad)
        try:
            # Planes go to the disk one by one; a pool may be larger than the memory. Until the
            # pool is approved they lie where a refusal leaves no new folder behind.
            with (
                atomic_path(data, _existing(cache_dir)) as temporary,
                open(temporary, "wb") as file,
            ):
                write = _Writer(file, cache_dir, len(paths))
                index, shapes = _scan(paths, record, workers, on_bad, quiet, write)
                if approve is not None:
                    approve(shapes)
                cache_dir.mkdir(parents=True, exist_ok=True)
            complete = _complete(index, shapes, preprocessing)
            atomic_write_bytes(table, json.dumps(complete).encode())
        except OSError as error:
            raise UserError(
                f"cannot write to {cache_dir}: {error.strerror or error}; give another --cache_dir"
            ) from error
    return Pool(complete, data, record, groups)


class _Writer:
    """Appends planes to the cache file while the disk has room."""

    def __init__(self, file: BinaryIO, cache_dir: Path, total: int) -> None:
        self.file, self.cache_dir, self.total = file, cache_dir, total
        self.free = shutil.disk_usage(_existing(cache_dir)).free
        self.written = self.planes = 0

    def __call__(self, plane: NDArray[np.uint8]) -> None:
        self.written += plane.size
        self.planes += 1
        if self.written + SPARE_BYTES > self.free:
            whole = self.written / self.planes * self.total
            raise UserError(
                f"the cache needs about {whole / 1e9:.1f} GB and {self.cache_dir} has "
                f"{self.free / 1e9:.1f} GB free; give another --cache_dir, or --cache_dir none"
            )
        self.file.write(np.ascontiguousarray(plane).data)


def _existing(folder: Path) -> Path:
    """Return the folder, or the closest one above it that exists."""
    return next(f for f in (folder, *folder.absolute().parents) if f.is_dir())


def _scan(
    paths: Sequence[Path],
    record: Preprocess,
    workers: int,
    on_bad: str,
    quiet: bool,
    write: Callable[[NDArray[np.uint8]], None] | None = None,
) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    """Decode every file once and hand the planes on; return what was found and their shapes."""
    from tqdm import tqdm

    one_large = threading.Lock()

    def decode(path: Path) -> tuple[NDArray[np.uint8], str, int] | str:
        try:
            head = readers.header(path)
            large = head.height * head.width > LARGE_PIXELS
            # Large pictures are decoded one after the other: threads would hold one each.
            with one_large if large else nullcontext():
                micrograph = record.frame(path)
                plane = record.plane_u8(micrograph)
        except UserError as error:
            return str(error)
        return plane, readers.digest(plane), micrograph.bits

    names = ("sources", "kept", "digests", "bits", "rejected")
    index: dict[str, Any] = {name: [] for name in names}
    shapes: list[tuple[int, ...]] = []
    results = prefetched(lambda i: decode(paths[i]), range(len(paths)), workers or 2)
    # A refusal in the middle ends the threads, too.
    with closing(results):
        progress = tqdm(results, total=len(paths), desc="reading", disable=quiet or None)
        for place, (path, result) in enumerate(zip(paths, progress, strict=True)):
            if isinstance(result, str):
                if on_bad == "stop":
                    raise UserError(result)
                index["rejected"].append((str(path), result))
                continue
            plane, digest, bits = result
            shapes.append(plane.shape)
            if write is not None:
                write(plane)
            index["sources"].append(str(path))
            index["kept"].append(place)
            index["digests"].append(digest)
            index["bits"].append(bits)
    _refuse_bad(index["rejected"], len(paths))
    return index, shapes


def _refuse_bad(rejected: Sequence[Sequence[str]], total: int) -> None:
    if len(rejected) == total:
        raise UserError(f"none of the {total} images can be used; the first: {rejected[0][1]}")
    if len(rejected) > MAX_BAD_SHARE * total:
        raise UserError(
            f"{len(rejected)} of {total} images could not be read, more than 10 %; "
            f"the first: {rejected[0][1]}"
        )


def _checked(pool: Pool, on_bad: str) -> Pool:
    if on_bad == "stop" and pool.rejected:
        raise UserError(pool.rejected[0][1])
    return pool


def _complete(
    index: dict[str, Any],
    shapes: Sequence[tuple[int, ...]],
    preprocessing: dict[str, Any],
) -> dict[str, Any]:
    sizes = [math.prod(shape) for shape in shapes]
    content = json.dumps([preprocessing, shapes, index["digests"]])
    return {
        **index,
        "version": VERSION,
        "shapes": shapes,
        "offsets": [0, *np.cumsum(sizes).tolist()][: len(sizes)],
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "bytes": sum(sizes),
    }


def _open(
    data: Path,
    table: Path,
    paths: Sequence[Path],
    record: Preprocess,
    specimens: Sequence[str],
    preprocessing: dict[str, Any],
) -> Pool | None:
    """Return the pool of a whole cache, None where there is none or it is damaged."""
    try:
        index = json.loads(table.read_text(encoding="utf-8"))
        if index["version"] != VERSION or data.stat().st_size != index["bytes"]:
            return None
        parts = {name: index[name] for name in ("sources", "kept", "digests", "bits", "rejected")}
        shapes = [tuple(shape) for shape in index["shapes"]]
        if parts["sources"] != [str(paths[i]) for i in parts["kept"]]:
            return None
        # All that follows from the parts is made anew, so that no damage in it goes unseen.
        if json.loads(json.dumps(_complete(parts, shapes, preprocessing))) != index:
            return None
        return Pool(index, data, record, specimens)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _file_key(path: Path) -> str:
    """Return what tells this file from any other state of it: name, size, time, first bytes."""
    try:
        file_path = readers.file_of(path)
        status = file_path.stat()
        if not stat.S_ISREG(status.st_mode):
            # A pipe would wait for ever; reading refuses it by name.
            return f"{path.resolve()}|no file"
        with open(file_path, "rb") as file:
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{head}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build a cache; the kernel frees the lock of a killed one.

    Where there can be no lock, the cache may be built twice, and each file is written whole.
    """
    try:
        # A link that somebody laid there is not followed.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600)
    except OSError:
        yield
        return
    try:
        locks.hold(handle, wait=True)
        yield
    finally:
        # Who waits for the removed file finds the cache.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)
