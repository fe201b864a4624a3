"""List what runs left that is no longer needed: ``python -m matssl.tools.clean FOLDER [--yes]``.

FOLDER is a run or holds runs. Listed are, of finished runs of ours, models that were kept on the
way (snapshots/), the checkpoint before the last one and halves of files that a broken-off write
left; and models of Keras (*.keras) of any run. What a run is continued, evaluated or exported from
(best.ckpt, last.ckpt, encoder.safetensors, ensemble.ckpt) stays, and so does all of a run that is
not finished. --yes removes what was listed; without it nothing is touched.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import ToolSettings

KERAS = "model of Keras"
SNAPSHOT = "model kept on the way"
BEFORE = "checkpoint before the last one"
HALF = "half of a file"
MODELS = (".ckpt", ".pth", ".pt", ".safetensors")
# What is left of a write that was broken off begins with a dot and ends as the file would.
TORN_AFTER_SECONDS = 3600
GIGA, MEGA = 1e9, 1e6


@dataclass(frozen=True, repr=False, eq=False)
class CleanSettings(ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "", "data", "a run, or a folder of runs", required=True, positional=True, leads=paths.folder
    )
    yes: bool = flag(False, "run", "remove what is listed", first=True)


SETTINGS = CleanSettings


@dataclass(frozen=True)
class Removable:
    """A file that is not needed.

    Attributes:
        path: of it.
        why: what it is.
        size: bytes that its removal frees; 0 where another name has the same file.
    """

    path: Path
    why: str
    size: int


def main(argv: Sequence[str]) -> int:
    """List what can go, and remove it with ``--yes``; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.clean", here=True)
    root = Path(args.folder)
    found = sorted(removable(root), key=lambda one: one.path)
    for one in found:
        print(f"{_size(one.size):>10}  {one.path.relative_to(root)}  ({one.why})")
    total = _size(sum(one.size for one in found))
    if not found:
        print(f"nothing to remove below {root}")
    elif not args.yes:
        print(f"{counted(len(found), 'file')}, {total}; nothing was removed, --yes removes them")
    else:
        _remove(found)
        print(f"removed {counted(len(found), 'file')}, {total}")
    return 0


def removable(root: Path) -> Iterator[Removable]:
    """Yield the files below a folder that no run needs any more; links are not followed."""
    for place, _, names in os.walk(root):
        folder = Path(place)
        done = _is_done(folder) or (folder.name == "snapshots" and _is_done(folder.parent))
        for name in names:
            path = folder / name
            if path.is_symlink() or not path.is_file():
                continue
            why = _why(path, done)
            if why:
                status = path.stat()
                yield Removable(path, why, status.st_size if status.st_nlink == 1 else 0)


def _why(path: Path, done: bool) -> str:
    """Return why a file is not needed, "" where it is.

    Args:
        path: of it.
        done: whether its run is finished.
    """
    from matssl.core.checkpoint import LAST, PREVIOUS

    suffix = path.suffix.lower()
    if suffix == ".keras":
        return KERAS
    if not done or suffix not in MODELS:
        return ""
    if path.parent.name == "snapshots":
        return SNAPSHOT
    if path.name == PREVIOUS and (path.parent / LAST).is_file():
        return BEFORE
    old = time.time() - path.stat().st_mtime > TORN_AFTER_SECONDS
    return HALF if path.name.startswith(".") and old else ""


def _is_done(folder: Path) -> bool:
    """Return whether a folder is a run of ours that came to its end."""
    from matssl.core import textfiles

    record = folder / "status.json"
    if not record.is_file() or not (folder / "config.yaml").is_file():
        return False
    try:
        status = textfiles.read_json(record)
    except (UserError, ValueError):
        return False
    return isinstance(status, dict) and status.get("state") == "done"


def _remove(found: Sequence[Removable]) -> None:
    for number, one in enumerate(found):
        try:
            one.path.unlink()
        except OSError as error:
            raise UserError(
                f"cannot remove {one.path}: {error.strerror}; {number} of {len(found)} files are "
                "removed"
            ) from error


def _size(number: int) -> str:
    if number >= GIGA / 10:
        return f"{number / GIGA:.1f} GB"
    return f"{number / MEGA:.1f} MB"


if __name__ == "__main__":
    sys.exit(guard(main))
