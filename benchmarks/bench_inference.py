"""A7, A8, A10: tiled prediction against the whole image and MONAI; start-up of the commands."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.paired import ratio, row, seconds
from matssl import tiles, tiling
from matssl.models.encoders import channels_last
from matssl.models.segmentation import build_model

SIDE, ROUNDS, STARTS = 2048, 5, 9
ROOT = Path(__file__).resolve().parent.parent

# Peak memory is that of a process of its own, above its size with the model loaded.
_PEAK = """
import sys, numpy as np, torch
sys.path.insert(0, {root!r})
from benchmarks import bench_inference as b
from matssl.core.runtime import peak_memory
torch.set_num_threads(1)
model, image, functions = b.prepare()
small = image[:, :64, :64]
b.tiling.predict(model, np.ascontiguousarray(small))
before = peak_memory()
functions[{name!r}]()
print(peak_memory() - before)
"""


def prepare():
    torch.manual_seed(0)
    model = channels_last(build_model("resnet18", "unet", 3)).eval()
    image = np.random.default_rng(0).standard_normal((1, SIDE, SIDE)).astype(np.float32)
    x = torch.from_numpy(image)[None]

    def whole():
        with torch.inference_mode():
            return model(x.contiguous(memory_format=torch.channels_last)).softmax(1).numpy()

    functions = {"tiled": lambda: tiling.predict(model, image), "whole": whole}
    try:
        from monai.inferers import SlidingWindowInferer

        window = SlidingWindowInferer((512, 512), overlap=0.125, mode="gaussian", sw_batch_size=1)
        plain = build_model("resnet18", "unet", 3).eval()
        plain.load_state_dict(model.state_dict())

        def monai():
            with torch.inference_mode():
                return window(x, plain).softmax(1).numpy()

        functions["monai"] = monai
    except ImportError:
        print("monai is not installed: A8 is left out", file=sys.stderr)
    return model, image, functions


def _peak(name: str, rounds: int = 3) -> float:
    code = _PEAK.format(root=str(ROOT), name=name)
    peaks = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        peaks.append(float(done.stdout.split()[-1]))
    return float(np.median(peaks))


def _start(commands: dict[str, list[str]], rounds: int = STARTS) -> dict[str, float]:
    """Return the least CPU seconds of each command, taken in turns: others share the machine."""
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(rounds):
        for name, words in commands.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *words], capture_output=True, cwd=ROOT, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            best[name] = min(best[name], used)
    return best


def main() -> list[str]:
    torch.set_num_threads(1)
    _, _, functions = prepare()
    # One thread works, so its CPU time leaves out what other programs take.
    times = seconds(functions, ROUNDS, time.process_time)
    lines = []
    what = f"tiled {SIDE} x {SIDE} / whole image, channels_last, time"
    lines.append(row("A7", what, "<= 1.10", ratio(times, "tiled", "whole"), ROUNDS))
    peaks = {name: _peak(name) for name in functions}
    got = peaks["tiled"] / peaks["whole"]
    lines.append(row("A7", "the same, peak memory", "<= 0.15", got, 3))
    places = tiles.plan(SIDE, SIDE)
    computed = len(places.tops) * len(places.lefts) * places.tile[0] * places.tile[1]
    lines.append(row("A7", "pixels of all tiles / of the image", "-", computed / SIDE**2, 1))
    if "monai" in functions:
        what = "tiled with blending / MONAI SlidingWindowInferer, time"
        lines.append(row("A8", what, "<= 0.9", ratio(times, "tiled", "monai"), ROUNDS))
        got = peaks["tiled"] / peaks["monai"]
        lines.append(row("A8", "the same, peak memory", "<= 0.8", got, 3))
    scripts = ("train_ssl.py", "train_finetune.py", "eval_model.py")
    used = _start({"bare": ["-c", "pass"]} | {script: [script, "--help"] for script in scripts})
    for script in scripts:
        what = f"{script} --help / bare python, CPU time"
        lines.append(row("A10", what, "<= 5", used[script] / used["bare"], STARTS))
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
