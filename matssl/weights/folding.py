"""Stems of other encoders, changed so that they see our images as they saw their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fold_stem(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], in_channels: int, notes: list[str]
) -> None:
    """Fit the convolutions that read the image (one or several) to its number of channels."""
    for key, target in wanted.items():
        stem = found.get(key)
        if stem is None or stem.ndim != 4 or target.ndim != 4:
            continue
        if stem.shape[1] == target.shape[1] or target.shape[1] != in_channels:
            continue
        # In the model's own precision, so that folding adds no rounding of the file's.
        stem = stem.to(target.dtype)
        if stem.shape[1] == 3 and in_channels == 1:
            found[key] = stem.sum(dim=1, keepdim=True)
            notes.append(f"3-channel stem {key} summed to 1 channel: same output for gray input")
        elif stem.shape[1] == 1 and in_channels == 3:
            found[key] = stem.repeat(1, 3, 1, 1) / 3
            notes.append(f"1-channel stem {key} shared out to 3 channels by thirds")


def fold_normalisation(
    found: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    notes: list[str],
) -> None:
    """Make a stem for ImageNet-normalised input one for input normalised with mean and std."""
    stem, centre = found.get("conv1.weight"), found.get("bn1.running_mean")
    if stem is None or centre is None or stem.ndim != 4 or stem.shape[1] != 3:
        return
    if "conv1.weight" not in wanted:
        return
    theirs_mean, theirs_std = (torch.tensor(v).double() for v in (IMAGENET_MEAN, IMAGENET_STD))
    scale = torch.tensor(std).double().expand(3) / theirs_std
    shift = (torch.tensor(mean).double().expand(3) - theirs_mean) / theirs_std
    kernel = stem.double()
    found["conv1.weight"] = kernel * scale.view(1, 3, 1, 1)
    found["bn1.running_mean"] = centre.double() - (kernel.sum(dim=(2, 3)) * shift).sum(dim=1)
    notes.append(
        "ImageNet mean and std folded into the stem: it sees the grays of its own training"
    )
