"""``a_json/img.png`` beside ``a_json/label.png``: a folder an image, as LabelMe exports it."""

from __future__ import annotations

from pathlib import Path

from matssl.data.layouts.pairing import Found, Layout, folders_in, images_in

IMAGE, MASK = "img", "label"


def _files(folder: Path) -> tuple[Path, list[Path]] | None:
    """Return the image of a folder and what lies beside it, its mask first."""
    files = images_in(folder)
    image = [path for path in files if path.stem.lower() == IMAGE]
    mask = [path for path in files if path.stem.lower() == MASK]
    if len(image) != 1 or len(mask) != 1:
        return None
    # The picture of the labels that LabelMe draws for people (label_viz.png) is neither.
    return image[0], mask + [path for path in files if path not in (*image, *mask)]


def _pairs(root: Path) -> list[Found] | None:
    folders = [root] if _files(root) else folders_in(root)
    found = [files for files in map(_files, folders) if files is not None]
    return [Found(image, beside[0], "") for image, beside in found] or None


def _no_micrographs(folder: Path) -> list[Path]:
    files = _files(folder)
    return files[1] if files else []


LAYOUT = Layout("a/img.png + a/label.png", _pairs, _no_micrographs)
