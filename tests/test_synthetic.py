"""Synthetic micrographs are repeatable and too hard for a threshold."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.data import layouts, readers, synthetic


@pytest.mark.parametrize("kind", list(synthetic.KINDS))
def test_equal_seeds_give_equal_images(kind: str) -> None:
    first, second = (synthetic.micrograph(kind, 96, 128, 5) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], synthetic.micrograph(kind, 96, 128, 6)[0])
    assert first[0].shape == first[1].shape == (96, 128)
    assert set(np.unique(first[1])) <= set(range(len(synthetic.CLASS_NAMES[kind])))


@pytest.mark.parametrize("kind", list(synthetic.KINDS))
def test_no_grey_threshold_segments_them(kind: str) -> None:
    # The best classifier by (smoothed) grey level, fitted on the very image it is scored on.
    scores = []
    for seed in range(3):
        image, mask = synthetic.micrograph(kind, 256, 256, seed)
        gray = cv2.GaussianBlur(image, (0, 0), 1.5)
        classes = range(int(mask.max()) + 1)
        density = np.stack(
            [np.bincount(gray[mask == c], minlength=256) / (mask == c).sum() for c in classes]
        )
        guess = density.argmax(axis=0)[gray]
        hits = [
            ((guess == c) & (mask == c)).sum() / ((guess == c) | (mask == c)).sum() for c in classes
        ]
        scores.append(np.mean(hits))
    assert np.mean(scores) < 0.6


def test_a_written_set_is_a_folder_that_the_layouts_know(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, "cracks", 2, 1, 3, size=96, seed=0, bar=True)
    dataset = layouts.find(tmp_path)
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [2, 1, 3]
    assert dataset.table is not None
    assert dataset.table.names == ("substrate", "oxide", "crack")
    assert len({pair.group for pair in dataset.pairs}) == 6


def test_a_pool_has_bars_on_some(tmp_path: Path) -> None:
    synthetic.write_pool(tmp_path, 10, size=96, seed=0)
    heights = [readers.read(path).pixels.shape[0] for path in readers.find_images(tmp_path)]
    assert heights.count(96) == 8


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="there are: polycrystal"):
        synthetic.micrograph("wood", 64, 64, 0)
