"""Looking into weights files and writing them for others."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from matssl import weights
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.models.encoders import build_encoder, smp
from matssl.models.segmentation import build_model
from matssl.tools import export_weights, inspect_weights


def _tool(name: str, *argv: object) -> int:
    module = importlib.import_module(f"matssl.tools.{name}")
    return guard(module.main, [str(a) for a in argv])


def _state(channels: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_encoder("resnet18", channels).state_dict()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the checkpoint of a fine-tuned model."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    folder.mkdir()
    torch.manual_seed(3)
    model = build_model("resnet18", "unet", 3)
    payload = {"stage": "finetune", "model": model.description, "state": model.state_dict()}
    payload |= {"step": 5, "lineage": [{"stage": "finetune", "dataset": "two phase"}]}
    checkpoint.save(folder / "best.ckpt", payload)
    return folder


@pytest.mark.parametrize("layout", export_weights.LAYOUTS)
def test_an_exported_encoder_comes_back_as_it_was(layout: str, tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "w.pth")
    assert _tool("export_weights", tmp_path / "w.pth", "--layout", layout) == 0
    encoder = build_encoder("resnet18", 3)
    weights.load(encoder, tmp_path / f"w-{layout}.pth", in_channels=3)
    expected = _state()
    assert all(torch.equal(v, expected[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_an_export_carries_the_digest_of_its_tensors(ending: str, tmp_path: Path) -> None:
    """D1: a changed tensor is found by us; others read what they always read."""
    torch.save(_state(), tmp_path / "w.pth")
    file = tmp_path / f"out.{ending}"
    assert _tool("export_weights", tmp_path / "w.pth", "--output", file) == 0
    report = weights.load(build_encoder("resnet18", 3), file, in_channels=3)
    assert report.matched == report.total
    state = load_file(file) if ending == "safetensors" else torch.load(file, weights_only=True)
    assert all(torch.equal(state[k], v) for k, v in _state().items())
    state["conv1.weight"] = state["conv1.weight"] + 1
    if ending == "safetensors":
        with safe_open(file, "pt") as opened:
            facts = opened.metadata()
        save_file(state, file, facts)
    else:
        torch.save(state, file)
    with pytest.raises(UserError, match="SHA-256 differs"):
        weights.load(build_encoder("resnet18", 3), file, in_channels=3)


def test_torchvision_itself_takes_the_exported_file(tmp_path: Path) -> None:
    from torchvision import models

    torch.save(_state(1), tmp_path / "w.pth")
    assert _tool("export_weights", tmp_path / "w.pth", "--channels", 3) == 0
    model = models.resnet18(weights=None)
    state = torch.load(tmp_path / "w-torchvision.pth", weights_only=True)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"] and not result.unexpected_keys
    # One channel shared out by thirds sees the same gray image.
    assert torch.allclose(model.conv1.weight.sum(1), _state(1)["conv1.weight"][:, 0], atol=1e-6)


def test_a_fine_tuned_model_is_exported_whole_for_smp(tuned: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    assert _tool("export_weights", tuned, "--layout", "smp", "--output", file) == 0
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)
    theirs.load_state_dict(torch.load(file, weights_only=True), strict=True)
    ours = build_model("resnet18", "unet", 3)
    ours.load_state_dict(torch.load(tuned / "best.ckpt", weights_only=True)["state"])
    x = torch.randn(1, 1, 64, 64)
    assert torch.allclose(theirs.eval()(x), ours.eval()(x), atol=1e-6)


def test_export_does_not_write_over_files_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_state(), tmp_path / "w.pth")
    assert _tool("export_weights", tmp_path / "w.pth") == 0
    assert _tool("export_weights", tmp_path / "w.pth") == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert _tool("export_weights", tmp_path / "empty") == 2
    assert "holds no best.ckpt" in capsys.readouterr().err


def test_inspection_says_who_wrote_a_file_and_what_matches(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": _state(), "author": "DenseCL"}, tmp_path / "dense.pth")
    (tmp_path / "text.pth").write_text("hello")
    files = [tmp_path / "dense.pth", tuned / "best.ckpt", tmp_path / "text.pth"]
    assert _tool("inspect_weights", *files) == 1
    text = capsys.readouterr().out
    assert "torchvision / timm" in text and "DenseCL" in text
    assert "120 of 120 tensors of --encoder resnet18" in text
    assert "unet, 3 classes" in text and "made from     stage finetune" in text
    assert "not usable" in text


def test_inspection_changes_nothing(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "w.pth")
    before = (tmp_path / "w.pth").read_bytes()
    inspect_weights.describe(tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == before


# --- raw state dicts of whole models ---
def _evaluate(*argv: object) -> int:
    return guard(importlib.import_module("eval_model").main, [str(a) for a in argv])


def _raw(tmp_path: Path, decoder: str, classes: int) -> Path:
    torch.manual_seed(0)
    model: Any = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}[decoder](
        "resnet18", encoder_weights=None, in_channels=3, classes=classes
    )
    torch.save(model.state_dict(), tmp_path / "unetplusplus_best.pth")
    return tmp_path / "unetplusplus_best.pth"


@pytest.mark.parametrize(("decoder", "classes"), [("unet", 3), ("unetplusplus", 2)])
def test_a_raw_state_dict_is_evaluated_and_what_was_assumed_is_said(
    decoder: str,
    classes: int,
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = _raw(tmp_path, decoder, classes), tmp_path / "results"
    argv = ["--model_path", path, "--dataset", synthetic_folder, "--output_dir", out]
    argv += ["--input_size", 64, "--no-baselines", "--threads", 1, "--precision", "fp32"]
    assert _evaluate(*argv, "--n_classes", classes) == 0
    text = capsys.readouterr().out
    assert f"{decoder} on resnet18, {classes} classes, 3 channels" in text
    assert "resized to 64 x 64" in text and "ImageNet normalisation" in text
    metrics = json.loads((out / "metrics.json").read_text())
    # Three-class truth is two classes to a two-class model, as published.
    assert len(metrics["classes"]) == classes
    results = json.loads((out / "evaluation_results.json").read_text())
    assert ("pixel_metrics" in results) == (classes == 2)


def test_an_encoder_cannot_segment(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_state(), tmp_path / "w.pth")
    argv = ["--model_path", tmp_path / "w.pth", "--dataset", synthetic_folder]
    assert _evaluate(*argv, "--output_dir", tmp_path / "out") == 2
    assert "no decoder, so it cannot segment" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_listed_with_what_each_file_is_and_whether_it_is_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-21: list, info, validate, summary."""
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    model = build_model("classic_unet-2-2-2-2", "classic_unet", 3)
    payload = {"stage": "finetune", "model": model.description, "state": model.state_dict()}
    checkpoint.save(run / "best.ckpt", {**payload, "step": 5, "progress": {"best": 0.625}})
    torch.save(_state(), run / "plain.pth")
    (run / "notes.txt").write_text("no weights")
    assert _tool("inspect_weights", tmp_path, "--list") == 0
    head, best, plain, total = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["file", "MB", "what", "step"]
    assert re.search(
        r"best.ckpt +\d+\.\d +finetune +5 +classic_unet-2-2-2-2 +classic_unet +3 +62.5 % +sound$",
        best,
    )
    assert re.search(r"plain.pth +44\.\d +torchvision / timm +resnet18 +sound$", plain)
    assert re.fullmatch(r"2 files, \d+\.\d MB: 1 of fine-tuning, 1 of others; 0 not sound", total)

    broken = build_encoder("small_unet", 1).state_dict()
    broken["stem.conv1.weight"][0] = float("nan")
    torch.save(broken, run / "nan.pth")
    (run / "torn.ckpt").write_bytes((run / "best.ckpt").read_bytes()[:1000])
    assert _tool("inspect_weights", tmp_path, "--list") == 1
    told = capsys.readouterr().out.splitlines()
    assert "not sound: numbers are not finite in 1 tensor" in told[2]
    assert told[4].rstrip().split("not sound: ")[1] and "2 not sound" in told[-1]
    assert _tool("inspect_weights", run / "nowhere", "--list") == 2
    (tmp_path / "empty").mkdir()
    assert _tool("inspect_weights", tmp_path / "empty", "--list") == 2
    assert "no weights file below" in capsys.readouterr().err
