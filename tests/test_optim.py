"""Optimisers against hand arithmetic, parameter groups, and schedules as functions of the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from matssl.core import optim


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def _parameter(value: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def _group(parameter: nn.Parameter, decay: float = 0.0, adapt: bool = True) -> list[dict[str, Any]]:
    return [{"params": [parameter], "weight_decay": decay, "adapt": adapt, "factor": 1.0}]


# --- groups -------------------------------------------------------------------------------------
def test_matrices_decay_and_biases_and_norm_layers_do_not() -> None:
    model = _model()
    groups = optim.parameter_groups(model, 0.1)
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    assert decayed == {id(model[0].weight), id(model[3].weight)}
    spared = [g for g in groups if g["weight_decay"] == 0.0]
    assert sum(len(g["params"]) for g in spared) == 4
    # LARS leaves out exactly the tensors that do not decay.
    assert all(g["adapt"] == (g["weight_decay"] > 0) for g in groups)


def test_frozen_parameters_are_in_no_group_and_the_others_once() -> None:
    model = _model()
    model[0].requires_grad_(False)
    groups = optim.parameter_groups(model, 0.1)
    found = [id(p) for g in groups for p in g["params"]]
    assert sorted(found) == sorted(id(p) for p in model[1:].parameters())


def test_a_rate_set_later_keeps_the_factor_of_each_group() -> None:
    model = _model()
    groups = optim.parameter_groups(model, 0.0, {"0.": 0.1})
    optimizer = optim.build_optimizer("adamw", groups, 1.0)
    optim.set_lr(optimizer, 0.5)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model[0].weight)] == rates[id(model[0].bias)] == pytest.approx(0.05)
    assert rates[id(model[3].weight)] == pytest.approx(0.5)


# --- steps --------------------------------------------------------------------------------------
def test_sgd_has_heavy_ball_momentum_and_decay_in_the_gradient() -> None:
    w = _parameter([2.0, -1.0])
    optimizer = optim.build_optimizer("sgd", _group(w, 0.1), 0.5, 0.9)
    # By hand: v1 = g + 0.1 w0, w1 = w0 - 0.5 v1; v2 = 0.9 v1 + g + 0.1 w1, w2 = w1 - 0.5 v2.
    w0, g = torch.tensor([2.0, -1.0]).double(), torch.tensor([0.3, 0.4]).double()
    v1 = g + 0.1 * w0
    w1 = w0 - 0.5 * v1
    v2 = 0.9 * v1 + g + 0.1 * w1
    for expected in (w1, w1 - 0.5 * v2):
        w.grad = g.clone()
        optimizer.step()
        assert torch.allclose(w, expected, atol=1e-14)


def test_the_first_step_of_adamw_is_the_sign_of_the_gradient_after_the_decay() -> None:
    w = _parameter([2.0, -1.0])
    optimizer = optim.build_optimizer("adamw", _group(w, 0.1), 0.01)
    w.grad = torch.tensor([5.0, -3.0]).double()
    optimizer.step()
    expected = torch.tensor([2.0, -1.0]).double() * (1 - 0.01 * 0.1) - 0.01 * torch.tensor([1, -1])
    assert torch.allclose(w, expected, atol=1e-9)


@pytest.mark.parametrize(("adapt", "same"), [(True, True), (False, False)])
def test_a_lars_step_without_decay_ignores_the_scale_of_the_loss(adapt: bool, same: bool) -> None:
    ends = []
    for scale in (1.0, 1000.0):
        w = _parameter([0.6, -0.8])
        optimizer = optim.build_optimizer("lars", _group(w, adapt=adapt), 0.1)
        w.grad = scale * torch.tensor([0.2, 0.1]).double()
        optimizer.step()
        ends.append(w.detach().clone())
    assert torch.allclose(ends[0], ends[1]) == same


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adam", "adamw"])
def test_the_state_of_an_optimiser_continues_to_the_same_bits(name: str) -> None:
    def run(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, first: int = 0) -> None:
        for step in range(first, first + steps):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optim.set_lr(optimizer, 0.1 / (step + 1))
            optimizer.step()

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = _model()
        return model, optim.build_optimizer(name, optim.parameter_groups(model, 0.01), 0.1)

    whole, whole_optimizer = start()
    run(5, whole, whole_optimizer)
    part, part_optimizer = start()
    run(2, part, part_optimizer)
    other, other_optimizer = start()
    other.load_state_dict(part.state_dict())
    other_optimizer.load_state_dict(part_optimizer.state_dict())
    run(3, other, other_optimizer, first=2)
    for a, b in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_optimiser_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="rprop"):
        optim.build_optimizer("rprop", _group(_parameter([1.0])), 0.1)


# --- schedules ----------------------------------------------------------------------------------
def test_the_rate_rises_in_equal_parts_reaches_its_peak_and_ends_near_zero() -> None:
    rates = [optim.learning_rate("cosine", 0.8, step, 100, 10, 7) for step in range(100)]
    rises = [b - a for a, b in zip(rates[:10], rates[1:11], strict=True)]
    assert rises == pytest.approx([0.8 / 11] * 10)
    assert rates[0] > 0 and rates[10] == max(rates) == pytest.approx(0.8)
    assert rates[55] == pytest.approx(0.4)
    assert rates[99] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_the_epoch_schedule_changes_between_epochs_only() -> None:
    rates = [optim.learning_rate("cosine_epoch", 0.1, step, 40, 0, 10) for step in range(40)]
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([e for e in expected for _ in range(10)])


def test_a_constant_rate_is_constant_after_its_warm_up() -> None:
    rates = [optim.learning_rate("constant", 0.3, step, 20, 2, 5) for step in range(20)]
    assert rates[:2] == pytest.approx([0.1, 0.2]) and set(rates[2:]) == {0.3}


def test_the_rate_of_small_batches_is_scaled_from_32() -> None:
    rates = [optim.scaled_lr(1e-3, batch, "sqrt_32") for batch in (8, 32, 128)]
    assert rates == pytest.approx([5e-4, 1e-3, 2e-3])
