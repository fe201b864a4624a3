"""Labelled images at the front of a batch: their labels lie where the pixels lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import cache, synthetic
from matssl.data.datasets import Guides, ViewLoader, guide_boxes
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewAugmentation

PLAIN = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "blur_p": 0.0, "noise_p": 0.0}


def _loader(tmp_path: Path, augmentation: ViewAugmentation, **options: object) -> ViewLoader:
    synthetic.write_pool(tmp_path / "pool", n=6, size=96, seed=0)
    paths = sorted((tmp_path / "pool").iterdir())
    pool = cache.build(paths, Preprocess(window="dtype"), cache_dir=None, quiet=True)
    # Four fields of one grey level each: the level says the class.
    classes = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((60, 50), np.uint8))
    guides = Guides((classes * 60 + 20,), (classes,), (7,))
    lots = np.arange(len(pool), dtype=np.int64)
    return ViewLoader(
        pool, [augmentation, augmentation], 4, 48, 0, guides=guides, lots=lots, **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("d4", ["full", "none"])
def test_labels_are_those_of_the_pixels_of_the_first_view(tmp_path: Path, d4: str) -> None:
    loader = _loader(tmp_path, ViewAugmentation(size=32, d4=d4, **PLAIN))  # type: ignore[arg-type]
    seen = set()
    for epoch in range(6):
        for batch in loader.epoch(epoch):
            assert batch.labels is not None and batch.lot is not None
            assert (batch.labels[1:] == IGNORE).all() and batch.index[0] == -1
            assert batch.lot[0] == 7 and (batch.lot[1:] < 6).all()
            level = (batch.views[0][0, 0].float() - 20) / 60
            # Interpolated edges between two fields have levels of neither.
            sharp = (level - level.round()).abs() < 0.01
            assert sharp.float().mean() > 0.8
            assert torch.equal(level.round()[sharp].byte(), batch.labels[0][sharp])
            seen |= set(batch.labels[0].unique().tolist())
    assert seen == {0, 1, 2, 3}


def test_labelled_tiles_show_several_classes_and_every_class_as_often() -> None:
    # Left a field of class 0, right 1; 2 is a small corner between them, 3 nowhere with another.
    mask = np.zeros((96, 192), np.uint8)
    mask[:, 120:] = 1
    mask[:16, 112:128] = 2
    boxes, chances = guide_boxes([mask, np.full((96, 96), 3, np.uint8)], 48)
    assert chances.sum() == pytest.approx(1) and len(boxes) == 3 * 7 + 3 * 3
    shows = np.zeros((len(boxes), 4))
    for place, (image, top, left, height, width) in enumerate(boxes):
        assert (height, width) == (48, 48) and top + height <= 96
        if image == 0:
            part = mask[top : top + height, left : left + width]
            shows[place] = [(part == c).mean() >= 0.01 for c in range(4)]
    # Class 3 is seen alone or not at all.
    assert (chances > 0).tolist() == [
        n > 1 or image == 1 for n, image in zip(shows.sum(1), boxes[:, 0], strict=True)
    ]
    assert chances[boxes[:, 0] == 1].sum() == pytest.approx(1 / 4)
    # Two tiles with the corner, and six at the border: those with the rare class are drawn more.
    rare = shows[:, 2] > 0
    assert chances[rare].min() > chances[~rare & (boxes[:, 0] == 0)].max()
    # One class alone is still drawn; so is an image below the size of a tile.
    boxes, chances = guide_boxes([np.zeros((30, 40), np.uint8)], 48)
    assert boxes.tolist() == [[0, 0, 0, 30, 40]] and chances.tolist() == [1]
    assert np.allclose(guide_boxes([np.full((60, 96), 2, np.uint8)], 48)[1], 1 / (2 * 3))


def test_a_labelled_tile_beside_the_samples_lengthens_the_epoch(tmp_path: Path) -> None:
    """B16: 24 tiles in batches of 4 are 6 steps, or 8 of 3 tiles beside a labelled one."""
    loader = _loader(tmp_path, ViewAugmentation(size=32, **PLAIN))  # type: ignore[arg-type]
    assert loader.guides is not None and (len(loader.tiles), loader.steps_per_epoch) == (24, 6)
    beside = replace(loader.guides, beside=True)
    loader = ViewLoader(loader.pool, loader.augmentations, 4, 48, 0, guides=beside)
    assert loader.steps_per_epoch == 8
    batches = list(loader.epoch(0))
    assert all(len(b.index) == 4 and b.index[0] == -1 and b.group[0] == -1 for b in batches)
    assert sorted(torch.cat([b.index[1:] for b in batches]).tolist()) == list(range(24))
    assert all((b.labels[0] != IGNORE).any() for b in batches if b.labels is not None)
    halves = [
        list(
            ViewLoader(loader.pool, loader.augmentations, 4, 48, 0, 0, r, 2, guides=beside).epoch(0)
        )
        for r in range(2)
    ]
    for whole, first, second in zip(batches, *halves, strict=True):
        assert torch.equal(whole.views[1][::2], first.views[1])
        assert torch.equal(whole.views[1][1::2], second.views[1])


def test_one_process_in_two_has_the_labelled_sample(tmp_path: Path) -> None:
    augmentation = ViewAugmentation(size=32)
    whole = next(iter(_loader(tmp_path, augmentation).epoch(2)))
    for rank in range(2):
        half = next(iter(_loader(tmp_path, augmentation, rank=rank, world_size=2).epoch(2)))
        assert torch.equal(half.views[0], whole.views[0][rank::2])
        assert half.labels is not None and whole.labels is not None
        assert torch.equal(half.labels, whole.labels[rank::2])


def test_a_gray_labelled_image_goes_with_a_pool_in_colour_and_not_the_other_way(
    tmp_path: Path,
) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    tinted = np.stack([gray, gray // 2, gray], axis=2)
    for number in range(4):
        assert cv2.imwrite(str(tmp_path / f"tinted{number}.png"), tinted)
    record = Preprocess(window="dtype", channels=3, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
    pool = cache.build(sorted(tmp_path.glob("tinted*")), record, cache_dir=None, quiet=True)
    mask = np.zeros_like(gray)
    plain = ViewAugmentation(size=32, d4="none", **PLAIN)  # type: ignore[arg-type]
    loader = ViewLoader(pool, [plain] * 2, 4, 48, 0, guides=Guides((gray,), (mask,), (-1,)))
    view = next(iter(loader.epoch(0))).views[0][0]
    assert view.shape[0] == 3 and torch.equal(view[0], view[1]) and torch.equal(view[0], view[2])
    assert not torch.equal(*next(iter(loader.epoch(0))).views[0][1, :2])
    pool = cache.build(sorted(tmp_path.glob("tinted*")), Preprocess(), cache_dir=None, quiet=True)
    with pytest.raises(UserError, match="labelled images are in colour, the pool is gray"):
        ViewLoader(pool, [plain] * 2, 4, 48, 0, guides=Guides((tinted,), (mask,), (-1,)))


def test_without_labelled_images_nothing_changes(tmp_path: Path) -> None:
    loader = _loader(tmp_path, ViewAugmentation(size=32))
    guided = next(iter(loader.epoch(0)))
    loader.guides = None
    plain = next(iter(loader.epoch(0)))
    assert plain.labels is None
    assert torch.equal(guided.views[0][1:], plain.views[0][1:])
