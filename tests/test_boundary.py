"""Boundary F1 against hand arithmetic and against a slow version that measures every distance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from matssl.metrics import boundary


def _slow(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> list[list[int]]:
    """Hits and border pixels of each class, pixel by pixel with all distances."""
    guess = np.where(truth == 255, 255, prediction)

    def border(labels: np.ndarray, kind: int) -> list[tuple[int, int]]:
        found = []
        for (y, x), own in np.ndenumerate(labels):
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [
                labels[a, b] for a, b in beside if 0 <= a < len(labels) and 0 <= b < len(labels[0])
            ]
            if own == kind and any(other not in (kind, 255) for other in inside):
                found.append((y, x))
        return found

    def met(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
        return sum(any(math.dist(one, other) <= 2 for other in others) for one in some)

    rows = []
    for kind in range(num_classes):
        ours, theirs = border(guess, kind), border(truth, kind)
        rows.append([met(ours, theirs), len(ours), met(theirs, ours), len(theirs)])
    return rows


def _halves(column: int, width: int = 20, height: int = 10) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, column:] = 1
    return mask


@pytest.mark.parametrize(("shift", "score"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_a_straight_border_is_met_up_to_two_pixels_off(shift: int, score: float) -> None:
    gathered = boundary.border_hits(_halves(8), _halves(8 + shift), 2)
    # Ten border pixels on each side of the line; the edge of the image is no border.
    assert gathered.tolist() == [[10 * score, 10, 10 * score, 10]] * 2
    assert boundary.f1(gathered[None]).tolist() == [score, score]


def test_the_distance_is_euclidean() -> None:
    truth, prediction = np.zeros((2, 20, 20), np.uint8)
    truth[5, 5] = truth[5, 15] = 1
    # (1, 1) off is met, (1, 2) off is 2.24 pixels away.
    prediction[6, 6] = prediction[6, 17] = 1
    assert boundary.border_hits(truth, prediction, 2)[1].tolist() == [1, 2, 1, 2]


def test_precision_and_recall_make_the_score() -> None:
    truth = np.zeros((30, 30), np.uint8)
    truth[5:9, 5:9] = 1
    prediction = truth.copy()
    prediction[20:22, 20:24] = 1
    gathered = boundary.border_hits(truth, prediction, 2)
    # A square of 4 has 12 border pixels; all 8 of the false block are border.
    assert gathered[1].tolist() == [12, 20, 12, 12]
    assert boundary.f1(gathered[None])[1] == pytest.approx(2 * 0.6 / 1.6)
    # With an image without the class the predicted pixels of both count.
    more = np.stack([gathered, [[0, 0, 0, 0], [0, 4, 0, 0]]])
    assert boundary.f1(more)[1] == pytest.approx(2 * 0.5 / 1.5)


def test_without_borders_there_is_no_score_and_with_one_alone_it_is_0() -> None:
    whole = np.zeros((10, 20), np.uint8)
    assert np.isnan(boundary.f1(boundary.border_hits(whole, whole, 2)[None])).all()
    for pair in ((whole, _halves(8)), (_halves(8), whole)):
        assert boundary.f1(boundary.border_hits(*pair, 2)[None]).tolist() == [0.0, 0.0]


def test_ignored_pixels_make_no_border_and_meet_none() -> None:
    truth = _halves(8)
    truth[:, 6:10] = 255
    assert boundary.border_hits(truth, _halves(8), 2).tolist() == [[0, 0, 0, 0]] * 2
    # Beside ignored pixels there is none either, and outside of them a wrong one is wrong.
    assert boundary.border_hits(truth, _halves(11), 2).tolist() == [[0, 10, 0, 0]] * 2
    truth = _halves(8)
    truth[5:] = 255
    assert boundary.border_hits(truth, _halves(8), 2).tolist() == [[5, 5, 5, 5]] * 2


@pytest.mark.parametrize("strip", [1, 4, 7, 512])
def test_every_distance_measured_gives_the_same(
    strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "STRIP", strip)
    generator = np.random.default_rng(strip)
    for classes, shape in ((2, (23, 17)), (4, (16, 31)), (3, (1, 40)), (3, (30, 1))):
        truth, prediction = (
            np.kron(
                generator.integers(0, classes, (-(-shape[0] // 4), -(-shape[1] // 3))),
                np.ones((4, 3)),
            ).astype(np.uint8)[: shape[0], : shape[1]]
            for _ in range(2)
        )
        prediction[generator.random(shape) < 0.05] = 0
        truth[generator.random(shape) < 0.1] = 255
        found = boundary.border_hits(truth, prediction, classes)
        assert found.tolist() == _slow(truth, prediction, classes)
