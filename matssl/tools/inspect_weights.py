"""Say what weights files hold: ``python -m matssl.tools.inspect_weights FILE... [--list]``.

With ``--list`` folders are given, and every weights file below them has a line: what it is, from
which step, how good, and whether it is sound. Every file is read whole for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matssl.core.damage import file_hash
from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import ToolSettings

if TYPE_CHECKING:
    from matssl.weights.containers import Content


@dataclass(frozen=True)
class InspectSettings(ToolSettings):
    """Flags of the command."""

    files: tuple[str, ...] = flag(
        (), "data", "weights of any origin, or folders with --list", required=True, positional=True
    )
    list: bool = flag(
        False,
        "run",
        "a line for each weights file below the folders; each is read whole, and checked",
    )


SETTINGS = InspectSettings
# What is taken for a weights file in a folder.
ENDINGS = (".ckpt", ".safetensors", ".pth", ".pt", ".bin")
HEAD = ("file", "MB", "what", "step", "encoder", "decoder", "classes", "best mIoU", "state")
STAGES = {"ssl": "of pretraining", "finetune": "of fine-tuning", "encoder": "of pretraining"}


def main(argv: Sequence[str]) -> int:
    """Print who wrote each file and what is in it; returns 1 where one cannot be used."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.inspect_weights")
    if args.list:
        text, unsound = listed([Path(name) for name in args.files])
        print(text)
        return int(unsound > 0)
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
    from matssl.models.pixels import is_classifier
    from matssl.weights.recognition import identify

    content = weights.read(path)
    payload = content.payload
    if isinstance(payload, Mapping) and is_classifier(payload.get("model")):
        lines = [str(path), f"  layout        {_classifier(payload['model'])}"]
        lines.append(f"  segments      eval_model.py --model_path {path}")
        lines += [f"  made from     {line}" for line in content.lineage.lines()]
        return "\n".join([*lines, f"  sha256        {file_hash(content.path)}"])
    layout, encoder, names = identify(content)
    size = sum(tensor.numel() for tensor in encoder.values())
    # Of queries, keys and values a reader makes one tensor.
    used = {name for first in content.joined.values() for name in first}
    rest = len(content.tensors) - len(encoder) - len(used) + len(content.joined)
    stems = [tensor for tensor in encoder.values() if tensor.ndim == 4]
    channels = stems[0].shape[1] if stems else "?"
    lines = [
        str(path),
        f"  layout        {layout}",
        f"  encoder       {' or '.join(names) or 'not told by its tensors'}: {len(encoder)} "
        f"tensors, {size / 1e6:.1f} million numbers, {channels} input channels",
        f"  beside it     {rest} tensors ({_kinds(content, encoder, used)})",
    ]
    lines += [f"  taken         {note}" for note in content.notes]
    for name in names[:1]:
        lines.append(f"  matches       {_matches(content, name)}")
    lines += _segments(content, path)
    for key in ("stage", "step", "epoch", "arch", "author"):
        if key in content.facts:
            lines.append(f"  {key:<13} {content.facts[key]}")
    lines += [f"  made from     {line}" for line in content.lineage.lines()]
    lines.append(f"  sha256        {file_hash(content.path)}")
    return "\n".join(lines)


def _classifier(model: Mapping[str, Any]) -> str:
    """Return in words what a classifier of pixels is."""
    names = {"forest": "random forest", "linear": "linear classifier"}
    parts = ["filters"] if model.get("sigmas") else []
    parts += [f"the maps of {model['encoder']}"] if model.get("encoder") else []
    kind = str(model["kind"])
    return f"{names[kind]} on {' and '.join(parts)}, of train_finetune.py --head {kind}"


def listed(places: Sequence[Path]) -> tuple[str, int]:
    """Return a table of the weights files in folders, and how many of them are not sound.

    Args:
        places: folders, looked through with all that lies below them; files are taken as they are.

    Raises:
        UserError: there is no such place, or no weights file in any.
    """
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise UserError(f"there is no {place}")
        found = sorted(f for f in place.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())
        files += found if place.is_dir() else [place]
    if not files:
        told = ", ".join(map(str, places))
        raise UserError(f"no weights file below {told} ({', '.join(ENDINGS)})")
    rows: list[tuple[str, ...]] = [HEAD]
    kinds, unsound = Counter[str](), 0
    for file in files:
        kind, cells, reason = _line(file)
        kinds[kind] += 1
        unsound += bool(reason)
        size = f"{file.stat().st_size / 1e6:.1f}"
        rows.append((str(file), size, *cells, f"not sound: {reason}" if reason else "sound"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    total = sum(file.stat().st_size for file in files) / 1e6
    of = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lines.append(f"{counted(len(files), 'file')}, {total:.1f} MB: {of}; {unsound} not sound")
    return "\n".join(lines), unsound


def _line(path: Path) -> tuple[str, tuple[str, ...], str]:
    """Return of which training a file is, the cells of its line, and why it is not sound."""
    from matssl import weights
    from matssl.core import checkpoint, digest
    from matssl.weights import recognition

    empty = ("",) * (len(HEAD) - 3)
    try:
        content = weights.read(path)
    except UserError as error:
        return "unreadable", empty, str(error).removeprefix(f"{path} ")
    broken = digest.not_finite(content.tensors)
    reason = f"numbers are not finite in {counted(len(broken), 'tensor')}" if broken else ""
    payload: Mapping[str, object] = {}
    if checkpoint.is_own(content.payload):
        payload = content.payload
    facts = {**content.facts, **payload}
    own = str(facts.get("format", "")).startswith("matssl/")
    stage = str(facts.get("stage", "encoder" if own else ""))
    kind = STAGES.get(stage, "of others") if own else "of others"
    model = facts.get("model")
    described: Mapping[str, object] = model if isinstance(model, Mapping) else {}
    encoder = described.get("encoder") or content.told()
    if not own:
        try:
            layout, _, names = recognition.identify(content)
        except UserError as error:
            return kind, empty, reason or str(error).removeprefix(f"{path} ")
        stage, encoder = layout, encoder or next(iter(names), "")
    progress = facts.get("progress")
    best = progress.get("best") if isinstance(progress, Mapping) else None
    score = f"{100 * best:.1f} %" if isinstance(best, float) and best >= 0 else ""
    step = facts.get("step", content.lineage.newest("steps"))
    decoder = described.get("decoder") or content.lineage.newest("decoder")
    cells = (stage, step, encoder, decoder, described.get("num_classes"), score)
    return kind, tuple("" if cell is None else str(cell) for cell in cells), reason


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


def _kinds(content: Content, encoder: Mapping[str, object], joined: set[str]) -> str:
    """Return the first words of the names that are not the encoder's."""
    used = {content.origin.get(key, key) for key in encoder} | joined
    words = dict.fromkeys(name.split(".")[0] for name in content.tensors if name not in used)
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
