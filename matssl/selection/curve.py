"""The area under a learning curve: one number of what a way to choose is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def area(budgets: Sequence[float], scores: Sequence[float]) -> float:
    """Return the mean height of a curve over the logarithm of the budget, by the trapezoid rule.

    On the logarithm, since twice the labels are worth about one step wherever one stands; of equal
    scores it is that score. NaN where a score is.

    Args:
        budgets: rising, above 0; two or more, or one, whose score it is.
        scores: one a budget.

    Raises:
        ValueError: budgets that do not rise, or another number of scores.
    """
    x, y = np.log2(np.asarray(budgets, np.float64)), np.asarray(scores, np.float64)
    if len(x) != len(y) or not len(x) or (np.diff(x) <= 0).any():
        raise ValueError("a learning curve needs rising budgets with a score each")
    if len(x) == 1:
        return float(y[0])
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))
