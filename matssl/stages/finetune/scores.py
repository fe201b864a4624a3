"""What an epoch of fine-tuning came to: loss, precision, recall and F1, and what is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from matssl.metrics import overlap

# Below every score, and above every loss with its sign turned.
LOWEST = -1e30


@dataclass
class Course:
    """Sums over the steps since the last validation, whose samples were learned from on the way.

    Attributes:
        steps: how many there were.
        loss: their losses without the L2 term.
        true: pixels of the second class that were said to be it.
        false: pixels of another that were said to be it.
        missed: pixels of it that were not.
    """

    steps: int = 0
    loss: float = 0.0
    true: int = 0
    false: int = 0
    missed: int = 0

    def add(self, loss: float, positives: tuple[int, int, int]) -> None:
        """Add a step: its loss, true positives, false positives and false negatives."""
        self.steps += 1
        self.loss += loss
        self.true += positives[0]
        self.false += positives[1]
        self.missed += positives[2]

    def row(self) -> dict[str, float]:
        """Return mean loss, precision, recall and F1; NaN where there is nothing to divide by."""
        counts = np.array([[0, self.false], [self.missed, self.true]], np.int64)
        return {"train_loss": self.loss / self.steps if self.steps else math.nan} | {
            f"train_{name}": value for name, value in figures(counts).items()
        }

    def stored(self) -> dict[str, object]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def read(cls, values: object) -> Course:
        """Return what :meth:`stored` gave; an empty one of a checkpoint that is older.

        Raises:
            TypeError, ValueError: it is none.
        """
        if not isinstance(values, Mapping):
            return cls()
        whole: dict[str, Any] = {k: int(values[k]) for k in ("steps", "true", "false", "missed")}
        return cls(loss=float(values["loss"]), **whole)


def figures(counts: overlap.Counts) -> dict[str, float]:
    """Return precision, recall and F1: of the second of two classes, else means over the classes.

    F1 is 2 TP / (2 TP + FP + FN).

    Args:
        counts: confusion matrix, rows truth.
    """
    scores = {"precision": overlap.precision, "recall": overlap.recall, "f1": overlap.dice}
    found = {name: score(counts) for name, score in scores.items()}
    two = len(counts) == 2
    return {name: float(s[1]) if two else overlap.mean(s) for name, s in found.items()}


def monitored(monitor: str, counts: overlap.Counts, loss: float) -> float:
    """Return the number whose largest value the kept model has.

    Args:
        monitor: miou, f1 or loss.
        counts: confusion matrix of the validation images.
        loss: of the same.
    """
    if monitor == "loss":
        return -loss
    return overlap.miou(counts) if monitor == "miou" else figures(counts)["f1"]
