"""Where the files of a loop lie, and the lock that lets one loop alone work on a folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matssl.core import ledger, locks
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_path

# Folders of ours in the folder that is watched.
HOME, CORRECTED, TO_CORRECT = "loop", "corrected", "to_correct"
RESERVED = (HOME, CORRECTED, TO_CORRECT)
# Folders of the home in which files are made, and the file of its lock.
PARTS = ("store", "data", "doctor", "predictions")
LOCK = ".lock"
# Names that :func:`matssl.core.run_folder.atomic_path` gives.
_TEMPORARY = re.compile(r"\..+\.(png|txt|yaml|json)\.[a-z0-9_]{8}(\.\w+)?")
# Digits of a digest that name a stored file.
SHOWN = 16


@dataclass(frozen=True)
class Places:
    """The folder that is watched, and what lies in it."""

    root: Path

    @property
    def home(self) -> Path:
        """Folder of ledger, models, predictions and pages."""
        return self.root / HOME

    @property
    def corrected(self) -> Path:
        """Folder that masks and annotations come back to."""
        return self.root / CORRECTED

    @property
    def ledger(self) -> Path:
        """The account of all steps."""
        return self.home / ledger.NAME

    @property
    def store(self) -> Path:
        """Folder of the pictures and masks that trained or judged a model, as they were then."""
        return self.home / "store"

    def model(self, number: str) -> Path:
        """Return the file of a model."""
        return self.home / "finetune" / number / "best.ckpt"

    def evaluation(self, name: str) -> Path:
        """Return the folder of a prediction or evaluation."""
        return self.home / "eval" / name

    def mask(self, run: str, key: str) -> Path:
        """Return the predicted mask of a picture."""
        return self.evaluation(run) / "masks" / "index" / f"{key}.png"

    def round(self, number: int) -> Path:
        """Return the folder of what is to be corrected in a round."""
        return self.root / TO_CORRECT / f"round_{number:03d}"

    def name(self, path: Path) -> str:
        """Return how the ledger calls a file: its path from the folder, with /."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def plain(self, text: str) -> str:
        """Return a sentence whose paths start from the folder, so that it can be moved."""
        for root in (f"{self.root}/", f"{self.root.resolve()}/"):
            text = text.replace(root, "")
        return text

    def keep(self, path: Path, suffix: str) -> str:
        """Copy a file to the store, and return what it is called there."""
        return self.keep_bytes(path.read_bytes(), suffix)

    def keep_bytes(self, data: bytes, suffix: str) -> str:
        """Write a file of the store, and return what it is called there: its digest."""
        name = hashlib.sha256(data).hexdigest()[:SHOWN] + suffix.lower()
        place = self.store / name
        if not place.is_file():
            self.store.mkdir(parents=True, exist_ok=True)
            with atomic_path(place) as temporary:
                temporary.write_bytes(data)
        return name


def swept(places: Places) -> None:
    """Remove what a kill left half written; nobody else works on the folder."""
    for folder in (places.home, *(places.home / name for name in PARTS)):
        for path in folder.glob(".*") if folder.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    for path in (places.root / TO_CORRECT).rglob(".*"):
        # Editors have hidden files of their own there.
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def linked(source: Path, place: Path) -> None:
    """Give a file a second place: a link, or a copy where the file system has none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(os.path.relpath(source.resolve(), place.parent.resolve()), place)
    except OSError:
        shutil.copyfile(source, place)


def whole(folder: Path) -> Path:
    """Return an empty folder beside another, which it becomes by :func:`placed`."""
    temporary = folder.parent / f".{folder.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def placed(temporary: Path, folder: Path) -> None:
    """Put a folder that is ready in the place of another, or of none."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


@contextmanager
def alone(places: Places) -> Iterator[None]:
    """Keep other loops away from a folder; the lock of a killed one is gone with it.

    Raises:
        UserError: another loop works on it, or the folder cannot be written.
    """
    try:
        places.home.mkdir(exist_ok=True)
        handle = os.open(places.home / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"cannot write to {places.home}: {error.strerror or error}") from error
    try:
        if not locks.hold(handle, wait=False):
            raise UserError(
                f"another loop works on {places.root}; wait for it or stop it (--status looks "
                "without a lock)"
            )
        yield
    finally:
        os.close(handle)
