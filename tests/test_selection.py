"""Which candidates are chosen: scores by hand, choices of points, chance by counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from matssl import selection
from matssl.selection import uncertainty
from matssl.selection.candidates import Box, Candidates, cut
from matssl.selection.choosing import choose
from matssl.selection.curve import area
from matssl.selection.stratified import noised, ranks
from matssl.selection.uncertainty import Disagreement


def _pixel(*probabilities: float) -> Any:
    return np.array(probabilities)[:, None, None]


def _candidates(count: int = 12, classes: int = 3, seed: int = 0) -> Candidates:
    """Candidates with all that any method needs."""
    g = np.random.default_rng(seed)
    return Candidates(
        tuple(f"specimen {i % 4}" for i in range(count)),
        {name: g.random(count) for name in selection.SCORES},
        g.random((count, classes)),
        g.dirichlet(np.ones(classes), count),
        g.standard_normal((count, 5)),
        g.standard_normal((2, 5)),
        2,
        np.array([900.0, 50.0, 10.0])[:classes],
    )


# --- scores of pixels ---
def test_scores_of_one_pixel_are_those_of_the_books() -> None:
    p = _pixel(0.5, 0.3, 0.2)
    assert uncertainty.entropy(p).item() == pytest.approx(1.0297, abs=5e-5)
    assert uncertainty.relative_entropy(p).item() == pytest.approx(0.937, abs=5e-4)
    assert uncertainty.margin(p).item() == pytest.approx(0.8)
    assert uncertainty.least_confidence(p).item() == pytest.approx(0.5)


def test_passes_that_contradict_each_other_have_the_bald_score_of_the_books() -> None:
    apart = _apart([_pixel(0.9, 0.1), _pixel(0.1, 0.9)])
    assert apart.map().item() == pytest.approx(0.3681, abs=5e-5)
    # As unsure, but of one mind: nothing is to be learned about the model.
    same = _apart([_pixel(0.5, 0.5), _pixel(0.5, 0.5)])
    assert same.map().item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two passes"):
        _apart([_pixel(0.9, 0.1)]).map()


def _apart(passes: Iterable[Any]) -> Disagreement:
    apart = Disagreement()
    for one in passes:
        apart.add(one.astype(np.float32))
    return apart


def test_passes_one_by_one_give_the_bald_score_of_all_at_once() -> None:
    passes = np.random.default_rng(0).dirichlet(np.ones(4), (5, 6, 7)).transpose(0, 3, 1, 2)
    mean = passes.mean(axis=0)
    expected = (passes * np.log(passes)).sum(axis=1).mean(axis=0) - (mean * np.log(mean)).sum(0)
    assert _apart(passes).map() == pytest.approx(expected, abs=1e-5)


def test_passes_have_the_shares_of_their_models() -> None:
    """A model of three quarters and one of a quarter: as three passes of the first and one more."""
    first, second = _pixel(0.9, 0.1).astype(np.float32), _pixel(0.1, 0.9).astype(np.float32)
    apart = Disagreement()
    apart.add(first)
    apart.add(second, 1 / 3)
    assert apart.map() == pytest.approx(_apart([first, first, first, second]).map(), abs=1e-6)


def test_a_sure_pixel_has_no_uncertainty_and_equal_classes_have_all() -> None:
    sure, equal = _pixel(1.0, 0.0, 0.0, 0.0), _pixel(0.25, 0.25, 0.25, 0.25)
    for measure, most in (
        (uncertainty.relative_entropy, 1.0),
        (uncertainty.margin, 1.0),
        (uncertainty.least_confidence, 0.75),
    ):
        assert measure(sure).item() == pytest.approx(0, abs=1e-9)
        assert measure(equal).item() == pytest.approx(most)


# --- scores of pictures ---
def test_a_picture_counts_by_its_tenth_of_most_uncertain_pixels() -> None:
    values = np.arange(100.0).reshape(10, 10)
    assert uncertainty.top_mean(values) == pytest.approx(np.arange(90, 100).mean())
    assert uncertainty.top_mean(values, 1.0) == pytest.approx(49.5)
    assert uncertainty.top_mean(np.array([3.0, 1.0])) == 3.0


def test_the_band_is_where_another_class_lies_within_reach() -> None:
    classes = np.zeros((3, 8), np.uint8)
    classes[:, 4:] = 1
    assert uncertainty.band(classes, 1)[1].tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert uncertainty.band(classes, 2)[1].tolist() == [False] * 2 + [True] * 4 + [False] * 2
    assert not uncertainty.band(np.full((4, 4), 2, np.uint8), 3).any()


def _edge(sharpness: float) -> tuple[Any, Any]:
    """Probabilities of two classes with a boundary in the middle, (2, 8, 40), and the classes."""
    x = np.arange(40) - 19.5
    second = np.broadcast_to(1 / (1 + np.exp(-sharpness * x)), (8, 40))
    p = np.stack([1 - second, second])
    return p, p.argmax(axis=0).astype(np.uint8)


def test_a_sharp_sure_boundary_scores_below_a_soft_one() -> None:
    """F-S6: a gradient score was highest where the model was surest."""
    found = []
    for sharpness in (20.0, 0.3):
        p, classes = _edge(sharpness)
        band = uncertainty.band(classes, 3)
        found.append(
            [
                uncertainty.band_mean(measure(p), band)
                for measure in (uncertainty.relative_entropy, uncertainty.margin)
            ]
        )
    assert found[0][0] < 0.1 < 0.8 < found[1][0]
    assert found[0][1] < found[1][1]


def test_a_picture_without_a_boundary_is_judged_by_the_whole_of_it() -> None:
    """F-S6: without a predicted boundary the score was 0, even where the model knew nothing."""
    p = np.stack([np.full((6, 6), 0.5001), np.full((6, 6), 0.4999)])
    band = uncertainty.band(p.argmax(axis=0).astype(np.uint8), 3)
    assert uncertainty.band_mean(uncertainty.relative_entropy(p), band) == pytest.approx(
        1, abs=1e-6
    )


def test_mirrored_turned_and_repeated_pictures_have_the_same_scores() -> None:
    p = np.random.default_rng(3).dirichlet(np.full(3, 0.5), (20, 30)).transpose(2, 0, 1)

    def scores(p: Any) -> list[float]:
        maps = uncertainty.maps(p.astype(np.float32))
        band = uncertainty.band(p.argmax(axis=0).astype(np.uint8), 2)
        found = [uncertainty.top_mean(plane) for plane in maps.values()]
        found += [uncertainty.band_mean(maps["entropy"], band)]
        return found + uncertainty.class_entropy(p, maps["entropy"]).tolist()

    whole = scores(p)
    for other in (p[:, ::-1], p[:, :, ::-1], np.rot90(p, 1, (1, 2))):
        assert scores(np.ascontiguousarray(other)) == pytest.approx(whole, rel=1e-6)
    # Every pixel four times: boundaries lie twice as far apart, which the band would see.
    twice = scores(p.repeat(2, axis=1).repeat(2, axis=2))
    assert twice[:3] == pytest.approx(whole[:3], rel=1e-6)
    assert twice[4:] == pytest.approx(whole[4:], rel=1e-6)


def test_a_class_that_is_nowhere_the_likeliest_still_has_a_score() -> None:
    p = np.stack([np.full((5, 5), 0.7), np.full((5, 5), 0.3)])
    entropies = uncertainty.relative_entropy(p)
    found = uncertainty.class_entropy(p, entropies)
    assert found == pytest.approx([0.7 * entropies[0, 0], 0.3 * entropies[0, 0]])


# --- regions ---
def test_regions_cover_a_picture_once_and_are_near_the_wanted_side() -> None:
    for height, width, side, count in (
        (1024, 1024, 512, 4),
        (484, 645, 512, 1),
        (500, 1300, 512, 3),
    ):
        boxes = cut(height, width, side)
        assert len(boxes) == count
        seen = np.zeros((height, width), int)
        for box in boxes:
            seen[box.slices] += 1
        assert (seen == 1).all()
        assert sum(box.pixels for box in boxes) == height * width
    assert cut(700, 900, None) == [Box(0, 0, 700, 900)]
    assert cut(1024, 1024, 512)[3] == Box(512, 512, 512, 512)


# --- choices on points ---
def _points(values: list[float], labelled: list[float] | None = None) -> Candidates:
    known = None if labelled is None else np.array(labelled)[:, None]
    names = tuple(f"own {i}" for i in range(len(values)))
    return Candidates(names, features=np.array(values)[:, None], labelled_features=known)


def test_the_core_set_takes_what_is_farthest_from_all_that_is_known() -> None:
    found = choose(_points([1.0, 4.0, 10.0, 11.0], [0.0]), "coreset", 3, 0)
    # 11 is farthest from 0; then 4 (of min(4, 7)); then 1, which is as far from 0 as 10 from 11.
    assert found.chosen == (3, 1, 0)


def test_the_core_set_begins_in_the_middle_where_nothing_is_labelled() -> None:
    assert choose(_points([0.0, 4.0, 5.0, 10.0]), "coreset", 2, 0).chosen == (2, 0)


def test_typiclust_takes_the_middle_of_the_largest_cluster_without_a_label() -> None:
    large = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    small = [10.0, 10.2, 10.4, 10.6, 10.8, 11.0, 11.2]
    found = choose(_points([*small, *large]), "typiclust", 2, 0)
    # Points at the ends have their nearest neighbours on one side alone: they are less typical.
    assert len(small) + 1 < found.chosen[0] < len(small) + len(large) - 2
    assert 1 <= found.chosen[1] <= len(small) - 2
    # With a label in the large one, the small one comes first.
    found = choose(_points([*small, *large], [0.4]), "typiclust", 1, 0)
    assert found.chosen[0] < len(small)


def test_stratified_choice_deals_places_to_the_classes_with_fewest_labels_first() -> None:
    scores = np.full((6, 3), 0.01)
    scores[4, 2], scores[1, 1], scores[3, 0], scores[5, 2] = 0.9, 0.9, 0.9, 0.8
    shares = np.full((6, 3), 1 / 3)
    known = Candidates(
        tuple("abcdef"),
        class_scores=scores,
        shares=shares,
        labelled=3,
        labelled_pixels=np.array([900.0, 50.0, 10.0]),
        power=1e5,
    )
    # Class 2 is the rarest, then 1, then 0, then 2 again.
    assert choose(known, "clasp", 4, 0).chosen == (4, 1, 3, 5)


def test_the_noise_fades_as_labels_come() -> None:
    base = _candidates()
    assert (base.beta, replace(base, labelled=9).beta, replace(base, power=2.5).beta) == (
        3,
        10,
        2.5,
    )


def test_power_noise_draws_by_the_power_of_the_score() -> None:
    """Kirsch et al.: the largest noised score is a draw with probability s^beta / sum s^beta."""
    g = np.random.default_rng(0)
    scores, beta, draws = np.array([0.1, 0.2, 0.4]), 2.0, 6000
    first = [int(noised(scores, beta, g.gumbel(size=3)).argmax()) for _ in range(draws)]
    expected = scores**beta / (scores**beta).sum()
    found = np.bincount(first, minlength=3) / draws
    assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / draws))


def test_foreground_chance_asks_two_of_three_places_for_foreground() -> None:
    """Of four candidates one shows foreground: 2/3 for it, and a quarter of the other third."""
    shares = np.array([[1.0, 0.0]] * 3 + [[0.2, 0.8]])
    known = Candidates(("a", "b", "c", "d"), shares=shares, labelled=1)
    first = Counter(choose(known, "foreground_random", 1, seed).chosen[0] for seed in range(1200))
    assert first[3] / 1200 == pytest.approx(2 / 3 + 1 / 12, abs=0.05)
    plain = Counter(choose(known, "random", 1, seed).chosen[0] for seed in range(1200))
    assert plain[3] / 1200 == pytest.approx(1 / 4, abs=0.05)


def test_joined_scores_are_joined_by_rank_so_that_no_scale_wins() -> None:
    """F-S6: an unscaled mean let the score of the largest numbers win."""
    known = _candidates()
    louder = dict(known.scores) | {"margin": 1000 * known.scores["margin"] + 5}
    joined = choose(known, "entropy+margin", 4, 0)
    assert choose(replace(known, scores=louder), "entropy+margin", 4, 0).order == joined.order
    mean = ranks(known.scores["entropy"]) + ranks(known.scores["margin"])
    free = replace(known, specimens=tuple(map(str, range(12))))
    assert choose(free, "entropy+margin", 1, 0).chosen == (int(mean.argmax()),)
    assert ranks(np.array([3.0, 9.0, 3.0])).tolist() == [0.25, 1.0, 0.25]


# --- choosing ---
def test_specimens_take_turns_where_the_method_is_no_chance() -> None:
    known = _candidates()
    scores = {"entropy": np.array([9.0, 1, 1, 1, 8, 1, 1, 1, 7, 1, 1, 1])}
    known = replace(known, scores=scores)
    specimens = [known.specimens[i] for i in choose(known, "entropy", 4, 0).chosen]
    assert len(set(specimens)) == 4
    assert choose(known, "entropy", 3, 0, spread=False).chosen == (0, 4, 8)
    # Six places of four specimens: none has more than two.
    counts = Counter(known.specimens[i] for i in choose(known, "entropy", 6, 0).chosen)
    assert max(counts.values()) == 2
    # All of them in the end, however many there are of one.
    lonely = replace(known, specimens=("a",) * 11 + ("b",))
    assert set(choose(lonely, "entropy", 12, 0).chosen) == set(range(12))


@pytest.mark.parametrize("method", [*selection.METHODS, "entropy+boundary_margin"])
def test_every_method_orders_all_candidates_and_leaves_out_the_blocked(method: str) -> None:
    known = _candidates()
    found = choose(known, method, 5, 3)
    assert sorted(found.order) == list(range(12)) and len(found.chosen) == 5
    assert choose(known, method, 5, 3).order == found.order
    out = choose(known, method, 5, 3, blocked=(found.chosen[0], found.chosen[2]))
    assert set(out.chosen).isdisjoint((found.chosen[0], found.chosen[2]))
    assert set(out.order[-2:]) == {found.chosen[0], found.chosen[2]}
    assert np.isfinite(found.priorities).all()
    assert choose(known, method, 99, 0).n == 12


@pytest.mark.parametrize("method", [name for name in selection.METHODS if name != "typiclust"])
def test_more_places_go_on_from_fewer(method: str) -> None:
    """But for TypiClust, whose clusters are as many as the places."""
    known = _candidates()
    few, many = (choose(known, method, n, 1, spread=False).chosen for n in (3, 6))
    assert many[:3] == few


@pytest.mark.parametrize(
    "method", [name for name, method in selection.METHODS.items() if method.needs]
)
def test_a_method_without_what_it_needs_is_a_mistake_of_the_program(method: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        choose(Candidates(("a", "b")), method, 1, 0)


def test_methods_that_draw_draw_anew_in_another_round_and_the_others_do_not() -> None:
    known = _candidates(40)
    for method in ("clasp", "random", "foreground_random"):
        orders = {choose(known, method, 5, 0, number).chosen for number in range(4)}
        assert len(orders) > 1, method
    for method in ("entropy", "coreset"):
        assert len({choose(known, method, 5, seed, seed).chosen for seed in range(3)}) == 1


def test_wrong_names_of_methods_are_told() -> None:
    assert "there is no method 'entropie'" in selection.problem("entropie")
    assert "'random' is no score" in selection.problem("entropy+random")
    assert "twice" in selection.problem("entropy+entropy")
    assert not any(map(selection.problem, [*selection.METHODS, "entropy+bald+margin"]))
    assert selection.needs("entropy+bald") == ("probabilities", "passes")


# --- learning curves ---
def test_the_area_is_the_mean_height_over_doublings() -> None:
    assert area([1, 2, 4, 8], [0.4] * 4) == pytest.approx(0.4)
    # Trapezoids of 0.25 and 0.75 over one doubling each.
    assert area([1, 2, 4], [0.0, 0.5, 1.0]) == pytest.approx(0.5)
    # From 2 to 8 are two doublings.
    assert area([1, 2, 8], [0.0, 0.0, 1.0]) == pytest.approx((0 + 2 * 0.5) / 3)
    for budgets in ([1, 1], [4, 2]):
        with pytest.raises(ValueError, match="rising"):
            area(budgets, [0.1, 0.2])
    scores = [0.1, 0.3, 0.35, 0.5]
    raised = [
        area([1, 2, 4, 8], [*scores[:i], scores[i] + 0.1, *scores[i + 1 :]]) for i in range(4)
    ]
    assert all(value > area([1, 2, 4, 8], scores) for value in raised)
    assert all(a != b for a, b in pairwise(raised[:2]))
