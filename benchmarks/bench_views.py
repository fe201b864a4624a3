"""A1 to A3: views a second against torchvision and albumentations; fidelity of the resize."""

from __future__ import annotations

import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from benchmarks.paired import ratio, row, seconds
from matssl.core import torchvision_ops
from matssl.data import cache, synthetic, views
from matssl.data.datasets import ViewLoader
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewAugmentation

torchvision_ops.ensure()

COUNT, ROUNDS = 32, 7


def _torchvision(files: list[bytes], size: int):
    """The same kinds of operation at the same probabilities, PNG decoded per view, RGB."""
    from PIL import Image
    from torchvision import transforms as T

    pipeline = T.Compose(
        [
            T.RandomResizedCrop(size, (0.3, 1.0), antialias=True),
            T.RandomHorizontalFlip(),
            T.RandomVerticalFlip(),
            T.RandomApply([T.RandomRotation((90, 90))], 0.5),
            T.RandomApply([T.ColorJitter(0.3, 0.3)], 0.8),
            T.RandomApply([T.Lambda(lambda im: T.functional.adjust_gamma(im, 1.2))], 0.8),
            T.RandomApply([T.GaussianBlur(5, (0.1, 1.0))], 0.5),
            T.ToTensor(),
            T.RandomApply([T.Lambda(lambda x: x + 0.02 * torch.randn_like(x))], 0.5),
            T.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )

    def run():
        images = (
            Image.open(io.BytesIO(files[i % len(files)])).convert("RGB") for i in range(COUNT)
        )
        return torch.stack([pipeline(image) for image in images])

    return run


def _albumentations(planes: list[np.ndarray], size: int):
    """Decoded images, one channel, area interpolation (antialiased)."""
    import albumentations as A

    pipeline = A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(0.3, 1.0), interpolation=cv2.INTER_AREA),
            A.D4(p=1.0),
            A.RandomBrightnessContrast(0.3, 0.3, p=0.8),
            A.RandomGamma((75, 133), p=0.8),
            A.GaussianBlur((5, 5), (0.1, 1.0), p=0.5),
            A.GaussNoise((0.0, 0.02), p=0.5),
            A.Normalize((0.5,), (0.25,)),
        ]
    )

    def run():
        batch = [pipeline(image=planes[i % len(planes)])["image"] for i in range(COUNT)]
        return torch.from_numpy(np.stack(batch))

    return run


def _ours(pool: cache.Pool, size: int):
    """What ships: the loader's views, normalised on the device as the methods do."""
    loader = ViewLoader(pool, [ViewAugmentation(size=size)], 4, 10_000, 0)
    samples = np.arange(COUNT) % len(loader.tiles)
    epoch = iter(range(1 << 30))

    def run():
        batch = loader._views(samples, next(epoch))
        return batch.views[0].float().div_(255).sub_(0.5).div_(0.25)

    return run


def _fidelity() -> list[str]:
    """A3: error against antialiased bilinear and time, over crop sides from 150 to 900."""
    generator = np.random.default_rng(0)
    field = cv2.GaussianBlur(generator.normal(128, 90, (900, 900)), (0, 0), 0.8)
    plane = field.clip(0, 255).astype(np.uint8)
    crops = [plane[:side, : int(side * 0.9)] for side in range(160, 901, 82)]
    exact = [
        torch.nn.functional.interpolate(
            torch.from_numpy(crop)[None, None].float(), (128, 128), mode="bilinear", antialias=True
        )[0, 0].numpy()
        for crop in crops
    ]

    def linear(crop):
        return cv2.resize(crop, (128, 128), interpolation=cv2.INTER_LINEAR)

    def area(crop):
        return cv2.resize(crop, (128, 128), interpolation=cv2.INTER_AREA)

    def error(resize):
        pairs = zip(crops, exact, strict=True)
        return float(np.mean([np.sqrt(np.mean((resize(c) - e) ** 2)) for c, e in pairs]))

    def ours(crop):
        return views.shrink(crop, 128)

    times = seconds(
        {
            "ours": lambda: [ours(c) for _ in range(20) for c in crops],
            "area": lambda: [area(c) for _ in range(20) for c in crops],
        },
        ROUNDS,
        time.process_time,
    )
    return [
        row("A3", "resize error / plain linear's", "<= 0.5", error(ours) / error(linear), 1),
        row("A3", "resize time / INTER_AREA's", "<= 0.25", ratio(times, "ours", "area"), ROUNDS),
    ]


def main() -> list[str]:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = [synthetic.micrograph("two_phase", 768, 1024, i)[0] for i in range(8)]
    files = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    lines = []
    with TemporaryDirectory() as folder:
        paths = []
        for i, data in enumerate(files):
            path = Path(folder) / f"{i}_1.png"
            path.write_bytes(data)
            paths.append(path)
        pool = cache.build(paths, Preprocess(), cache_dir=Path(folder) / "cache", quiet=True)
        for size, first, second in ((128, 20, 4), (224, 12, 2.5)):
            times = seconds(
                {
                    "torchvision": _torchvision(files, size),
                    "albumentations": _albumentations(images, size),
                    "ours": _ours(pool, size),
                },
                ROUNDS,
                time.process_time,
            )
            got = ratio(times, "torchvision", "ours")
            what = f"views/s at {size} px / torchvision v1 with PIL decode"
            lines.append(row("A1", what, f">= {first}", got, ROUNDS))
            got = ratio(times, "albumentations", "ours")
            what = f"views/s at {size} px / albumentations decoded, INTER_AREA"
            lines.append(row("A2", what, f">= {second}", got, ROUNDS))
    return lines + _fidelity()


if __name__ == "__main__":
    print("\n".join(main()))
