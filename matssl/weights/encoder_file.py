"""The file a pretraining hands on: encoder and, where there is one, decoder, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from matssl.core import checkpoint, digest
from matssl.core.lineage import Lineage
from matssl.core.run_folder import atomic_write_bytes


def write(
    path: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    lineage: Lineage,
) -> None:
    """Write what fine-tuning may use, with format and lineage.

    The digest of the tensors goes with them, and is compared when they are read.
    Equal weights give equal bytes: the library writes the metadata in an order that changes from
    call to call, so the header is written again in order.

    Args:
        path: of the file.
        parts: state dicts by part, "encoder" and perhaps "decoder".
        lineage: the chain of what the weights were trained from.
    """
    from safetensors.torch import save

    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": json.dumps(lineage.stored())}
    facts[digest.ENTRY] = digest.of_tensors(tensors)
    data = save(tensors, metadata=facts)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start]) | {"__metadata__": facts}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    atomic_write_bytes(path, len(text).to_bytes(8, "little") + text + data[start:])
