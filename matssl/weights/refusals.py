"""Why a file's tensors do not fit an encoder, and what would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from matssl.core.errors import UserError
from matssl.decoders import with_encoder
from matssl.weights import fitting, layouts, transformers
from matssl.weights.containers import COUNTERS, Content


def check_numbers(
    path: Path | str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that no training leaves, though their names and shapes fit.

    Args:
        path: of the file, for messages.
        state: its tensors by the names of the model's.
        wanted: the model's.

    Raises:
        UserError: numbers that are not finite, variances below 0, whole numbers for weights.
    """
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise UserError(
            f"{path} holds numbers that are not finite in {len(broken)} tensors (first: "
            f"{broken[0]}): the training that wrote it diverged; take an earlier file"
        )
    whole = [
        k
        for k, v in state.items()
        if wanted[k].is_floating_point() and not v.is_floating_point() and v.unique().numel() > 1
    ]
    if whole:
        raise UserError(
            f"{path} holds whole numbers in {len(whole)} tensors of weights (first: {whole[0]}, "
            f"{str(state[whole[0]].dtype).removeprefix('torch.')}): it is quantised and its scales "
            "are not read; take the file of floats"
        )
    below = [k for k, v in state.items() if k.endswith("running_var") and bool((v < 0).any())]
    if below:
        raise UserError(
            f"{path} holds variances below 0 in {len(below)} tensors (first: {below[0]}), which no "
            "training leaves: it is damaged; take another copy of it"
        )


def unknown(content: Content, encoders: Sequence[str]) -> UserError:
    """Return the refusal of tensors that no layout knows.

    Args:
        content: of the file.
        encoders: that its tensors fit.
    """
    if encoders:
        return UserError(f"{content.path} fits {_use(encoders)}")
    reason = layouts.foreign(content)
    if reason is not None:
        return UserError(f"{content.path} holds {reason}")
    some = ", ".join(name[:60] for name in list(content.tensors)[:4])
    return UserError(
        f"{content.path} holds {len(content.tensors)} tensors of no known layout ({some} ...); "
        "they fit no encoder by their names; where you know which it is, give --encoder"
    )


def misfit(
    content: Content,
    known: tuple[str, dict[str, Tensor]] | None,
    wanted: Mapping[str, Tensor],
    channels: int,
    encoders_for: Callable[[Mapping[str, Tensor], str | None], list[str]],
) -> UserError:
    """Return the refusal of a file that does not fit an encoder, with the likely cause.

    Args:
        content: of the file.
        known: its layout and tensors.
        wanted: tensors of the encoder.
        channels: of the encoder's input.
        encoders_for: tensors and the name in the file to encoders that they fit.
    """
    layout, found = known or ("", content.tensors)
    theirs, ours = layouts.architecture(found), layouts.architecture(wanted)
    told = content.told()
    if theirs and theirs != ours and (ours or layout in transformers.LAYOUTS):
        use = f"--encoder {theirs}"
        if with_encoder(theirs, "") != with_encoder(ours or "", ""):
            # The encoder and the decoder of one of them go together.
            use += f" --decoder {with_encoder(theirs, 'unet')}"
        return UserError(
            f"{content.path} holds a {theirs} encoder ({layout}), the model has "
            f"{f'a {ours}' if ours else 'another'}; use {use}, or other weights"
        )
    if content.lineage.newest("encoder"):
        return UserError(
            f"{content.path} holds a {told} encoder ({layout}), the model has "
            f"{f'a {ours}' if ours else 'another'}; use --encoder {told}, or other weights"
        )
    encoders = encoders_for(found, told)
    if known is None and (not encoders or layouts.foreign(content)):
        return unknown(content, [])
    if known is None:
        return UserError(f"{content.path} does not fit the encoder; it fits {_use(encoders)}")
    what = _differences(found, wanted, channels)
    fits = f"; it fits {_use(encoders)}" if encoders else ""
    return UserError(
        f"{content.path} ({layout}) does not fit the encoder: {what}; nothing was loaded{fits}"
    )


def _use(encoders: Sequence[str]) -> str:
    return " or ".join(f"--encoder {name}" for name in encoders[:3])


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], channels: int) -> str:
    needed = [k for k in wanted if not k.endswith(COUNTERS)]
    missing = [k for k in needed if k not in found]
    misfits = [k for k in needed if k in found and not fitting.alike(found[k], wanted[k], channels)]
    what = []
    if missing:
        what.append(f"{len(missing)} tensors are missing (first: {missing[0]})")
    if misfits:
        key = misfits[0]
        what.append(
            f"{len(misfits)} have another shape (first: {key}, {tuple(found[key].shape)} "
            f"for {tuple(wanted[key].shape)})"
        )
    return " and ".join(what) or "it holds more blocks than the encoder, as a deeper network"
