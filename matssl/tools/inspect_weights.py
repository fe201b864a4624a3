"""Say what weights files hold: ``python -m matssl.tools.inspect_weights FILE...``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import ToolSettings

if TYPE_CHECKING:
    from matssl.weights.containers import Content


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
    from matssl.models.forest import is_forest
    from matssl.weights.recognition import identify

    content = weights.read(path)
    payload = content.payload
    if isinstance(payload, Mapping) and is_forest(payload.get("model")):
        lines = [str(path), "  layout        random forest of train_finetune.py --head forest"]
        lines.append(f"  segments      eval_model.py --model_path {path}")
        lines += [f"  made from     {line}" for line in content.lineage.lines()]
        return "\n".join([*lines, f"  sha256        {checkpoint.file_hash(content.path)}"])
    layout, encoder, names = identify(content)
    size = sum(tensor.numel() for tensor in encoder.values())
    rest = len(content.tensors) - len(encoder)
    stems = [tensor for tensor in encoder.values() if tensor.ndim == 4]
    channels = stems[0].shape[1] if stems else "?"
    lines = [
        str(path),
        f"  layout        {layout}",
        f"  encoder       {' or '.join(names) or 'not told by its tensors'}: {len(encoder)} "
        f"tensors, {size / 1e6:.1f} million numbers, {channels} input channels",
        f"  beside it     {rest} tensors ({_kinds(content.tensors, content.origin, encoder)})",
    ]
    lines += [f"  taken         {note}" for note in content.notes]
    for name in names[:1]:
        lines.append(f"  matches       {_matches(content, name)}")
    lines += _segments(content, path)
    for key in ("stage", "step", "epoch", "arch", "author"):
        if key in content.facts:
            lines.append(f"  {key:<13} {content.facts[key]}")
    lines += [f"  made from     {line}" for line in content.lineage.lines()]
    lines.append(f"  sha256        {checkpoint.file_hash(content.path)}")
    return "\n".join(lines)


def _segments(content: Content, path: Path) -> list[str]:
    """Return what is to be said of a whole model; nothing of an encoder."""
    from matssl.core import checkpoint
    from matssl.weights.whole import segmentation_model

    notes: tuple[str, ...] = ()
    if checkpoint.is_own(content.payload):
        described = content.payload.get("model")
        if not isinstance(described, Mapping) or not content.has("segmentation_head."):
            return []
        decoder, classes = described.get("decoder"), described.get("num_classes")
    elif any("segmentation_head." in name for name in content.tensors):
        try:
            model = segmentation_model(content)
        except UserError as error:
            return [f"  segments      not here: {error}"]
        decoder, classes = model.description["decoder"], model.description["num_classes"]
        classes += model.sigmoid
        notes = model.notes
    else:
        return []
    line = f"  segments      {decoder}, {classes} classes: eval_model.py --model_path {path}"
    return [line, *(f"                {note}" for note in notes)]


def _kinds(names: object, origin: dict[str, str], encoder: object) -> str:
    """Return the first words of the names that are not the encoder's."""
    assert isinstance(names, dict) and isinstance(encoder, dict)
    used = {origin.get(key, key) for key in encoder}
    words = dict.fromkeys(name.split(".")[0] for name in names if name not in used)
    return ", ".join(list(words)[:6]) or "none"


def _matches(content: Content, name: str) -> str:
    from matssl import weights
    from matssl.models.encoders import build_encoder

    try:
        report = weights.load(build_encoder(name, 1), content, in_channels=1)
    except UserError as error:
        return f"no encoder here: {error}"
    return f"{report.matched} of {report.total} tensors of --encoder {name}"


if __name__ == "__main__":
    sys.exit(guard(main))
