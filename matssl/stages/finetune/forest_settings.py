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
# Values of --average_with beside these: no head; the better of both.
NONE, AUTO = "none", "auto"
# What a head that is no network sees of a pixel.
FEATURES = (AUTO, "filters", "encoder", "both")
# Flags that such a head heeds in the groups of those that are a network's, and those that it heeds
# where it sees the maps of an encoder.
HEEDED = ("head", "features", "in_channels")
OF_ENCODERS = (
    *("encoder", "ssl_weights_path", "pretrained", "pretrained_model", "weights"),
    *("encoder_blocks", "encoder_filters"),
)
GROUPS = ("model", "training", "augmentation")
UNHEEDED = ("compile", "tensorboard")
# Flags of the heads: those of a forest alone, and those of both.
TREES, OWN = ("trees", "leaf_pixels"), ("samples", "filters", "features")


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
        "what a forest or a linear head sees of a pixel: filters of the picture, the maps of the "
        "encoder, or both; auto: both where --ssl_weights_path or --weights gives an encoder, else "
        "filters",
        choices=FEATURES,
    )
    average_with: str = flag(
        NONE,
        "training",
        "after training, a head on --features learns from the same images, and the kept model is "
        "the mean of both, weighted as the validation images say; network.ckpt stays beside it; "
        "auto: the better of a linear head and a forest",
        choices=(NONE, FOREST, LINEAR, AUTO),
    )
    first_answer: bool = flag(
        False,
        "training",
        "before training, a linear head on --features learns in seconds: its score, and first.ckpt "
        "to work with until the network is there",
    )
    trees: int = flag(100, "forest", "trees of a forest", low=1, high=2000)
    samples: int = flag(
        20_000,
        "forest",
        "labelled pixels that a forest or a linear head learns from at most, of all classes alike",
        low=100,
        high=5_000_000,
    )
    leaf_pixels: int = flag(
        10, "forest", "training pixels in a leaf of a forest at least", low=1, high=1_000_000
    )
    filters: str = flag(
        FILTERS,
        "forest",
        "scales of the filters in pixels: standard deviations of their Gaussians",
        check=filters_problem,
        commas=True,
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

    def forest_problems(self, resume: bool, weights: bool, staged: bool) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            resume: whether a run is to go on.
            weights: whether weights of an encoder were given.
            staged: whether one training goes on from another.
        """
        wrong = []
        if staged and self.average_with != NONE:
            told = "--average_with is for one training; each of --stages goes on from a network"
            wrong.append(Problem(told, ("stages", "average_with")))
        if self.classifies and resume:
            told = f"--head {self.head} learns in one go: leave --resume out, or take --overwrite"
            wrong.append(Problem(told, ("resume", "head")))
        beside = (self.average_with != NONE, self.first_answer)
        words = [
            w for w, on in zip(("--average_with", "--first_answer"), beside, strict=True) if on
        ]
        if self.classifies and words:
            verb = "acts" if len(words) == 1 else "act"
            told = f"{' and '.join(words)} {verb} beside a network, not with --head {self.head}"
            wrong.append(Problem(told, ("average_with", "first_answer", "head")))
        used = {self.head, self.average_with} | ({LINEAR} if self.first_answer else set())
        used |= {LINEAR, FOREST} if self.average_with == AUTO else set()
        for names, heads, place in (
            (TREES, {FOREST}, "--head forest or --average_with forest"),
            (OWN, {FOREST, LINEAR}, "--head forest or linear, --average_with or --first_answer"),
        ):
            given = [name for name in names if getattr(self, name) != _default(name)]
            if given and not used & heads:
                told = ", ".join(f"--{name}" for name in given)
                wrong.append(Problem(f"{told}: only with {place}", (*given, "head")))
        if used != {NETWORK, NONE} and self.seen(weights) == "encoder" and self.filters != FILTERS:
            told = "--filters have no effect with --features encoder; take both"
            wrong.append(Problem(told, ("filters", "features")))
        return wrong


def _default(name: str) -> object:
    return ForestSettings.__dataclass_fields__[name].default
