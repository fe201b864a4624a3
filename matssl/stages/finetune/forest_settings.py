"""Flags of ``--head forest``: the only defaults, their ranges, and what a forest has no use for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matssl.core.flags import Problem, flag

# Scales of the filters in pixels, as text: the only default of the command.
FILTERS = "0.7,1,1.6,3.5,5,10"
MOST_FILTERS, LARGEST = 20, 100.0
HEADS = ("network", "forest")
FOREST = HEADS[1]
# Flags that a forest heeds in the groups of those that are a network's.
HEEDED = ("head", "in_channels")
GROUPS = ("model", "training", "augmentation")
UNHEEDED = ("compile", "tensorboard")
OWN = ("trees", "samples", "leaf_pixels", "filters")


def filters_problem(text: str) -> str:
    """Return what is wrong with ``--filters``, "" where nothing is."""
    try:
        sizes = scales(text)
    except ValueError:
        sizes = ()
    known = all(math.isfinite(size) and 0.3 <= size <= LARGEST for size in sizes)
    if sizes and len(sizes) <= MOST_FILTERS and known and list(sizes) == sorted(set(sizes)):
        return ""
    return (
        f"--filters must be up to {MOST_FILTERS} rising numbers of pixels from 0.3 to "
        f"{LARGEST:g} ({FILTERS}), not {text}"
    )


def scales(text: str) -> tuple[float, ...]:
    """Return the numbers of ``--filters``.

    Raises:
        ValueError: they are none.
    """
    return tuple(float(word) for word in text.split(","))


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ForestSettings:
    """Flags of a random forest on filters of the picture."""

    head: str = flag(
        "network",
        "model",
        "what learns: a network, or a random forest on filters of the picture, which needs no "
        "weights and seconds (what ilastik and Weka do; any labels, strokes too)",
        choices=HEADS,
        first=True,
    )
    trees: int = flag(100, "forest", "trees of --head forest", low=1, high=2000)
    samples: int = flag(
        20_000,
        "forest",
        "labelled pixels that the forest learns from at most, of all classes alike",
        low=100,
        high=5_000_000,
    )
    leaf_pixels: int = flag(
        10, "forest", "training pixels in a leaf at least", low=1, high=1_000_000
    )
    filters: str = flag(
        FILTERS,
        "forest",
        "scales of the filters in pixels: standard deviations of their Gaussians",
        check=filters_problem,
    )

    def forest_problems(self, resume: bool) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            resume: whether a run is to go on.
        """
        wrong = []
        if self.head == FOREST and resume:
            told = "--head forest learns in one go: leave --resume out, or take --overwrite"
            wrong.append(Problem(told, ("resume", "head")))
        given = [
            name
            for name in OWN
            if getattr(self, name) != ForestSettings.__dataclass_fields__[name].default
        ]
        if self.head != FOREST and given:
            names = ", ".join(f"--{name}" for name in given)
            wrong.append(Problem(f"{names}: only with --head forest", (*given, "head")))
        return wrong
