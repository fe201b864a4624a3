"""How files name the tensors of vision transformers; each reader gives timm's names.

DINOv2's and DINOv3's own files (facebookresearch), those of Hugging Face's transformers, timm's.
Layers that one code keeps apart and the other together (queries, keys and values) are joined, and
what a file adds up differently (the class token with its position) is added. The networks are the
same: features of a file differ by rounding alone from timm's of the same file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from matssl.core.errors import UserError
from matssl.models import vit
from matssl.weights.containers import Content

DINOV2, DINOV3 = "DINOv2 (facebook)", "DINOv3 (facebook)"
HF_DINOV2, HF_DINOV3 = "DINOv2 (Hugging Face)", "DINOv3 (Hugging Face)"
TIMM = "vision transformer (timm)"
LAYOUTS = (DINOV2, DINOV3, HF_DINOV2, HF_DINOV3, TIMM)
# Tensors of the pretraining, and those that are computed again.
UNUSED = re.compile(r"(^|\.)mask_token$|rope|bias_mask$|local_cls_norm|projectors\.|^head\b")
PATCHES = "patch_embed.proj.weight"
QKV = ("query", "key", "value")
# Width of a network to the name of its size.
_DINOV2 = {384: "s14", 768: "b14", 1024: "l14", 1536: "g14"}
_DINOV3 = {
    **{(384, False): "s16", (384, True): "splus16", (768, False): "b16", (1024, False): "l16"},
    **{(1280, True): "hplus16", (4096, True): "7b16"},
}
# Parts of Hugging Face's names of a block to timm's, of DINOv2 and of DINOv3.
_BLOCK_2 = (
    ("attention.output.dense.", "attn.proj."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.weights_in.", "mlp.fc1."),
    ("mlp.weights_out.", "mlp.fc2."),
)
_BLOCK_3 = (
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
    ("mlp.gate_proj.", "mlp.fc1_g."),
    ("mlp.down_proj.", "mlp.fc2."),
)


def dinov2(content: Content) -> dict[str, Tensor] | None:
    """Read DINOv2's own files: ``cls_token``, ``mask_token``, ``blocks.0.ls1.gamma``."""
    tensors = content.tensors
    if not {PATCHES, "cls_token", "mask_token", "blocks.0.ls1.gamma"} <= set(tensors):
        return None
    if "storage_tokens" in tensors:
        return None
    found = {}
    for name in tensors:
        if not UNUSED.search(name):
            key = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
            found[key] = _from(content, key, name)
    return _registered(content, found, "register_tokens")


def dinov3(content: Content) -> dict[str, Tensor] | None:
    """Read DINOv3's own files: ``storage_tokens``, ``blocks.0.attn.qkv.bias_mask``."""
    tensors = content.tensors
    if not {PATCHES, "cls_token", "storage_tokens", "blocks.0.attn.qkv.weight"} <= set(tensors):
        return None
    gated = "blocks.0.mlp.w3.weight" in tensors
    words = [("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"), ("storage_tokens", "reg_token")]
    if gated:
        words += [(".w1.", ".fc1_g."), (".w2.", ".fc1_x."), (".w3.", ".fc2.")]
    found = {}
    for name in tensors:
        if UNUSED.search(name):
            continue
        key = _renamed(name, words)
        if key.endswith("attn.qkv.bias"):
            layer = key.removesuffix("qkv.bias")
            # Keys have no bias: their part of it is masked.
            query, _, value = tensors[name].chunk(3)
            found[f"{layer}q_bias"], found[f"{layer}v_bias"] = query, value
            content.origin[f"{layer}q_bias"] = content.origin[f"{layer}v_bias"] = name
            continue
        found[key] = _from(content, key, name)
    return _without_zeros(found)


def hugging_face_dinov2(content: Content) -> dict[str, Tensor] | None:
    """Read Dinov2Model and Dinov2WithRegistersModel: ``encoder.layer.0.layer_scale1.lambda1``."""
    prefix = _prefix(content, "embeddings.position_embeddings")
    if prefix is None or f"{prefix}encoder.layer.0.layer_scale1.lambda1" not in content.tensors:
        return None
    words = [
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.", ""),
        ("layernorm.", "norm."),
        ("encoder.layer.", "blocks."),
        *_BLOCK_2,
    ]
    found = _joined(content, prefix, words, "attention.attention.{}")
    return _registered(content, found, "register_tokens")


def hugging_face_dinov3(content: Content) -> dict[str, Tensor] | None:
    """Read DINOv3ViTModel: ``layer.0.attention.q_proj.weight``, ``embeddings.register_tokens``."""
    prefix = _prefix(content, "embeddings.register_tokens")
    if prefix is None:
        return None
    inner = next(
        (
            w
            for w in ("", "model.")
            if f"{prefix}{w}layer.0.attention.q_proj.weight" in content.tensors
        ),
        None,
    )
    if inner is None:
        return None
    gated = f"{prefix}{inner}layer.0.mlp.gate_proj.weight" in content.tensors
    words = [
        ("embeddings.patch_embeddings.", "patch_embed.proj."),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.", ""),
        (f"{inner}layer.", "blocks."),
        *_BLOCK_3,
        ("mlp.up_proj.", "mlp.fc1_x." if gated else "mlp.fc1."),
    ]
    return _without_zeros(_joined(content, prefix, words, "attention.{}_proj"))


def timm_vit(content: Content) -> dict[str, Tensor] | None:
    """Read a vision transformer of timm, its head left out; any prefix is stripped before."""
    needed = {PATCHES, "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"}
    tensors = content.tensors
    if not needed <= set(tensors) or not {"cls_token", "pos_embed", "reg_token"} & set(tensors):
        return None
    if tensors[PATCHES].ndim != 4:
        return None
    return {name: tensor for name, tensor in tensors.items() if not UNUSED.search(name)}


def adapted(
    tensors: Mapping[str, Tensor], encoder: vit.VitEncoder, path: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the tensors of a file as an encoder takes them, what is to be said, and what changed.

    Position embeddings of another size are resampled as timm does, blocks behind the last one that
    the encoder keeps are left out, biases that are all zero are what their absence means.

    Args:
        tensors: of the file, under timm's names.
        encoder: that is to be filled.
        path: of the file, for messages.

    Returns:
        Tensors; notes; names of those that got another shape.

    Raises:
        UserError: it has biases that the encoder lacks.
    """
    found, notes, reshaped = dict(tensors), [], []
    own = {key.removeprefix("model."): value for key, value in encoder.state_dict().items()}
    if _depth(found) == encoder.depth:
        kept = len(encoder.model.blocks)
        found = {k: v for k, v in found.items() if _block(k) < kept}
    position = found.get("pos_embed")
    if position is not None and "pos_embed" in own and position.shape != own["pos_embed"].shape:
        resized = encoder.resampled(position)
        if resized is not None:
            found["pos_embed"] = resized[0]
            reshaped.append("pos_embed")
            notes.append(f"position embeddings {resized[1]}, bicubic as in timm")
    biases = ("attn.q_bias", "attn.v_bias")
    wanted, given = ([k for k in names if k.endswith(biases)] for names in (own, found))
    if given and not wanted:
        raise UserError(
            f"{path} has biases of queries and values that are not zero, which this encoder has "
            f"not; use --encoder {named(tensors) or 'its variant qkvb in timm'}"
        )
    if wanted and not given and "blocks.0.attn.qkv.bias" not in found:
        found |= {key: torch.zeros_like(own[key]) for key in wanted}
        notes.append(f"{len(wanted)} biases of queries and values are not in the file: zero")
    return found, notes, reshaped


def named(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a DINO encoder that tensors belong to, None where they are of none.

    Args:
        tensors: of a file or an encoder, under timm's names, ``model.`` perhaps before them.
    """
    lead = "model." if f"model.{PATCHES}" in tensors else ""
    patches = tensors.get(lead + PATCHES)
    if patches is None or patches.ndim != 4 or f"{lead}cls_token" not in tensors:
        return None
    width, patch = patches.shape[0], patches.shape[-1]
    registers = f"{lead}reg_token" in tensors
    if f"{lead}blocks.0.ls1.gamma" in tensors and patch == 14 and width in _DINOV2:
        return f"dinov2-vit-{_DINOV2[width]}{'-reg' if registers else ''}"
    gated = f"{lead}blocks.0.mlp.fc1_g.weight" in tensors
    rotary = f"{lead}blocks.0.gamma_1" in tensors and f"{lead}pos_embed" not in tensors
    if rotary and registers and patch == 16 and (width, gated) in _DINOV3:
        short = f"dinov3-vit-{_DINOV3[width, gated]}"
        biased = f"{lead}blocks.0.attn.q_bias" in tensors
        return f"{vit.SHORT[short]}_qkvb" if biased else short
    return None


def _prefix(content: Content, name: str) -> str | None:
    """Return what stands before a name, "" or words of a wrapper; None where it is not there."""
    found = [key.removesuffix(name) for key in content.tensors if key.endswith(name)]
    return found[0] if len(found) == 1 and (not found[0] or found[0].endswith(".")) else None


def _from(content: Content, key: str, name: str) -> Tensor:
    """Return a tensor of a file and remember the name that it has there."""
    content.origin[key] = name
    return content.tensors[name]


def _renamed(name: str, words: list[tuple[str, str]]) -> str:
    for theirs, ours in words:
        name = name.replace(theirs, ours)
    return name


def _joined(
    content: Content, prefix: str, words: list[tuple[str, str]], attention: str
) -> dict[str, Tensor]:
    """Return tensors under timm's names, queries, keys and values of a block in one.

    Args:
        content: of the file.
        prefix: before its names.
        words: parts of names, theirs and timm's.
        attention: name of the layer of queries in a block, with a place for its word.
    """
    short = "_proj" in attention
    parts = {attention.format(w[0] if short else w): w for w in QKV}
    found: dict[str, Tensor] = {}
    pieces: dict[str, dict[str, str]] = {}
    for name in content.tensors:
        if not name.startswith(prefix) or UNUSED.search(name):
            continue
        match = re.search(r"layer\.(\d+)\.(.+)\.(weight|bias)$", name)
        if match and match[2] in parts:
            key = f"blocks.{match[1]}.attn.qkv.{match[3]}"
            pieces.setdefault(key, {})[parts[match[2]]] = name
            continue
        key = _renamed(name.removeprefix(prefix), words)
        found[key] = _from(content, key, name)
    for key, names in pieces.items():
        layer = key.removesuffix("qkv.bias")
        if layer != key and "key" not in names:
            # Keys without a bias, as in DINOv3.
            for word in ("query", "value"):
                if word in names:
                    found[f"{layer}{word[0]}_bias"] = _from(
                        content, f"{layer}{word[0]}_bias", names[word]
                    )
        elif len(names) == len(QKV):
            found[key] = torch.cat([content.tensors[names[word]] for word in QKV])
            content.origin[key] = names["query"]
            content.joined[names["query"]] = tuple(names.values())
    return found


def _registered(content: Content, found: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return tensors with register tokens as timm has them: the class token with its position."""
    registers, position = found.pop(name, None), found.get("pos_embed")
    if registers is None or position is None or position.ndim != 3:
        return found
    found["reg_token"] = registers
    content.origin["reg_token"] = content.origin.pop(name)
    found["cls_token"] = found["cls_token"] + position[:, :1]
    found["pos_embed"] = position[:, 1:]
    return found


def _without_zeros(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the biases of queries and values where these are all zero."""
    biases = [k for k in found if k.endswith(("attn.q_bias", "attn.v_bias"))]
    if any(bool(found[k].count_nonzero()) for k in biases):
        return found
    return {k: v for k, v in found.items() if k not in biases}


def _block(name: str) -> int:
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _depth(tensors: Mapping[str, Tensor]) -> int:
    return max(map(_block, tensors), default=-1) + 1
