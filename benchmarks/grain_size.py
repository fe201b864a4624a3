"""How far grain size numbers lie off the exact ones of synthetic polycrystals.

``python -m benchmarks.grain_size exact`` draws boundaries of 1 to 3 px on polycrystals whose every
number follows from geometry, and holds each method to its own truth. ``... train`` learns the
boundaries from two labelled pictures and measures ten others, beside Otsu's threshold with a
watershed. Both go on where they stopped, and print a table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.polycrystals import Polycrystal, grain_count, polycrystal
from matssl.core import rng
from matssl.data import synthetic
from matssl.measure.grains import circles, intercept, network, planimetric, sizing, standards
from matssl.measure.grains.network import SMALLEST, Network

ROOT = Path(__file__).resolve().parent.parent
# Fields of the exact part, and how large their grains are (square root of the mean area).
HEIGHT, WIDTH, SIDES = 900, 1100, (45.0, 75.0)
WANTED, WANTED_TRAINED = 0.02, 0.15
# Pictures of the training part.
SIZE, SIDE, LABELLED, MEASURED = 512, 42.0, 2, 10
STEPS = 500


def _g_length(ratio: float) -> float:
    """Return the difference of G that a ratio of hits per length makes."""
    return standards.PER_DECADE_OF_LENGTH * math.log10(ratio)


def _g_area(ratio: float) -> float:
    return standards.PER_DECADE * math.log10(ratio)


def _networks(drawn: NDArray[np.bool_], close_gaps: int = 5) -> Network:
    counted = np.ones(drawn.shape, bool)
    return network.from_boundaries(drawn.astype(np.uint8), drawn, counted, close_gaps)


def _without_fragments(crystal: Polycrystal) -> NDArray[np.int32]:
    """Return the labels without cells of which the field holds fewer pixels than a grain has."""
    small = np.bincount(crystal.labels.ravel()) < SMALLEST
    return network.from_labels(
        np.where(small[crystal.labels], 0, crystal.labels), crystal.labels > 0
    ).labels


def errors(crystal: Polycrystal, drawn: NDArray[np.bool_]) -> dict[str, float]:
    """Return G found minus G of the exact truth, by method.

    Args:
        crystal: the field.
        drawn: its boundaries.
    """
    size = sizing.measured(_networks(drawn))
    height, width = drawn.shape
    four = float(np.mean([crystal.hits_per_length(degrees) for degrees in intercept.HEYN]))
    eight = float(np.mean([size.lines[degrees].per_length for degrees in intercept.ROSE]))
    found = {
        "planimetric, rectangle": _g_area(size.rectangle.grains / grain_count(crystal.labels)),
        "the same, cells below 5 px no grains": _g_area(
            size.rectangle.grains / grain_count(_without_fragments(crystal))
        ),
        "planimetric, Jeffries' circle": _g_area(
            size.jeffries.grains / planimetric.circle(crystal.labels).grains
        ),
        "Heyn, four directions": _g_length(size.hits_per_length / four),
        "Heyn, 0° alone": _g_length(size.lines[0.0].per_length / crystal.hits_per_length(0)),
        "eight directions against 2 L_A/π": _g_length(
            eight / (2 / math.pi * crystal.length_per_area)
        ),
    }
    patterns = (("Hilliard circle", circles.HILLIARD), ("Abrams circles", circles.ABRAMS))
    for (name, pattern), hits in zip(patterns, (size.hilliard, size.abrams), strict=True):
        placed = circles.placed(height, width, pattern)
        true = sum(crystal.circle_hits(c.column + 0.5, c.row + 0.5, c.radius) for c in placed)
        found[name] = _g_length(hits.count / true)
    return found


def exact(fields: int, out: Path) -> None:
    """Measure so many fields, each with boundaries of 1, 2 or 3 px, and print the table."""
    rows = _read(out)
    for number in range(len(rows), fields):
        generator = rng.generator(number, 0, 0, stream=rng.NOISE)
        side = float(generator.uniform(*SIDES))
        crystal = polycrystal(HEIGHT, WIDTH, side, generator)
        line = number % 3 + 1
        row: dict[str, object] = {"field": number, "side": side, "line": line}
        row["grains"] = grain_count(crystal.labels)
        row |= errors(crystal, crystal.mask(line))
        _append(out, row)
        print(f"{number + 1} of {fields}", end="\r", flush=True)
    rows = _read(out)[:fields]
    print(f"\n| method | mean | SD | largest | within {WANTED} | 1 px | 2 px | 3 px |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in list(rows[0])[4:]:
        values = np.array([float(row[name]) for row in rows])
        lines = np.array([int(row["line"]) for row in rows])
        by_line = " | ".join(f"{values[lines == w].mean():+.4f}" for w in (1, 2, 3))
        inside = 100 * float((abs(values) <= WANTED).mean())
        print(
            f"| {name} | {values.mean():+.4f} | {values.std(ddof=1):.4f} | "
            f"{abs(values).max():.4f} | {inside:.1f} % | {by_line} |"
        )


# --- training ---
def picture(crystal: Polycrystal, seed: int) -> NDArray[np.uint8]:
    """Return a micrograph of a polycrystal: grains of different grey, etched boundaries.

    The boundaries are darker than their grain, but not darker than a dark grain; as in the kind
    "polycrystal" of ``data.synthetic``, with straight edges.
    """
    generator = rng.generator(seed, 0, 1, stream=rng.NOISE)
    levels = generator.uniform(0.35, 0.8, int(crystal.labels.max()) + 1)
    angles = generator.uniform(0, np.pi, len(levels))[crystal.labels]
    y, x = np.mgrid[: crystal.labels.shape[0], : crystal.labels.shape[1]]
    etch = 0.03 * np.sin((np.cos(angles) * x + np.sin(angles) * y) * 0.9)
    specimen = levels[crystal.labels] + etch
    specimen[crystal.mask(2)] -= float(generator.uniform(0.16, 0.24))
    return synthetic.imaged(specimen, generator)


def otsu_watershed(
    image: NDArray[np.uint8], apart: int = 7, sigma: float = 2.0
) -> NDArray[np.bool_]:
    """Return the boundaries that an afternoon's script finds: Otsu's threshold, then a watershed.

    Dark is boundary; the distance from it, smoothed, floods to one grain a maximum.

    Args:
        image: the micrograph.
        apart: least distance of two maxima in pixels.
        sigma: of the smoothing of the distance.
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
    # The local mean takes grains of different grey to one level.
    flat = smooth.astype(np.float32) - cv2.GaussianBlur(smooth, (0, 0), 12)
    scaled = cv2.normalize(flat, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    _, bright = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(bright > 0), sigma)
    peaks = peak_local_max(distance, min_distance=apart, exclude_border=False)
    marks = np.zeros(image.shape, np.int32)
    marks[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    grains = watershed(-distance, marks, watershed_line=True)
    return np.asarray(grains == 0)


def train(out: Path) -> None:
    """Learn from two labelled pictures, measure ten others, print the table."""
    crystals = [
        polycrystal(SIZE, SIZE, SIDE, rng.generator(7000 + i, 0, 0, stream=rng.NOISE))
        for i in range(LABELLED + MEASURED)
    ]
    images = [picture(crystal, 9000 + i) for i, crystal in enumerate(crystals)]
    labelled, others = out / "labelled", out / "others"
    for folder in (labelled / "images", labelled / "masks", others):
        folder.mkdir(parents=True, exist_ok=True)
    (labelled / "classes.yaml").write_text("classes: {grain: 0, boundary: 1}\n", encoding="utf-8")
    for i, (crystal, image) in enumerate(zip(crystals, images, strict=True)):
        name = f"specimen{chr(65 + i)}_1.png"
        if i < LABELLED:
            cv2.imwrite(str(labelled / "images" / name), image)
            cv2.imwrite(str(labelled / "masks" / name), crystal.mask(2).astype(np.uint8))
        else:
            cv2.imwrite(str(others / name), image)
    runs = out / "runs"
    best = runs / "finetune" / "grains" / "best.ckpt"
    if not (runs / "eval" / "others" / "metrics.json").is_file():
        resume = ["--resume"] if (runs / "finetune" / "grains" / "last.ckpt").is_file() else []
        _call(
            "train_finetune.py",
            *("--finetune_dataset", str(labelled), "--steps", str(STEPS), "--name", "grains"),
            # All steps on both pictures: folds inside would train three times.
            *("--val_fraction", "0", "--threads", "1", "--checkpoint_every", "50"),
            *("--output_dir", str(runs), "--device", "cpu", *resume),
        )
        _call(
            "eval_model.py",
            *("--model_path", str(best), "--dataset", str(others), "--name", "others"),
            *("--output_dir", str(runs), "--device", "cpu"),
        )
    print("| picture | G planimetric | G intercept | Otsu + watershed | |")
    print("| --- | --- | --- | --- | --- |")
    tuned = _tuned(crystals[:LABELLED], images[:LABELLED])
    found: list[tuple[float, float, float, float]] = []
    for i in range(LABELLED, LABELLED + MEASURED):
        name = f"specimen{chr(65 + i)}_1"
        mask = _index(runs / "eval" / "others" / "masks" / "index", name)
        row = (
            *_trained(crystals[i], mask == 1),
            *_trained(crystals[i], otsu_watershed(images[i], *tuned)),
        )
        found.append(row)
        print("| " + " | ".join([name, *(f"{v:+.3f}" for v in row)]) + " |")
    size = np.abs(found)
    print("| mean size | " + " | ".join(f"{v:.3f}" for v in size.mean(axis=0)) + " |")
    print("| largest | " + " | ".join(f"{v:.3f}" for v in size.max(axis=0)) + " |")


def _tuned(
    crystals: Sequence[Polycrystal], images: Sequence[NDArray[np.uint8]]
) -> tuple[int, float]:
    """Return what does best for Otsu and watershed on the labelled pictures."""

    def off(apart: int, sigma: float) -> float:
        pairs = zip(crystals, images, strict=True)
        return sum(
            abs(g) for c, image in pairs for g in _trained(c, otsu_watershed(image, apart, sigma))
        )

    tried = [(apart, sigma) for apart in (5, 9, 13, 17) for sigma in (1.0, 2.0, 4.0)]
    return min(tried, key=lambda both: off(*both))


def _index(folder: Path, name: str) -> NDArray[np.uint8]:
    path = next(path for path in sorted(folder.iterdir()) if path.name.startswith(name))
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def _trained(crystal: Polycrystal, drawn: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the differences of planimetric and of intercept G to the truth."""
    size = sizing.measured(_networks(drawn))
    four = float(np.mean([crystal.hits_per_length(degrees) for degrees in intercept.HEYN]))
    return (
        _g_area(size.rectangle.grains / grain_count(crystal.labels)),
        _g_length(size.hits_per_length / four),
    )


def _call(script: str, *words: str) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *words], check=True, cwd=ROOT)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: dict[str, object]) -> None:
    fresh = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(row))
        if fresh:
            table.writeheader()
        table.writerow(row)


def main(argv: Sequence[str]) -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("exact", "train"))
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "grain_size")
    parser.add_argument("--fields", type=int, default=200)
    args = parser.parse_args(argv)
    if args.part == "exact":
        exact(args.fields, args.out / "exact.csv")
    else:
        train(args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
