"""A pool of micrographs, decoded once into one flat memory-mapped file of grey levels."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_path, atomic_write_bytes
from matssl.data.layouts.groups import groups_of
from matssl.data.preprocess import Preprocess

VERSION = 2
MAX_BAD_SHARE = 0.1
HEAD_BYTES = 1 << 16
# Images kept decoded when there is no cache file.
DECODED_IN_MEMORY = 64


class Pool:
    """Decoded uint8 planes of a set of images.

    Attributes:
        groups: int64 (n,), number of the group of each image.
        group_names: name of each group.
        sources: path of each image.
        shapes: (height, width[, 3]) of each plane.
        rejected: (path, reason) of files that could not be read.
        notes: what was noticed while reading, in words.
        digests: SHA-256 of the pixels of each plane.
        hash: of all planes and the record: the same wherever and whenever the files were copied.
    """

    def __init__(self, index: dict[str, Any], data: Path | None, record: Preprocess) -> None:
        self.sources: list[str] = index["sources"]
        self.shapes: list[tuple[int, ...]] = [tuple(shape) for shape in index["shapes"]]
        self.rejected: list[tuple[str, str]] = [(p, why) for p, why in index["rejected"]]
        self.notes: list[str] = index["notes"]
        self.hash: str = index["hash"]
        self.digests: list[str] = index["digests"]
        self.bits: list[int] = index["bits"]
        self.group_names = list(dict.fromkeys(index["groups"]))
        numbers = {name: number for number, name in enumerate(self.group_names)}
        self.groups: NDArray[np.int64] = np.array([numbers[g] for g in index["groups"]], np.int64)
        self._record = record
        self._offsets: list[int] = index["offsets"]
        self._data = None if data is None else np.memmap(data, np.uint8, "r")
        self._decode = functools.lru_cache(DECODED_IN_MEMORY)(self._decoded)

    def __len__(self) -> int:
        return len(self.sources)

    def plane(self, i: int) -> NDArray[np.uint8]:
        """Return plane ``i``, uint8 (H, W) or (H, W, 3), read-only."""
        if self._data is None:
            return self._decode(i)
        shape = self.shapes[i]
        start = self._offsets[i]
        return self._data[start : start + int(np.prod(shape))].reshape(shape)

    def _decoded(self, i: int) -> NDArray[np.uint8]:
        plane = self._record.plane_u8(self._record.read(self.sources[i]))
        plane.flags.writeable = False
        return plane


def build(
    paths: Sequence[Path],
    record: Preprocess,
    *,
    group_regex: str | None = None,
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
        group_regex: names the specimen in a file name.
        cache_dir: folder of cache files; None decodes on the fly and gives the same planes.
        workers: decoding threads; 0 takes two.
        on_bad: "skip" leaves unreadable files out (up to 10 %), "stop" ends at the first.
        quiet: no progress bar.
        approve: gets the shapes of all planes before anything is written; may refuse them.

    Raises:
        UserError: unreadable files, nothing left, or a disk too small for the cache.
    """
    recipe = {k: v for k, v in record.to_dict().items() if k not in ("mean", "std", "channels")}
    # Absent files are told here, before anything is written.
    keys = [_file_key(path) for path in paths]
    whole = hashlib.sha256(json.dumps([VERSION, recipe, keys, group_regex]).encode()).hexdigest()
    if cache_dir is None:
        index, planes = _scan(paths, record, workers, on_bad, quiet, keep=False)
        return Pool(_complete(index, planes, recipe, group_regex), None, record)
    data, table = cache_dir / f"pool-{whole[:20]}.u8", cache_dir / f"pool-{whole[:20]}.json"
    cached = _open(data, table, record)
    if cached is not None:
        return _checked(cached, on_bad)
    # The lock lies beside the system's temporary files, so that a refusal leaves no trace here.
    with _locked(Path(tempfile.gettempdir()) / f"matssl-{whole[:20]}.lock"):
        # Another process may have built it while this one waited.
        cached = _open(data, table, record)
        if cached is not None:
            return _checked(cached, on_bad)
        index, planes = _scan(paths, record, workers, on_bad, quiet, keep=True)
        if approve is not None:
            approve([plane.shape for plane in planes])
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {cache_dir}: {error.strerror}; give another --cache_dir"
            ) from error
        size = sum(plane.size for plane in planes)
        free = shutil.disk_usage(cache_dir).free
        if size + (1 << 26) > free:
            raise UserError(
                f"the cache needs {size / 1e9:.1f} GB and {cache_dir} has {free / 1e9:.1f} GB "
                "free; give another --cache_dir, or --cache_dir none"
            )
        with atomic_path(data) as temporary, open(temporary, "wb") as file:
            for plane in planes:
                file.write(np.ascontiguousarray(plane).tobytes())
        complete = _complete(index, planes, recipe, group_regex)
        atomic_write_bytes(table, json.dumps(complete).encode())
    return Pool(complete, data, record)


def _scan(
    paths: Sequence[Path],
    record: Preprocess,
    workers: int,
    on_bad: str,
    quiet: bool,
    keep: bool,
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Decode every file once; return what was found and the planes (empty ones unless kept)."""
    from tqdm import tqdm

    def decode(path: Path) -> tuple[NDArray[np.uint8], str, int, tuple[str, ...]] | str:
        try:
            micrograph = record.read(path)
            plane = record.plane_u8(micrograph)
        except UserError as error:
            return str(error)
        cut = micrograph.pixels.shape[0] - record.kept_rows(micrograph)
        rows, columns = micrograph.pixels.shape[:2]
        bar = (f"information bar of {cut} rows cut off {columns} x {rows} images",) if cut else ()
        digest = hashlib.sha256(np.ascontiguousarray(plane).data).hexdigest()
        if not keep:
            plane = np.broadcast_to(np.uint8(0), plane.shape)
        return plane, digest, micrograph.bits, (*micrograph.notes, *bar)

    index: dict[str, Any] = {
        "sources": [],
        "digests": [],
        "bits": [],
        "rejected": [],
        "notes": [],
    }
    planes = []
    remarks: list[tuple[str, str]] = []
    with ThreadPoolExecutor(workers or 2) as threads:
        results = threads.map(decode, paths)
        progress = tqdm(results, total=len(paths), desc="reading", disable=quiet or None)
        for path, result in zip(paths, progress, strict=True):
            if isinstance(result, str):
                if on_bad == "stop":
                    threads.shutdown(cancel_futures=True)
                    raise UserError(result)
                index["rejected"].append((str(path), result))
                continue
            plane, digest, bits, notes = result
            planes.append(plane)
            index["sources"].append(str(path))
            index["digests"].append(digest)
            index["bits"].append(bits)
            remarks += [(str(path), note) for note in notes]
    _refuse_bad(index["rejected"], len(paths))
    from matssl.data.readers import summarise

    index["notes"] = summarise(remarks)
    return index, planes


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
    planes: Sequence[NDArray[np.uint8]],
    recipe: dict[str, Any],
    group_regex: str | None,
) -> dict[str, Any]:
    sizes = [int(plane.size) for plane in planes]
    shapes = [list(plane.shape) for plane in planes]
    content = json.dumps([recipe, shapes, index["digests"]])
    return {
        **index,
        "version": VERSION,
        "shapes": shapes,
        "offsets": [0, *np.cumsum(sizes).tolist()][: len(sizes)],
        "groups": groups_of([Path(source) for source in index["sources"]], group_regex),
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "bytes": sum(sizes),
    }


def _open(data: Path, table: Path, record: Preprocess) -> Pool | None:
    """Return the pool of a whole cache, None where there is none or it is damaged."""
    try:
        index = json.loads(table.read_text(encoding="utf-8"))
        if index["version"] != VERSION or data.stat().st_size != index["bytes"]:
            return None
        return Pool(index, data, record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_key(path: Path) -> str:
    """Return what tells this file from any other state of it: name, size, time, first bytes."""
    try:
        status = path.stat()
        with open(path, "rb") as file:
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{head}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build a cache; the kernel frees the lock of a killed one."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Who waits for the removed file finds the cache; should there be none, it is built
            # twice, and each file is written whole.
            path.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)
