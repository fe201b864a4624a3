"""Grain size of arrays: formulas, counts, lines and circles against exact polycrystals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import polycrystals
from matssl.measure.grains import (
    circles,
    gaps,
    intercept,
    network,
    planimetric,
    sizing,
    specimens,
    spread,
    standards,
)
from matssl.measure.grains.network import Network
from matssl.measure.grains.spread import Sizes


def _net(drawn: NDArray[np.bool_], close_gaps: int = 0) -> Network:
    counted = np.ones(drawn.shape, bool)
    return network.from_boundaries(drawn.astype(np.uint8), drawn, counted, close_gaps)


def _grid(side: int, pitch: int, offset: int, width: int = 1) -> NDArray[np.bool_]:
    drawn = np.zeros((side, side), bool)
    for k in range(width):
        drawn[offset + k :: pitch] = True
        drawn[:, offset + k :: pitch] = True
    return drawn


# --- formulas: worked examples of ASTM E112 and ISO 643 ---
def test_grain_size_numbers_are_those_of_the_standards() -> None:
    assert standards.from_density(1984) == pytest.approx(8.000, abs=5e-4)
    assert standards.from_area(504e-6) == pytest.approx(8.000, abs=1e-3)
    assert standards.from_intercept(0.020) == pytest.approx(8.000, abs=5e-4)
    assert standards.iso_from_density(1984) == pytest.approx(7.954, abs=5e-4)
    assert math.isnan(standards.from_density(0)) and math.isnan(standards.from_intercept(0))
    assert math.isnan(standards.from_hits(0))


def test_counts_by_jeffries_and_saltykov_give_the_printed_numbers() -> None:
    """Jeffries: M 100, 68 in, 41 cut on 0.5 mm². Saltykov: 100 in, 36 cut on 0.8 mm²."""
    jeffries = planimetric.Count(68, 41, 0, 0.0, 0.5)
    assert jeffries.density == 177
    assert standards.from_density(jeffries.density) == pytest.approx(4.514, abs=5e-4)
    saltykov = planimetric.Count(100, 36, 4, 1.0, 0.8)
    assert saltykov.density == 148.75
    assert standards.from_density(saltykov.density) == pytest.approx(4.263, abs=5e-4)


def test_five_lines_give_an_interval_whose_ends_are_carried_over_to_g() -> None:
    """P 52 47 55 49 50 on lines of 1 mm: l 0.019763 mm, G 8.034 (7.810 to 8.242), %RA 7.48."""
    found = specimens.mean([52, 47, 55, 49, 50])
    assert found.value == 50.6 and found.high - 50.6 == pytest.approx(3.787, abs=2e-3)
    assert found.relative == pytest.approx(7.48, abs=0.01)
    assert found.length.value == pytest.approx(0.019763, abs=1e-6)
    number = found.through(standards.from_hits)
    assert (number.value, number.low, number.high) == pytest.approx((8.034, 7.810, 8.242), abs=1e-3)


def test_one_field_has_no_interval() -> None:
    found = specimens.mean([3.0])
    assert found.value == 3 and math.isnan(found.low) and math.isnan(found.relative)
    assert math.isnan(specimens.mean([math.nan]).value)


# --- planimetric ---
def test_a_grid_counts_halves_at_edges_and_a_quarter_a_corner() -> None:
    """Cells of 50 µm on 1 mm x 1 mm, 25 µm off: 361 + 76/2 + 4/4 = 400, G 5.690."""
    found = planimetric.rectangle(_net(_grid(1000, 50, 25, 2)).labels)
    assert (found.inside, found.cut, found.corner) == (361, 76, 4)
    assert found.grains == 400
    assert standards.from_density(found.density * 1e6) == pytest.approx(5.690, abs=5e-4)


def test_corners_count_one_in_all_where_a_grain_holds_two() -> None:
    labels = np.ones((20, 20), np.int32)
    labels[:, 10:] = 2
    found = planimetric.rectangle(labels)
    assert (found.inside, found.cut, found.corner, found.grains) == (0, 0, 2, 1.0)
    assert planimetric.rectangle(np.ones((5, 5), np.int32)).grains == 1
    assert planimetric.rectangle(np.zeros((5, 5), np.int32)).grains == 0


def test_a_hole_takes_as_many_grains_as_it_covers() -> None:
    """A square of 4 cells cut out of a grid of 10 x 10 offset ones: 96 are left, not 92 or 100."""
    y, x = np.mgrid[:100, :100]
    labels = ((y + 5) // 10 * 11 + (x + 5) // 10 + 1).astype(np.int32)
    assert planimetric.rectangle(labels).grains == 100
    holed = labels.copy()
    holed[40:60, 40:60] = 0
    assert planimetric.rectangle(holed).grains == 96
    # One within a grain takes none.
    small = labels.copy()
    small[9:11, 9:11] = 0
    assert planimetric.rectangle(small).grains == pytest.approx(100, abs=1)


def test_rows_of_a_bar_are_no_field() -> None:
    counted = np.ones((60, 50), bool)
    counted[50:] = False
    assert network.window(counted) == (slice(0, 50), slice(0, 50))
    assert network.window(np.zeros((4, 4), bool)) == (slice(0, 0), slice(0, 0))


def test_a_circle_counts_nearly_a_grain_too_many() -> None:
    generator = np.random.default_rng(4)
    extra = []
    for _ in range(30):
        labels = polycrystals.polycrystal(200, 200, 28, generator).labels
        found = planimetric.circle(labels)
        extra.append(found.grains - found.area / 28**2)
    # 0.9 of theory; a Poisson process of 40 grains a circle scatters by 0.6 over 30 fields.
    assert 0 < float(np.mean(extra)) < 2.2


# --- from masks to grains ---
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_width_of_the_lines_changes_nothing(width: int) -> None:
    found = sizing.measured(_net(_grid(400, 40, 13, width)))
    assert found.rectangle.grains == 100
    assert found.lines[0.0].intercept == pytest.approx(40, rel=0.004)
    assert found.lines[45.0].intercept == pytest.approx(40 / math.sqrt(2), rel=0.02)
    assert found.check == pytest.approx(1)


def test_a_line_at_45_degrees_does_not_slip_through_a_boundary_of_single_pixels() -> None:
    """Pixels of a diagonal touch at corners; the other diagonal passes between two of them."""
    drawn = np.eye(100, dtype=bool)
    labels = _net(drawn).labels
    assert labels.max() == 2
    one, other = intercept.along(labels, intercept.HEYN[45.0]), intercept.along(labels, (1, 1))
    # Each of 199 - 2 lines longer than a pixel crosses it once, those along it never.
    assert 194 <= one.changes <= 198
    assert other.changes <= 2


def test_fragments_between_lines_are_no_grains() -> None:
    drawn = _grid(60, 20, 10, 3)
    drawn[11, 11] = False
    drawn[12, 31:33] = False
    found = _net(drawn)
    assert found.grains == 16 and found.fragments == 2
    assert found.labels.min() == 1


def test_a_field_of_nothing_gives_no_numbers_and_no_error() -> None:
    for drawn in (np.ones((30, 30), bool), np.zeros((30, 30), bool)):
        found = sizing.measured(_net(drawn, 5))
        assert found.rectangle.grains in (0, 1)
        assert found.rose.anisotropy is None and math.isnan(found.lines[0.0].intercept)
    tiny = sizing.measured(_net(np.zeros((1, 1), bool)))
    assert tiny.rectangle.grains == 0
    empty = sizing.measured(_net(np.zeros((0, 0), bool)))
    assert empty.rectangle.grains == 0 and math.isnan(empty.check)


def test_numbered_grains_and_borders_of_phases_give_what_lines_give() -> None:
    crystal = polycrystals.polycrystal(300, 300, 40, np.random.default_rng(1))
    counted = np.ones((300, 300), bool)
    by_number = sizing.measured(network.from_labels(crystal.labels * 1000, counted))
    assert by_number.rectangle.grains == pytest.approx(
        polycrystals.grain_count(crystal.labels), abs=0.5
    )
    drawn = sizing.measured(_net(crystal.mask(1)))
    assert drawn.rectangle.grains == pytest.approx(by_number.rectangle.grains, abs=1)
    assert drawn.hits_per_length == pytest.approx(by_number.hits_per_length, rel=0.01)
    checks = (np.add.outer(np.arange(100) // 10, np.arange(100) // 10) % 2).astype(np.uint8)
    phases = network.from_phases(checks, np.ones((100, 100), bool))
    assert phases.grains == 100


def test_ignored_pixels_are_neither_grain_nor_line() -> None:
    drawn = _grid(200, 20, 10)
    counted = np.ones(drawn.shape, bool)
    counted[80:120, 80:120] = False
    found = network.from_boundaries(drawn.astype(np.uint8), drawn, counted)
    assert not found.labels[80:120, 80:120].any()
    size = sizing.measured(found)
    assert size.rectangle.area == 200 * 200 - 40 * 40
    assert size.rectangle.grains == pytest.approx(96, abs=0.01)
    assert size.lines[0.0].intercept == pytest.approx(20, rel=0.02)


# --- gaps ---
def test_gaps_up_to_the_width_are_closed_and_wider_ones_are_not() -> None:
    drawn = _grid(400, 50, 25, 2)
    for gap, row in ((3, 25), (5, 125), (9, 225)):
        middle = 100 - gap // 2
        drawn[row : row + 2, middle : middle + gap] = False
    added, closed = gaps.links(drawn, 5)
    assert closed == 2 and added.sum() < 30
    assert _net(drawn).grains == _net(_grid(400, 50, 25, 2)).grains - 3
    assert _net(drawn, 5).grains == _net(drawn).grains + 2
    assert _net(drawn, 9).grains == _net(drawn).grains + 3
    assert gaps.links(drawn, 0)[1] == 0


@pytest.mark.parametrize("degrees", [0, 27, 45, 90, 131])
def test_gaps_are_closed_in_any_direction(degrees: float) -> None:
    y, x = np.mgrid[:120, :120] - 60.0
    turn = math.radians(degrees)
    along, across = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    drawn = (abs(across) <= 1) & (abs(along) > 2)
    assert _net(drawn).grains == 1
    found = _net(drawn, 5)
    assert found.grains == 2 and found.closed == 1


def test_a_boundary_that_ends_just_before_the_edge_is_carried_on_to_it() -> None:
    drawn = np.zeros((80, 80), bool)
    drawn[4:, 40:42] = True
    assert _net(drawn).grains == 1 and _net(drawn, 5).grains == 2
    far = np.zeros((80, 80), bool)
    far[20:, 40:42] = True
    assert _net(far, 5).grains == 1


def test_rough_thick_lines_have_spurs_and_no_gaps() -> None:
    generator = np.random.default_rng(0)
    drawn = _grid(300, 60, 30, 7)
    rough = drawn.copy()
    for row, column in generator.integers(0, 300, (2000, 2)):
        near = drawn[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        rough[row, column] |= near.any()
    assert gaps.links(rough, 5)[1] == 0
    assert _net(rough, 5).grains == _net(drawn).grains


# --- against exact polycrystals ---
@pytest.mark.parametrize(("seed", "width"), [(0, 1), (1, 2), (2, 3)])
def test_every_method_is_within_002_of_its_own_truth(seed: int, width: int) -> None:
    crystal = polycrystals.polycrystal(420, 480, 58, np.random.default_rng(seed))
    size = sizing.measured(_net(crystal.mask(width), 5))
    true = np.mean([crystal.hits_per_length(degrees) for degrees in intercept.HEYN])
    assert abs(6.643856 * math.log10(size.hits_per_length / true)) <= 0.02
    for pattern, hits in ((circles.HILLIARD, size.hilliard), (circles.ABRAMS, size.abrams)):
        placed = circles.placed(420, 480, pattern)
        right = sum(crystal.circle_hits(c.column + 0.5, c.row + 0.5, c.radius) for c in placed)
        assert abs(6.643856 * math.log10(hits.count / right)) <= 0.02
    # A field of 60 grains: a sliver at the edge that a line covers is 0.03 in G.
    assert size.rectangle.grains == pytest.approx(polycrystals.grain_count(crystal.labels), abs=1.5)


def test_lines_of_all_directions_see_the_boundary_length_of_the_field() -> None:
    """P_L = 2 L_A/π (Saltykov); S_V = 2 P_L."""
    labels = (crystal := polycrystals.polycrystal(400, 400, 30, np.random.default_rng(7))).labels
    found = [intercept.along(labels, step).per_length for step in intercept.ROSE.values()]
    assert np.mean(found) == pytest.approx(2 / math.pi * crystal.length_per_area, rel=0.01)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, 160])
def test_the_anisotropy_index_lies_along_the_axis_of_the_rose(degrees: float) -> None:
    """Grains three times as long as wide: 0° and 90° see 1.5 of it at 30°, nothing at 45°."""
    crystal = polycrystals.polycrystal(400, 400, 24, np.random.default_rng(3), 3.0, degrees)
    lines = {d: intercept.along(crystal.labels, step) for d, step in intercept.ROSE.items()}
    found = intercept.rose({d: hits.per_length for d, hits in lines.items()})
    assert found.anisotropy == pytest.approx(3.0, abs=0.25)
    assert found.degrees is not None and abs((found.degrees - degrees + 90) % 180 - 90) < 3
    if degrees == 30:
        assert lines[0.0].intercept / lines[90.0].intercept == pytest.approx(1.53, abs=0.12)


def test_a_rose_without_a_direction_has_none() -> None:
    square = {0.0: 1.0, 45.0: 2**0.5, 90.0: 1.0, 135.0: 2**0.5}
    found = intercept.rose(square)
    assert found.anisotropy == pytest.approx(1) and found.degrees is None
    lamellae = {d: abs(math.sin(math.radians(d - 20))) for d in (0.0, 45.0, 90.0, 135.0)}
    found = intercept.rose(lamellae)
    assert found.degrees == pytest.approx(20)
    assert found.anisotropy is None or found.anisotropy > 1e6


def test_intercepts_add_up_to_the_lines_they_lie_on() -> None:
    crystal = polycrystals.polycrystal(90, 130, 15, np.random.default_rng(5))
    labels = crystal.labels.copy()
    labels[20:30, 40:70] = 0
    for degrees, step in intercept.HEYN.items():
        hits = intercept.along(labels, step)
        number, total = intercept.pieces(labels, degrees)
        assert total == pytest.approx(hits.length)
        assert number > hits.changes


def test_lines_further_apart_are_fewer_and_find_the_same() -> None:
    crystal = polycrystals.polycrystal(600, 600, 20, np.random.default_rng(6))
    for step in intercept.ROSE.values():
        dense = intercept.along(crystal.labels, step)
        sparse = intercept.along(crystal.labels, step, 10)
        assert sparse.length == pytest.approx(600**2 / 10, rel=0.06)
        assert sparse.intercept == pytest.approx(dense.intercept, rel=0.05)


# --- the same field seen otherwise ---
def test_mirrored_turned_and_enlarged_fields_give_the_same_numbers() -> None:
    drawn = polycrystals.polycrystal(240, 240, 36, np.random.default_rng(8), 1.6, 20).mask(2)
    first = sizing.measured(_net(drawn, 5))
    assert first.rose.degrees is not None and first.rose.anisotropy is not None
    seen: dict[str, tuple[NDArray[np.bool_], Callable[[float], float]]] = {
        "mirrored": (drawn[:, ::-1], lambda d: 180 - d),
        "upside down": (drawn[::-1], lambda d: 180 - d),
        "turned": (np.rot90(drawn), lambda d: d + 90),
        "transposed": (drawn.T, lambda d: 90 - d),
    }
    for name, (other, turned) in seen.items():
        size = sizing.measured(_net(np.ascontiguousarray(other), 5))
        assert size.rectangle == first.rectangle, name
        assert size.hits_per_length == pytest.approx(first.hits_per_length, rel=0.004), name
        assert size.abrams.per_length == pytest.approx(first.abrams.per_length, rel=0.006), name
        assert size.rose.anisotropy == pytest.approx(first.rose.anisotropy, rel=0.015), name
        assert size.rose.degrees is not None
        off = (size.rose.degrees - turned(first.rose.degrees) + 90) % 180 - 90
        assert abs(off) < 1, name
    large = sizing.measured(_net(np.repeat(np.repeat(drawn, 2, 0), 2, 1), 10))
    assert large.rectangle.grains == pytest.approx(first.rectangle.grains, abs=1)
    assert large.hits_per_length * 2 == pytest.approx(first.hits_per_length, rel=0.015)


# --- sizes ---
def _sizes(areas: list[float]) -> Sizes:
    values = np.array(areas, float)
    return Sizes(values, np.zeros(len(values), bool), np.ones(len(values)))


def test_weights_make_up_for_large_grains_that_edges_cut() -> None:
    labels = np.ones((100, 100), np.int32)
    labels[40:60, 40:60] = 2
    found = spread.sizes(labels)
    # A square of 20 px on a field of 100: 100²/(99 - 20)².
    assert found.cut.tolist() == [True, False]
    assert found.weights.tolist() == [0.0, pytest.approx(100**2 / 79**2)]
    assert found.areas.tolist() == [9600, 400]


def test_grains_as_large_as_can_be_and_two_heaps_are_told_in_words() -> None:
    generator = np.random.default_rng(2)
    even = np.exp(generator.normal(math.log(100), 0.5, 400))
    assert spread.spread(_sizes(even.tolist())).words == []
    found = spread.spread(_sizes([*even, 1500.0]))
    assert found.outliers == 1 and found.largest == pytest.approx(math.log2(1500 / even.mean()))
    assert "ALA" in found.words[0]
    coarse = np.exp(generator.normal(math.log(100 * 2**6), 0.4, 60))
    found = spread.spread(_sizes([*even, *coarse]))
    assert found.peaks == pytest.approx(6, abs=1.5) and "two heaps" in " ".join(found.words)
    wide = np.exp(generator.uniform(0, math.log(2**8), 4000))
    assert any("wide range" in word for word in spread.spread(_sizes(wide.tolist())).words)


def test_poisson_voronoi_grains_raise_no_suspicion() -> None:
    labels = polycrystals.polycrystal(600, 600, 24, np.random.default_rng(9)).labels
    found = spread.spread(spread.sizes(network.from_labels(labels, labels > 0).labels))
    assert found.words == []
