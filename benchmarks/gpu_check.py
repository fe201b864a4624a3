"""What the code does on a GPU: correctness, equal bits, speed and memory, in one command.

    python -m benchmarks.gpu_check --out results                  # one GPU: less than 8 minutes
    python -m benchmarks.gpu_check --device cpu --tiny            # the same code on a CPU: minutes
    python -m benchmarks.gpu_check --out results --only speed,predict

Needs torch, torchvision, timm, numpy, OpenCV, tifffile, PyYAML, safetensors, matplotlib, pillow,
tqdm and huggingface_hub, no network and no micrographs (they are made). Where a machine has these
and nothing else, carry two wheels: segmentation_models_pytorch 0.6.0 (which needs no others then)
and pytest 9.2.0 (with iniconfig, packaging, pluggy and pygments there). albumentations, pandas and
imagecodecs are not imported. Fetched once, for a machine with Python 3.12:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d wheels \
        segmentation-models-pytorch==0.6.0 pytest==9.2.0

and there, before anything else:

    pip install -q --no-index --no-deps --no-compile --target /tmp/site wheels/*.whl
    export PYTHONPATH=/tmp/site

Every section runs in a process of its own, so that none can spoil the others, and what it found
before it failed or ran out of time is kept. Sections that measure no time run side by side. The
results are a JSON file and a table for SPEED.md; the exit code is 1 where something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import functools
import importlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Steps left out of a speed: kernels are chosen and buffers are made in them.
WARM = 8
# Largest difference of class probabilities, and least share of equal labels, of GPU and CPU.
CLOSE, EQUAL_LABELS, EQUAL_LABELS_BF16 = 1e-3, 0.999, 0.98
# Of the losses of the first two steps, relative; the second is of weights that differ already.
CLOSE_LOSSES = (1e-3, 1e-2)
ENCODERS, SIDES = ("resnet18", "resnet50"), (128, 224)


class Inside:
    """All that this file takes from inside the package; the rest goes through its commands."""

    @staticmethod
    def methods() -> list[str]:
        """Return one name of each method; the published spellings of some have two."""
        from matssl.methods import distinct

        return list(distinct())

    @staticmethod
    def needs_labels(method: str) -> bool:
        from matssl.methods import settings_class

        return hasattr(settings_class(method)(), "labeled_path")

    @staticmethod
    def encoder(name: str) -> Any:
        from matssl.models.encoders import build_encoder

        return build_encoder(name, 1)

    @staticmethod
    def model(description: dict[str, Any]) -> Any:
        from matssl.models.segmentation import build_model

        return build_model(**description)

    @staticmethod
    def predict(*args: Any, **options: Any) -> Any:
        from matssl.tiling import predict

        return predict(*args, **options)

    @staticmethod
    def tile(side: int) -> tuple[int, int]:
        from matssl.tiles import plan

        return plan(side, side).tile

    @staticmethod
    def write_data(pool: Path, labelled: Path, images: int, side: int, labelled_side: int) -> None:
        from matssl.data import synthetic

        # The other kinds take a minute an image of this size.
        synthetic.write_pool(pool, images, side, seed=0, kinds=("two_phase", "cracks"))
        synthetic.write_dataset(labelled, "two_phase", 4, 2, 2, labelled_side, seed=1)

    @staticmethod
    def environment() -> dict[str, Any]:
        from matssl.core.run_folder import environment

        return environment()

    @staticmethod
    def without_pictures() -> None:
        """Leave out the drawing at the end of a run: it takes seconds and no GPU."""
        import cv2
        import numpy as np

        from matssl import pictures

        pixel = cv2.imencode(".png", np.full((1, 1, 3), 255, np.uint8))[1].tobytes()

        def save(figure: Any, path: Path) -> None:
            import matplotlib.pyplot as plt

            Path(path).write_bytes(pixel)
            plt.close(figure)

        pictures.save = save  # type: ignore[assignment]


@dataclass(frozen=True)
class Sizes:
    """How much is computed; tiny values let a CPU run every line in a few minutes."""

    pool: int
    pool_side: int
    labelled_side: int
    encoder: str
    view: int
    batch: int
    steps: int
    finetune_steps: int
    crop: int
    # Steps of a run that is broken, of one with every method, and of one that is timed.
    broken_steps: int
    method_steps: int
    timed_steps: int
    timed_batch: int
    timed: tuple[tuple[str, int], ...]
    compiled_steps: int
    picture: int
    tile_batches: tuple[int, ...]
    # Methods whose first losses are compared; None: all.
    compared: int | None = None


FULL = Sizes(
    pool=48,
    pool_side=1024,
    labelled_side=512,
    encoder="resnet18",
    view=128,
    batch=32,
    steps=60,
    finetune_steps=120,
    crop=192,
    broken_steps=200,
    method_steps=4,
    timed_steps=40,
    timed_batch=128,
    timed=tuple((e, s) for e in ENCODERS for s in SIDES),
    compiled_steps=40,
    picture=4096,
    tile_batches=(1, 4, 16),
)
TINY = Sizes(
    pool=8,
    pool_side=96,
    labelled_side=96,
    encoder="resnet18",
    view=32,
    batch=4,
    steps=3,
    finetune_steps=4,
    crop=32,
    broken_steps=12,
    method_steps=1,
    timed_steps=WARM + 2,
    timed_batch=4,
    timed=(("resnet18", 32),),
    compiled_steps=WARM + 2,
    picture=256,
    tile_batches=(1, 2),
    compared=1,
)


@dataclass
class Sheet:
    """What a section found, written down after each number."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def row(self, what: str, got: Any, wanted: str = "", ok: bool | None = None) -> None:
        """Note a number; ``ok`` says whether it is what was wanted, None where nothing was."""
        self.rows.append({"what": what, "got": got, "wanted": wanted, "ok": ok})
        mark = {True: "ok  ", False: "BAD ", None: "    "}[ok]
        print(f"{mark}{what}: {shown(got)}{f'  (wanted {wanted})' if wanted else ''}", flush=True)
        self.write()

    def memory(self, what: str, gigabytes: float) -> None:
        """Note the most memory of the GPU in use, where there is one."""
        if not math.isnan(gigabytes):
            self.row(f"{what}: GPU memory GB", gigabytes)

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Note a failure inside the block, and go on behind it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.errors.append(f"{what}\n{traceback.format_exc()}")
            self.row(what, f"{type(error).__name__}: {first_line(error)}", "no failure", False)

    def write(self) -> None:
        text = json.dumps({"rows": self.rows, "errors": self.errors})
        self.path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Bench:
    """What a section is given.

    Attributes:
        device: cpu or cuda.
        sizes: how much to compute.
        data: folder with ``pool`` and ``labelled``.
        work: folder of its own.
        sheet: takes what it finds.
    """

    device: str
    sizes: Sizes
    data: Path
    work: Path
    sheet: Sheet

    @property
    def cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def half(self) -> str:
        """The precision that is checked: bfloat16, which is slow on most CPUs."""
        return "bf16" if self.cuda else "fp32"

    @property
    def few_threads(self) -> dict[str, Any]:
        """Flags of a dry run, which has neighbours on its machine."""
        return {} if self.sizes is FULL else {"--threads": 1}

    def pretrain(self, name: str, *words: Any, device: str | None = None) -> dict[str, Any]:
        """Run train_ssl.py in this process; return what its steps and the GPU say."""
        flags = self.pretrain_words(name, *words, device=device)
        return self._run("train_ssl", flags, self.work / "ssl" / name)

    def pretrain_words(self, name: str, *words: Any, device: str | None = None) -> list[str]:
        sizes = self.sizes
        flags = {
            "--data_path": self.data / "pool",
            "--output_dir": self.work,
            "--cache_dir": self.work / "cache",
            "--name": name,
            "--device": device or self.device,
            "--precision": self.half,
            "--encoder": sizes.encoder,
            "--view_size": sizes.view,
            "--batch_size": sizes.batch,
            "--steps": sizes.steps,
            "--checkpoint_every": 1_000_000,
            **self.few_threads,
        }
        return joined(flags, words)

    def finetune(self, name: str, *words: Any) -> dict[str, Any]:
        """Run train_finetune.py in this process; return what its steps and the GPU say."""
        flags = self.finetune_words(name, *words)
        return self._run("train_finetune", flags, self.work / "finetune" / name)

    def finetune_words(self, name: str, *words: Any) -> list[str]:
        sizes = self.sizes
        flags = {
            "--finetune_dataset": self.data / "labelled",
            "--output_dir": self.work,
            "--name": name,
            "--device": self.device,
            "--precision": self.half,
            "--encoder": sizes.encoder,
            "--crop_size": sizes.crop,
            "--batch_size": 16 if sizes is FULL else 4,
            "--steps": sizes.finetune_steps,
            "--val_every": max(2, sizes.finetune_steps // 2),
            "--checkpoint_every": 1_000_000,
            **self.few_threads,
        }
        return joined(flags, words)

    def labels(self, method: str) -> list[Any]:
        """Return the flags of a method that is guided by labelled images."""
        guided = Inside.needs_labels(method)
        return ["--labeled_path", self.data / "labelled"] if guided else []

    def _run(self, script: str, words: list[str], folder: Path) -> dict[str, Any]:
        seconds, memory = self.measured(lambda: call(script, words))
        rows = read_csv(folder / "steps.csv")
        return {
            "folder": folder,
            "seconds": seconds,
            "memory": memory,
            "losses": [float(r["loss"]) for r in rows],
            "rows": rows,
        }

    def measured(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Return the seconds that ``run`` takes and the most GB of the GPU it had in use."""
        import torch

        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return seconds, torch.cuda.max_memory_allocated() / 1e9 if self.cuda else math.nan

    def autocast(self, precision: str) -> Any:
        import torch

        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=precision == "bf16")


def joined(flags: dict[str, Any], words: Sequence[Any]) -> list[str]:
    """Return flags and further words as strings; a word said again replaces the flag."""
    said = {str(word) for word in words}
    kept = [str(part) for item in flags.items() if item[0] not in said for part in item]
    return [*kept, *map(str, words), "--quiet"]


def call(script: str, words: Sequence[str]) -> None:
    """Run a command of the package in this process; what it prints is dropped."""
    module = importlib.import_module(script)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        module.main(list(words))


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def loop_speed(run: dict[str, Any], views: int) -> tuple[float, float]:
    """Return views a second of the loop after its first steps, and the share it waited for data."""
    # The columns are means since the start: the seconds of all steps so far follow from them.
    rows = [r for r in run["rows"] if r.get("views_per_s")]
    clock = [(i + 1) * views / float(r["views_per_s"]) for i, r in enumerate(rows)]
    waited = [t * float(r["wait_share"]) for t, r in zip(clock, rows, strict=True)]
    first = min(WARM, len(rows) - 1) - 1
    busy = clock[-1] - clock[first]
    return (len(rows) - 1 - first) * views / busy, (waited[-1] - waited[first]) / busy


def same_losses(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return bool(first["losses"]) and first["losses"] == second["losses"]


def same_tensors(first: Path, second: Path) -> bool:
    """Return whether two files hold the same numbers under the same names, bit for bit."""
    import torch

    one, other = (tensors(path) for path in (first, second))
    return one.keys() == other.keys() and all(
        torch.equal(one[k].reshape(-1).view(torch.uint8), other[k].reshape(-1).view(torch.uint8))
        for k in one
    )


def tensors(path: Path) -> dict[str, Any]:
    """Return all tensors of a safetensors file or a checkpoint by their place in it."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value.contiguous()
        elif isinstance(value, dict):
            for key, part in value.items():
                walk(part, f"{name}.{key}")
        elif isinstance(value, (list, tuple)):
            for number, part in enumerate(value):
                walk(part, f"{name}.{number}")

    walk(torch.load(path, map_location="cpu", weights_only=True), "")
    return found


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


# --- the sections -------------------------------------------------------------------------------


def environment(bench: Bench) -> None:
    """Machine, versions, compiler: what all other numbers hold for."""
    import torch

    facts = Inside.environment()
    sheet = bench.sheet
    sheet.row("commit", str(facts.get("commit")))
    sheet.row("python", facts["python"])
    sheet.row("processor", f"{facts['processor']}, {facts['cores']} cores")
    for name, version in sorted(facts["packages"].items()):
        sheet.row(f"package {name}", version)
    sheet.row("CUDA", str(torch.version.cuda))
    for tool in ("gcc", "g++", "nvidia-smi"):
        sheet.row(f"tool {tool}", str(shutil.which(tool)))
    if bench.cuda:
        card = torch.cuda.get_device_properties(0)
        sheet.row("card", f"{card.name}, {card.total_memory / 1e9:.0f} GB")
        sheet.row("cuDNN", torch.backends.cudnn.version())
        sheet.row("bf16", torch.cuda.is_bf16_supported(including_emulation=False), "True", True)
        size = 8192 if bench.sizes is FULL else 256
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in "ab")
        for _ in range(5):
            a @ b
        seconds, _ = bench.measured(lambda: [a @ b for _ in range(20)])
        sheet.row("bf16 matrix product, TFLOP/s", 20 * 2 * size**3 / seconds / 1e12)


def tests(bench: Bench) -> None:
    """The tests that need a GPU; where there is none they skip."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p"]
    words += ["no:cacheprovider", "--durations=5", str(ROOT / "tests" / "test_gpu.py")]
    words += ["--basetemp", str(bench.work / "pytest")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        bench.sheet.errors.append(output[-20_000:])
    last = (output.strip().splitlines() or ["no output"])[-1]
    bench.sheet.row("tests marked gpu", last.strip("= "), "all pass", done.returncode == 0)


def commands(bench: Bench) -> None:
    """The three commands after one another, as a user runs them."""
    sheet, start = bench.sheet, Path()
    with sheet.part("train_ssl.py"):
        run = bench.pretrain("start", "--model", "matssl")
        start = run["folder"] / "encoder.safetensors"
        sheet.row("train_ssl.py, s", run["seconds"])
        sheet.memory("train_ssl.py", run["memory"])
        first, last = run["losses"][0], statistics.mean(run["losses"][-5:])
        sheet.row("loss at the first step, mean of the last five", f"{first:.3f}, {last:.3f}")
    with sheet.part("train_finetune.py"):
        weights = ["--ssl_weights_path", start] if start.is_file() else []
        run = bench.finetune("model", *weights)
        sheet.row("train_finetune.py, s", run["seconds"])
        sheet.memory("train_finetune.py", run["memory"])
        wait = float(run["rows"][-1].get("wait_share", "nan"))
        sheet.row("train_finetune.py, share of waiting for data", wait)
    with sheet.part("eval_model.py"):
        found = []
        for name in ("first", "again"):
            words = {
                "--model_path": bench.work / "finetune" / "model" / "best.ckpt",
                "--dataset": bench.data / "labelled",
                "--output_dir": bench.work,
                "--name": name,
                "--device": bench.device,
                "--precision": bench.half,
                **bench.few_threads,
            }
            seconds, memory = bench.measured(lambda w=words: call("eval_model", joined(w, ())))
            text = (bench.work / "eval" / name / "metrics.json").read_text(encoding="utf-8")
            found.append(json.loads(text))
        sheet.row("eval_model.py, s", seconds)
        sheet.memory("eval_model.py", memory)
        miou = found[0]["pooled"]["means"]["miou"]
        sheet.row("mean IoU on the test images", miou)
        same = found[0]["confusion"] == found[1]["confusion"]
        sheet.row("two evaluations agree in every pixel", same, "True", same)


def methods(bench: Bench) -> None:
    """Every method twice with --deterministic: operations that cannot, and equal bits."""
    sheet = bench.sheet
    for method in Inside.methods():
        with sheet.part(f"{method} --deterministic"):
            words = ["--model", method, "--steps", bench.sizes.method_steps, "--deterministic"]
            words += bench.labels(method)
            runs = [bench.pretrain(f"{method}{n}", *words) for n in (1, 2)]
            files = [run["folder"] / "last.ckpt" for run in runs]
            same = same_losses(*runs) and same_tensors(*files)
            sheet.row(f"{method} --deterministic twice: same bits", same, "True", same)
            sheet.memory(method, max(run["memory"] for run in runs))
            for run in runs:
                shutil.rmtree(run["folder"])
    with sheet.part("fine-tuning --deterministic"):
        runs = [bench.finetune(f"f{n}", "--deterministic") for n in (1, 2)]
        files = [run["folder"] / "last.ckpt" for run in runs]
        same = same_losses(*runs) and same_tensors(*files)
        sheet.row("fine-tuning --deterministic twice: same bits", same, "True", same)
    with sheet.part("prefetching threads"):
        runs = [
            bench.pretrain(f"w{n}", "--model", "matssl", "--deterministic", "--num_workers", n)
            for n in (0, 4)
        ]
        same = same_losses(*runs)
        sheet.row("0 and 4 prefetching threads: same bits", same, "True", same)
    with sheet.part("views made on the device"):
        words = ["--model", "matssl", "--deterministic", "--views_on", "device"]
        runs = [bench.pretrain(f"v{n}", *words, "--num_workers", n) for n in (0, 4)]
        same = same_losses(*runs)
        sheet.row("views made on the device, 0 and 4 threads: same bits", same, "True", same)


def resume(bench: Bench) -> None:
    """A run is killed in the middle and goes on: the bits of an unbroken one."""
    steps = bench.sizes.broken_steps
    plain = ["--deterministic", "--steps", steps]
    for what, script, own in (
        ("pretraining", "train_ssl", ["--model", "matssl"]),
        ("fine-tuning", "train_finetune", []),
    ):
        first = what == "pretraining"
        run = bench.pretrain if first else bench.finetune
        spelled = bench.pretrain_words if first else bench.finetune_words
        with bench.sheet.part(f"kill and resume, {what}"):
            unbroken = run("unbroken", *own, *plain)
            words = spelled("broken", *own, *plain)
            table = bench.work / ("ssl" if first else "finetune") / "broken" / "steps.csv"
            code = killed(script, words, table, after=steps // 4)
            done = len(read_csv(table))
            at = f"{what}: killed after step {done} of {steps}, exit code"
            bench.sheet.row(at, code, "143", code == 143 and 0 < done < steps)
            broken = run("broken", *own, *plain, "--resume")
            files = [r["folder"] / "last.ckpt" for r in (unbroken, broken)]
            same = same_losses(unbroken, broken) and same_tensors(*files)
            bench.sheet.row(f"{what}: resumed = unbroken, bit for bit", same, "True", same)


def killed(script: str, words: Sequence[str], table: Path, after: int) -> int:
    """Start a command in a process of its own, end it after so many steps; return its exit code."""
    # Slowed down by nothing, a run on a GPU could be over before it is seen to run.
    process = subprocess.Popen(
        [sys.executable, str(ROOT / f"{script}.py"), *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if table.is_file() and table.read_bytes().count(b"\n") > after:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.005)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    if process.returncode not in (0, 143):
        raise RuntimeError(said.strip()[-2000:])
    return process.returncode


def speed(bench: Bench) -> None:
    """Views a second of the whole loop beside those of the encoder alone, and memory."""
    sizes, sheet = bench.sizes, bench.sheet
    for encoder, side in sizes.timed:
        what = f"{encoder} at {side} px, {sizes.timed_batch} pairs"
        views = 2 * sizes.timed_batch
        with sheet.part(f"encoder alone, {what}"):
            pure, memory = encoder_speed(bench, encoder, side, views)
            sheet.row(f"encoder alone, {what}: views/s", pure)
            sheet.memory(f"encoder alone, {what}", memory)
        most = max(1, (os.cpu_count() or 1) - 2)
        # Views of the CPU by its usual and by as many threads as it has, and those of the device.
        ways: dict[str, list[Any]] = {
            "": [],
            f", {most} threads": ["--num_workers", most],
            ", views made on the device": ["--views_on", "device"],
        }
        for way, how in ways.items():
            told = f"{what}{way}"
            with sheet.part(f"loop, {told}"):
                words: list[Any] = ["--model", "matssl", "--encoder", encoder, "--view_size", side]
                words += ["--batch_size", sizes.timed_batch, "--steps", sizes.timed_steps]
                words += how
                run = bench.pretrain("timed", *words, "--overwrite")
                got, wait = loop_speed(run, views)
                sheet.row(f"loop, {told}: views/s", got)
                sheet.row(f"loop, {told}: share of waiting for data", wait)
                sheet.row(f"loop, {told}: views/s while not waiting", got / max(1 - wait, 1e-9))
                sheet.row(f"loop, {told}: share of the encoder alone", got / pure)
                sheet.memory(f"loop, {told}", run["memory"])


def encoder_speed(
    bench: Bench, name: str, side: int, views: int, change: Callable[[Any], Any] | None = None
) -> tuple[float, float]:
    """Return views/s of forward and backward passes of an encoder, and GB of the GPU."""
    import torch

    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(bench.few_threads.get("--threads", torch.get_num_threads()))
    device = torch.device(bench.device)
    encoder = Inside.encoder(name).to(device, memory_format=torch.channels_last).train()
    encoder = encoder if change is None else change(encoder)
    x = torch.randn(views // 2, 1, side, side, device=device)
    x = x.contiguous(memory_format=torch.channels_last)

    def passes(count: int) -> None:
        for _ in range(count):
            encoder.zero_grad(set_to_none=True)
            total = 0.0
            # Two passes of half the views, as the methods see them.
            for _ in range(2):
                with bench.autocast(bench.half):
                    total = total + encoder(x)[-1].float().mean()
            total.backward()  # type: ignore[attr-defined]

    passes(WARM if bench.cuda else 1)
    count = 20 if bench.cuda else 2
    seconds, memory = bench.measured(lambda: passes(count))
    return count * views / seconds, memory


def compiling(bench: Bench) -> None:
    """--compile on and off: equal losses, what it costs and what it brings."""
    import torch

    sizes, sheet = bench.sizes, bench.sheet
    if not bench.cuda:
        # Tracing alone, without minutes of C++.
        torch.compile = functools.partial(torch.compile, backend="eager")
    views = 2 * sizes.timed_batch
    words: list[Any] = ["--model", "matssl", "--steps", sizes.compiled_steps]
    words += ["--batch_size", sizes.timed_batch]
    with sheet.part("train_ssl.py --compile"):
        compare_compiled(bench, "pretraining", bench.pretrain, words, views)
    with sheet.part("train_finetune.py --compile"):
        steps = ["--steps", sizes.compiled_steps]
        compare_compiled(bench, "fine-tuning", bench.finetune, steps, 0)
    with sheet.part("encoder --compile"):
        plain, _ = encoder_speed(bench, sizes.encoder, sizes.view, views)
        quick, memory = encoder_speed(bench, sizes.encoder, sizes.view, views, torch.compile)
        sheet.row(f"{sizes.encoder} alone, views/s", plain)
        sheet.row(f"{sizes.encoder} alone, compiled / not", quick / plain)
        sheet.memory(f"{sizes.encoder} alone, compiled", memory)


def compare_compiled(
    bench: Bench, what: str, run: Callable[..., dict[str, Any]], words: list[Any], views: int
) -> None:
    sheet = bench.sheet
    plain = run("plain", *words)
    quick = run("compiled", *words, "--compile")
    first = abs(quick["losses"][0] / plain["losses"][0] - 1)
    sheet.row(f"{what} --compile: relative change of the first loss", first, "< 0.02", first < 0.02)
    ends = [statistics.mean(r["losses"][-5:]) for r in (plain, quick)]
    sheet.row(f"{what} --compile: mean of the last losses", f"{ends[1]:.4f}, without {ends[0]:.4f}")
    cost = quick["seconds"] - plain["seconds"]
    sheet.row(f"{what} --compile: seconds more for the whole run", cost)
    if views:
        speeds = [loop_speed(r, views)[0] for r in (plain, quick)]
        sheet.row(f"{what} --compile: views/s, with / without", speeds[1] / speeds[0])
    sheet.memory(f"{what} without --compile", plain["memory"])
    sheet.memory(f"{what} --compile", quick["memory"])
    names = [n for n in tensors(quick["folder"] / "last.ckpt") if "_orig_mod" in n]
    sheet.row(f"{what} --compile: names in the checkpoint stay", not names, "True", not names)


def predicting(bench: Bench) -> None:
    """The tiled predictor on a large picture: time, memory, Mpx/s, and where the time goes."""
    import numpy as np
    import torch

    sizes, sheet = bench.sizes, bench.sheet
    side = sizes.picture
    device = torch.device(bench.device)
    description = {"encoder": sizes.encoder, "decoder": "unet", "num_classes": 4, "in_channels": 1}
    model = Inside.model(description).eval().to(device, memory_format=torch.channels_last)
    image = np.random.default_rng(0).standard_normal((1, side, side), dtype=np.float32)
    height, width = Inside.tile(side)

    def network(batch: int) -> None:
        tiles = torch.randn(batch, 1, height, width, device=device)
        tiles = tiles.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), bench.autocast(bench.half):
            for _ in range(-(-(side * side) // (batch * height * width))):
                model(tiles)

    for batch in sizes.tile_batches:
        what = (
            f"{side} x {side}, 4 classes, U-Net {sizes.encoder}, tiles of {height}, batch {batch}"
        )
        for benchmark in (True, False):
            torch.backends.cudnn.benchmark = benchmark
            searched = "" if benchmark else " (no search for kernels)"

            def run(batch: int = batch) -> None:
                autocast = functools.partial(bench.autocast, bench.half)
                Inside.predict(model, image, batch=batch, device=device, autocast=autocast)

            with sheet.part(f"{what}{searched}"):
                cold, _ = bench.measured(run)
                seconds, memory = bench.measured(run)
                sheet.row(f"{what}{searched}: s, first time s", f"{seconds:.2f}, {cold:.2f}")
                sheet.row(f"{what}{searched}: Mpx/s", side * side / seconds / 1e6)
                sheet.memory(f"{what}{searched}", memory)
                network(batch)
                alone, _ = bench.measured(functools.partial(network, batch))
                sheet.row(f"{what}{searched}: share of the network alone", alone / seconds)
            if not bench.cuda:
                break


def agreement(bench: Bench) -> None:
    """GPU and CPU: probabilities, labels, and the losses of first steps."""
    import torch

    sheet, sizes = bench.sheet, bench.sizes
    with sheet.part("predictions"):
        # Trained a little, since labels of random weights would be a matter of rounding.
        path = bench.finetune("model", "--val_every", 1_000_000)["folder"] / "best.ckpt"
        payload = torch.load(path, map_location="cpu", weights_only=True)
        model = Inside.model(payload["model"])
        model.load_state_dict(payload["state"])
        compare_predictions(bench, model.eval())
    for method in Inside.methods()[: sizes.compared]:
        with sheet.part(f"first losses of {method}"):
            compare_losses(bench, method)


def compare_losses(bench: Bench, method: str) -> None:
    """Compare the losses of two steps in fp32: the first of a queue that is empty is always 0."""
    import torch

    words: list[Any] = ["--model", method, "--steps", 2, "--batch_size", 8, "--overwrite"]
    words += ["--view_size", min(bench.sizes.view, 64), "--precision", "fp32"]
    words += bench.labels(method)
    reference = bench.pretrain("first", *words, device="cpu")["losses"]
    for tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = tf32
        losses = bench.pretrain("first", *words)["losses"]
        told = " (TF32 in convolutions)" if tf32 else ""
        pairs = zip(reference, losses, CLOSE_LOSSES, strict=True)
        for step, (here, there, least) in enumerate(pairs, start=1):
            apart = abs(there / here - 1) if here else abs(there)
            what = f"loss {step} of {method} in fp32{told}, relative to the CPU's {here:.4f}"
            wanted = "" if tf32 else f"< {least}"
            bench.sheet.row(what, apart, wanted, None if tf32 else apart < least)


def compare_predictions(bench: Bench, model: Any) -> None:
    import cv2
    import numpy as np
    import torch

    file = sorted((bench.data / "labelled" / "test").glob("*.png"))[0]
    image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    image = ((image - image.mean()) / image.std())[None]
    model = model.to("cpu", memory_format=torch.channels_last)
    reference = Inside.predict(model, image, batch=2)
    device = torch.device(bench.device)
    model.to(device)
    cases = {
        "fp32 (TF32 in convolutions, torch's default)": ("fp32", True),
        "fp32 without TF32": ("fp32", False),
        "bf16": ("bf16", True),
    }
    before = torch.backends.cudnn.allow_tf32
    for name, (precision, tf32) in cases.items():
        torch.backends.cudnn.allow_tf32 = tf32
        autocast = functools.partial(bench.autocast, precision)
        got = Inside.predict(model, image, batch=2, device=device, autocast=autocast)
        apart = float(np.abs(got - reference).max())
        equal = float((got.argmax(0) == reference.argmax(0)).mean())
        strict = precision == "fp32" and not tf32
        wanted = f"< {CLOSE}" if strict else ""
        largest = f"probabilities, {name}: largest difference from the CPU"
        bench.sheet.row(largest, apart, wanted, apart < CLOSE if strict else None)
        least = EQUAL_LABELS if precision == "fp32" else EQUAL_LABELS_BF16
        what = f"labels, {name}: share equal to the CPU's"
        bench.sheet.row(what, equal, f">= {least}", equal >= least)
    torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Attributes:
        run: what it does.
        seconds: it gets at most.
        timed: whether it measures time, and so wants the machine for itself.
    """

    run: Callable[[Bench], None]
    seconds: float
    timed: bool


# In this order; those that measure no time run side by side.
SECTIONS = {
    "environment": Section(environment, 60, False),
    "tests": Section(tests, 180, False),
    "methods": Section(methods, 180, False),
    "resume": Section(resume, 180, False),
    "agreement": Section(agreement, 150, False),
    "commands": Section(commands, 90, True),
    "speed": Section(speed, 150, True),
    "predict": Section(predicting, 90, True),
    "compile": Section(compiling, 200, True),
}


# --- one process a section ----------------------------------------------------------------------


def work(args: argparse.Namespace) -> None:
    """Run one section in this process."""
    # cuBLAS reads this when it starts, and a later run in this process may want equal bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    sizes = TINY if args.tiny else FULL
    folder = Path(args.data) / args.section
    folder.mkdir(exist_ok=True)
    sheet = Sheet(Path(args.data) / f"{args.section}.json")
    sheet.write()
    bench = Bench(args.device, sizes, Path(args.data), folder, sheet)
    with sheet.part(args.section):
        Inside.without_pictures()
        SECTIONS[args.section].run(bench)
    sheet.write()


class Running:
    """A section in a process of its own."""

    def __init__(
        self,
        name: str,
        args: argparse.Namespace,
        data: Path,
        out: Path,
        cores: Sequence[int] = (),
    ) -> None:
        self.name, self.data, self.out = name, data, out
        self.log = data / f"{name}.log"
        # A dry run is as slow as its neighbours let it be; without a section that measures time
        # there is nobody to wait.
        alone = not any(SECTIONS[other].timed for other in args.only)
        self.seconds = math.inf if args.tiny or alone else SECTIONS[name].seconds
        words = [sys.executable, "-m", "benchmarks.gpu_check", "--section", name]
        words += ["--data", str(data), "--device", args.device]
        words += ["--tiny"] if args.tiny else []
        self.started = time.monotonic()
        with open(self.log, "w") as file:
            self.process = subprocess.Popen(
                words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        if cores:
            # Sections side by side with all cores each would wait for one another's threads.
            with contextlib.suppress(OSError, AttributeError):
                os.sched_setaffinity(self.process.pid, cores)

    def result(self, deadline: float) -> dict[str, Any]:
        """Wait until it is over or its time is, and return what it found."""
        limit = min(deadline, self.started + self.seconds)
        state = "done"
        try:
            self.process.wait(max(0.1, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            state = "out of time"
        # The section's own children, too: a killed run may still be there.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        seconds = time.monotonic() - self.started
        path = self.data / f"{self.name}.json"
        found: dict[str, Any] = {"rows": [], "errors": []}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
        if state == "done" and self.process.returncode != 0:
            state = f"exit code {self.process.returncode}"
            found["errors"].append(self._said()[-4000:])
        print(f"\n== {self.name}: {state}, {seconds:.0f} s", flush=True)
        said = self._said()
        with open(self.out / "sections.log", "a", encoding="utf-8") as file:
            file.write(f"== {self.name}: {state}, {seconds:.0f} s\n{said}\n")
            file.write("\n".join(found["errors"]) + "\n")
        kept = ("ok  ", "BAD ", "    ")
        print("\n".join(line for line in said.splitlines() if line.startswith(kept)))
        for error in found["errors"]:
            print(error[-1500:])
        return {"state": state, "seconds": round(seconds, 1), **found}

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def check(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sections that are wanted; return what they found."""
    started = time.monotonic()
    deadline = started + args.budget_s
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in SECTIONS if name in args.only]
    results: dict[str, Any] = {}
    facts = {"date": str(datetime.date.today()), "device": args.device, "tiny": args.tiny}
    facts |= {"commit": args.commit} if args.commit else {}
    (args.out / "sections.log").unlink(missing_ok=True)

    def note(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        seconds = round(time.monotonic() - started, 1)
        content = {**facts, "seconds": seconds, "sections": results}
        (args.out / "gpu_check.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        (args.out / "gpu_check.md").write_text(markdown(content), encoding="utf-8")

    with TemporaryDirectory() as folder:
        data, sizes = Path(folder), TINY if args.tiny else FULL
        Inside.write_data(
            data / "pool", data / "labelled", sizes.pool, sizes.pool_side, sizes.labelled_side
        )
        print(f"micrographs made in {time.monotonic() - started:.0f} s", flush=True)
        together = [name for name in wanted if not SECTIONS[name].timed]
        jobs = args.jobs or (len(together) if args.device != "cpu" else 1)
        while together:
            lot, together = together[: max(1, jobs)], together[max(1, jobs) :]
            cores = sorted(os.sched_getaffinity(0))
            shares = [
                cores[i :: len(lot)] if len(lot) <= len(cores) else [] for i in range(len(lot))
            ]
            running = [
                Running(name, args, data, args.out, share)
                for name, share in zip(lot, shares, strict=True)
            ]
            for one in running:
                note(one.name, one.result(deadline))
        for name in (name for name in wanted if SECTIONS[name].timed):
            if deadline - time.monotonic() < 10:
                note(name, {"state": "left out", "seconds": 0.0, "rows": [], "errors": []})
                continue
            note(name, Running(name, args, data, args.out).result(deadline))
    return results


def markdown(content: dict[str, Any]) -> str:
    """Return the table for SPEED.md, and what failed below it."""
    sections = content["sections"]
    facts = {r["what"]: r["got"] for r in sections.get("environment", {}).get("rows", [])}
    named = ", ".join(
        str(facts[key]) for key in ("card", "processor", "package torch") if key in facts
    )
    commit = str(content.get("commit") or facts.get("commit"))[:12]
    small = ", tiny sizes" if content["tiny"] else ""
    lines = [
        f"`python -m benchmarks.gpu_check --device {content['device']}` on {content['date']}, "
        f"commit {commit}, {named}{small}, {content['seconds']:.0f} s.",
        "",
        "| section | what | wanted | got |",
        "| --- | --- | --- | --- |",
    ]
    for name, result in sections.items():
        if result["state"] != "done":
            lines.append(f"| {name} | the section | done | **{result['state']}** |")
        for row in result["rows"]:
            if name == "environment" and "TFLOP" not in row["what"]:
                continue
            got = shown(row["got"]).replace("|", "/")
            got = f"**{got}**" if row["ok"] is False else got
            lines.append(f"| {name} | {row['what']} | {row['wanted'] or '-'} | {got} |")
    return "\n".join(lines) + "\n"


def failures(results: dict[str, Any]) -> list[str]:
    """Return what is not as it was wanted."""
    found = [f"{n}: {r['state']}" for n, r in results.items() if r["state"] != "done"]
    rows = [(n, row) for n, r in results.items() for row in r["rows"]]
    return found + [f"{n}: {r['what']}: {shown(r['got'])}" for n, r in rows if r["ok"] is False]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, a,b,c")
    parser.add_argument("--budget_s", type=float, default=460.0, help="seconds for all sections")
    parser.add_argument("--jobs", type=int, help="sections side by side (default: all on a GPU)")
    parser.add_argument("--commit", help="to write down where there is no git")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the results")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    if args.section:
        work(args)
        return 0
    args.only = args.only.split(",")
    unknown = [name for name in args.only if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    args.out = args.out.resolve()
    started = time.monotonic()
    wrong = failures(check(args))
    print((args.out / "gpu_check.md").read_text(encoding="utf-8"))
    print(f"{time.monotonic() - started:.0f} s, {len(wrong)} not as wanted")
    print("\n".join(wrong), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
