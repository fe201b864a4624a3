"""Verdicts in words for embeddings whose state is known."""

from __future__ import annotations

import pytest
import torch

from matssl import monitor


def _pairs(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(128, 64, generator=g)
    noise = 0.3 * torch.randn(2, 128, 64, generator=g)
    if kind == "collapsed":
        base = torch.ones(128, 64)
        noise = noise * 0.01
    elif kind == "thin":
        base = torch.randn(128, 3, generator=g) @ torch.randn(3, 64, generator=g)
        noise = noise * 0.001
    elif kind == "unrelated":
        noise = noise * 100
    elif kind == "broken":
        base = base * float("nan")
    return torch.cat([base + noise[0], base + noise[1]])


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("healthy", "healthy"),
        ("collapsed", "collapsed"),
        ("thin", "thin"),
        ("unrelated", "not learning"),
        ("broken", "broken"),
    ],
)
def test_the_verdict_names_the_state(kind: str, verdict: str) -> None:
    health = monitor.examine(_pairs(kind))
    found = health.verdict()
    assert found.state == verdict and found.text.startswith(f"{verdict}: {found.cause}")
    assert found.failing == (verdict in ("collapsed", "thin", "broken"))
    assert bool(found.advice) == (verdict != "healthy")


def test_an_early_run_gets_time_to_learn() -> None:
    assert monitor.examine(_pairs("unrelated")).verdict(progress=0.1).state == "healthy"


def test_small_differences_between_alike_images_are_enough() -> None:
    # Forty fields of one material: all cosines are high, but the views of a field are the nearest.
    g = torch.Generator().manual_seed(0)
    fields, noise = torch.randn(128, 64, generator=g), torch.randn(2, 128, 64, generator=g)
    fields *= 0.5**0.5
    health = monitor.examine(torch.cat([3 + fields + noise[0], 3 + fields + noise[1]]))
    assert health.gap < 0.05
    # A third of the variance of a view is its field's.
    assert health.intraclass_correlation == pytest.approx(1 / 3, abs=0.05)
    assert health.verdict().state == "healthy"
    alone = monitor.examine(torch.cat([3 + noise[0], 3 + noise[1]]))
    assert abs(alone.intraclass_correlation) < 0.05
    assert alone.verdict().state == "not learning"


def test_healthy_numbers() -> None:
    health = monitor.examine(_pairs("healthy"))
    assert health.std == pytest.approx(health.ideal_std, rel=0.1)
    assert health.auc > 0.999
    assert 0.8 < health.gap < 1.0
