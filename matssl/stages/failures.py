"""Images that fail while the others are worked on: listed with the reason, and told at the end."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from matssl.core.errors import DiskFull, Incomplete, UserError
from matssl.core.run_folder import RunFolder
from matssl.core.wording import cut

Item = TypeVar("Item")
TABLE, TRACES = "bad_images.csv", "errors.txt"


@dataclass(frozen=True)
class Failure:
    """What went wrong with an image, in words: another process can be told.

    Attributes:
        reason: one line.
        trace: where, of what the user cannot mend; else "".
    """

    reason: str
    trace: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what an error says."""
        known = isinstance(error, (UserError, OSError))
        told = str(error) if known else f"{type(error).__name__}: {error}"
        # Nothing the user could mend: whoever mends the program needs to know where.
        trace = "" if known else "".join(traceback.format_exception(error))
        return cls(cut(" ".join(told.split())), trace)


class Failures:
    """What failed on which image; what would fail on every other one, too, is no such failure."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.images: dict[Path, str] = {}
        self._traces: list[str] = []

    @contextmanager
    def of(self, image: Path) -> Iterator[None]:
        """Note what goes wrong in the block with an image, and go on behind it."""
        try:
            yield
        except Exception as error:
            if _concerns_all(error):
                raise
            self.note(image, error)

    def note(self, image: Path, error: Exception | Failure) -> None:
        """List an image that failed, at once in the folder of the results."""
        if image in self.images:
            return
        failure = error if isinstance(error, Failure) else Failure.of(error)
        self.images[image] = failure.reason
        self.folder.append_csv(TABLE, {"image": str(image), "reason": failure.reason})
        if failure.trace:
            self._traces.append(f"{image}\n{failure.trace}")
            self.folder.write_text(TRACES, "\n".join(self._traces))

    def end(self, total: int, done: int) -> None:
        """Refuse a run without any result, or say what is missing in one.

        Args:
            total: how many images there were.
            done: how many have a result; the picture of one of them may be missing.

        Raises:
            UserError: all of them failed.
            Incomplete: some of them failed.
        """
        if not self.images:
            return
        image, reason = next(iter(self.images.items()))
        first = reason if image.name in reason else f"{image.name}: {reason}"
        if not done:
            raise UserError(f"all {total} images failed; the first: {first}")
        raise Incomplete(
            f"{len(self.images)} of {total} images failed and are listed in "
            f"{self.folder.root / TABLE}; the others are done. The first: {first}"
        )


def tried(make: Callable[[], Item]) -> Item | Failure:
    """Return what is made of an image, or why it failed; what concerns all images is raised."""
    try:
        return make()
    except Exception as error:
        if _concerns_all(error):
            raise
        return Failure.of(error)


def attempt(
    make: Callable[[Path], Item], images: Sequence[Path]
) -> Callable[[int], Item | Exception]:
    """Return ``make`` of an image by its number, which gives back what it raises.

    Args:
        make: of an image.
        images: all of them.
    """

    def made(number: int) -> Item | Exception:
        try:
            return make(images[number])
        except Exception as error:
            if _concerns_all(error):
                raise
            return error

    return made


def _concerns_all(error: Exception) -> bool:
    """Return whether an error says nothing of the image at hand: no memory, no room on the disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    memory = "can't allocate memory" in str(error)
    # By its name: measuring needs no torch.
    memory = memory or type(error).__name__ == "OutOfMemoryError"
    return memory or isinstance(error, (DiskFull, MemoryError))
