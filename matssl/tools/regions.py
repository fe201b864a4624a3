"""Measure the regions of each class: ``python -m matssl.tools.regions FOLDER``.

FOLDER is a run of eval_model.py or phase_map, whose predictions are measured, or a labelled folder,
whose masks are. Particles, grains and pores are counted and sized, by specimen (--group_regex).
Those that touch the edge count half and are left out of the sizes.
Writes regions.csv (a line a region), summary.csv (a line a specimen and class) and sizes.png.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matssl.core import paths, textfiles
from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.core.tables import csv_text
from matssl.core.wording import counted, cut
from matssl.stages.settings import (
    MASK_FOLDER_HELP,
    SpecimenSettings,
    ToolSettings,
    classes_problem,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matssl.measure.field import Field
    from matssl.measure.regions import FieldRegions, RegionSummary

    # A field and its mask of class indices.
    Masked = tuple[Field, NDArray[np.uint8]]

# With more specimens than this the screen shows all of them together.
MOST_SHOWN = 6


@dataclass(frozen=True)
class RegionsSettings(SpecimenSettings, ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "",
        "data",
        "run of eval_model.py or phase_map, or a labelled folder",
        required=True,
        positional=True,
        leads=paths.folder,
    )
    min_area: int = flag(10, "data", "smallest region in pixels", low=1)
    classes: str | None = flag(
        None,
        "data",
        "class names, a YAML file, binary or binary:128, for a labelled folder",
        check=classes_problem,
        leads=paths.class_file,
    )
    mask_folder: str | None = flag(None, "data", MASK_FOLDER_HELP)
    output_dir: str | None = flag(
        None,
        "run",
        "folder in which regions/FOLDER is made",
        auto="RUN/regions, or experiments/regions/FOLDER",
    )


SETTINGS = RegionsSettings


def main(argv: Sequence[str]) -> int:
    """Measure all masks, write the tables and the picture; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.regions")
    from matssl.core.run_folder import atomic_write_text
    from matssl.data.readers import parse_pixel_size
    from matssl.measure import tables
    from matssl.measure.regions import FieldRegions, find_regions, summarise

    folder = Path(args.folder)
    given = parse_pixel_size(args.pixel_size)
    if args.crop_bottom and (folder / "status.json").is_file():
        raise UserError(
            f"--crop_bottom acts on a labelled folder; in {folder} the rows were cut off when it "
            "was made: give --crop_bottom to eval_model.py or matssl.tools.phase_map"
        )
    drawn = [folder / kind / "index" for kind in ("masks", "maps")]
    predicted = next((place for place in drawn if place.is_dir()), None)
    if predicted is not None:
        out = folder / "regions"
        names, fields = _of_run(folder, predicted, args.group_regex, args.specimens, given)
    else:
        # Nothing is written to a folder of data: a picture there would be read as a micrograph.
        out = Path("experiments/regions") / folder.resolve().name
        names, fields = _of_labels(folder, args)
    found = [
        FieldRegions(field, mask.size, find_regions(mask, len(names), args.min_area))
        for field, mask in fields
    ]
    if args.output_dir is not None:
        out = Path(args.output_dir) / "regions" / folder.resolve().name
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give --output_dir") from error
    lines = tables.region_rows(found, names)
    text = csv_text(lines, None if lines else ["image"])
    atomic_write_text(out / "regions.csv", text)
    specimens = list(dict.fromkeys(one.field.specimen for one in found))
    each = [row for name in specimens for row in summarise(found, names, name)]
    whole = summarise(found, names)
    text = csv_text(tables.summary_rows(each + whole))
    atomic_write_text(out / "summary.csv", text)
    _draw(out / "sizes.png", found, names)
    _print(whole if len(specimens) > MOST_SHOWN else each + whole)
    number = counted(len(specimens), "specimen")
    print(f"tables  {out / 'regions.csv'}, {out / 'summary.csv'} ({number})")
    print(f"picture {out / 'sizes.png'}")
    return 0


def _of_run(
    folder: Path,
    predicted: Path,
    regex: str | None,
    specimens: str | None,
    given: float | None,
) -> tuple[tuple[str, ...], Iterator[Masked]]:
    """Return class names and masks of a run's predictions."""
    import numpy as np

    from matssl.data import readers
    from matssl.data.specimens import group
    from matssl.measure.field import Field, areas

    paths = readers.find_images(predicted)
    names, table = _facts(folder)
    sizes = {row.image: row.pixel_size for row in table}
    own = {row.image: row.group for row in table}
    grouping = group(paths, predicted, regex=regex, specimens=specimens)

    def fields() -> Iterator[Masked]:
        for path, name in zip(paths, grouping.names, strict=True):
            size = given or sizes.get(path.stem)
            known = name if grouping.told else own.get(path.stem, name)
            mask = readers.read_mask(path)
            # Rows of a cut-off information bar are no field.
            kept = np.flatnonzero((mask < len(names)).any(axis=1))
            mask = mask[: kept[-1] + 1 if len(kept) else 0]
            yield Field(path, path.stem, known, areas(mask, len(names)), size), mask

    return names, fields()


class Listed(NamedTuple):
    """What a run's table says of an image: its name, specimen and pixel size in nm."""

    image: str
    group: str
    pixel_size: float | None


def _facts(folder: Path) -> tuple[tuple[str, ...], list[Listed]]:
    """Return class names and the table of images of a run of eval_model.py or phase_map."""
    try:
        if (folder / "phases.json").is_file():
            names = textfiles.read_json(folder / "phases.json")["phases"]
            table = folder / "phase_fractions.csv"
        else:
            names = textfiles.read_json(folder / "metrics.json")["classes"]
            table = folder / "per_image.csv"
        if not names or not isinstance(names, (list, dict)) or not all(map(_is_name, names)):
            raise TypeError("no names")
        return tuple(names), [_listed(row) for row in textfiles.read_rows(table)]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} has masks but no results beside them; was the run broken off?"
        ) from error
    except ValueError as error:
        raise UserError(f"{table} is damaged: {error}; run the command that wrote it") from error


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _listed(row: Mapping[str, str]) -> Listed:
    size = row["pixel_size_nm"]
    number = float(size) if size else None
    if number is not None and not 0 < number < math.inf:
        raise ValueError(f"{cut(size, 40)} is no pixel size")
    return Listed(Path(row["image"]).stem, row["group"], number)


def _of_labels(folder: Path, args: RegionsSettings) -> tuple[tuple[str, ...], Iterator[Masked]]:
    """Return class names and masks of a labelled folder."""
    from matssl.data import bars, layouts, readers
    from matssl.data.preprocess import Preprocess
    from matssl.measure.field import Field, areas

    if (folder / "status.json").is_file():
        raise UserError(
            f"{folder} is a run without predicted masks; give the results of eval_model.py or of "
            "matssl.tools.phase_map, or a labelled folder"
        )
    dataset = layouts.find(
        folder,
        group_regex=args.group_regex,
        specimens=args.specimens,
        pixel_size=args.pixel_size,
        classes=args.classes,
        mask_folder=args.mask_folder,
    )
    table = dataset.table
    assert table is not None
    record = Preprocess.chosen(
        channels=1,
        page=args.page,
        pixel_size=args.pixel_size,
        crop_bottom=args.crop_bottom or "auto",
    )
    record = record.told(dataset.grouping.pixel_sizes)
    pairs = [(pair.image, pair.mask) for pair in dataset.pairs if pair.mask is not None]
    judged = bars.of_pairs(pairs, record.read, record.crop_bottom)
    judged.refuse_misfits()
    record = record.knowing(judged.rows)
    for told in (*judged.notes, *judged.warnings):
        print(f"note    {told}")

    def fields() -> Iterator[Masked]:
        for pair in dataset.pairs:
            if pair.mask is None:
                continue
            micrograph = record.read(pair.image)
            raw = table.decode(readers.read_mask(pair.mask), str(pair.mask))
            mask = record.mask(raw, micrograph)
            size = micrograph.pixel_size
            own = areas(mask, table.num_classes)
            yield Field(pair.image, pair.image.name, pair.group, own, size), mask

    return table.names, fields()


def _draw(path: Path, found: Sequence[FieldRegions], names: Sequence[str]) -> None:
    """Draw how large the regions of each class are."""
    from matssl.pictures.segmentation import size_plot

    known = all(one.field.pixel_size is not None for one in found)
    values: list[list[float]] = [[] for _ in names]
    for one in found:
        scale = (one.field.pixel_size or 1.0) / 1000 if known else 1.0
        for region in one.regions:
            if not region.edge:
                values[region.kind].append(region.diameter * scale)
    size_plot(values, names, "µm" if known else "pixels", path)


def _print(summaries: Sequence[RegionSummary]) -> None:
    print(f"{'specimen':24}{'class':20}{'regions':>9}{'per Mpx':>10}{'mean diameter':>15}")
    for one in summaries:
        if not one.regions:
            continue
        if one.mean_diameter_nm is not None:
            size = f"{one.mean_diameter_nm / 1000:.4g} µm"
        elif one.mean_diameter_px is not None:
            size = f"{one.mean_diameter_px:.1f} px"
        else:
            size = "all at edge"
        numbers = f"{one.regions:9d}{one.per_megapixel:10.4g}"
        print(f"{one.specimen[:23]:24}{one.kind[:19]:20}{numbers}{size:>15}")


if __name__ == "__main__":
    sys.exit(guard(main))
