"""What a layout is, and what layouts made of folders share: pairs by file name, names of splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.data import readers

SPLIT_ALIASES = {"valid": "val", "validation": "val", "validate": "val", "training": "train"}
MASK_SUFFIXES = ("_mask", "_label", "_labels", "_annot", "_gt", "-mask", "_seg")


@dataclass(frozen=True)
class Found:
    """An image with its mask, and the split its folder names ("" for none)."""

    image: Path
    mask: Path | None
    split: str


@dataclass(frozen=True)
class Layout:
    """One way in which people lay out images and masks.

    Attributes:
        example: what it looks like, in a few words.
        pairs: from the folder of a data set to all its images, each with its mask (None where it
            has none) and its split; None where the folder is laid out otherwise. Raises UserError
            where images and masks do not fit.
        no_micrographs: from any folder, also one deep in a pool, to the files and folders directly
            in it that hold masks and not micrographs; a folder stands for all that is below it.
            Opens no file and refuses nothing.
    """

    example: str
    pairs: Callable[[Path], list[Found] | None]
    no_micrographs: Callable[[Path], list[Path]]


def pair_by_name(images: Path, masks: Path, split: str) -> list[Found]:
    """Match images and masks by stem; both sides must fit."""
    mask_by_stem: dict[str, Path] = {}
    for path in images_in(masks):
        stems = {path.stem, *(_without_suffix(path.stem))}
        for stem in stems:
            mask_by_stem.setdefault(stem.lower(), path)
    pairs, lonely = [], []
    used: dict[Path, Path] = {}
    for image in images_in(images):
        mask = mask_by_stem.get(image.stem.lower())
        if mask is None:
            lonely.append(image)
        elif mask in used:
            raise UserError(
                f"{images} holds {used[mask].name} and {image.name}, but {masks.name} only "
                f"{mask.name}; remove one of the images"
            )
        else:
            used[mask] = image
            pairs.append(Found(image, mask, split))
    if lonely:
        raise UserError(
            f"{len(lonely)} image{'s' * (len(lonely) > 1)} in {images} without a mask in "
            f"{masks.name} (first: {lonely[0].name}); add the mask or remove the image"
        )
    widowed = [path for path in images_in(masks) if path not in used]
    if widowed:
        raise UserError(
            f"{len(widowed)} mask{'s' * (len(widowed) > 1)} in {masks} without an image in "
            f"{images.name} (first: {widowed[0].name}); add the image or remove the mask"
        )
    return pairs


def folders_in(root: Path) -> list[Path]:
    """Return the folders directly in ``root``, without hidden ones."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in natural order."""
    files = [p for p in folder.iterdir() if p.is_file() and readers.is_image_name(p.name)]
    return sorted(files, key=lambda path: readers.natural(path.name))


def split_name(name: str) -> str:
    """Return the split a folder or list of this name means."""
    return SPLIT_ALIASES.get(name.lower(), name)


def by_split(found: list[Found]) -> list[Found] | None:
    """Return train, val, test and then the others; None where nothing was found."""
    rank = {"train": 0, "val": 1, "test": 2}
    return sorted(found, key=lambda item: rank.get(item.split, 3)) or None


def _without_suffix(stem: str) -> Iterable[str]:
    return (stem[: -len(s)] for s in MASK_SUFFIXES if stem.lower().endswith(s))
