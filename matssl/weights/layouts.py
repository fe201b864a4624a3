"""How published and own files name the tensors of a ResNet; each reader gives torchvision's names.

A reader returns None where the tensors are not of its kind. Prefixes are matched from the start of
a name only: "backbone." also stands inside "key_backbone." and "momentum_backbone.".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.models import small_unet

CONTAINERS = (
    *("state_dict", "model", "moco", "finetune", "super", "teacher", "student", "network"),
    *("encoder", "state"),
)
WRAPPERS = ("module.", "_orig_mod.")
# Places of a ResNet's parts in a Sequential: 2 is the ReLU, 3 the pooling.
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
DEPTHS = {(False, 2): "resnet18", (False, 6): "resnet34"}
DEEP = {6: "resnet50", 23: "resnet101", 36: "resnet152"}


@dataclass
class Content:
    """Tensors of a file.

    Attributes:
        path: of the file.
        tensors: by name, wrappers stripped.
        facts: other entries of the file, such as format and stage.
        lineage: what an own file was trained from.
        origin: name in the file of a tensor that a reader renamed.
        payload: the whole of a torch file, as it was read.
        decoder: tensors of a decoder that was pretrained along, as its module names them.
    """

    path: str
    tensors: dict[str, Tensor]
    facts: Mapping[str, object]
    lineage: Lineage = Lineage()
    origin: dict[str, str] = field(default_factory=dict)
    payload: object = None
    decoder: dict[str, Tensor] = field(default_factory=dict)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors that start with ``prefix``, without it."""
        chosen = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                chosen[name[len(prefix) :]] = tensor
                self.origin[name[len(prefix) :]] = name
        return chosen

    def has(self, *prefixes: str) -> bool:
        """Return whether each prefix starts some tensor's name."""
        return all(any(name.startswith(p) for name in self.tensors) for p in prefixes)


def unwrap(content: object, path: str) -> Content:
    """Return the tensors of what torch.load gave, containers and wrappers stripped.

    Raises:
        UserError: there is no tensor in it.
    """
    payload = content
    facts: dict[str, object] = {}
    lineage = Lineage()
    if isinstance(content, Mapping):
        facts = {k: v for k, v in content.items() if isinstance(v, (str, int, float))}
    if isinstance(content, Mapping) and own_format(facts, path):
        lineage = Lineage.read(content.get("lineage"))
        # Other entries of an own checkpoint have names of containers too: "model" describes one.
        content = content.get("state")
    depth = 0
    while isinstance(content, Mapping) and not _tensors(content) and depth < 4:
        inner = next((content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content, depth = inner, depth + 1
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{path} holds no tensors; it is no weights file")
    while wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in tensors)), ""):
        tensors = {name[len(wrapper) :]: tensor for name, tensor in tensors.items()}
    return Content(path, tensors, facts, lineage, payload=payload)


def own_format(facts: Mapping[str, object], path: str) -> bool:
    """Return whether a file is of this program.

    Raises:
        UserError: it is, in a format this version does not know.
    """
    found = str(facts.get("format", ""))
    if not found.startswith("matssl/"):
        return False
    if found != checkpoint.FORMAT:
        raise UserError(
            f"{path} has format {found}, this version reads {checkpoint.FORMAT}; update matssl"
        )
    return True


def own_segmentation(content: Content) -> dict[str, Tensor] | None:
    """Read ``best.ckpt`` or ``last.ckpt`` of a fine-tuning run; of both weights the averaged."""
    if content.facts.get("stage") != "finetune":
        return None
    return content.below("ema.encoder.") or content.below("encoder.")


def own_pretraining(content: Content) -> dict[str, Tensor] | None:
    """Read ``last.ckpt`` of a pretraining run."""
    if content.facts.get("stage") != "ssl":
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
    if not content.has("encoder.", "decoder."):
        return None
    return content.below("encoder.")


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
        return "a vision transformer; the encoders here are convolutional"
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
    """Return the ResNet these tensors belong to, None where they are none."""
    if "stem.conv1.weight" in tensors and "stem.norm1.weight" in tensors:
        return small_unet.NAME
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


def _tensors(content: Mapping[object, object]) -> dict[str, Tensor]:
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


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
