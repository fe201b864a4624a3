"""Make pictures smaller: ``python -m matssl.tools.downscale --in_dir A --out_dir B ...``.

Micrographs are averaged (antialiased), 16 bits stay 16 bits; masks keep their values: each pixel
gets the value that covers most of it. Which pictures are masks is told by their folders and names,
and by what they hold. Pixel
sizes become larger as the pictures become smaller: they are written to TIFF files and to
downscale.csv. Folders below A come again in B; a picture that would not become smaller is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matssl.core import paths
from matssl.core.errors import UserError, guard
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import ToolSettings

if TYPE_CHECKING:
    from matssl.core.arrays import Array

MOST_SIDE = 65_500
# Pixel sizes along both axes that differ by less are those of square pixels.
SQUARE = 0.002
SHOWN = 3
# Values of a mask that are weighed against each other. Where the micrograph shows through, each of
# its grey levels would stand alone against a class, which would win.
VALUES = 32
NM_PER_UM, NM_PER_CM = 1e3, 1e7
TIFF, LOSSY = (".tif", ".tiff"), (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, repr=False, eq=False)
class DownscaleSettings(ToolSettings):
    """Flags of the command."""

    in_dir: str = flag("", "data", "folder of the pictures", required=True, leads=paths.folder)
    out_dir: str = flag("", "data", "folder to be made for the smaller ones", required=True)
    resize_shape: tuple[int, ...] = flag(
        (), "data", "rows and columns of the smaller pictures", required=True, low=1, high=MOST_SIDE
    )
    masks: str = flag(
        "auto",
        "data",
        "which pictures are masks: told by what they hold (auto), all, or none",
        choices=("auto", "all", "none"),
        first=True,
    )


SETTINGS = DownscaleSettings


def problems(args: DownscaleSettings) -> list[Problem]:
    """Return what is wrong with the two numbers."""
    if args.resize_shape and len(args.resize_shape) != 2:
        told = f"--resize_shape takes two numbers, rows and columns, not {len(args.resize_shape)}"
        return [Problem(told, ("resize_shape",))]
    return []


def main(argv: Sequence[str]) -> int:
    """Write the smaller pictures; returns 0."""
    args = parse_one(
        SETTINGS,
        argv,
        __doc__ or "",
        problems=problems,
        prog="python -m matssl.tools.downscale",
        here=True,
    )
    from matssl.core.run_folder import atomic_write_text
    from matssl.core.tables import csv_text
    from matssl.data import readers

    source, target = Path(args.in_dir), Path(args.out_dir)
    height, width = args.resize_shape
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; give another --out_dir")
    files = readers.find_images(source)
    _check(files, height, width)
    known = _known_masks(source, files) if args.masks == "auto" else set()
    rows = [
        _one(path, source, target, (height, width), "all" if path in known else args.masks)
        for path in files
    ]
    atomic_write_text(target / "downscale.csv", csv_text(rows))
    masks = sum(row["kind"] == "mask" for row in rows)
    print(
        f"{counted(len(rows) - masks, 'micrograph')} and {counted(masks, 'mask')} of {height} x "
        f"{width} pixels (rows x columns) in {target}"
    )
    if any(row["pixels"] == "not square" for row in rows):
        print("note    rows and columns shrink by different factors: pixels are not square there")
    return 0


def _known_masks(source: Path, files: Sequence[Path]) -> set[Path]:
    """Return which pictures are masks by their folders and names, as every command takes them."""
    from matssl.data import layouts
    from matssl.data.layouts import survey

    images, left_out = layouts.unlabelled(source)
    masks = [one.path for one in left_out if one.why in (survey.MASK, survey.MASKS_ELSEWHERE)]
    micrographs = set(images)
    return {
        path
        for path in files
        if path not in micrographs and any(m == path or m in path.parents for m in masks)
    }


def _check(files: Sequence[Path], height: int, width: int) -> None:
    """Refuse pictures that would not become smaller, all at once.

    Raises:
        UserError: there are some.
    """
    from matssl.data import readers

    wrong = []
    for path in files:
        size = readers.read(path).pixels.shape[:2]
        if height > size[0] or width > size[1] or (height, width) == size:
            wrong.append(f"{path.name} has {size[0]} x {size[1]}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"--resize_shape {height} {width} (rows, columns) makes "
            f"{counted(len(wrong), 'picture')} no smaller: {', '.join(wrong[:SHOWN])}{more}"
        )


def _one(
    path: Path, source: Path, target: Path, shape: tuple[int, int], masks: str
) -> dict[str, object]:
    """Write one picture smaller and return its row of the table."""
    from matssl.data import readers
    from matssl.data.layouts import content

    picture = readers.read(path, color="rgb")
    raw = None
    if masks != "none":
        try:
            raw = readers.read_mask(path)
        except UserError:
            if masks == "all":
                raise
    if raw is not None and masks == "auto" and content.of_pixels(raw) is content.Holds.MANY:
        raw = None
    place = target / path.relative_to(source) if path != source else target / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    before = picture.pixels.shape[:2] if raw is None else raw.shape[:2]
    steps = (before[0] / shape[0], before[1] / shape[1])
    square = abs(steps[0] / steps[1] - 1) < SQUARE
    size = picture.pixel_size
    if raw is not None:
        if place.suffix.lower() in LOSSY:
            place = place.with_suffix(".png")
        _write(place, labelwise(raw, shape), None, getattr(raw, "palette", None))
    else:
        sizes = None if size is None else (size * steps[0], size * steps[1])
        _write(place, averaged(picture.pixels, shape), sizes)
    row: dict[str, object] = {"file": str(place.relative_to(target))}
    row |= {"kind": "micrograph" if raw is None else "mask"}
    row |= {"rows before": before[0], "columns before": before[1]}
    row |= {"rows": shape[0], "columns": shape[1]}
    row["pixel_size_nm before"] = size
    row["pixel_size_nm"] = None if size is None or not square else size * steps[0]
    return row | {"pixels": "square" if square else "not square"}


def averaged(picture: Array, shape: tuple[int, int]) -> Array:
    """Return a picture of (H, W) pixels, each the mean of what it covers, in the same type.

    Args:
        picture: (H, W) or (H, W, C).
        shape: rows and columns, no more than before.
    """
    import cv2
    import numpy as np

    wide = picture.astype(np.float64) if picture.dtype.itemsize > 2 else picture.astype(np.float32)
    found = cv2.resize(wide, shape[::-1], interpolation=cv2.INTER_AREA)
    return (
        found.astype(picture.dtype)
        if picture.dtype.kind == "f"
        else np.rint(found).astype(picture.dtype)
    )


def labelwise(mask: Array, shape: tuple[int, int]) -> Array:
    """Return a mask of (H, W) pixels, each with the value that covers most of it.

    No value comes that was not there; of two that cover as much that of the nearest pixel. A mask
    of more than VALUES (drawn over the micrograph, which shows through) gets those of the nearest
    pixels.

    Args:
        mask: (H, W) numbers or (H, W, C) colours.
        shape: rows and columns, no more than before.
    """
    import cv2
    import numpy as np

    flat = np.asarray(mask).reshape(len(mask), mask.shape[1], -1)
    values, own = np.unique(flat.reshape(-1, flat.shape[2]), axis=0, return_inverse=True)
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(shape, mask.shape[:2], strict=True)
    )
    if len(values) > VALUES:
        return np.asarray(mask)[np.ix_(rows, columns)]
    numbers = own.reshape(mask.shape[:2])
    nearest = numbers[np.ix_(rows, columns)]
    best, of_nearest = np.full(shape, -1.0, np.float32), np.zeros(shape, np.float32)
    found = np.zeros(shape, np.int64)
    for number in range(len(values)):
        inside = (numbers == number).astype(np.float32)
        share = cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_AREA)
        more, here = share > best, nearest == number
        best[more], found[more] = share[more], number
        of_nearest[here] = share[here]
    # Between equals the nearest pixel decides: a lower number would gain area.
    equal = of_nearest >= best - 1e-5
    found[equal] = nearest[equal]
    result = values[found]
    return result[..., 0] if mask.ndim == 2 else result


def _write(
    place: Path, pixels: Array, sizes: tuple[float, float] | None, palette: Array | None = None
) -> None:
    """Write a picture in the format that its name says; a TIFF file holds its pixel size."""
    import io

    import cv2
    import numpy as np

    from matssl.core.run_folder import atomic_write_bytes

    if place.suffix.lower() in TIFF:
        import tifffile

        data = io.BytesIO()
        more: dict[str, object] = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack"}
        if palette is not None and pixels.dtype == np.uint8:
            colours = np.zeros((3, 256), np.uint16)
            colours[:, : len(palette)] = palette.T.astype(np.uint16) * 257
            more = {"photometric": "palette", "colormap": colours}
        plain = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16, np.float32)
        if plain and sizes is not None and abs(sizes[0] / sizes[1] - 1) < SQUARE:
            # As ImageJ writes it: pixels per micrometre.
            per = NM_PER_UM / sizes[0]
            more |= {"resolution": (per, per), "imagej": True, "metadata": {"unit": "um"}}
        tifffile.imwrite(data, pixels, compression=None, **more)
        atomic_write_bytes(place, data.getvalue())
        return
    if palette is not None and pixels.ndim == 2:
        from PIL import Image

        data = io.BytesIO()
        shown = Image.fromarray(pixels.astype(np.uint8), mode="P")
        shown.putpalette(np.asarray(palette, np.uint8).tobytes())
        shown.save(data, "PNG")
        atomic_write_bytes(place.with_suffix(".png"), data.getvalue())
        return
    order = pixels
    if pixels.ndim == 3:
        channels = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
        order = pixels[..., channels]
    done, encoded = cv2.imencode(place.suffix, np.ascontiguousarray(order))
    if not done:
        raise UserError(f"{place.name} cannot be written as {place.suffix}; give PNG or TIFF files")
    atomic_write_bytes(place, encoded.tobytes())


if __name__ == "__main__":
    sys.exit(guard(main))
