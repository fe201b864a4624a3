"""The anchor to beat: a U-Net as a competent user writes it in an afternoon, kept that plain.

    python benchmarks/plain_unet.py DATA/nasa/EBC1 --splits DATA/PROTOCOL.json --seed 0

smp U-Net, ResNet-18 from random weights, three equal channels, mean and standard deviation of the
training set, random 192 px crops, D4, Dice + cross-entropy, AdamW 1e-3 with one-cycle, batch 4,
500 steps, validation every 100, best kept, whole-image prediction. Only the reading of files and
masks is shared with the toolkit, so that both see the same pixels and classes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from matssl.core import torchvision_ops
from matssl.data import layouts, readers

torchvision_ops.ensure()
import segmentation_models_pytorch as smp  # noqa: E402  (needs the line above)


def load(pairs, table):
    images, masks = [], []
    for pair in pairs:
        pixels = readers.read(pair.image).pixels
        scale = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
        images.append(pixels.astype(np.float32) / scale)
        mask = table.decode(readers.read_mask(pair.mask), str(pair.mask))
        masks.append(mask[: pixels.shape[0]].astype(np.int64))
    return images, masks


def crop_batch(rng, images, masks, size=192, batch=4):
    xs, ys = [], []
    for _ in range(batch):
        i = rng.integers(len(images))
        top = rng.integers(images[i].shape[0] - size + 1)
        left = rng.integers(images[i].shape[1] - size + 1)
        window = np.s_[top : top + size, left : left + size]
        turns, flip = rng.integers(4), rng.integers(2)
        for source, target in ((images, xs), (masks, ys)):
            out = np.rot90(source[i][window], turns)
            target.append(np.ascontiguousarray(out[:, ::-1] if flip else out))
    return torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(ys))


def three_channels(x, mean, std):
    return ((x - mean) / std)[:, None].expand(-1, 3, -1, -1)


@torch.inference_mode()
def score(model, images, masks, mean, std, num_classes, device="cpu"):
    model.eval()
    counts = np.zeros((num_classes, num_classes), np.int64)
    for image, mask in zip(images, masks, strict=True):
        h, w = mask.shape
        x = F.pad(torch.from_numpy(image)[None], (0, -w % 32, 0, -h % 32), mode="reflect")
        logits = model(three_channels(x.to(device), mean, std))
        prediction = logits.argmax(1)[0, :h, :w].cpu().numpy()
        known = mask != 255
        pairs = mask[known] * num_classes + prediction[known]
        counts += np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, -1)
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    return float(np.nanmean(iou)), iou.round(4).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--validation_only", action="store_true", help="open no test image")
    parser.add_argument("--out", type=Path, help="append the result as one JSON line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    start = time.time()
    data = layouts.find(args.dataset, splits=args.splits)
    num_classes = data.table.num_classes
    images, masks = load(data.split("train"), data.table)
    val = load(data.split("val"), data.table)
    mean = float(np.mean([image.mean() for image in images]))
    std = float(np.sqrt(np.mean([image.var() for image in images])))
    model = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=num_classes)
    model.to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=args.steps)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    best, kept = -1.0, None
    for step in range(1, args.steps + 1):
        model.train()
        x, y = (part.to(args.device) for part in crop_batch(rng, images, masks))
        logits = model(three_channels(x, mean, std))
        loss = dice(logits, y) + F.cross_entropy(logits, y, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps:
            miou, _ = score(model, *val, mean, std, num_classes, args.device)
            print(f"step {step} loss {loss.item():.3f} val mIoU {miou:.4f}", flush=True)
            if miou > best:
                best, kept = miou, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    result = {"method": "plain_unet", "dataset": str(args.dataset.name), "seed": args.seed}
    result |= {"steps": args.steps, "val": best}
    for name in data.splits:
        if name.endswith("test") and not args.validation_only:
            given = load(data.split(name), data.table)
            miou, iou = score(model, *given, mean, std, num_classes, args.device)
            result |= {f"{name}_miou": miou, f"{name}_iou": iou}
    result["seconds"] = round(time.time() - start, 1)
    print(json.dumps(result))
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
