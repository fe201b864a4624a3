"""One field by its correlation: hand arithmetic, symmetry, and simulated fields of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import fft, stats

from matssl.measure import correlation, intervals


def _gaussian(
    generator: np.random.Generator, side: int, length: float, share: float
) -> NDArray[np.bool_]:
    """A Gaussian random field cut at a level, part of one twice as wide: no periodic edge."""
    wide = 2 * side
    waves = fft.fftfreq(wide)
    kernel = np.exp(-(waves[:, None] ** 2 + waves[None] ** 2) * (math.pi * length) ** 2)
    field = fft.irfft2(fft.rfft2(generator.standard_normal((wide, wide))) * kernel[:, : side + 1])
    level = stats.norm.ppf(share) * math.sqrt((kernel**2).sum()) / wide
    return np.asarray(field[:side, :side] < level)


def test_the_worked_example() -> None:
    """m 0.25, A2 400 px^2, 1024^2 px: sd 0.008457, 1.96 sd 0.01658."""
    variance = correlation.variance_of_share(0.25, 400, 1024**2)
    assert math.sqrt(variance) == pytest.approx(0.008457, abs=1e-6)
    assert 1.96 * math.sqrt(variance) == pytest.approx(0.01658, abs=1e-5)


def test_independent_pixels_reach_no_further_than_themselves() -> None:
    noise = np.random.default_rng(0).random((256, 256)) < 0.3
    found = correlation.of_field(noise)
    assert found.integral_range == pytest.approx(1, abs=0.1) and found.holds
    assert math.sqrt(found.variance) == pytest.approx(math.sqrt(0.3 * 0.7) / 256, rel=0.05)
    assert found.refusal == ""


def test_cells_of_a_random_chessboard_reach_as_far_as_their_area() -> None:
    """Independent squares of side 8: the integral range of their covariance is 64 px^2."""
    cells = np.random.default_rng(1).random((64, 64)) < 0.4
    found = correlation.of_field(np.kron(cells, np.ones((8, 8), bool)))
    assert found.integral_range == pytest.approx(64, rel=0.15)
    assert found.ratio == pytest.approx(512 / 8, rel=0.08)


def test_mirrored_turned_and_larger_fields_give_the_same_numbers() -> None:
    field = _gaussian(np.random.default_rng(2), 256, 4, 0.3)[:, :200]
    found = correlation.of_field(field)
    for other in (field[::-1], field[:, ::-1], field.T, ~field):
        turned = correlation.of_field(other)
        assert turned.integral_range == pytest.approx(found.integral_range, rel=1e-9)
        assert turned.variance == pytest.approx(found.variance, rel=1e-9)
    # Four times as many pixels of the same picture, in blocks of 2 x 2: the same number.
    large = correlation.of_field(np.kron(field, np.ones((4, 4), bool)))
    assert large.ratio == pytest.approx(found.ratio, rel=0.03)
    assert large.variance == pytest.approx(found.variance, rel=0.05)


def test_pixels_that_do_not_count_are_no_phase() -> None:
    field = _gaussian(np.random.default_rng(3), 256, 4, 0.3)
    inside = np.ones_like(field)
    inside[:, 200:] = False
    found, cut = correlation.of_field(field, inside), correlation.of_field(field[:, :200])
    assert found.share == cut.share
    assert found.integral_range == pytest.approx(cut.integral_range, rel=0.1)


def test_a_field_that_is_too_small_is_refused_in_words() -> None:
    field = _gaussian(np.random.default_rng(4), 128, 12, 0.4)
    found = correlation.of_field(field)
    assert found.ratio < 10 and not found.holds and math.isnan(found.sample.variance)
    assert "less than 10 correlation lengths wide: more fields" in found.refusal


@pytest.mark.parametrize("phase", [np.zeros((20, 20), bool), np.ones((20, 20), bool)])
def test_a_phase_that_is_all_or_nothing_tells_nothing(phase: NDArray[np.bool_]) -> None:
    found = correlation.of_field(phase)
    assert math.isnan(found.variance) and not found.holds and "all or nothing" in found.refusal


def test_one_field_covers_the_fraction_of_its_material() -> None:
    """200 fields of side / sqrt(A2) about 15; benchmarks/coverage.py has the whole table."""
    generator, share = np.random.default_rng(5), 0.3
    inside, spread = [], []
    for _ in range(200):
        found = correlation.of_field(_gaussian(generator, 128, 4.2, share))
        half = intervals.half_width(found.variance, found.degrees)
        ends = intervals.of_share(found.share, half)
        inside.append(ends.low <= share <= ends.high)
        spread.append((found.share, found.variance))
    shares, variances = np.array(spread).T
    assert np.mean(inside) >= 0.93 - 0.018 * 2
    # The variance it states is that which the fields have.
    assert 0.75 < np.median(variances) / np.var(shares) < 1.4
