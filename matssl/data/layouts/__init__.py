"""Recognises how a folder of images and masks is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl.core.errors import UserError
from matssl.data import masks, readers
from matssl.data.layouts import folders
from matssl.data.layouts.folders import Found
from matssl.data.specimens import MIN_IMAGES_TO_SPLIT, Pair, cut_all, groups_of

__all__ = ["DATA_LAYOUTS", "Dataset", "Pair", "find", "tests", "unlabelled"]

# Name -> function(root) that returns what it found, or None where the folder is laid otherwise.
DATA_LAYOUTS: dict[str, Callable[[Path], list[Found] | None]] = {
    "split + split_annot": folders.annot_folders,
    "split/inputs + split/targets": folders.inputs_targets,
    "images + masks": folders.images_masks,
}


@dataclass(frozen=True)
class Dataset:
    """A labelled (or unlabelled) folder.

    Attributes:
        root: the folder.
        layout: which layout was recognised.
        pairs: all images, ordered by split and name.
        table: classes of the masks; None where there are no masks.
        notes: what was noticed, in words.
    """

    root: Path
    layout: str
    pairs: tuple[Pair, ...]
    table: masks.ClassTable | None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits in order of appearance."""
        return tuple(dict.fromkeys(pair.split for pair in self.pairs))

    def split(self, name: str) -> tuple[Pair, ...]:
        """Return the pairs of one split; empty where it does not exist."""
        return tuple(pair for pair in self.pairs if pair.split == name)


def find(
    root: Path | str,
    *,
    splits: Path | str | None = None,
    group_regex: str | None = None,
    classes: str | None = None,
    seed: int = 0,
    need_masks: bool = True,
    table: masks.ClassTable | None = None,
    opened: Sequence[str] | None = None,
) -> Dataset:
    """Return the data set in a folder: pairs by split, class table, groups.

    Args:
        root: the folder; its layout is recognised.
        splits: json, csv or txt file, or a folder of txt files, naming the images of each split.
        group_regex: names the specimen in a file name.
        classes: ``--classes``.
        seed: of the automatic split, used where nothing else says the split.
        need_masks: whether a folder without masks is an error.
        table: use this class table instead of looking for one (evaluation of a model).
        opened: only masks of these splits are opened to find the classes; all when None.

    Raises:
        UserError: nothing found, images without masks or the reverse, masks that cannot be read.
    """
    root = Path(root)
    readers.find_images(root)
    name, found = _recognise(root)
    notes: list[str] = []
    if not any(item.mask for item in found):
        if need_masks:
            raise UserError(
                f"{root} has images but no masks; expected folders such as train + train_annot, "
                "train/inputs + train/targets, or images + masks"
            )
        name = "images only"
    if splits is not None:
        found, remarks = folders.apply_splits(found, Path(splits), root)
        notes += remarks
    names = groups_of([item.image for item in found], group_regex)
    pairs = [
        Pair(item.image, item.mask, group, item.split or "")
        for item, group in zip(found, names, strict=True)
    ]
    if any(pair.split == "" for pair in pairs):
        if any(pair.mask for pair in pairs):
            few = len(pairs) < MIN_IMAGES_TO_SPLIT
            pairs = [replace(p, split="train") for p in pairs] if few else cut_all(pairs, seed)
            count = len({pair.group for pair in pairs})
            notes.append(
                f"no split given and only {count} images: all are for training, none tests it"
                if few
                else f"no split given: cut 60/20/20 by group ({count} groups) with seed {seed}; "
                "--splits or --group_regex says otherwise"
            )
        else:
            pairs = [replace(pair, split="predict") for pair in pairs]
    seen = [pair for pair in pairs if opened is None or pair.split in opened]
    mask_paths = [pair.mask for pair in seen if pair.mask is not None]
    if mask_paths and table is None:
        table, found_notes = masks.find_table(mask_paths, classes, root)
        notes += found_notes
    return Dataset(root, name, tuple(pairs), table if mask_paths else None, tuple(notes))


def unlabelled(root: Path | str) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder without those in mask folders, and these folders.

    Raises:
        UserError: there is no image.
    """
    paths = readers.find_images(root)
    masks = folders.mask_folders(Path(root))
    return [p for p in paths if not any(m in p.parents for m in masks)] or paths, masks


def tests(root: Path | str) -> list[Path]:
    """Return the images of a folder's test splits, all of its images where it has none."""
    found = find(root, need_masks=False, opened=())
    chosen = [pair.image for pair in found.pairs if pair.split.endswith("test")]
    return chosen or [pair.image for pair in found.pairs]


def _recognise(root: Path) -> tuple[str, list[Found]]:
    for name, layout in DATA_LAYOUTS.items():
        found = layout(root)
        if found:
            return name, found
    images = readers.find_images(root)
    return "images only", [Found(image, None, "") for image in images]
