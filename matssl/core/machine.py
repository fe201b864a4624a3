"""What a command needs to know of its machine, with or without torch: cores, memory, signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from matssl.core.errors import UserError
from matssl.core.wording import counted

# What the allocators of torch, onnxruntime and OpenVINO say where memory ends.
NO_MEMORY = ("can't allocate memory", "Failed to allocate memory", "bad_alloc", "bad allocation")


class Machine(Protocol):
    """Where a command runs; :class:`matssl.core.runtime.Runtime` is one with torch."""

    @property
    def threads(self) -> int:
        """CPU threads that compute."""

    @property
    def workers(self) -> int:
        """Threads that read ahead."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""

    def describe(self, network: bool = True) -> str:
        """Return one line for the console; without a network nothing has a precision."""

    def close(self) -> None:
        """Leave the other processes, where there are some."""


@dataclass(frozen=True)
class Processor:
    """A machine without torch: one process on the CPU.

    Attributes:
        threads: CPU threads that compute.
        workers: threads that read ahead.
    """

    threads: int
    workers: int = 0

    @classmethod
    def setup(cls, threads: int | None = None, workers: int | None = None) -> Processor:
        """Set what the process sets once; return the machine.

        Args:
            threads: None for the cores of this process.
            workers: None for none.
        """
        quiet_opencv()
        keep_freed_memory()
        return cls(threads or own_cores(), workers or 0)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return int(os.environ.get("RANK", 0)) == 0

    def describe(self, network: bool = True) -> str:
        """Return one line for the console."""
        return f"CPU, {counted(self.threads, 'thread')}"

    def close(self) -> None:
        """Leave no process: there are no others."""


def available_cores() -> int:
    """Return the number of cores this process may use: no more than OMP_NUM_THREADS says."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    # torchrun sets it to 1 where the user said nothing; the cores are shared out instead.
    if "TORCHELASTIC_RUN_ID" not in os.environ and said.isdecimal() and int(said) > 0:
        return min(cores, int(said))
    return cores


def own_cores() -> int:
    """Return the cores for this process: the processes of one machine share its cores."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    return max(1, available_cores() // beside)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation (glibc; elsewhere nothing).

    A training step frees and allocates the same activations again and again. By default each large
    one goes back to the system and comes again as fresh pages that the kernel has to clear.
    """
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(mmap_max, 0)


def free_memory() -> int | None:
    """Return the bytes of memory that a new allocation can have; None where unknown."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Interrupts:
    """Turns Ctrl-C and SIGTERM into a flag, so that a run ends between two steps.

    A second Ctrl-C within the same step stops at once, as users expect.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[Interrupts]:
        """Catch the signals inside the block; the old handlers come back after it."""
        watched = (signal.SIGINT, signal.SIGTERM)
        previous: dict[signal.Signals, Any] = {}
        try:
            for number in watched:
                previous[number] = signal.signal(number, self._note)
        except ValueError:
            # Not the main thread (a test, a notebook): the caller's handlers stay.
            pass
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """Return 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.received or 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def quiet_opencv() -> None:
    """Keep OpenCV on the calling thread: its own pool would fight torch's for the cores."""
    import cv2

    cv2.setNumThreads(1)


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn a failed allocation inside the block into a sentence.

    Args:
        advice: which flags to lower.

    Raises:
        UserError: there is not enough memory.
    """
    try:
        yield
    except MemoryError as error:
        raise UserError(f"out of memory; lower {advice}") from error
    except RuntimeError as error:
        # torch has a class for GPUs alone, which is not imported for its sake here.
        if type(error).__name__ != "OutOfMemoryError" and not any(
            words in str(error) for words in NO_MEMORY
        ):
            raise
        raise UserError(f"out of memory; lower {advice}") from error
