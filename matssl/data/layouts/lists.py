"""Images that are given by name, for training and validation, as unet-compare's settings do it.

Its rules: of a list for training, the list for validation or a share of it validates, else all
other images; without one, the complement of the list for validation trains, or a share of all
images validates. Here tiles of one picture stay on one side: its own lists part them, so that its
models are validated on pictures they have seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data.layouts.pairing import Found
from matssl.data.layouts.splits import apply_table
from matssl.data.specimens import Pair, cut_validation

SHOWN = 3
# What a folder may call images that lists part anew.
OPEN = ("", "train", "val")
# Name that stands for every labelled image.
ALL = "all"


@dataclass(frozen=True)
class Lists:
    """What is said of the images of a folder.

    Attributes:
        training: names of images to train on; "all" alone: every labelled one.
        validation: names of images to validate on.
        share: of the images, or of those to train on, that validates.
        folds: whether folds of the images to train on validate, so that no other does.
    """

    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    share: float | None = None
    folds: bool = False

    def __bool__(self) -> bool:
        """Return whether anything is said."""
        return bool(self.training or self.validation or self.share)


def part(
    pairs: Sequence[Pair], lists: Lists, seed: int, root: Path
) -> tuple[list[Pair], list[str]]:
    """Return the images with a split each, and what is to be said.

    Images that nothing names test, where no picture of theirs trains or validates; else they are
    left out. Those that the folder itself calls a test stay one.

    Args:
        pairs: all images of the folder; those without a mask are for prediction.
        lists: what the user said.
        seed: of a share that is drawn.
        root: of the folder, for messages.

    Raises:
        UserError: names that match no image or several, or a share that leaves nothing to train on.
    """
    masked = [pair for pair in pairs if pair.mask is not None]
    labelled = [pair for pair in masked if pair.split in OPEN]
    closed = [pair for pair in masked if pair.split not in OPEN]
    told: list[str] = []
    train, val = _given(labelled, lists, root)
    if lists.share is not None and not lists.folds:
        train, val = _shared(train, lists.share, seed, told, root)
    elif val:
        train, val = _whole_pictures(train, val, lists, seed, told)
    splits = {pair.image: "train" for pair in train} | {pair.image: "val" for pair in val}
    seen = {pair.group for pair in (*train, *val)}
    result, left = [], []
    for pair in labelled:
        if pair.image in splits:
            result.append(replace(pair, split=splits[pair.image]))
        elif pair.group not in seen:
            result.append(replace(pair, split="test"))
        else:
            left.append(pair)
    if left:
        told.append(
            f"{counted(len(left), 'image')} of pictures that train or validate are in no list and "
            f"are left out: {_names(left)}"
        )
    tests = sum(pair.split == "test" for pair in result) + len(closed)
    alone = "" if tests or not val else "; none tests, so scores are of images that chose the model"
    told.append(
        f"parted by picture: {len(train)} to train, {len(val)} to validate, {tests} to test{alone}"
    )
    order = {"train": 0, "val": 1, "test": 2}
    result.sort(key=lambda pair: order[pair.split])
    return [
        *result,
        *closed,
        *(replace(pair, split="predict") for pair in pairs if pair.mask is None),
    ], told


def _given(labelled: list[Pair], lists: Lists, root: Path) -> tuple[list[Pair], list[Pair]]:
    """Return the images to train on and to validate on, as the lists say."""
    found = [Found(pair.image, pair.mask, "") for pair in labelled]
    everything = [pair.image.name for pair in labelled] if lists.training == (ALL,) else None
    table = {"train": everything or list(lists.training), "val": list(lists.validation)}
    said = {
        "train": "the training set (--training_set)",
        "val": "the validation set (--validation_set)",
    }
    named: dict[str, set[Path]] = {"train": set(), "val": set()}
    for split, names in table.items():
        if names:
            items, _ = apply_table(found, {split: names}, said[split], root)
            named[split] = {item.image for item in items}
    both = [pair for pair in labelled if pair.image in named["train"] & named["val"]]
    if both:
        raise UserError(
            f"--training_set and --validation_set both name {both[0].image.name}; take it out of "
            "one of them"
        )
    train = [pair for pair in labelled if pair.image in named["train"]]
    val = [pair for pair in labelled if pair.image in named["val"]]
    if lists.folds:
        return train or labelled, []
    if not lists.training:
        train = [pair for pair in labelled if pair not in val]
    elif not lists.validation and lists.share is None:
        val = [pair for pair in labelled if pair not in train]
    return train, val


def _shared(
    pairs: list[Pair], share: float, seed: int, told: list[str], root: Path
) -> tuple[list[Pair], list[Pair]]:
    """Return the images without and with the share that validates, by whole pictures.

    Raises:
        UserError: the share leaves nothing to train on.
    """
    count = len(pairs)
    if count < 2 or share > 1 - 1 / count:
        raise UserError(
            f"--auto_split {share} of {counted(count, 'image')} in {root} leaves none to train on; "
            "take a smaller share"
        )
    if len({pair.group for pair in pairs}) < 2:
        told.append("all images are of one picture: parts of it validate each other")
        pairs = [replace(pair, group=pair.image.stem) for pair in pairs]
    train, val = cut_validation(pairs, share, seed)
    return list(train), list(val)


def _whole_pictures(
    train: list[Pair], val: list[Pair], lists: Lists, seed: int, told: list[str]
) -> tuple[list[Pair], list[Pair]]:
    """Return the parts so that no picture is in both.

    What a list names goes before what is left over from it; where both lists name tiles of a
    picture, it goes to where most of them are. Where that leaves nothing, pictures are drawn.
    """
    train_tiles, val_tiles = (Counter(pair.group for pair in part) for part in (train, val))
    both = {group for group in val_tiles if group in train_tiles}
    if not both or len({pair.group for pair in (*train, *val)}) < 2:
        if both:
            told.append("all images are of one picture: parts of it validate each other")
        return train, val
    tiles = [pair for pair in val if pair.group in both]
    told.append(
        f"{counted(len(tiles), 'image')} of {len(val)} to validate show pictures that also train "
        f"({_names(tiles)}): a score of them would be one of what was learned. Pictures stay "
        "whole instead; --group_regex '(.+)' keeps the lists as they are"
    )
    if not lists.validation:
        kept = train, [pair for pair in val if pair.group not in both]
    elif not lists.training:
        kept = [pair for pair in train if pair.group not in both], val
    else:
        learned = {group for group in both if train_tiles[group] >= val_tiles[group]}
        out = both - learned
        everything = [*train, *val]
        kept = (
            [p for p in everything if p.group in learned or (p in train and p.group not in out)],
            [p for p in everything if p.group in out or (p in val and p.group not in learned)],
        )
    if all(kept):
        return kept
    first, second = cut_validation([*train, *val], len(val) / (len(train) + len(val)), seed)
    return list(first), list(second)


def _names(pairs: Sequence[Pair]) -> str:
    more = " ..." if len(pairs) > SHOWN else ""
    return ", ".join(pair.image.name for pair in pairs[:SHOWN]) + more
