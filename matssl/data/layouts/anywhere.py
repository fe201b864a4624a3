"""Images and masks in folders of any name: pairs by what pictures hold, by stem and by size."""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.layouts import naming
from matssl.data.layouts.matching import Matched, distance
from matssl.data.layouts.pairing import Found, by_split, split_name

LISTED = 3
# Words that tell nothing more beside the name of a split: images_train, test set.
_PLAIN = frozenset(
    ("images", "image", "imgs", "img", "inputs", "input", "set", "data", "split", "dir", "raw")
)
_SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}


def pairs(root: Path, images: Sequence[Path], matched: Matched) -> list[Found]:
    """Return the pictures of a folder, each with its mask, and its split where folders name any.

    Args:
        root: the folder.
        images: its micrographs.
        matched: its masks.

    Raises:
        UserError: an image has masks of several sets, or a mask fits several images.
    """
    _refuse_doubt(root, matched)
    masks = matched.by_image
    _refuse_sets(root, masks, matched)
    return split(root, [(image, masks.get(image, [None])[0]) for image in images])


def given(root: Path, images: Sequence[Path], folder: str) -> list[Found]:
    """Return the pictures of a data set with the masks of the folder that a user names.

    Args:
        root: of the data set.
        images: pictures below it.
        folder: from the data set's or from here; the end may be a pattern in which * stands for
            the image's name: ``labels/*_seg.png``.

    Raises:
        UserError: no such folder, no mask or image without its counterpart; they are named.
    """
    masks_in, pattern = place(root, folder)
    files = readers.find_images(masks_in) if masks_in.is_dir() else []
    if pattern:
        files = [path for path in files if fnmatch.fnmatch(path.name, pattern)]
    if not files:
        raise UserError(f"there is no mask in {masks_in / pattern} (--mask_folder {folder})")
    masks = set(files)
    pictures = [path for path in images if path not in masks]
    names: dict[str, list[Path]] = defaultdict(list)
    for mask in files:
        for name in [_starred(mask, pattern)] if pattern else naming.of_mask(mask):
            names[name].append(mask)
    found: list[tuple[Path, Path | None]] = []
    for image in pictures:
        fitting = [mask for name in naming.of_image(image) for mask in names.get(name, ())]
        near = [(distance(mask, image), len(mask.name), mask) for mask in fitting]
        found.append((image, min(near)[2] if near else None))
    if all(mask is None for _, mask in found):
        raise UserError(
            f"no mask in {masks_in} has the name of an image in {root} (masks: {_some(files)}; "
            f"images: {_some(pictures)}); rename them alike, or say how the names go: "
            "--mask_folder 'FOLDER/*_mask.png', * for the name of the image"
        )
    return split(root, found)


def place(root: Path, folder: str) -> tuple[Path, str]:
    """Return the folder and the pattern that ``--mask_folder`` names."""
    given = Path(folder)
    pattern = given.name if "*" in given.name else ""
    given = given.parent if pattern else given
    places = (root / given, given)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"there is no folder {given} in {root} nor here (--mask_folder)")
    return found, pattern


def _starred(mask: Path, pattern: str) -> str:
    """Return what the * of a pattern stands for in the name of a mask, as stems are compared."""
    before, _, after = pattern.partition("*")
    return naming.stem(Path(mask.name[len(before) : len(mask.name) - len(after)] + ".png"))


def _refuse_doubt(root: Path, matched: Matched) -> None:
    """Refuse masks that belong to several images alike."""
    doubtful = [
        (mask, images)
        for mask, images in matched.images.items()
        if len(images) > 1 and distance(mask, images[0]) == distance(mask, images[1])
    ]
    if doubtful:
        mask, images = doubtful[0]
        several = counted(len(doubtful), "mask")
        raise UserError(
            f"{several} in {root} may belong to more than one image (first: "
            f"{_below(mask, root)} to {_below(images[0], root)} or {_below(images[1], root)}); "
            "give the masks the folders of their images, or remove what is there twice"
        )


def _refuse_sets(root: Path, masks: dict[Path, list[Path]], matched: Matched) -> None:
    """Refuse images that have more than one mask; of several sets one has to be named."""
    sets: Counter[str] = Counter()
    doubled = []
    for image, files in masks.items():
        folders = {_set(mask, image, root) for mask in files}
        sets.update(folders)
        if len(files) > 1:
            doubled.append((image, files, folders))
    if not doubled:
        return
    image, files, folders = doubled[0]
    if len(folders) == len(files) and len({mask.parent for mask in files}) == len(files):
        told = ", ".join(f"{name} ({count})" for name, count in sets.most_common(6))
        raise UserError(
            f"{root} has several sets of masks for the same images: {told}; say which one is "
            f"meant with --mask_folder {sets.most_common(1)[0][0]}"
        )
    names = " and ".join(_below(mask, root) for mask in files)
    raise UserError(
        f"{_below(image, root)} has the masks {names} ({counted(len(doubled), 'such image')}); "
        "remove all but one, or say which are meant with --mask_folder 'FOLDER/*_mask.png', * for "
        "the name of the image"
    )


def _set(mask: Path, image: Path, root: Path) -> str:
    """Return the folder that tells masks of one set from those of another."""
    mine, its = mask.relative_to(root).parent.parts, image.relative_to(root).parent.parts
    for place, part in enumerate(mine):
        if place >= len(its) or part != its[place]:
            return str(Path(*mine[: place + 1]))
    return str(Path(*mine)) if mine else "."


def split(root: Path, found: Iterable[tuple[Path, Path | None]]) -> list[Found]:
    """Return pairs with the splits that folders name; none where no folder is one of training."""
    items = [Found(image, mask, _named_split(image, root)) for image, mask in found]
    splits = {item.split for item in items if item.mask is not None}
    if "" not in splits and splits & {"train", "val", "test"}:
        # An image without a mask is for prediction, whatever its folder is called.
        kept = [Found(i.image, i.mask, i.split if i.mask else "predict") for i in items]
        return by_split(kept) or []
    if splits & {"train"}:
        kept = [
            Found(i.image, i.mask, (i.split or i.image.parent.name) if i.mask else "predict")
            for i in items
        ]
        return by_split(kept) or []
    return [Found(item.image, item.mask, "") for item in items]


def _named_split(image: Path, root: Path) -> str:
    """Return the split that a folder on the way to an image names, "" for none."""
    for part in image.relative_to(root).parent.parts:
        words = naming.words(part)
        known = words & set(_SPLITS)
        # A word glued together of two (imagestr) is there beside its parts.
        rest = {w for w in words - known - _PLAIN if w != part.lower()}
        if known and not rest and not any(map(str.isdigit, part)):
            return _SPLITS[min(known)]
        if known:
            return split_name(part)
    return ""


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if root in path.parents else str(path)


def _some(paths: Sequence[Path]) -> str:
    more = " ..." if len(paths) > LISTED else ""
    return ", ".join(path.name for path in paths[:LISTED]) + more
