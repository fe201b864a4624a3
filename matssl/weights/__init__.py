"""Weights of others and our own: recognised by their tensors, loaded whole or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from matssl import hub
from matssl.core import checkpoint, digest
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.decoders import DECODERS, named, with_encoder
from matssl.models import small_unet
from matssl.models.segmentation import Description
from matssl.weights import layouts
from matssl.weights.folding import fold_normalisation, fold_stem
from matssl.weights.layouts import Content

OWN_ENCODER = "matssl encoder"
# Tried in order; the first that recognises the tensors reads them.
WEIGHT_LAYOUTS: dict[str, Callable[[Content], dict[str, Tensor] | None]] = {
    OWN_ENCODER: layouts.own_encoder,
    "matssl checkpoint of fine-tuning": layouts.own_segmentation,
    "matssl checkpoint of pretraining": layouts.own_pretraining,
    "PSCL (published)": layouts.published_pscl,
    "MatSSL (published)": layouts.published_matssl,
    "MatSSL repository, DenseCL": layouts.published_densecl,
    "MatSSL repository, MoCo v2": layouts.published_mocov2,
    "MoCo v1/v2 (official)": layouts.official_moco,
    "MoCo v3 (official)": layouts.moco_v3,
    "BYOL (PyTorch port)": layouts.byol_port,
    "segmentation-models-pytorch model": layouts.smp_model,
    "lightly (numbered backbone)": layouts.lightly_sequential,
    "Detectron2": layouts.detectron2,
    "Hugging Face transformers": layouts.hugging_face,
    "SE-ResNet (MicroNet)": layouts.se_net,
    "backbone with a head": layouts.named_backbone,
    "torchvision / timm": layouts.torchvision,
}
# Trained on RGB in 0..1, normalised with the statistics of ImageNet. A whole model of smp does not
# say how its images were normalised, own files follow their record: both stay as they are.
IMAGENET_INPUT = (
    "MatSSL (published)",
    "MatSSL repository, DenseCL",
    "MatSSL repository, MoCo v2",
    "MoCo v1/v2 (official)",
    "MoCo v3 (official)",
    "Hugging Face transformers",
    "SE-ResNet (MicroNet)",
    "lightly (numbered backbone)",
    "torchvision / timm",
)
# Tensors whose absence changes nothing: counters of BatchNorm.
HARMLESS = ("num_batches_tracked",)


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded from where.

    Attributes:
        path: the file.
        layout: which layout its tensors have.
        architecture: of the encoder in the file, None where it is no plain ResNet.
        matched: how many encoder tensors were loaded.
        total: how many the encoder has.
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

    def text(self) -> str:
        """Return the report for the console."""
        lines = [
            f"weights {self.path}",
            f"  layout {self.layout}, {self.architecture or 'encoder'}: {self.matched} of "
            f"{self.total} encoder tensors loaded, {len(self.dropped)} other tensors not used",
        ]
        if self.missing:
            lines.append(f"  {len(self.missing)} BatchNorm counters are not in the file: harmless")
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  from {line}" for line in self.lineage.lines()]
        doubt = self.lineage.doubt()
        if doubt:
            lines.append(f"  warning {doubt}")
        return "\n".join(lines)


def load(
    model: nn.Module,
    source: Path | str | Content,
    *,
    in_channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    decoder: bool = True,
) -> WeightsReport:
    """Fill a model's encoder from a file, whole or not at all.

    A decoder that the pretraining trained along (SparK, PSCL) fills the model's, where the file has
    one of its kind; another kind is left out, and the report says so.

    With ``mean`` and ``std``, weights that were trained on ImageNet-normalised images are changed
    so that they see the same image as in their own training: with the record's input
    ``z = (g - mean) / std``, the stem ``W_c`` of channel c becomes ``W_c std / s_c``, and what
    ``(mean - m_c) / s_c`` adds to its output is taken off the running mean of the BatchNorm behind
    it (m, s: of ImageNet). Exact but for the pixels whose convolution reaches over the border,
    where the padding stands for the record's mean grey instead of ImageNet's.

    Args:
        model: an encoder, or a model that has one as ``encoder``.
        source: checkpoint, state dict or safetensors file, or what was read from one.
        in_channels: channels of the encoder's stem; 3-channel stems are summed to 1 (the same
            output for gray input), 1-channel stems shared out by thirds.
        mean: of the record that normalises the model's input, one number or one a channel.
        std: the same.
        decoder: whether a pretrained decoder is used.

    Raises:
        UserError: unreadable, unknown, another architecture, or not finite; the likely cause is
            named.
    """
    inner = getattr(model, "encoder", None)
    encoder: nn.Module = inner if isinstance(inner, nn.Module) else model
    content = _content(source)
    layout, found = recognise(content)
    wanted = encoder.state_dict()
    notes: list[str] = []
    if mean is not None and std is not None and layout in IMAGENET_INPUT:
        fold_normalisation(found, wanted, mean, std, notes)
    fold_stem(found, wanted, in_channels, notes)
    missing = [k for k in wanted if k not in found and not k.endswith(HARMLESS)]
    misfits = [k for k in wanted if k in found and found[k].shape != wanted[k].shape]
    # A deeper ResNet holds every tensor of a shallower one, yet its first blocks are no encoder.
    theirs, ours = layouts.architecture(found), layouts.architecture(wanted)
    if missing or misfits or (theirs and ours and theirs != ours):
        raise UserError(_cause(content, layout, found, wanted, missing, misfits))
    fitting = {k: found[k].to(wanted[k].dtype) for k in wanted if k in found}
    broken = [k for k, v in fitting.items() if not torch.isfinite(v).all()]
    if broken:
        raise UserError(
            f"{content.path} holds numbers that are not finite in {len(broken)} tensors (first: "
            f"{broken[0]}): the training that wrote it diverged; take an earlier file"
        )
    # The module's own method, since several smp encoders rename keys in theirs. strict=False only
    # for the counters that old files lack; the check above was the strict one.
    nn.Module.load_state_dict(encoder, fitting, strict=False)
    used = {content.origin.get(k, k) for k in fitting}
    parts = ["encoder"]
    if inner is encoder and content.decoder:
        own = {content.origin[k] for k in _fill_decoder(model, content, decoder, notes)}
        used |= own
        parts += ["decoder"] if own else []
    dropped = sorted(set(content.tensors) - used)
    return WeightsReport(
        path=content.path if isinstance(source, Content) else str(source),
        layout=layout,
        matched=len(fitting),
        total=len(wanted),
        dropped=tuple(dropped),
        notes=tuple(notes),
        sha256=checkpoint.file_hash(Path(content.path)),
        lineage=content.lineage,
        parts=tuple(parts),
        architecture=theirs,
        missing=tuple(k for k in wanted if k not in found),
    )


def _fill_decoder(model: nn.Module, content: Content, wanted: bool, notes: list[str]) -> list[str]:
    """Fill a model's decoder from a file that has one; return the names of what was used.

    Raises:
        UserError: it holds numbers that are not finite.
    """
    decoder = model.get_submodule("decoder")
    found = content.decoder
    kind = _decoder_name(content)
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


def read(path: Path | str) -> Content:
    """Return the tensors of a file, containers unwrapped.

    Raises:
        UserError: no weights file, truncated, or a pickle with code.
    """
    path = hub.locate(path)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder without best.ckpt, encoder.safetensors or last.ckpt; give a run "
            "folder or a weights file"
        )
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".pkl":
        return layouts.unwrap(checkpoint.read_arrays(path), str(path))
    return layouts.unwrap(checkpoint.read_tensors(path), str(path))


def _content(source: Path | str | Content) -> Content:
    """Return what a file holds; what was read already is not read again."""
    return source if isinstance(source, Content) else read(source)


def architecture(source: Path | str | Content) -> tuple[str | None, str | None]:
    """Return which encoder a file was made for, and which decoder it holds beside it.

    The first is None where the tensors do not tell, the second where there is no pretrained one.

    Raises:
        UserError: see :func:`read` and :func:`recognise`.
    """
    content = _content(source)
    name = layouts.architecture(recognise(content)[1])
    if name is None or not re.fullmatch(rf"resnet\d+|{small_unet.NAME}", name):
        # An encoder that is no ResNet is named by our own files only.
        name = content.lineage.newest("encoder")
    return name, _decoder_name(content) if content.decoder else None


def _decoder_name(content: Content) -> str:
    """Return the name of the decoder a file holds; a file that is not ours holds PSCL's."""
    return content.lineage.newest("decoder") or small_unet.NAME


def recognise(content: Content) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the layout and the encoder's tensors under torchvision's names.

    Raises:
        UserError: no layout fits.
    """
    for name, layout in WEIGHT_LAYOUTS.items():
        found = layout(content)
        if found is not None:
            return name, found
    reason = layouts.foreign(content)
    if reason is not None:
        raise UserError(f"{content.path} holds {reason}")
    some = ", ".join(list(content.tensors)[:4])
    raise UserError(
        f"{content.path} holds {len(content.tensors)} tensors of no known layout ({some} ...); "
        "it is no ResNet encoder or U-Net"
    )


def segmentation_description(content: Content) -> Description:
    """Return what ``build_model`` needs for a raw state dict of smp, read off its tensors.

    Raises:
        UserError: its decoder is not one that tensors tell, or its encoder no plain ResNet; what it
            is instead is said.
    """
    head = content.tensors.get("segmentation_head.0.weight")
    stem = content.tensors.get("encoder.conv1.weight")
    if head is None or not content.has("decoder.", "encoder."):
        layout = recognise(content)[0]
        raise UserError(
            f"{content.path} holds an encoder ({layout}) and no decoder, so it cannot segment; "
            "fine-tune from it: train_finetune.py --ssl_weights_path"
        )
    name = layouts.architecture(content.below("encoder."))
    if stem is None or name is None or not re.fullmatch(r"resnet\d+", name):
        raise UserError(
            f"{content.path} holds a model of segmentation-models-pytorch on {name or 'an encoder'}"
            " that its tensors do not name; only plain ResNets can be told apart"
        )
    told = {known: decoder for known, decoder in DECODERS.items() if decoder.marks}
    decoder = next((known for known, d in told.items() if content.has(*d.marks)), None)
    if decoder is None:
        titles = named(d.title for d in told.values())
        raise UserError(f"{content.path} has a decoder that is not the plain one of {titles}")
    return {
        "encoder": name,
        "decoder": decoder,
        "num_classes": len(head),
        "in_channels": stem.shape[1],
    }


def start(
    model: nn.Module,
    source: str | Content,
    name: str,
    *,
    in_channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    decoder: bool = True,
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

    Raises:
        UserError: see :func:`load` and :func:`imagenet`.
    """
    if source == "imagenet":
        inner = getattr(model, "encoder", model)
        return imagenet(inner, name, in_channels, mean, std)
    return load(model, source, in_channels=in_channels, mean=mean, std=std, decoder=decoder)


def imagenet(
    encoder: nn.Module,
    name: str,
    in_channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> WeightsReport:
    """Fill an encoder with torchvision's ImageNet weights, from the local cache or the network.

    Args:
        encoder: filled in place.
        name: resnet18, 34, 50, 101 or 152.
        in_channels: see :func:`load`.
        mean: see :func:`load`.
        std: see :func:`load`.

    Raises:
        UserError: no such weights, or no network.
    """
    from torchvision import models

    if not re.fullmatch(r"resnet(18|34|50|101|152)", name):
        raise UserError(f"there are no ImageNet weights for {name}; use a ResNet or a weights file")
    weights = models.get_model_weights(name)["IMAGENET1K_V1"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / str(weights.url).rsplit("/", 1)[1]
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"the ImageNet weights of {name} are not in {folder} and could not be fetched "
                f"({error}); fetch {weights.url} elsewhere and put the file there, or use "
                "--weights none"
            ) from error
    return load(encoder, path, in_channels=in_channels, mean=mean, std=std)


def _read_safetensors(path: Path) -> Content:
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({path.stat().st_size} bytes); "
            "fetch it again"
        ) from error
    # Only own files have a lineage; the word may mean anything in the metadata of others.
    own = layouts.own_format(facts, str(path))
    if own:
        digest.check(tensors, facts.get(digest.ENTRY), path)
    lineage = Lineage.read(json.loads(facts.get("lineage", "[]")) if own else None)
    return Content(str(path), tensors, facts, lineage)


def _cause(
    content: Content,
    layout: str,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    missing: list[str],
    misfits: list[str],
) -> str:
    """Return the refusal with the likely cause."""
    theirs, ours = layouts.architecture(found), layouts.architecture(wanted)
    if theirs and ours and theirs != ours:
        use = f"--encoder {theirs}"
        if with_encoder(theirs, "") != with_encoder(ours, ""):
            # The encoder and the decoder of one of them go together.
            use += f" --decoder {with_encoder(theirs, 'unet')}"
        return (
            f"{content.path} holds a {theirs} encoder ({layout}), the model has a {ours}; "
            f"use {use}, or other weights"
        )
    what = []
    if missing:
        what.append(f"{len(missing)} tensors are missing (first: {missing[0]})")
    if misfits:
        key = misfits[0]
        what.append(
            f"{len(misfits)} have another shape (first: {key}, {tuple(found[key].shape)} "
            f"for {tuple(wanted[key].shape)})"
        )
    return (
        f"{content.path} ({layout}) does not fit the encoder: {' and '.join(what)}; nothing was "
        "loaded"
    )
