"""A command run by one process and by two, in float64, where both come to the same numbers.

In float32 they need not: a unit at the kink of its ReLU, or a gradient of rounding size that Adam
makes a whole step of, goes one way or the other with the order in which a processor adds.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matssl.core import checkpoint
from matssl.core.errors import guard

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def double_precision() -> Iterator[None]:
    """Networks that are made inside the block compute in float64."""

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        floats = [isinstance(x, Tensor) and x.is_floating_point() for x in inputs]
        return tuple(x.double() if wide else x for x, wide in zip(inputs, floats, strict=True))

    hook = nn.modules.module.register_module_forward_pre_hook(widen)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        hook.remove()


def alone(script: str, *argv: object) -> None:
    """Run a command in this process."""
    with double_precision():
        assert guard(importlib.import_module(script).main, [str(a) for a in argv]) == 0


def pair(logs: Path, script: str, *argv: object) -> str:
    """Run a command in two processes under torchrun; return what they print."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, f"--log_dir={logs}", __file__, script, *map(str, argv)]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=paths, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def check_equal(one: Path, two: Path) -> None:
    """Assert that two runs logged the same numbers and came to the same weights."""
    # The tables for people have six digits, this log all of them.
    logs = [(run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for run in (one, two)]
    for first, second in zip(*logs, strict=True):
        # How long a step waited for its data is of the process.
        rows = [{**json.loads(row), "wait_share": 0.0} for row in (first, second)]
        assert rows[1] == pytest.approx(rows[0], rel=1e-6)
    a, b = (checkpoint.load(run / "last.ckpt") for run in (one, two))
    assert a["preprocess"] == b["preprocess"]
    _check_tensors(a["state"], b["state"])
    states = [payload["optimizer"]["state"] for payload in (a, b)]
    assert states[0] and states[0].keys() == states[1].keys()
    for number in states[0]:
        _check_tensors(states[0][number], states[1][number])


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        # A convolution before a BatchNorm has biases without a gradient, but for rounding.
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-9), name


if __name__ == "__main__":
    alone(*sys.argv[1:])
