"""Losses against hand arithmetic; what does not count leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from matssl.models import losses

TARGET = torch.tensor([[[0, 0], [1, 255]]])


def _logits(p: list[float]) -> Tensor:
    """Logits of a two-class image (1, 2, 2, 2) with these probabilities of class 1."""
    q = torch.tensor(p).view(1, 2, 2)
    return torch.stack([(1 - q).log(), q.log()], dim=1)


P = [0.2, 0.4, 0.7, 0.9]


def test_dice_is_one_minus_twice_the_overlap_over_the_sizes() -> None:
    class0 = 2 * (0.8 + 0.6) / ((0.8 + 0.6 + 0.3) + 2)
    class1 = 2 * 0.7 / ((0.2 + 0.4 + 0.7) + 1)
    assert float(losses.dice(_logits(P), TARGET)) == pytest.approx(1 - (class0 + class1) / 2)


def test_cross_entropy_is_the_mean_over_the_pixels_that_count() -> None:
    expected = -(math.log(0.8) + math.log(0.6) + math.log(0.7)) / 3
    assert float(losses.cross_entropy(_logits(P), TARGET)) == pytest.approx(expected)
    weighted = -(math.log(0.8) + math.log(0.6) + 3 * math.log(0.7)) / 5
    weights = torch.tensor([1.0, 3.0])
    assert float(losses.cross_entropy(_logits(P), TARGET, weights)) == pytest.approx(weighted)


def test_focal_leaves_sure_pixels_out() -> None:
    terms = [(1 - p) ** 2 * -math.log(p) for p in (0.8, 0.6, 0.7)]
    assert float(losses.focal(_logits(P), TARGET)) == pytest.approx(sum(terms) / 3)


def test_bce_takes_each_class_against_the_others() -> None:
    zeros = torch.zeros(1, 2, 2, 2)
    assert float(losses.bce(zeros, TARGET)) == pytest.approx(math.log(2))


def test_absent_classes_leave_the_dice_mean() -> None:
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    wide = torch.cat([logits, torch.full((1, 3, 4, 4), -50.0)], dim=1)
    p = logits.softmax(1)[:, 0]
    expected = 1 - 2 * float(p.sum()) / (float(p.sum()) + 16)
    assert float(losses.dice(wide, target)) == pytest.approx(expected, abs=1e-5)


def test_dice_and_bce_are_added_each_class_by_its_own_sigmoid() -> None:
    """S-10: logits of 0 are 0.5 of both classes; 3 pixels count, two of class 0 and one of 1."""
    zeros = torch.zeros(1, 2, 2, 2)
    class0, class1 = 2 * (0.5 + 0.5) / (1.5 + 2), 2 * 0.5 / (1.5 + 1)
    expected = 1 - (class0 + class1) / 2 + math.log(2)
    assert float(losses.dice_bce(zeros, TARGET)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "dice_bce"])
def test_a_perfect_image_of_one_class_costs_nothing_whatever_else_there_is(name: str) -> None:
    """F-S10: there it cost 0.667, two absent classes of three."""
    target = torch.ones(1, 8, 8, dtype=torch.long)
    logits = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 80.0 - 40.0
    assert float(losses.LOSSES[name](logits, target)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "dice_bce"])
def test_pixels_weigh_the_same_in_a_batch_and_in_one_large_image(name: str) -> None:
    """F-S10: counts are pooled, so that the size of the batch changes nothing."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 5, 6, generator=generator)
    target = torch.randint(0, 3, (4, 5, 6), generator=generator)
    target[1], target[2, 0] = 0, 255
    joined = torch.cat(list(logits), dim=1)[None], torch.cat(list(target))[None]
    loss = losses.LOSSES[name]
    assert float(loss(logits, target)) == pytest.approx(float(loss(*joined)), rel=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_ignored_pixels_have_no_gradient_and_no_value(name: str) -> None:
    logits = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randint(0, 3, (2, 5, 5), generator=torch.Generator().manual_seed(2))
    target[:, 2] = 255
    loss = losses.LOSSES[name](logits, target, None)
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad[:, :, 2].abs().max()) == 0
    assert float(logits.grad.abs().max()) > 0
    other = logits.detach().clone()
    other[:, :, 2] = 9.0
    assert float(losses.LOSSES[name](other, target, None)) == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_batch_without_labels_gives_zero(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = losses.LOSSES[name](logits, torch.full((1, 4, 4), 255), None)
    loss.backward()
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_perfect_logits_cost_nothing_and_half_precision_is_float32(name: str) -> None:
    target = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 30 * (torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float() * 2 - 1)
    assert float(losses.LOSSES[name](logits, target, None)) == pytest.approx(0, abs=1e-3)
    assert losses.LOSSES[name](logits.bfloat16(), target, None).dtype == torch.float32


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 3, (2, 3, 3), generator=generator)
    target[0, 0] = 255
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: losses.LOSSES[name](x, target, weight), logits)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_autocast_does_not_round_the_loss(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 3, 64, 64, generator=generator)
    target = torch.randint(0, 3, (1, 64, 64), generator=generator)
    plain = losses.LOSSES[name](logits, target, None)
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses.LOSSES[name](logits, target, None)
    assert cast.dtype == torch.float32
    assert float(cast) == pytest.approx(float(plain), rel=1e-6)


def test_dice_is_pooled_over_the_batch_rather_than_averaged_over_images() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 2, 4, 4, generator=generator)
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[0, 0, 0] = 1
    side_by_side = torch.cat(list(logits), dim=-1)[None], torch.cat(list(target), dim=-1)[None]
    pooled = float(losses.dice(logits, target))
    assert pooled == pytest.approx(float(losses.dice(*side_by_side)))
    averaged = sum(float(losses.dice(logits[i : i + 1], target[i : i + 1])) for i in (0, 1)) / 2
    assert pooled != pytest.approx(averaged, abs=1e-3)


@pytest.mark.parametrize("name", ["ce", "dice_ce", "focal"])
def test_a_heavy_class_draws_the_gradient(name: str) -> None:
    target = torch.tensor([[[0, 0], [0, 1]]])

    def pull(weight: Tensor | None) -> float:
        logits = torch.zeros(1, 2, 2, 2).requires_grad_()
        losses.LOSSES[name](logits, target, weight).backward()
        assert logits.grad is not None
        return abs(float(logits.grad[0, 1, 1, 1]))

    assert pull(torch.tensor([1.0, 9.0])) > 1.5 * pull(None)
