"""Objects: speed beside scikit-image, memory, discs of known size, coverage of the intervals.

python -m benchmarks.objects speed|memory|discs|coverage
"""

from __future__ import annotations

import argparse
import math
import re
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.measure import intervals
from matssl.measure.field import Field, Masked, areas
from matssl.measure.objects import sizes
from matssl.measure.objects.found import Rules, find

# What both have: of regionprops_table the outline is perimeter_crofton, Feret and hull its own.
COMMON = (
    *("label", "centroid", "area", "bbox", "perimeter_crofton", "feret_diameter_max", "solidity"),
    *("axis_major_length", "axis_minor_length", "orientation", "euler_number", "mean_intensity"),
    "equivalent_diameter_area",
)


# Specimens and fields of each, for the coverage of intervals.
SAMPLES = [(1, 5), (1, 10), (1, 30), (5, 1), (5, 4), (8, 4)]


def _masked(mask: NDArray[np.uint8], grey: NDArray[np.uint8] | None = None) -> Masked:
    field = Field(Path("a.png"), "a", "a", areas(mask, 2))
    return Masked(field, mask, picture=None if grey is None else lambda: grey)


def _many(seed: int, height: int, width: int, number: int) -> NDArray[np.uint8]:
    """Return ellipses that do not touch, on a jittered lattice."""
    import cv2

    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    pitch = math.sqrt(height * width / number)
    for y in np.arange(pitch / 2, height, pitch):
        for x in np.arange(pitch / 2, width, pitch):
            axes = generator.uniform(0.15, 0.4, 2) * pitch
            place = (np.array([x, y]) + generator.uniform(-0.08, 0.08, 2) * pitch).astype(int)
            box = (place.tolist(), (2 * axes).tolist(), float(generator.uniform(0, 180)))
            cv2.ellipse(mask, box, 1, -1)
    return mask


def speed(repeats: int = 3) -> None:
    from skimage.measure import label, regionprops_table

    mask = _many(0, 1500, 2000, 5000)
    grey = np.random.default_rng(1).integers(0, 256, mask.shape, np.uint8)
    ours, theirs = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        found = next(find(_masked(mask, grey), (1,), 2, Rules()))[0]
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        regionprops_table(label(mask, connectivity=2), grey, properties=COMMON)
        theirs.append(time.perf_counter() - start)
    own, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"{mask.size / 1e6:.1f} Mpx, {found.count} objects, medians of {repeats}: all columns "
        f"{own:.2f} s, regionprops_table (label and the columns both have) {other:.2f} s, "
        f"ratio {own / other:.2f}"
    )


def memory(fields: int = 100) -> None:
    """Feed fields to the measurement as the command does; print the memory that stays with each."""
    import tempfile

    from matssl.stages.measure.objects import Objects
    from matssl.stages.measure.settings import MeasureSettings

    with tempfile.TemporaryDirectory() as folder:
        kind = Objects(MeasureSettings(input="x"), ("matrix", "particle"), ())
        for number in range(fields):
            mask = _many(number, 1500, 2000, 5000)
            field = Field(Path(f"{number}.png"), str(number), "a", areas(mask, 2))
            kind.add(Masked(field, mask), Path(folder))
            if number in (0, 9, 24, 49, 74, 99):
                # What cannot be dropped; pages of the file that the numbers lie in can.
                status = Path("/proc/self/status").read_text(encoding="utf-8")
                kept = int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(
                    f"after {number + 1:3d} fields: {kept:.0f} MiB anonymous, peak of all "
                    f"{peak:.0f} MiB",
                    flush=True,
                )


def discs(fields: int = 20) -> None:
    """Discs of r 3 to 25 px, gaps of 1 px and more, cut by the edges of their fields."""
    found_all, true_all, errors, plain, weighted, truth = 0, 0, [], [], [], []
    for seed in range(fields):
        generator = np.random.default_rng(seed)
        side, margin = 600, 60
        placed: list[tuple[float, float, float]] = []
        radii = np.sort(generator.uniform(3, 25, 300))[::-1]
        for r in radii:
            for _ in range(400):
                x, y = generator.uniform(-margin, side + margin, 2)
                if all(math.hypot(x - a, y - b) > r + c + 1 for a, b, c in placed):
                    placed.append((x, y, r))
                    break
        rows, columns = np.mgrid[:side, :side] + 0.5
        mask = np.zeros((side, side), np.uint8)
        for x, y, r in placed:
            mask |= (np.hypot(columns - x, rows - y) <= r).astype(np.uint8)
        one = next(find(_masked(mask), (1,), 2, Rules(separate=True)))[0]
        visible = [
            (x, y, r) for x, y, r in placed if ((np.hypot(columns - x, rows - y) <= r).any())
        ]
        true_all, found_all = true_all + len(visible), found_all + one.count
        for x, y, r in visible:
            if not (r < x < side - r and r < y < side - r):
                continue
            near = int(np.hypot(one.shapes.x - x, one.shapes.y - y).argmin())
            errors.append(abs(float(one.shapes.diameter[near]) - 2 * r))
        inside = one.edges.weight > 0
        plain.append(one.shapes.diameter[inside])
        weighted.append(one.edges.weight[inside])
        # Of the population: each disc belongs to the field that holds its centre.
        truth += [2 * r for x, y, r in placed if 0 <= x < side and 0 <= y < side]
    diameter, weight = np.concatenate(plain), np.concatenate(weighted)
    print(
        f"{fields} fields of 600 x 600, {true_all} discs of r 3 to 25 px: {found_all} found "
        f"({100 * found_all / true_all:.2f} %); diameters of inside ones within 0.5 px: "
        f"{sum(own <= 0.5 for own in errors)} of {len(errors)}, worst {max(errors):.2f} px; mean "
        f"diameter true {np.mean(truth):.3f}, plain {diameter.mean():.3f} "
        f"({100 * (diameter.mean() / np.mean(truth) - 1):+.2f} %), Miles-Lantuejoul "
        f"{np.average(diameter, weights=weight):.3f} "
        f"({100 * (np.average(diameter, weights=weight) / np.mean(truth) - 1):+.2f} %)"
    )


def coverage(worlds: int = 1000) -> None:
    """Lognormal sizes; specimens differ in their mean, fields within a specimen, too."""
    print("specimens fields | covered (%): mean, D10, D50, D90, N_A | median width of the mean (%)")
    for specimens, fields in SAMPLES:
        hits, widths = np.zeros(5), []
        for world in range(worlds):
            generator = np.random.default_rng([specimens, fields, world])
            diameters, counts = [], []
            for _ in range(specimens):
                shift = generator.normal(0, 0.10) if specimens > 1 else 0.0
                for _ in range(fields):
                    rate = 60 * math.exp(generator.normal(0, 0.2))
                    number = int(generator.poisson(rate))
                    own = shift + generator.normal(0, 0.05)
                    diameters.append(np.exp(generator.normal(3 + own, 0.4, number)))
                    counts.append(number)
            ones = [np.ones_like(own) for own in diameters]
            of = sizes.Resampled(diameters, ones, counts, counts, [1.0] * len(counts))
            ends = intervals.redrawn([fields] * specimens, of, 200, world)
            assert ends is not None
            # Of the mixture of all fields: spreads add.
            spread = math.sqrt(0.4**2 + 0.05**2 + (0.10**2 if specimens > 1 else 0))
            z = 1.2815516
            true = (
                *(math.exp(3 + spread**2 / 2), math.exp(3 - z * spread), math.exp(3)),
                *(math.exp(3 + z * spread), 60 * math.exp(0.2**2 / 2)),
            )
            places = (2, 4, 5, 6, 0)
            hits += [ends[0, p] <= t <= ends[1, p] for p, t in zip(places, true, strict=True)]
            widths.append(100 * (ends[1, 2] - ends[0, 2]) / true[0])
        told = ", ".join(f"{100 * hit / worlds:.1f}" for hit in hits)
        print(f"{specimens:9d} {fields:6d} | {told} | {np.median(widths):.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "memory", "discs", "coverage"))
    parser.add_argument("--n", type=int, help="repeats, fields or worlds")
    args = parser.parse_args()
    run = {"speed": speed, "memory": memory, "discs": discs, "coverage": coverage}[args.what]
    run(args.n) if args.n else run()


if __name__ == "__main__":
    main()
