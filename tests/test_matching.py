"""Objects of truth and prediction: cases by hand, and the same numbers turned and enlarged."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from matssl.core.errors import UserError
from matssl.metrics import matching, shapes, surface
from matssl.stages.evaluate import objects

Mask = NDArray[np.uint8]


def _field(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (40, 60)) -> Mask:
    """Return a mask of boxes (row, column, height, width) of class 1."""
    mask = np.zeros(shape, np.uint8)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = 1
    return mask


def _scores(truth: Mask, prediction: Mask) -> dict[str, float]:
    return matching.scores([matching.match(truth, prediction, 1)])


def test_the_same_objects_are_all_found() -> None:
    mask = _field((2, 2, 6, 6), (20, 20, 8, 4))
    found = _scores(mask, mask)
    assert (found["true"], found["predicted"], found["matched"]) == (2, 2, 2)
    assert found["f1"] == found["pq"] == found["precision"] == found["recall"] == 1
    assert found["count_error"] == 0


def test_two_merged_objects_are_one_miss_though_the_union_is_nearly_whole() -> None:
    """Boxes of 10 x 10 and 10 x 10 joined by a bridge of 2: 200 of 202 pixels are right."""
    truth = _field((5, 5, 10, 10), (5, 17, 10, 10))
    merged = truth | _field((9, 15, 1, 2))
    found = _scores(truth, merged)
    # IoU of the merged one with either is 100 / 202, below one half.
    assert (found["true"], found["predicted"], found["matched"]) == (2, 1, 0)
    assert found["f1"] == found["pq"] == 0 and found["count_error"] == -0.5
    union, undefined = matching.union_iou([matching.match(truth, merged, 1)])
    assert union == pytest.approx(200 / 202) and undefined == 0


def test_a_split_object_is_found_once_where_a_part_is_half_of_it() -> None:
    """A box of 8 x 20 cut by a column: parts of 80 and 72 of 160 pixels."""
    truth = _field((5, 5, 8, 20))
    split = _field((5, 5, 8, 10), (5, 16, 8, 9))
    found = _scores(truth, split)
    # 80 / 160 is one half, and enough; the other part is one too many.
    assert (found["matched"], found["precision"], found["recall"]) == (1, 0.5, 1)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["pq"] == pytest.approx(0.5 / 1.5)
    assert found["count_error"] == 1
    less = _scores(truth, _field((5, 5, 8, 9), (5, 16, 8, 9)))
    assert less["matched"] == 0 and less["pq"] == 0


def test_the_best_pair_goes_first_and_each_object_is_taken_once() -> None:
    """Of two halves, equally good, one is matched; of 3/4 and 1/4 the larger."""
    truth = _field((5, 5, 8, 20))
    halves = matching.match(truth, np.where(truth, 1, 0).astype(np.uint8), 1)
    assert halves.pairs.tolist() == [[0, 0]]
    two = _field((5, 5, 8, 5), (5, 11, 8, 14))
    one = matching.match(truth, two, 1)
    assert one.pairs.tolist() == [[0, 1]] and one.ious.tolist() == [112 / 160]


def test_nothing_against_nothing_is_undefined_and_spoils_no_mean() -> None:
    """F-U8: 0 / 0 is left out and counted."""
    empty, full = _field(), _field((5, 5, 6, 6))
    none = matching.match(empty, empty, 1)
    found = matching.scores([none])
    assert all(math.isnan(found[name]) for name in ("precision", "recall", "f1", "pq"))
    both = [none, matching.match(full, full, 1)]
    assert matching.scores(both)["f1"] == 1
    assert matching.union_iou(both) == (1.0, 1)
    assert math.isnan(surface.hausdorff_95(empty, empty, 1))
    assert math.isnan(matching.sizes([none], [1])["size_error"])


def test_objects_against_nothing_are_missed_and_nothing_against_objects_is_wrong() -> None:
    empty, full = _field(), _field((5, 5, 6, 6))
    missed, wrong = _scores(full, empty), _scores(empty, full)
    assert missed["recall"] == 0 and math.isnan(missed["precision"]) and missed["f1"] == 0
    assert wrong["precision"] == 0 and math.isnan(wrong["recall"]) and wrong["f1"] == 0
    assert missed["count_error"] == -1 and math.isnan(wrong["count_error"])


def test_objects_at_the_edge_are_matched_and_leave_the_sizes() -> None:
    truth = _field((0, 0, 10, 10), (15, 15, 10, 10))
    guess = _field((0, 0, 10, 10), (15, 15, 10, 12))
    one = matching.match(truth, guess, 1)
    assert matching.scores([one])["matched"] == 2
    found = matching.sizes([one], [1])
    assert (found["true_whole"], found["predicted_whole"]) == (1, 1)
    # 2 sqrt(A / pi): sqrt(120 / 100) - 1.
    assert found["size_error"] == pytest.approx(math.sqrt(1.2) - 1)
    assert found["matched_size_error"] == pytest.approx(math.sqrt(1.2) - 1)
    assert found["true_mean_diameter"] == pytest.approx(11.2838, abs=1e-4)
    assert matching.sizes([one], [2.5**2])["true_mean_diameter"] == pytest.approx(28.2095, abs=1e-3)


def test_ignored_pixels_cut_the_prediction_and_count_for_nothing() -> None:
    truth = _field((5, 5, 10, 10))
    truth[:, 30:] = 255
    guess = _field((5, 5, 10, 10), (5, 40, 10, 10), (20, 26, 6, 10))
    one = matching.match(truth, guess, 1)
    assert one.predicted.tolist() == [100, 24]
    assert one.overlap == (100, 124)


def test_crumbs_are_no_objects_and_are_counted() -> None:
    truth = _field((5, 5, 2, 2), (20, 20, 5, 1))
    one = matching.match(truth, truth, 1)
    assert one.true.tolist() == [5] and one.dropped == (1, 1)


def test_the_distance_of_distributions_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, 40).round(1), generator.normal(0.3, 2, 60).round(1)
    theirs = stats.ks_2samp(first, second).statistic
    assert matching.ks_distance(first, second) == pytest.approx(theirs)
    assert math.isnan(matching.ks_distance(first, first[:0]))


def _noisy(seed: int) -> tuple[Mask, Mask]:
    generator = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(generator.standard_normal((90, 120)), (0, 0), 3)
    other = smooth + cv2.GaussianBlur(generator.standard_normal((90, 120)), (0, 0), 2) * 0.5
    return tuple((plane > 0.05).astype(np.uint8) for plane in (smooth, other))  # type: ignore


def test_matches_are_those_of_a_slow_loop() -> None:
    truth, guess = _noisy(0)
    one = matching.match(truth, guess, 1, least=1)
    eight = np.ones((3, 3))
    (true, count), (labels, other) = (ndimage.label(mask, eight) for mask in (truth, guess))
    expected = []
    for i in range(1, count + 1):
        for j in range(1, other + 1):
            both = ((true == i) & (labels == j)).sum()
            either = ((true == i) | (labels == j)).sum()
            if 2 * both >= either:
                expected.append(both / either)
    assert sorted(one.ious) == pytest.approx(sorted(expected)) and len(expected) > 2


@pytest.mark.parametrize("turn", ["mirror", "quarter", "double"])
def test_a_turned_or_enlarged_field_has_the_same_numbers(turn: str) -> None:
    def moved(mask: Mask) -> Mask:
        if turn == "double":
            return np.kron(mask, np.ones((2, 2), np.uint8))
        return np.ascontiguousarray(mask[:, ::-1] if turn == "mirror" else np.rot90(mask))

    truth, guess = _noisy(1)
    one, other = (
        matching.match(t, g, 1, least=least)
        for t, g, least in ((truth, guess, 5), (moved(truth), moved(guess), 5))
    )
    if turn == "double":
        other = matching.match(moved(truth), moved(guess), 1, least=20)
    assert matching.scores([one]) == pytest.approx(matching.scores([other]))
    scale = 0.25 if turn == "double" else 1.0
    assert matching.sizes([one], [1]) == pytest.approx(matching.sizes([other], [scale]))
    if turn != "double":
        far = surface.hausdorff_95(truth, guess, 1)
        assert far == surface.hausdorff_95(moved(truth), moved(guess), 1)


def test_the_hausdorff_distance_of_moved_squares_by_hand() -> None:
    """Squares 3 columns apart: the borders of their flat sides lie 0 to 3 px apart."""
    truth, guess = _field((10, 10, 15, 15)), _field((10, 13, 15, 15))
    assert surface.hausdorff_95(truth, guess, 1, percent=100) == 3
    assert surface.hausdorff_95(truth, truth, 1) == 0
    assert math.isnan(surface.hausdorff_95(truth, _field(), 1))


def test_the_hausdorff_distance_is_that_of_a_slow_one_also_across_strips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth, guess = _noisy(2)
    truth[:8] = guess[:8] = 0
    known = np.ones(truth.shape, bool)
    own, other = (surface.border(mask > 0, known) > 0 for mask in (truth, guess))
    there = ndimage.distance_transform_edt(~other)[own]
    back = ndimage.distance_transform_edt(~own)[other]
    for percent in (50, 95, 100):
        slow = max(np.percentile(there, percent), np.percentile(back, percent))
        for strip, reach in ((1024, 256), (16, 20), (16, 2)):
            monkeypatch.setattr(surface, "STRIP", strip)
            monkeypatch.setattr(surface, "REACH", reach)
            found = surface.hausdorff_95(truth, guess, 1, percent)
            assert found == pytest.approx(slow, abs=1e-4)


def test_borders_are_neither_at_the_edge_of_the_field_nor_of_what_is_ignored() -> None:
    mask = _field((0, 0, 40, 20))
    known = np.ones(mask.shape, bool)
    known[:10] = False
    found = surface.border(mask > 0, known)
    assert found.sum() == 30 and found[10:, 19].all()


def _shape(mask: Mask) -> shapes.Shape:
    return shapes.shapes(mask, 2)[1]


def test_discs_are_objects_and_nets_layers_and_single_parts_are_not() -> None:
    field = np.zeros((200, 200), np.uint8)
    for row in range(20, 200, 40):
        for column in range(20, 200, 40):
            cv2.circle(field, (column, row), 9, 1, -1)
    disc = _shape(field)
    assert disc.objects and disc.parts == 25
    # The digital disc of radius 9 is an ellipse to a per cent.
    assert disc.filled / disc.area == pytest.approx(1, abs=0.02)
    assert not shapes.shapes(field, 2)[0].objects
    assert not _shape(1 - field).objects
    layer = np.zeros((200, 200), np.uint8)
    layer[80:120] = 1
    assert not _shape(layer).objects
    three = _field((2, 2, 8, 8), (2, 20, 8, 8), (20, 2, 8, 8))
    assert not _shape(three).objects


def test_long_needles_are_objects_in_any_direction_and_rings_are_not() -> None:
    field, rings = np.zeros((300, 300), np.uint8), np.zeros((300, 300), np.uint8)
    for number in range(12):
        start = (20 + 23 * number, 40)
        cv2.line(field, start, (start[0] + 15, 240), 1, 3)
        cv2.circle(rings, (30 + 60 * (number % 4), 30 + 60 * (number // 4)), 20, 1, 2)
    assert _shape(field).objects and _shape(np.ascontiguousarray(field.T)).objects
    assert not _shape(rings).objects and _shape(rings).parts == 12


def test_classes_of_many_masks_are_judged_together() -> None:
    one = shapes.shapes(_field((2, 2, 8, 8), (2, 20, 8, 8), (20, 2, 8, 8)), 2)
    assert not one[1].objects and shapes.together([one] * 4)[1].objects


NAMES = ("matrix", "pore")


def test_which_classes_are_objects_is_seen_in_the_masks_and_said() -> None:
    seen = objects.Seen(NAMES)
    assert seen.chosen(None) == ((), ())
    for _ in range(4):
        seen.look(_field((2, 2, 8, 8), (2, 20, 8, 8), (20, 2, 8, 8)))
    kinds, said = seen.chosen(None)
    assert kinds == (1,) and "pore (12 parts)" in said[0]
    assert seen.chosen("none") == ((), ()) and seen.chosen("matrix, pore")[0] == (0, 1)
    with pytest.raises(UserError, match="--objects grain: the model knows matrix, pore"):
        seen.chosen("grain")


def test_lengths_are_nm_only_where_every_image_has_a_pixel_size() -> None:
    mask = _field((10, 10, 10, 10))
    fields = [objects.compared(mask, _field((10, 12, 10, 10)), [1]) for _ in range(2)]
    known = objects.summary(fields, [2.0, 2.0], NAMES)["pore"]
    unknown = objects.summary(fields, [2.0, None], NAMES)["pore"]
    assert (known["unit"], unknown["unit"]) == ("nm", "px")
    assert known["true_mean_diameter"] == pytest.approx(2 * unknown["true_mean_diameter"])
    assert known["hausdorff_95_mean"] == 2 * unknown["hausdorff_95_mean"] == 4
    assert known["f1"] == unknown["f1"] == 1
    assert "Hausdorff 95 nm pore" in objects.cells(fields[0], 2.0, NAMES)


def test_the_report_says_what_was_left_out_and_where_a_score_is_undefined() -> None:
    empty = objects.compared(_field(), _field(), [1])
    crumbs = _field((5, 5, 2, 2), (20, 20, 6, 6))
    found = objects.summary([empty, objects.compared(crumbs, crumbs, [1])], [None, None], NAMES)
    said = objects.notes(found)
    assert "1 true and 1 predicted parts below 5 px" in said
    assert "of 1 of 2 images" in said
    (row,) = objects.rows(found)
    assert row["class"] == "pore" and row["F1"] == 1 and row["size error"] == "+0.0 %"
