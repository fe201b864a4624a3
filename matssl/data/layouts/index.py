"""JSON index files of SRPU-Model: which images, which masks, and where they lie.

``{"samples": [{"dataset", "frames", "mask_file"}], "datasets_info": {NAME: {"raw_image_root",
"mask_root"}}}``, or with ``root_raw_image_dir`` and ``root_labeled_mask_dir`` in place of the last.
The middle frame of a sample is the one its mask belongs to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import counted, cut
from matssl.data.layouts.pairing import SPLITS, Found, split_name

# How the program names frames: what stands before the number at the end is the sequence.
FRAME = re.compile(r"^(.*?)[-_]?(\d+)$")
# The same for the path of an image from the folder of the data sets, as a specimen: frames that are
# called by their number alone are one sequence of their data set.
SEQUENCE = r"^(.*?)[-_/]?\d+$"
# Entries of a sample that hold its image, where it has no frames.
SINGLE = ("image", "image_file", "frame", "file", "file_name")
SHOWN = 3


@dataclass(frozen=True)
class Index:
    """What an index file says.

    Attributes:
        source: the file.
        found: each image with its mask and its split ("" for none), in the file's order.
        home: the deepest folder that holds all of them.
        beside: frames that samples are stacked of and that are no samples themselves.
    """

    source: Path
    found: tuple[Found, ...]
    home: Path
    beside: tuple[Path, ...] = ()

    @property
    def split(self) -> bool:
        """Whether the file says of every image which split it is in."""
        return all(item.split for item in self.found)


def sequence_of(stem: str) -> tuple[str, int]:
    """Return the sequence and the number of a frame by the name of its file.

    ``4.2V-001`` is frame 1 of 4.2V, ``001`` of ""; a name without a number at its end is frame 0 of
    its own.
    """
    match = FRAME.match(stem)
    return (match[1], int(match[2])) if match else (stem, 0)


def is_index(content: object) -> bool:
    """Return whether the content of a JSON file is an index of samples."""
    return isinstance(content, Mapping) and isinstance(content.get("samples"), list)


def is_index_file(path: Path) -> bool:
    """Return whether a path is that of a JSON file; what it holds is told when it is read."""
    return path.suffix.lower() == ".json" and os.path.isfile(path)


def split_files(folder: Path) -> list[Path]:
    """Return the index files of a folder whose names end in the name of a split.

    Raises:
        UserError: of several sets.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.json")):
        name, split = _ending(path.stem)
        if split:
            found.setdefault(name, []).append(path)
    if len(found) > 1:
        names = ", ".join(f"{name}_..." for name in sorted(found))
        raise UserError(
            f"{folder} holds the splits of several index files ({names}); give a folder with "
            "those of one"
        )
    return next(iter(found.values()), [])


def read_index(path: Path) -> Index:
    """Return what an index file says; every image and mask it names is there.

    Raises:
        UserError: no index, roots or files that are not there, two samples of one image.
    """
    content = textfiles.read_json(path)
    if not is_index(content):
        raise UserError(
            f"{path} is no index of images: it has no list 'samples'; give a folder, or an index "
            "that python -m matssl.tools.index writes"
        )
    if not content["samples"]:
        raise UserError(f"{path} lists no sample")
    named = _Named(path, content)
    whole = _whole(path, content)
    found: dict[Path, Found] = {}
    absent: list[str] = []
    stacked: dict[Path, None] = {}
    for number, sample in enumerate(content["samples"], start=1):
        item, split = named.sample(sample, number), ""
        if isinstance(sample, Mapping) and isinstance(sample.get("split"), str):
            split = split_name(sample["split"])
        absent += [str(p) for p in (item.image, item.mask) if p and not os.path.isfile(p)]
        before = found.get(item.image)
        if before is not None and before.mask != item.mask:
            raise UserError(
                f"{path} lists {cut(str(item.image))} twice, with other masks; remove one sample"
            )
        found[item.image] = Found(item.image, item.mask, split or whole)
        stacked |= dict.fromkeys(named.frames(sample, number))
    if absent:
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        shown = cut(", ".join(absent[:SHOWN]))
        raise UserError(
            f"{path} names {counted(len(absent), 'file')} that are not there: "
            f"{shown}{more}; write it anew with python -m matssl.tools.index"
        )
    items = tuple(found.values())
    # A neighbour that is gone is a gap in its sequence.
    beside = tuple(p for p in stacked if p not in found and os.path.isfile(p))
    return Index(path, items, _home(items), beside)


@dataclass(frozen=True)
class _Named:
    """The roots of an index file, by data set."""

    path: Path
    content: Mapping[str, object]

    def sample(self, sample: object, number: int) -> Found:
        """Return the image and the mask of a sample.

        Raises:
            UserError: it names no image, or a data set without a root.
        """
        where = f"{self.path}, sample {number}"
        entries: Mapping[str, object] = sample if isinstance(sample, Mapping) else {"image": sample}
        frames = entries.get("frames")
        name: object = None
        if isinstance(frames, list) and frames:
            # At an even depth there is no middle; the program makes no such sample.
            name = frames[len(frames) // 2]
        else:
            name = next((entries[key] for key in SINGLE if key in entries), None)
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}, names no image; it needs 'frames', a list of file names")
        data = entries.get("dataset")
        image = self._root(data, "raw_image_root", "root_raw_image_dir", where) / _plain(name)
        mask = entries.get("mask_file")
        if not isinstance(mask, str) or not mask:
            return Found(image, None, "")
        root = self._root(data, "mask_root", "root_labeled_mask_dir", where)
        return Found(image, root / _plain(mask), "")

    def frames(self, sample: object, number: int) -> list[Path]:
        """Return the images that a sample is stacked of; none where it is a single one."""
        frames = sample.get("frames") if isinstance(sample, Mapping) else None
        if not isinstance(frames, list) or len(frames) < 2:
            return []
        assert isinstance(sample, Mapping)
        where = f"{self.path}, sample {number}"
        root = self._root(sample.get("dataset"), "raw_image_root", "root_raw_image_dir", where)
        return [root / _plain(name) for name in frames if isinstance(name, str)]

    def _root(self, data: object, key: str, former: str, where: str) -> Path:
        """Return the folder the names of a data set start from."""
        info = self.content.get("datasets_info")
        tables = info if isinstance(info, Mapping) else {}
        table = tables.get(data) if isinstance(data, str) else None
        if table is None and len(tables) == 1 and data is None:
            table = next(iter(tables.values()))
        said = table.get(key) if isinstance(table, Mapping) else None
        said = said or self.content.get(key) or self.content.get(former)
        if not isinstance(said, str):
            of = f" of data set {cut(repr(data), 60)}" if data is not None else ""
            raise UserError(f"{where}: there is no {key}{of} in datasets_info")
        # Names start from the project, in which the index lies in a folder: json/.
        bases = (*list(self.path.resolve().parents)[:3], Path.cwd())
        places = [base / _plain(said) for base in bases]
        found = next((place for place in places if os.path.isdir(place)), None)
        if found is None:
            raise UserError(
                f"{where}: there is no folder {cut(said)} beside {self.path}, above it or here; "
                "write the index anew with python -m matssl.tools.index"
            )
        return found


def _plain(name: str) -> str:
    """Return a path with the slashes of this machine; the program writes those of Windows."""
    return name.replace("\\", "/")


def _ending(stem: str) -> tuple[str, str]:
    """Return the name of an index file without its split, and the split, "" for none."""
    name, _, last = stem.rpartition("_")
    split = split_name(last)
    return (name, split) if name and split in SPLITS else (stem, "")


def _whole(path: Path, content: Mapping[str, object]) -> str:
    """Return the split that the whole file is of, "" for none: said in it, or by its name."""
    info = content.get("split_info")
    said = info.get("split") if isinstance(info, Mapping) else None
    return split_name(said) if isinstance(said, str) else _ending(path.stem)[1]


def _home(items: Sequence[Found]) -> Path:
    """Return the deepest folder that holds all images and masks."""
    parents = [p.parent for item in items for p in (item.image, item.mask) if p is not None]
    home = parents[0]
    while not all(home == p or home in p.parents for p in parents):
        home = home.parent
    return home
