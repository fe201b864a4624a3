"""The starts that lie on a machine: random weights, the model hub, own pretraining runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl import hub, methods, weights
from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.methods.settings import GuidedSettings
from matssl.stages.finetune.inputs import DEFAULT_ENCODER, Inputs
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.finetune.start_settings import AUTO
from matssl.trained.encoder import IMAGENET, RANDOM
from matssl.weights.containers import Content

# Of own pretraining runs, the newest first, and of the model hub so many each are compared, and so
# many files are opened to find them.
MOST, OPENED = 4, 16


@dataclass(frozen=True)
class Candidate:
    """A start that a fine-tuning can begin with.

    Attributes:
        source: as ``--ssl_weights_path`` or ``--weights`` takes it.
        encoder: its name.
        words: what it is, for people.
    """

    source: str
    encoder: str
    words: str


def at_hand(
    settings: FinetuneSettings, encoder: str | None, inputs: Inputs, but: Sequence[str]
) -> tuple[list[Candidate], list[str]]:
    """Return the starts that lie on this machine, random weights first.

    Nothing is fetched, but for ImageNet's weights where ``--ssl_weights_path auto --weights
    imagenet`` asks for them: when they are looked at.

    Args:
        settings: say where pretraining runs lie, and by ``weights`` perhaps one start more.
        encoder: that they must fit; None takes those of any.
        inputs: of the run; a start that has learned from their masks, those that validate among
            them, is left out, and said.
        but: sources that are known already.

    Returns:
        The starts, and what was left out, in words.
    """
    drawn = "random weights" if encoder else f"random weights of {DEFAULT_ENCODER}"
    found = [Candidate(RANDOM, encoder or DEFAULT_ENCODER, drawn)]
    notes: list[str] = []
    known = {_place(source) for source in but}
    if settings.ssl_weights_path == AUTO and settings.weights not in (RANDOM, IMAGENET):
        _add(found, notes, known, settings.weights, encoder, inputs)
    imagenet = weights.imagenet_at_hand(encoder or DEFAULT_ENCODER)
    if settings.ssl_weights_path == AUTO and settings.weights == IMAGENET:
        # Asked for, they come as --weights imagenet alone gets them.
        imagenet = imagenet or IMAGENET
    if imagenet is not None:
        if _place(imagenet) not in known and IMAGENET not in but:
            name = encoder or DEFAULT_ENCODER
            found.append(Candidate(imagenet, name, words_of(imagenet, name)))
        known.add(_place(imagenet))
    entries = [entry for entry in hub.weights_registry().values() if entry.path.is_file()]
    if encoder is not None:
        entries = [entry for entry in entries if entry.architecture.startswith(encoder)]
    _gather(found, notes, known, [entry.name for entry in entries], encoder, inputs)
    runs = Path(settings.output_dir).glob("ssl/*/encoder*.safetensors")
    newest = sorted(runs, key=lambda path: (-path.stat().st_mtime, str(path)))
    _gather(found, notes, known, [str(path) for path in newest], encoder, inputs)
    return found, notes


def _gather(
    found: list[Candidate],
    notes: list[str],
    known: set[str],
    sources: Sequence[str],
    encoder: str | None,
    inputs: Inputs,
) -> None:
    """Add the first starts that fit, and say how many were not looked at."""
    taken = 0
    for number, source in enumerate(sources):
        if taken == MOST or number == OPENED:
            rest = len(sources) - number
            notes.append(f"not looked at: {counted(rest, 'further start')} ({source}, ...)")
            return
        taken += _add(found, notes, known, source, encoder, inputs)


def _add(
    found: list[Candidate],
    notes: list[str],
    known: set[str],
    source: str,
    encoder: str | None,
    inputs: Inputs,
) -> bool:
    """Add a start where it fits; say why where it cannot be read. Return whether it was added."""
    try:
        place = _place(source)
        if place in known:
            return False
        known.add(place)
        content = weights.read(source)
        own = weights.architecture(content)[0]
        if own is None or encoder not in (None, own):
            return False
        # A start that knows the masks of the validation images would spoil what they choose.
        validated = inputs.val.digests if inputs.val is not None else ()
        seen = masks_seen(content, (*inputs.train.digests, *validated))
        if seen:
            notes.append(f"left out {source}: {seen}")
            return False
    except UserError as error:
        notes.append(f"left out: {error}")
        return False
    found.append(Candidate(source, own, words_of(source, own, content)))
    return True


def _place(source: str) -> str:
    """Return what tells a source from others, whatever it is called."""
    if source in (RANDOM, IMAGENET):
        return source
    return str(hub.locate(source).resolve())


def masks_seen(source: str | Content, digests: Sequence[str]) -> str:
    """Return in words that weights learned from masks of these images, "" where they did not.

    Their features would know what they are asked; masks that only judged a pretraining taught it
    nothing.

    Args:
        source: of the weights.
        digests: of the pixels of the images.
    """
    if source == IMAGENET:
        return ""
    content = source if isinstance(source, Content) else weights.read(source)
    own = set(digests)
    taught: set[str] = set()
    for link in content.lineage.links:
        method, seen = link.get("method"), link.get("labelled_digests")
        guided = method in methods.METHODS and issubclass(
            methods.settings_class(str(method)), GuidedSettings
        )
        if guided and isinstance(seen, (list, tuple)):
            taught |= set(map(str, seen))
    payload = content.payload
    progress = payload.get("progress") if isinstance(payload, dict) else None
    if isinstance(progress, dict) and isinstance(progress.get("train_digests"), list):
        taught |= set(progress["train_digests"])
    count = len(own & taught)
    return (
        f"it has learned from the masks of {count} of these {counted(len(own), 'image')}"
        if count
        else ""
    )


def words_of(source: str, encoder: str, content: Content | None = None) -> str:
    """Return what a start is, for people."""
    if source == IMAGENET or source.startswith("imagenet-"):
        return f"ImageNet weights ({source}, {encoder})"
    last = (content or weights.read(source)).lineage.last
    facts = [encoder, *([str(last["method"])] if "method" in last else [])]
    facts += [f"step {last['steps']}"] if "steps" in last else []
    return f"{source} ({', '.join(facts)})"
