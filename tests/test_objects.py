"""Objects: what is one, its size and shape, what edges do to counts and sizes, spheres."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.measure import intervals, units
from matssl.measure.field import Field, Masked, areas
from matssl.measure.objects import (
    edges,
    neighbours,
    parts,
    separation,
    shapes,
    sizes,
    spheres,
    stereology,
    summary,
    tables,
)
from matssl.measure.objects.found import Found, Rules, Size, find

ALL_SIZES = Rules(least=Size(1, power=2))


def _disc(height: int, width: int, y: float, x: float, r: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= r * r)


def _masked(mask: NDArray[np.uint8], **more: object) -> Masked:
    size = more.pop("pixel_size", None)
    name = str(more.pop("name", "a"))
    specimen = str(more.pop("specimen", "s"))
    classes = max(2, int(mask[mask < 255].max(initial=0)) + 1)
    field = Field(Path(f"{name}.png"), name, specimen, areas(mask, classes), size)  # type: ignore[arg-type]
    return Masked(field, mask, **more)  # type: ignore[arg-type]


def _found(
    mask: NDArray[np.uint8], rules: Rules = ALL_SIZES, kind: int = 1, **more: object
) -> Found:
    return next(find(_masked(mask, **more), (kind,), max(2, kind + 1), rules))[0]


def _blobs(seed: int = 0, height: int = 260, width: int = 330) -> NDArray[np.uint8]:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(height, width))
    return np.asarray(gaussian_filter(noise, 4) > 0.02, np.uint8)


# What is an object.


def test_parts_are_joined_at_corners_and_each_class_has_its_own() -> None:
    """F-P17: no region is lost and classes are not mixed."""
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 2:8] = 1
    mask[6:9, 8:12] = 1  # touches the first at a corner
    mask[14:20, 20:24] = 1
    mask[12:14, 2:4] = 1
    mask[1:5, 20:25] = 2
    all_ = [one for one, _ in find(_masked(mask), (0, 1, 2), 3, ALL_SIZES)]
    found = [sorted(one.shapes.area.tolist()) for one in all_]
    assert found == [[600 - 36 - 24 - 4 - 20], [4, 24, 36], [20]]
    assert [one.first for one in all_] == [1, 2, 5]


def test_smaller_ones_are_dropped_and_counted_and_the_last_one_is_not() -> None:
    """F-P17: the last region is kept; C3: what is dropped is said."""
    mask = np.zeros((40, 40), np.uint8)
    for y, x, side in ((5, 5, 2), (5, 15, 3), (20, 20, 4), (32, 32, 5)):
        mask[y : y + side, x : x + side] = 1
    found = _found(mask, Rules())
    assert found.shapes.area.tolist() == [16, 25] and (found.dropped, found.dropped_area) == (2, 13)


def test_a_smallest_area_is_of_each_picture_and_needs_its_pixel_size() -> None:
    least = Size(0.05e6, True, "--min_area 0.05um2", 2)  # 0.05 um2 in nm2
    assert least.pixels(50.0, "a") == pytest.approx(20)
    assert least.pixels(10.0, "a") == pytest.approx(500)
    with pytest.raises(UserError, match="a has no pixel size.*--min_area 0.05um2.*--pixel_size"):
        least.pixels(None, "a")


def test_small_parts_at_the_edge_are_pieces_unless_the_field_is_full_of_small_ones() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[0, 20:25] = mask[199, 50:56] = mask[80:120, 80:120] = 1
    found = _found(mask, Rules())
    assert (found.count, found.pieces, found.dropped) == (3, 2, 0)
    speckled = mask.copy()
    speckled[3:197:4, 3:197:4] = 1
    speckled[70:130, 70:130] = mask[70:130, 70:130]
    found = _found(speckled, Rules())
    assert (found.count, found.pieces) == (1, 0) and found.dropped > 2000


def test_holes_belong_to_their_object_where_asked_for() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    mask[15:20, 15:20] = 0
    mask[0:5, 0:5] = 1
    mask[0:3, 0:3] = 0  # open to the edge: no hole
    assert sorted(_found(mask).shapes.area.tolist()) == [16, 375]
    filled = _found(mask, Rules(Size(1, power=2), fill=True))
    assert sorted(filled.shapes.area.tolist()) == [16, 400]
    mask[17, 17] = 255
    unknown = _found(mask, Rules(Size(1, power=2), fill=True))
    assert 375 in unknown.shapes.area


def test_numbers_of_the_mask_itself_are_the_objects() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[2:8, 2:8], labels[2:8, 8:14], labels[20:25, 3:9] = 5, 9, 5
    found = _found((labels > 0).astype(np.uint8), labels=labels)
    assert sorted(found.shapes.area.tolist()) == [36, 66] and found.numbered


# Touching objects: worked example 6.


def test_touching_discs_are_parted_by_the_dynamic_of_their_peaks() -> None:
    unequal = _disc(60, 80, 30, 20, 10) | _disc(60, 80, 30, 36, 8)
    nothing = np.zeros_like(unequal)

    def sizes_(inside: NDArray[np.bool_], depth: float | None) -> list[int]:
        return np.bincount(separation.separated(inside, nothing, depth).ravel())[1:].tolist()

    for depth in (1, 3, None):
        assert sizes_(unequal, depth) == [316, 189]
    assert sizes_(unequal, 4) == [505]
    equal = _disc(60, 80, 30, 20, 10) | _disc(60, 80, 30, 38, 10)
    assert sizes_(equal, 1) == [316, 307]


def test_two_equal_peaks_on_one_bar_are_one_object_whatever_the_depth() -> None:
    """Plain h-maxima keep both."""
    bar = np.zeros((40, 120), bool)
    bar[15:26, 10:110] = True
    bar[14:27, 20:31] = bar[14:27, 80:91] = True
    assert separation.separated(bar, np.zeros_like(bar), 2.0).max() == 1


def test_a_rough_ellipse_is_one_object() -> None:
    rows, columns = np.mgrid[:160, :240]
    angle = np.arctan2((rows - 80) / 45, (columns - 120) / 90)
    noise = sum(np.sin(k * angle + k * k) for k in (7, 11, 17, 23, 31)) * 0.012
    rough = np.hypot((rows - 80) / 45, (columns - 120) / 90) <= 1 + noise
    labels = separation.separated(rough, np.zeros_like(rough))
    assert labels.max() == 1 and np.array_equal(labels > 0, rough)


def test_a_disc_cut_by_the_edge_or_by_what_counts_nowhere_stays_one() -> None:
    disc = _disc(60, 60, 30, 2, 20)
    assert separation.separated(disc, np.zeros_like(disc)).max() == 1
    whole = _disc(60, 60, 30, 30, 20)
    unknown = np.zeros_like(whole)
    unknown[:, 24:34] = True
    labels = separation.separated(whole & ~unknown, unknown)
    assert labels.max() == 2 and np.array_equal(labels > 0, whole & ~unknown)


# Size and shape.


def test_a_disc_has_the_published_numbers() -> None:
    """neighbours.md: disc of r 20; worked example 5: 20.003 nm at 0.5 nm a pixel."""
    found = shapes.measured(_disc(60, 60, 30, 30, 20).astype(np.int32), 1)
    assert found.area[0] == 1257 and found.diameter[0] == pytest.approx(40.006, abs=1e-3)
    assert found.outer[0] == found.total[0] == pytest.approx(127.71, abs=5e-3)
    assert found.circularity[0] == pytest.approx(0.968, abs=5e-4)
    assert found.diameter[0] * 0.5 == pytest.approx(20.003, abs=1e-3)
    assert found.aspect[0] == pytest.approx(1) and math.isnan(found.orientation[0])


def test_a_box_is_measured_on_the_corners_of_its_pixels() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[5:17, 7:37] = 1
    found = shapes.measured(labels, 1)
    assert (found.x[0], found.y[0]) == (22, 11)
    assert found.feret_max[0] == pytest.approx(math.hypot(30, 12))
    assert found.feret_min[0] == pytest.approx(12) and found.hull[0] == pytest.approx(360)
    assert found.aspect[0] == pytest.approx(2.5) and found.orientation[0] == pytest.approx(0)
    # Crofton: 24, 60, 82 and 82 crossings; straight edges come out short.
    assert found.outer[0] == pytest.approx(math.pi / 8 * (24 + 60 + 164 / math.sqrt(2)))


@pytest.mark.parametrize("angle", [0, 17, 45, 90, 135, 163])
def test_orientation_is_counter_clockwise_from_x_with_y_up(angle: float) -> None:
    rows, columns = np.mgrid[:120, :120]
    turn = math.radians(angle)
    x, y = columns - 60.2, 59.7 - rows
    along, across = (
        x * math.cos(turn) + y * math.sin(turn),
        -x * math.sin(turn) + y * math.cos(turn),
    )
    found = shapes.measured(((along / 45) ** 2 + (across / 15) ** 2 <= 1).astype(np.int32), 1)
    # The flat tips of an upright ellipse of pixels have their largest distance across.
    for value, tolerance in ((found.orientation[0], 0.3), (found.feret_angle[0], 7)):
        assert abs((value - angle + 90) % 180 - 90) < tolerance
    assert found.aspect[0] == pytest.approx(3, abs=0.05)


def test_a_hole_adds_to_the_whole_outline_alone() -> None:
    ring = (_disc(80, 80, 40, 40, 30) & ~_disc(80, 80, 40, 40, 12)).astype(np.int32)
    solid = shapes.measured(_disc(80, 80, 40, 40, 30).astype(np.int32), 1)
    hole = shapes.measured(_disc(80, 80, 40, 40, 12).astype(np.int32), 1)
    found = shapes.measured(ring, 1)
    assert found.outer[0] == pytest.approx(solid.outer[0]) and found.holes[0] == 1
    assert found.total[0] == pytest.approx(solid.outer[0] + hole.outer[0])


def test_all_at_once_gives_what_scikit_image_gives_one_by_one() -> None:
    from skimage.measure import regionprops_table

    labels = parts.connected(_blobs() > 0)
    count = int(labels.max())
    found = shapes.measured(labels, count)
    names = ("area", "centroid", "bbox", "perimeter_crofton", "euler_number", "orientation")
    right = regionprops_table(labels, properties=(*names, "solidity", "feret_diameter_max"))
    assert count > 30 and found.holes.sum() == 3
    assert np.array_equal(found.area, right["area"])
    assert np.allclose(found.x - 0.5, right["centroid-1"])
    assert np.allclose(found.y - 0.5, right["centroid-0"])
    assert np.array_equal(found.left + found.width, right["bbox-3"])
    assert np.allclose(found.total, right["perimeter_crofton"])
    assert np.array_equal(1 - found.holes, right["euler_number"])
    # Its angle runs clockwise from the row axis; its hull leaves the corners of pixels out.
    turned = (found.orientation - np.degrees(right["orientation"]) - 90 + 90) % 180 - 90
    assert np.nanmax(np.abs(turned)) < 1e-6
    large = found.area > 200
    assert np.abs(found.solidity - right["solidity"])[large].max() < 0.05
    assert np.abs(found.feret_max - right["feret_diameter_max"]).max() < 1


def test_pixels_that_are_not_square_give_the_lengths_of_the_stretched_object() -> None:
    rows, columns = np.mgrid[:200, :100]
    flat = shapes.measured(
        (((columns - 50) / 20) ** 2 + ((rows - 100) / 80) ** 2 <= 1).astype(np.int32), 1, (0.5, 2.0)
    )
    disc = shapes.measured(_disc(100, 100, 50, 50, 40).astype(np.int32), 1)
    for name in ("area", "feret_max", "outer"):
        assert getattr(flat, name)[0] == pytest.approx(getattr(disc, name)[0], rel=0.03)
    assert flat.aspect[0] == pytest.approx(1, abs=0.02)


def _mirrored(mask: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    turned = {"mirror": mask[:, ::-1], "flip": mask[::-1], "quarter": np.rot90(mask)}
    return {name: np.ascontiguousarray(own) for name, own in turned.items()}


def test_mirrored_and_turned_fields_give_the_same_numbers() -> None:
    mask = _blobs(3)
    mask[100:110, 200:240] = 255
    rules = Rules(Size(10, power=2))
    first = _found(mask, rules)
    for name, own in _mirrored(mask).items():
        found = _found(own, rules)
        for key in ("area", "outer", "total", "feret_max", "feret_min", "aspect", "hull"):
            ours, theirs = (np.sort(getattr(one.shapes, key)) for one in (first, found))
            assert np.allclose(ours, theirs), (name, key)
        assert found.number == first.number
        assert np.allclose(np.sort(found.neighbours.distance), np.sort(first.neighbours.distance))
        assert found.lines.per_length == pytest.approx(first.lines.per_length)
        # Places of boxes are tried on a grid where pixels count nowhere.
        assert np.allclose(np.sort(found.edges.weight), np.sort(first.edges.weight), rtol=0.03)
        angle = first.shapes.orientation
        turned = 180 - angle if name != "quarter" else angle + 90
        assert np.allclose(
            np.nansum(np.sin(np.radians(2 * turned))),
            np.nansum(np.sin(np.radians(2 * found.shapes.orientation))),
        )


def test_touching_objects_are_parted_alike_in_mirrored_and_turned_fields() -> None:
    mask = _blobs(4)
    rules = Rules(Size(1, power=2), separate=True)
    first = _found(mask, rules)
    assert first.split > 5
    for name, own in _mirrored(mask).items():
        found = _found(own, rules)
        # Where two sides of a line are equally near, its pixels fall to either of them.
        assert abs(found.count - first.count) <= 1, name
        assert found.shapes.area.sum() == first.shapes.area.sum()
        ours, theirs = (float(one.shapes.diameter.mean()) for one in (first, found))
        assert ours == pytest.approx(theirs, rel=0.01), name


def test_a_pixel_size_scales_lengths_and_nothing_else() -> None:
    mask = _blobs(5)
    plain = _summary([_found(mask)])
    scaled = _summary([_found(mask, pixel_size=250.0)])
    unit = summary.unit_of([_found(mask, pixel_size=250.0)])
    assert unit.name == "µm"
    for name, own in scaled.by_number.items():
        assert own.value == pytest.approx(0.25 * (plain.by_number[name].value or 0))
    assert scaled.share.value == plain.share.value
    assert scaled.clark_evans == pytest.approx(plain.clark_evans)
    assert scaled.per_length == pytest.approx(4 * (plain.per_length or 0))


def _summary(found: list[Found]) -> summary.Summary:
    return summary.summarise("s", found, summary.unit_of(found))


def test_cutting_two_rows_off_changes_the_mean_size_little() -> None:
    """A public report on another program: the mean area jumped when two rows were cropped."""
    mask = _blobs(7, 500, 500)
    means = [_summary([_found(mask[: 500 - n])]).by_number["mean"].value or 0 for n in (0, 1, 2, 3)]
    assert max(means) / min(means) - 1 < 0.02


# Edges.


def test_objects_count_half_at_an_edge_and_a_quarter_at_a_corner() -> None:
    mask = np.zeros((50, 50), np.uint8)
    mask[:4, :4] = mask[20:25, :5] = mask[20:25, 20:25] = mask[45:, 20:25] = 1
    assert _found(mask).number == 0.25 + 0.5 + 1 + 0.5


def test_an_object_across_fields_counts_once_in_all_of_them() -> None:
    whole = np.zeros((40, 40), np.uint8)
    whole[15:25, 15:25] = 1
    whole[2:6, 18:22] = 1
    tiles = [whole[y : y + 20, x : x + 20] for y in (0, 20) for x in (0, 20)]
    assert sum(_found(tile).number for tile in tiles) == 2 == _found(whole).number


def test_what_lies_beside_ignored_pixels_is_cut_and_these_are_in_no_density() -> None:
    """C3."""
    mask = np.zeros((50, 40), np.uint8)
    mask[10:15, 10:15] = mask[25:30, 20:25] = 1
    mask[30:35, 25:30] = 255  # touches the second at a corner
    mask[40:] = 255
    found = _found(mask)
    assert found.edges.touches.tolist() == [False, True] and found.number == 1.5
    assert found.pixels == 40 * 40 - 25
    assert _summary([found]).density.value == pytest.approx(1.5 / 1575)
    bar = np.zeros((50, 40), np.uint8)
    bar[40:] = 255
    bar[38:40, 5:9] = 1
    assert _found(bar).edges.touches.tolist() == [True]


def test_weights_are_those_of_miles_and_lantuejoul() -> None:
    """Worked example 8: 20 x 20 in 100 x 100 weighs 1.5625; in pixels W - 1 - w."""
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 30:50] = 1
    assert 100 * 100 / ((100 - 20) * (100 - 20)) == 1.5625
    assert _found(mask).edges.weight[0] == pytest.approx(1e4 / 79**2)
    places = [(y, x) for y in range(-19, 100) for x in range(-19, 100) if 0 < y < 80 and 0 < x < 80]
    # Places in which no pixel of the box lies at the edge.
    assert len(places) == 79**2


def test_weights_beside_ignored_pixels_are_counted_by_places() -> None:
    gaps = np.zeros((60, 80), bool)
    gaps[30, 40] = True
    one = np.array([6.0])
    shape = shapes.measured(_box(60, 80, 5, 5, 6), 1)
    found = edges.edges(_box(60, 80, 5, 5, 6), 1, shape, gaps).weight[0]
    # Of 53 x 73 places 8 x 8 would touch the gap.
    assert found == pytest.approx((4800 - 1) / (53 * 73 - 64), rel=0.005)
    assert edges.miles_lantuejoul(one, one, 80, 60)[0] == pytest.approx(4800 / (53 * 73))


def _box(height: int, width: int, top: int, left: int, side: int) -> NDArray[np.int32]:
    labels = np.zeros((height, width), np.int32)
    labels[top : top + side, left : left + side] = 1
    return labels


def test_sizes_in_small_fields_are_those_of_the_population() -> None:
    """Worked example 7: radii 5, 15, 30 equally frequent in a window of 200 px, simulated.

    Of discs wholly inside the mean radius is 14.21, weighted 16.67; drawn as boxes of their width.
    """
    generator = np.random.default_rng(0)
    plain, weighted, weights = [], [], []
    for r in (5, 15, 30):
        x, y = generator.uniform(-30, 230, (2, 200_000))
        inside = np.count_nonzero((x > r) & (x < 200 - r) & (y > r) & (y < 200 - r))
        weight = 200 * 200 / ((200 - 2 * r) ** 2)
        plain.append(inside)
        weights.append(inside * weight)
        weighted.append(inside * weight * r)
    assert np.dot(plain, (5, 15, 30)) / sum(plain) == pytest.approx(14.21, abs=0.05)
    # All that touch the window: those with their centre in the window grown by the disc.
    touching = [200**2 + 4 * 200 * r + math.pi * r * r for r in (5, 15, 30)]
    assert np.dot(touching, (5, 15, 30)) / sum(touching) == pytest.approx(18.43, abs=0.005)
    assert sum(weighted) / sum(weights) == pytest.approx(16.67, abs=0.1)


# Sizes, neighbours, lines, spheres.


def test_percentiles_are_weighted_by_number_and_by_area() -> None:
    diameter = np.array([4.0, 1.0, 3.0, 2.0])
    found = sizes.sizes(diameter, np.ones(4))
    assert found is not None and found.mean == 2.5 and found.d50 == 2.5
    assert found.deviation == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
    assert found.d10 == pytest.approx(1.0) and found.d90 == pytest.approx(4.0)
    twice = sizes.sizes(np.array([1.0, 2.0]), np.array([3.0, 1.0]))
    assert twice is not None and twice.mean == 1.25
    by_area = sizes.sizes(diameter, diameter**2)
    assert by_area is not None and by_area.mean == pytest.approx(100 / 30)
    assert sizes.sizes(diameter, np.zeros(4)) is None


def test_classes_of_sizes_hold_all_objects_and_add_to_one() -> None:
    diameter = np.random.default_rng(0).lognormal(3, 0.5, 400)
    for log in (False, True):
        own = sizes.class_edges(diameter, np.ones(400), log)
        found = sizes.classes(diameter, np.ones(400), own)
        assert found is not None and found.objects.sum() == 400
        assert found.by_number.sum() == pytest.approx(1) == found.by_area.sum()
    assert sizes.logarithmic(np.array([1.0, 10, 100]), np.ones(3))
    assert len(sizes.class_edges(np.array([7.0]), np.ones(1), False)) >= 2


def test_a_lattice_keeps_apart_and_points_at_random_do_not() -> None:
    """Worked example 8: expected distance 50 of 100 points in 1000 x 1000; a square lattice R 2."""
    x, y = (axis.ravel().astype(float) for axis in np.meshgrid(*(np.arange(50, 1000, 100),) * 2))
    known = np.zeros((1000, 1000), bool)
    lattice = neighbours.nearest(x, y, known)
    assert neighbours.clark_evans(lattice.distance, lattice.weight, 1e-4) == pytest.approx(2)
    generator, found = np.random.default_rng(0), []
    gap = known.copy()
    gap[400:600, 400:600] = True
    for unknown in (known, gap):
        ratios = []
        for _ in range(40 if unknown is known else 12):
            x, y = generator.uniform(0, 1000, (2, 100))
            seen = ~unknown[y.astype(int), x.astype(int)]
            one = neighbours.nearest(x[seen], y[seen], unknown)
            density = seen.sum() / np.count_nonzero(~unknown)
            ratios.append(neighbours.clark_evans(one.distance, one.weight, density))
        found.append(float(np.mean(ratios)))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(1, abs=0.03) and found[1] == pytest.approx(1, abs=0.05)


def test_lines_find_the_boundary_of_discs_and_the_free_path_of_stripes() -> None:
    """S_V = 2 P_L and P_L = 2 L_A / pi of outlines without a direction; E1245's free path."""
    inside = np.zeros((400, 400), bool)
    for y in range(50, 400, 100):
        for x in range(50, 400, 100):
            inside |= _disc(400, 400, y, x, 30.4)
    nothing = np.zeros_like(inside)
    per_length = stereology.lines(inside, nothing).per_length
    outline = 16 * 2 * math.pi * 30.4 / 400**2
    assert per_length == pytest.approx(2 * outline / math.pi, rel=0.01)
    assert stereology.surface_density(per_length) == 2 * per_length
    # Stripes of 10 in 40: a line across meets one each 40 and is free for 30.
    assert stereology.mean_free_path(0.25, 2 / 40) == 30
    cut = np.zeros((60, 60), bool)
    cut[:, :30] = True
    gap = np.zeros_like(cut)
    gap[:, 28:32] = True
    assert stereology.lines(cut, gap).crossings.sum() == 0


def test_the_matrix_of_saltykov_is_derived_and_agrees_with_the_printed_one() -> None:
    printed = [1.6461, 0.4561, 0.1162, 0.0415, 0.0173, 0.0079]
    printed += [0.0038, 0.0018, 0.0010, 0.0003, 0.0002, 0.0002]
    own = spheres.coefficients()
    assert own[0] == pytest.approx(printed[0], abs=2e-4)
    assert np.allclose(-own[1:], printed[1:], atol=2e-4)
    assert own[5:9] == pytest.approx([-0.0078, -0.0037, -0.0018, -0.0009], abs=5e-5)


def test_spheres_of_one_size_are_found_from_their_sections() -> None:
    """20 000 sections of spheres of 10: N_V D = N_A in the first class, little in the others."""
    generator = np.random.default_rng(0)
    depth = generator.uniform(0, 5, 20_000)
    diameter = 2 * np.sqrt(25 - depth**2)
    found = spheres.spheres(diameter, np.ones(20_000), 1e6)
    assert found is not None
    assert found.spheres[0] * 10 == pytest.approx(0.02, rel=0.02)
    assert np.abs(found.spheres[1:]).max() < 0.03 * found.spheres[0]
    assert (found.spheres < 0).any()
    assert spheres.mean_diameter(found) == pytest.approx(10, rel=0.03)


def test_intervals_of_sizes_draw_specimens_and_their_fields() -> None:
    assert intervals.redrawn([3], lambda drawn: drawn[:1].astype(float)) is None
    assert intervals.redrawn([3, 3, 3], lambda drawn: drawn[:1].astype(float)) is None
    values = np.array([9.0, 10, 11, 10, 12, 8, 10, 9, 11, 10])

    def mean(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([drawn @ values / drawn.sum(), 3.0])

    ends = intervals.redrawn([10], mean)
    assert ends is not None
    half = intervals.student_t(9) * values.std(ddof=1) / math.sqrt(10)
    assert ends[:, 0] == pytest.approx([10 - half, 10 + half], abs=0.12)
    assert np.isnan(ends[:, 1]).all()


# Tables.


def test_no_shape_is_printed_of_what_is_too_small_for_one() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[5:10, 5:10] = mask[30:42, 30:42] = 1
    small, large = tables.ObjectRows([_found(mask)], ("matrix", "particle"), units.PIXELS)
    for name in ("circularity", "solidity", "aspect ratio (moments)", "Feret angle (deg)"):
        assert small[name] is None and large[name] is not None
    assert small["area (px)"] == 25


def test_a_circularity_above_one_is_not_cut() -> None:
    """4 pi A / P^2 of a square of 10 with Crofton's outline of 35.8 px."""
    mask = np.zeros((30, 30), np.uint8)
    mask[5:25, 5:25] = 1
    mask[5, 5] = mask[5, 24] = mask[24, 5] = mask[24, 24] = 0
    own = tables.ObjectRows([_found(mask)], ("matrix", "particle"), units.PIXELS)[0]
    found = _found(mask).shapes
    assert own["circularity"] == pytest.approx(4 * math.pi * 396 / found.outer[0] ** 2)


def test_lengths_are_in_the_unit_of_their_magnitude_and_areas_with_them() -> None:
    """C9: no 0.004557 µm."""
    mask = np.zeros((60, 60), np.uint8)
    mask[20:30, 20:30] = 1
    fine, coarse = _found(mask, pixel_size=0.5), _found(mask, pixel_size=2000.0)
    for own, name, side in ((fine, "nm", 5.0), (coarse, "µm", 20.0)):
        unit = summary.unit_of([own])
        row = tables.ObjectRows([own], ("matrix", "particle"), unit)[0]
        assert unit.name == name and row[f"area ({name}²)"] == pytest.approx(side**2)
        assert row[f"Feret min ({name})"] == pytest.approx(side)
    assert summary.unit_of([fine, coarse]).nm is not None
    assert summary.unit_of([fine, _found(mask)]) == units.PIXELS


def test_pictures_of_several_pixel_sizes_are_measured_each_with_its_own() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:30, 20:30] = 1
    both = [_found(mask, pixel_size=100.0), _found(mask, pixel_size=200.0)]
    one = _summary(both)
    ecd = 2 * 10 / math.sqrt(math.pi)
    mean = (one.by_number["mean"].value or 0) * (1 if summary.unit_of(both).name == "nm" else 1000)
    assert mean == pytest.approx(1.5 * ecd * 100)


def test_the_accuracy_of_counts_is_that_of_fields_and_says_how_many_are_needed() -> None:
    """measurement.md: 10, 12, 14, 16, 18 have %RA 28.0; 23 fields make it 10 %."""
    found = []
    for count in (10, 12, 14, 16, 18):
        mask = np.zeros((100, 100), np.uint8)
        for number in range(count):
            y, x = divmod(number, 5)
            mask[10 + 20 * y : 14 + 20 * y, 10 + 18 * x : 14 + 18 * x] = 1
        found.append(_found(mask))
    one = _summary(found)
    assert one.accuracy == pytest.approx(28.0, abs=0.1) and one.needed == 23
    row = tables.specimen_row(one, ("matrix", "particle"), units.PIXELS)
    assert row["mean area (px)"] == pytest.approx(16)


def test_a_field_without_objects_gives_no_nan() -> None:
    empty, blind = np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8)
    for mask in (empty, blind):
        found = [_found(mask)]
        one = _summary(found)
        rows = [*tables.field_rows(found, ("a", "b"), units.PIXELS)]
        rows += [tables.specimen_row(one, ("a", "b"), units.PIXELS)]
        assert not [v for row in rows for v in row.values() if isinstance(v, float) and v != v]
        assert one.by_number["mean"].value is None and one.objects == 0
        assert "no object" in summary.doubts("b", one, found)[-1]


def test_what_is_doubtful_is_said() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[20:24, 20:24] = mask[50:55, 50:55] = 1
    found = [_found(mask, Rules())]
    assert "too coarse" in " ".join(summary.doubts("p", _summary(found), found))
    around = [_found(1 - mask, Rules())]
    assert "what lies around" in " ".join(summary.doubts("m", _summary(around), around))


def test_touching_objects_part_alike_at_every_call() -> None:
    """Distances are exact roots of whole numbers, wherever in the memory they were found."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    from matssl.core import geometry

    for seed in range(20):
        random = np.random.default_rng(seed)
        inside = gaussian_filter(random.random((48, 48)), 3) > 0.5
        exact = distance_transform_edt(inside).astype(np.float32)
        unknown = np.zeros_like(inside)
        held: list[NDArray[np.generic]] = []
        first = separation.separated(inside, unknown)
        for number in range(6):
            held += [np.ones(48 * 48 + 16 * number, np.uint8) for _ in range(number)]
            held.append(geometry.distances(inside))
            assert np.array_equal(held[-1], exact)
            assert np.array_equal(separation.separated(inside, unknown), first)
