"""Say what weights files hold: ``python -m matssl.tools.inspect_weights FILE...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import ToolSettings


@dataclass(frozen=True)
class InspectSettings(ToolSettings):
    """Flags of the command."""

    files: tuple[str, ...] = flag(
        (), "data", "weights of any origin", required=True, positional=True
    )


SETTINGS = InspectSettings


def main(argv: Sequence[str]) -> int:
    """Print who wrote each file and what is in it; returns 1 where one cannot be used."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.inspect_weights")
    failed = 0
    for name in args.files:
        try:
            print(describe(Path(name)))
        except UserError as error:
            failed = 1
            print(f"{name}\n  not usable: {error}")
    return failed


def describe(path: Path) -> str:
    """Return what a file holds, in lines for people.

    Raises:
        UserError: it cannot be used; the sentence says why.
    """
    from matssl import weights
    from matssl.core import checkpoint
    from matssl.weights import layouts

    content = weights.read(path)
    layout, encoder = weights.recognise(content)
    name = layouts.architecture(encoder)
    size = sum(tensor.numel() for tensor in encoder.values())
    rest = len(content.tensors) - len(encoder)
    stems = [tensor for tensor in encoder.values() if tensor.ndim == 4]
    lines = [
        str(path),
        f"  layout        {layout}",
        f"  encoder       {name or 'no plain ResNet'}: {len(encoder)} tensors, "
        f"{size / 1e6:.1f} million numbers, {stems[0].shape[1] if stems else '?'} input channels",
        f"  beside it     {rest} tensors ({_kinds(content.tensors, content.origin, encoder)})",
    ]
    if name is not None and name.startswith("resnet"):
        lines.append(f"  matches       {_matches(path, name)}")
    if content.has("segmentation_head.", "decoder."):
        model = weights.segmentation_description(content)
        lines.append(
            f"  segments      {model['decoder']}, {model['num_classes']} classes: eval_model.py "
            f"--model_path {path}"
        )
    for key in ("stage", "step", "epoch", "arch", "author"):
        if key in content.facts:
            lines.append(f"  {key:<13} {content.facts[key]}")
    lines += [f"  made from     {line}" for line in content.lineage.lines()]
    lines.append(f"  sha256        {checkpoint.file_hash(content.path)}")
    return "\n".join(lines)


def _kinds(names: object, origin: dict[str, str], encoder: object) -> str:
    """Return the first words of the names that are not the encoder's."""
    assert isinstance(names, dict) and isinstance(encoder, dict)
    used = {origin.get(key, key) for key in encoder}
    words = dict.fromkeys(name.split(".")[0] for name in names if name not in used)
    return ", ".join(list(words)[:6]) or "none"


def _matches(path: Path, name: str) -> str:
    from matssl import weights
    from matssl.models.encoders import build_encoder

    report = weights.load(build_encoder(name, 1), path, in_channels=1)
    return f"{report.matched} of {report.total} tensors of --encoder {name}"


if __name__ == "__main__":
    sys.exit(guard(main))
