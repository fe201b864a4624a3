"""The whole way on synthetic micrographs: ``make demo``, or ``python -m matssl.tools.demo``.

Writes micrographs with exact masks, pretrains on the unlabelled ones, fine-tunes on two labelled
ones from the pretrained and from random weights, evaluates both and prints what came out.
"""

from __future__ import annotations

import json
import math
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import ToolSettings

ROOT = Path(__file__).resolve().parent.parent.parent
KIND = "two_phase"
# Smaller than the defaults of the commands: the demo must be over in minutes on two old cores.
VIEW, PAIRS = 96, 24
CROP = 128
# Seconds of what the demo does, in those of one pass of the encoder over a batch of views with its
# gradient: steps as measured on an EPYC with AVX2; validations, calibration, report and test of a
# run, and images, imports and baselines, by rough estimate.
PRETRAINING_STEP, FINETUNING_STEP, RUN, REST = 2.1, 0.95, 4.0, 40.0


@dataclass(frozen=True)
class DemoSettings(ToolSettings):
    """Flags of the command."""

    output_dir: str = flag("experiments/demo", "run", "folder of everything")
    seeds: int = flag(3, "run", "fine-tuning runs a start", low=1, high=1000)
    ssl_steps: int = flag(250, "run", "steps of the pretraining", low=1)
    finetune_steps: int = flag(120, "run", "steps of each fine-tuning", low=1)
    size: int = flag(256, "run", "side of the micrographs in pixels", low=64, high=8192)
    pool: int = flag(64, "run", "unlabelled micrographs", low=2, high=100_000)


SETTINGS = DemoSettings


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.demo")
    for name in ("train_ssl.py", "train_finetune.py", "eval_model.py"):
        if not (ROOT / name).is_file():
            raise UserError(
                f"the demo runs the scripts of the source tree; {ROOT / name} is absent"
            )
    started = time.monotonic()
    out = Path(args.output_dir)
    told = _expected(args)
    if told:
        print(told, flush=True)
    pool, labelled = _images(out / "data", args.size, args.pool)

    _say("1. Pretraining on the unlabelled micrographs")
    ssl = ["--model", "matssl", "--data_path", str(pool), "--steps", str(args.ssl_steps)]
    ssl += ["--view_size", str(VIEW), "--batch_size", str(PAIRS)]
    _run("train_ssl.py", [*ssl, "--name", "demo", "--output_dir", str(out), "--overwrite"])
    weights = out / "ssl" / "demo" / "encoder.safetensors"

    _say("2. Fine-tuning on two labelled micrographs, from these and from random weights")
    scores: dict[str, list[float]] = {"ssl": [], "random": []}
    for seed in range(args.seeds):
        for start in scores:
            name = f"{start}-{seed}"
            tune = ["--finetune_dataset", str(labelled), "--steps", str(args.finetune_steps)]
            tune += ["--crop_size", str(CROP), "--val_every", "60"]
            tune += ["--seed", str(seed), "--name", name, "--output_dir", str(out), "--overwrite"]
            if start == "ssl":
                tune += ["--ssl_weights_path", str(weights)]
            first = seed == 0
            _run("train_finetune.py", [*tune] if first else [*tune, "--quiet"], show=first)
            test = ["--model_path", str(out / "finetune" / name / "best.ckpt")]
            test += ["--dataset", str(labelled), "--output_dir", str(out), "--name", name]
            test += ["--overwrite", "--quiet"]
            # One result with pictures and baselines is enough to look at.
            test += ["--save_visualizations"] if first else ["--no-baselines"]
            _run("eval_model.py", test, show=first)
            scores[start].append(_miou(out / "eval" / name))
    _summary(out, scores, time.monotonic() - started)
    return 0


def _expected(args: DemoSettings) -> str:
    """Return in words how long the demo will take on this CPU, from passes of its encoder."""
    import torch

    from matssl.core import runtime
    from matssl.models.encoders import build_encoder, channels_last, pyramid

    here = runtime.setup()
    if here.device.type != "cpu":
        return ""
    encoder = channels_last(build_encoder("resnet18", 1))
    views = torch.rand(PAIRS, 1, VIEW, VIEW).contiguous(memory_format=torch.channels_last)
    passes = []
    for _ in range(3):
        start = time.monotonic()
        with here.autocast():
            loss = pyramid(encoder, views)[-1].mean()
        loss.backward()
        passes.append(time.monotonic() - start)
    step = PRETRAINING_STEP * args.ssl_steps
    run = FINETUNING_STEP * args.finetune_steps + RUN
    minutes = min(passes) * (step + 2 * args.seeds * run + REST) / 60
    threads = counted(here.threads, "CPU thread")
    return f"On {threads} this takes about {max(1, round(minutes))} min."


def _images(folder: Path, size: int, pool_size: int) -> tuple[Path, Path]:
    """Write the pool and the labelled set; what an earlier demo wrote is used again."""
    from matssl.data import synthetic

    pool, labelled = folder / "unlabelled", folder / "labelled"
    done = folder / f"written-{KIND}-{size}-{pool_size}.txt"
    if not done.exists():
        _say("0. Writing synthetic micrographs with exact masks")
        synthetic.write_pool(pool, n=pool_size, size=size, seed=1000)
        synthetic.write_dataset(labelled, KIND, n_train=2, n_val=2, n_test=6, size=size, seed=0)
        done.write_text("the demo's images are complete\n")
    return pool, labelled


def _run(script: str, argv: list[str], show: bool = True) -> None:
    """Run one of the three commands as a user would, in this process to save the imports."""
    if show:
        print("\n$ python", script, " ".join(argv), flush=True)
    previous = sys.argv
    sys.argv = [str(ROOT / script), *argv]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(stop.code) from None
    finally:
        sys.argv = previous


def _metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def _miou(folder: Path) -> float:
    return float(_metrics(folder)["pooled"]["means"]["miou"])


def _summary(out: Path, scores: dict[str, list[float]], seconds: float) -> None:
    _say("Test mIoU on six micrographs the training never saw")
    for start, label in (("ssl", "matssl, pretrained"), ("random", "matssl, random weights")):
        values = scores[start]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
        print(f"  {label:<34}{100 * mean:6.1f} ± {100 * spread:.1f}   (n={len(values)} seeds)")
    for name, value in _metrics(out / "eval" / "ssl-0").get("baselines", {}).items():
        print(f"  baseline: {name:<24}{100 * float(value['miou']):6.1f}")
    gains = [a - b for a, b in zip(scores["ssl"], scores["random"], strict=True)]
    print(f"  gain of pretraining by seed: {', '.join(f'{100 * g:+.1f}' for g in gains)}")
    print(f"\nReport: {out / 'eval' / 'ssl-0' / 'report.html'}")
    print(f"Done in {seconds:.0f} s.")


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(guard(main))
