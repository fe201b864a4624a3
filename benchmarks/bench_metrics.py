"""A12: confusion matrices against torchmetrics and numpy, borders against MONAI, files: Pillow."""

from __future__ import annotations

import io
import sys

import cv2
import numpy as np
import torch

from benchmarks.paired import ratio, row, seconds
from matssl.core import torchvision_ops
from matssl.data import synthetic
from matssl.metrics import boundary, counts
from matssl.stages.drawing import MASK_PNG

ROUNDS, CLASSES = 5, 5


def main() -> list[str]:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    truth = generator.integers(0, CLASSES, (4000, 6000)).astype(np.uint8)
    prediction = np.where(generator.random(truth.shape) < 0.8, truth, truth[::-1])

    def bincount():
        pairs = truth.ravel().astype(np.int64) * CLASSES + prediction.ravel()
        return np.bincount(pairs, minlength=CLASSES**2)

    functions = {
        "ours": lambda: counts.confusion(truth, prediction, CLASSES),
        "bincount": bincount,
    }
    # torchmetrics imports torchvision.
    torchvision_ops.ensure()
    try:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        t, p = torch.from_numpy(truth), torch.from_numpy(prediction)
        functions["torchmetrics"] = lambda: multiclass_confusion_matrix(p, t, CLASSES)
    except ImportError:
        print("torchmetrics is not installed: that ratio is left out", file=sys.stderr)
    times = seconds(functions, ROUNDS)
    lines = []
    if "torchmetrics" in functions:
        got = ratio(times, "torchmetrics", "ours")
        what = "confusion matrix of 24 Mpx, torchmetrics / ours"
        lines.append(row("A12", what, ">= 40", got, ROUNDS))
    what = "confusion matrix of 24 Mpx, np.bincount int64 / ours"
    lines.append(row("A12", what, ">= 4", ratio(times, "bincount", "ours"), ROUNDS))
    return lines + _borders() + _mask_files()


def _borders() -> list[str]:
    """Boundary F1 of 3 Mpx and four classes; that of MONAI is the surface Dice, at 2 px too."""
    try:
        from monai.metrics import compute_surface_dice
    except ImportError:
        print("MONAI is not installed: that ratio is left out", file=sys.stderr)
        return []
    noise = np.random.default_rng(0).random((4, 1500, 2000)).astype(np.float32)
    truth = np.stack([cv2.GaussianBlur(plane, (0, 0), 6) for plane in noise]).argmax(0)
    truth = truth.astype(np.uint8)
    prediction = np.roll(truth, 2, 0)
    one_hot = [
        torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 4).permute(2, 0, 1)[None]
        for mask in (prediction, truth)
    ]
    tolerance = [float(boundary.TOLERANCE)] * 4
    functions = {
        "ours": lambda: boundary.border_hits(truth, prediction, 4),
        "monai": lambda: compute_surface_dice(*one_hot, tolerance, include_background=True),
    }
    # One round of MONAI takes ten seconds.
    got = ratio(seconds(functions, 1), "monai", "ours")
    return [row("A12", "boundary F1 of 3 Mpx, surface Dice of MONAI / ours", ">= 20", got, 1)]


def _mask_files() -> list[str]:
    from PIL import Image

    mask = synthetic.micrograph("two_phase", 2048, 2048, 0)[1]

    def pillow():
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "png")
        return buffer.getvalue()

    def ours():
        return cv2.imencode(".png", mask, MASK_PNG)[1].tobytes()

    times = seconds({"pillow": pillow, "ours": ours}, ROUNDS)
    return [
        row("A12", "mask PNG time / Pillow's", "<= 0.4", ratio(times, "ours", "pillow"), ROUNDS),
        row("A12", "mask PNG size / Pillow's", "<= 1.02", len(ours()) / len(pillow()), 1),
    ]


if __name__ == "__main__":
    print("\n".join(main()))
