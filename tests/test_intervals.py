"""Intervals against hand arithmetic, the worked examples of the standards and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from matssl.measure import intervals, score_intervals
from matssl.metrics import overlap

FIELDS = [0.10, 0.12, 0.14, 0.16, 0.18]


# --- Student's t, Welch ---
@pytest.mark.parametrize("degrees", [1, 2.5, 4, 9, 29, 31, 60, 120, 1e4])
def test_student_t_is_exact(degrees: float) -> None:
    """Held against Student's own quantile of scipy.stats; the table of before ended at 30."""
    assert intervals.student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_less_than_one_degree_of_freedom_says_nothing() -> None:
    assert math.isnan(intervals.student_t(0.5)) and math.isnan(intervals.student_t(math.nan))


def test_degrees_of_freedom_after_welch_and_satterthwaite() -> None:
    # (1 + 3)^2 / (1/4 + 9/9) = 12.8.
    assert intervals.combined([(1.0, 4.0), (3.0, 9.0)]) == pytest.approx((4.0, 12.8))
    # A part without variance changes nothing.
    assert intervals.combined([(2.0, 5.0), (0.0, 3.0)]) == pytest.approx((2.0, 5.0))


def test_the_difference_of_two_specimens_is_welchs() -> None:
    first, second = [10.0, 12, 14, 16, 18], [20.0, 21, 22, 25]
    found = intervals.difference(first, second)
    other = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert found.value == 8.0 and found.clear
    assert (found.low, found.high) == pytest.approx((other.low, other.high))
    back = intervals.difference(second, first)
    assert (back.value, back.half_width) == pytest.approx((-8.0, found.half_width))


def test_one_field_has_no_spread_to_compare_with() -> None:
    found = intervals.difference([10.0], [20.0, 21, 22, 25])
    assert found.value == 12.0 and math.isnan(found.half_width) and not found.clear


# --- area fractions ---
def test_the_check_of_e1245() -> None:
    """10, 12, 14, 16, 18 %: mean 14, s 3.1623, t 2.7764, +/- 3.926, %RA 28.0, 23 fields."""
    found = intervals.fraction(FIELDS)
    assert found.mean == pytest.approx(0.14) and found.std == pytest.approx(0.031623, abs=1e-6)
    assert found.half_width == pytest.approx(0.03926, abs=1e-5)
    assert found.relative_accuracy == pytest.approx(28.05, abs=0.01)
    assert (found.low, found.high) == pytest.approx((0.10074, 0.17926), abs=1e-5)
    assert (found.needed, found.n, found.scale) == (23, 5, "t")


def test_ten_fields_of_a_worked_example() -> None:
    hits = [22, 25, 19, 24, 28, 21, 23, 26, 20, 22]
    found = intervals.fraction([h / 100 for h in hits])
    assert found.mean == pytest.approx(0.23)
    assert found.std == pytest.approx(0.02789, abs=1e-5)
    assert found.half_width == pytest.approx(0.01995, abs=1e-5)
    assert found.relative_accuracy == pytest.approx(8.67, abs=0.01)


def test_fields_needed_is_the_smallest_number_that_is_enough() -> None:
    for mean, std in ((0.14, 0.031623), (0.32, 0.057009), (0.005, 0.0064517), (0.5, 0.001)):
        n = intervals.fields_needed(mean, std)
        assert n is not None

        def relative(count: int, mean: float = mean, std: float = std) -> float:
            return float(stats.t.ppf(0.975, count - 1) * std / math.sqrt(count) / mean)

        assert relative(n) <= 0.1 and (n == 2 or relative(n - 1) > 0.1)
    assert intervals.fields_needed(0.0, 0.1) is None
    assert intervals.fields_needed(0.1, math.nan) is None


def test_a_rare_phase_has_an_interval_in_the_logit_that_stays_above_zero() -> None:
    """0.05, 1.6, 0.1, 0.2, 0.55 %: t would say -0.30 to 1.30 %, the logit 0.10 to 2.45 %."""
    values = [0.0005, 0.016, 0.001, 0.002, 0.0055]
    found = intervals.fraction(values)
    assert (found.low, found.high) == pytest.approx((0.0010032, 0.0245288), abs=1e-7)
    assert found.scale == "logit" and found.half_width == pytest.approx(0.0080109, abs=1e-7)
    rest = intervals.fraction([1 - value for value in values])
    assert (rest.low, rest.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize(
    ("share", "half", "scale"),
    [(0.2, 0.149, "t"), (0.2, 0.151, "logit"), (0.049, 0.001, "logit"), (0.051, 0.001, "t")]
    + [(0.8, 0.149, "t"), (0.8, 0.151, "logit"), (0.951, 0.001, "logit")],
)
def test_when_an_interval_is_one_of_the_logit(share: float, half: float, scale: str) -> None:
    """Below 5 %, above 95 %, or where an end comes within a quarter of the share to a limit."""
    found = intervals.of_share(share, half)
    assert found.scale == scale and 0 < found.low < share < found.high < 1


@pytest.mark.parametrize(("n", "reach"), [(4, 0.75), (5, 0.6), (30, 0.1)])
def test_nothing_in_all_fields_is_bounded_by_the_rule_of_three(n: int, reach: float) -> None:
    nothing, all_of_it = intervals.fraction([0.0] * n), intervals.fraction([1.0] * n)
    assert (nothing.low, nothing.high) == pytest.approx((0.0, reach))
    assert (all_of_it.low, all_of_it.high) == pytest.approx((1 - reach, 1.0))
    assert nothing.scale == all_of_it.scale == "rule of three"
    assert math.isnan(nothing.half_width) and nothing.needed is None


def test_few_fields_have_no_interval() -> None:
    found = intervals.fraction([0.2, 0.3, 0.4])
    assert found.mean == pytest.approx(0.3) and found.scale == "none"
    assert math.isnan(found.half_width) and math.isnan(found.low)


def test_intervals_of_fields_cover_in_simulation() -> None:
    """A normal and a skewed spread, four to ten fields: 95 % within the error of 2000 draws."""
    generator = np.random.default_rng(4)
    for mean, count in ((0.3, 4), (0.3, 10), (0.1, 5)):
        strength = 60
        draws = generator.beta(mean * strength, (1 - mean) * strength, (2000, count))
        ends = [intervals.fraction(row.tolist()) for row in draws]
        inside = np.mean([one.low <= mean <= one.high for one in ends])
        assert 0.93 <= inside <= 0.97, (mean, count, inside)


# --- mean IoU ---
def _specimens(
    generator: np.random.Generator, worlds: int, count: int, rare: bool = False
) -> NDArray[np.int64]:
    """Confusion matrices of specimens with areas and errors of their own, (worlds, n, 3, 3)."""
    areas = generator.dirichlet([6, 3, 0.15 if rare else 1], (worlds, count))
    errors = np.stack(
        [generator.dirichlet(np.where(np.arange(3) == c, 14, 1), (worlds, count)) for c in range(3)]
    )
    return np.rint(1e6 * areas[..., None] * np.moveaxis(errors, 0, 2)).astype(np.int64)


def _miou(matrices: NDArray[np.int64]) -> float:
    return overlap.miou(matrices.sum(axis=0))


@pytest.mark.parametrize("count", [5, 6, 10, 20])
def test_the_interval_of_a_mean_iou_covers_its_truth(count: int) -> None:
    """C2: the percentile bootstrap covered 65 to 86 % at 5 to 7 specimens."""
    generator = np.random.default_rng(count)
    truth = _miou(_specimens(generator, 1, 20_000)[0])
    groups = [str(number) for number in range(count)]
    inside = []
    for own in _specimens(generator, 1000, count):
        ends = score_intervals.mean_iou(list(own), groups).ends
        assert ends is not None and ends[0] <= _miou(own) <= ends[1]
        inside.append(ends[0] <= truth <= ends[1])
    # 92 to 97 %, and twice the error of a thousand draws.
    assert 0.92 - 0.014 <= np.mean(inside) <= 0.97 + 0.011


def test_images_of_one_specimen_are_one_sample() -> None:
    generator = np.random.default_rng(0)
    own = list(_specimens(generator, 1, 6)[0])
    whole = score_intervals.mean_iou(own, list("abcdef"))
    halves = [part for matrix in own for part in (matrix // 2, matrix - matrix // 2)]
    split = score_intervals.mean_iou(halves, list("aabbccddeeff"))
    assert split == whole and whole.ends is not None
    # Their order is invisible.
    turned = score_intervals.mean_iou(own[::-1], list("fedcba"))
    assert turned.ends == pytest.approx(whole.ends)


def test_below_five_specimens_a_mean_iou_has_none_and_says_how_many_it_needs() -> None:
    own = list(_specimens(np.random.default_rng(0), 1, 6)[0])
    found = score_intervals.mean_iou(own, list("aabbcd"))
    assert found.ends is None and (found.groups, found.needed) == (4, 5)


def test_a_class_of_a_single_specimen_has_no_spread() -> None:
    one, other = np.diag([50, 50, 0]), np.diag([50, 0, 50])
    other[0, 2] = 10
    found = score_intervals.mean_iou([one, one, one, one, other], list("abcde"))
    assert found.ends is None and (found.lonely, found.needed) == (2, 6)


def test_classes_stay_those_of_all_images() -> None:
    """A specimen without a class changes no mean over classes, as a resample without it did."""
    both, first = np.array([[50, 5], [8, 40]]), np.array([[90, 0], [0, 0]])
    found = score_intervals.mean_iou([both, both, first, both, first, both], list("abcdef"))
    assert found.ends is not None
    low, high = found.ends
    assert low < _miou(np.array([both] * 4 + [first] * 2)) < high < 1


def test_perfect_and_equal_specimens_differ_in_nothing() -> None:
    assert score_intervals.mean_iou([np.diag([10, 10])] * 5, list("abcde")).ends == (1.0, 1.0)


def test_gains_over_sets_and_seeds_add_the_variances_of_both() -> None:
    # Means of sets 2 and 6: variance 8 / 2. Of seeds 3 and 5: 2 / 2. Degrees 25 / (16 + 1).
    found = intervals.over_sets_and_seeds(np.array([[1.0, 3.0], [5.0, 7.0]]))
    assert found.value == 4 and found.degrees == pytest.approx(25 / 17)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 25 / 17) * math.sqrt(5))


def test_sets_weigh_alike_however_many_seeds_they_have() -> None:
    gains = np.array([[1.0, 3.0, np.nan], [4.0, 4.0, 10.0], [0.0, np.nan, np.nan]])
    found = intervals.over_sets_and_seeds(gains)
    # Means 2, 6 and 0; one seed is common to all, which tells no spread over seeds.
    assert found.value == pytest.approx(8 / 3) and found.degrees == 2
    assert found.half_width == pytest.approx(4.3027 * math.sqrt(28 / 3 / 3), rel=1e-4)
    assert math.isnan(intervals.over_sets_and_seeds(gains[:1]).half_width)


def test_gains_moved_and_scaled_move_and_scale_their_interval() -> None:
    gains = np.random.default_rng(0).normal(size=(6, 3))
    plain = intervals.over_sets_and_seeds(gains)
    other = intervals.over_sets_and_seeds(-2 * gains[::-1, ::-1] + 7)
    assert other.value == pytest.approx(7 - 2 * plain.value)
    assert other.half_width == pytest.approx(2 * plain.half_width)
