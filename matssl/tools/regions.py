"""Measure the regions of each class: ``python -m matssl.tools.regions FOLDER``.

FOLDER is a run of eval_model.py or phase_map, whose predictions are measured, or a labelled folder,
whose masks are. Particles, grains and pores are counted and sized, by specimen (--group_regex).
Those that touch the edge count half and are left out of the sizes.
Writes regions.csv (a line a region), summary.csv (a line a specimen and class) and sizes.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matssl.core.errors import UserError, guard
from matssl.core.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matssl.metrics.regions import Region

# With more specimens than this the screen shows all of them together.
MOST_SHOWN = 6


@dataclass(frozen=True)
class Field:
    """A mask of class indices, with what is known of its image."""

    image: str
    group: str
    mask: NDArray[np.uint8]
    pixel_size: float | None


def main(argv: Sequence[str]) -> int:
    """Measure all masks, write the tables and the picture; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.regions",
        description=__doc__.replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="run of eval_model.py or phase_map, or a labelled folder")
    parser.add_argument("--min_area", type=int, default=10, help="smallest region in pixels (10)")
    parser.add_argument(
        "--group_regex",
        help="the first group of the file name is the specimen or production batch",
    )
    parser.add_argument("--pixel_size", help="pixel size of all images, for example 12.5nm")
    parser.add_argument("--classes", help="class names or a YAML file, for a labelled folder")
    parser.add_argument(
        "--output_dir",
        help="where the results go (default: RUN/regions, or experiments/regions/FOLDER)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.min_area < 1:
        raise UserError(f"--min_area must be at least 1, not {args.min_area}")
    from matssl.data.readers import parse_pixel_size
    from matssl.metrics.regions import find_regions

    folder = Path(args.folder)
    given = parse_pixel_size(args.pixel_size)
    drawn = [folder / kind / "index" for kind in ("masks", "maps")]
    predicted = next((place for place in drawn if place.is_dir()), None)
    if predicted is not None:
        out = folder / "regions"
        names, fields = _of_run(folder, predicted, args.group_regex, given)
    else:
        # Nothing is written to a folder of data: a picture there would be read as a micrograph.
        out = Path("experiments/regions") / folder.resolve().name
        names, fields = _of_labels(folder, args.group_regex, given, args.classes)
    measured = [(f, find_regions(f.mask, len(names), args.min_area)) for f in fields]
    out = Path(args.output_dir or out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give --output_dir") from error
    _write_regions(out / "regions.csv", measured, names)
    groups = list(dict.fromkeys(field.group for field, _ in measured))
    rows = [row for group in groups for row in _summary(measured, names, group)]
    whole = _summary(measured, names, None)
    _write_table(out / "summary.csv", rows + whole)
    _draw(out / "sizes.png", measured, names)
    _print(whole if len(groups) > MOST_SHOWN else rows + whole)
    number = counted(len(groups), "specimen")
    print(f"tables  {out / 'regions.csv'}, {out / 'summary.csv'} ({number})")
    print(f"picture {out / 'sizes.png'}")
    return 0


def _of_run(
    folder: Path, predicted: Path, regex: str | None, given: float | None
) -> tuple[tuple[str, ...], Iterator[Field]]:
    """Return class names and masks of a run's predictions."""
    import numpy as np

    from matssl.data import readers
    from matssl.data.specimens import groups_of

    paths = readers.find_images(predicted)
    names, table = _facts(folder)
    sizes = {Path(row["image"]).stem: row["pixel_size_nm"] for row in table}
    own = {Path(row["image"]).stem: row["group"] for row in table}
    groups = groups_of(paths, regex)

    def fields() -> Iterator[Field]:
        for path, group in zip(paths, groups, strict=True):
            size = given or (float(sizes[path.stem]) if sizes.get(path.stem) else None)
            known = group if regex else own.get(path.stem, group)
            mask = readers.read_mask(path)
            # Rows of a cut-off information bar are no field.
            kept = np.flatnonzero((mask < len(names)).any(axis=1))
            yield Field(path.stem, known, mask[: kept[-1] + 1 if len(kept) else 0], size)

    return names, fields()


def _facts(folder: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return class names and the table of images of a run of eval_model.py or phase_map."""
    try:
        if (folder / "phases.json").is_file():
            names = tuple(json.loads((folder / "phases.json").read_text("utf-8"))["phases"])
            table = folder / "phase_fractions.csv"
        else:
            names = tuple(json.loads((folder / "metrics.json").read_text("utf-8"))["classes"])
            table = folder / "per_image.csv"
        with open(table, encoding="utf-8", newline="") as file:
            return names, list(csv.DictReader(file))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} has masks but no results beside them; was the run broken off?"
        ) from error


def _of_labels(
    folder: Path, regex: str | None, given: float | None, classes: str | None
) -> tuple[tuple[str, ...], Iterator[Field]]:
    """Return class names and masks of a labelled folder."""
    from matssl.data import layouts, readers
    from matssl.data.preprocess import Preprocess

    if (folder / "status.json").is_file():
        raise UserError(
            f"{folder} is a run without predicted masks; give the results of eval_model.py or of "
            "matssl.tools.phase_map, or a labelled folder"
        )
    dataset = layouts.find(folder, group_regex=regex, classes=classes)
    table = dataset.table
    assert table is not None
    record = Preprocess.chosen(channels=1)

    def fields() -> Iterator[Field]:
        for pair in dataset.pairs:
            if pair.mask is None:
                continue
            micrograph = record.read(pair.image)
            raw = table.decode(readers.read_mask(pair.mask), str(pair.mask))
            mask = record.mask(raw, micrograph)
            yield Field(pair.image.name, pair.group, mask, given or micrograph.pixel_size)

    return table.names, fields()


Measured = Sequence[tuple[Field, tuple["Region", ...]]]


def _write_regions(path: Path, measured: Measured, names: Sequence[str]) -> None:
    """Write one line a region; lengths and areas in nm where the pixel size is known."""
    rows = []
    for field, regions in measured:
        for region in regions:
            row: dict[str, Any] = {"image": field.image, "specimen": field.group}
            row |= {"class": names[region.kind], "area_px": region.area}
            row |= {"diameter_px": region.diameter, "box_diagonal_px": region.diagonal}
            row |= {"row": region.row, "column": region.column, "at_edge": int(region.edge)}
            size = field.pixel_size
            row["area_nm2"] = None if size is None else region.area * size**2
            row["diameter_nm"] = None if size is None else region.diameter * size
            row["box_diagonal_nm"] = None if size is None else region.diagonal * size
            rows.append(row)
    _write_table(path, rows)


def _summary(measured: Measured, names: Sequence[str], group: str | None) -> list[dict[str, Any]]:
    """Return one row a class of one specimen, or of all of them."""
    import numpy as np

    from matssl.metrics.regions import number

    own = [(f, found) for f, found in measured if group is None or f.group == group]
    pixels = sum(field.mask.size for field, _ in own)
    sizes = {field.pixel_size for field, _ in own}
    # Lengths of images of several scales are only comparable in nm.
    size = sizes.pop() if len(sizes) == 1 else None
    rows = []
    for kind, name in enumerate(names):
        regions = [r for _, found in own for r in found if r.kind == kind]
        whole = [region for region in regions if not region.edge]
        row: dict[str, Any] = {"specimen": group or "all", "class": name, "images": len(own)}
        row |= {"regions": len(regions), "at_edge": len(regions) - len(whole)}
        row["per_megapixel"] = number(regions) / pixels * 1e6 if pixels else None
        for what in ("area", "diameter", "box_diagonal"):
            values = [float(getattr(r, what.removeprefix("box_"))) for r in whole]
            row[f"mean_{what}_px"] = float(np.mean(values)) if values else None
            row[f"median_{what}_px"] = float(np.median(values)) if values else None
        row["pixel_size_nm"] = size
        row["per_mm2"] = row["per_megapixel"] / size**2 * 1e6 if size and pixels else None
        mean = row["mean_diameter_px"]
        row["mean_diameter_nm"] = mean * size if size and mean is not None else None
        rows.append(row)
    return rows


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from matssl.core.run_folder import atomic_path

    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else ["image"], lineterminator="\n")
        table.writeheader()
        for row in rows:
            short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            table.writerow(short)


def _draw(path: Path, measured: Measured, names: Sequence[str]) -> None:
    """Draw how large the regions of each class are."""
    from matssl.pictures.segmentation import size_plot

    sizes = {field.pixel_size for field, _ in measured}
    known = None not in sizes
    values: list[list[float]] = [[] for _ in names]
    for field, regions in measured:
        for region in regions:
            if not region.edge:
                scale = (field.pixel_size or 1.0) / 1000 if known else 1.0
                values[region.kind].append(region.diameter * scale)
    size_plot(values, names, "µm" if known else "pixels", path)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'specimen':24}{'class':20}{'regions':>9}{'per Mpx':>10}{'mean diameter':>15}")
    for row in rows:
        if not row["regions"]:
            continue
        if row["mean_diameter_nm"] is not None:
            size = f"{row['mean_diameter_nm'] / 1000:.4g} µm"
        elif row["mean_diameter_px"] is not None:
            size = f"{row['mean_diameter_px']:.1f} px"
        else:
            size = "all at edge"
        specimen, kind = str(row["specimen"])[:23], str(row["class"])[:19]
        numbers = f"{row['regions']:9d}{row['per_megapixel']:10.4g}"
        print(f"{specimen:24}{kind:20}{numbers}{size:>15}")


if __name__ == "__main__":
    sys.exit(guard(main))
