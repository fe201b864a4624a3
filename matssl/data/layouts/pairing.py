"""What a layout is, and what layouts made of folders share: pairs by file name, names of splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.layouts import naming

SPLIT_ALIASES = {
    **dict.fromkeys(("valid", "validation", "validate", "validierung"), "val"),
    **{"training": "train", "testing": "test"},
}
SPLITS = ("train", "val", "test")
# Misfits of one folder that are told; of others the number.
MOST_TOLD = 5


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
        sequence: expression whose first group names the sequence in the path of an image, where
            the layout has such names; a sequence is a specimen unless the user says otherwise.
    """

    example: str
    pairs: Callable[[Path], list[Found] | None]
    no_micrographs: Callable[[Path], list[Path]]
    sequence: str | None = None


def pair_by_name(images: Path, masks: Path, split: str) -> list[Found]:
    """Match images and masks by stem; both sides must fit.

    Raises:
        UserError: images and masks that do not go one by one; all of them are told.
    """
    names: dict[str, list[Path]] = {}
    for mask in images_in(masks):
        for name in (naming.stem(mask), *naming.known(naming.stem(mask))):
            names.setdefault(name, []).append(mask)
    pairs: list[Found] = []
    lonely: list[Path] = []
    wrong: list[str] = []
    used: dict[Path, Path] = {}
    for image in images_in(images):
        # Its own name goes first: a_seg.tif has its mask beside a.tif, which has another.
        own = naming.stem(image)
        fitting = [mask for mask in names.get(own, ()) if naming.stem(mask) == own]
        fitting = fitting or [m for name in naming.of_image(image) for m in names.get(name, ())]
        if not fitting:
            lonely.append(image)
        elif fitting[0] in used:
            wrong.append(
                f"{images} holds {used[fitting[0]].name} and {image.name}, but {masks.name} only "
                f"{fitting[0].name}; remove one of the images"
            )
        else:
            used[fitting[0]] = image
            pairs.append(Found(image, fitting[0], split))
    owned = {name: mask for mask, image in used.items() for name in naming.of_image(image)}
    widowed = []
    for mask in (path for path in images_in(masks) if path not in used):
        first = next((owned[n] for n in naming.known(naming.stem(mask)) if n in owned), None)
        first = owned.get(naming.stem(mask), first)
        if first is None:
            widowed.append(mask)
        else:
            wrong.append(
                f"{used[first].name} has the masks {first.name} and {mask.name} in {masks}; "
                "remove all but one"
            )
    if lonely:
        wrong.append(
            f"{counted(len(lonely), 'image')} in {images} without a mask in {masks.name} (first: "
            f"{lonely[0].name}); add the mask or remove the image"
        )
        wrong += readers.unread({path: 1 for path in sorted(masks.iterdir()) if path.is_file()})
    if widowed:
        wrong.append(
            f"{counted(len(widowed), 'mask')} in {masks} without an image in {images.name} (first: "
            f"{widowed[0].name}); add the image or remove the mask"
        )
    if lonely and widowed and not pairs:
        wrong.append(f"or say how the names go: --mask_folder '{masks.name}/*_mask.png'")
    if wrong:
        more = f"; and {len(wrong) - MOST_TOLD} more of the kind" if len(wrong) > MOST_TOLD else ""
        raise UserError("; ".join(wrong[:MOST_TOLD]) + more)
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
    # Capitals say nothing where the word is one of the three.
    lower = name.lower()
    return SPLIT_ALIASES.get(lower, lower if lower in SPLITS else name)


def by_split(found: list[Found]) -> list[Found] | None:
    """Return train, val, test and then the others; None where nothing was found."""
    rank = {"train": 0, "val": 1, "test": 2}
    return sorted(found, key=lambda item: rank.get(item.split, 3)) or None
