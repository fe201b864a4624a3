"""An append-only account of what was done: one line of JSON a step, each chained to the one before.

A line holds its number, its time, the step, its facts and a digest: the SHA-256 of all these and of
the digest before it. Changing, removing or inserting a line therefore breaks every digest after it,
and such a file is refused. Two things the chain cannot show: that last lines were cut off, and that
somebody computed all digests anew. The file is a protocol, no seal.

A line is on the disk before :meth:`Ledger.append` returns. A kill or a power cut in the middle of
one leaves a line without an end, or zeros in its place: where it lacks its end alone it is kept,
else it is dropped, and :attr:`Ledger.repaired` says so.

Lists of validation and test images are frozen in it (:meth:`Ledger.freeze`): once named they stay.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from matssl.core import locks
from matssl.core.errors import DiskFull, UserError
from matssl.core.run_folder import plain
from matssl.core.textfiles import TEXT_BYTES
from matssl.core.wording import counted, cut

# Name of the file in a folder of ours.
NAME = "ledger.jsonl"
# What the first line is chained to.
START = hashlib.sha256(b"matssl ledger 1").hexdigest()
KEYS = ("number", "time", "step", "facts", "digest")
# Step that names the images of a part; parts whose images may be named once.
FREEZE = "freeze"
PARTS = ("validation", "test")


@dataclass(frozen=True)
class Line:
    """A step that was done.

    Attributes:
        number: 1 for the first line.
        time: UTC, as 2026-11-28T14:03:12Z.
        step: one word, as predict or promote.
        facts: plain values of JSON; what they are depends on the step.
        digest: 64 hexadecimal digits.
    """

    number: int
    time: str
    step: str
    facts: Mapping[str, Any]
    digest: str


@dataclass
class Ledger:
    """The lines of a file, and the file to add to.

    Attributes:
        path: of the file; it need not exist before the first line.
        lines: what it holds.
        repaired: what was done about a last line that a kill had cut, in a sentence; "" if nothing.
    """

    path: Path
    lines: list[Line] = field(default_factory=list)
    repaired: str = ""
    _bytes: int = 0

    @staticmethod
    def open(path: Path, repair: bool = True) -> Ledger:
        """Read a ledger and check every digest; a file that is absent is an empty one.

        Args:
            path: of the file.
            repair: whether a half-written last line is mended in the file; without it the file
                stays as it is, and :attr:`repaired` says what would be done.

        Raises:
            UserError: a line is not what was written, or the file cannot be read.
        """
        ledger = Ledger(path)
        if not path.exists():
            return ledger
        try:
            with _locked(path, "rb+" if repair else "rb") as file:
                ledger._read(file, repair)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        return ledger

    def append(self, step: str, **facts: object) -> Line:
        """Add a line; it is on the disk when this returns.

        Lines that another process has added meanwhile are read first.

        Args:
            step: one word.
            facts: plain values, arrays and paths; NaN and infinity become null.

        Raises:
            UserError: the file was changed otherwise than by adding lines, or cannot be written.
            DiskFull: no room; the file is as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        self.path.touch()
        with _locked(self.path, "rb+") as file:
            self._read(file, repair=True)
            line = _made(self.lines, step, facts)
            text = _text(line)
            try:
                _put(file, self._bytes, text)
            except OSError as error:
                os.ftruncate(file.fileno(), self._bytes)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(
                        f"the disk is full: {self.path} could not be written; free some space and "
                        "run again (what it held is intact)"
                    ) from error
                raise UserError(
                    f"cannot write {self.path}: {error.strerror or error} (what it held is intact)"
                ) from error
            self._bytes += len(text)
        if is_new:
            _sync_folder(self.path.parent)
        self.lines.append(line)
        return line

    def of(self, *steps: str) -> list[Line]:
        """Return the lines of some steps, in order."""
        return [line for line in self.lines if line.step in steps]

    def freeze(self, part: str, images: Sequence[str], **facts: object) -> None:
        """Name the images of a part, once and for all; naming the same again adds no line.

        Args:
            part: validation or test.
            images: names of the pictures, as paths from the folder that they belong to, with /.
            facts: further facts of the line, as where the list comes from.

        Raises:
            UserError: other images are frozen already, or one of them is in the other part.
        """
        if part not in PARTS:
            raise ValueError(f"{part} is no part that is frozen")
        names = sorted(set(images))
        held = self.frozen(part)
        if held is not None:
            if list(held) == names:
                return
            new = [name for name in names if name not in held] or sorted(set(held) - set(names))
            raise UserError(
                f"the {part} set is frozen in {self.path} with {counted(len(held), 'image')}, and "
                f"{cut(new[0])} would change it; take another folder for other {part} images"
            )
        for other in PARTS:
            both = sorted(set(names) & set(self.frozen(other) or ()))
            if both:
                raise UserError(
                    f"{cut(both[0])} is a frozen {other} image in {self.path} and cannot be one of "
                    f"{part} too"
                )
        self.append(FREEZE, part=part, images=names, **facts)

    def frozen(self, part: str) -> tuple[str, ...] | None:
        """Return the names of a part's images, sorted; None where none are frozen yet."""
        for line in self.of(FREEZE):
            if line.facts.get("part") == part:
                return tuple(map(str, line.facts.get("images", ())))
        return None

    def kept_out(self) -> frozenset[str]:
        """Return the names of all frozen images: none of them is ever trained on or asked for."""
        return frozenset(name for part in PARTS for name in self.frozen(part) or ())

    def _read(self, file: BinaryIO, repair: bool) -> None:
        """Take in the lines behind those that are known."""
        size = os.fstat(file.fileno()).st_size
        if size > TEXT_BYTES:
            raise UserError(f"cannot read {self.path}: {size / 1e6:,.0f} MB are no ledger of ours")
        if size < self._bytes:
            raise UserError(f"{self.path} has lost lines while it was in use; take a copy of it")
        file.seek(self._bytes)
        data = file.read(size - self._bytes)
        *whole, last = data.split(b"\n")
        torn = bool(whole) and not last and _zeros(whole[-1])
        if torn:
            # A power cut can leave zeros where the beginning of a line was to be.
            last = whole.pop() + b"\n"
        for text in whole:
            self._take(text)
            self._bytes += len(text) + 1
        if last:
            self._mend(file, last, repair, complete=not torn)

    def _take(self, text: bytes) -> None:
        """Check a line and keep it."""
        place = len(self.lines) + 1
        line = _parsed(text)
        if line is None or line.number != place or line.digest != _digest(line, self._before()):
            raise UserError(
                f"{self.path} is not what was written: line {place} was changed, or a line before "
                "it is gone; take a copy of it from before"
            )
        self.lines.append(line)

    def _before(self) -> str:
        return self.lines[-1].digest if self.lines else START

    def _mend(self, file: BinaryIO, last: bytes, repair: bool, complete: bool) -> None:
        """Give a last line its end where that is all it lacks; drop it where it is cut."""
        line = _parsed(last) if complete else None
        place = len(self.lines) + 1
        sound = (
            line is not None
            and line.number == place
            and line.digest == _digest(line, self._before())
        )
        if sound:
            self.repaired = f"line {place} of {self.path} lacked its end, which it was given"
            if repair:
                _put(file, self._bytes + len(last), b"\n")
        else:
            self.repaired = f"line {place} of {self.path} was half written and is dropped"
            if repair:
                os.ftruncate(file.fileno(), self._bytes)
                os.fsync(file.fileno())
        if sound and line is not None:
            self.lines.append(line)
            self._bytes += len(last) + (1 if repair else 0)


@contextmanager
def _locked(path: Path, mode: str) -> Iterator[BinaryIO]:
    """Open a file for one process at a time; readers wait for writers."""
    with open(path, mode, buffering=0) as file:
        locks.hold(file.fileno(), wait=True, shared="+" not in mode)
        yield file  # type: ignore[misc]


def _put(file: BinaryIO, place: int, data: bytes) -> None:
    """Write all of the data, and wait until the disk has them."""
    while data:
        written = os.pwrite(file.fileno(), data, place)
        data, place = data[written:], place + written
    os.fsync(file.fileno())


def _made(lines: Sequence[Line], step: str, facts: Mapping[str, object]) -> Line:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = lines[-1].digest if lines else START
    # What is read back is what the digest is of: tuples are lists then, keys are words.
    held = json.loads(json.dumps(plain(facts), allow_nan=False))
    line = Line(len(lines) + 1, now, step, held, "")
    return Line(line.number, now, step, held, _digest(line, before))


def _digest(line: Line, before: str) -> str:
    """Return the SHA-256 of a line, with that of the line before it."""
    content = [before, line.number, line.time, line.step, line.facts]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _text(line: Line) -> bytes:
    content = {key: getattr(line, key) for key in KEYS}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    # A name that no encoding knows is kept as JSON's own escape.
    return (text + "\n").encode("utf-8", "backslashreplace")


def _parsed(text: bytes) -> Line | None:
    """Return the line of a text, None where it is none of ours."""
    try:
        content = json.loads(text.decode("utf-8"))
        # NaN and infinity, which Python's JSON takes, are in no line of ours.
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or set(content) != set(KEYS):
        return None
    line = Line(**content)
    words = (line.time, line.step, line.digest)
    sound = type(line.number) is int and isinstance(line.facts, dict)
    return line if sound and all(isinstance(word, str) for word in words) else None


def _zeros(text: bytes) -> bool:
    return b"\0" in text


def _sync_folder(folder: Path) -> None:
    """Bring the name of a new file to the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
