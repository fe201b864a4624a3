"""Paired timing: things are timed in alternation in one process, and only ratios are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each function in each of ``rounds`` alternating rounds.

    ``time.process_time`` as clock, where one thread works, leaves out what other programs take.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # caches, lazy imports and thread pools are warmed before the clock runs
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return the median over rounds of time(slow) / time(fast)."""
    return statistics.median(s / f for s, f in zip(times[slow], times[fast], strict=True))


def row(aim: str, what: str, wanted: str, got: float, rounds: int) -> str:
    return f"| {aim} | {what} | {wanted} | {got:.2f} | {rounds} |"
