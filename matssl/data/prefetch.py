"""Batches made ahead of time by threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
# Batches each thread may be ahead.
AHEAD = 2


def prefetched(make: Callable[[int], Item], steps: range, threads: int) -> Generator[Item]:
    """Yield ``make(step)`` of every step, made by ``threads`` threads (0: when asked for)."""
    if threads == 0:
        yield from map(make, steps)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    waiting: deque[Future[Item]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Also when the caller stops in the middle: an open pool would hold the interpreter.
        pool.shutdown(wait=True, cancel_futures=True)
