"""Do masks come back from annotation files to the pixel? python -m benchmarks.round_trip

Random masks with holes, islands in holes, touching classes, parts of one pixel, ignored pixels and
all of it at the borders are written in every format and read again; pixels that differ are counted.
Goes on where it stopped: OUTPUT_DIR/round_trip.csv, a line a format and a part of the masks;
table.md is written from it.

  python -m benchmarks.round_trip --programs

counts, on the same masks, what the rasterisers of other programs make of our polygons: Pillow's
(LabelMe), pycocotools' (COCO), OpenCV's (converters of CVAT and Label Studio) and scikit-image's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.campaign import append, rows
from matssl.core.errors import guard
from matssl.core.labels import IGNORE
from matssl.data.annotations import FORMATS, Choices, Marked, module_of
from matssl.data.annotations.drawing import Points, is_ignored, stem_of
from matssl.data.annotations.outlines import polygons
from matssl.data.annotations.raster import paint

Mask = NDArray[np.uint8]
# Masks of a folder: one set of files, as a user has it.
PART = 50
NAMES = {1: "Ferrit-Körner", 2: "carbide/M23C6-2", 3: "炭化物", 4: "pore"}
# Formats in which what nothing covers is not labelled: every class is drawn.
SCRIBBLES = frozenset(("ilastik",))


def random_mask(seed: int) -> Mask:
    """Return class numbers 0 to 4 and 255, uint8, sides of 12 to 80 pixels."""
    rng = np.random.default_rng([7, seed])
    height, width = rng.integers(12, 81, 2)
    step = int(rng.integers(2, 12))
    coarse = rng.integers(0, 5, (height // step + 1, width // step + 1))
    mask = np.kron(coarse, np.ones((step, step), int))[:height, :width].astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    # Ragged rings: round holes, with islands of another class in them.
    for _ in range(int(rng.integers(1, 8))):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, 25)
        way = np.hypot(y - cy, x - cx) * (1 + 0.15 * np.sin(5 * np.arctan2(y - cy, x - cx)))
        mask[way < r] = rng.integers(0, 5)
        mask[way < 0.6 * r] = rng.integers(0, 5)
        mask[way < 0.3 * r] = rng.integers(0, 5)
    alone = rng.random(mask.shape) < rng.choice([0, 0.002, 0.02, 0.2])
    mask[alone] = rng.integers(0, 5, int(alone.sum()))
    mask[rng.random(mask.shape) < rng.choice([0, 0.01])] = IGNORE
    return mask


def written() -> list[str]:
    """Return the formats that can be written."""
    return [name for name in FORMATS if hasattr(module_of(name), "write")]


def one_part(name: str, seeds: Sequence[int]) -> dict[str, object]:
    """Return how many pixels of some masks differ after writing and reading."""
    module: Any = module_of(name)
    names = {0: "matrix", **NAMES} if name in SCRIBBLES else NAMES
    masks = {f"mask {seed:03d}.png": random_mask(seed) for seed in seeds}
    values = {label: number for number, label in names.items()}
    with tempfile.TemporaryDirectory() as folder:
        module.write(Path(folder), [Marked(n, m) for n, m in masks.items()], names)
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        found = module.read(Path(folder), Choices())
    drawings = {stem_of(n): d for d in found.drawings for n in (d.picture, *d.also)}
    bare = IGNORE if found.uncovered == "ignore" else 0
    wrong = pixels = pictures = overlaps = 0
    for picture, mask in masks.items():
        drawing = drawings.get(stem_of(picture))
        painted = np.full(mask.shape, bare, np.uint8)
        if drawing is not None:
            own = {
                s.label: IGNORE if is_ignored(s.label) else values[s.label] for s in drawing.shapes
            }
            made = paint(drawing, mask.shape, own, None, bare)
            painted = made.mask
            overlaps += 0 if drawing.ordered else sum(made.overlaps.values())
        different = int((painted != mask).sum())
        wrong, pixels = wrong + different, pixels + mask.size
        pictures += different > 0
    return {
        "masks": len(masks),
        "pixels": pixels,
        "changed": wrong,
        "pictures": pictures,
        "overlapping": overlaps,
        "bytes": size,
    }


# --- rasterisers of other programs ---------------------------------------------------------------
def _pillow(rings: Sequence[Points], size: tuple[int, int]) -> NDArray[np.bool_]:
    from PIL import Image, ImageDraw

    found = np.zeros(size, bool)
    for ring in rings:
        image = Image.new("L", size[::-1], 0)
        ImageDraw.Draw(image).polygon([tuple(p) for p in ring.tolist()], outline=1, fill=1)
        found ^= np.asarray(image) > 0
    return found


def _opencv(rings: Sequence[Points], size: tuple[int, int]) -> NDArray[np.bool_]:
    import cv2

    image = np.zeros(size, np.uint8)
    cv2.fillPoly(image, [np.rint(ring).astype(np.int32) for ring in rings], 1)
    return image > 0


def _pycocotools(rings: Sequence[Points], size: tuple[int, int]) -> NDArray[np.bool_]:
    from pycocotools import mask as coco

    found = np.zeros(size, bool)
    for ring in rings:
        found ^= coco.decode(coco.frPyObjects([ring.ravel().tolist()], *size))[..., 0] > 0
    return found


def _skimage(rings: Sequence[Points], size: tuple[int, int]) -> NDArray[np.bool_]:
    from skimage.draw import polygon2mask

    found = np.zeros(size, bool)
    for ring in rings:
        # It counts from the centre of the first pixel, rows first.
        found ^= polygon2mask(size, ring[:, ::-1] - 0.5)
    return found


PROGRAMS: dict[str, Callable[[Sequence[Points], tuple[int, int]], NDArray[np.bool_]]] = {
    "Pillow, outline drawn (LabelMe)": _pillow,
    "cv2.fillPoly": _opencv,
    "pycocotools": _pycocotools,
    "skimage.draw.polygon2mask": _skimage,
}


def programs(masks: int) -> list[str]:
    """Return, as lines of a table, what other rasterisers make of the polygons of some masks."""
    lines = ["| rasteriser | pixels of polygons | changed | % |", "| --- | --- | --- | --- |"]
    for name, fill in PROGRAMS.items():
        drawn = wrong = 0
        for seed in range(masks):
            mask = random_mask(seed)
            for number in NAMES:
                pixels = mask == number
                for rings in polygons(pixels):
                    whole = np.zeros(mask.shape, bool)
                    low = np.min(rings[0], axis=0).astype(int)
                    high = np.max(rings[0], axis=0).astype(int)
                    place = np.s_[low[1] : high[1] + 1, low[0] : high[0] + 1]
                    size = (int(high[1] - low[1]) + 1, int(high[0] - low[0]) + 1)
                    moved = [ring - low for ring in rings]
                    right = _filled(moved, size)
                    own = fill(moved, size)[: whole[place].shape[0], : whole[place].shape[1]]
                    right = right[: own.shape[0], : own.shape[1]]
                    drawn, wrong = drawn + int(right.sum()), wrong + int((own != right).sum())
        lines.append(f"| {name} | {drawn:,} | {wrong:,} | {100 * wrong / drawn:.3g} |")
    return lines


def _filled(rings: Sequence[Points], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill rings in whole numbers by counting, in each row, the upright edges to the left."""
    crossed = np.zeros((size[0], size[1] + 1), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if x0 == x1:
                crossed[int(min(y0, y1)) : int(max(y0, y1)), int(x0)] += 1
    return np.asarray(np.cumsum(crossed, axis=1)[:, : size[1]] % 2 == 1)


def table(found: Sequence[dict[str, str]]) -> str:
    """Return the table of all formats."""
    lines = ["| format | masks | pixels | changed | masks with a changed pixel | MB |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["format"] for row in found):
        own = [row for row in found if row["format"] == name]
        masks, pixels, changed, pictures, size = (
            sum(int(row[key]) for row in own)
            for key in ("masks", "pixels", "changed", "pictures", "bytes")
        )
        lines.append(
            f"| {name} | {masks} | {pixels:,} | {changed:,} | {pictures} | {size / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round_trip")
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--output_dir", default="experiments/round_trip")
    parser.add_argument("--programs", action="store_true")
    args = parser.parse_args(argv)
    out = Path(args.output_dir)
    if args.programs:
        print("\n".join(programs(args.masks)))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    file = out / "round_trip.csv"
    done = {(row["format"], int(row["first"])) for row in rows(file)}
    for name in written():
        for first in range(0, args.masks, PART):
            if (name, first) in done:
                continue
            found = one_part(name, range(first, min(args.masks, first + PART)))
            append(file, {"format": name, "first": first, **found})
    (out / "table.md").write_text(table(rows(file)))
    print(table(rows(file)))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
