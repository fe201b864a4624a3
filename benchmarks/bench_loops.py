"""Whole training loops, from files to the next weights, against loops of lightly and of MONAI.

Each loop reads the same micrographs, and a round is a step of it with its batch. What the peers'
own recipes do is left to them: lightly decodes a file for each sample and changes colours, MONAI
keeps decoded images (``CacheDataset``). Loss and optimiser are the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.paired import ratio, row, seconds
from matssl.core import optim, runtime, torchvision_ops
from matssl.core.parsing import read_settings
from matssl.data import cache, readers, synthetic
from matssl.data.crops import CropAugmentation, CropLoader, load
from matssl.data.datasets import ViewLoader
from matssl.data.layouts import find
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewAugmentation
from matssl.methods import method_class, recipes
from matssl.models import losses
from matssl.models.encoders import build_encoder, channels_last
from matssl.models.segmentation import build_model

ROUNDS, PAIRS, SIDE, CROPS = 5, 16, 128, 4


def _endless(batches: Callable[[], Iterator]) -> Iterator:
    while True:
        yield from batches()


def _own_pretraining(pool_folder: Path, folder: Path) -> Callable[[], None]:
    """SimCLR by this package: the loader, the method and the optimiser of the stage."""
    pool = cache.build(
        readers.find_images(pool_folder), Preprocess(), cache_dir=folder / "cache", quiet=True
    )
    loader = ViewLoader(pool, [ViewAugmentation(size=SIDE)] * 2, PAIRS, 384, 0)
    values = read_settings(Path(recipes("simclr")) / "matssl.yaml")
    method = method_class("simclr").from_settings(
        build_encoder("resnet18", 1), 1, (0.5,), (0.25,), values
    )
    channels_last(method)
    optimizer = optim.build_optimizer("sgd", optim.parameter_groups(method, 1e-4), 0.01)
    batches = _endless(lambda: loader.epoch(0))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method(next(batches)).total.backward()
        optimizer.step()

    return step


def _lightly(pool_folder: Path) -> Callable[[], None]:
    """SimCLR as lightly's documentation writes it, for the same encoder, views and batch."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    data = LightlyDataset(str(pool_folder), transform=SimCLRTransform(input_size=SIDE))
    loader = torch.utils.data.DataLoader(data, PAIRS, shuffle=True, drop_last=True)
    encoder, head = build_encoder("resnet18", 3), SimCLRProjectionHead(512, 512, 128)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=1e-4)
    criterion = NTXentLoss(temperature=0.1)
    batches = _endless(lambda: iter(loader))

    def embed(view: Tensor) -> Tensor:
        return head(encoder(view)[-1].mean((2, 3)))

    def step() -> None:
        first, second = next(batches)[0]
        loss = criterion(embed(first), embed(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _own_finetuning(folder: Path) -> Callable[[], None]:
    """U-Net by this package: crops, loss and optimiser of the stage."""
    found = find(folder)
    assert found.table is not None
    table = found.table
    data = load([pair for pair in found.pairs if pair.split == "train"], Preprocess(), table)
    changes = CropAugmentation(size=SIDE, brightness=0.1, contrast=0.2, blur_p=0.2, noise_p=0.2)
    loader = CropLoader(data, Preprocess(), table.num_classes, changes, CROPS, 0)
    model = channels_last(build_model("resnet18", "unet", table.num_classes)).train()
    batches = _endless(lambda: loader.batches(0, 1000))
    return _supervised(model, torch.optim.AdamW(model.parameters(), 1e-3, fused=True), batches)


def _supervised(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator
) -> Callable[[], None]:
    def step() -> None:
        images, masks = next(batches)
        optimizer.zero_grad(set_to_none=True)
        losses.LOSSES["dice_ce"](model(images), masks, None).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _monai(folder: Path, classes: int) -> Callable[[], None]:
    """The same network, loss and optimiser behind MONAI's cached data set and its transforms."""
    from monai import transforms as t
    from monai.data import CacheDataset, DataLoader

    both, image = ("image", "mask"), "image"
    change = t.Compose(
        [
            t.LoadImaged(both, reader="PILReader"),
            t.EnsureChannelFirstd(both),
            t.ScaleIntensityd(image),
            t.RandSpatialCropd(both, (SIDE, SIDE), random_size=False),
            t.RandFlipd(both, 0.5, 0),
            t.RandRotate90d(both, 0.5),
            t.RandScaleIntensityd(image, 0.2, prob=0.8),
            t.RandShiftIntensityd(image, 0.1, prob=0.8),
            t.RandGaussianSmoothd(image, prob=0.2),
            t.RandGaussianNoised(image, prob=0.2),
        ]
    )
    files = [
        {"image": str(path), "mask": str(folder / "train_annot" / path.name)}
        for path in sorted((folder / "train").iterdir())
    ]
    # Two images stand for an epoch of many steps, as a loader of crops would have it.
    data = CacheDataset(files * 50, change, progress=False)
    loader = DataLoader(data, batch_size=CROPS, shuffle=True, num_workers=0)
    model = build_model("resnet18", "unet", classes).train()

    def batches() -> Iterator:
        for part in loader:
            yield part["image"].as_tensor(), part["mask"].as_tensor()[:, 0].long()

    return _supervised(model, torch.optim.AdamW(model.parameters(), 1e-3), _endless(batches))


def _compared(functions: dict[str, Callable[[], None]], peer: str, what: str) -> str:
    times = seconds(functions, ROUNDS, time.process_time)
    return row("-", what, "<= 1", ratio(times, "ours", peer), ROUNDS)


def main() -> list[str]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    runtime.keep_freed_memory()
    torchvision_ops.ensure()
    lines = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            synthetic.write_pool(folder / "pool", n=40, size=384, seed=0)
            loops = {"ours": _own_pretraining(folder / "pool", folder)}
            loops["lightly"] = _lightly(folder / "pool")
            what = f"step of SimCLR, R18, {PAIRS} pairs of {SIDE} px, files to weights / lightly's"
            lines.append(_compared(loops, "lightly", what))
        except ImportError as error:
            print(f"lightly is left out: {error}", file=sys.stderr)
        try:
            synthetic.write_dataset(
                folder / "set", "two_phase", n_train=2, n_val=1, n_test=1, size=256, seed=0
            )
            loops = {"ours": _own_finetuning(folder / "set")}
            loops["monai"] = _monai(folder / "set", 3)
            what = f"step of a U-Net, R18, {CROPS} crops of {SIDE} px, files to weights / MONAI's"
            lines.append(_compared(loops, "monai", what))
        except ImportError as error:
            print(f"MONAI is left out: {error}", file=sys.stderr)
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
