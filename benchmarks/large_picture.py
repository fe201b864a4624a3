"""Memory of one large picture through doctor, pretraining, prediction and phase map.

    python -m benchmarks.large_picture --side 20000 --fast --out /tmp/large   # half an hour
    python -m benchmarks.large_picture --side 4000 --kinds tif --stages evaluate --out /tmp/small

Each command runs in a process of its own, whose anonymous memory (``RssAnon`` of /proc, what cannot
be given back to a file) is sampled fifty times a second. Mapped files are not counted: the kernel
takes their pages back when memory is short. The picture is a synthetic micrograph repeated, 8 bit,
as a plain TIFF, a compressed TIFF or a PNG. With --fast, prediction and phase map ask a network of
one multiplication instead of the trained one, whose memory does not depend on the picture (tiles of
one size) and is that of a run on a small picture without --fast. What is finished is not measured
again: --out keeps results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from matssl.data import synthetic

KINDS = ("tif", "zlib.tif", "png")
STAGES = ("doctor", "pretrain", "evaluate", "phase_map")
TILE = 1000


def picture(path: Path, side: int, kind: str) -> None:
    """Write a square picture; neighbouring repeats are mirrored, so that no seam is a line."""
    if path.exists():
        return
    import cv2

    tile = synthetic.micrograph("two_phase", TILE, TILE, 0)[0]
    cell = np.block([[tile, tile[:, ::-1]], [tile[::-1], tile[::-1, ::-1]]])
    times = -(-side // len(cell))
    pixels = np.ascontiguousarray(np.tile(cell, (times, times))[:side, :side])
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "png":
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    elif kind == "zlib.tif":
        tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=64, metadata=None)
    else:
        tifffile.imwrite(path, pixels, metadata=None)


def watched(words: list[str]) -> tuple[float, float, int]:
    """Run a command; return its largest anonymous memory in GB, its seconds and exit code."""
    start = time.perf_counter()
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    most = 0
    lines: list[str] = []
    assert child.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(child.stdout or ()), daemon=True)
    reader.start()
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, int(line.split()[1]))
        time.sleep(0.02)
    reader.join(5)
    if child.returncode not in (0, 1):
        print("".join(lines[-20:]))
    return most * 1024 / 1e9, time.perf_counter() - start, child.returncode


def models(out: Path, encoder: str, decoder: str) -> tuple[Path, Path]:
    """Return a small pretraining and a small fine-tuning, made once."""
    data = out / "small"
    for number in range(6):
        image, mask = synthetic.micrograph("two_phase", 256, 256, number)
        for kind, content in (("images", image), ("masks", mask)):
            (data / kind).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(data / kind / f"a{number}.tif", content)
    common = ["--output_dir", str(out), "--steps", "4", "--batch_size", "2", "--quiet"]
    common += ["--encoder", encoder, "--name", "small"]
    ssl, tuned = out / "ssl" / "small", out / "finetune" / "small"
    if not (ssl / "last.ckpt").exists():
        words = [sys.executable, "train_ssl.py", "--data_path", str(data / "images"), *common]
        subprocess.run([*words, "--view_size", "64", "--overwrite"], check=True)
    if not (tuned / "best.ckpt").exists():
        words = [sys.executable, "train_finetune.py", "--finetune_dataset", str(data), *common]
        words += ["--decoder", decoder, "--crop_size", "64", "--overwrite"]
        subprocess.run(words, check=True)
    return ssl, tuned / "best.ckpt"


def fast(words: list[str]) -> int:
    """Run a stage with a network that costs nothing: the grey level, times the class."""
    import torch
    from torch import Tensor, nn

    from matssl.trained.network import Network

    class Grey(nn.Module):
        multiple = 32

        def __init__(self, classes: int) -> None:
            super().__init__()
            self.register_buffer("slopes", torch.arange(classes).float()[:, None, None])

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True) * self.get_buffer("slopes")

    whole = Network.probabilities

    def probabilities(self: Network, image: Any, num_classes: int, **how: Any) -> Any:
        return whole(dataclasses.replace(self, model=Grey(num_classes)), image, num_classes, **how)

    Network.probabilities = probabilities  # type: ignore[method-assign]
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
    return 0


def command(stage: str, folder: Path, out: Path, args: argparse.Namespace) -> list[str]:
    """Return the command line of a stage."""
    encoder = args.encoder
    name, python = f"{folder.name}-{stage}", sys.executable
    if stage == "doctor":
        return [python, "-m", "matssl.tools.doctor", str(folder)]
    if stage == "pretrain":
        words = [python, "train_ssl.py", "--data_path", str(folder), "--output_dir", str(out)]
        words += ["--name", name, "--steps", "2", "--batch_size", "4", "--view_size", "64"]
        return [*words, "--encoder", encoder, "--overwrite"]
    ssl, tuned = models(out, encoder, args.decoder)
    if args.fast:
        python = f"{python} -m benchmarks.large_picture fast"
    words = ["--output_dir", str(out / "results" / name), "--overwrite", "--quiet"]
    if stage == "evaluate":
        words += ["--model_path", str(tuned), "--dataset", str(folder)]
        return [*python.split(), "eval_model.py", *words]
    words += ["--model_path", str(ssl), "--data", str(folder), "--phases", "2"]
    return [*python.split(), "matssl/tools/phase_map.py", *words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--decoder", default="unet", help="deeplabv3plus is several times as fast")
    parser.add_argument("--fast", action="store_true", help="a network that costs nothing")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    args = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", ".")
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "results.json"
    results = json.loads(table.read_text()) if table.exists() else {}
    for kind in args.kinds:
        folder = args.out / f"{args.side}-{kind.replace('.', '-')}"
        picture(folder / f"large.{kind}", args.side, kind)
        for stage in args.stages:
            key = f"{stage} {args.side} {kind}"
            if key not in results:
                words = command(stage, folder, args.out, args)
                peak, seconds, code = watched(words)
                results[key] = {"gb": round(peak, 3), "s": round(seconds), "exit": code}
                table.write_text(json.dumps(results, indent=1))
            print(f"{key:32} {results[key]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fast"]:
        sys.exit(fast(sys.argv[2:]))
    main()
