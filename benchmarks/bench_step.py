"""A4 to A6, A11: the step over the encoder work it cannot avoid; dense queue; layout; data wait.

``python -m benchmarks.bench_step optimiser dense_loss`` runs some of its SECTIONS.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paired import ratio, row, seconds
from matssl.core import machine, optim
from matssl.core.batch import Batch
from matssl.core.parsing import read_settings
from matssl.data import cache, readers, synthetic
from matssl.data.datasets import ViewLoader
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewAugmentation
from matssl.methods import method_class, recipes
from matssl.methods.contrastive import info_nce_rows
from matssl.models.encoders import build_encoder, channels_last, pyramid

PAIRS, SIDE, ROUNDS = 16, 128, 7
# Views with and without gradient that a step cannot avoid, and the ratio wanted; none is set for
# the methods that train a decoder or prototypes beside the encoder.
FLOORS = {
    "matssl": (2, 0, "<= 1.05"),
    "simclr": (2, 0, "<= 1.05"),
    "mocov2": (1, 1, "<= 1.08"),
    "densecl": (1, 1, "<= 1.15"),
    "byol": (2, 2, "<= 1.1"),
    "slotcon": (2, 2, "-"),
    "spark": (1, 0, "-"),
    "pscl-simclr": (2, 0, "-"),
    "pscl-moco": (1, 1, "-"),
}
# 16 pairs of 7 x 7 cells, as DenseCL's last map has.
CELLS, WIDTH = 16 * 49, 128
# Of a ResNet-18 with one channel.
PARAMETERS = 11_170_240


def _batch() -> Batch:
    views = tuple(torch.randint(0, 256, (PAIRS, 1, SIDE, SIDE), dtype=torch.uint8) for _ in (0, 1))
    index = torch.arange(PAIRS)
    maps = torch.eye(2, 3).expand(2, PAIRS, 2, 3)
    # One labelled sample of four classes, a quarter of the view each.
    labels = torch.full((PAIRS, SIDE, SIDE), 255, dtype=torch.uint8)
    half = torch.arange(SIDE) // (SIDE // 2)
    labels[0] = 2 * half[:, None] + half
    return Batch(views, maps, index, index, labels)


def _method(name: str):
    values = read_settings(Path(recipes(name)) / "matssl.yaml")
    method = method_class(name).from_settings(
        build_encoder("resnet18", 1), 1, (0.5,), (0.25,), values
    )
    channels_last(method)
    return method


def _step(method, batch: Batch):
    optimizer = optim.build_optimizer("sgd", optim.parameter_groups(method, 1e-4), 0.01)

    def run():
        optimizer.zero_grad(set_to_none=True)
        method(batch).total.backward()
        optimizer.step()

    return run


def _encoder_work(channels: int = 1, last: bool = True, grad: int = 2, frozen: int = 0):
    encoder = build_encoder("resnet18", channels)
    x = torch.randn(PAIRS, channels, SIDE, SIDE)
    if last:
        channels_last(encoder)
        x = x.contiguous(memory_format=torch.channels_last)

    def run():
        for _ in range(grad):
            pyramid(encoder, x)[-1].mean().backward()
        with torch.no_grad():
            for _ in range(frozen):
                pyramid(encoder, x)

    return run


def _wait_share() -> float:
    """Return the loader's share of a step with 0 workers."""
    with TemporaryDirectory() as folder:
        synthetic.write_pool(Path(folder) / "pool", 40, size=384, seed=0)
        paths = readers.find_images(Path(folder) / "pool")
        pool = cache.build(paths, Preprocess(), cache_dir=Path(folder) / "c", quiet=True)
        loader = ViewLoader(pool, [ViewAugmentation(size=SIDE)] * 2, PAIRS, 192, 0)
        method = _method("matssl")
        optimizer = optim.build_optimizer("sgd", optim.parameter_groups(method, 1e-4), 0.01)
        wait = busy = 0.0
        mark = time.perf_counter()
        for batch in loader.epoch(0):
            now = time.perf_counter()
            wait, mark = wait + now - mark, now
            optimizer.zero_grad(set_to_none=True)
            method(batch).total.backward()
            optimizer.step()
            now = time.perf_counter()
            busy, mark = busy + now - mark, now
    return 100 * wait / (wait + busy)


def _dense_queue(length: int):
    """Return both versions of the dense loss and the largest relative difference of gradients."""
    queries = torch.randn(CELLS, WIDTH, requires_grad=True)
    keys = torch.randn(CELLS, WIDTH)
    queue = torch.nn.functional.normalize(torch.randn(length, WIDTH), dim=1)

    def chunked():
        queries.grad = None
        info_nce_rows(queries, keys, queue, 0.2)[0].mean().backward()

    def materialised():
        queries.grad = None
        q = torch.nn.functional.normalize(queries, dim=1)
        k = torch.nn.functional.normalize(keys, dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.2
        target = torch.zeros(CELLS, dtype=torch.long)
        torch.nn.functional.cross_entropy(logits, target).backward()

    gradients = []
    for function in (chunked, materialised):
        function()
        assert queries.grad is not None
        gradients.append(queries.grad.clone())
    error = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    return {"chunked": chunked, "materialised": materialised}, error


def _memory() -> dict[str, float]:
    """Return the peak memory of three steps of each method over that of SimCLR."""
    code = (
        "import sys; from benchmarks import bench_step as b; from matssl.core import runtime;"
        "batch = b._batch(); step = b._step(b._method(sys.argv[1]), batch);"
        "before = runtime.peak_memory(); [step() for _ in range(3)];"
        "print(runtime.peak_memory() - before)"
    )
    peaks = {}
    for name in FLOORS:
        words = [sys.executable, "-c", code, name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout.split()[-1])
    own = peaks.pop("simclr")
    return {name: peak / own for name, peak in peaks.items()}


def _optimizer_step():
    """Fused SGD against the loop and foreach, on the parameters of a ResNet-18."""
    functions = {}
    for name, options in (
        ("fused", {"fused": True}),
        ("loop", {"foreach": False}),
        ("foreach", {"foreach": True}),
    ):
        encoder = build_encoder("resnet18", 1)
        for parameter in encoder.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.SGD(encoder.parameters(), 0.01, momentum=0.9, **options)
        functions[name] = optimizer.step
    return functions


def _arithmetic(function) -> float:
    """Return the floating-point operations of matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def steps() -> list[str]:
    """A4: each method's step over the encoder work it cannot avoid, in time and in arithmetic."""
    batch = _batch()
    peer = _step(_method("simclr"), batch)
    lines, relative = [], []
    for name, (grad, frozen, wanted) in FLOORS.items():
        floor = _encoder_work(grad=grad, frozen=frozen)
        functions = {"step": _step(_method(name), batch), "floor": floor, "simclr": peer}
        times = seconds(functions, ROUNDS, time.process_time)
        views = f"{grad} views with gradient" + (f", {frozen} without" if frozen else "")
        what = f"whole step of {name} / encoder work of {views} (R18, {PAIRS} pairs)"
        lines.append(row("A4", what, wanted, ratio(times, "step", "floor"), ROUNDS))
        # What no implementation of the same layers can go below.
        least = _arithmetic(functions["step"]) / _arithmetic(floor)
        lines.append(row("A4", "the same in operations instead of time", "-", least, 1))
        if name != "simclr":
            what = f"time of a step of {name} / simclr"
            relative.append(row("-", what, "-", ratio(times, "step", "simclr"), ROUNDS))
    return lines + relative


def memory() -> list[str]:
    """Peak memory of steps."""
    return [
        row("-", f"peak memory of a step of {name} / simclr", "-", value, 1)
        for name, value in _memory().items()
    ]


def dense_loss() -> list[str]:
    """A5: the dense loss over the same with all logits in memory, and over products alone."""
    lines = []
    for length in (4096, 65_536):
        functions, error = _dense_queue(length)
        rows, negatives = torch.randn(CELLS, WIDTH), torch.randn(length, WIDTH)

        def products(rows: torch.Tensor = rows, negatives: torch.Tensor = negatives) -> None:
            _ = (rows @ negatives.T) @ negatives

        functions["products"] = products
        times = seconds(functions, ROUNDS, time.process_time)
        what = (
            f"dense loss at a queue of {length}: ours / logits in memory (gradients: {error:.0e})"
        )
        lines.append(row("A5", what, "<= 0.5", ratio(times, "chunked", "materialised"), ROUNDS))
        what = "the two products that both need / logits in memory"
        lines.append(row("A5", what, "-", ratio(times, "products", "materialised"), ROUNDS))
    return lines


def layout() -> list[str]:
    """A6: the layout of maps."""
    functions = {"nchw": _encoder_work(3, False), "ours": _encoder_work(1, True)}
    times = seconds(functions, ROUNDS, time.process_time)
    what = "R18 three channels NCHW / our default layout"
    return [row("A6", what, ">= 1", ratio(times, "nchw", "ours"), ROUNDS)]


def optimiser() -> list[str]:
    """A6: the optimiser's step, and what moving its numbers through memory takes."""
    functions = _optimizer_step()
    source = torch.randn(PARAMETERS)
    target = torch.empty_like(source)
    functions["copy"] = lambda: target.copy_(source)
    times = seconds(functions, 4 * ROUNDS, time.process_time)
    best = min(("loop", "foreach"), key=lambda n: float(np.median(times[n])))
    what = f"fused SGD step / faster of loop and foreach ({best})"
    # It reads weights, gradients and momenta and writes two of them; a copy moves two.
    times["moved"] = [2.5 * t for t in times["copy"]]
    return [
        row("A6", what, "<= 0.45", ratio(times, "fused", best), 4 * ROUNDS),
        row(
            "A6", "moving its five arrays / the same", "-", ratio(times, "moved", best), 4 * ROUNDS
        ),
    ]


def data() -> list[str]:
    """A11: the loader's share."""
    return [row("A11", "data wait in % of an R18 step, 0 workers", "<= 3", _wait_share(), 1)]


SECTIONS = {f.__name__: f for f in (steps, memory, dense_loss, layout, optimiser, data)}


def main(names: Sequence[str] = ()) -> list[str]:
    """Return the rows of the sections named, of all where none is."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    machine.keep_freed_memory()  # as the stages do
    return [line for name in names or SECTIONS for line in SECTIONS[name]()]


if __name__ == "__main__":
    print("\n".join(main(sys.argv[1:])))
