"""Files that come from a browser, piece by piece: never whole in memory, never half on the disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from matssl.core.errors import DiskFull
from matssl.page.workspace import Refused


class Body(Protocol):
    """A request whose body comes in pieces."""

    def stream(self) -> AsyncIterator[bytes]:
        """Yield the pieces."""
        ...


async def received(body: Body, target: Path) -> int:
    """Write a body to a new file and return its size; what breaks off leaves nothing.

    Raises:
        Refused: nothing came, or the name was taken meanwhile.
        DiskFull: there is no room.
    """
    handle, name = tempfile.mkstemp(prefix=".upload.", dir=target.parent)
    temporary, size = Path(name), 0
    try:
        with os.fdopen(handle, "wb") as file:
            async for piece in body.stream():
                file.write(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        if not size:
            raise Refused(400, "the file is empty")
        temporary.chmod(0o644)
        _place(temporary, target)
        return size
    except OSError as error:
        raise DiskFull(f"{target.name} could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _place(temporary: Path, target: Path) -> None:
    """Give a file its name, which no other file may have.

    Raises:
        Refused: one has it.
    """
    try:
        # Unlike a rename it never takes the place of a file that is there.
        os.link(temporary, target)
    except OSError as error:
        # Some file systems have no second names.
        if target.exists():
            raise Refused(409, f"{target.name} is there already") from error
        temporary.replace(target)
