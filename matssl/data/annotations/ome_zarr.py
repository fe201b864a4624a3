"""OME-Zarr: label images in ``NAME.ome.zarr/labels/``, NGFF 0.4 (Zarr 2) and 0.5 (Zarr 3).

https://ngff.openmicroscopy.org/0.5/, section "labels" metadata. Of the resolutions the largest is
read. Names of the classes come from ``image-label.properties`` (``class``, ``name`` or ``label``),
else a class is called as its number. 0 is not drawn.

Written as 0.4, which most programs read (``ome_zarr_05`` writes 0.5), with the picture itself where
it is there, since programs open labels with their image. Read and written with the package zarr.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.palette import COLOURS
from matssl.core.wording import cut
from matssl.data import readers
from matssl.data.annotations import named, numbered, sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Marked,
    label_of,
    stem_of,
)
from matssl.data.readers.headers import first_line

# Files that say what a folder of Zarr is: versions 2 and 3.
ATTRIBUTES, META = (".zattrs", "zarr.json"), (".zarray", "zarr.json")
MARKS = (".zgroup", ".zattrs", "zarr.json")
# Keys of properties that name a class, the likeliest first.
NAMED_BY = ("class", "name", "label", "class_name", "class-name")
# What may pack an array: others run code of theirs (pickle), or are none of Zarr's own.
PACKED = frozenset(
    ("blosc", "zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "crc32c", "bytes", "transpose")
    + ("sharding_indexed", "shuffle", "delta", "fixedscaleoffset")
)
# Folders that are looked into, and how deep one in the other.
MOST_FOLDERS, DEPTH = 1 << 14, 6
# What our label image is called.
CLASSES = "classes"
SIDE = 1024
ENDINGS = (".ome.zarr", ".zarr")


def recognise(path: Path) -> bool:
    """Return whether a folder is a label image of OME-Zarr, or holds some."""
    if not path.is_dir():
        return False
    return any((store / "labels").is_dir() or _is_labels(store) for store in _stores(path)[:50])


def _stores(path: Path) -> list[Path]:
    """Return the folders of Zarr below a folder, or itself, in natural order."""
    found: list[Path] = []
    level, seen = [path], 0
    for _ in range(DEPTH):
        deeper: list[Path] = []
        for folder in level:
            seen += 1
            if seen > MOST_FOLDERS:
                break
            if any((folder / mark).is_file() for mark in MARKS):
                found.append(folder)
                continue
            try:
                inside = [p for p in folder.iterdir() if p.is_dir() and p.name[:1] != "."]
            except OSError:
                continue
            deeper += inside
        level = deeper
    return sorted(found, key=lambda p: readers.natural(p.relative_to(path).as_posix()))


def _is_labels(folder: Path) -> bool:
    try:
        return "image-label" in _attributes(folder)
    except UserError:
        return False


def _attributes(folder: Path) -> dict[str, Any]:
    """Return what OME's metadata say of a group; nothing where it has none.

    Raises:
        UserError: they are damaged.
    """
    for name in ATTRIBUTES:
        file = folder / name
        if not file.is_file():
            continue
        content = sources.table(sources.read_json(file), str(file))
        if name == "zarr.json":
            content = sources.table(content.get("attributes", {}), f"{file}: attributes")
        # From 0.5 on they have a part of their own.
        return sources.table(content["ome"], f"{file}: ome") if "ome" in content else content
    return {}


def read(path: Path, choices: Choices) -> Annotations:
    """Return the label images of a folder, a picture each.

    Raises:
        UserError: there is none, it is damaged, several for a picture of which nobody chose one
            (``choices.annotator`` names it), a stack, or more numbers than classes.
    """
    found: list[tuple[Path, Path]] = []
    notes: tuple[str, ...] = ()
    for store in _stores(path) if path.is_dir() else []:
        label = _chosen(store, choices)
        if label is not None:
            found.append((store, label))
    if not found:
        raise UserError(
            f"{path} holds no label images of OME-Zarr (a folder NAME.zarr with labels in it)"
        )
    named.package("zarr", "reading OME-Zarr")
    drawings = tuple(_drawing(store, label, path, choices) for store, label in found)
    return Annotations(drawings, numbered.labels_of(drawings, {}), notes=notes)


def _chosen(store: Path, choices: Choices) -> Path | None:
    """Return the label image of a picture; None where it has none.

    Raises:
        UserError: it has several, and none is chosen.
    """
    if _is_labels(store):
        return store
    group = store / "labels"
    if not group.is_dir():
        return None
    said = _attributes(group).get("labels")
    listed = [p.name for p in sorted(group.iterdir()) if p.is_dir() and _is_labels(p)]
    if said is not None:
        where = f"{group}: labels"
        listed = [_inside(name, where) for name in sources.listing(said, where)]
    if not listed:
        return None
    if choices.annotator in listed:
        return group / choices.annotator
    if len(listed) > 1 or choices.annotator:
        raise UserError(
            f"{store} has the label images {cut(', '.join(listed), 120)}; --annotator NAME says "
            "which one counts"
        )
    return group / listed[0]


def _inside(value: object, where: str) -> str:
    """Return a path that leads no further than into a folder.

    Raises:
        UserError: it leads out of it.
    """
    name = PurePosixPath(sources.text(value, where))
    if name.is_absolute() or ".." in name.parts or "\\" in str(name) or "\0" in str(name):
        raise UserError(f"{where}: {cut(repr(str(name)), 60)} leads out of the folder")
    return str(name)


def _drawing(store: Path, label: Path, root: Path, choices: Choices) -> Drawing:
    attributes = _attributes(label)
    values = _values(label, attributes)
    names = _names(attributes, label)
    shapes = numbered.shapes(values, names, choices, str(label))
    stem = store.name
    for ending in ENDINGS:
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    pictures = named.pictures(store, root if store != root else store.parent, stem)
    size = values.shape[0], values.shape[1]
    return Drawing(pictures[0], size, tuple(shapes), label, also=pictures[1:], ordered=True)


def _names(attributes: Mapping[str, Any], label: Path) -> dict[int, str]:
    """Return the names of the numbers that the properties say."""
    about = attributes.get("image-label")
    properties = about.get("properties") if isinstance(about, dict) else None
    found: dict[int, str] = {}
    where = f"{label}: properties"
    for value in [] if properties is None else sources.listing(properties, where):
        item = sources.table(value, where)
        number = sources.whole(item.get("label-value"), f"{where}: label-value", 0, 1 << 53)
        name = next((item[key] for key in NAMED_BY if isinstance(item.get(key), str)), None)
        if name is not None and name.strip():
            found[number] = label_of(name)
    return found


@dataclass(frozen=True)
class _Stored:
    """What is said of an array before it is read."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]


def _values(label: Path, attributes: Mapping[str, Any]) -> Array:
    """Return the numbers of a label image, (rows, columns).

    Raises:
        UserError: it is damaged, a stack, or larger than a picture.
    """
    scales = sources.listing(attributes.get("multiscales"), f"{label}: multiscales")
    first = sources.table(scales[0] if scales else None, f"{label}: multiscales")
    datasets = sources.listing(first.get("datasets"), f"{label}: datasets")
    item = sources.table(datasets[0] if datasets else None, f"{label}: datasets")
    # The resolutions stand in order, the largest first.
    place = label / _inside(item.get("path"), f"{label}: path")
    stored = _stored(place)
    _check_axes(first.get("axes"), stored.shape, label)
    if math.prod(stored.shape) > sources.MOST_PIXELS or math.prod(stored.chunk) > (
        sources.MOST_PIXELS
    ):
        raise UserError(f"{place}: {stored.shape} numbers are more than a picture has")
    zarr = named.package("zarr", "reading OME-Zarr")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.asarray(zarr.open_array(str(place), mode="r")[...])
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{place} cannot be read: {cut(first_line(error))}") from error
    if found.dtype.kind not in "iub" or found.min(initial=0) < 0:
        raise UserError(f"{place} holds {found.dtype.name} numbers; a label is a number from 1 on")
    return found.reshape(found.shape[-2:]).astype(found.dtype.newbyteorder("="), copy=False)


def _stored(place: Path) -> _Stored:
    """Return the shape of an array from its metadata.

    Raises:
        UserError: there are none, its numbers are no whole ones, or it is packed by a stranger.
    """
    file = next((place / name for name in META if (place / name).is_file()), None)
    if file is None:
        raise UserError(f"{place} is no array of Zarr")
    meta = sources.table(sources.read_json(file), str(file))
    if file.name == ".zarray":
        kind, chunk = str(meta.get("dtype"))[-2:], meta.get("chunks")
        packed = [meta.get("compressor"), *(meta.get("filters") or [])]
        right = kind[:1] in "iub" and kind[1:].isdecimal()
    else:
        kind = str(meta.get("data_type"))
        grid = sources.table(meta.get("chunk_grid"), f"{file}: chunk_grid")
        inner = sources.table(grid.get("configuration"), f"{file}: chunk_grid")
        chunk, packed = inner.get("chunk_shape"), _codecs(meta.get("codecs"), file)
        right = kind.startswith(("int", "uint", "bool"))
    if not right:
        raise UserError(f"{file}: numbers of the type {cut(repr(kind), 40)} are no labels")
    for one in packed:
        name = "" if one is None else str(one.get("id") or one.get("name"))
        if name and name.removeprefix("numcodecs.") not in PACKED:
            raise UserError(f"{file}: packed by {cut(repr(name), 40)}, which is not read")
    shape = [
        sources.whole(v, f"{file}: shape", 1, 1 << 40)
        for v in sources.listing(meta.get("shape"), f"{file}: shape")
    ]
    sides = sources.listing(chunk, f"{file}: chunks")
    return _Stored(
        tuple(shape), tuple(sources.whole(v, f"{file}: chunks", 1, 1 << 40) for v in sides)
    )


def _codecs(value: object, file: Path, depth: int = 0) -> list[dict[str, Any]]:
    """Return the codecs of an array of version 3, those within shards as well."""
    found: list[dict[str, Any]] = []
    for item in sources.listing(value, f"{file}: codecs"):
        one = sources.table(item, f"{file}: codecs")
        found.append(one)
        inner = one.get("configuration")
        for key in ("codecs", "index_codecs"):
            if isinstance(inner, dict) and key in inner and depth < DEPTH:
                found += _codecs(inner[key], file, depth + 1)
    return found


def _check_axes(axes: object, shape: Sequence[int], label: Path) -> None:
    """Refuse what is no single picture: rows and columns come last, all else has the length 1.

    Raises:
        UserError: it is a stack, or its axes are none.
    """
    names = ["y", "x"] if axes is None else []
    for axis in [] if axes is None else sources.listing(axes, f"{label}: axes"):
        names.append(str(axis.get("name")) if isinstance(axis, dict) else str(axis))
    if len(shape) < 2 or [name.lower() for name in names[-2:]] != ["y", "x"]:
        raise UserError(f"{label}: its axes {cut(', '.join(names), 40)} do not end in y, x")
    if any(length != 1 for length in shape[:-2]):
        raise UserError(
            f"{label} is a stack ({' x '.join(map(str, shape))}); cut it into pictures, each with "
            "labels of its own"
        )


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as label images of NGFF 0.4, each beside its picture in one store.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels get a number of their own.

    Raises:
        UserError: zarr is not installed.
    """
    write_version(folder, pictures, names, "0.4")


def write_version(
    folder: Path, pictures: Iterable[Marked], names: Mapping[int, str], version: str
) -> None:
    """Write masks as label images of a version of NGFF: 0.4 or 0.5; see :func:`write`."""
    zarr = named.package("zarr", "writing OME-Zarr")
    numbers = numbered.numbering(names)
    for picture in pictures:
        place = folder / f"{stem_of(picture.picture)}{ENDINGS[0]}"
        place.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = zarr.open_group(str(place), mode="w", zarr_format=2 if version == "0.4" else 3)
            size = _write_picture(store, picture, version)
            _write_labels(store, picture, names, numbers, version, size)


def _write_picture(store: Any, picture: Marked, version: str) -> float | None:
    """Write the picture where it can be read, and return its pixel size in nm, None unknown."""
    if picture.file is None:
        return None
    micrograph = readers.read(picture.file)
    pixels = micrograph.pixels
    if pixels.shape[:2] != picture.mask.shape:
        return None
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 2, 0)
    name = PurePosixPath(stem_of(picture.picture)).name
    _put(store, _attributes_of(name, pixels.ndim, micrograph.pixel_size, version), version)
    _array(store, pixels)
    return micrograph.pixel_size


def _write_labels(
    store: Any,
    picture: Marked,
    names: Mapping[int, str],
    numbers: Mapping[int, int],
    version: str,
    pixel_size: float | None,
) -> None:
    group = store.create_group("labels")
    _put(group, {"labels": [CLASSES]}, version)
    label = group.create_group(CLASSES)
    drawn = numbered.drawn_as(picture.mask, numbers)
    top = max(numbers.values(), default=0)
    _array(label, drawn.astype(np.uint8 if top <= 255 else np.uint16))
    colours, properties = [], []
    for number, written in numbers.items():
        colour = (128, 128, 128) if number == IGNORE else COLOURS[number % len(COLOURS)]
        name = numbered.IGNORED if number == IGNORE else names[number]
        colours.append({"label-value": written, "rgba": [*map(int, colour), 255]})
        properties.append({"label-value": written, "class": name})
    about: dict[str, Any] = {"colors": colours, "properties": properties}
    about["source"] = {"image": "../../"}
    if version == "0.4":
        about["version"] = version
    scales = _attributes_of(CLASSES, 2, pixel_size, version)
    _put(label, {**scales, "image-label": about}, version)


def _attributes_of(name: str, axes: int, pixel_size: float | None, version: str) -> dict[str, Any]:
    """Return the metadata of an image of one resolution, with y and x in nm where known."""
    space: dict[str, str] = {"type": "space"}
    if pixel_size is not None:
        space["unit"] = "nanometer"
    listed: list[dict[str, str]] = [{"name": "y", **space}, {"name": "x", **space}]
    listed = [{"name": "c", "type": "channel"}] * (axes - 2) + listed
    scale = [1.0] * (axes - 2) + [pixel_size or 1.0] * 2
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    one: dict[str, Any] = {"name": name, "axes": listed, "datasets": datasets}
    return {"multiscales": [{"version": version, **one} if version == "0.4" else one]}


def _put(group: Any, attributes: Mapping[str, Any], version: str) -> None:
    """Write OME's metadata of a group; from 0.5 on they have a part of their own."""
    said = dict(attributes) if version == "0.4" else {"ome": {"version": version, **attributes}}
    group.attrs.update(said)


def _array(group: Any, values: NDArray[Any]) -> None:
    """Write an array as the one resolution of an image."""
    chunks = (*([1] * (values.ndim - 2)), *(min(SIDE, side) for side in values.shape[-2:]))
    second = group.metadata.zarr_format == 2
    encoding = {"name": "v2" if second else "default", "separator": "/"}
    array = group.create_array(
        "0",
        shape=values.shape,
        chunks=chunks,
        dtype=values.dtype,
        chunk_key_encoding=encoding,
        **({} if second else {"dimension_names": list("cyx")[-values.ndim :]}),
    )
    array[...] = values
