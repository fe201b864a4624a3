"""What has come to the folder and is whole: pictures, and masks that came back.

A file that may still be copied waits. It is whole when its last change is old enough, or when its
size and its time have stayed as they are for so long.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from matssl.core.run_folder import atomic_write_text
from matssl.data import readers
from matssl.data.layouts.pairing import folders_in
from matssl.loop.places import RESERVED, Places

# File of digests, so that a picture that stays as it is, is read for it once.
SEEN = "seen.json"
Stamp = tuple[int, int]


class Arrivals:
    """Looks at the files of a folder again and again."""

    def __init__(self, places: Places, settle: float) -> None:
        self.places, self.settle = places, settle
        # How each file was seen that may still be changing, and since when.
        self._since: dict[Path, tuple[Stamp, float]] = {}
        self._digests = self._read()
        self._new = False

    def pictures(self) -> list[Path]:
        """Return the files named like pictures, in natural order, without our own folders."""
        root = self.places.root
        found = [p for p in root.iterdir() if p.is_file() and readers.is_image_name(p.name)]
        for folder in folders_in(root):
            own = folder.name in RESERVED or readers.is_junk(folder.name)
            if not own and not readers.is_run([p.name for p in folder.iterdir()]):
                found += readers.listing(folder).images
        return sorted(found, key=lambda path: readers.natural(self.places.name(path)))

    def corrected(self) -> list[Path]:
        """Return the files that came back, in natural order."""
        folder = self.places.corrected
        if not folder.is_dir():
            return []
        listed = readers.listing(folder)
        files = [p for p in (*listed.images, *listed.others) if not p.name.startswith(".")]
        return sorted(files, key=lambda path: readers.natural(self.places.name(path)))

    def whole(self, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
        """Return the files that can be read, and those that may still be changing."""
        ready: list[Path] = []
        waiting: list[Path] = []
        for path in paths:
            try:
                stamp = _stamp(path)
            except OSError:
                # Gone between two looks.
                self._since.pop(path, None)
                continue
            (ready if self._settled(path, stamp) else waiting).append(path)
        return ready, waiting

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file."""
        name, stamp = self.places.name(path), _stamp(path)
        known = self._digests.get(name)
        if known is None or known[:2] != [*stamp]:
            with open(path, "rb") as file:
                known = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
            self._digests[name], self._new = known, True
        return str(known[2])

    def save(self) -> None:
        """Keep the digests for the next start."""
        if self._new:
            atomic_write_text(self.places.home / SEEN, json.dumps(self._digests))
            self._new = False

    def _settled(self, path: Path, stamp: Stamp) -> bool:
        age = time.time() - stamp[1] / 1e9
        if age >= self.settle:
            self._since.pop(path, None)
            return True
        # A clock that goes before ours, or a change a moment ago.
        before, since = self._since.get(path, (None, 0.0))
        now = time.monotonic()
        if before != stamp:
            self._since[path] = (stamp, now)
            return False
        return now - since >= self.settle

    def _read(self) -> dict[str, list[object]]:
        """Return the digests of before; without the file they are computed again."""
        try:
            held = json.loads((self.places.home / SEEN).read_text(encoding="utf-8"))
            return {str(k): list(v) for k, v in held.items() if len(v) == 3}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
