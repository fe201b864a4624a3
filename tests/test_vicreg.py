"""VICReg's terms against the paper's formulas and numbers by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from matssl.core.batch import Batch
from matssl.methods.vicreg.method import VICReg, covariance, expander, variance
from matssl.methods.vicreg.settings import VICRegSettings
from matssl.models.encoders import build_encoder


def _rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _method(**settings: Any) -> VICReg:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 1)
    own = VICRegSettings(hidden_dim=16, global_output_dim=8, **settings)
    return VICReg(encoder, 1, (0.5,), (0.25,), own).double()


def _batch(first: torch.Tensor, second: torch.Tensor) -> Batch:
    index = torch.arange(len(first))
    return Batch((first, second), torch.eye(2, 3).expand(2, len(first), 2, 3), index, index)


def _views(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (6, 1, 32, 32), generator=generator, dtype=torch.uint8)


def test_variance_by_hand() -> None:
    # Equal rows have none: 1 - sqrt(1e-4). A spread of 2 lacks nothing. Of both the mean.
    equal, wide = torch.zeros(4), torch.tensor([-2.0, 2.0, -2.0, 2.0])
    assert float(variance(equal[:, None])) == pytest.approx(0.99)
    assert float(variance(wide[:, None])) == 0.0
    assert float(variance(torch.stack([equal, wide], 1))) == pytest.approx(0.495)


def test_covariance_by_hand() -> None:
    # Two equal dimensions of rows -1, 1: covariance 2 each way, squared, over two dimensions.
    rows = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    assert float(covariance(rows)) == pytest.approx((2**2 + 2**2) / 2)
    # Dimensions that vary one by one tell nothing of each other.
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert float(covariance(apart)) == pytest.approx(0)


def test_the_terms_equal_a_slow_version() -> None:
    rows = _rows().numpy()
    lacking = [max(0.0, 1 - np.sqrt(column.var(ddof=1) + 1e-4)) for column in rows.T]
    assert float(variance(_rows())) == pytest.approx(np.mean(lacking))
    matrix = np.cov(rows, rowvar=False)
    total = sum(matrix[i, j] ** 2 for i in range(5) for j in range(5) if i != j)
    assert float(covariance(_rows())) == pytest.approx(total / 5)


def test_a_shift_of_all_rows_changes_neither_term() -> None:
    rows = _rows()
    assert float(variance(rows + 3)) == pytest.approx(float(variance(rows)))
    assert float(covariance(rows + 3)) == pytest.approx(float(covariance(rows)))


def test_the_loss_is_the_weighted_sum() -> None:
    method = _method(invariance_weight=3.0, variance_weight=5.0, covariance_weight=7.0)
    losses = method(_batch(_views(0), _views(1)))
    weighted = {"invariance": 3.0, "variance": 5.0, "covariance": 7.0}
    total = sum(weight * float(losses.parts[name]) for name, weight in weighted.items())
    assert float(losses.total.detach()) == pytest.approx(total)


def test_equal_views_differ_in_nothing_and_the_order_of_views_does_not_matter() -> None:
    first, second = _views(0), _views(1)
    assert float(_method()(_batch(first, first)).parts["invariance"]) == 0.0
    one, other = _method()(_batch(first, second)), _method()(_batch(second, first))
    assert float(one.total.detach()) == pytest.approx(float(other.total.detach()))


def test_the_published_widths_are_the_defaults() -> None:
    wide = expander(512, 8192, 8192)
    assert [layer.out_features for layer in wide if hasattr(layer, "out_features")] == [8192] * 3
    assert wide[-1].bias is None
    settings = VICRegSettings()
    assert dataclasses.astuple(settings) == (25.0, 25.0, 1.0, 8192, None)
