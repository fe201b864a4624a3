"""Specimens that a model was trained on are named, however training and test names lie together."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.data import layouts
from matssl.stages.evaluate import leaks
from matssl.trained.segmenter import TrainedOn


def _data(root: Path, names: dict[str, list[str]]) -> layouts.Dataset:
    for split, stems in names.items():
        for stem in stems:
            for folder, pixels in ((split, 9), (f"{split}_annot", 1)):
                path = root / folder / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = np.full((32, 32), pixels, np.uint8)
                picture[:16] = 0
                cv2.imwrite(str(path), picture)
    return layouts.find(root)


TEST = ["A_03", "A_04", "A_05"]
WARNING = ["3 of 3 images are of specimens it was trained on (A)"]


@pytest.mark.parametrize("place", ["at home", "a part", "moved"])
def test_training_and_test_names_are_grouped_together(place: str, tmp_path: Path) -> None:
    """A22: the test's names alone, A_03 to A_05, would be three specimens of their own."""
    root = tmp_path / "data"
    dataset = _data(root, {"train": ["A_01", "A_02", "B_01", "B_02"], "test": TEST})
    images = frozenset(str(pair.image) for pair in dataset.split("train"))
    trained_on = TrainedOn(dataset=str(root), images=images)
    if place == "moved":
        root = root.rename(tmp_path / "elsewhere")
        dataset = layouts.find(root)
    elif place == "a part":
        dataset = layouts.find(root / "test", need_masks=False)
    pairs = [pair for pair in dataset.pairs if pair.image.stem in TEST]
    assert leaks.by_name(pairs, dataset, trained_on) == WARNING


def test_the_same_names_in_another_folder_are_other_specimens(tmp_path: Path) -> None:
    first = _data(tmp_path / "a", {"train": ["A_01", "A_02", "B_01"], "test": ["B_02"]})
    second = _data(tmp_path / "b", {"train": ["A_07", "B_07"], "test": TEST})
    images = frozenset(str(pair.image) for pair in first.split("train"))
    trained_on = TrainedOn(dataset=str(tmp_path / "a"), images=images)
    assert leaks.by_name(list(second.split("test")), second, trained_on) == []
