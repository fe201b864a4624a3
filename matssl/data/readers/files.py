"""Which files of a folder are pictures, in the order a person would put them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted

EXTENSIONS = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
# Folders of servers (Synology, QNAP) and systems, in lower case; those that begin with a dot are
# hidden anyway.
JUNK = frozenset(
    ("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot")
    + ("$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx")
)
# Files that tell a folder of ours from a folder of pictures.
RUNS = (
    frozenset(("config.yaml", "command.txt", "environment.json")),
    frozenset(("regions.csv", "summary.csv", "sizes.png")),
)
# Pictures that are not read here: what a file of this ending is, and what to make of it.
_PLAIN, _EXPORT = "save them as PNG", "export them as TIFF"
UNREAD = {
    **{".gif": ("GIF", _PLAIN), ".svg": ("SVG", _PLAIN)},
    **{".heic": ("HEIC", _PLAIN), ".avif": ("AVIF", _PLAIN), ".psd": ("Photoshop", _PLAIN)},
    **{".jp2": ("JPEG 2000", _PLAIN), ".xcf": ("GIMP", _PLAIN), ".tga": ("TGA", _PLAIN)},
    **{".dm3": ("DigitalMicrograph", _EXPORT), ".dm4": ("DigitalMicrograph", _EXPORT)},
    **{".czi": ("Zeiss CZI", _EXPORT), ".nd2": ("Nikon ND2", _EXPORT), ".lif": ("Leica", _EXPORT)},
    **{".oib": ("Olympus", _EXPORT), ".oif": ("Olympus", _EXPORT), ".ser": ("FEI SER", _EXPORT)},
    **{".emd": ("EMD", _EXPORT), ".h5": ("HDF5", _EXPORT), ".hdf5": ("HDF5", _EXPORT)},
    **{".npy": ("numpy", _EXPORT), ".mat": ("MATLAB", _EXPORT)},
    **{".nii": ("NIfTI", _EXPORT), ".mrc": ("MRC", _EXPORT)},
}
# What may carry the name of a picture and never ends, or never begins.
SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Listing:
    """What lies in a folder and below it.

    Attributes:
        images: files named like pictures, in natural order of their paths below the folder.
        others: further files: tables, lists, annotations.
        junk: folders in which a server or a system keeps previews and what was deleted.
        runs: folders of results of ours; their pictures are no micrographs.
        closed: folders that may not be read.
    """

    images: tuple[Path, ...]
    others: tuple[Path, ...] = ()
    junk: tuple[Path, ...] = ()
    runs: tuple[Path, ...] = ()
    closed: tuple[Path, ...] = ()


def listing(root: Path) -> Listing:
    """Return what lies in a folder and below it.

    Hidden files and resource forks are left out; links that lead in a circle are followed once. The
    folder itself is listed whatever it is: who gives the pictures of a run means them.
    """
    images: list[Path] = []
    others: list[Path] = []
    junk: list[Path] = []
    runs: list[Path] = []
    closed: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def shut(error: OSError) -> None:
        closed.append(Path(str(error.filename)))

    for name, folders, files in os.walk(root, followlinks=True, onerror=shut):
        place = Path(name)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if place != root and is_run(files):
            runs.append(place)
            folders.clear()
            continue
        junk += [place / folder for folder in folders if is_junk(folder)]
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not is_junk(f))
        for file in files:
            (images if is_image_name(file) else others).append(place / file)
    order = sorted(images, key=lambda path: natural(str(path.relative_to(root))))
    return Listing(tuple(order), *map(tuple, map(sorted, (others, junk, runs, closed))))


def find_images(folder: Path | str) -> list[Path]:
    """Return all image files below ``folder``, in natural order of their relative paths.

    See :func:`listing`; folders of previews, of deleted files and of our own results are left out.
    The path of one image stands for itself.

    Raises:
        UserError: the folder does not exist, or holds no image.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"there is no folder {root}")
    if not root.is_dir():
        if not is_image_name(root.name):
            told = "; ".join(unread({root: 1}))
            what = told or "give a folder of images, or an image"
            raise UserError(f"{root} is a file and no image that is read; {what}")
        return [root]
    found = listing(root)
    if not found.images:
        kinds = ", ".join(sorted(EXTENSIONS))
        where = f"looked for {kinds}, also in sub-folders"
        if found.runs:
            where += f"; {found.runs[0]} holds results of a run"
        if found.closed:
            where += f"; {found.closed[0]} may not be read"
        where = "; ".join((where, *unread(dict.fromkeys(found.others, 1))))
        raise UserError(f"there is no image in {root} ({where})")
    return list(found.images)


def unread(files: Mapping[Path, int]) -> list[str]:
    """Return which of some files are pictures that are not read, and what to make of them.

    Args:
        files: how many of its kind each stands for.
    """
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        kind = UNREAD.get(path.suffix.lower())
        if kind is not None:
            kinds.setdefault(kind, []).append(path)
    return [
        f"{counted(sum(files[path] for path in paths), f'{name} file')} (first: {paths[0].name}), "
        f"which matssl does not read: {remedy}"
        for (name, remedy), paths in kinds.items()
    ]


def is_junk(name: str) -> bool:
    """Return whether a folder of this name holds previews or what was deleted."""
    return name.lower() in JUNK


def is_run(files: Sequence[str]) -> bool:
    """Return whether a folder that holds these files is one of our results."""
    return any(signs <= set(files) for signs in RUNS)


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image."""
    return not name.startswith((".", "_.")) and Path(name).suffix.lower() in EXTENSIONS


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sorting key in which image 2 comes before image 10."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


def size_of(path: Path) -> int:
    """Return the bytes of a file that can be read to its end.

    Opening a pipe waits for a writer and a device may never end, so this is asked first.

    Raises:
        UserError: it is absent, empty, or no file of bytes.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {told}") from error
    for is_kind, name in SPECIAL:
        if is_kind(status.st_mode):
            raise UserError(f"{path} is {name}, no image file; take it out of the folder")
    if status.st_size == 0:
        raise UserError(f"{path} is empty")
    return status.st_size
