"""A score: what it gathers of one image, and how that is reduced to a number per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# (truth, prediction, number of classes) to what a score needs of this image; uint8 (H, W) both,
# 255 in the truth counts for nothing. Whole numbers, so that sums are the same in every order.
Gather = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], NDArray[np.int64]]
# What was gathered of n images, (n, ...), to a score per class (C,); NaN where a class has none.
Reduce = Callable[[NDArray[np.int64]], NDArray[np.float64]]
# What one image gave, by the function that gathered it.
Gathered = Mapping[Gather, NDArray[np.int64]]


@dataclass(frozen=True)
class Score:
    """A score per class.

    Attributes:
        gather: once per image; scores that need the same share it.
        reduce: of one image or of several together.
    """

    gather: Gather
    reduce: Reduce
