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
        # All frames of a sequence have one of each.
        first = slice(1 if record.depth > 1 else None)
        return record.mean[first], record.std[first]
    return IMAGENET_MEAN, IMAGENET_STD


def fold_stem(
    found: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    in_channels: int,
    notes: list[str],
    frames: int = 1,
    of_frames: int = 1,
) -> None:
    """Fit the convolutions that read the image (one or several) to its number of channels.

    A stem of single pictures becomes one of a sequence by a share of 1/frames for each frame: of a
    sequence that stands still it gives the same output.

    Args:
        found: tensors of the file under the names of the encoder; changed.
        wanted: tensors of the encoder.
        in_channels: of the encoder.
        notes: are added to.
        frames: that the channels of the encoder are; 1 for those of a picture.
        of_frames: the same of the file, see :func:`single`.
    """
    for key, target in wanted.items():
        stem = found.get(key)
        if stem is None or stem.ndim != 4 or target.ndim != 4:
            continue
        if frames > 1 and frames != of_frames and target.shape[1] == in_channels:
            stem = stem.to(target.dtype)
            one = stem if stem.shape[1] == 1 else stem.sum(dim=1, keepdim=True)
            found[key] = one.repeat(1, frames, 1, 1) / frames
            notes.append(
                f"{stem.shape[1]}-channel stem {key} shared out to {frames} frames, 1/{frames} each"
            )
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


def single(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], frames: int
) -> dict[str, Tensor]:
    """Return tensors of which the stem that reads the frames of a sequence reads one picture.

    Its kernels are summed: the output is that of a sequence that stands still.

    Args:
        tensors: of the file.
        wanted: of the encoder.
        frames: that the file's stem reads.
    """
    return {
        key: tensor.sum(dim=1, keepdim=True)
        if tensor.ndim == 4 and tensor.shape[1] == frames and key in wanted
        else tensor
        for key, tensor in tensors.items()
    }


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
    return theirs is not None and theirs.ndim == ours.ndim == 4 and theirs.shape[1] == 3


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
