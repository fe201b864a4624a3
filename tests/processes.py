"""Commands in processes of their own; one process against two, in float64.

In float32 one and two need not come to the same numbers: a unit at the kink of its ReLU, or a
gradient of rounding size that Adam makes a whole step of, goes one way or the other with the order
in which a processor adds.

Importing torch and what stands on it takes a process seconds. A server imports it once; commands
are forks of it, which begin at once and are processes in all else: they have a name, arguments and
an exit code, can be killed, and know nothing of the tests.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matssl import pictures
from matssl.core import checkpoint
from matssl.core.errors import guard

ROOT = Path(__file__).resolve().parent.parent
# Seconds that a command may take where other work is done beside the tests.
PATIENCE = 600
FORKS = multiprocessing.get_context("forkserver")
# What is missing in this list a command imports for itself.
FORKS.set_forkserver_preload(
    [
        *("matssl.stages.pretrain.loop", "matssl.stages.finetune.loop", "matssl.methods.base"),
        *("matssl.stages.evaluate.predict", "matssl.stages.evaluate.report", "matssl.monitor"),
        *("torch.distributed", "torch._dynamo", "albumentations", "matplotlib.pyplot"),
    ]
)


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
    with double_precision(), pictures.undrawn():
        assert guard(importlib.import_module(script).main, [str(a) for a in argv]) == 0


@dataclass(frozen=True)
class Command:
    """A command that runs in a process of its own; what it prints lies in a file."""

    process: ForkServerProcess
    printed: Path

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return its exit code, minus the signal where one ended it."""
        self.process.join(seconds)
        code = self.process.exitcode
        self.end()
        assert code is not None, f"ran for more than {seconds} s"
        return code

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.join()

    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start(printed: Path, script: str, *argv: object, **environ: object) -> Command:
    """Start a script of the root with these words, as ``python SCRIPT WORDS`` does."""
    words = [str(ROOT / script), *map(str, argv)]
    more = {name: str(value) for name, value in environ.items()}
    process = FORKS.Process(target=_as_main, args=(words, str(printed), more))
    process.start()
    return Command(process, printed)


def _as_main(words: list[str], printed: str, environ: dict[str, str]) -> None:
    handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ |= environ
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def pair(logs: Path, script: str, *argv: object) -> str:
    """Run a command in two processes as torchrun starts them, in float64; see ``ranks``."""
    return ranks(logs, "tests/processes.py", script, *argv)


def ranks(logs: Path, script: str, *argv: object) -> str:
    """Run a script in two processes as torchrun starts them; return what they print."""
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    two = [
        start(
            *(logs / f"{rank}.txt", script, *argv),
            **{**group, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in range(2)
    ]
    end = time.monotonic() + PATIENCE
    # The other of one that failed waits for it.
    while any(c.running() for c in two) and not any(c.process.exitcode for c in two):
        if time.monotonic() > end:
            break
        two[0].process.join(0.02)
        two[1].process.join(0.02)
    for command in two:
        command.end()
    printed = [command.printed.read_text(encoding="utf-8") for command in two]
    assert [c.process.exitcode for c in two] == [0, 0], "\n".join(printed)[-3000:]
    return "".join(printed)


def torchrun(logs: Path, script: str, *argv: object) -> str:
    """Run a command in two processes under torchrun itself, in float64; return what they print."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, f"--log_dir={logs}", __file__, script, *map(str, argv)]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=paths, timeout=PATIENCE
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
