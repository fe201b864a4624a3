"""Randomness as a pure function of (seed, epoch, sample, view): no worker or process state.

The generator is numpy's counter-based Philox (Salmon et al. 2011). The arguments become key and
counter, so a draw does not depend on what was drawn before it, by whom or in which order: any
number of workers gives the same bits, and resuming needs the step number alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VIEWS, ORDER, CROPS, NOISE, SUBSETS, GUIDES, NEIGHBOURS, UNLABELLED = range(8)

_MASK = (1 << 64) - 1


def generator(
    seed: int, epoch: int, sample: int, view: int = 0, stream: int = VIEWS
) -> np.random.Generator:
    """Return the generator that belongs to these numbers and to no others.

    Args:
        seed: the run's seed.
        epoch: epoch, or step where steps are the unit; non-negative.
        sample: index of the sample in the data set; non-negative.
        view: index of the view of that sample; non-negative.
        stream: what the draw is for (VIEWS, ORDER, CROPS, NOISE, SUBSETS,
            GUIDES, NEIGHBOURS, UNLABELLED), so that two uses of the
            same numbers stay independent.
    """
    key = [seed & _MASK, (stream << 32 | view) & _MASK]
    # The lowest counter word is left to the generator itself (2^64 blocks for each sample).
    counter = [0, 0, sample & _MASK, epoch & _MASK]
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the permutation of ``range(n)`` in which an epoch visits its samples, int64 (n,)."""
    return generator(seed, epoch, 0, stream=ORDER).permutation(n).astype(np.int64)
