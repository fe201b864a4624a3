"""The forest against scikit-learn's own prediction; object matching against scipy's usual way."""

from __future__ import annotations

import time

import cv2
import numpy as np
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from benchmarks.paired import ratio, row, seconds
from matssl.data import synthetic
from matssl.forest import filters, growing
from matssl.metrics import matching, surface

ROUNDS, SIDE, TREES = 3, 512, 50


def main() -> list[str]:
    cv2.setNumThreads(1)
    return _forest() + _objects()


def _forest() -> list[str]:
    """One thread each; the same trees."""
    image, mask = synthetic.micrograph("two_phase", SIDE, SIDE, 0)
    noise = np.random.default_rng(1).normal(0, 0.3, image.shape)
    picture = (image / 255 + noise).astype(np.float32)[None]
    (places,) = growing.chosen([mask], 2, growing.SAMPLES, 0)
    model = RandomForestClassifier(TREES, min_samples_leaf=growing.LEAST, random_state=0)
    model.fit(growing.at(picture, places, filters.SIGMAS), mask.ravel()[places])
    forest = growing._arrays(model, 2, filters.SIGMAS, 1)
    features = filters.filtered(picture, slice(0, SIDE), filters.SIGMAS).reshape(-1, SIDE**2)
    rows = np.ascontiguousarray(features.T)
    apart = np.abs(forest.of_pixels(features).T - model.predict_proba(rows)).max()
    functions = {
        "ours": lambda: forest.of_pixels(features),
        "theirs": lambda: model.predict_proba(rows),
        "filters": lambda: filters.filtered(picture, slice(0, SIDE), filters.SIGMAS),
    }
    times = seconds(functions, ROUNDS, time.process_time)
    what = f"forest of {TREES} trees, {SIDE**2:,} px: arrays in numpy / scikit-learn, CPU time"
    return [
        row("-", f"{what} (apart: {apart:.0e})", "-", ratio(times, "ours", "theirs"), ROUNDS),
        row(
            "-", f"its {len(features)} filters / its trees", "-", ratio(times, "filters", "ours"), 3
        ),
    ]


def _objects() -> list[str]:
    """A field of 4 Mpx with 7,000 discs, and the same moved by a pixel."""
    generator = np.random.default_rng(0)
    truth, guess = np.zeros((2, 2048, 2048), np.uint8)
    for _ in range(7000):
        x, y = (int(v) for v in generator.integers(0, 2048, 2))
        cv2.circle(truth, (x, y), int(generator.integers(2, 7)), 1, -1)
    guess[:, 1:] = truth[:, :-1]
    known = np.ones(truth.shape, bool)

    def ours():
        return matching.match(truth, guess, 1), surface.hausdorff_95(truth, guess, 1)

    def usual():
        labels = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in (truth, guess)]
        pairs = np.stack([one.ravel() for one in labels], axis=1)
        np.unique(pairs[pairs.min(axis=1) > 0], axis=0, return_counts=True)
        borders = [surface.border(mask > 0, known) > 0 for mask in (truth, guess)]
        for one, other in (borders, borders[::-1]):
            np.percentile(ndimage.distance_transform_edt(~one)[other], 95)

    times = seconds({"ours": ours, "usual": usual}, ROUNDS, time.process_time)
    what = "objects and Hausdorff 95 of 4 Mpx, 7,000 discs: ours / scipy's, CPU time"
    return [row("-", what, "-", ratio(times, "ours", "usual"), ROUNDS)]


if __name__ == "__main__":
    print("\n".join(main()))
