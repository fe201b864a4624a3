"""Losses of rare and thin classes against other people's formulas, and their flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from matssl.core.errors import UserError
from matssl.models import losses, thin_losses
from matssl.stages.finetune import inputs, settings
from matssl.stages.finetune.objective import Objective
from tests.test_losses import TARGET, P, _logits


def _drawn(seed: int, classes: int = 3, side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, side, side, generator=generator)
    target = torch.randint(0, classes, (2, side, side), generator=generator)
    target[0, :3] = 255
    return logits, target


# --- Tversky ---
def test_tversky_weighs_false_and_missed_pixels_apart() -> None:
    """Three pixels count: two of class 0 (p 0.8, 0.6), one of class 1 (p 0.7)."""
    one = 0.7 / (0.7 + 0.3 * (0.2 + 0.4) + 0.7 * 0.3)
    zero = 1.4 / (1.4 + 0.3 * 0.3 + 0.7 * (0.2 + 0.4))
    chance = _logits(P).softmax(1)
    assert float(thin_losses.tversky(chance, TARGET)) == pytest.approx(1 - (one + zero) / 2)
    focal = ((1 - one) ** 0.75 + (1 - zero) ** 0.75) / 2
    found = thin_losses.tversky(chance, TARGET, gamma=4 / 3)
    assert float(found) == pytest.approx(focal)
    expected = losses.cross_entropy(_logits(P), TARGET) + 2 * focal
    assert float(losses.focal_tversky(_logits(P), TARGET, share=2.0)) == pytest.approx(
        float(expected)
    )


def test_tversky_of_one_half_each_is_dice() -> None:
    logits, target = _drawn(0)
    found = losses.tversky(logits, target, alpha=0.5, beta=0.5)
    assert float(found) == pytest.approx(float(losses.dice_ce(logits, target)), rel=1e-6)


# --- boundary ---
def _one_hot2dist(seg: np.ndarray) -> np.ndarray:
    """Distance maps as in the authors' repository (LIVIAETS/boundary-loss), for one class."""
    positive = seg.astype(bool)
    if not positive.any() or positive.all():
        return np.zeros(seg.shape)
    negative = ~positive
    outside = ndimage.distance_transform_edt(negative) * negative
    return outside - (ndimage.distance_transform_edt(positive) - 1) * positive


def test_distances_are_those_of_the_authors_code() -> None:
    _, target = _drawn(1, side=40)
    truth = target[1].numpy()
    truth[5:30, 5:20] = 2
    found = thin_losses.distances(truth, 4)
    for index in range(4):
        np.testing.assert_allclose(found[index], _one_hot2dist(truth == index), atol=1e-4)


@pytest.mark.parametrize("side", [32, 64])
def test_distances_are_the_same_bits_at_every_call(side: int) -> None:
    random = np.random.default_rng(side)
    for _ in range(20):
        target = (ndimage.gaussian_filter(random.random((side, side)), 4) > 0.5).astype(np.int64)
        target += random.random((side, side)) > 0.97
        held: list[np.ndarray] = []
        for number in range(6):
            # Memory lies elsewhere at the next call.
            held += [np.ones(side * side + 16 * number, np.uint8) for _ in range(number)]
            held.append(thin_losses.distances(target, 3))
        assert all(np.array_equal(held[0], one) for one in held if one.ndim == 3)


def test_what_is_not_labelled_is_no_boundary() -> None:
    target = np.array([[0, 0, 255, 1, 1, 1]], np.uint8)
    found = thin_losses.distances(target, 2)
    # From class 0 the nearest labelled pixel of another class is three away, minus 1 within it.
    np.testing.assert_allclose(found[0], [[-2, -1, 0, 2, 3, 4]], atol=1e-5)
    np.testing.assert_allclose(found[1], [[3, 2, 0, -1, -2, -3]], atol=1e-5)


def test_the_boundary_loss_is_how_far_wrong_pixels_lie() -> None:
    """A class in one column of five; all of its probability lies in a column k further on."""
    target = torch.zeros(1, 5, 5, dtype=torch.long)
    target[:, :, 0] = 1

    def lost(column: int) -> float:
        chance = torch.zeros(1, 2, 5, 5)
        chance[:, 1, :, column] = 1
        chance[:, 0] = 1 - chance[:, 1]
        return float(thin_losses.boundary(chance, target))

    assert lost(0) == 0
    # phi of class 1 is 0, 1, 2, 3, 4, of class 0: 1, 0, -1, -2, -3: sums over a row are k and k.
    for column in (1, 2, 4):
        assert lost(column) == pytest.approx(column / 5)


def test_the_boundary_term_rises_with_the_training() -> None:
    logits, target = _drawn(2)
    plain = losses.dice_ce(logits, target)
    term = thin_losses.boundary(logits.softmax(1), target)
    objective = Objective("boundary", options={"share": 0.5})
    for progress in (0.0, 0.5, 1.0):
        found = objective.function(progress)(logits, target, None)
        assert float(found) == pytest.approx(float(plain + 0.5 * progress * term), rel=1e-6)


# --- clDice ---
def _bones(image: np.ndarray, iterations: int) -> np.ndarray:
    """The soft skeleton by morphology of scipy: opening with a cross, then a square."""
    cross = ndimage.generate_binary_structure(2, 1)

    def eroded(a: np.ndarray) -> np.ndarray:
        return ndimage.grey_erosion(a, footprint=cross, mode="constant", cval=np.inf)

    def opened(a: np.ndarray) -> np.ndarray:
        return ndimage.grey_dilation(eroded(a), size=(3, 3), mode="constant", cval=-np.inf)

    bones = np.maximum(image - opened(image), 0)
    for _ in range(iterations):
        image = eroded(image)
        more = np.maximum(image - opened(image), 0)
        bones = bones + np.maximum(more - bones * more, 0)
    return bones


def test_the_soft_skeleton_is_that_of_morphology() -> None:
    maps = torch.rand(1, 2, 30, 30, generator=torch.Generator().manual_seed(3))
    found = thin_losses.skeleton(maps, 4)
    for index in range(2):
        np.testing.assert_allclose(
            found[0, index].numpy(), _bones(maps[0, index].numpy(), 4), atol=1e-6
        )


def test_the_skeleton_of_a_bar_is_its_middle_line() -> None:
    bar = torch.zeros(1, 1, 15, 40)
    bar[..., 5:10, 4:36] = 1
    bones = thin_losses.skeleton(bar, 10)[0, 0]
    assert bool((bones[7, 8:32] == 1).all())
    assert float(bones[:, 12:28].sum()) == 16


def _line(gap: int = 0) -> torch.Tensor:
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    mask[:, 15:18, 2:30] = 1
    mask[:, :, 16 : 16 + gap] = 0
    return mask


def _sure(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(mask, 2).movedim(-1, 1).float()


def test_cldice_counts_what_is_torn_and_not_what_is_thick() -> None:
    whole = _line()
    assert float(thin_losses.cldice(_sure(whole), whole)) == pytest.approx(0, abs=1e-6)
    thick = whole.clone()
    thick[:, 14:19, 2:30] = 1
    torn, wide = (float(thin_losses.cldice(_sure(m), whole)) for m in (_line(8), thick))
    # By hand: the skeleton is the middle row; 8 of its 28 pixels are gone, all others are right.
    bones = thin_losses.skeleton(_sure(whole), 10)[0, 1]
    length, lost = float(bones.sum()), float(bones[:, 16:24].sum())
    sensitive = (length - lost + 1) / (length + 1)
    assert torn == pytest.approx(1 - 2 * sensitive / (1 + sensitive), abs=0.02)
    assert torn > 5 * wide


def test_cldice_looks_at_the_rare_classes() -> None:
    logits = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[:, 3] = 1
    chance = logits.softmax(1)
    other = chance[:, [2, 1, 0]]
    # Which of the others is said where does not matter to class 1.
    found = (thin_losses.cldice(c, target) for c in (chance, other))
    assert float(next(found)) == pytest.approx(float(next(found)))


# --- flags ---
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--loss", "dice_ce", "--loss_share", 2), "--loss_share acts with --loss tversky"),
        (("--loss", "cldice", "--tversky_beta", 0.8), "--tversky_beta acts with"),
        (("--loss", "tversky", "--tversky_alpha", 0), "--tversky_alpha must be above 0"),
        (("--loss", "focal", "--label_smoothing", 0.1), "not in focal"),
    ],
)
def test_flags_of_other_losses_are_refused(words: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings.resolve(["--finetune_dataset", "x", *map(str, words)])


def test_flags_reach_the_loss() -> None:
    words = ("--loss", "tversky", "--loss_share", "2", "--tversky_alpha", "0.2")
    words += ("--tversky_beta", "0.9", "--label_smoothing", "0.1")
    found = inputs.objective(settings.resolve(["--finetune_dataset", "x", *words]))
    logits, target = _drawn(5)
    given = found.function(0.5)(logits, target, None)
    expected = losses.tversky(logits, target, None, 0.1, 2.0, 0.2, 0.9)
    assert float(given) == float(expected)
    plain = inputs.objective(settings.resolve(["--finetune_dataset", "x"]))
    assert plain.options == {}
