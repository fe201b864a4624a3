"""Labelled images of a pretraining: those that guide a method, those that judge the encoder."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data import crops, layouts, preprocess, specimens
from matssl.data.crops import Labelled
from matssl.data.datasets import Guides, ViewLoader
from matssl.data.preprocess import Preprocess
from matssl.methods.settings import GuidedSettings, LotSettings, MethodSettings
from matssl.probe import DenseProbe
from matssl.stages import console
from matssl.stages.pretrain.settings import PretrainSettings


def guides(
    settings: PretrainSettings, method: MethodSettings, rt: Runtime, record: Preprocess
) -> tuple[Guides | None, Labelled | None]:
    """Return what guides a method, and the labelled images it is made of.

    Raises:
        UserError: masks that cannot be read.
    """
    if not isinstance(method, GuidedSettings) or method.labeled_path is None:
        return None, None
    folder, wanted = method.labeled_path, method.labeled_count
    data, _, dataset = _labelled(settings, folder, record, ("train",), wanted)
    table = dataset.table
    assert table is not None
    sources = [pair.image for pair in data.pairs]
    known = lots(settings, method, rt, sources, "labelled images")
    planes = tuple(preprocess.quantise(plane) for plane in data.planes)
    numbers = tuple(known.tolist()) if known is not None else (-1,) * len(planes)
    names = ", ".join(table.names)
    count = counted(len(planes), "labelled image")
    rest = {
        split: sum(pair.mask is not None for pair in dataset.split(split))
        for split in dataset.splits
    }
    rest["train"] = rest.get("train", 0) - len(planes)
    others = ", ".join(f"{number} {split}" for split, number in rest.items() if number)
    unopened = f"; not opened: {others}" if others else ""
    console.say(settings, rt, f"guided  by {count} with the classes {names}{unopened}")
    for note in dataset.notes:
        console.say(settings, rt, f"note    {folder}: {note}")
    if wanted is not None and wanted > len(planes):
        asked = f"--labeled_count asks for {wanted} images"
        console.say(settings, rt, f"note    {asked}, the training split has {len(planes)}")
    beside = method.labeled_sample == "beside"
    return Guides(planes, data.masks, numbers, tuple(table.names), beside), data


def dense_probe(
    settings: PretrainSettings, record: Preprocess | None, multiple: int
) -> DenseProbe | None:
    """Return the dense probe on the images of ``--probe_path``, None without it.

    Args:
        settings: its flags say where the images lie and which are opened.
        record: how they are read; None measures their own grey levels.
        multiple: of the sides of what the encoder sees.

    Raises:
        UserError: see :func:`_labelled` and :class:`DenseProbe`.
    """
    if settings.probe_path is None:
        return None
    reading = record or settings.record(settings.in_channels)
    train, val, dataset = _labelled(settings, settings.probe_path, reading, ("train", "val"))
    table = dataset.table
    assert table is not None
    record = record or preprocess.measure(reading, train.planes)
    return DenseProbe(train, val, table.num_classes, record.tensor, settings.seed, multiple)


def _labelled(
    settings: PretrainSettings,
    folder: str,
    record: Preprocess,
    opened: tuple[str, ...],
    wanted: int | None = None,
) -> tuple[Labelled, Labelled | None, layouts.Dataset]:
    """Return the labelled images to train on, those to validate on if any, and their folder.

    Args:
        settings: say which images are meant, and by which masks.
        folder: of the images.
        record: how they are read.
        opened: splits whose images are read.
        wanted: so many of the training images; None takes all.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    dataset = layouts.find(
        folder,
        splits=settings.splits,
        classes=settings.classes,
        mask_folder=settings.mask_folder,
        group_regex=settings.group_regex,
        # In a pretraining the flag speaks of the pool; tools/probe.py has none.
        specimens=None if settings.data_path else settings.specimens,
        pixel_size=settings.pixel_size,
        seed=settings.seed,
        opened=opened,
        depth=settings.input_depth,
        page=settings.page,
    )
    record = record.told(dataset.grouping.pixel_sizes)
    record = record.among(dataset.neighbours(settings.input_depth, opened))
    table = dataset.table
    if table is None:
        raise UserError(f"{folder} has no labelled training images")
    masked = tuple(pair for pair in dataset.split("train") if pair.mask is not None)
    train = crops.labelled(masked, table)
    val = crops.labelled(dataset.split("val"), table) if "val" in opened else ()
    if masked and not train:
        raise UserError(f"every pixel of the training masks in {folder} is to be ignored")
    if wanted is not None:
        train = specimens.take(train, wanted, settings.seed)
    if not train:
        raise UserError(f"{folder} has no labelled training images")
    data = crops.load(train, record, table)
    held = crops.load(val, record, table) if val else None
    return data, held, dataset


def lots(
    settings: PretrainSettings,
    method: MethodSettings,
    rt: Runtime,
    sources: Sequence[str | Path],
    what: str,
) -> NDArray[np.int64] | None:
    """Return the production batch of each image, -1 where it is not known.

    None where nothing names them, or the method has no use for them. Equal names have equal
    numbers, also in two calls.

    Raises:
        UserError: the table cannot be read.
    """
    if not isinstance(method, LotSettings):
        return None
    expression, file_name = method.batch_regex, method.batch_csv
    if expression is None and file_name is None:
        return None
    paths = [Path(source) for source in sources]
    if file_name is not None:
        rows = _table(file_name)
        table = {key: row[1].strip() for row in rows for key in (row[0], Path(row[0]).stem)}
        names = [table.get(path.name, table.get(path.stem, "")) for path in paths]
    else:
        found = [re.search(expression or "", path.stem) for path in paths]
        names = [match.group(1) if match and match.groups() else "" for match in found]
    known = sorted(set(names) - {""})
    named = counted(len(known), "production batch", "production batches")
    without = counted(names.count(""), "image")
    console.say(settings, rt, f"batches {named} of {what}, {without} of none")
    return np.array(
        [zlib.crc32(name.encode(errors="surrogateescape")) if name else -1 for name in names],
        np.int64,
    )


def _table(path: str) -> list[list[str]]:
    """Return the rows of ``--batch_csv`` below its header.

    Raises:
        UserError: it cannot be read, or has one column.
    """
    rows = [list(row.values()) for row in textfiles.read_rows(Path(path), "--batch_csv")]
    if not rows or len(rows[0]) < 2:
        raise UserError(
            f"--batch_csv {path} has no second column: it holds a header, then a "
            "file name and its production batch in each line"
        )
    return rows


def compare_lots(
    settings: PretrainSettings, method: MethodSettings, rt: Runtime, loader: ViewLoader
) -> None:
    """Say where production batches join no labelled image with the pool.

    Raises:
        UserError: none of an image of the pool is known.
    """
    if loader.guides is None or loader.lots is None:
        return
    known = set(loader.lots.tolist()) - {-1}
    if not known:
        source = "--batch_regex"
        if isinstance(method, LotSettings) and method.batch_csv is not None:
            source = "--batch_csv"
        names = loader.pool.sources
        raise UserError(
            f"{source} names the production batch of none of the {len(names)} images of the pool "
            f"(first: {Path(names[0]).name})"
        )
    if not known & set(loader.guides.lots):
        text = "no labelled image is of a production batch of the pool: batches join only its own"
        console.say(settings, rt, f"note    {text} images")
