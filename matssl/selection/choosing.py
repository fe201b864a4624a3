"""Candidates in the order in which they are to be labelled, one chosen after the other."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from matssl import selection
from matssl.core import rng
from matssl.selection.candidates import Candidates, Numbers


class Choice(NamedTuple):
    """An order of candidates.

    Attributes:
        order: numbers of all candidates, the first ``n`` of them chosen.
        n: how many are chosen.
        priorities: (N,), of each candidate when it was its turn; of the others after the last.
    """

    order: tuple[int, ...]
    n: int
    priorities: Numbers

    @property
    def chosen(self) -> tuple[int, ...]:
        """Numbers of those chosen."""
        return self.order[: self.n]


def choose(
    candidates: Candidates,
    method: str,
    n: int,
    seed: int,
    round_number: int = 0,
    spread: bool = True,
    blocked: Collection[int] = (),
) -> Choice:
    """Return the candidates in the order of a method; the same for the same seed and round.

    Where ``spread`` and the method allow it, specimens take turns: none gets more than its equal
    share of the ``n`` places, rounded up, while others have candidates left. Pictures of one
    specimen look alike, and a score that likes one likes them all.

    Args:
        candidates: what is known of them.
        method: see :data:`matssl.selection.METHODS`; scores may be joined by +.
        n: how many are wanted; fewer where there are fewer candidates.
        seed: of all draws.
        round_number: of the selection, so that another round draws anew.
        spread: whether specimens take turns.
        blocked: numbers of candidates that are not chosen, and come last; they change no draw.

    Raises:
        ValueError: the method needs what the candidates do not have.
    """
    count = len(candidates)
    free = np.ones(count, bool)
    free[list(blocked)] = False
    n = min(n, int(free.sum()))
    named = selection.METHODS[method.split("+")[0]].where
    module, _, name = named.partition(":")
    generator = rng.generator(seed, round_number, 0, stream=rng.SUBSETS)
    plan = getattr(importlib.import_module(module), name)
    priorities = plan(candidates, n, generator, method)
    turns = spread and selection.spreads(method)
    held: Counter[str] = Counter()
    there = {candidates.specimens[number] for number in np.flatnonzero(free).tolist()}
    most = math.ceil(n / max(1, len(there)))
    order: list[int] = []
    given = np.full(count, np.nan)
    for _ in range(n):
        now = np.asarray(priorities(order), np.float64)
        allowed = free.copy()
        while turns:
            full = [held[name] >= most and name != "" for name in candidates.specimens]
            allowed = free & ~np.array(full)
            if allowed.any():
                break
            most += 1
        # The first of equal ones, whatever the platform.
        best = int(np.flatnonzero(allowed)[np.argmax(now[allowed])])
        order.append(best)
        given[best], free[best] = now[best], False
        held[candidates.specimens[best]] += 1
    now = np.asarray(priorities(order), np.float64)
    for rest in (np.flatnonzero(free), np.array(sorted(blocked), np.int64)):
        given[rest] = now[rest]
        order += rest[np.argsort(-now[rest], kind="stable")].tolist()
    return Choice(tuple(order), n, given)
