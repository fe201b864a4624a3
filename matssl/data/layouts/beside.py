"""``a0.tif`` and ``a0_mask.png`` in one folder: each mask beside its image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matssl.core.errors import UserError
from matssl.data.layouts import naming
from matssl.data.layouts.pairing import (
    SPLITS,
    Found,
    Layout,
    by_split,
    folders_in,
    images_in,
    split_name,
)

# Names that say it alone; others are believed where the picture holds few values.
SUFFIXES = (
    *("_mask", "_masks", "-mask", "-masks", "_label", "_labels", "-label", "_cp_masks"),
    *("_seg", "_segmentation", "_gt", "_annotation", "_simple segmentation"),
)
PREFIXES = ("mask_", "mask of ")


def _masks(folder: Path) -> dict[Path, str]:
    """Return each mask with the stem of its image, in lower case.

    A name alone makes no mask: the folder must hold an image of that stem.
    """
    stems = {path: naming.stem(path) for path in images_in(folder)}
    known = set(stems.values())
    found: dict[Path, str] = {}
    for path, stem in stems.items():
        images = [stem.removesuffix(s) for s in SUFFIXES if stem.endswith(s)]
        images += [stem.removeprefix(p) for p in PREFIXES if stem.startswith(p)]
        image = next((name for name in images if name in known), None)
        if image is not None:
            found[path] = image
    return found


def _pairs(root: Path) -> list[Found] | None:
    """Return the pairs of a folder, or of its folders where several have some: train, S1, S2."""
    own = _in_one(root)
    if own or images_in(root):
        return own
    inside = {folder: _in_one(folder) for folder in folders_in(root)}
    found = {folder: pairs for folder, pairs in inside.items() if pairs}
    if len(found) < 2:
        # A data set deep in a folder is one of its own.
        return None
    if not {split_name(folder.name) for folder in found} & set(SPLITS):
        # Folders of specimens.
        return [item for pairs in found.values() for item in pairs]
    return by_split(
        [
            replace(item, split=split_name(folder.name) if item.mask else "predict")
            for folder, pairs in found.items()
            for item in pairs
        ]
    )


def _in_one(root: Path) -> list[Found] | None:
    masks = _masks(root)
    drawn = naming.drawn_from(images_in(root))
    images = [path for path in images_in(root) if path not in masks and path not in drawn]
    by_stem: dict[str, list[Path]] = {}
    for mask, stem in masks.items():
        by_stem.setdefault(stem, []).append(mask)
    found = [Found(image, _only(by_stem.get(naming.stem(image)), image), "") for image in images]
    owner: dict[Path, Path] = {}
    for item in found:
        if item.mask in owner:
            raise UserError(
                f"{root} holds {owner[item.mask].name} and {item.image.name}, but only "
                f"{item.mask.name}; remove one of the images"
            )
        if item.mask is not None:
            owner[item.mask] = item.image
    return found if owner else None


def _only(masks: list[Path] | None, image: Path) -> Path | None:
    if masks is not None and len(masks) > 1:
        names = " and ".join(mask.name for mask in masks)
        raise UserError(f"{image} has the masks {names}; remove all but one")
    return masks[0] if masks else None


LAYOUT = Layout("a.tif + a_mask.png", _pairs, lambda folder: list(_masks(folder)))
