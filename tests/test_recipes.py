"""The recipes: the published settings value by value, and what all recipes have to keep."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from matssl.core import flags
from matssl.core.errors import guard
from matssl.data import synthetic
from matssl.decoders import check_side
from matssl.methods import METHODS, distinct, recipes, settings_class
from matssl.methods.settings import GuidedSettings
from matssl.stages.finetune import report as finetune_report
from matssl.stages.finetune import settings as finetune
from matssl.stages.pretrain import report as pretrain_report
from matssl.stages.pretrain import settings, watch

# Sources: MatSSL utils/models/matSSL.py and .env; SimCLR arXiv:2002.05709; MoCo v2 main_moco.py;
# DenseCL configs/selfsup/densecl; BYOL configs/byol.py (1000 epochs).
COMMON = {"encoder": "resnet50", "in_channels": 3, "view_size": 224, "window": "dtype"}
COMMON |= {"d4": "hflip", "gamma": 0.0, "photometry_p": 0.8, "blur_sigma": 2.0, "noise_p": 0.0}
COMMON |= {"momentum": 0.9, "scale_max": 1.0, "clip": 0.0, "group_negatives": "keep"}
MOCO = {"scale_min": 0.2, "brightness": 0.4, "contrast": 0.4, "blur_p": 0.5, "weights": "none"}
MOCO |= {"temperature": 0.2, "global_output_dim": 128, "queue_size": 65536, "hidden_dim": None}
MOCO |= {"ema_momentum": 0.999, "ema_schedule": "constant", "bn_splits": 8, "symmetric": False}
MOCO |= {"optimizer": "sgd", "lr": 0.03, "lr_scaling": "linear", "batch_size": 256}
MOCO |= {"weight_decay": 1e-4, "decay_all": True, "epochs": 200, "schedule": "cosine_epoch"}
MOCO |= {"warmup": 0.0}
# neulmc/PSCL train.py, config.py, data.py.
PSCL = {"encoder": "small_unet", "decoder": "small_unet", "weights": "none", "view_size": 376}
PSCL |= {"first_view": "whole", "scale_min": 0.64, "d4": "full", "brightness": 0.16}
PSCL |= {"contrast": 0.16, "blur_p": 0.0, "blur_sigma": 1.0, "temperature": 0.5, "top_k": 4}
PSCL |= {
    "sample_ratio": 2.0,
    "global_local_ratio": 0.7,
    "global_output_dim": 64,
    "dense_output_dim": 64,
}
PSCL |= {"hidden_dim": 128, "optimizer": "adam", "lr": 1e-4, "lr_scaling": "none"}
PSCL |= {"batch_size": 9, "weight_decay": 0.0, "epochs": 200, "schedule": "constant"}
PSCL |= {"warmup": 0.0, "labeled_sample": "beside"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "matssl": {
        "weights": "imagenet",
        "scale_min": 0.2,
        "brightness": 0.4,
        "contrast": 0.4,
        "blur_p": 0.5,
        "temperature": 0.07,
        "hidden_dim": 2048,
        "global_output_dim": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "lr_scaling": "none",
        "batch_size": 32,
        "weight_decay": 1e-6,
        "decay_all": True,
        "epochs": 100,
        "schedule": "cosine_epoch",
        "warmup": 0.0,
    },
    "simclr": {
        "weights": "none",
        "scale_min": 0.08,
        "brightness": 0.8,
        "contrast": 0.8,
        "blur_p": 0.5,
        "temperature": 0.1,
        "global_output_dim": 128,
        "optimizer": "lars",
        "lr": 0.3,
        "lr_scaling": "linear",
        "batch_size": 4096,
        "weight_decay": 1e-6,
        "epochs": 100,
        "schedule": "cosine",
        "warmup": 0.1,
    },
    "mocov2": MOCO,
    "densecl": {
        **{name: value for name, value in MOCO.items() if name != "symmetric"},
        "dense_weight": 0.5,
        "dense_output_dim": 128,
        "dense_match": "features",
        "dense_stage": 4,
        "dense_warmup_steps": 0,
    },
    "pscl": PSCL,
    "pscl-simclr": PSCL,
    "pscl-moco": {
        **PSCL,
        "top_k": 30,
        "queue_size": 504,
        "queue_limit": "none",
        "soft_targets": "raw",
        "scale_mix": "cells",
        "ema_momentum": 0.99,
        "ema_schedule": "constant",
        "bn_splits": 1,
    },
    # CVMI-Lab/SlotCon scripts/slotcon_coco_r50_800ep.sh, main_pretrain.py.
    "slotcon": {
        "weights": "none",
        "scale_min": 0.08,
        "brightness": 0.4,
        "contrast": 0.4,
        "blur_p": 1.0,
        "second_blur_p": 0.1,
        "solarise_p": 0.0,
        "second_solarise_p": 0.2,
        "prototypes": 256,
        "group_loss_weight": 0.5,
        "teacher_temperature": 0.07,
        "student_temperature": 0.1,
        "center_momentum": 0.9,
        "temperature": 0.2,
        "dense_stage": 4,
        "hidden_dim": 4096,
        "global_output_dim": 256,
        "ema_momentum": 0.99,
        "ema_schedule": "cosine",
        "optimizer": "lars_byol",
        "lr": 1.0,
        "lr_scaling": "linear",
        "batch_size": 512,
        "weight_decay": 1e-5,
        "epochs": 800,
        "schedule": "cosine",
        "warmup": 0.00625,
    },
    # keyu-tian/SparK pretrain/utils/arg_util.py, README.md.
    "spark": {
        "weights": "none",
        "scale_min": 0.67,
        "brightness": 0.0,
        "contrast": 0.0,
        "photometry_p": 0.0,
        "blur_p": 0.0,
        "blur_sigma": 1.0,
        "masking": "sparse",
        "mask_ratio": 0.6,
        "patch_size": 32,
        "target": "patches",
        "decoder": "light",
        "hidden_dim": None,
        "optimizer": "lamb",
        "lr": 2e-4,
        "lr_scaling": "linear",
        "batch_size": 4096,
        "weight_decay": 0.04,
        "weight_decay_end": 0.2,
        "epochs": 1600,
        "schedule": "cosine_floor",
        "warmup": 0.025,
        "clip": 5.0,
    },
    # facebookresearch/vicreg main_vicreg.py, augmentations.py.
    "vicreg": {
        "weights": "none",
        "scale_min": 0.08,
        "brightness": 0.4,
        "contrast": 0.4,
        "blur_p": 1.0,
        "second_blur_p": 0.1,
        "solarise_p": 0.0,
        "second_solarise_p": 0.2,
        "invariance_weight": 25.0,
        "variance_weight": 25.0,
        "covariance_weight": 1.0,
        "hidden_dim": 8192,
        "global_output_dim": 8192,
        "optimizer": "lars_byol",
        "lr": 0.2,
        "lr_scaling": "linear",
        "batch_size": 2048,
        "weight_decay": 1e-6,
        "epochs": 1000,
        "schedule": "cosine",
        "warmup": 0.01,
    },
    "byol": {
        "weights": "none",
        "scale_min": 0.08,
        "brightness": 0.4,
        "contrast": 0.4,
        "blur_p": 1.0,
        "second_blur_p": 0.1,
        "solarise_p": 0.0,
        "second_solarise_p": 0.2,
        "hidden_dim": 4096,
        "global_output_dim": 256,
        "ema_momentum": 0.996,
        "ema_schedule": "cosine",
        "optimizer": "lars_byol",
        "lr": 0.2,
        "lr_scaling": "linear",
        "batch_size": 4096,
        "weight_decay": 1.5e-6,
        "epochs": 1000,
        "schedule": "cosine",
        "warmup": 0.01,
    },
}


def _parse(*argv: str) -> dict[str, Any]:
    model = flags.peek(argv, "model") or "matssl"
    guided = issubclass(settings_class(model), GuidedSettings)
    argv = ("--labeled_path", "x", *argv) if guided else argv
    resolved = settings.resolve(["--data_path", "x", *argv])
    return flags.to_dict(resolved.run, resolved.method)


def test_pscl_is_another_name_of_pscl_simclr() -> None:
    assert METHODS["pscl"] == METHODS["pscl-simclr"]
    for recipe in ("paper", "matssl"):
        one, other = (
            _parse("--model", name, "--recipe", recipe) for name in ("pscl", "pscl-simclr")
        )
        assert {**one, "model": "pscl-simclr"} == other


def test_every_method_has_a_line_in_the_table_and_two_recipes() -> None:
    for model in METHODS:
        for recipe in ("paper", "matssl"):
            assert (Path(recipes(model)) / f"{recipe}.yaml").is_file()


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_paper_recipe_has_the_published_values(model: str) -> None:
    resolved = _parse("--model", model, "--recipe", "paper")
    expected = {**COMMON, **PUBLISHED[model], "steps": None}
    if "group_negatives" not in resolved:
        # A method without negatives.
        del expected["group_negatives"]
    assert {key: resolved[key] for key in expected} == expected


@pytest.mark.parametrize("model", METHODS)
def test_the_own_recipe_fits_small_sets_on_any_machine(model: str) -> None:
    resolved = _parse("--model", model)
    expected = {"encoder": "resnet18", "in_channels": 1, "batch_size": 32, "weights": "none"}
    expected |= {"window": "standard", "d4": "full"}
    # A smaller batch takes smaller steps.
    expected |= {"lr_scaling": "sqrt_32"}
    assert {name: resolved[name] for name in expected} == expected
    assert resolved.get("queue_size") is None and resolved["lr"] <= 1e-3
    # Half of 3000 steps leave 3 per cent of the start in the momentum network, or less.
    assert resolved.get("ema_momentum", 0.0) ** 1500 < 0.03


def test_fine_tuning_of_pscl_has_its_published_settings() -> None:
    # neulmc/PSCL config_run.py, one labelled image; Adam is AdamW without decay.
    words = ["--finetune_dataset", "x", "--recipe", "pscl"]
    resolved = flags.to_dict(finetune.resolve(words))
    expected: dict[str, Any] = {"encoder": "small_unet", "decoder": "small_unet", "epochs": 1000}
    expected |= {"lr": 1e-3, "encoder_lr_factor": 0.1, "schedule": "constant", "warmup": 0.0}
    expected |= {"weight_decay": 0.0, "batch_size": 1, "crop_size": 376, "loss": "dice_ce"}
    expected |= {"val_fraction": 0.0}
    expected |= {"d4": "full", "brightness": 0.08, "contrast": 0.08, "ema": 0.0, "clip": 0.0}
    assert {name: resolved[name] for name in expected} == expected


# --- every recipe starts: a step on a tiny set, all but batch and encoder as the recipe has it
@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    synthetic.write_pool(folder / "pool", n=16, size=48, seed=0)
    synthetic.write_dataset(
        folder / "set", "two_phase", n_train=2, n_val=1, n_test=1, size=48, seed=0
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "matssl"])
@pytest.mark.parametrize("model", distinct())
def test_every_recipe_of_pretraining_starts(
    model: str,
    recipe: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
) -> None:
    """B13."""
    monkeypatch.setattr(watch, "WATCHED_SAMPLES", 2)
    for name in ("draw_panel", "draw_curves"):
        monkeypatch.setattr(pretrain_report, name, lambda run: None)
    argv = ["--model", model, "--recipe", recipe, "--data_path", tiny / "pool"]
    found = _parse("--model", model, "--recipe", recipe)
    if "labeled_path" in found:
        argv += ["--labeled_path", tiny / "set"]
    if found["encoder"] == "small_unet":
        # Three poolings of 376 pixels end at an odd side, as those of 120, in a tenth of the time.
        check_side("small_unet", found["view_size"])
        argv += ["--view_size", 120]
    else:
        # Of the same layers as a ResNet, a thirtieth of its size.
        argv += ["--encoder", "tu-test_resnet", "--weights", "none"]
    if (found.get("hidden_dim") or 0) > 2048:
        argv += ["--hidden_dim", 64, "--global_output_dim", 64]
    batch = max(2, 2 * found.get("bn_splits", 1))
    argv += ["--batch_size", batch, "--steps", 1, "--output_dir", tmp_path, "--name", "x"]
    argv += ["--threads", 1, "--precision", "fp32", "--device", "cpu", "--quiet"]
    main = importlib.import_module("train_ssl").main
    assert guard(main, [str(word) for word in argv]) == 0
    assert (tmp_path / "ssl" / "x" / "encoder.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(path.stem for path in Path(finetune.RECIPES).iterdir()))
def test_every_recipe_of_fine_tuning_starts(
    recipe: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    """B13: --recipe pscl refused its own crops of 376 pixels."""
    monkeypatch.setattr(finetune_report, "SHOWN_PANELS", 0)
    argv = ["--finetune_dataset", tiny / "set", "--recipe", recipe]
    found = finetune.resolve([str(word) for word in argv])
    argv += ["--batch_size", min(2, found.batch_size)]
    if found.encoder != "small_unet":
        argv += ["--encoder", "tu-test_resnet", "--weights", "none"]
    if found.classes not in (None, "binary"):
        # The synthetic set has three classes, MetalDAM five.
        argv += ["--classes", "a,b,c"]
    argv += ["--steps", 1, "--output_dir", tmp_path, "--name", "x"]
    argv += ["--threads", 1, "--precision", "fp32", "--device", "cpu", "--quiet"]
    main = importlib.import_module("train_finetune").main
    assert guard(main, [str(word) for word in argv]) == 0
    assert (tmp_path / "finetune" / "x" / "best.ckpt").is_file()
