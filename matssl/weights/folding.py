"""Stems of other encoders, changed so that they see our images as they saw their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from matssl.data.preprocess import Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Input(NamedTuple):
    """How the images of a training were given to the network.

    Attributes:
        mean: of the three colours, of grey levels in 0..1, which was subtracted.
        std: by which the rest was divided.
        name: in sentences.
        note: what folding it means to the user.
        assumed: why it is taken to be so where nothing says it for certain.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    note: str
    assumed: str = ""


IMAGENET = Input(
    IMAGENET_MEAN,
    IMAGENET_STD,
    "ImageNet mean and std",
    "ImageNet mean and std folded into the stem: it sees the grays of its own training",
)
# Of TensorFlow's EfficientNet-Lite, which computes in whole numbers.
LITE = Input(
    (127 / 255, 127 / 255, 127 / 255),
    (128 / 255, 128 / 255, 128 / 255),
    "(x - 127) / 128",
    "input scaling (x - 127) / 128 folded into the stem: it sees the grays of its own training",
)


def seen(record: Preprocess) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and std of the images that a record gives a network.

    Grey levels that are left as they are are normalised by the record's own numbers. Those that are
    stretched image by image have zero mean and unit variance, which is what the networks of
    ImageNet were given: they are taken for images normalised so.
    """
    if record.window == "dtype":
        return record.mean, record.std
    return IMAGENET_MEAN, IMAGENET_STD


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
    theirs: Input,
    mean: Sequence[float],
    std: Sequence[float],
    notes: list[str],
) -> None:
    """Make a stem for input normalised like theirs one for input normalised with mean and std.

    With the record's input ``z = (g - mean) / std``, the stem ``W_c`` of channel c becomes
    ``W_c std / s_c``, and what ``(mean - m_c) / s_c`` adds to its output goes to its bias or, where
    it has none, off the running mean of the BatchNorm behind it (m, s: theirs). Exact but for the
    pixels whose convolution reaches over the border, where the padding stands for the record's
    mean grey instead of theirs.

    Args:
        found: tensors of the file under the names of the encoder; changed.
        wanted: tensors of the encoder.
        theirs: how the images of the file's training were normalised.
        mean: of the input, see :func:`seen`.
        std: of the input.
        notes: are added to.
    """
    if (tuple(mean), tuple(std)) == (theirs.mean, theirs.std):
        return
    stems = [k for k, v in wanted.items() if _reads_image(found.get(k), v)]
    shifted = {stem: _shifted(stem, found, wanted) for stem in stems}
    if not stems or None in shifted.values():
        if stems:
            notes.append(
                f"its images were normalised with {theirs.name}; its stem cannot take that up and "
                "stays as it is"
            )
        return
    theirs_mean, theirs_std = (torch.tensor(v).double() for v in (theirs.mean, theirs.std))
    scale = torch.tensor(std).double().expand(3) / theirs_std
    shift = (torch.tensor(mean).double().expand(3) - theirs_mean) / theirs_std
    for stem, place in shifted.items():
        kernel = found[stem].double()
        added = (kernel.sum(dim=(2, 3)) * shift).sum(dim=1)
        found[stem] = kernel * scale.view(1, 3, 1, 1)
        assert place is not None
        constant = found[place].double()
        found[place] = constant + added if place.endswith("bias") else constant - added
    notes.append(theirs.note)
    if theirs.assumed:
        notes.append(f"assumed, since {theirs.assumed}; --window standard does without")


def _reads_image(theirs: Tensor | None, ours: Tensor) -> bool:
    """Return whether a kernel of three colours becomes one that reads our images."""
    if theirs is None or theirs.ndim != 4 or ours.ndim != 4 or theirs.shape[1] != 3:
        return False
    return ours.shape[1] in (1, 3)


def _shifted(stem: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Return the tensor that takes up a constant behind a stem, None where there is none."""
    layer = stem.rpartition(".")[0]
    if f"{layer}.bias" in wanted:
        return f"{layer}.bias" if f"{layer}.bias" in found else None
    names = list(wanted)
    following = names[names.index(stem) + 1].rpartition(".")[0]
    centre = f"{following}.running_mean"
    fits = centre in found and found[centre].shape == found[stem].shape[:1]
    return centre if fits else None
