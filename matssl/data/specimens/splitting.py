"""Parts of a data set, drawn by whole specimens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matssl.core import rng

# With fewer labelled images a split for validation would cost too much of them.
MIN_IMAGES_TO_SPLIT = 4


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


def take(pairs: Sequence[Pair], count: int, seed: int) -> tuple[Pair, ...]:
    """Return ``count`` of the pairs, the same ones for the same seed, in their order."""
    order = rng.generator(seed, 2, 0, stream=rng.ORDER).permutation(len(pairs))
    return tuple(pairs[i] for i in sorted(order[:count]))


def cut_validation(
    pairs: Sequence[Pair], fraction: float, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return (train, val): whole groups go to val until it holds about ``fraction``.

    The smallest groups go first, in an order drawn from ``seed`` where they are equal: training
    keeps the largest. One group, or a fraction of 0, leaves val empty.
    """
    sizes = Counter(pair.group for pair in pairs)
    groups = sorted(sizes)
    if len(groups) < 2 or fraction <= 0:
        return tuple(pairs), ()
    order = rng.generator(seed, 0, 0, stream=rng.ORDER).permutation(len(groups))
    by_size = sorted((groups[place] for place in order), key=lambda name: sizes[name])
    wanted = max(1, round(fraction * len(pairs)))
    chosen: set[str] = set()
    for name in by_size[:-1]:
        if sum(sizes[group] for group in chosen) >= wanted:
            break
        chosen.add(name)
    train = tuple(pair for pair in pairs if pair.group not in chosen)
    return train, tuple(replace(pair, split="val") for pair in pairs if pair.group in chosen)


def validated_inside(
    pairs: Sequence[Pair], train: Sequence[Pair], val: Sequence[Pair]
) -> tuple[str, ...]:
    """Return a note where validation was cut from inside the one specimen that is left to train on.

    Args:
        pairs: of the data set, with their specimens.
        train: what is learned from.
        val: what validates, cut by :func:`cut_validation` or named.
    """
    groups = {pair.image: pair.group for pair in pairs}
    named = any(pair.split == "val" and pair.mask is not None for pair in pairs)
    both = {groups[p.image] for p in train} & {groups[p.image] for p in val}
    if named or not both:
        return ()
    return (
        f"one specimen is left for training ({', '.join(sorted(both))}): {len(val)} of its "
        f"{len(train) + len(val)} images validate, and their score is too good for other specimens",
    )


def one_left(pairs: Sequence[Pair]) -> str:
    """Return a note where fine-tuning would cut validation from inside one specimen; "" elsewhere.

    Args:
        pairs: of a data set, with splits and specimens.
    """
    labelled = [pair for pair in pairs if pair.mask is not None]
    train = [pair for pair in labelled if pair.split == "train"]
    groups = {pair.group for pair in train}
    few = len(train) < MIN_IMAGES_TO_SPLIT
    if few or len(groups) > 1 or any(pair.split == "val" for pair in labelled):
        return ""
    return (
        f"one specimen is left for training ({groups.pop()}): validation will be cut from inside "
        "it, and its score is too good for other specimens"
    )


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


def grouped_folds(pairs: Sequence[Pair], count: int, seed: int) -> list[tuple[int, ...]]:
    """Return the held-out indices of each of ``count`` folds of whole groups, about equally large.

    The largest group goes first, into the fold that has the fewest images so far; equal ones come
    in an order drawn from ``seed``. The order of the pairs decides nothing.

    Args:
        pairs: in whatever order.
        count: 2 to the number of groups.
        seed: of the draw.

    Raises:
        ValueError: more folds than groups, or fewer than two.
    """
    sizes = Counter(pair.group for pair in pairs)
    groups = sorted(sizes)
    if not 2 <= count <= len(groups):
        raise ValueError(f"{len(groups)} groups cannot make {count} folds")
    order = rng.generator(seed, 1, 0, stream=rng.ORDER).permutation(len(groups))
    by_size = sorted((groups[place] for place in order), key=lambda name: -sizes[name])
    held: list[set[str]] = [set() for _ in range(count)]
    for name in by_size:
        # Of folds with as many images, one without a group: each gets one.
        least = min(held, key=lambda own: (sum(sizes[group] for group in own), len(own)))
        least.add(name)
    return [tuple(i for i, pair in enumerate(pairs) if pair.group in own) for own in held]


def cut_all(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Return the pairs with train, val and test by group, 60, 20 and 20 % where groups allow it.

    The largest groups are in train.
    """
    rest, test = cut_validation(pairs, 0.2, seed)
    train, val = cut_validation(rest, 0.25, seed + 1)
    return [
        *(replace(pair, split="train") for pair in train),
        *val,
        *(replace(pair, split="test") for pair in test),
    ]
