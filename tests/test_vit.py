"""Vision transformers: published weights give timm's features, any size goes in, commands run."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matssl import Segmenter, weights
from matssl.core.errors import UserError, guard
from matssl.models import vit
from matssl.models.encoders import build_encoder, encoder_facts
from matssl.models.segmentation import build_model
from matssl.stages import console
from matssl.tools import export_weights, phase_map
from matssl.trained.encoder import MARGIN, Encoder
from matssl.weights import transformers
from matssl.weights.folding import IMAGENET_MEAN, IMAGENET_STD

# Blocks of the networks in this file: those of timm have twelve or more.
DEPTH = 4
SMALL_14 = "vit_tiny_patch14_for_tests"
State = dict[str, Tensor]


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of four blocks instead of twelve: the same layouts in a third of the time."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=DEPTH))


def _drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    """Made-up values: small kernels, scales and offsets about those of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.05
        + (1.0 if re.search(r"norm\w*\.weight|gamma|lambda1", name) else 0.0)
        for name, shape in shapes.items()
    }


def _facebook_2(registers: int) -> State:
    """What dinov2_vits14(_reg4)_pretrain.pth holds, by the names of facebookresearch/dinov2."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 1370, 384),
        "mask_token": (1, 384),
        "patch_embed.proj.weight": (384, 3, 14, 14),
        "patch_embed.proj.bias": (384,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, 384)
    for n in range(DEPTH):
        block = f"blocks.{n}."
        shapes |= {
            f"{block}norm1.weight": (384,),
            f"{block}norm1.bias": (384,),
            f"{block}attn.qkv.weight": (1152, 384),
            f"{block}attn.qkv.bias": (1152,),
            f"{block}attn.proj.weight": (384, 384),
            f"{block}attn.proj.bias": (384,),
            f"{block}ls1.gamma": (384,),
            f"{block}norm2.weight": (384,),
            f"{block}norm2.bias": (384,),
            f"{block}mlp.fc1.weight": (1536, 384),
            f"{block}mlp.fc1.bias": (1536,),
            f"{block}mlp.fc2.weight": (384, 1536),
            f"{block}mlp.fc2.bias": (384,),
            f"{block}ls2.gamma": (384,),
        }
    return _drawn({**shapes, "norm.weight": (384,), "norm.bias": (384,)})


def _facebook_3(gated: bool, biased: bool) -> State:
    """What dinov3_vits16(plus)_pretrain_lvd1689m.pth holds, as facebookresearch/dinov3 names it."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "storage_tokens": (1, 4, 384),
        "mask_token": (1, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "patch_embed.proj.bias": (384,),
        "rope_embed.periods": (16,),
    }
    for n in range(DEPTH):
        block = f"blocks.{n}."
        shapes |= {
            f"{block}norm1.weight": (384,),
            f"{block}norm1.bias": (384,),
            f"{block}attn.qkv.weight": (1152, 384),
            f"{block}attn.qkv.bias": (1152,),
            f"{block}attn.qkv.bias_mask": (1152,),
            f"{block}attn.proj.weight": (384, 384),
            f"{block}attn.proj.bias": (384,),
            f"{block}ls1.gamma": (384,),
            f"{block}norm2.weight": (384,),
            f"{block}norm2.bias": (384,),
            f"{block}ls2.gamma": (384,),
        }
        names = {"w1": (1536, 384), "w2": (1536, 384), "w3": (384, 1536)}
        for name, shape in (names if gated else {"fc1": (1536, 384), "fc2": (384, 1536)}).items():
            shapes |= {f"{block}mlp.{name}.weight": shape, f"{block}mlp.{name}.bias": shape[:1]}
    state = _drawn({**shapes, "norm.weight": (384,), "norm.bias": (384,)})
    for name in list(state):
        if name.endswith("qkv.bias"):
            state[name] = state[name] * biased
            # The bias of keys is masked, whatever stands there.
            state[f"{name}_mask"] = torch.cat([torch.ones(384), torch.zeros(384), torch.ones(384)])
    return state


def _as_hugging_face(state: State, three: bool) -> State:
    """The same numbers by the names of transformers' Dinov2(WithRegisters)Model, DINOv3ViTModel.

    As its own conversion scripts rename them.
    """
    found: State = {}
    patches = "embeddings.patch_embeddings." + ("" if three else "projection.")
    for name, tensor in state.items():
        if "rope_embed" in name or "bias_mask" in name:
            continue
        key = name.replace("patch_embed.proj.", patches)
        key = {
            "cls_token": "embeddings.cls_token",
            "mask_token": "embeddings.mask_token",
            "pos_embed": "embeddings.position_embeddings",
            "register_tokens": "embeddings.register_tokens",
            "storage_tokens": "embeddings.register_tokens",
            "norm.weight": "norm.weight" if three else "layernorm.weight",
            "norm.bias": "norm.bias" if three else "layernorm.bias",
        }.get(key, key)
        key = re.sub(r"ls([12])\.gamma", r"layer_scale\1.lambda1", key)
        key = key.replace("blocks.", "layer." if three else "encoder.layer.")
        proj = "attention.o_proj" if three else "attention.output.dense"
        key = key.replace("attn.proj", proj)
        if three:
            for theirs, ours in (("w1", "gate"), ("w2", "up"), ("w3", "down")):
                key = key.replace(f"mlp.{theirs}.", f"mlp.{ours}_proj.")
            key = key.replace("mlp.fc1.", "mlp.up_proj.").replace("mlp.fc2.", "mlp.down_proj.")
        if "attn.qkv" not in key:
            found[key] = tensor
            continue
        for part, word in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
            layer = f"attention.{word[0]}_proj" if three else f"attention.attention.{word}"
            if not (three and word == "key" and key.endswith("bias")):
                found[key.replace("attn.qkv", layer)] = part.contiguous()
    return found


def _theirs(name: str, facebook: State) -> nn.Module:
    """timm's network with the numbers of a facebook file, as timm itself reads it."""
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    module = importlib.import_module(type(model).__module__)
    read = module.checkpoint_filter_fn(dict(facebook), model)
    missing, left = model.load_state_dict(read, strict=False)
    assert not missing and not left
    return model


CASES: dict[str, tuple[str, str, Callable[[], State], Callable[[State], State], str]] = {
    "dinov2": (
        *("dinov2-vit-s14", "vit_small_patch14_dinov2", partial(_facebook_2, 0)),
        *(dict, "DINOv2 (facebook)"),
    ),
    "dinov2 with registers": (
        *("dinov2-vit-s14-reg", "vit_small_patch14_reg4_dinov2", partial(_facebook_2, 4)),
        *(dict, "DINOv2 (facebook)"),
    ),
    "dinov3": (
        *("dinov3-vit-s16", "vit_small_patch16_dinov3", partial(_facebook_3, False, False)),
        *(dict, "DINOv3 (facebook)"),
    ),
    "dinov3 with biases": (
        *("vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3_qkvb"),
        *(partial(_facebook_3, False, True), dict, "DINOv3 (facebook)"),
    ),
    "dinov3 plus": (
        *("dinov3-vit-splus16", "vit_small_plus_patch16_dinov3"),
        *(partial(_facebook_3, True, False), dict, "DINOv3 (facebook)"),
    ),
    "hugging face dinov2": (
        *("dinov2-vit-s14", "vit_small_patch14_dinov2", partial(_facebook_2, 0)),
        *(partial(_as_hugging_face, three=False), "DINOv2 (Hugging Face)"),
    ),
    "hugging face dinov2 with registers": (
        *("dinov2-vit-s14-reg", "vit_small_patch14_reg4_dinov2", partial(_facebook_2, 4)),
        *(partial(_as_hugging_face, three=False), "DINOv2 (Hugging Face)"),
    ),
    "hugging face dinov3": (
        *("vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3_qkvb"),
        *(partial(_facebook_3, False, True), partial(_as_hugging_face, three=True)),
        "DINOv3 (Hugging Face)",
    ),
    "hugging face dinov3 plus": (
        *("dinov3-vit-splus16", "vit_small_plus_patch16_dinov3"),
        *(partial(_facebook_3, True, False), partial(_as_hugging_face, three=True)),
        "DINOv3 (Hugging Face)",
    ),
}


def test_each_layout_has_an_example() -> None:
    assert {case[-1] for case in CASES.values()} | {transformers.TIMM} == set(transformers.LAYOUTS)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("case", CASES)
def test_published_weights_give_the_features_of_timm(case: str, tmp_path: Path) -> None:
    """F-S1: all of a file arrives, under whichever names, and is counted."""
    name, timm_name, made, spelt, layout = CASES[case]
    facebook = made()
    path = tmp_path / ("w.safetensors" if "hugging" in case else "w.pth")
    state = spelt(facebook)
    save_file(state, path) if "hugging" in case else torch.save(state, path)
    assert weights.architecture(str(path)) == (name, None)
    encoder = build_encoder(name, 3).eval()
    report = weights.load(encoder, path, in_channels=3)
    assert (report.layout, report.matched) == (layout, report.total)
    assert not report.missing and not report.reshaped
    left = {n for n in report.dropped if not re.search(r"mask_token|rope|bias_mask", n)}
    assert all(n.endswith("bias") and not bool(state[n].any()) for n in left), left
    # Another size than that of the position embeddings, and no square.
    stride = encoder.stride
    x = torch.randn(1, 3, 5 * stride, 7 * stride, generator=torch.Generator().manual_seed(1))
    theirs = _theirs(timm_name, facebook)
    with torch.inference_mode():
        expected = theirs.forward_intermediates(
            *(x, [0, 1, 2, 3]), norm=True, intermediates_only=True, return_prefix_tokens=True
        )
        found = encoder(x)
        last = theirs.forward_features(x)[:, theirs.num_prefix_tokens :]
    for number, (level, tokens) in enumerate(expected):
        assert torch.allclose(found[vit.MAPS + number], level, atol=1e-5)
        assert torch.allclose(found[number][..., 0, 0], tokens[:, 0], atol=1e-5)
    assert torch.allclose(found[-1].flatten(2).mT, last, atol=1e-5)


@pytest.mark.usefixtures("shallow")
def test_files_of_timm_are_read_and_positions_of_another_size_resampled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True).eval()
    torch.save({"state_dict": small.state_dict()}, tmp_path / "w.pth")
    encoder = build_encoder("vit_tiny_patch16_224", 1).eval()
    report = weights.load(encoder, tmp_path / "w.pth", in_channels=1)
    assert report.matched == report.total and report.layout == "vision transformer (timm)"
    assert set(report.reshaped) == {"model.pos_embed", "model.patch_embed.proj.weight"}
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert (
        f"{report.total} of {report.total} encoder tensors loaded (2 of them res" in report.text()
    )
    assert "of 4 x 4 patches resampled to 14 x 14" in report.text()
    # timm's own reading of the same file.
    theirs = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, num_classes=0).eval()
    module = importlib.import_module(type(theirs).__module__)
    state = {k: v for k, v in small.state_dict().items() if not k.startswith("head")}
    theirs.load_state_dict(module.checkpoint_filter_fn(state, theirs))
    gray = torch.rand(1, 1, 224, 224)
    with torch.inference_mode():
        expected = theirs.forward_intermediates(
            gray.expand(1, 3, -1, -1), [3], norm=True, intermediates_only=True
        )
        assert torch.allclose(encoder(gray)[-1], expected[0], atol=1e-5)


@pytest.mark.usefixtures("shallow")
def test_a_file_that_does_not_fit_is_refused_with_the_encoder_it_fits(tmp_path: Path) -> None:
    torch.save(_facebook_2(0), tmp_path / "w.pth")
    resnet = build_encoder("resnet18", 1)
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    for encoder in (resnet, build_encoder("vit_tiny_patch16_224", 1)):
        with pytest.raises(UserError, match="--encoder dinov2-vit-s14"):
            weights.load(encoder, tmp_path / "w.pth", in_channels=1)
    with pytest.raises(UserError, match="holds a dinov2-vit-s14 .*the model has a dinov2-vit-s14-"):
        weights.load(build_encoder("dinov2-vit-s14-reg", 1), tmp_path / "w.pth", in_channels=1)
    assert all(torch.equal(v, before[k]) for k, v in resnet.state_dict().items())
    torch.save(_facebook_3(False, True), tmp_path / "biased.pth")
    with pytest.raises(UserError, match="biases .* not zero.* vit_small_patch16_dinov3_qkvb"):
        plain = build_encoder("dinov3-vit-s16", 1)
        weights.load(plain, tmp_path / "biased.pth", in_channels=1)


@pytest.mark.usefixtures("shallow")
def test_the_normalisation_of_the_file_is_folded_into_its_patches(tmp_path: Path) -> None:
    """Gray images normalised by 0.5 and 0.25 give what ImageNet's normalisation gives in colour."""
    torch.save(_facebook_2(0), tmp_path / "w.pth")
    plain, ours = build_encoder("dinov2-vit-s14", 3).eval(), build_encoder("dinov2-vit-s14").eval()
    weights.load(plain, tmp_path / "w.pth", in_channels=3)
    given = {"in_channels": 1, "mean": (0.5,), "std": (0.25,)}
    report = weights.load(ours, tmp_path / "w.pth", **given)  # type: ignore[arg-type]
    assert report.reshaped == ("model.patch_embed.proj.weight",)
    gray = torch.rand(1, 1, 42, 56)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        colour = plain((gray.expand(1, 3, -1, -1) - mean) / std)
        assert torch.allclose(ours((gray - 0.5) / 0.25)[-1], colour[-1], atol=1e-4)


# --- names and shapes ---
def test_names_are_those_of_timm_or_short_ones() -> None:
    assert vit.named("dinov2-vit-s14") == vit.Named("vit_small_patch14_dinov2")
    assert vit.named("dinov2-vit-l14-reg@5-11-17-23") == vit.Named(
        "vit_large_patch14_reg4_dinov2", (5, 11, 17, 23)
    )
    for name in (
        "vit_small_patch14_dinov2.lvd142m",
        "tu-vit_small_patch14_dinov2",
        "eva02_tiny_patch14_224",
    ):
        assert vit.is_vit(name)
    for name in ("resnet18", "tu-resnet18", "mit_b0", "small_unet", "beit_base_patch16_224"):
        assert not vit.is_vit(name)
    assert all(timm.is_model(known) for known in vit.SHORT.values())
    with pytest.raises(UserError, match="no encoder 'dinov2-vit-s16'; of DINO there are .*s14"):
        build_encoder("dinov2-vit-s16")
    with pytest.raises(UserError, match="names no blocks; write test_vit@2-5-8-11"):
        build_encoder("test_vit@last")
    with pytest.raises(
        UserError, match="4 different numbers in order, from 0 to 5 .*such as 0 2 3 5"
    ):
        build_encoder("test_vit@2-5-8-11")


@pytest.mark.parametrize(
    ("depth", "even"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (40, (9, 19, 29, 39))]
)
def test_blocks_are_spread_evenly(depth: int, even: tuple[int, ...]) -> None:
    assert vit._chosen((), depth, "x") == even


def test_the_encoder_says_what_it_gives_and_blocks_behind_the_last_are_left_out() -> None:
    encoder = build_encoder(f"{SMALL_14}@0-1-2-3")
    facts = encoder_facts(encoder)
    assert (facts.channels, facts.strides, facts.multiple) == ((32,) * 4, (14,) * 4, 14)
    chosen = build_encoder("test_vit@0-1-2-3")
    assert encoder_facts(chosen).multiple == 16
    blocks = {name.split(".")[2] for name in chosen.state_dict() if ".blocks." in name}
    assert blocks == {"0", "1", "2", "3"}
    sum(level.sum() for level in chosen(torch.zeros(1, 1, 32, 32))[-vit.MAPS :]).backward()
    assert all(p.grad is not None for p in chosen.parameters())


@pytest.mark.parametrize(
    ("patch", "steps", "taken"),
    [(16, (3, 2, 1, 0), 16), (14, (3, 2, 1, 0), 16), (8, (2, 1, 0, -1), 8), (32, (4, 3, 2, 1), 32)],
)
def test_any_patch_size_makes_a_pyramid(patch: int, steps: tuple[int, ...], taken: int) -> None:
    assert vit.doublings(patch) == steps and vit.nominal(patch) == taken


def test_the_decoder_is_that_of_the_library_where_it_can_run() -> None:
    """DPT of smp on the same weights: equal logits at sides that are multiples of 32."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    shape = {"dynamic_img_size": True, "encoder_output_indices": [0, 2, 3, 5]}
    theirs = smp.DPT("tu-test_vit", encoder_weights=None, in_channels=1, classes=3, **shape).eval()
    ours = build_model("test_vit", "dpt", 3).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("encoder.")}
    own = {k for k in ours.state_dict() if not k.startswith("encoder.")}
    assert own == set(state)
    ours.load_state_dict(state, strict=False)
    # The library leaves the network's last norm out of the maps.
    ours.encoder.model.load_state_dict(theirs.encoder.model.state_dict(), strict=False)
    ours.encoder.model.norm = nn.Identity()
    with torch.inference_mode():
        x = torch.randn(1, 1, 64, 96)
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_decoders_of_tokens_are_refused_on_convolutions_and_blocks_too(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match="--decoder dpt goes with vision transformers .*resnet18; take"
    ):
        build_model("resnet18", "dpt", 2)
    out = ["--output_dir", tmp_path / "out", "--finetune_dataset", synthetic_folder]
    for flags, said in (
        (["--encoder", "resnet18", "--encoder_blocks", 2, 5, 8, 11], "--encoder_blocks acts with"),
        (["--encoder", "test_vit", "--encoder_blocks", 1, 2], "--encoder_blocks needs 4"),
    ):
        assert _run("train_finetune", *out, *flags) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# --- all commands ---
def _run(script: str, *argv: object) -> int:
    words = [str(word) for word in (*argv, "--threads", 1, "--precision", "fp32")]
    return guard(importlib.import_module(script).main, words)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("decoder", "extra"),
    [
        ("unet", ["--finetune_blocks", "none"]),
        ("dpt", ["--encoder_lr_factor", 0.1, "--decoder_filters", *(8,) * 5]),
    ],
)
def test_a_vision_transformer_is_trained_and_predicts_pictures_of_any_size(
    decoder: str,
    extra: list[object],
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """F-S19: a frozen encoder is bit for bit what it was, its statistics included."""
    start = build_encoder(SMALL_14, 1)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, "--name", "x"]
    argv += ["--encoder", SMALL_14, "--encoder_blocks", 0, 1, 2, 3, "--decoder", decoder]
    argv += [
        "--crop_size",
        60,
        "--batch_size",
        2,
        "--steps",
        2,
        "--val_every",
        2,
    ]
    argv += ["--weights", tmp_path / "start.pth"]
    assert _run("train_finetune", *argv, *extra, "--tensorboard") == 0, capsys.readouterr().err
    # Sizes are raised to whole patches of 14 pixels, and that is said.
    said = "note    crops of 70 px instead of 60: whole patches of the encoder"
    assert said in capsys.readouterr().out
    run = tmp_path / "finetune" / "x"
    payload = torch.load(run / "last.ckpt", weights_only=False)
    assert payload["model"]["encoder"] == f"{SMALL_14}@0-1-2-3"
    kept = {
        k.removeprefix("encoder."): v for k, v in payload["state"].items() if k[:8] == "encoder."
    }
    same = all(torch.equal(v, kept[k]) for k, v in start.state_dict().items() if "proj.w" not in k)
    assert same == (decoder == "unet")
    picture = np.random.default_rng(0).integers(0, 255, (61, 103), np.uint8)
    cv2.imwrite(str(tmp_path / "odd.png"), picture)
    assert Segmenter.load(run, device="cpu").predict(tmp_path / "odd.png").classes.shape == (
        61,
        103,
    )
    told = [
        "--model_path",
        run,
        "--dataset",
        synthetic_folder,
        "--output_dir",
        tmp_path / "results",
    ]
    assert _run("eval_model", *told) == 0, capsys.readouterr().err
    # What was written is read by TensorBoard itself.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown["loss"] == shown["lr"] == [1, 2] and shown["val_miou"] == [2]
    assert {tag for tag in shown if tag.startswith("val_iou/")} >= {"val_iou/speckled"}
    log = (run / "log.csv").read_text().splitlines()
    scored = dict(zip(log[0].split(","), log[1].split(","), strict=True))["val_miou"]
    assert events.Scalars("val_miou")[0].value == pytest.approx(float(scored), abs=1e-6)


def test_tensorboard_says_which_extra_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install matssl\[track\]"):
        console.check_tensorboard(True)


@pytest.mark.usefixtures("no_drawing")
def test_pretraining_probe_and_phase_map_take_a_vision_transformer(
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = ["--output_dir", tmp_path, "--name", "x", "--steps", 1, "--encoder", SMALL_14]
    views = ["--view_size", 70, "--batch_size", 4, "--cache_dir", "none", "--model", "simclr"]
    argv = ["--data_path", pool_folder, *ours, *views, "--probe_path", synthetic_folder]
    assert _run("train_ssl", *argv) == 0, capsys.readouterr().err
    run = tmp_path / "ssl" / "x"
    # What was learned goes to timm by its own names.
    assert guard(export_weights.main, [str(run), "--layout", "smp"]) == 2
    assert "give --layout timm" in capsys.readouterr().err
    assert guard(export_weights.main, [str(run), "--layout", "timm", "--channels", "3"]) == 0
    theirs = timm.create_model(SMALL_14, num_classes=0)
    exported = torch.load(run / "encoder-timm.pth", weights_only=True)
    theirs.load_state_dict(exported)
    kernel = load_file(run / "encoder.safetensors")["encoder.model.patch_embed.proj.weight"]
    assert torch.allclose(theirs.patch_embed.proj.weight.sum(1, keepdim=True), kernel, atol=1e-6)
    assert len((run / "probe.csv").read_text().splitlines()) > 1
    image = next(pool_folder.glob("*.png"))
    features = Encoder.load(run / "encoder.safetensors", device="cpu").features(image)
    assert features.shape == (64, -(-96 // 14), -(-96 // 14))
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(pool_folder.glob("*.png"))[:2]:
        shutil.copy(file, few)
    argv = ["--model_path", run / "last.ckpt", "--data", few, "--phases", 2]
    words = [str(w) for w in (*argv, "--output_dir", tmp_path / "map")]
    assert guard(phase_map.main, words) == 0, capsys.readouterr().err


def test_features_lie_where_the_picture_has_them() -> None:
    """The margin about a picture is cut off in whole cells, of 14 pixels too."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, 14)

    from matssl.trained.encoder import around
    from matssl.trained.network import Network

    assert MARGIN % 14
    image = np.random.default_rng(0).random((1, 140, 84)).astype(np.float32)
    network = Network(Mean(), torch.device("cpu"), "fp32")
    (found,) = around(lambda x: [network.model(x)], image, network, 14)
    expected = image[0].reshape(10, 14, 6, 14).mean((1, 3))
    assert np.allclose(found[0], expected, atol=1e-6)


METHODS_WITH_VIT = ("matssl", "simclr", "mocov2", "densecl", "byol", "vicreg", "slotcon")


@pytest.mark.parametrize("model", ["spark", "pscl-simclr", "pscl-moco", "pscl"])
def test_methods_with_a_decoder_refuse_vision_transformers_by_name(
    model: str, pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path / "out", "--model", model]
    argv += ["--encoder", "dinov2-vit-s14"] + (
        ["--labeled_path", pool_folder] if "pscl" in model else []
    )
    assert _run("train_ssl", *argv) == 2
    told = capsys.readouterr().err
    assert f"--model {model} needs maps at strides 4 to 32" in told and len(told.splitlines()) == 1
    assert all(name in told for name in METHODS_WITH_VIT)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("model", [m for m in METHODS_WITH_VIT if m != "simclr"])
def test_the_other_methods_train_vision_transformers(
    model: str, pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path, "--name", "x", "--model", model]
    argv += ["--encoder", SMALL_14, "--view_size", 70, "--batch_size", 4, "--steps", 1]
    assert _run("train_ssl", *argv, "--cache_dir", "none") == 0, capsys.readouterr().err
    assert (tmp_path / "ssl" / "x" / "encoder.safetensors").is_file()
