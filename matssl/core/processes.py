"""The processes of one command under torchrun: they share its pictures, and the first writes.

No torch where there is one process: what measures knows no network library.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TypeVar

from matssl.core.errors import UserError

T = TypeVar("T")
# Processes may be done hours apart: a part of 10^5 pictures takes as long as it takes.
PATIENCE = datetime.timedelta(days=14)
# Files of what each process has found until the first one has read them; hidden, as what is half
# written is.
PART = ".part-{rank}-of-{count}"
LOST = (
    "another process of this command ended before its share was done, killed or by an error of its "
    "own that stands above; nothing is summed up without it: start the command again with "
    "--overwrite"
)
STOPPED = (
    "stopped by a signal, as torchrun sends where another process has ended; nothing is summed up: "
    "start the command again with --overwrite"
)


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun started for one command; one alone without it.

    Attributes:
        rank: number of this process; 0 checks, prints and sums up.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1
    _group: Any = field(default=None, repr=False)

    @staticmethod
    def joined() -> Processes:
        """Return the processes of this command, once all of them are there."""
        rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return Processes()
        # Late: see above.
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        # A group of its own: what a GPU's group waits for is over in minutes.
        return Processes(rank, count, dist.new_group(timeout=PATIENCE, backend="gloo"))

    @property
    def is_main(self) -> bool:
        """Whether this process checks, prints and sums up."""
        return self.rank == 0

    def together(self, make: Callable[[], T]) -> T:
        """Return what each process makes for itself; where one cannot, it says so and all leave.

        Args:
            make: of this process.

        Raises:
            UserError: of this process, where no earlier one has one.
            SystemExit: another process said why.
        """
        if self.count == 1:
            return make()
        error = None
        try:
            made = make()
        except UserError as refused:
            error = refused
        first = next((i for i, failed in enumerate(self._told(error is not None)) if failed), None)
        if first is None:
            return made
        if first == self.rank and error is not None:
            raise error
        raise SystemExit(0)

    def first(self, make: Callable[[], T], here: Sequence[object] = ()) -> T:
        """Return what the first process makes, on all of them.

        Args:
            make: is called by the first process alone.
            here: what every process has of its own, in one order: it stays where it is, and stands
                in what is returned in the place of the first one's.

        Raises:
            Exception: what ``make`` raises, on the first process.
            SystemExit: on the others then.
        """
        if self.count == 1:
            return make()
        if not self.is_main:
            sent = self._sent(None)
            if sent is None:
                raise SystemExit(0)
            made: T = _Unpickler(io.BytesIO(sent), here).load()
            return made
        try:
            made = make()
        except BaseException:
            self._sent(None)
            raise
        buffer = io.BytesIO()
        _Pickler(buffer, here).dump(made)
        self._sent(buffer.getvalue())
        return made

    def own(self, count: int) -> range:
        """Return which of so many pictures are this process's."""
        return range(self.rank, count, self.count)

    def shared(
        self, count: int, work: Callable[[Sequence[int]], Iterator[T]], place: Path
    ) -> Iterator[T]:
        """Do a part of the work on each process; yield on the first all results in order.

        They lie in files until then, one a process, so that no process holds those of all pictures.

        Args:
            count: of pictures.
            work: gives a result for each of the pictures whose numbers it gets, in their order.
            place: folder that all processes see.

        Raises:
            UserError: another process has ended.
            SystemExit: the same, on another process than the first.
        """
        if self.count == 1:
            yield from work(range(count))
            return
        parts = [place / PART.format(rank=rank, count=self.count) for rank in range(self.count)]
        with self._stopped(), open(parts[self.rank], "wb") as file:
            for found in work(self.own(count)):
                pickle.dump(found, file, pickle.HIGHEST_PROTOCOL)
            file.flush()
            os.fsync(file.fileno())
        self.meet()
        if not self.is_main:
            return
        with contextlib.ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(open(part, "rb")) for part in parts]
            for number in range(count):
                yield pickle.load(files[number % self.count])
        for part in parts:
            part.unlink()

    def meet(self) -> None:
        """Wait for all processes.

        Raises:
            UserError: one of them has ended.
            SystemExit: the same, on another process than the first.
        """
        if self.count > 1:
            self._told(True)

    def _told(self, said: bool) -> list[bool]:
        """Return what each process says."""
        import torch.distributed as dist

        all_: list[Any] = [None] * self.count
        with self._lost():
            dist.all_gather_object(all_, said, group=self._group)
        return all_

    def _sent(self, message: bytes | None) -> bytes | None:
        """Return what the first process sends."""
        import torch.distributed as dist

        box: list[Any] = [message]
        with self._lost():
            dist.broadcast_object_list(box, src=0, group=self._group)
        found: bytes | None = box[0]
        return found

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """Say once that a process has ended: gloo finds its line closed."""
        try:
            yield
        except RuntimeError as error:
            raise self._end(LOST, 1) from error

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Say once that SIGTERM came, as it does where torchrun finds a process ended."""
        if threading.current_thread() is not threading.main_thread():
            # A test or a notebook: the caller's handlers stay.
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            raise _Signal(number)

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        except _Signal as received:
            raise self._end(STOPPED, 128 + int(received.args[0])) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    def _end(self, told: str, code: int) -> BaseException:
        return UserError(told) if self.is_main else SystemExit(code)


ALONE = Processes()


class _Signal(BaseException):
    """A signal came. No :class:`Exception`: it is no failure of the picture at hand."""


class _Pickler(pickle.Pickler):
    """Leaves out what every process has of its own."""

    def __init__(self, file: BinaryIO, here: Sequence[object]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._numbers = {id(one): number for number, one in enumerate(here)}

    def persistent_id(self, obj: object) -> int | None:
        return self._numbers.get(id(obj))


class _Unpickler(pickle.Unpickler):
    """Puts in what this process has of its own."""

    def __init__(self, file: BinaryIO, here: Sequence[object]) -> None:
        super().__init__(file)
        self._here = here

    def persistent_load(self, pid: int) -> object:
        return self._here[pid]
