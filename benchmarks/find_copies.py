"""Which copies of real micrographs are found in a pool, and what is taken for one; resumable.

    python -m benchmarks.find_copies --data DATA --out OUT.json     # some minutes on one core
    python -m benchmarks.find_copies --data DATA --out OUT.json --table

Of each set up to 25 pictures are looked for. Each is changed in one way and looked up among all
pictures of the set, as a pool is among the test images. A hit is the picture itself; whatever else
is named is false. At the end the unlabelled pool is looked up among all labelled pictures, and
these among each other. What is in OUT.json is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from matssl.core.arrays import Array
from matssl.core.run_folder import atomic_write_bytes
from matssl.data import copies, layouts, readers

SETS = ("uhcs", "nasa/EBC1", "nasa/Super1", "tem/bubble_512", "tem/gb_512")
PICTURES = 25


def crop(picture: Array, share: float, seed: int) -> Array:
    """Return a rectangle of this share of the area, somewhere."""
    height, width = picture.shape
    rows, columns = int(height * share**0.5), int(width * share**0.5)
    draw = np.random.default_rng(seed)
    top, left = draw.integers(0, height - rows + 1), draw.integers(0, width - columns + 1)
    return picture[top : top + rows, left : left + columns]


def turned(picture: Array, degrees: float) -> Array:
    """Return a picture turned about its middle, black where there is nothing."""
    height, width = picture.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_CUBIC)


def with_bar(picture: Array) -> Array:
    """Return a picture with an information bar over its lowest twelfth and a scale bar above."""
    result = picture.copy()
    height, width = result.shape
    rows = height // 12
    result[-rows:] = 255
    size = rows / 50
    cv2.putText(result, "20kV x500 100um", (5, height - rows // 3), 0, size, 0)
    result[height - rows - 30 : height - rows - 22, width // 2 : width // 2 + width // 5] = 255
    return result


def scaled(picture: Array, factor: float) -> Array:
    """Return a picture at another size."""
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=kind)


def compressed(picture: Array, quality: int) -> Array:
    """Return a picture after JPEG."""
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def even_contrast(picture: Array) -> Array:
    """Return a picture after CLAHE, clip limit 4 and 8 x 8 parts."""
    return cv2.createCLAHE(4.0, (8, 8)).apply(np.ascontiguousarray(picture))


CHANGES: dict[str, Callable[[Array, int], Array]] = {
    "same pixels": lambda p, i: p,
    "97 % (one side cut)": lambda p, i: p[:, : int(0.97 * p.shape[1])],
    "crop, 50 % of the area": lambda p, i: crop(p, 0.5, i),
    "crop, 25 % of the area": lambda p, i: crop(p, 0.25, i),
    "turned 5 degrees": lambda p, i: turned(p, 5),
    "turned 37 degrees": lambda p, i: turned(p, 37),
    "turned 90 degrees": lambda p, i: np.rot90(p),
    "mirrored": lambda p, i: p[:, ::-1],
    "CLAHE": lambda p, i: even_contrast(p),
    "information and scale bar drawn": lambda p, i: with_bar(p),
    "inverted": lambda p, i: 255 - p,
    "size x 0.5": lambda p, i: scaled(p, 0.5),
    "size x 0.7": lambda p, i: scaled(p, 0.7),
    "size x 1.5": lambda p, i: scaled(p, 1.5),
    "size x 2": lambda p, i: scaled(p, 2),
    "JPEG, quality 30": lambda p, i: compressed(p, 30),
    "crop 40 %, turned 5 degrees": lambda p, i: turned(crop(p, 0.4, i), 5),
    "crop 50 %, inverted, mirrored": lambda p, i: 255 - crop(p, 0.5, i)[:, ::-1],
    "crop 25 %, JPEG 50": lambda p, i: compressed(crop(p, 0.25, i), 50),
    "crop 25 %, size x 2": lambda p, i: scaled(crop(p, 0.25, i), 2),
    "crop 25 %, size x 0.5": lambda p, i: scaled(crop(p, 0.25, i), 0.5),
}


def bytes_of(path: Path) -> Array:
    """Return a picture in 256 grey levels."""
    pixels = readers.read(path).pixels.astype(np.float32)
    low, high = pixels.min(), pixels.max()
    return ((pixels - low) * (255 / max(high - low, 1))).astype(np.uint8)


def of_set(folder: Path, name: str, done: dict[str, Any], save: Callable[[], None]) -> None:
    """Look for the changed pictures of one set."""
    paths = layouts.unlabelled(folder / name)[0]
    todo = [change for change in CHANGES if f"{name}|{change}" not in done]
    if not todo:
        return
    pictures = [bytes_of(path) for path in paths]
    finder = copies.Finder([copies.sketch(picture) for picture in pictures])
    for change in todo:
        hits = false = 0
        start = time.process_time()
        for number, picture in enumerate(pictures[:PICTURES]):
            changed = np.ascontiguousarray(CHANGES[change](picture, number))
            found = {copy.second for copy in finder.look(copies.sketch(changed))}
            hits += number in found
            false += len(found - {number})
        took = time.process_time() - start
        tried = min(PICTURES, len(pictures))
        done[f"{name}|{change}"] = {"hits": hits, "tried": tried, "false": false, "seconds": took}
        print(name, change, done[f"{name}|{change}"], flush=True)
        save()


def among_real(folder: Path, done: dict[str, Any], save: Callable[[], None]) -> None:
    """Look for the unlabelled pictures among the labelled ones, and for these among themselves."""
    if "real" in done:
        return
    labelled = [p for s in ("uhcs", "nasa", "tem") for p in layouts.unlabelled(folder / s)[0]]
    pool = layouts.unlabelled(folder / "ssl_pool")[0]
    sketches = [copies.sketch(readers.read(path).pixels) for path in labelled]
    start = time.process_time()
    finder = copies.Finder(sketches)
    index = time.process_time() - start
    start = time.process_time()
    in_pool = sum(len(finder.look(copies.sketch(readers.read(p).pixels))) for p in pool)
    took = time.process_time() - start
    same = right = false = 0
    for number, picture in enumerate(sketches):
        # The sets of NASA share pictures, under the same names.
        own = labelled[number].name
        twins = {i for i, p in enumerate(labelled) if p.name == own and "nasa" in p.parts}
        found = {copy.second for copy in finder.look(picture)} - {number}
        same += len(twins - {number})
        right += len(found & twins)
        false += len(found - twins)
    done["real"] = {
        "pool": len(pool),
        "labelled": len(labelled),
        "pool_hits": in_pool,
        "seconds_index": index,
        "seconds_pool_with_reading": took,
        "shared": same,
        "shared_found": right,
        "false": false,
    }
    print("real", done["real"], flush=True)
    save()


def table(done: dict[str, Any]) -> str:
    """Return the results as markdown."""
    lines = [f"| change | {' | '.join(SETS)} | false |", "| --- |" + " ---: |" * (len(SETS) + 1)]
    for change in CHANGES:
        rows = [done.get(f"{name}|{change}") for name in SETS]
        cells = ["" if row is None else f"{row['hits']}/{row['tried']}" for row in rows]
        false = sum(row["false"] for row in rows if row is not None)
        lines.append(f"| {change} | {' | '.join(cells)} | {false} |")
    if "real" in done:
        real = done["real"]
        lines += [
            "",
            f"{real['pool']} pictures of the pool among {real['labelled']} labelled ones: "
            f"{real['pool_hits']} named (none is there); of {real['shared']} pairs of one picture "
            f"in two sets {real['shared_found']} found, {real['false']} others named; "
            f"{100 * real['seconds_pool_with_reading'] / real['pool']:.1f} s of CPU for 100 "
            f"pictures with reading, {100 * real['seconds_index'] / real['labelled']:.1f} s for "
            "100 labelled ones beforehand.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}

    def save() -> None:
        atomic_write_bytes(args.out, json.dumps(done, indent=1).encode())

    if not args.table:
        for name in SETS:
            of_set(args.data, name, done, save)
        among_real(args.data, done, save)
    print(table(done))


if __name__ == "__main__":
    main()
