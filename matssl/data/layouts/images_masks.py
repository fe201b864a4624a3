"""``images`` beside ``masks``, ``labels`` or ``annotations``; splits come from elsewhere."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from matssl.data.layouts.pairing import Found, Layout, folders_in, pair_by_name

MASK_NAMES = ("annotations", "labels", "masks", "targets", "gt", "annot", "mask", "label")
IMAGE_NAMES = ("images", "inputs", "img", "image", "imgs")


def both_folders(folder: Path) -> tuple[Path, Path] | None:
    """Return the folder of images and that of masks in ``folder``; None unless it has both."""
    names = {path.name.lower(): path for path in folders_in(folder)}
    images = next((names[name] for name in IMAGE_NAMES if name in names), None)
    masks = next((names[name] for name in MASK_NAMES if name in names), None)
    return (images, masks) if images and masks else None


def mask_folders(folder: Path) -> list[Path]:
    """Return all folders of masks in ``folder``, such as ``masks`` and ``masks_3class``."""
    folders = {path: path.name.lower() for path in folders_in(folder)}
    if not set(IMAGE_NAMES) & set(folders.values()):
        return []
    words = re.compile(rf"({'|'.join(MASK_NAMES)})(_|-|$)")
    return [path for path, name in folders.items() if words.match(name)]


def _pairs(root: Path, some: bool = False) -> list[Found] | None:
    both = both_folders(root)
    return pair_by_name(*both, "", some) if both else None


LAYOUT = Layout("images + masks", _pairs, mask_folders, some=partial(_pairs, some=True))
