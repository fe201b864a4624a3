"""The SHA-256 of tensors: what a file of ours says its tensors are, and whether they still are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from matssl.core.damage import Damaged

# Entry of a checkpoint, and of the metadata of a safetensors file. Files of before have none.
ENTRY = "digest"
# The same of an export for other programs, in the metadata of safetensors or of a torch state dict.
EXPORTED = "matssl_digest"
# Of containers in a checkpoint; ours have six.
DEPTH = 12


def of_tensors(content: object) -> str:
    """Return the SHA-256 of all tensors in mappings and lists, 64 hexadecimal digits.

    It covers place, type, shape and values, and none of the plain values beside the tensors. How a
    tensor lies in memory and the order of the places do not matter.
    """
    whole = hashlib.sha256()
    for place, tensor in sorted(tensors(content), key=lambda item: item[0]):
        whole.update(f"{place} {tensor.dtype} {tuple(tensor.shape)}\n".encode(errors="replace"))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()


def tensors(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in mappings and lists with their places.

    Raises:
        RecursionError: nested more deeply than any checkpoint.
    """
    if isinstance(content, Tensor):
        yield place, content
        return
    if depth > DEPTH:
        raise RecursionError(f"more than {DEPTH} containers in each other")
    items: Iterator[tuple[object, object]] = iter(())
    if isinstance(content, Mapping):
        items = iter(content.items())
    elif isinstance(content, (list, tuple)):
        items = iter(enumerate(content))
    for name, value in items:
        yield from tensors(value, f"{place}/{name}", depth + 1)


def not_finite(content: object) -> list[str]:
    """Return the places of tensors that hold a number that is none, or an infinite one."""
    return [
        place.removeprefix("/")
        for place, tensor in tensors(content)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def check(content: object, stated: object, path: Path | str) -> None:
    """Refuse the tensors of a file of ours where they are not what was written, or not finite.

    Args:
        content: mappings of tensors; plain values in them are not looked at.
        stated: digest in the file; None in files of before.
        path: named in errors.

    Raises:
        Damaged: the digest is another one, or a tensor holds numbers that are not finite.
    """
    try:
        broken = not_finite(content)
        whole = stated is None or of_tensors(content) == stated
    except (RuntimeError, RecursionError, TypeError) as error:
        # Tensors of a kind that we never write.
        told = str(error).splitlines()[0][:100]
        raise Damaged(f"{path} is damaged: its tensors cannot be read ({told})") from error
    if broken:
        raise Damaged(
            f"{path} holds numbers that are not finite in {len(broken)} tensors (first: "
            f"{broken[0]}): the training that wrote it diverged; take an earlier file"
        )
    if not whole:
        raise Damaged(
            f"{path} is damaged: its tensors are not those that were written (their SHA-256 "
            "differs); take another copy of it or an earlier file"
        )
