"""What a layout is, and what layouts made of folders share: pairs by file name, names of splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers, specimens
from matssl.data.layouts import naming
from matssl.data.specimens import sequences

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
        some: as ``pairs``, for sequences: images need no mask, and a mask may be of a page of a
            stack (``film-003.png`` of page 3 of ``film.tif``). None where ``pairs`` does as well.
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
    some: Callable[[Path], list[Found] | None] | None = None


def pair_by_name(images: Path, masks: Path, split: str, some: bool = False) -> list[Found]:
    """Match images and masks by stem; both sides must fit.

    Args:
        images: folder of the images.
        masks: folder of their masks.
        split: of all of them.
        some: whether images may be without a mask, see :class:`Layout`.

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
        if not fitting and some:
            pages = _pages(image, masks, split)
            used |= {page.mask: image for page in pages if page.mask is not None}
            pairs += pages
        elif not fitting:
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


def paged(
    found: Sequence[Found], root: Path, table: Path | str | None, every: bool, masked: bool = False
) -> list[Found]:
    """Return the pairs with those of stacks page by page.

    Args:
        found: pairs of files.
        root: folder of the data set.
        table: of the specimens, see :func:`matssl.data.specimens.group`.
        every: whether every stack is a sequence; else those that the table names as one.
        masked: whether a stack is one, too, where its mask is.

    Raises:
        UserError: a mask that has not the pages of its stack.
    """
    pictures = specimens.pictures([item.image for item in found], root, table, every)
    result = []
    for item in found:
        pages = pictures[item.image]
        if masked and pages == (item.image,) and item.mask and readers.frames(item.mask):
            pages = readers.frames(item.image) or pages
        if pages == (item.image,) or item.mask is None:
            result += [replace(item, image=page) for page in pages]
            continue
        masks_of = readers.frames(item.mask)
        if len(masks_of) != len(pages):
            raise UserError(
                f"{item.image} has {len(pages)} pages and its mask {item.mask} "
                f"{len(masks_of) or 1}; give a mask of as many, or a file for each page that has "
                f"one: {item.image.stem}-003.png of page 3"
            )
        pairs = zip(pages, masks_of, strict=True)
        result += [replace(item, image=page, mask=mask) for page, mask in pairs]
    return result


def one_page(found: Sequence[Found], page: int | None) -> list[Found]:
    """Return pairs of files as they are read, of each one page: ``--page`` is that of masks, too.

    Args:
        found: pairs of files; pages of stacks stay what they are.
        page: of files of several, from 1; None where nobody says it.

    Raises:
        UserError: picture and mask have different numbers of pages, so that nobody knows which
            belong together.
    """
    result = []
    for item in found:
        if item.mask is None or readers.told_page(item.image) is not None:
            result.append(item)
            continue
        own, other = readers.alike(item.image), readers.alike(item.mask)
        if other > 1 and own != other:
            raise UserError(
                f"{item.mask} has {other} pages and its picture {item.image} "
                f"{counted(own, 'page')}; save the page of the picture as a mask of its own (class "
                "numbers in one page), or a picture of as many pages"
            )
        if own > 1 and other == 1 and page is None:
            raise UserError(
                f"{item.image} has {own} pages and its mask {item.mask} one; --page N says which "
                f"of them it is of, and for masks of single pages of a sequence (--input_depth 3) "
                f"their names do: {item.image.stem}-003.png of page 3"
            )
        if page is not None and other > 1:
            item = replace(item, mask=readers.page_path(item.mask, page))
        result.append(item)
    return result


def _pages(image: Path, masks: Path, split: str) -> list[Found]:
    """Return an image without a mask, or the pages of a stack that has masks of some of them.

    Raises:
        UserError: a mask is of a page that the stack has not, or two are of one.
    """
    known: dict[int, Path] = {}
    for mask in images_in(masks):
        name, number = sequences.named(mask) or ("", 0)
        if name == image.stem:
            other = known.setdefault(number, mask)
            if other != mask:
                raise UserError(
                    f"{masks} holds {other.name} and {mask.name} for one page of {image.name}; "
                    "remove one"
                )
    pages = readers.frames(image) if known else ()
    if not pages:
        return [Found(image, None, split)]
    beyond = [mask.name for number, mask in known.items() if not 1 <= number <= len(pages)]
    if beyond:
        raise UserError(
            f"{image} has {len(pages)} pages, counted from 1, and {masks.name} a mask {beyond[0]}; "
            "number masks as their pages"
        )
    return [Found(page, known.get(number), split) for number, page in enumerate(pages, start=1)]


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
