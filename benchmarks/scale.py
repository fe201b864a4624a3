"""Many pictures: what predicting a folder and filling a pool take of time, memory and disk.

    python -m benchmarks.scale --pictures 10000

Small pictures, so that a number of them that is large fits an afternoon: what is looked for is what
grows with their number. Numbers are of processor time, which a busy machine does not change much.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)


def pictures(folder: Path, count: int, side: int) -> Path:
    """Write so many grey pictures, each another."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = cv2.GaussianBlur(rng.integers(0, 256, (2048, 2048)).astype(np.uint8), (0, 0), 2)
    base = cv2.normalize(base, base, 0, 255, cv2.NORM_MINMAX)
    for number in range(count):
        y, x = rng.integers(0, 2048 - side, 2)
        cv2.imwrite(str(folder / f"field_{number:06d}.png"), base[y : y + side, x : x + side])
    return folder


def model(place: Path, encoder: str) -> Path:
    """Train a network for a step; what it predicts does not matter here."""
    from matssl.data import synthetic

    synthetic.write_dataset(
        place / "set", "two_phase", n_train=4, n_val=2, n_test=2, size=96, seed=0
    )
    words = ["--finetune_dataset", str(place / "set"), "--output_dir", str(place / "out")]
    words += ["--name", "m", "--encoder", encoder, "--crop_size", "64", "--batch_size", "2"]
    words += ["--steps", "1", "--threads", "1", "--precision", "fp32", "--check_start", "none"]
    command = [sys.executable, str(ROOT / "train_finetune.py"), *words, "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return place / "out/finetune/m/best.ckpt"


def resident(process: int) -> float:
    """Return the memory of a process in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu(process: int) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def predict(place: Path, folder: Path, count: int, checkpoint: Path) -> None:
    """Predict a folder and print time and memory as the number of its masks grows."""
    words = ["--model_path", str(checkpoint), "--dataset", str(folder), "--threads", "1"]
    words += ["--output_dir", str(place / "out"), "--name", "e", "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "eval_model.py"), *words], stdout=subprocess.DEVNULL
    )
    masks = place / "out/eval/e/masks/index"
    shares = [share for share in SHARES if share * count >= 20]
    print("| masks | CPU s | memory MB |\n| --- | --- | --- |", flush=True)
    while process.poll() is None:
        done = len(os.listdir(masks)) if masks.is_dir() else 0
        while shares and done >= shares[0] * count:
            print(f"| {done} | {cpu(process.pid):.1f} | {resident(process.pid):.0f} |", flush=True)
            shares.pop(0)
        time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(path.stat().st_size for path in (place / "out/eval/e").rglob("*") if path.is_file())
    print(
        f"exit {process.returncode}; in all {seconds:.1f} s of CPU ({1e3 * seconds / count:.1f} ms"
    )
    print(f"a picture), {time.perf_counter() - begun:.0f} s on the clock, largest memory")
    print(f"{after.ru_maxrss / 1024:.0f} MB, {size / count / 1e3:.2f} kB of results a picture")
    for path in sorted((place / "out/eval/e").iterdir()):
        if path.is_file() and path.stat().st_size > 20 * count:
            print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB")


def pool(place: Path, folder: Path) -> None:
    """Fill a pool from a folder, and print what it takes; then cut one of 10^6 tiles."""
    from matssl.data import cache
    from matssl.data.datasets import tile_boxes
    from matssl.data.preprocess import Preprocess
    from matssl.data.readers import find_images

    record = Preprocess.chosen(channels=1)
    begun, memory = time.process_time(), resident(os.getpid())
    paths = find_images(folder)
    found = time.process_time()
    built = cache.build(paths, record, cache_dir=place / "cache", quiet=True)
    done = time.process_time()
    size = sum(path.stat().st_size for path in (place / "cache").rglob("*"))
    each, n = 1e3 / len(built), len(built)
    print(f"pool of {n}: listed in {(found - begun) * each:.2f} ms, decoded in")
    print(f"{(done - found) * each:.2f} ms a picture (CPU), {size / n / 1e3:.2f} kB on the disk,")
    print(f"memory +{resident(os.getpid()) - memory:.0f} MB")
    begun = time.process_time()
    cache.build(paths, record, cache_dir=place / "cache", quiet=True)
    print(f"opened again: {(time.process_time() - begun) * each:.2f} ms a picture")
    begun, memory = time.process_time(), resident(os.getpid())
    tiles = tile_boxes([(2048, 2048)] * 15_625, 256)
    print(f"{len(tiles)} tiles of 15,625 pictures of 2048 px: {time.process_time() - begun:.1f} s,")
    print(f"{tiles.nbytes / 1e6:.0f} MB, memory +{resident(os.getpid()) - memory:.0f} MB")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=64, help="of a picture, px")
    parser.add_argument("--encoder", default="tu-test_resnet")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale") as temporary:
        place = Path(temporary)
        folder = pictures(place / "pictures", args.pictures, args.side)
        checkpoint = model(place, args.encoder)
        pool(place, folder)
        predict(place, folder, args.pictures, checkpoint)


if __name__ == "__main__":
    main()
