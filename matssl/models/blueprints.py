"""Names and shapes of encoders' tensors, by which a file is known that does not name its own."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.models import classic_unet, small_unet, vit
from matssl.models.encoders import DEPTH, DILATED_STRIDE, REFUSALS

# The library's own encoders by the tensor that each begins with. Those of timm (tu-NAME) are too
# many to try, and many of them have equal tensors: a file has to name them.
FAMILIES = {
    "conv1.weight": r"resnet|resnext|xception|timm-skresne",
    "layer0.conv1.weight": r"se",
    "features.0.0.weight": r"mobilenet_v2",
    "features.0.weight": r"vgg",
    "features.conv0.weight": r"densenet",
    "features.conv1_1.conv.weight": r"dpn",
    "features.0.conv.weight": r"inceptionv4",
    "conv2d_1a.conv.weight": r"inceptionresnetv2",
    "_conv_stem.weight": r"efficientnet",
    "conv_stem.weight": r"timm-(efficientnet|tf_)",
    "patch_embed1.proj.weight": r"mit",
    "stage0.rbr_conv.0.conv.weight": r"mobileone",
    "stem.conv1.weight": small_unet.NAME,
}


@functools.lru_cache(maxsize=128)
def blueprint(name: str, in_channels: int = 3, dilated: bool = False) -> Mapping[str, Tensor]:
    """Return an encoder's tensors by name, on the meta device: their shapes are all there is.

    Args:
        name: of the encoder, see :func:`matssl.models.encoders.build_encoder`.
        in_channels: of its input.
        dilated: see the same.

    Returns:
        Nothing where there is no such encoder.
    """
    if name == small_unet.NAME:
        with torch.device("meta"):
            return small_unet.SmallUnetEncoder(in_channels).state_dict()
    if classic_unet.is_classic(name):
        try:
            filters, batchnorm = classic_unet.shape(name)
        except UserError:
            return {}
        with torch.device("meta"):
            made_of = classic_unet.ClassicUnetEncoder(in_channels, filters, batchnorm)
            return made_of.state_dict()
    stride = {"output_stride": DILATED_STRIDE} if dilated else {}

    def made() -> nn.Module:
        if vit.is_vit(name):
            return vit.VitEncoder(name, in_channels)
        encoder: nn.Module = smp.encoders.get_encoder(
            name, in_channels=in_channels, depth=DEPTH, weights=None, **stride
        )
        return encoder

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return made().state_dict()
        except UserError:
            return {}
        except REFUSALS:
            # A few compute with numbers while they are built.
            try:
                state = made().state_dict()
            except (*REFUSALS, UserError):
                return {}
    return {key: torch.empty_like(value, device="meta") for key, value in state.items()}


def candidates(names: Mapping[str, object]) -> tuple[str, ...]:
    """Return the library's encoders that may have tensors of some names; the shallow ones first.

    Args:
        names: of the tensors of a file.
    """
    known = (*smp.encoders.encoders, small_unet.NAME)
    # Behind a prefix, but not inside a block, whose number would stand before it.
    kinds = [
        kind
        for first, kind in FAMILIES.items()
        if any(re.fullmatch(rf"([^\d]*\.)?{re.escape(first)}", name) for name in names)
    ]
    return tuple(name for name in known if any(re.match(kind, name) for kind in kinds))


def timm_name(encoder: nn.Module) -> str | None:
    """Return the name by which timm builds an encoder; None for one that is not timm's."""
    found = getattr(encoder, "name", None)
    universal = isinstance(encoder, smp.encoders.TimmUniversalEncoder)
    return str(found) if universal and found else None


@functools.lru_cache(maxsize=16)
def left_out(name: str) -> Mapping[str, torch.Size]:
    """Return the shapes of what timm's whole network has and its feature extractor leaves out.

    An extractor ends with the first layer of the last stride: of ghostnet_100 the last five blocks
    are left out, beside the head that all networks have.

    Args:
        name: of timm.

    Returns:
        By names of the whole network; nothing where timm builds none.
    """
    import timm

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                whole = timm.create_model(name, pretrained=False).state_dict()
        except REFUSALS:
            return {}
    features = {key.removeprefix("model.").replace(".", "_") for key in blueprint(f"tu-{name}")}
    return {k: v.shape for k, v in whole.items() if k.replace(".", "_") not in features}
