"""Which images are of one specimen, or tiles of one frame, and what is drawn by whole specimens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matssl.core import rng
from matssl.core.errors import UserError

# With fewer labelled images a split for validation would cost too much of them.
MIN_IMAGES_TO_SPLIT = 4
_LAST_COUNTER = re.compile(r"[-_ .#]*\(?\d+\)?$")


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        image: path of the micrograph.
        mask: path of the mask, None where there is none.
        group: specimen or frame it belongs to.
        split: train, val, test, another test split's name, or predict.
    """

    image: Path
    mask: Path | None
    group: str
    split: str


def group_of(path: Path, regex: str | None = None) -> str:
    """Return the name of the group an image belongs to.

    Without ``regex`` it is the file name's stem before the last counter: tiles ``8_1 ... 8_4`` form
    the group ``8``. With it, the first group of the match (or the whole match).

    Raises:
        UserError: the regular expression is invalid.
    """
    if regex:
        match = _search(regex, path)
        if match:
            return match[1] if match.groups() else match[0]
        return path.stem
    stem = path.stem
    if "_crop_" in stem:
        # Windows cut from one frame belong to that frame.
        return stem.split("_crop_")[0]
    short = _LAST_COUNTER.sub("", stem)
    return short or stem


def check_regex(paths: Sequence[Path], regex: str | None) -> None:
    """Refuse a regular expression that fits none of the file names: it would group nothing.

    Raises:
        UserError: it fits none, or is invalid.
    """
    if regex and paths and not any(_search(regex, path) for path in paths):
        raise UserError(
            f"--group_regex {regex!r} fits none of the {len(paths)} file names (first: "
            f"{paths[0].name})"
        )


def groups_of(paths: list[Path], regex: str | None = None) -> list[str]:
    """Return the group of each path; images that differ by a counter alone stand for themselves.

    A folder of image_1 ... image_9 says nothing about specimens. Where the rule would put every
    image into one group, each image is its own.
    """
    names = [group_of(path, regex) for path in paths]
    if regex is None and len(paths) > 1 and len(set(names)) == 1:
        return [path.stem for path in paths]
    return names


def take(pairs: Sequence[Pair], count: int, seed: int) -> tuple[Pair, ...]:
    """Return ``count`` of the pairs, the same ones for the same seed, in their order."""
    order = rng.generator(seed, 2, 0, stream=rng.ORDER).permutation(len(pairs))
    return tuple(pairs[i] for i in sorted(order[:count]))


def cut_validation(
    pairs: Sequence[Pair], fraction: float, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return (train, val): whole groups go to val until it holds about ``fraction``.

    One group, or a fraction of 0, leaves val empty.
    """
    groups = sorted({pair.group for pair in pairs})
    if len(groups) < 2 or fraction <= 0:
        return tuple(pairs), ()
    order = rng.generator(seed, 0, 0, stream=rng.ORDER).permutation(len(groups))
    wanted = max(1, round(fraction * len(pairs)))
    chosen: set[str] = set()
    for place in order[:-1]:
        if sum(pair.group in chosen for pair in pairs) >= wanted:
            break
        chosen.add(groups[place])
    train = tuple(pair for pair in pairs if pair.group not in chosen)
    return train, tuple(replace(pair, split="val") for pair in pairs if pair.group in chosen)


def folds(pairs: Sequence[Pair], count: int, seed: int) -> list[tuple[int, ...]]:
    """Return the held-out indices of each of ``count`` folds; groups stay whole where they can."""
    groups = sorted({pair.group for pair in pairs})
    if len(groups) < count:
        parts = np.array_split(np.arange(len(pairs)), min(count, len(pairs)))
        return [tuple(part.tolist()) for part in parts]
    order = rng.generator(seed, 1, 0, stream=rng.ORDER).permutation(len(groups))
    result = []
    for part in np.array_split(order, count):
        held = {groups[place] for place in part}
        result.append(tuple(i for i, pair in enumerate(pairs) if pair.group in held))
    return result


def cut_all(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Return the pairs with train, val and test by group, about 60, 20 and 20 %."""
    rest, test = cut_validation(pairs, 0.2, seed)
    train, val = cut_validation(rest, 0.25, seed + 1)
    return [
        *(replace(pair, split="train") for pair in train),
        *val,
        *(replace(pair, split="test") for pair in test),
    ]


def _search(regex: str, path: Path) -> re.Match[str] | None:
    try:
        return re.search(regex, path.stem)
    except re.error as error:
        raise UserError(f"--group_regex {regex!r} is not valid: {error}") from error
