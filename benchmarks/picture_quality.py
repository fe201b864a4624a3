"""What doctor calls blurred or noisy: python -m benchmarks.picture_quality --root DATA

The pictures of each labelled set and of each folder of the pool are measured and compared as doctor
does. Then up to three pictures of a group that do not stand out are blurred, or get noise, one at a
time: how often is each of them found? A table on the console; under a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from matssl.core.errors import guard
from matssl.data import quality, readers
from matssl.data.preprocess import Preprocess

SETS = ("uhcs/images", "nasa/EBC1", "nasa/EBC3", "nasa/Super1", "nasa/Super2")
SETS += ("tem/bubble_512/images", "tem/gb_512/images")
BLURS, NOISES, SPOILT = (1.5, 2.5), (0.3, 0.5), 3


def main(argv: Sequence[str]) -> int:
    """Measure, spoil, and print the table; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.picture_quality"
    )
    parser.add_argument("--root", required=True, help="folder of the labelled sets and ssl_pool")
    root = Path(parser.parse_args(argv).root)
    groups = {name: root / name for name in SETS}
    # labelled_train holds lists, no pictures.
    pools = (p for p in sorted((root / "ssl_pool").iterdir()) if p.is_dir())
    groups |= {f"pool/{p.name}": p for p in pools if p.name != "labelled_train"}
    record = Preprocess.chosen(channels=1, crop_bottom="auto")
    spent, pictures, found = 0.0, 0, dict.fromkeys([*BLURS, *NOISES], 0)
    spoilt = 0
    print("| set | pictures | sharpness | noise | contrast | stand out |\n|" + " --- |" * 6)
    for name, folder in groups.items():
        files = [f for f in readers.find_images(folder) if "_annot" not in str(f)]
        measured, whole = {}, {}
        for file in files:
            micrograph = record.read(file)
            pixels = micrograph.pixels[: record.kept_rows(micrograph)]
            start = time.process_time()
            measured[file] = quality.measured(pixels)
            spent += time.process_time() - start
            pictures += 1
            if len(whole) < 2 * SPOILT:
                whole[file] = pixels
        one = dict.fromkeys(measured, name)
        out = quality.standing_out(measured, one)
        if measured:
            print(_row(name, measured, out), flush=True)
        if len(measured) < quality.FEWEST:
            continue
        for file in [file for file in whole if file not in out][:SPOILT]:
            spoilt += 1
            for strength, what, worse in _worse(whole[file]):
                again = {**measured, file: quality.measured(worse)}
                told = quality.standing_out(again, one).get(file, ())
                found[strength] += what in {outlier.what for outlier in told}
    hits = ", ".join(
        f"{word} {s:g}: {found[s]} of {spoilt}"
        for word, strengths in (("blurred by px", BLURS), ("noise of sd x", NOISES))
        for s in strengths
    )
    print(f"\n{pictures} pictures, {1e3 * spent / max(pictures, 1):.1f} ms each. Found: {hits}")
    return 0


def _row(name: str, measured: dict[Path, quality.Quality], out: dict[Path, object]) -> str:
    cells = []
    for what in ("sharpness", "noise", "contrast"):
        values = np.array([getattr(q, what) for q in measured.values()])
        low, middle, high = np.nanquantile(values, [0, 0.5, 1])
        cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    return f"| {name} | {len(measured)} | {' | '.join(cells)} | {len(out)} |"


def _worse(pixels: np.ndarray) -> list[tuple[float, str, np.ndarray]]:
    """Return the picture blurred and with noise: strength, which measure tells it, pixels."""
    grey = pixels.astype(np.float32)
    grey = grey if grey.ndim == 2 else grey.mean(axis=2)
    drawn = np.random.default_rng(0).standard_normal(grey.shape).astype(np.float32)
    blurred = [(s, "sharpness", cv2.GaussianBlur(grey, (0, 0), s)) for s in BLURS]
    noisy = [(s, "noise", grey + s * float(grey.std()) * drawn) for s in NOISES]
    return [*blurred, *noisy]


if __name__ == "__main__":
    sys.exit(guard(main))
