"""Flags of heads that are no network, a forest and a linear one: the only defaults, ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matssl.core.flags import Problem, flag

# Scales of the filters in pixels, as text: the only default of the command.
FILTERS = "0.7,1,1.6,3.5,5,10"
MOST_FILTERS, LARGEST = 20, 100.0
HEADS = ("network", "forest", "linear")
NETWORK, FOREST, LINEAR = HEADS
# What a head that is no network sees of a pixel.
FEATURES = ("auto", "filters", "encoder", "both")
# Flags that such a head heeds in the groups of those that are a network's, and those that it heeds
# where it sees the maps of an encoder.
HEEDED = ("head", "features", "in_channels")
OF_ENCODERS = (
    *("encoder", "ssl_weights_path", "pretrained", "pretrained_model", "weights"),
    *("encoder_blocks", "encoder_filters"),
)
GROUPS = ("model", "training", "augmentation")
UNHEEDED = ("compile", "tensorboard")
# Flags of the group, by the heads that heed them.
TREES, SAMPLED = ("trees", "leaf_pixels"), ("samples", "filters")


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
    """Flags of a random forest or a linear classifier of pixels."""

    head: str = flag(
        NETWORK,
        "model",
        "what learns: a network, or on features that stay as they are, in seconds and from any "
        "labels, strokes too, a random forest (what ilastik and Weka do) or a linear classifier",
        choices=HEADS,
        first=True,
    )
    features: str = flag(
        "auto",
        "model",
        "what --head forest or linear sees of a pixel: filters of the picture, the maps of the "
        "encoder, or both; auto: both where --ssl_weights_path or --weights gives an encoder, else "
        "filters",
        choices=FEATURES,
    )
    trees: int = flag(100, "forest", "trees of --head forest", low=1, high=2000)
    samples: int = flag(
        20_000,
        "forest",
        "labelled pixels that --head forest or linear learns from at most, of all classes alike",
        low=100,
        high=5_000_000,
    )
    leaf_pixels: int = flag(
        10, "forest", "training pixels in a leaf of --head forest at least", low=1, high=1_000_000
    )
    filters: str = flag(
        FILTERS,
        "forest",
        "scales of the filters in pixels: standard deviations of their Gaussians",
        check=filters_problem,
    )

    @property
    def classifies(self) -> bool:
        """Whether pixels are classified on features that stay as they are, without a network."""
        return self.head != NETWORK

    def seen(self, weights: bool) -> str:
        """Return what such a head sees: filters, encoder or both.

        Args:
            weights: whether an encoder was given.
        """
        if self.features != "auto":
            return self.features
        return "both" if weights else "filters"

    def forest_problems(self, resume: bool, weights: bool) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            resume: whether a run is to go on.
            weights: whether weights of an encoder were given.
        """
        wrong = []
        if self.classifies and resume:
            told = f"--head {self.head} learns in one go: leave --resume out, or take --overwrite"
            wrong.append(Problem(told, ("resume", "head")))
        for names, heads in ((TREES, (FOREST,)), (SAMPLED, (FOREST, LINEAR))):
            given = [name for name in names if getattr(self, name) != _default(name)]
            if self.head not in heads and given:
                flags = ", ".join(f"--{name}" for name in given)
                told = f"{flags}: only with --head {' or '.join(heads)}"
                wrong.append(Problem(told, (*given, "head")))
        if not self.classifies and self.features != "auto":
            told = f"--features: only with --head {FOREST} or {LINEAR}; a network sees the picture"
            wrong.append(Problem(told, ("features", "head")))
        if self.classifies and self.seen(weights) == "encoder" and self.filters != FILTERS:
            told = "--filters have no effect with --features encoder; take both"
            wrong.append(Problem(told, ("filters", "features")))
        return wrong


def _default(name: str) -> object:
    return ForestSettings.__dataclass_fields__[name].default
