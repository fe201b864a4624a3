"""Files that are not what was written: their digests, and one sentence where they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import cut


class Damaged(UserError):
    """A file of ours that is not what was written: torn, changed, or with numbers that are none."""


@contextlib.contextmanager
def damage_told(path: Path | str) -> Iterator[None]:
    """Turn what a garbled record raises inside the block into a sentence.

    Raises:
        Damaged: a part is absent, or is not what it should be.
    """
    try:
        yield
    except KeyError as error:
        raise Damaged(f"{path} is incomplete or damaged: it has no {error}") from error
    except (
        *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
        RuntimeError,
    ) as error:
        told = cut(str(error).strip().split("\n")[0])
        raise Damaged(f"{path} is incomplete or damaged: {told}") from error


def file_hash(path: Path | str) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
