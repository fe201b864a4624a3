"""Counts and scores against hand arithmetic and against scikit-learn on pooled pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from matssl import metrics
from matssl.metrics import SCORES, counts, overlap

# Rows truth, columns prediction.
HAND = np.array([[880, 20], [40, 60]])


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (1, 3), (2, 2), (5, 1), (740, 1417), (1025, 1024)]
)
def test_confusion_counts_any_number_of_pixels(shape: tuple[int, int]) -> None:
    """B14: 740 x 1417 and others whose pixels modulo 2^20 are one to four raised."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, shape).astype(np.uint8)
    prediction = generator.integers(0, 3, shape).astype(np.uint8)
    truth.flat[-1] = 255
    result = counts.confusion(truth, prediction, 3)
    expected = [[int(((truth == t) & (prediction == p)).sum()) for p in range(3)] for t in range(3)]
    assert result.tolist() == expected


@pytest.mark.parametrize("num_classes", [2, 3, 15, 16, 30])
def test_confusion_counts_pairs_and_leaves_out_ignored_pixels(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    truth = generator.integers(0, num_classes, (90, 70)).astype(np.uint8)
    prediction = generator.integers(0, num_classes, (90, 70)).astype(np.uint8)
    truth[:5] = 255
    expected = np.zeros((num_classes, num_classes), np.int64)
    for t, p in zip(truth[5:].ravel(), prediction[5:].ravel(), strict=True):
        expected[t, p] += 1
    result = counts.confusion(truth, prediction, num_classes)
    assert result.dtype == np.int64
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("num_classes", [3, 20])
def test_strange_classes_and_shapes_are_programming_errors(num_classes: int) -> None:
    good, bad = np.zeros((4, 4), np.uint8), np.full((4, 4), num_classes, np.uint8)
    for truth, prediction in ((bad, good), (good, bad), (good, good[:2])):
        with pytest.raises(ValueError):
            counts.confusion(truth, prediction, num_classes)


def test_hand_scores() -> None:
    assert overlap.iou(HAND).tolist() == pytest.approx([880 / 940, 60 / 120])
    assert overlap.dice(HAND).tolist() == pytest.approx([1760 / 1820, 120 / 180])
    assert overlap.precision(HAND).tolist() == pytest.approx([880 / 920, 0.75])
    assert overlap.recall(HAND).tolist() == pytest.approx([880 / 900, 0.6])
    assert overlap.accuracy(HAND) == pytest.approx(0.94)


def test_absent_class_is_nan_and_leaves_the_mean() -> None:
    matrix = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])
    scores = overlap.iou(matrix)
    assert math.isnan(scores[2])
    assert overlap.miou(matrix) == pytest.approx((9 / 10 + 10 / 11) / 2)
    assert overlap.published_miou(matrix) == pytest.approx((9 / 10 + 10 / 11) / 3)
    assert overlap.summary(matrix)["absent_classes"] == [2]


def test_a_perfect_one_class_image_scores_one() -> None:
    assert overlap.miou(np.array([[50, 0], [0, 0]])) == 1.0


def test_a_class_that_is_only_predicted_scores_zero() -> None:
    matrix = np.array([[5, 5], [0, 0]])
    assert overlap.iou(matrix).tolist() == [0.5, 0.0]
    assert overlap.recall(matrix)[1] == 0.0
    assert overlap.precision(matrix)[1] == 0.0


def test_scores_equal_scikit_learn_on_pooled_pixels() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 5000).astype(np.uint8)
    prediction = np.where(generator.random(5000) < 0.6, truth, generator.integers(0, 4, 5000))
    prediction = prediction.astype(np.uint8)
    matrix = counts.confusion(truth, prediction, 4)
    assert np.array_equal(matrix, sklearn.confusion_matrix(truth, prediction))
    reference = {
        "IoU": sklearn.jaccard_score(truth, prediction, average=None),
        "Dice": sklearn.f1_score(truth, prediction, average=None),
        "precision": sklearn.precision_score(truth, prediction, average=None),
        "recall": sklearn.recall_score(truth, prediction, average=None),
    }
    of_counts = {n: s for n, s in SCORES.items() if s.gather is counts.confusion}
    assert set(reference) == set(of_counts)
    for name, score in of_counts.items():
        assert score.reduce(matrix[None]) == pytest.approx(reference[name], abs=1e-12)
    assert overlap.accuracy(matrix) == pytest.approx(sklearn.accuracy_score(truth, prediction))


def test_pooling_does_not_depend_on_batches() -> None:
    generator = np.random.default_rng(1)
    pairs = [generator.integers(0, 3, (2, 30, 30)).astype(np.uint8) for _ in range(6)]
    single = sum(counts.confusion(t, p, 3) for t, p in pairs)
    stacked = np.stack([t for t, _ in pairs]), np.stack([p for _, p in pairs])
    assert np.array_equal(single, counts.confusion(*stacked, 3))


# --- what every score promises ---
def _images(count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocky truths of three classes, a tenth ignored; predictions that are mostly right.

    Of the five classes, 3 is only predicted and 4 is nowhere.
    """
    generator = np.random.default_rng(5)
    pairs = []
    for _ in range(count):
        truth = np.kron(generator.integers(0, 3, (6, 7)), np.ones((8, 8))).astype(np.uint8)
        prediction = np.roll(truth, generator.integers(0, 4, 2), (0, 1))
        prediction[:8, :8] = 3
        truth[generator.random(truth.shape) < 0.1] = 255
        pairs.append((truth, prediction))
    return pairs


@pytest.fixture(params=SCORES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _scored(name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return metrics.by_name([metrics.gather(t, p, 5) for t, p in pairs])[name]


def test_a_score_lies_between_0_and_1_and_an_absent_class_has_none(name: str) -> None:
    found = _scored(name, _images())
    assert found.shape == (5,) and found.dtype == np.float64
    assert ((found[:3] > 0.2) & (found[:3] < 1)).all()
    assert found[3] == 0 and math.isnan(found[4])


def test_a_perfect_prediction_scores_1_whatever_it_says_of_ignored_pixels(name: str) -> None:
    truth = _images(1)[0][0]
    guess = np.where(truth == 255, np.random.default_rng(1).integers(0, 5, truth.shape), truth)
    found = _scored(name, [(truth, guess.astype(np.uint8))])
    assert found[:3].tolist() == [1, 1, 1] and np.isnan(found[3:]).all()


def test_what_is_predicted_for_ignored_pixels_changes_no_score(name: str) -> None:
    ((truth, prediction),) = _images(1)
    other = np.where(truth == 255, (prediction + 1) % 5, prediction).astype(np.uint8)
    assert np.array_equal(
        *(_scored(name, [(truth, p)]) for p in (prediction, other)), equal_nan=True
    )


def test_a_score_of_turned_and_mirrored_images_is_the_same(name: str) -> None:
    pairs = _images(2)
    expected = _scored(name, pairs)
    for turns in range(4):
        turned = [tuple(np.rot90(a, turns) for a in pair) for pair in pairs]
        mirrored = [tuple(a[:, ::-1] for a in pair) for pair in turned]
        for moved in (turned, mirrored):
            assert np.array_equal(_scored(name, moved), expected, equal_nan=True)


def test_renamed_classes_take_their_scores_along(name: str) -> None:
    order = np.array([2, 4, 0, 1, 3])
    table = np.full(256, 255, np.uint8)
    table[:5] = order
    pairs = _images(2)
    renamed = _scored(name, [(table[t], table[p]) for t, p in pairs])
    assert np.array_equal(renamed[order], _scored(name, pairs), equal_nan=True)


def test_the_order_of_images_changes_no_score_and_one_image_has_its_own(name: str) -> None:
    pairs = _images()
    assert np.array_equal(_scored(name, pairs), _scored(name, pairs[::-1]), equal_nan=True)
    score = SCORES[name]
    gathered = score.gather(*pairs[0], 5)
    assert gathered.dtype == np.int64
    single = score.reduce(gathered[None])
    assert np.array_equal(single, _scored(name, pairs[:1]), equal_nan=True)
    # The same image twice is no other image.
    assert np.array_equal(single, _scored(name, pairs[:1] * 2), equal_nan=True)


def test_every_score_has_a_mean_that_leaves_absent_classes_out() -> None:
    images = [metrics.gather(t, p, 5) for t, p in _images()]
    found = metrics.means(images)
    for name, values in metrics.by_name(images).items():
        assert found[metrics.mean_name(name)] == pytest.approx(np.mean(values[:4]))
    assert found["absent_classes"] == [4]


def test_what_scores_share_is_gathered_once() -> None:
    gathered = metrics.gather(*_images(1)[0], 5)
    assert set(gathered) == {score.gather for score in SCORES.values()}
    assert np.array_equal(gathered[counts.confusion], counts.confusion(*_images(1)[0], 5))
