"""Files of several folders that belong together by their names, each of one size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers

SHOWN = 4


def by_stem(folder: Path, name: str) -> dict[str, Path]:
    """Return the images of a folder by their names without ending, in natural order.

    Args:
        folder: where they lie.
        name: of its flag.

    Raises:
        UserError: none, or two of one name.
    """
    files: dict[str, Path] = {}
    for path in readers.find_images(folder):
        if path.stem in files:
            raise UserError(
                f"{name} {folder} holds {files[path.stem].name} and {path.name}; one image a name"
            )
        files[path.stem] = path
    return files


def refuse_stacks(files: Iterable[Path], name: str, instead: str) -> None:
    """Refuse files of several pages, of which one alone would be read.

    Args:
        files: of a folder.
        name: of its flag.
        instead: what to give, a format that gets the name of the file.

    Raises:
        UserError: it names the first.
    """
    for path in files:
        if (pages := readers.alike(path)) > 1:
            told = instead.format(name=path.stem)
            raise UserError(f"{name}: {path} has {pages} pages; {told}")


def partners(folder: str | None, name: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """Return the file of each name in another folder; none where there is no folder.

    Raises:
        UserError: names that it lacks, all at once.
    """
    if folder is None:
        return {}
    found = by_stem(Path(folder), name)
    absent = [stem for stem in files if stem not in found]
    if absent:
        shown = ", ".join(absent[:SHOWN]) + (" ..." if len(absent) > SHOWN else "")
        raise UserError(f"{name} {folder} lacks {counted(len(absent), 'image')}: {shown}")
    return {stem: found[stem] for stem in files}


def check_sizes(files: Mapping[str, Path], others: Mapping[str, Mapping[str, Path]]) -> None:
    """Refuse files of one name and another size, all at once.

    Args:
        files: by name.
        others: those of other folders, by flag and name.

    Raises:
        UserError: a size differs.
    """
    wrong = []
    for name, own in others.items():
        for stem, path in own.items():
            one, two = readers.header(files[stem]), readers.header(path)
            if (one.height, one.width) != (two.height, two.width):
                wrong.append(
                    f"{name}: {path.name} has {two.width} x {two.height} pixels, "
                    f"{files[stem].name} {one.width} x {one.height}"
                )
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError("; ".join(wrong[:SHOWN]) + more)
