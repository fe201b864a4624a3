"""Zip archives of strangers: unpacked below one folder, within bounds, whole or refused."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from matssl.core.errors import DiskFull, UserError
from matssl.core.wording import cut

ENTRIES, DEPTH = 1 << 20, 32
# Bytes of one name; file systems allow 255.
NAME = 240
# Pictures and masks are packed to less than a hundredth of their size by nobody.
RATIO, FREE_OF_RATIO = 100, 100_000_000
CHUNK = 1 << 20
LINK = 0o12


def unpack(archive: Path, folder: Path, take: Mapping[str, str]) -> int:
    """Unpack parts of a zip archive and return how many files came out.

    Args:
        archive: of GitHub's kind: everything lies in one first folder, which is left out.
        folder: nothing is written outside of it.
        take: path in the archive to path in the folder.

    Raises:
        UserError: an entry points out of the folder, is a link, encrypted, damaged or cannot be a
            file here; the archive unpacks to far more than it holds; or nothing is found.
        DiskFull: there is no room for it.
        zipfile.BadZipFile: no zip archive.
    """
    with zipfile.ZipFile(archive) as file:
        wanted = _wanted(archive, file, take)
        _check_size(archive, folder, [info for info, _ in wanted])
        for info, place in wanted:
            target = folder / place
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(info) as content, open(target, "xb") as out:
                    # zipfile reads no more than the entry says, and compares its check sum.
                    shutil.copyfileobj(content, out, CHUNK)
            except FileExistsError as error:
                raise _refusal(archive, info, "is there twice, or a file and a folder") from error
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(f"the disk is full: {archive} cannot be unpacked") from error
                raise _refusal(archive, info, f"cannot be a file ({error.strerror})") from error
            except (RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
                raise _refusal(archive, info, f"cannot be unpacked ({error})") from error
            except (zipfile.BadZipFile, ValueError) as error:
                raise _refusal(archive, info, "is damaged") from error
    if not wanted:
        raise UserError(f"{archive} holds none of {', '.join(take)}; its author has moved them")
    return len(wanted)


def _wanted(
    archive: Path, file: zipfile.ZipFile, take: Mapping[str, str]
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the entries to unpack with their places in the folder; all entries are looked at."""
    entries = file.infolist()
    if len(entries) > ENTRIES:
        raise UserError(f"{archive} holds {len(entries):,} files; it is not unpacked")
    wanted = []
    for info in entries:
        if info.is_dir():
            continue
        name = PurePosixPath(info.filename.replace("\\", "/"))
        # The upper half of external_attr is the Unix mode.
        if name.is_absolute() or ".." in name.parts or info.external_attr >> 28 == LINK:
            raise _refusal(archive, info, "points out of the folder")
        if info.flag_bits & 1:
            raise _refusal(archive, info, "is encrypted")
        longest = max(len(os.fsencode(part)) for part in name.parts) if name.parts else 0
        if not name.parts or longest > NAME or len(name.parts) > DEPTH:
            raise _refusal(archive, info, "has a name too long or too deep")
        inner = PurePosixPath(*name.parts[1:])
        for source, destination in take.items():
            if inner.is_relative_to(source) and inner != PurePosixPath(source):
                wanted.append((info, PurePosixPath(destination) / inner.relative_to(source)))
    return wanted


def _check_size(archive: Path, folder: Path, entries: list[zipfile.ZipInfo]) -> None:
    whole, packed = sum(info.file_size for info in entries), archive.stat().st_size
    if whole > FREE_OF_RATIO + RATIO * packed:
        raise UserError(
            f"{archive} of {packed / 1e6:,.1f} MB would unpack to {whole / 1e9:,.1f} GB; it is no "
            "archive of pictures and is not unpacked"
        )
    place = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    free = shutil.disk_usage(place).free
    if whole > free:
        raise DiskFull(
            f"the disk is full: {archive} unpacks to {whole / 1e9:,.1f} GB and {place} has "
            f"{free / 1e9:,.1f} GB free"
        )


def _refusal(archive: Path, info: zipfile.ZipInfo, why: str) -> UserError:
    return UserError(
        f"{archive} holds an entry that {why} ({cut(repr(info.filename), 80)}); it is not unpacked"
    )
