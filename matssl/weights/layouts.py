"""How published and own files name the tensors of a ResNet; each reader gives torchvision's names.

A reader returns None where the tensors are not of its kind. Prefixes are matched from the start of
a name only: "backbone." also stands inside "key_backbone." and "momentum_backbone.".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from matssl.core.errors import UserError
from matssl.models import small_unet
from matssl.models.pixels import is_classifier
from matssl.weights import transformers
from matssl.weights.containers import Content, own_format

# Places of a ResNet's parts in a Sequential: 2 is the ReLU, 3 the pooling.
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
DEPTHS = {(False, 2): "resnet18", (False, 6): "resnet34"}
DEEP = {6: "resnet50", 23: "resnet101", 36: "resnet152"}


def own_segmentation(content: Content) -> dict[str, Tensor] | None:
    """Read ``best.ckpt`` or ``last.ckpt`` of a fine-tuning run; of both weights the averaged.

    Raises:
        UserError: it is a classifier on filters, which has no encoder, or the ensemble of a
            cross-validation, which has one for each fold.
    """
    if not own_format(content.facts, content.path) or content.facts.get("stage") != "finetune":
        return None
    own = content.payload.get("model") if isinstance(content.payload, Mapping) else None
    if is_classifier(own) and not content.has("encoder."):
        raise UserError(
            f"{content.path} is a classifier on filters of the picture (--head forest or linear) "
            "and has no encoder; eval_model.py --model_path uses it as it is"
        )
    if content.has("members."):
        raise UserError(
            f"{content.path} is an ensemble of several models, each with an encoder of its own; "
            "give one of them (fold_1/best.ckpt of folds, network.ckpt of a network and its head)"
        )
    return content.below("ema.encoder.") or content.below("encoder.")


def own_pretraining(content: Content) -> dict[str, Tensor] | None:
    """Read ``last.ckpt`` of a pretraining run."""
    if not own_format(content.facts, content.path) or content.facts.get("stage") != "ssl":
        return None
    if "decoder" in content.lineage.last:
        content.decoder = content.below("decoder.")
    return content.below("encoder.")


def own_encoder(content: Content) -> dict[str, Tensor] | None:
    """Read ``encoder.safetensors`` of a pretraining run."""
    if not own_format(content.facts, content.path) or "step" in content.facts:
        return None
    content.decoder = content.below("decoder.")
    return content.below("encoder.") or None


def published_pscl(content: Content) -> dict[str, Tensor] | None:
    """Read PSCL's small U-Net: ``encoder_q.encode.*``, or ``encode.*`` of a fine-tuned one."""
    found = small_unet.from_published(content.tensors)
    if found is None:
        return None
    names = {id(tensor): name for name, tensor in content.tensors.items()}
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in found.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
            content.origin[rest] = names[id(tensor)]
    content.decoder = parts["decoder"]
    return parts["encoder"]


def published_matssl(content: Content) -> dict[str, Tensor] | None:
    """Read MatSSL's own files: ``backbone.*``, aliases of it, gates and head."""
    return content.below("backbone.") if content.has("attn_module.gates.", "backbone.") else None


def published_densecl(content: Content) -> dict[str, Tensor] | None:
    """Read the DenseCL files of the MatSSL repository: ``backbone.backbone.*``."""
    return content.below("backbone.backbone.") if content.has("backbone.backbone.") else None


def published_mocov2(content: Content) -> dict[str, Tensor] | None:
    """Read the MoCo v2 files of the MatSSL repository: ``backbone.*`` beside ``key_backbone.*``."""
    return content.below("backbone.") if content.has("key_backbone.", "backbone.") else None


def official_moco(content: Content) -> dict[str, Tensor] | None:
    """Read the official MoCo files: ``encoder_q.*``."""
    return _without_head(content.below("encoder_q.")) if content.has("encoder_q.conv1.") else None


def moco_v3(content: Content) -> dict[str, Tensor] | None:
    """Read MoCo v3: ``base_encoder.*`` beside ``momentum_encoder.*``."""
    if not content.has("base_encoder.conv1."):
        return None
    return _without_head(content.below("base_encoder."))


def byol_port(content: Content) -> dict[str, Tensor] | None:
    """Read the PyTorch versions of BYOL: ``online_encoder.net.*``, ``online_network.encoder.*``."""
    if content.has("online_encoder.net.conv1."):
        return _without_head(content.below("online_encoder.net."))
    if "online_network.encoder.0.weight" in content.tensors:
        return _numbered(content, "online_network.encoder.")
    if content.has("online_network.encoder.conv1."):
        return _without_head(content.below("online_network.encoder."))
    return None


def smp_model(content: Content) -> dict[str, Tensor] | None:
    """Read a whole model of segmentation-models-pytorch."""
    prefix = smp_prefix(content)
    if prefix is None:
        prefix = "" if content.has("encoder.", "decoder.") else None
    return None if prefix is None else content.below(f"{prefix}encoder.")


def smp_prefix(content: Content) -> str | None:
    """Return what stands before the names of a whole model, None where there is none, or several.

    Of an averaged or a teaching model and another one, the former is meant.
    """
    mark = "segmentation_head.0.weight"
    ends = [name.removesuffix(mark) for name in content.tensors if name.endswith(mark)]
    found = [p for p in ends if content.has(f"{p}encoder.", f"{p}decoder.")]
    better = [p for p in found if re.search(r"ema|teacher|averaged|swa", p)]
    chosen = [""] if "" in found else found if len(found) == 1 else better
    return chosen[0] if len(chosen) == 1 else None


def lightly_sequential(content: Content) -> dict[str, Tensor] | None:
    """Read a ResNet in a Sequential: ``backbone.0`` is conv1, ``backbone.4`` layer1."""
    stem = content.tensors.get("backbone.0.weight")
    if stem is None or stem.ndim != 4:
        return None
    return _numbered(content, "backbone.")


def se_net(content: Content) -> dict[str, Tensor] | None:
    """Read SE-ResNets of the older library that MicroNet used: ``layer0.*``, ``last_linear.*``."""
    if "layer0.conv1.weight" not in content.tensors:
        return None
    # smp's own SE encoders have these very names; nothing has to be translated.
    return {k: v for k, v in content.tensors.items() if not k.startswith("last_linear.")}


def hugging_face(content: Content) -> dict[str, Tensor] | None:
    """Read a ResNet of Hugging Face's transformers: ``resnet.embedder.*``, ``resnet.encoder.*``."""
    prefix = "resnet." if content.has("resnet.embedder.") else ""
    if f"{prefix}embedder.embedder.convolution.weight" not in content.tensors:
        return None
    found = {}
    for name, tensor in content.tensors.items():
        new = _from_hugging_face(name.removeprefix(prefix))
        if new is not None:
            found[new] = tensor
            content.origin[new] = name
    return found


def detectron2(content: Content) -> dict[str, Tensor] | None:
    """Read a ResNet of Detectron2: ``stem.conv1.*``, ``res2.0.conv1.norm.*``."""
    prefix = "backbone.bottom_up." if content.has("backbone.bottom_up.stem.") else ""
    if f"{prefix}stem.conv1.weight" not in content.tensors or not content.has(f"{prefix}res2."):
        return None
    found = {}
    for name, tensor in content.tensors.items():
        new = _from_detectron2(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if new is not None:
            # Its images have blue first.
            found[new] = tensor.flip(1) if new == "conv1.weight" else tensor
            content.origin[new] = name
    return found


def efficientnet_lite(content: Content) -> dict[str, Tensor] | None:
    """Read EfficientNet-Lite of its PyTorch port: ``_conv_stem.*``, ``_blocks.*``, no SE layers."""
    names = content.tensors
    if "_conv_stem.weight" not in names or any("._se_" in name for name in names):
        return None
    return {k: v for k, v in names.items() if not k.startswith("_fc.")}


def foreign(content: Content) -> str | None:
    """Return why tensors that are known are no encoder here, None where they are unknown."""
    names = content.tensors
    if "conv1.0.weight" in names or "encoder.conv1.0.weight" in names:
        return "a ResNet with a deep stem (timm's d and s variants); use the timm encoder tu-NAME"
    kernels = [t for n, t in names.items() if n.endswith(("kernel", "kernel:0")) and t.ndim == 4]
    if kernels:
        return (
            "TensorFlow or Keras kernels (height, width, in, out), whose networks stride and pad "
            "otherwise; convert the model with its own exporter first"
        )
    if any(n.endswith(("patch_embed.proj.weight", "cls_token")) for n in names):
        return "a vision transformer other than the encoder; give --encoder its name in timm"
    return None


def named_backbone(content: Content) -> dict[str, Tensor] | None:
    """Read ``backbone.conv1.*`` or ``encoder.conv1.*`` with any heads beside it."""
    for prefix in ("backbone.", "encoder."):
        if f"{prefix}conv1.weight" in content.tensors:
            return _without_head(content.below(prefix))
    return None


def torchvision(content: Content) -> dict[str, Tensor] | None:
    """Read bare names, with or without the classifier."""
    if "conv1.weight" in content.tensors and content.has("layer4."):
        return _without_head(dict(content.tensors))
    return None


def architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the ResNet or DINO network these tensors belong to, None where they are of none."""
    if "stem.conv1.weight" in tensors and "stem.norm1.weight" in tensors:
        return small_unet.NAME
    dino = transformers.named(tensors)
    if dino is not None:
        return dino
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"layer3\.(\d+)\.", name))}
    if not blocks:
        return None
    count = max(blocks) + 1
    if "layer1.0.conv3.weight" not in tensors:
        return DEPTHS.get((False, count))
    middle = tensors.get("layer1.0.conv2.weight")
    if middle is None or any(".se_module." in name for name in tensors):
        return None
    # Grouped convolutions make a ResNeXt, doubled width a wide ResNet.
    kind = "resnext" if middle.shape[1] < middle.shape[0] else "resnet"
    wide = "wide " if kind == "resnet" and middle.shape[0] > 64 else ""
    deep = DEEP.get(count)
    return deep and wide + deep.replace("resnet", kind)


def _numbered(content: Content, prefix: str) -> dict[str, Tensor]:
    """Return the ResNet of a Sequential under torchvision's names."""
    found = {}
    for name, tensor in content.below(prefix).items():
        number, _, rest = name.partition(".")
        if number in SEQUENTIAL:
            found[f"{SEQUENTIAL[number]}.{rest}"] = tensor
            content.origin[f"{SEQUENTIAL[number]}.{rest}"] = prefix + name
    return found


def _from_hugging_face(name: str) -> str | None:
    part = {"convolution": "conv", "normalization": "bn"}
    if m := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{part[m[1]]}1.{m[2]}"
    block = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    if m := re.fullmatch(block + r"layer\.(\d+)\.(convolution|normalization)\.(\w+)", name):
        return f"layer{int(m[1]) + 1}.{m[2]}.{part[m[4]]}{int(m[3]) + 1}.{m[5]}"
    if m := re.fullmatch(block + r"shortcut\.(convolution|normalization)\.(\w+)", name):
        place = 0 if m[3] == "convolution" else 1
        return f"layer{int(m[1]) + 1}.{m[2]}.downsample.{place}.{m[4]}"
    return None


def _from_detectron2(name: str) -> str | None:
    if m := re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name):
        return f"{'bn' if m[1] else 'conv'}1.{m[2]}"
    if m := re.fullmatch(r"res(\d)\.(\d+)\.conv(\d)\.(norm\.)?(\w+)", name):
        return f"layer{int(m[1]) - 1}.{m[2]}.{'bn' if m[4] else 'conv'}{m[3]}.{m[5]}"
    if m := re.fullmatch(r"res(\d)\.(\d+)\.shortcut\.(norm\.)?(\w+)", name):
        return f"layer{int(m[1]) - 1}.{m[2]}.downsample.{1 if m[3] else 0}.{m[4]}"
    return None


def _without_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if not k.startswith(("fc.", "head.", "classifier."))}
