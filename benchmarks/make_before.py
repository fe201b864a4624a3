"""Runs of one commit, small enough to be kept, for tests/test_before.py.

    python -m benchmarks.make_before tests/fixtures/before

Later versions must go on from what users have on their disks: run folders that were broken off,
checkpoints, encoders. Here the commands make them, for every self-supervised method and for
fine-tuning, evaluation and phase maps, in one archive of less than 1 MB, beside the numbers that
the same runs give when nothing breaks them off. The files are what the commands wrote, but that

- networks start with few live channels, all other weights being 0, and with weights of few digits
  (see ``few_live_channels``): what is dead stays dead in training, and zeros take no room;
- pictures are one pixel; reports and the cache are left out;
- the images lie beside the runs, so that no other machine has to draw them alike.

Nothing of matssl is imported but the commands. The archive is of the commit named in
``expected.json``; it is made again only where a new kind of run is to be kept, by that commit's
version of this file.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import lzma
import os
import shlex
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tifffile
import torch
from torch import Tensor, nn

from benchmarks.same_bits import header, workplace

# Rows of a weight that are not 0: of a layer's outputs so many live.
LIVE = 3
ENCODER = "tu-test_resnet"
STEADY = "--threads 1 --precision fp32 --device cpu --num_workers 0 --quiet"
SSL = (
    f"--data_path pool --encoder {ENCODER} --view_size 32 --tile_size 32 --batch_size 4 --steps 4 "
    f"--hidden_dim 16 --global_output_dim 8 {STEADY}"
)
GUIDED = "--labeled_path labelled --dense_output_dim 8"
METHODS = {
    "matssl": "--probe_path labelled --probe_every 2",
    "simclr": "--group_negatives drop",
    "mocov2": "--symmetric",
    "densecl": "--dense_output_dim 8",
    "byol": "",
    "pscl-simclr": GUIDED,
    "pscl-moco": GUIDED,
    "slotcon": "--prototypes 8",
    "spark": "",
}
TUNED = f"--batch_size 2 --crop_size 32 --steps 4 --val_every 2 {STEADY}"
FROM_SSL = "--ssl_weights_path experiments/ssl/matssl/encoder.safetensors"
FINETUNE = {
    "folds": f"--finetune_dataset few --encoder {ENCODER} {TUNED}",
    "ssl": f"--finetune_dataset labelled {FROM_SSL} {TUNED}",
}
# Steps that a run has taken when it is broken off; the two folds take theirs before.
STOP_AFTER = {"folds": 10}
# Left empty in a set of training images alone.
SPLITS = ("val", "test")
# What is kept of a run folder.
KEPT = {".ckpt", ".safetensors", ".csv", ".jsonl", ".json", ".yaml", ".txt", ".npy", ".png"}
PICTURES = ("views.png", "curves.png", "features.png", "panel.png")


@contextlib.contextmanager
def few_live_channels() -> Iterator[None]:
    """Let the functions of ``torch.nn.init`` leave LIVE rows of a weight, at powers of 2.

    A channel whose weights are 0 gives 0, and behind a normalisation and a ReLU no gradient comes
    back to it: neither it nor its moments in the optimiser ever change.
    """
    names = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "normal_", "trunc_normal_")
    before = {name: getattr(nn.init, name) for name in names}

    def sparse(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
            result = fill(tensor, *args, **options)
            with torch.no_grad():
                if tensor.ndim > 1:
                    tensor[LIVE:] = 0
                    # Few inputs live as well: larger weights keep the size of what they give.
                    tensor *= (tensor.shape[1] / min(LIVE, tensor.shape[1])) ** 0.5
                    tensor.copy_(tensor.sign() * tensor.abs().log2().round().exp2().nan_to_num(0))
            return result

        return filled

    for name, fill in before.items():
        setattr(nn.init, name, sparse(fill))
    try:
        yield
    finally:
        for name, fill in before.items():
            setattr(nn.init, name, fill)


@contextlib.contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Send SIGTERM to this process within the step of this number."""
    zero_grad, count = torch.optim.Optimizer.zero_grad, 0

    def counted(optimizer: torch.optim.Optimizer, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        zero_grad(optimizer, *args, **options)

    torch.optim.Optimizer.zero_grad = counted
    try:
        yield
    finally:
        torch.optim.Optimizer.zero_grad = zero_grad


def run(module: str, words: str, code: int = 0) -> None:
    """Call a command.

    Raises:
        RuntimeError: it ended with another exit code.
    """
    main = importlib.import_module(module).main
    # command.txt in the run folder begins with it.
    sys.argv[0] = f"{module}.py"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = main(shlex.split(words))
    except SystemExit as stop:
        found = stop.code
    if found != code:
        raise RuntimeError(f"{module} {words}: exit code {found}")


def rows(path: Path, names: Sequence[str]) -> list[dict[str, float]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {name: float(row[name]) for name in names if row.get(name)}
            for row in csv.DictReader(file)
        ]


def make() -> dict[str, Any]:
    """Make all runs in the working folder; return the numbers of those that nothing broke off."""
    expected: dict[str, Any] = {}
    synthetic = "matssl.tools.make_synthetic"
    run(synthetic, "labelled --train 4 --val 2 --test 2 --size 64")
    run(synthetic, "pools --train 0 --val 0 --test 0 --pool 8 --size 64 --seed 1")
    run(synthetic, "few --kind particles --train 2 --val 0 --test 0 --size 64 --seed 2")
    Path("pools/pool").rename("pool")
    for folder in ("pools", *(f"few/{split}{what}" for split in SPLITS for what in ("", "_annot"))):
        shutil.rmtree(folder)
    for name, flags in METHODS.items():
        words = f"--model {name} --name {name} {flags} {SSL}"
        run("train_ssl", f"{words} --output_dir whole")
        expected[f"ssl/{name}"] = rows(Path("whole/ssl", name, "steps.csv"), ["step", "loss"])
        with stopped_after(2):
            run("train_ssl", words, 143)
    for name, flags in FINETUNE.items():
        words = f"--name {name} {flags}"
        run("train_finetune", f"{words} --output_dir whole")
        folder = Path("whole/finetune", name)
        expected[f"finetune/{name}"] = rows(folder / "steps.csv", ["step", "loss"])
        with stopped_after(STOP_AFTER.get(name, 2)):
            run("train_finetune", words, 143)
    # A model is read also where its run was broken off.
    for name, data in (("test", "labelled"), ("unlabelled", "pool")):
        words = f"--model_path experiments/finetune/ssl/best.ckpt --dataset {data} --name {name}"
        run("eval_model", f"{words} --save_probabilities {STEADY}")
    table = Path("experiments/eval/test/per_image.csv")
    with open(table, encoding="utf-8", newline="") as file:
        numbers = [name for name in next(csv.reader(file)) if "fraction" in name or "iou" in name]
    expected["eval/test"] = rows(table, numbers)
    maps = sorted(Path("experiments/eval/test/probabilities").iterdir())
    expected["probabilities"] = [
        tifffile.imread(path).astype(float)[:, 8::16, 8::16].ravel().tolist() for path in maps
    ]
    words = "--model_path experiments/ssl/matssl --data pool --name matssl"
    run("matssl.tools.phase_map", f"{words} {STEADY}")
    return expected


def pack(place: Path) -> None:
    """Write the kept files of the working folder to an archive, alike ones side by side."""
    files = [
        path
        for path in Path().rglob("*")
        if path.is_file()
        and path.suffix in KEPT
        and path.parts[0] != "whole"
        and path.name not in (*PICTURES, "environment.json")
        and not {"cache", "colour", "panels", "validation"} & set(path.parts)
    ]
    files.sort(key=lambda path: (path.suffix, path.name, str(path)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 28}]
    with (
        lzma.open(place, "wb", filters=filters) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in files:
            facts = archive.gettarinfo(path)
            facts.mtime, facts.uid, facts.gid, facts.uname, facts.gname = 0, 0, 0, "", ""
            with open(path, "rb") as file:
                archive.addfile(facts, file)


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(argv[0]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts = {key: header()[key] for key in ("date", "commit", "cpu", "torch")}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    with workplace(), few_live_channels():
        expected = make()
        pack(out / "runs.tar.xz")
    text = json.dumps({"header": facts, **expected}, indent=1)
    (out / "expected.json").write_text(text + "\n", encoding="utf-8")
    size = (out / "runs.tar.xz").stat().st_size
    print(f"{out / 'runs.tar.xz'}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
