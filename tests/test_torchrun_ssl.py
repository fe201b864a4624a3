"""Two processes with half the batch each take the steps that one process takes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from matssl.core import checkpoint
from matssl.core.errors import guard

pytestmark = pytest.mark.usefixtures("no_drawing")

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--model", "simclr", "--view_size", "32", "--tile_size", "48", "--batch_size", "8"]
TINY += ["--hidden_dim", "32", "--global_output_dim", "16", "--precision", "fp32", "--quiet"]
# After the first step the momentum of SGD is the gradient itself.
TINY += ["--threads", "1", "--optimizer", "sgd", "--weight_decay", "0", "--clip", "0"]
TINY += ["--lr", "0.001", "--steps", "1"]


def _losses(run: Path) -> list[float]:
    # The table for people has six digits, this log all of them.
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_one_of_them_writes(
    pool_folder: Path, tmp_path: Path
) -> None:
    argv = ["--data_path", str(pool_folder), "--output_dir", str(tmp_path), *TINY]
    main = importlib.import_module("train_ssl").main
    assert guard(main, [*argv, "--name", "one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += [f"--log_dir={tmp_path}"]
    result = subprocess.run(
        [*launch, str(ROOT / "train_ssl.py"), *argv, "--name", "two"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # One process speaks.
    assert result.stdout.count("done: ") == 1
    one, two = tmp_path / "ssl" / "one", tmp_path / "ssl" / "two"
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-5)
    first, second = (checkpoint.load(run / "last.ckpt") for run in (one, two))
    assert first["preprocess"] == second["preprocess"]
    assert first["state"].keys() == second["state"].keys()
    # The statistics of BatchNorm are those of the whole batch.
    for name in (name for name in first["state"] if "running" in name):
        assert torch.allclose(first["state"][name], second["state"][name], atol=1e-5), name
    # The gradients: equal to rounding in the head; further back single units at the kink of a ReLU
    # go either way, as they do when one process sees its batch in another order.
    errors = []
    for number, state in first["optimizer"]["state"].items():
        expected = state["momentum_buffer"]
        found = second["optimizer"]["state"][number]["momentum_buffer"]
        errors.append(float((found - expected).norm() / expected.norm()))
    assert min(errors) < 1e-4 and max(errors) < 0.05
