"""What a file holds, and where its tensors belong in an encoder: by layout, by names, by order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.models import small_unet, vit
from matssl.models.blueprints import blueprint, candidates, left_out, timm_name
from matssl.models.encoders import pads_like_tensorflow, usual_input
from matssl.weights import fitting, folding, layouts, refusals, transformers
from matssl.weights.containers import COUNTERS, Content
from matssl.weights.files import read
from matssl.weights.fitting import Fit
from matssl.weights.folding import IMAGENET, LITE, Input

OWN = (
    "matssl encoder",
    "matssl checkpoint of fine-tuning",
    "matssl checkpoint of pretraining",
)
SMP, HEADED = "segmentation-models-pytorch model", "backbone with a head"
EFFICIENTNET_LITE = "EfficientNet-Lite (PyTorch port)"
# Tried in order; the first that recognises the tensors reads them.
WEIGHT_LAYOUTS: dict[str, Callable[[Content], dict[str, Tensor] | None]] = {
    OWN[0]: layouts.own_encoder,
    OWN[1]: layouts.own_segmentation,
    OWN[2]: layouts.own_pretraining,
    transformers.DINOV2: transformers.dinov2,
    transformers.DINOV3: transformers.dinov3,
    transformers.HF_DINOV2: transformers.hugging_face_dinov2,
    transformers.HF_DINOV3: transformers.hugging_face_dinov3,
    transformers.TIMM: transformers.timm_vit,
    "PSCL (published)": layouts.published_pscl,
    "MatSSL (published)": layouts.published_matssl,
    "MatSSL repository, DenseCL": layouts.published_densecl,
    "MatSSL repository, MoCo v2": layouts.published_mocov2,
    "MoCo v1/v2 (official)": layouts.official_moco,
    "MoCo v3 (official)": layouts.moco_v3,
    "BYOL (PyTorch port)": layouts.byol_port,
    SMP: layouts.smp_model,
    "lightly (numbered backbone)": layouts.lightly_sequential,
    "Detectron2": layouts.detectron2,
    "Hugging Face transformers": layouts.hugging_face,
    "SE-ResNet (MicroNet)": layouts.se_net,
    EFFICIENTNET_LITE: layouts.efficientnet_lite,
    HEADED: layouts.named_backbone,
    "torchvision / timm": layouts.torchvision,
}
# How the images of a training were normalised, where its code says so. Own files follow their
# record, of the others nothing is known.
INPUTS: dict[str, Input] = {
    **dict.fromkeys(
        (
            "MatSSL (published)",
            "MatSSL repository, DenseCL",
            "MatSSL repository, MoCo v2",
            "MoCo v1/v2 (official)",
            "MoCo v3 (official)",
            "Hugging Face transformers",
            "SE-ResNet (MicroNet)",
            "lightly (numbered backbone)",
            "torchvision / timm",
        ),
        IMAGENET,
    ),
    EFFICIENTNET_LITE: LITE,
    HEADED: IMAGENET._replace(
        assumed="the codes that keep a backbone beside heads (VICReg, DINO, PixPro, SimSiam, "
        "MMSelfSup ...) normalise so"
    ),
}
LITE_ENCODERS = tuple(f"tu-tf_efficientnet_lite{size}" for size in range(5))


@dataclass(frozen=True)
class Recognised:
    """Tensors of a file under the names of an encoder.

    Attributes:
        layout: what the file was taken for.
        tensors: all that the encoder has, but for counters perhaps; stems as they are in the file.
        origin: names in the file of those that have others.
        input: how the images of its training were normalised, None where that is not known.
        architecture: name of the encoder, None where neither tensors nor file tell it.
        notes: what was assumed, in words.
        reshaped: names of tensors that the file has in another shape, stems apart.
    """

    layout: str
    tensors: dict[str, Tensor]
    origin: Mapping[str, str]
    input: Input | None = None
    architecture: str | None = None
    notes: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether the file is of this program."""
        return self.layout in OWN


def recognise(content: Content) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the layout and the encoder's tensors under torchvision's names.

    Raises:
        UserError: no layout fits.
    """
    known = _known(content)
    if known is None:
        raise refusals.unknown(content, encoders_for(content.tensors))
    return known


def identify(content: Content) -> tuple[str, dict[str, Tensor], list[str]]:
    """Return the layout of a file, its encoder's tensors, and the encoders that these fit.

    Raises:
        UserError: no layout and no encoder of the library fits.
    """
    known = _known(content)
    layout, tensors = known or ("", content.tensors)
    plain = layouts.architecture(tensors)
    encoders = [plain] if plain else encoders_for(tensors, content.told())
    if known is None and not encoders:
        raise refusals.unknown(content, [])
    return layout or "names of the encoder", tensors, encoders


def match(content: Content, encoder: nn.Module, in_channels: int, frames: int = 1) -> Recognised:
    """Return where the tensors of a file belong in an encoder.

    Args:
        content: of the file.
        encoder: that is to be filled.
        in_channels: of its input.
        frames: that its channels are; a stem of others comes as one of single pictures.

    Raises:
        UserError: it is another encoder's file, or two places fit alike.
    """
    wanted = encoder.state_dict()
    known = _known(content)
    tried = [known] if known and known[0] in OWN else [known, ("", content.tensors)]
    try:
        for layout, tensors in filter(None, tried):
            if content.frames not in (1, frames):
                tensors = folding.single(tensors, wanted, content.frames)
            notes: list[str] = []
            reshaped: list[str] = []
            if isinstance(encoder, vit.VitEncoder) and layout in transformers.LAYOUTS:
                tensors, notes, reshaped = transformers.adapted(tensors, encoder, content.path)
            ordered = content.ordered and layout not in OWN
            fit = _fit(tensors, wanted, in_channels, ordered, timm_name(encoder))
            if fit is not None:
                found = _recognised(content, encoder, layout, tensors, fit)
                ours = {theirs: name for name, theirs in fit.names.items()}
                changed = tuple(ours[name] for name in reshaped)
                return replace(found, notes=(*notes, *found.notes), reshaped=changed)
    except fitting.Ambiguous as error:
        raise UserError(
            f"{content.path} does not say which of its tensors are the encoder: {error}; save the "
            "wanted ones alone"
        ) from error
    if isinstance(encoder, vit.VitEncoder):
        # As its files name them.
        wanted = {key.removeprefix("model."): value for key, value in wanted.items()}
    raise refusals.misfit(content, known, wanted, in_channels, encoders_for)


def architecture(source: Path | str | Content) -> tuple[str | None, str | None]:
    """Return which encoder a file was made for, and which decoder it holds beside it.

    The first is None where neither the tensors nor the file tell, the second where there is no
    pretrained one.

    Raises:
        UserError: see :func:`read`; no layout fits.
    """
    content = source if isinstance(source, Content) else read(source)
    layout, tensors = _known(content) or ("", content.tensors)
    name = layouts.architecture(tensors)
    if name is None or not re.fullmatch(rf"resnet\d+|{small_unet.NAME}|dinov\d.*|vit_.*", name):
        name = content.told() or _of_config(content)
        if layout not in OWN:
            name = next(iter(encoders_for(tensors, name)), None)
    if name is None and not layout:
        raise refusals.unknown(content, [])
    return name, decoder_name(content) if content.decoder else None


def _of_config(content: Content) -> str | None:
    """Return the vision transformer that timm's description beside a file names, if any."""
    payload = content.payload
    name = payload.get("architecture") if isinstance(payload, Mapping) else None
    return name if isinstance(name, str) and vit.is_vit(name) else None


def decoder_name(content: Content) -> str:
    """Return the name of the decoder a file holds; a file that is not ours holds PSCL's."""
    return content.lineage.newest("decoder") or small_unet.NAME


def encoders_for(tensors: Mapping[str, Tensor], told: str | None = None) -> list[str]:
    """Return the encoders that tensors fit by name, the one that the file names first.

    Args:
        tensors: of the file, in its order.
        told: what the file names as its encoder.
    """
    first = [told] if told else []
    plain = layouts.architecture(tensors)
    if layouts.efficientnet_lite(Content("", dict(tensors), {})) is not None:
        names = [*first, *LITE_ENCODERS]
    elif plain is not None and re.fullmatch(r"resnet\d+", plain):
        # No need to lay out the whole family.
        names = [*first, plain]
    else:
        names = [*first, *candidates(tensors)]
    fits = []
    for name in dict.fromkeys(names):
        wanted = blueprint(name)
        try:
            theirs = name.removeprefix("tu-") if name.startswith("tu-") else None
            if wanted and _fit(tensors, wanted, 3, name in LITE_ENCODERS, theirs) is not None:
                fits.append(name)
        except fitting.Ambiguous:
            fits.append(name)
        # No two of the library's encoders have the same tensors.
        if fits:
            break
    return fits


def _known(content: Content) -> tuple[str, dict[str, Tensor]] | None:
    """Return the layout that recognises the tensors and what it reads, None where none does."""
    for name, layout in WEIGHT_LAYOUTS.items():
        found = layout(content)
        if found is not None:
            return name, found
    return None


def _fit(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    channels: int,
    ordered: bool,
    timm: str | None = None,
) -> Fit | None:
    """Return the fit of names as they are, else behind a prefix, else by order.

    Args:
        tensors: of the file.
        wanted: of the encoder.
        channels: of its input.
        ordered: whether the file keeps the order of its network.
        timm: name of the encoder there, None where it is not of timm.
    """
    needed = [k for k in wanted if not k.endswith(COUNTERS)]
    theirs, ours = layouts.architecture(tensors), layouts.architecture(wanted)
    beyond = partial(left_out, timm) if timm else dict
    # A deeper ResNet holds every tensor of a shallower one, yet its first blocks are no encoder.
    if theirs and ours and theirs != ours:
        return None
    if all(k in tensors and fitting.alike(tensors[k], wanted[k], channels) for k in needed):
        fit = Fit({k: k for k in wanted if k in tensors})
        return None if fitting.further(tensors, fit, "", beyond) else fit
    found = fitting.by_name(tensors, wanted, channels, beyond)
    if found is None and ordered:
        found = fitting.by_order(tensors, wanted, channels)
    return found


def _recognised(
    content: Content, encoder: nn.Module, layout: str, tensors: Mapping[str, Tensor], fit: Fit
) -> Recognised:
    """Return what a fit means.

    Raises:
        UserError: the encoder pads otherwise than the training of the file did.
    """
    notes: list[str] = []
    given = INPUTS.get(layout) if layout != SMP else smp_input(content)
    # SimCLR's usual port has its head inside of the backbone and leaves its images as they are.
    if layout == HEADED and content.has("backbone.fc.0.weight"):
        given = None
    if (not layout and not fit.ordered) or layout in transformers.LAYOUTS:
        given = _usual(encoder)
    if layout == EFFICIENTNET_LITE and not pads_like_tensorflow(encoder):
        names = encoders_for(tensors)
        raise UserError(
            f"{content.path} ({layout}) was trained with TensorFlow's padding and a BatchNorm eps "
            f"of 0.001, which this encoder has not; use --encoder {(names or LITE_ENCODERS)[0]}"
        )
    if fit.ordered and layout != EFFICIENTNET_LITE:
        notes.append(
            f"its names are not the encoder's: {len(fit.names)} tensors taken in their order, of "
            "which each has the shape and the role of the encoder's; whether it pads alike and has "
            "the same BatchNorm eps cannot be seen"
        )
    if layout == SMP:
        rest = [n for n in content.tensors if not n.startswith("encoder.")]
        notes.append(f"its decoder and head ({len(rest)} tensors) are not used")
        beside = [n for n in tensors if n not in fit.names.values() and not n.endswith(COUNTERS)]
        if beside:
            raise UserError(
                f"{content.path} holds {len(beside)} tensors in its encoder that this one has not "
                f"(first: {beside[0]}); it is another encoder"
            )
    how = "order of the encoder's tensors" if fit.ordered else "names of the encoder"
    where = f", below {fit.prefix.rstrip('_')}" if fit.prefix else ""
    return Recognised(
        layout or how + where,
        {ours: tensors[theirs] for ours, theirs in fit.names.items()},
        {ours: content.origin.get(theirs, theirs) for ours, theirs in fit.names.items()},
        given,
        layouts.architecture(tensors) or content.told(),
        tuple(notes),
    )


def _usual(encoder: nn.Module) -> Input | None:
    """Return how images are normalised for the library's own weights of an encoder."""
    known = usual_input(encoder)
    if known is None:
        return None
    assumed = "the library's own files of this encoder were trained so"
    if known == (IMAGENET.mean, IMAGENET.std):
        return IMAGENET._replace(assumed=assumed)
    mean, std = known
    name = f"mean {mean[0]:g} and std {std[0]:g}"
    return Input(mean, std, name, f"{name} folded into the stem", assumed)


def smp_input(content: Content) -> Input | None:
    """Return how the images of a whole model of smp were normalised, None where it does not say.

    smp's own examples keep ``mean`` and ``std`` beside the model; MicroNet's trainer, known by the
    entries of its files, takes those of ImageNet.
    """
    mean, std = (content.tensors.get(name) for name in ("mean", "std"))
    if mean is not None and std is not None and mean.numel() == std.numel() in (1, 3):
        m, s = mean.double().reshape(-1).expand(3), std.double().reshape(-1).expand(3)
        if bool(torch.isfinite(m).all() and torch.isfinite(s).all() and (s > 0).all()):
            # Of grey levels up to 255, where a mean of grey levels up to 1 cannot be meant.
            unit = 255.0 if float(m.abs().max()) > 1.5 or float(s.max()) > 1.5 else 1.0
            name = "the mean and std in the file"
            first, second = tuple((m / unit).tolist()), tuple((s / unit).tolist())
            return Input(first, second, name, f"{name} folded into the stem")
    payload = content.payload
    micronet = isinstance(payload, Mapping) and {"architecture", "class_values"} <= set(payload)
    return IMAGENET if micronet else None
