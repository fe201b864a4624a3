"""Baselines: what each can and cannot tell apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from matssl import baselines
from matssl.data.preprocess import Preprocess
from matssl.metrics import overlap
from matssl.models.encoders import FineMaps, build_encoder, encoder_facts, sampled


def _maps(encoder: torch.nn.Module) -> tuple[Callable[[np.ndarray], list[np.ndarray]], int]:
    """Return what an evaluation gives the pixel classifier of an encoder."""
    fine = FineMaps(encoder)

    def of(image: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [level[0].numpy() for level in fine(torch.from_numpy(image)[None])]

    return of, encoder_facts(encoder).multiple


def test_features_at_pixels_are_those_of_torch() -> None:
    """Bilinear with repeated borders, half a pixel from the corner: torch's grid_sample."""
    generator = np.random.default_rng(3)
    maps = [generator.standard_normal((5, 32 // s, 48 // s)).astype(np.float32) for s in (2, 4, 8)]
    y, x = generator.integers(0, 32, 200), generator.integers(0, 48, 200)
    y[:4], x[:4] = [0, 0, 31, 31], [0, 47, 0, 47]
    ours = baselines._sampled(maps, x, y, (32, 48))
    theirs = sampled([torch.from_numpy(level)[None] for level in maps], x, y, (32, 48)).numpy()
    assert ours.shape == (200, 15) and np.abs(ours - theirs).max() < 1e-5


def _quadrants(*levels: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a plane of flat squares with a little noise, and which square each pixel is in."""
    mask = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((24, 24), np.uint8))
    noise = np.random.default_rng(0).normal(0, 0.01, mask.shape)
    return (np.array(levels)[mask] + noise).astype(np.float32), mask


def test_the_majority_is_counted_over_all_images_without_ignored_pixels() -> None:
    small = np.full((4, 4), 2, np.uint8)
    large = np.ones((6, 6), np.uint8)
    ignored = np.full((50, 50), 255, np.uint8)
    baseline = baselines.majority([small, large, ignored], 3)
    assert (baseline.predict(np.zeros((3, 5), np.float32)) == 1).all()
    assert baseline.predict(np.zeros((3, 5, 3), np.float32)).shape == (3, 5)


@pytest.mark.parametrize("dark", [0, 1])
def test_otsu_learns_which_side_of_the_threshold_is_which_class(dark: int) -> None:
    plane, mask = _quadrants(0.2, 0.8, 0.8, 0.2)
    truth = np.where(np.isin(mask, (0, 3)), dark, 1 - dark).astype(np.uint8)
    baseline = baselines.grey_levels([plane], [truth], 2)
    assert "Otsu" in baseline.name
    # Another image, brighter as a whole: the threshold moves with it. Borders are blurred.
    assert (baseline.predict(plane * 0.5 + 0.4) == truth).mean() > 0.95


def test_k_means_finds_as_many_greys_as_classes() -> None:
    plane, mask = _quadrants(0.9, 0.1, 0.4, 0.65)
    baseline = baselines.grey_levels([plane], [mask], 4)
    assert "k = 4" in baseline.name
    assert (baseline.predict(plane) == mask).mean() > 0.9


def test_ignored_pixels_teach_the_grey_baseline_nothing() -> None:
    plane, mask = _quadrants(0.2, 0.2, 0.8, 0.8)
    truth = (mask >= 2).astype(np.uint8)
    wrong = truth.copy()
    wrong[mask == 1] = 255
    wrong[mask == 3] = 255
    first, second = (baselines.grey_levels([plane], [m], 2) for m in (truth, wrong))
    assert np.array_equal(first.predict(plane), second.predict(plane))


def test_the_grey_baseline_is_never_below_the_majority_class_in_training() -> None:
    """C5: by its share of a rare class a cluster went to that class and cost the frequent one.

    By hand: dark pixels are 90 of class 0 and 5 of class 1, bright ones 10 and 5. The rare class
    has half of its pixels bright, the frequent one a tenth, yet bright means class 0: mean IoU of
    (0, 0) is (100 / 110 + 0) / 2, of (0, 1) (90 / 105 + 5 / 20) / 2, the best.
    """
    votes = np.array([[90, 5], [10, 5]])
    assert baselines._best_meaning(votes).tolist() == [0, 1]
    # With 40 of class 0 among the bright it is (90 / 135 + 5 / 50) / 2 against 130 / 140 / 2.
    assert baselines._best_meaning(np.array([[90, 5], [40, 5]])).tolist() == [0, 0]


def test_many_clusters_are_mapped_as_well_as_by_trying_all(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        votes = generator.integers(0, 100, (3, 3)) ** 2
        best = baselines._best_meaning(votes)
        with monkeypatch.context() as patch:
            patch.setattr(baselines, "MOST_MEANINGS", 0)
            climbed = baselines._best_meaning(votes)
        scores = []
        for meaning in (best, climbed, np.full(3, votes.sum(axis=0).argmax())):
            counts = np.zeros((3, 3), np.int64)
            np.add.at(counts.T, meaning, votes)
            scores.append(overlap.miou(counts))
        assert scores[0] >= scores[1] >= scores[2]


def test_the_forest_tells_textures_and_answers_on_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = _texture(0), _texture(1)
    monkeypatch.setattr(baselines, "SAMPLES", 1500)
    monkeypatch.setattr(baselines, "TREES", 10)
    monkeypatch.setattr(baselines, "ASKED", 64 * 96 // 4)
    found = baselines.forest(Preprocess().tensor, [train[0]], [train[1]], 2)
    guess = found.predict(test[0])
    asked = guess != 255
    assert asked.sum() == 64 * 96 // 4 and asked[1::2, 1::2].all()
    inner = asked & (np.abs(np.arange(96) - 48) > 8)
    assert (guess == test[1])[inner].mean() > 0.9


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_encoder("resnet18", in_channels=1).eval()


def _texture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return stripes of equal mean: lying ones on the left, standing ones on the right."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :96]
    mask = (x >= 48).astype(np.uint8)
    plane = np.where(mask == 0, y // 3 % 2, x // 3 % 2) * 0.5 + 0.25
    return (plane + generator.normal(0, 0.05, plane.shape)).astype(np.float32), mask


def test_the_pixel_classifier_tells_textures_that_greys_cannot(encoder: torch.nn.Module) -> None:
    train, test = _texture(0), _texture(1)
    record = Preprocess()
    grey = baselines.grey_levels([train[0]], [train[1]], 2)
    pixel = baselines.pixel_classifier(*_maps(encoder), record.tensor, [train[0]], [train[1]], 2)
    inner = np.abs(np.arange(96) - 48) > 8
    assert (grey.predict(test[0]) == test[1])[:, inner].mean() < 0.65
    assert (pixel.predict(test[0]) == test[1])[:, inner].mean() > 0.9


def test_the_pixel_classifier_takes_any_size_and_leaves_out_ignored_pixels(
    encoder: torch.nn.Module,
) -> None:
    plane, mask = _texture(0)
    plane, mask = plane[:50, 10:91], mask[:50, 10:91].copy()
    mask[:10] = 255
    record = Preprocess()
    baseline = baselines.pixel_classifier(*_maps(encoder), record.tensor, [plane], [mask], 2)
    guess = baseline.predict(plane)
    assert guess.shape == plane.shape and guess.dtype == np.uint8 and guess.max() <= 1


def test_the_pixel_classifier_does_not_change_the_encoder(encoder: torch.nn.Module) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    plane, mask = _texture(0)
    baselines.pixel_classifier(*_maps(encoder), Preprocess().tensor, [plane], [mask], 2).predict(
        plane
    )
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
