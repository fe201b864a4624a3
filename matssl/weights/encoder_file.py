"""The file a pretraining hands on: encoder and, where there is one, decoder, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from matssl.core import checkpoint, digest
from matssl.core.lineage import Lineage
from matssl.core.run_folder import atomic_path, atomic_write_bytes
from matssl.data.preprocess import Preprocess
from matssl.weights import containers, folding


def write(
    path: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    lineage: Lineage,
    frames: int = 1,
) -> None:
    """Write what fine-tuning may use, with format and lineage.

    The digest of the tensors goes with them, and is compared when they are read.

    Args:
        path: of the file.
        parts: state dicts by part, "encoder" and perhaps "decoder".
        lineage: the chain of what the weights were trained from.
        frames: of a sequence that the encoder reads as channels.
    """
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": json.dumps(lineage.stored())}
    facts |= {containers.FRAMES: str(frames)} if frames > 1 else {}
    facts[digest.ENTRY] = digest.of_tensors(tensors)
    atomic_write_bytes(path, as_safetensors(tensors, facts))


def as_safetensors(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Return tensors and facts as a safetensors file; equal ones give equal bytes.

    The library writes the metadata in an order that changes from call to call, so the header is
    written again in order.
    """
    from safetensors.torch import save

    data = save(dict(tensors), metadata=dict(facts))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start]) | {"__metadata__": dict(facts)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def write_trunk(path: Path, encoder: Mapping[str, Tensor], record: Preprocess) -> None:
    """Write an encoder as other codes do: its tensors alone, for images normalised like ImageNet's.

    Args:
        path: of the file in a run folder; an earlier file is replaced.
        encoder: its state dict.
        record: how its images were read.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in encoder.items()}
    mean, std = (tuple(map(float, values)) for values in folding.seen(record))
    own = folding.Input(mean, std, "its own mean and std", "")
    wanted = dict(tensors)
    folding.fold_normalisation(
        tensors, wanted, own, folding.IMAGENET_MEAN, folding.IMAGENET_STD, []
    )
    tensors = {name: t.to(wanted[name].dtype).contiguous() for name, t in tensors.items()}
    with atomic_path(path) as half:
        checkpoint.store(tensors, half, path)


def publish(trunk: Path, path: Path, before: bytes | None, overwrite: bool) -> str:
    """Copy a trunk of a run to where other codes look for it, and say what became of it.

    A file of that name that is not of this run is kept: it may be of another training, or fetched.

    Args:
        trunk: in the run folder.
        path: where it is looked for; its folder is made.
        before: the trunk that the run had before it was resumed, None where it had none.
        overwrite: whether another file of that name is replaced.
    """
    there = path.read_bytes() if path.is_file() else None
    own = trunk.read_bytes()
    if there not in (None, before, own) and not overwrite:
        return f"kept {path}, which is not of this run; its trunk is {trunk} (--overwrite replaces)"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, own)
    replaced = " (another one was replaced)" if there not in (None, before, own) else ""
    return f"under the study's name: {path}{replaced}"
