"""The classifier's error in area fractions: by hand, against rivals, in simulated specimens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage
from matssl.core.errors import UserError
from matssl.measure import classifier, held_out, intervals
from matssl.measure.held_out import HeldOut, Record
from matssl.measure.intervals import Sample
from tests.fuzz.mutations import spoiled_text

# Rows truth, columns prediction.
TWO = np.array([[880, 20], [40, 60]])
THREE = np.array([[700, 30, 20], [50, 120, 10], [10, 10, 50]])
KNOWN = Sample(0.1, 1e-6, 4.0, 5)


def _same(matrix: np.ndarray, count: int = 4) -> list[HeldOut]:
    return [HeldOut(f"{k}.png", str(k), matrix.astype(np.int64)) for k in range(count)]


def _image(specimen: str, true: float, miss: float, alarm: float, area: int = 10_000) -> HeldOut:
    phase = round(true * area)
    lost, false = round(miss * phase), round(alarm * (area - phase))
    matrix = np.array([[area - phase - false, false], [lost, phase - lost]], np.int64)
    return HeldOut(f"{specimen}.png", specimen, matrix)


# --- by hand ---
def test_two_classes_by_hand() -> None:
    """Predicted 10 %; FNR 40/100, FPR 20/900: (0.1 - 0.02222) / 0.57778 = 13.462 %."""
    known = classifier.rates(_same(TWO), 1)
    assert known.skill == pytest.approx(1 - 0.4 - 20 / 900)
    found = classifier.correct(KNOWN, known)
    assert found.value == pytest.approx(0.13461538461538464, abs=1e-12)
    rest = classifier.correct(Sample(0.9, 1e-6, 4.0, 5), classifier.rates(_same(TWO), 0))
    assert rest.value == pytest.approx(0.8653846153846154, abs=1e-12)
    assert rest.interval.low == pytest.approx(1 - found.interval.high)


def test_other_corrections_by_hand() -> None:
    """What the benchmark holds ours against: P(true | predicted), the difference, m P / R."""
    shares = np.array([0.9, 0.1])
    assert coverage.posterior(TWO, shares)[1] == pytest.approx(0.1141304347826087, abs=1e-12)
    assert coverage.difference(TWO, shares)[1] == pytest.approx(0.12, abs=1e-12)
    three = np.array([0.7, 0.2, 0.1])
    right = [0.7072368421052632, 0.2085526315789474, 0.08421052631578947]
    assert coverage.posterior(THREE, three) == pytest.approx(right, abs=1e-12)
    assert coverage.difference(THREE, three) == pytest.approx([0.69, 0.22, 0.09], abs=1e-12)
    # Precision over recall: 60/80 over 60/100.
    assert coverage.precision_over_recall(TWO, 0.1) == pytest.approx(0.125, abs=1e-12)


def test_three_classes_are_each_held_against_the_rest_and_renormalised() -> None:
    shares = (0.7, 0.2, 0.1)
    samples = [Sample(share, 1e-6, 4.0, 5) for share in shares]
    found = classifier.of_classes(samples, _same(THREE), False)
    assert found.renormalised and found.refusals == ("", "", "")
    # FNR 50/750, 60/180, 20/70; FPR 60/250, 40/820, 30/930.
    alone = []
    for share, miss, alarm in zip(
        shares, (50 / 750, 60 / 180, 20 / 70), (60 / 250, 40 / 820, 30 / 930), strict=True
    ):
        alone.append((share - alarm) / (1 - miss - alarm))
    values = [one.value for one in found.classes if one is not None]
    assert values == pytest.approx([value / sum(alone) for value in alone], abs=1e-12)
    assert sum(values) == pytest.approx(1)


def test_the_interval_by_hand() -> None:
    """m = 4 specimens of two images, x of 5 fields: every part of the variance written out."""
    rates = [(0.10, 0.02), (0.14, 0.04), (0.20, 0.01), (0.16, 0.03)]
    rates += [(0.12, 0.04), (0.12, 0.02), (0.18, 0.03), (0.22, 0.05)]
    images = [
        _image(str(number // 2), true, *pair)
        for number, (pair, true) in enumerate(
            zip(rates, (0.2, 0.3, 0.25, 0.4, 0.5, 0.35, 0.3, 0.45), strict=True)
        )
    ]
    known = classifier.rates(images, 1)
    x = intervals.sample([0.28, 0.30, 0.32, 0.34, 0.31])
    fnr, fpr = known.misses, known.alarms
    skill = 1 - fnr.mean() - fpr.mean()
    g = (x.mean - fpr.mean()) / skill
    e = g * fnr - (1 - g) * fpr
    means = e.reshape(4, 2).mean(axis=1)
    within = ((e.reshape(4, 2) - means[:, None]) ** 2).sum() / 4
    between = max(0.0, means.var(ddof=1) - within / 2)
    sampling = np.var([0.28, 0.30, 0.32, 0.34, 0.31], ddof=1) / 5 / skill**2
    error = (means.var(ddof=1) / 4 + between) / skill**2
    found = classifier._by_rates(x, known, False)
    assert found.value == pytest.approx(g)
    assert found.sampling == pytest.approx((sampling, 4))
    assert found.classifier == pytest.approx((error, 3))
    # Of several specimens their own deviations are in their spread.
    several = classifier._by_rates(x, known, True)
    assert several.classifier[0] == pytest.approx(means.var(ddof=1) / 4 / skill**2)
    degrees = (sampling + error) ** 2 / (sampling**2 / 4 + error**2 / 3)
    whole = classifier._interval(found)
    assert whole.half_width == pytest.approx(
        intervals.student_t(degrees) * math.sqrt(sampling + error)
    )


def test_one_image_a_specimen_cannot_tell_image_from_specimen() -> None:
    images = [_image(str(k), 0.3, miss, 0.02) for k, miss in enumerate((0.1, 0.2, 0.15, 0.3))]
    known = classifier.rates(images, 1)
    errors = 0.3 * known.misses - 0.7 * known.alarms
    assert classifier._between(errors, known) == pytest.approx(errors.var(ddof=1))


# --- what is preferred, refused, warned of ---
def test_a_straight_line_is_preferred_where_errors_follow_the_area() -> None:
    images = [
        _image(str(k), true, 0.0, 0.2 * true / (1 - true))
        for k, true in enumerate((0.1, 0.2, 0.3, 0.4, 0.5))
    ]
    found = classifier.correct(Sample(0.3, 1e-5, 9.0, 10), classifier.rates(images, 1))
    # Predicted is 1.2 of true, exactly.
    assert found.method == "straight line" and found.value == pytest.approx(0.25, abs=1e-4)
    assert found.misfit[2] < found.misfit[1] < found.misfit[0]


def test_error_rates_are_preferred_where_they_are_the_same_everywhere() -> None:
    images = [_image(str(k), true, 0.2, 0.05) for k, true in enumerate((0.1, 0.12, 0.14, 0.5))]
    found = classifier.correct(Sample(0.3, 1e-5, 9.0, 10), classifier.rates(images, 1))
    assert found.method == "error rates" and found.value == pytest.approx((0.3 - 0.05) / 0.75)


def test_outside_the_held_out_fractions_the_interval_is_the_wider_of_two() -> None:
    shares = (0.1, 0.12, 0.14, 0.16, 0.11)
    misses = (0.1, 0.2, 0.15, 0.12, 0.18)
    images = [
        _image(str(k), t, m, 0.02) for k, (t, m) in enumerate(zip(shares, misses, strict=True))
    ]
    known = classifier.rates(images, 1)
    x = Sample(0.5, 1e-4, 9.0, 10)
    found = classifier.correct(x, known)
    alone, logit = (
        classifier._interval(classifier._by_rates(x, known, False)),
        (classifier._by_logit(x, known, False)),
    )
    assert found.outside and found.method == "error rates"
    assert found.interval.low == min(alone.low, logit.low)
    assert found.interval.high == max(alone.high, logit.high)


def test_three_held_out_specimens_correct_nothing() -> None:
    known = classifier.rates(_same(TWO, 3), 1)
    assert "3 held-out specimens" in classifier.refusal(known)
    found = classifier.of_classes([Sample(0.9, 1e-6, 4, 5), KNOWN], _same(TWO, 3), False)
    assert found.classes == (None, None) and all(found.refusals)


def test_a_classifier_that_guesses_is_not_inverted() -> None:
    guess = np.array([[45, 45], [5, 5]])
    assert "does not tell" in classifier.refusal(classifier.rates(_same(guess), 1))


def test_images_of_one_phase_alone_have_one_rate_and_are_left_out() -> None:
    images = [*_same(TWO), HeldOut("e.png", "9", np.array([[100, 5], [0, 0]]))]
    known = classifier.rates(images, 1)
    assert (known.count, known.left_out) == (4, 1)


@pytest.mark.parametrize("seen", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_no_interval_leaves_zero_to_one(seen: float) -> None:
    misses, alarms = (0.1, 0.3, 0.2, 0.05), (0.02, 0.08, 0.05, 0.01)
    images = [
        _image(str(k), 0.3, m, a) for k, (m, a) in enumerate(zip(misses, alarms, strict=True))
    ]
    found = classifier.correct(Sample(seen, 1e-4, 4.0, 5), classifier.rates(images, 1))
    ends = found.interval
    assert 0 <= ends.low <= found.value <= ends.high <= 1
    assert ends.low < ends.high


def test_a_bias_larger_than_the_interval_is_a_warning() -> None:
    images = [_image(str(k), 0.3, 0.3, 0.0) for k in range(6)]
    found = classifier.correct(Sample(0.21, 1e-8, 9.0, 10), classifier.rates(images, 1))
    assert found.off and found.value == pytest.approx(0.3, abs=1e-3)


def test_without_an_interval_the_classifier_alone_tells_a_bias() -> None:
    """One field, whose spread nobody knows: raw and corrected are held against half of what is."""
    unknown = math.nan
    sure = [_image(str(k), 0.3, 0.3, 0.0) for k in range(6)]
    one = Sample(0.21, unknown, unknown, 1)
    assert classifier.correct(one, classifier.rates(sure, 1)).off
    shares, misses = (0.3, 0.25, 0.4, 0.35, 0.2), (0.05, 0.6, 0.1, 0.55, 0.2)
    unsure = [
        _image(str(k), s, m, 0.02) for k, (s, m) in enumerate(zip(shares, misses, strict=True))
    ]
    found = classifier.correct(one, classifier.rates(unsure, 1))
    assert math.isnan(found.interval.low) and abs(found.raw - found.value) > 0.01
    assert not found.off


def test_the_mean_error_cancels_in_a_difference() -> None:
    images = [_image(str(k), 0.3, m, 0.02) for k, m in enumerate((0.1, 0.2, 0.15, 0.3, 0.12))]
    known = classifier.rates(images, 1)
    x = Sample(0.3, 1e-5, 9.0, 10)
    none = classifier.difference(x, x, known)
    assert none.value == 0 and not none.clear
    far = classifier.difference(x, Sample(0.6, 1e-5, 9.0, 10), known)
    assert far.value == pytest.approx(0.3 / known.skill) and far.clear
    both = (
        2
        * classifier._between(classifier._errors((0.3 - 0.02) / known.skill, known), known)
        / known.skill**2
        + 2e-5 / known.skill**2
    )
    assert none.half_width == pytest.approx(
        intervals.student_t(none.degrees) * math.sqrt(both), rel=1e-3
    )


# --- coverage ---
@pytest.mark.parametrize("name", ["specimens", "borders", "by area", "rare", "borders, larger"])
def test_the_interval_of_both_errors_covers_a_new_specimen(name: str) -> None:
    """250 worlds of the scenarios of benchmarks/coverage.py, where naive intervals do not."""
    found = coverage.corrected(name, 250, seed=11)
    assert found["both"].inside >= 0.93 - 0.016 * 2
    assert found["naive t"].inside < found["both"].inside


# --- the file ---
def test_held_out_truth_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record(("matrix", "pore"), tuple(_same(TWO)), ("one doubt",))
    path = tmp_path / held_out.FILE
    path.write_text(json.dumps(record.stored()), encoding="utf-8")
    found = held_out.read(path)
    assert found.classes == record.classes and found.doubts == record.doubts
    assert found.specimens == ("0", "1", "2", "3")
    assert all(np.array_equal(one.confusion, TWO) for one in found.images)
    turned = found.ordered(("pore", "matrix"))
    assert turned.images[0].confusion.tolist() == [[60, 40], [20, 880]]
    assert found.without(["1", "2"]).specimens == ("0", "3")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"classes": ["a", "a"], "images": []}',
        '{"classes": ["a", "b"]}',
        '{"classes": ["a", "b"], "images": [{"image": "x", "specimen": "s", "confusion": [[1]]}]}',
        '{"classes": ["a"], "images": [{"image": "x", "specimen": "s", "confusion": [[-1]]}]}',
        '{"classes": ["a"], "images": [{"image": "x", "specimen": "s", "confusion": [[0.5]]}]}',
        '{"classes": ["a"], "images": [{"image": "x", "specimen": "", "confusion": [[1]]}]}',
        '{"classes": ["a"], "images": [{"image": "x", "specimen": "s", "confusion": "many"}]}',
    ],
)
def test_a_damaged_file_of_held_out_truth_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / held_out.FILE
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        held_out.read(path)


def test_a_spoiled_file_is_one_line_or_held_out_truth(tmp_path: Path) -> None:
    """300 files with one to four faults each: no other error, and no share beyond 0 and 1."""
    sound = json.dumps(Record(("matrix", "pore"), tuple(_same(TWO, 5)), ("doubt",)).stored())
    path, read = tmp_path / held_out.FILE, 0
    for seed in range(300):
        path.write_bytes(spoiled_text(np.random.default_rng(seed), sound))
        try:
            found = held_out.read(path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        samples = [Sample(share, 1e-4, 4.0, 5) for share in np.full(len(found.classes), 0.5)]
        for one in classifier.of_classes(samples, found.images, False).classes:
            if one is not None:
                assert 0 <= one.interval.low <= one.value <= one.interval.high <= 1, seed
    assert read > 10


def test_classes_of_another_model_are_refused() -> None:
    record = Record(("matrix", "pore"), (), source="run/confusion.json")
    with pytest.raises(UserError, match="speaks of matrix, pore, the masks of matrix, crack"):
        record.ordered(("matrix", "crack"))
