"""Data sets of SRPU-Model: ``raw_images`` beside ``masks_3class``, one folder a data set."""

from __future__ import annotations

from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data.layouts import naming
from matssl.data.layouts.images_masks import MASK_NAMES
from matssl.data.layouts.index import SEQUENCE
from matssl.data.layouts.pairing import Found, Layout, folders_in, images_in

RAW = "raw_images"
# Folder of a project that holds its data sets.
DATASETS = "datasets"


def raw_folder(folder: Path) -> Path | None:
    """Return the folder of the images of a data set; None where it is none of the program's."""
    return next((path for path in folders_in(folder) if path.name.lower() == RAW), None)


def mask_folders(folder: Path) -> list[Path]:
    """Return the folders of masks of a data set, such as ``masks_3class``."""
    if raw_folder(folder) is None:
        return []
    starts = tuple(f"{name}_" for name in MASK_NAMES)
    names = {path: path.name.lower() for path in folders_in(folder)}
    return [path for path, name in names.items() if name in MASK_NAMES or name.startswith(starts)]


def data_sets(root: Path) -> list[Path]:
    """Return the folders of data sets in a folder: itself, those in it, or those in datasets/."""
    if not root.is_dir():
        return []
    if raw_folder(root) is not None:
        return [root]
    inside = [path for path in folders_in(root) if raw_folder(path) is not None]
    if not inside and (root / DATASETS).is_dir():
        return data_sets(root / DATASETS)
    return inside


def images_of(folder: Path) -> list[Found]:
    """Return the images of a data set, each with the mask of its name, if it has one.

    Raises:
        UserError: several folders of masks, or masks without an image.
    """
    raw, masks = raw_folder(folder), mask_folders(folder)
    assert raw is not None
    if len(masks) > 1:
        names = ", ".join(path.name for path in masks)
        raise UserError(f"{folder} has several folders of masks ({names}); --mask_folder names one")
    images = [path for place in (raw, *_below(raw)) for path in images_in(place)]
    of_masks = [path for m in masks for place in (m, *_below(m)) for path in images_in(place)]
    by_name = {_key(path, masks[0]): path for path in of_masks}
    found = [Found(path, by_name.get(_key(path, raw)), "") for path in images]
    used = {item.mask for item in found}
    alone = [path for path in of_masks if path not in used]
    if alone:
        raise UserError(
            f"{counted(len(alone), 'mask')} in {masks[0]} without an image of the same name in "
            f"{raw.name} (first: {alone[0].name}); add the image or remove the mask"
        )
    return found


def _below(folder: Path) -> list[Path]:
    """Return all folders below a folder, in order."""
    return [place for path in folders_in(folder) for place in (path, *_below(path))]


def _key(path: Path, root: Path) -> str:
    """Return what an image and its mask have in common: folders below their own, and stem."""
    return (path.parent.relative_to(root) / naming.stem(path)).as_posix().lower()


def _pairs(root: Path) -> list[Found] | None:
    found = [item for folder in data_sets(root) for item in images_of(folder)]
    return found if any(item.mask for item in found) else None


LAYOUT = Layout("NAME/raw_images + NAME/masks_3class", _pairs, mask_folders, SEQUENCE)
