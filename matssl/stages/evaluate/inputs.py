"""What an evaluation is given: the images, their masks, and what all that means to the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl import preflight
from matssl.core import flags
from matssl.core.errors import UserError
from matssl.data import layouts, masks, readers
from matssl.data.layouts import Dataset, Pair
from matssl.data.masks import ClassTable
from matssl.preflight import Preflight
from matssl.stages.evaluate import colours, objects
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.evaluate.summary import excluded_classes
from matssl.stages.evaluate.truth import check_masks, is_file_name, mask_paths, truth_table
from matssl.stages.settings import TileSettings
from matssl.trained.segmenter import Segmenter

# Value of --split for every image of the folder.
ALL = "all"


@dataclass(frozen=True)
class Inputs:
    """What is evaluated on what, checked.

    Attributes:
        segmenter: the model.
        dataset: the folder.
        pairs: images of it that are evaluated, with their masks.
        truth: the model's classes with the values that mean them in these masks.
        excluded: classes that one further mean IoU leaves out.
        found: what the images hold.
        beaten: what ``--crop_bottom`` beats, in words.
        objects: classes whose parts are matched one by one.
        colours: of the classes in masks/rgb, (256, 3); None where none are written.
    """

    segmenter: Segmenter
    dataset: Dataset
    pairs: list[Pair]
    truth: ClassTable
    excluded: tuple[int, ...]
    found: Preflight
    beaten: str
    objects: tuple[int, ...]
    colours: NDArray[np.uint8] | None = None


def read(settings: EvaluateSettings, segmenter: Segmenter) -> Inputs:
    """Return model, images and truth; every mask is read once.

    Raises:
        UserError: anything the user can mend.
    """
    table = segmenter.table
    if settings.n_classes is not None and settings.n_classes != table.num_classes:
        raise UserError(
            f"--n_classes {settings.n_classes}, but the model has {table.num_classes} "
            f"({', '.join(table.names)})"
        )
    pixel_size = readers.parse_pixel_size(settings.pixel_size)
    if pixel_size is not None:
        segmenter = replace(segmenter, record=replace(segmenter.record, pixel_size=pixel_size))
    record, beaten = segmenter.record.cutting(settings.crop_bottom)
    segmenter = replace(segmenter, record=record)
    if settings.page is not None:
        segmenter = replace(segmenter, record=replace(segmenter.record, page=settings.page))
    excluded = excluded_classes(settings.exclude_classes, table.names)
    dataset = _dataset(settings, segmenter)
    record = segmenter.record.told(dataset.grouping.pixel_sizes)
    record = record.among(dataset.neighbours(record.depth))
    segmenter = replace(segmenter, record=record)
    pairs = _chosen(settings, dataset, segmenter)
    shown = replace(dataset, pairs=tuple(pairs), table=None)
    found = preflight.examine_dataset(shown, segmenter.record)
    found.judged.refuse_misfits()
    segmenter = replace(segmenter, record=found.record)
    truth, notes = truth_table(dataset, table, settings.classes, segmenter.raw)
    seen = objects.Seen(table.names)
    truth, said = check_masks(pairs, truth, table, segmenter.record, seen.look)
    kinds, told = seen.chosen(settings.objects)
    dataset = replace(dataset, notes=(*dataset.notes, *dict.fromkeys((*notes, *said, *told))))
    shades = colours.of_table(table, settings.classes) if settings.save_rgb_masks else None
    return Inputs(segmenter, dataset, pairs, truth, excluded, found, beaten, kinds, shades)


def _dataset(settings: EvaluateSettings, segmenter: Segmenter) -> Dataset:
    """Return the data set in the folder; splits are cut as they were for training."""
    table, trained_on = segmenter.table, segmenter.trained_on
    binary = masks.is_binary(settings.classes)
    if settings.classes and not binary and not is_file_name(settings.classes):
        names = tuple(word.strip() for word in settings.classes.split(","))
        if names != table.names:
            raise UserError(
                f"--classes names {', '.join(names)}; the model knows {', '.join(table.names)}"
            )
    regex, specimens = said_of_specimens(settings, segmenter)
    return layouts.find(
        settings.dataset,
        splits=settings.splits or (trained_on.splits if at_home(settings, segmenter) else None),
        group_regex=regex,
        specimens=specimens,
        pixel_size=settings.pixel_size,
        lists=trained_on.lists if at_home(settings, segmenter) and not settings.splits else None,
        mask_folder=settings.mask_folder
        or (trained_on.mask_folder if at_home(settings, segmenter) else None),
        seed=trained_on.seed,
        need_masks=False,
        table=table,
        depth=segmenter.record.depth,
        page=segmenter.record.page,
    )


def at_home(settings: EvaluateSettings, segmenter: Segmenter) -> bool:
    """Return whether the folder is the one that was trained on."""
    home = segmenter.trained_on.dataset
    return home is not None and Path(home).resolve() == Path(settings.dataset).resolve()


def said_of_specimens(
    settings: EvaluateSettings, segmenter: Segmenter
) -> tuple[str | None, str | None]:
    """Return ``--group_regex`` and ``--specimens`` in force: at home, those of the training."""
    given = settings.group_regex, settings.specimens
    if any(given) or not at_home(settings, segmenter):
        return given
    return segmenter.trained_on.group_regex, segmenter.trained_on.specimens


def _chosen(settings: EvaluateSettings, dataset: Dataset, segmenter: Segmenter) -> list[Pair]:
    """Return the images to evaluate: the split asked for, else test, else all."""
    if settings.split == ALL and ALL not in dataset.splits:
        return list(dataset.pairs)
    if settings.split is not None:
        pairs = list(dataset.split(settings.split))
        if not pairs:
            raise UserError(
                f"{dataset.root} has no split {settings.split!r}; there are: "
                f"{', '.join(dataset.splits)}, {ALL}"
            )
        return pairs
    trained = segmenter.trained_on.images
    if dataset.cut.automatic and not any(str(pair.image) in trained for pair in dataset.pairs):
        # Nobody cut this folder and the model has not seen it: every image is a test.
        return list(dataset.pairs)
    return list(dataset.split("test") or dataset.pairs)


def facts(settings: EvaluateSettings, inputs: Inputs) -> str:
    """Return in words what was found, and what had to be assumed of the model."""
    table = inputs.truth if mask_paths(inputs.pairs) else None
    unheeded = ""
    given = [
        f"--{name}"
        for name, default in flags.defaults(TileSettings).items()
        if getattr(settings, name) != default
    ]
    if given and inputs.segmenter.network.whole:
        unheeded = (
            f"note    without effect on filters of the picture, which need no tiles: "
            f"{', '.join(given)}"
        )
    shown = replace(inputs.dataset, pairs=tuple(inputs.pairs), table=table)
    beaten = f"note    {inputs.beaten}" if inputs.beaten else ""
    parts = (inputs.segmenter.note, beaten, unheeded, replace(inputs.found, dataset=shown).text())
    return "\n".join(part for part in parts if part)
