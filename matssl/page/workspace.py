"""The one folder that the page reads and writes: names from a browser become paths inside it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data import readers

# Hidden, so that no command takes what lies there for micrographs.
STATE = ".matssl"
LABELS, EXPERIMENTS = "labels", "experiments"
# Labels of the pictures of the whole workspace: hidden, or they would be masks among its pictures.
OF_ALL = ".labels"
# Folders that are looked through for pictures, and shown.
DEEPEST, MOST_FOLDERS = 6, 500
LONGEST_NAME = 150
# No system has longer ones.
LONGEST_PART, LONGEST_PATH = 255, 1000
# Names that Windows keeps for devices, whatever their ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_BARRED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')


class Refused(UserError):
    """A request that is not answered; ``status`` is the code of HTTP that says why."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status


@dataclass(frozen=True)
class Workspace:
    """A folder; ``root`` is its real path."""

    root: Path

    @staticmethod
    def of(path: str | Path) -> Workspace:
        """Return the workspace at a path.

        Raises:
            UserError: it is no folder, or cannot be written.
        """
        root = Path(path).resolve()
        if not root.is_dir():
            raise UserError(f"there is no folder {path}")
        if not os.access(root, os.W_OK | os.X_OK):
            raise UserError(f"{path} cannot be written; the page keeps labels and models there")
        return Workspace(root)

    @property
    def state(self) -> Path:
        """Folder of jobs, looks at folders and temporary files."""
        return self.root / STATE

    @property
    def experiments(self) -> Path:
        """Folder of runs."""
        return self.root / EXPERIMENTS

    def folder(self, name: str) -> Path:
        """Return a folder of pictures by its path from the workspace; "." is the workspace.

        Raises:
            Refused: no such folder, one of ours, or one outside.
        """
        path = self.root if name == "." else self.inside(name)
        if not path.is_dir():
            raise Refused(404, f"there is no folder {cut(name)}")
        if name.split("/")[0] in (LABELS, EXPERIMENTS):
            raise Refused(400, f"{cut(name)} holds results; choose a folder of micrographs")
        return path

    def inside(self, name: str) -> Path:
        """Return the path of what lies in the workspace, links followed.

        Args:
            name: path from the workspace, with slashes.

        Raises:
            Refused: it is no such path, is hidden, or leads out of the workspace.
        """
        parts = name.split("/")
        odd = not name or "\\" in name or _DRIVE.match(name) or not name.isprintable()
        odd = odd or max(len(part.encode("utf-8", "replace")) for part in parts) > LONGEST_PART
        odd = odd or len(name) > LONGEST_PATH
        if odd or any(part.startswith(".") or not part.strip() for part in parts):
            raise Refused(400, f"{cut(ascii(name))} is no path inside the workspace")
        return self.real(self.root.joinpath(*parts))

    def real(self, path: Path) -> Path:
        """Return a path unless a link on it leads out of the workspace.

        Raises:
            Refused: it does.
        """
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise Refused(400, f"{cut(path.name)} cannot be opened") from error
        if real != self.root and self.root not in real.parents:
            raise Refused(403, f"{cut(path.name)} leads out of the workspace")
        return path

    def target(self, path: Path) -> Path:
        """Return a path to write to; its folder is made.

        Raises:
            Refused: it is a link, or a link on the way leads out of the workspace.
        """
        self.real(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.real(path.parent)
        if path.is_symlink():
            raise Refused(403, f"{cut(path.name)} is a link; it is not written through")
        return path

    def labels(self, folder: str) -> Path:
        """Return where the labels of the pictures of a folder lie."""
        return self.root / OF_ALL if folder == "." else self.root / LABELS / folder

    def kept(self, folder: str) -> Path:
        """Return where what is known of a folder is kept."""
        word = re.sub(r"[^A-Za-z0-9]+", "-", folder).strip("-")[:40] or "workspace"
        return self.state / "folders" / f"{word}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"

    def relative(self, path: Path) -> str:
        """Return a path from the workspace, with slashes."""
        return path.relative_to(self.root).as_posix()

    def folders(self) -> list[dict[str, object]]:
        """Return the folders that hold pictures, with how many."""
        found: list[dict[str, object]] = []
        for place, names in self._walk():
            own = sum(readers.is_image_name(name) for name in names)
            inside = place.relative_to(self.root).as_posix()
            if own:
                found.append({"folder": inside, "pictures": own})
            if len(found) >= MOST_FOLDERS:
                break
        return _with_parents(found)

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield folders and the names of their files; links, hidden folders and runs are not."""
        for name, folders, files in os.walk(self.root):
            place = Path(name)
            depth = len(place.relative_to(self.root).parts)
            if depth and readers.is_run(files):
                folders.clear()
                continue
            ours = (LABELS, EXPERIMENTS) if depth == 0 else ()
            folders[:] = sorted(
                f
                for f in folders
                if not f.startswith(".") and f not in ours and not readers.is_junk(f)
            )
            if depth >= DEEPEST:
                folders.clear()
            yield place, [f for f in files if f.isprintable()]

    def check_links(self, folder: Path) -> None:
        """Refuse a folder in which a link leads out of the workspace: commands would follow it.

        Raises:
            Refused: the link is named.
        """
        for name, folders, files in os.walk(folder):
            folders[:] = [f for f in folders if not f.startswith(".")]
            for entry in (*folders, *files):
                path = Path(name) / entry
                if path.is_symlink():
                    self.real(path)


def new_name(name: str) -> str:
    """Return the name of a picture to be written, as any system takes it.

    Raises:
        Refused: a path, a hidden name, a device of Windows, or no picture that is read.
    """
    stem = name.partition(".")[0].strip()
    odd = _BARRED.search(name) or name != name.strip(" .") or not name.isprintable()
    if odd or not name or name.startswith(".") or _DEVICES.fullmatch(stem):
        raise Refused(400, f"{cut(ascii(name))} cannot name a picture")
    if len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        raise Refused(400, f"the name {cut(name, 40)} is too long")
    if not readers.is_image_name(name):
        told = "; ".join(readers.unread({Path(name): 1}))
        kinds = ", ".join(sorted(readers.EXTENSIONS))
        raise Refused(415, f"{cut(name)} is no picture that is read ({told or kinds})")
    return name


def _with_parents(found: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return folders, and those above several of them: a data set may be laid out in parts."""
    below: dict[str, int] = {}
    parts: dict[str, int] = {}
    for entry in found:
        names = [] if entry["folder"] == "." else str(entry["folder"]).split("/")
        for depth in range(len(names)):
            above = "/".join(names[:depth]) or "."
            below[above] = below.get(above, 0) + int(str(entry["pictures"]))
            parts[above] = parts.get(above, 0) + 1
    own = {str(entry["folder"]): int(str(entry["pictures"])) for entry in found}
    known = set(own) | {name for name, count in parts.items() if count > 1}
    return [
        {"folder": name, "pictures": own.get(name, 0) + below.get(name, 0)}
        for name in sorted(known, key=lambda name: (name != ".", name))
    ]
