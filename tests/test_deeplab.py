"""DeepLabV3+: settings as published, in all commands, refused where it cannot be."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from matssl import weights
from matssl.core.errors import UserError, guard
from matssl.methods.spark.method import SparK
from matssl.models.encoders import build_encoder, encoder_facts, smp
from matssl.models.segmentation import build_model
from matssl.weights.whole import segmentation_model

QUICK = ["--threads", 1, "--precision", "fp32", "--device", "cpu"]


def _run(script: str, *argv: object) -> int:
    return guard(importlib.import_module(script).main, [str(word) for word in (*argv, *QUICK)])


def test_settings_are_those_of_the_paper_at_an_output_stride_of_16() -> None:
    model = build_model("resnet18", "deeplabv3plus", 3)
    assert encoder_facts(model.encoder).strides == (2, 4, 8, 16, 16)
    layers = list(model.decoder.modules())
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    rates = [m.dilation[0] for m in convolutions if m.groups > 1 and m.dilation[0] > 1]
    assert rates == [6, 12, 18]
    assert [m.p for m in layers if isinstance(m, nn.Dropout)] == [0.5]
    assert model.decoder.get_submodule("block1.0").out_channels == 48
    assert model.segmentation_head.get_submodule("0").in_channels == 256
    assert model.multiple == 16


def test_an_encoder_of_the_library_that_is_not_dilated_has_the_same_tensors() -> None:
    model, plain = build_model("resnet18", "deeplabv3plus", 2), build_encoder("resnet18")
    model.encoder.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("name", ["densenet121", "tu-edgenext_xx_small"])
def test_encoders_that_cannot_be_dilated_are_refused_with_the_reason(
    name: str, synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "dilated mode" if name == "densenet121" else "output_stride"
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path / "out"]
    argv += ["--encoder", name, "--decoder", "deeplabv3plus"]
    assert _run("train_finetune", *argv) == 2
    told = capsys.readouterr().err
    assert f"--encoder {name} does not go with --decoder deeplabv3plus" in told and said in told
    assert len(told.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_batch_of_one_is_refused(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path / "out"]
    argv += ["--decoder", "deeplabv3plus", "--batch_size", 1, "--crop_size", 64]
    assert _run("train_finetune", *argv) == 2
    told = capsys.readouterr().err
    assert "--batch_size 1 and --crop_size 64" in told and "--batch_size 2 or more" in told
    assert len(told.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "spark", "--masking", "sparse"], "--masking dense"),
        (["--model", "pscl-simclr"], "--decoder"),
    ],
)
def test_methods_that_cannot_train_it_say_so(
    flags: list[Any],
    said: str,
    pool_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path / "out", *flags]
    assert _run("train_ssl", *argv, "--decoder", "deeplabv3plus") == 2
    told = capsys.readouterr().err
    assert said in told and "deeplabv3plus" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_its_tensors_tell_it_from_the_other_decoders(tmp_path: Path) -> None:
    def described(model: nn.Module) -> dict[str, Any]:
        torch.save(model.state_dict(), tmp_path / "raw.pth")
        found = segmentation_model(weights.read(tmp_path / "raw.pth"))
        return {**found.description, "variant": found.variant}

    kind = {"encoder_weights": None, "in_channels": 1, "classes": 3}
    theirs = smp.DeepLabV3Plus("resnet34", **kind)
    found = described(theirs)
    assert (found["encoder"], found["decoder"]) == ("resnet34", "deeplabv3plus")
    # The rates are in no tensor: those of the library, not those of ours.
    assert found["variant"].rates == (12, 24, 36)
    ours = build_model(**found)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    for other in (smp.DeepLabV3, smp.FPN):
        with pytest.raises(UserError, match=r"U-Net, U-Net\+\+ or DeepLabV3\+"):
            described(other("resnet18", **kind))


def test_a_raw_state_dict_is_evaluated_with_what_it_does_not_say_said(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, in_channels=3, classes=2)
    torch.save(model.state_dict(), tmp_path / "raw.pth")
    argv = ["--model_path", tmp_path / "raw.pth", "--dataset", synthetic_folder, "--no-baselines"]
    argv += ["--input_size", 80, "--output_dir", tmp_path / "results"]
    assert _run("eval_model", *argv) == 0
    told = capsys.readouterr().out
    assert "deeplabv3plus on resnet18, 2 classes" in told and "rates 12, 24, 36 assumed" in told


def test_dense_masking_trains_every_tensor() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 1, dilated=True)
    values = {"decoder": "deeplabv3plus", "masking": "dense", "patch_size": 16}
    method = SparK.from_settings(encoder, 1, (0.5,), (0.25,), values)
    assert isinstance(method, SparK)
    method.check_views(48)
    x = torch.randn(2, 1, 64, 64)
    image, deepest = method.reconstruct(x, torch.eye(4, dtype=torch.bool).expand(2, 1, 4, 4))
    assert image.shape == x.shape and deepest.shape[-2:] == (4, 4)
    image.square().mean().backward()
    trained = (*method.decoder.parameters(), *method.head.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


@pytest.mark.usefixtures("no_drawing")
def test_what_pretraining_learned_reaches_fine_tuning_and_evaluation(
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--model", "spark", "--masking", "dense", "--decoder", "deeplabv3plus", "--steps", 2]
    argv += ["--data_path", pool_folder, "--output_dir", tmp_path, "--name", "p", "--view_size", 64]
    argv += ["--batch_size", 4, "--encoder", "resnet18", "--cache_dir", "none"]
    assert _run("train_ssl", *argv) == 0
    file = tmp_path / "ssl" / "p" / "encoder.safetensors"
    assert weights.architecture(file) == ("resnet18", "deeplabv3plus")
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, "--name", "f"]
    argv += ["--ssl_weights_path", file, "--steps", 2, "--batch_size", 2, "--crop_size", 48]
    assert _run("train_finetune", *argv) == 0
    told = capsys.readouterr().out
    assert "pretrained decoder (deeplabv3plus): all" in told
    run = tmp_path / "finetune" / "f"
    assert yaml.safe_load((run / "config.yaml").read_text())["decoder"] == "deeplabv3plus"
    argv = ["--model_path", run / "best.ckpt", "--dataset", synthetic_folder, "--no-baselines"]
    argv += ["--tile_size", 40, "--overlap", 8, "--output_dir", tmp_path / "results"]
    assert _run("eval_model", *argv) == 0
    assert "mIoU" in capsys.readouterr().out
