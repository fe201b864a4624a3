"""Flags of fine-tuning that get more out of few labels; all of them off by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matssl.core.flags import Problem, flag

# More seeds than that are no ensemble of ours.
MOST_SEEDS = 100


@dataclass(frozen=True, init=False, repr=False, eq=False)
class IngredientSettings:
    """Flags of crops, rates and averages that pay where labels are few."""

    copy_paste: float = flag(
        0.0,
        "augmentation",
        "share of crops that regions of rare classes of the labelled images are pasted into, where "
        "the class around them is the same",
        low=0,
        high=1,
    )
    layer_decay: float = flag(
        1.0,
        "training",
        "rate of each block of the encoder relative to the block above it, the deepest relative to "
        "the decoder (0.5 to 0.9); 1: all alike",
        above=0,
        high=1,
    )
    decoder_dropout: float = flag(
        0.0,
        "training",
        "share of the decoder's last channels that a step leaves out",
        low=0,
        below=1,
    )
    average_checkpoints: int = flag(
        0,
        "training",
        "of so many best validations average the weights, where validation gains by it; 0: none",
        low=0,
        high=100,
    )
    ensemble: int = flag(
        1,
        "training",
        "so many models of different seeds are trained on the same images and kept as one: the "
        "mean of their probabilities",
        low=1,
        high=MOST_SEEDS,
    )

    def ingredient_problems(
        self,
        head: bool,
        others: Mapping[str, object],
    ) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            head: whether ``--head`` learns in the place of a network.
            others: values of flags that train several models, or none that an ensemble can be of,
                by name; None where they are not given.
        """
        wrong = []
        if self.average_checkpoints == 1:
            told = "--average_checkpoints needs 2 or more to average, or 0"
            wrong.append(Problem(told, ("average_checkpoints",)))
        if self.ensemble == 1:
            return wrong
        if head:
            told = "--ensemble trains networks from several seeds; leave it out with --head"
            wrong.append(Problem(told, ("ensemble", "head")))
        for name, value in others.items():
            if value is not None:
                told = f"--ensemble trains one set of images with several seeds, --{name} otherwise"
                wrong.append(Problem(f"{told}; give one of them", ("ensemble", name)))
        return wrong
