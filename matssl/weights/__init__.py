"""Weights of others and our own: recognised by their tensors, loaded whole or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from matssl import hub
from matssl.core.damage import file_hash
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.decoders import named
from matssl.weights import recognition
from matssl.weights.containers import Content
from matssl.weights.files import read
from matssl.weights.folding import IMAGENET, Input, fold_normalisation, fold_stem
from matssl.weights.recognition import WEIGHT_LAYOUTS, architecture, recognise
from matssl.weights.refusals import check_numbers

__all__ = [
    "WEIGHT_LAYOUTS",
    "WeightsReport",
    "architecture",
    "imagenet",
    "imagenet_at_hand",
    "load",
    "read",
    "recognise",
    "start",
]


# Encoders whose ImageNet weights torchvision has.
TORCHVISION = r"resnet(18|34|50|101|152)"


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded from where.

    Attributes:
        path: the file.
        layout: which layout its tensors have.
        architecture: of the encoder in the file, None where it is no plain ResNet.
        matched: how many encoder tensors were loaded.
        total: how many the encoder has.
        reshaped: names of the encoder's tensors that the file has in another shape: stems of other
            channels, position embeddings of another size.
        missing: names the file lacks and the encoder keeps: counters of BatchNorm at most.
        dropped: names of the file's tensors that were not used (heads, momentum copies).
        notes: stem folded, decoder loaded, and the like, in words.
        sha256: of the file.
        lineage: what the file says it was trained from; own files only.
        parts: which parts of the model were filled.
    """

    path: str
    layout: str
    matched: int
    total: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str
    lineage: Lineage = Lineage()
    parts: tuple[str, ...] = ("encoder",)
    architecture: str | None = None
    missing: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the report for the console."""
        changed = f" ({len(self.reshaped)} of them reshaped)" if self.reshaped else ""
        lines = [
            f"weights {self.path}",
            f"  layout {self.layout}, {self.architecture or 'encoder'}: {self.matched} of "
            f"{self.total} encoder tensors loaded{changed}, {len(self.dropped)} other tensors not "
            "used",
        ]
        if self.missing:
            lines.append(f"  {len(self.missing)} BatchNorm counters are not in the file: harmless")
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  from {line}" for line in self.lineage.lines()]
        lines += [f"  warning {t}" for t in (self.lineage.unfinished(), self.lineage.doubt()) if t]
        return "\n".join(lines)


def load(
    model: nn.Module,
    source: Path | str | Content,
    *,
    in_channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    decoder: bool = True,
    frames: int = 1,
) -> WeightsReport:
    """Fill a model's encoder from a file, whole or not at all.

    A decoder that the pretraining trained along (SparK, PSCL) fills the model's, where the file has
    one of its kind; another kind is left out, and the report says so.

    Weights whose training normalised its images otherwise are changed so that they see the same
    image as in their own training, see :func:`matssl.weights.folding.fold_normalisation`.

    Args:
        model: an encoder, or a model that has one as ``encoder``.
        source: checkpoint, state dict or safetensors file, or what was read from one.
        in_channels: channels of the encoder's stem; 3-channel stems are summed to 1 (the same
            output for gray input), 1-channel stems shared out by thirds.
        mean: by which the model's input is normalised, one number or one a channel, see
            :func:`matssl.weights.folding.seen`; None leaves the stem as it is.
        std: the same.
        decoder: whether a pretrained decoder is used.
        frames: of a sequence that the channels are; then stems of pictures, and of another number
            of frames, are shared out to them.

    Raises:
        UserError: unreadable, unknown, another architecture, or not finite; the likely cause is
            named.
    """
    inner = getattr(model, "encoder", None)
    encoder: nn.Module = inner if isinstance(inner, nn.Module) else model
    content = _content(source)
    wanted = encoder.state_dict()
    match = recognition.match(content, encoder, in_channels, frames)
    found, notes = dict(match.tensors), [*content.notes, *match.notes]
    if mean is not None and std is not None and not match.own:
        _fold(found, wanted, match.input, mean, std, notes)
    if content.frames not in (1, frames):
        notes.append(f"stem of {content.frames} frames summed: same output for a still sequence")
    before = {key: value.shape for key, value in found.items()}
    fold_stem(found, wanted, in_channels, notes, frames, content.frames)
    stems = [key for key, shape in before.items() if found[key].shape != shape]
    check_numbers(content.path, {k: found[k] for k in wanted if k in found}, wanted)
    fitting = {k: found[k].to(wanted[k].dtype) for k in wanted if k in found}
    # The module's own method, since several smp encoders rename keys in theirs. strict=False only
    # for the counters that old files lack; the match above was the strict one.
    nn.Module.load_state_dict(encoder, fitting, strict=False)
    used = {match.origin.get(k, k) for k in fitting}
    used |= {name for first in used for name in content.joined.get(first, ())}
    parts = ["encoder"]
    if inner is encoder and content.decoder:
        own = {content.origin[k] for k in _fill_decoder(model, content, decoder, notes)}
        used |= own
        parts += ["decoder"] if own else []
    dropped = sorted(set(content.tensors) - used)
    return WeightsReport(
        path=content.path if isinstance(source, Content) else str(source),
        layout=match.layout,
        matched=len(fitting),
        total=len(wanted),
        dropped=tuple(dropped),
        notes=tuple(notes),
        sha256=file_hash(Path(content.path)),
        lineage=content.lineage,
        parts=tuple(parts),
        architecture=match.architecture,
        missing=tuple(k for k in wanted if k not in found),
        reshaped=(*match.reshaped, *stems),
    )


def _fold(
    found: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    theirs: Input | None,
    mean: Sequence[float],
    std: Sequence[float],
    notes: list[str],
) -> None:
    """Fold the normalisation of a file into its stem, or say that nothing is known of it."""
    if theirs is not None:
        fold_normalisation(found, wanted, theirs, mean, std, notes)
    elif (tuple(mean), tuple(std)) != (IMAGENET.mean, IMAGENET.std):
        notes.append("how its images were normalised is not known: its stem stays as it is")


def _content(source: Path | str | Content) -> Content:
    """Return what a file holds; what was read already is not read again."""
    return source if isinstance(source, Content) else read(source)


def _fill_decoder(model: nn.Module, content: Content, wanted: bool, notes: list[str]) -> list[str]:
    """Fill a model's decoder from a file that has one; return the names of what was used.

    Raises:
        UserError: it holds numbers that are not finite.
    """
    decoder = model.get_submodule("decoder")
    found = content.decoder
    kind = recognition.decoder_name(content)
    if not wanted:
        notes.append(f"pretrained decoder ({kind}) left out: --no-pretrained_decoder")
        return []
    shapes = {k: v.shape for k, v in decoder.state_dict().items()}
    if {k: v.shape for k, v in found.items()} != shapes:
        notes.append(f"pretrained decoder ({kind}) left out: the model's decoder is another one")
        return []
    if not all(bool(torch.isfinite(v).all()) for v in found.values()):
        raise UserError(f"{content.path} holds a decoder with numbers that are not finite")
    decoder.load_state_dict(found)
    notes.append(f"pretrained decoder ({kind}): all {len(found)} tensors loaded")
    return list(found)


def start(
    model: nn.Module,
    source: str | Content,
    name: str,
    *,
    in_channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    decoder: bool = True,
    frames: int = 1,
) -> WeightsReport:
    """Fill a model's encoder from a file or, where ``source`` is "imagenet", as torchvision has it.

    Args:
        model: an encoder, or a model that has one.
        source: "imagenet" or a file, or what was read from one.
        name: of the encoder.
        in_channels: see :func:`load`.
        mean: see :func:`load`.
        std: see :func:`load`.
        decoder: see :func:`load`.
        frames: see :func:`load`.

    Raises:
        UserError: see :func:`load` and :func:`imagenet`.
    """
    if source == "imagenet":
        inner = getattr(model, "encoder", model)
        return imagenet(inner, name, in_channels, mean, std, frames)
    given = {"in_channels": in_channels, "frames": frames}
    return load(model, source, mean=mean, std=std, decoder=decoder, **given)


def imagenet(
    encoder: nn.Module,
    name: str,
    in_channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    frames: int = 1,
) -> WeightsReport:
    """Fill an encoder with ImageNet weights: of the model hub, else torchvision's.

    Those of torchvision come from its local cache or the network.

    Args:
        encoder: filled in place.
        name: resnet18, 34, 50, 101 or 152, or an encoder whose ImageNet weights the hub names.
        in_channels: see :func:`load`.
        mean: see :func:`load`.
        std: see :func:`load`.
        frames: see :func:`load`.

    Raises:
        UserError: no such weights, or no network.
    """
    entry = hub.imagenet(name)
    of_torchvision = re.fullmatch(TORCHVISION, name)
    # Those of ResNets lie in torchvision's cache too; of others it is said what fetches them.
    if entry is not None and (not of_torchvision or entry.path.is_file()):
        return load(encoder, entry.name, in_channels=in_channels, mean=mean, std=std, frames=frames)
    if not of_torchvision:
        entries = hub.weights_registry().items()
        names = {entry.architecture for key, entry in entries if key.startswith("imagenet-")}
        known = sorted(other for other in names if not re.fullmatch(TORCHVISION, other))
        raise UserError(
            f"there are no ImageNet weights for {name}; use a ResNet, {named(known)}, or a weights "
            "file"
        )
    url, path = _of_torchvision(name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"the ImageNet weights of {name} are not in {path.parent} and could not be fetched "
                f"({error}); fetch {url} elsewhere and put the file there, or use {_instead()}"
            ) from error
    return load(encoder, path, in_channels=in_channels, mean=mean, std=std, frames=frames)


def _instead() -> str:
    """Return what else one may begin with: encoders whose ImageNet weights lie here, or none."""
    entries = hub.weights_registry().values()
    here = [e.architecture for e in entries if e.name.startswith("imagenet-") and e.path.is_file()]
    told = f"--encoder {here[0]}, whose ImageNet weights are on this machine, or " if here else ""
    return f"{told}--weights none"


def imagenet_at_hand(name: str) -> str | None:
    """Return what names the ImageNet weights of an encoder on this machine; None without any.

    Args:
        name: of the encoder.
    """
    entry = hub.imagenet(name)
    if entry is not None and entry.path.is_file():
        return entry.name
    there = re.fullmatch(TORCHVISION, name) and _of_torchvision(name)[1].is_file()
    return "imagenet" if there else None


def _of_torchvision(name: str) -> tuple[str, Path]:
    """Return where torchvision's ImageNet weights of a ResNet come from, and where they lie."""
    from torchvision import models

    url = str(models.get_model_weights(name)["IMAGENET1K_V1"].url)
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
