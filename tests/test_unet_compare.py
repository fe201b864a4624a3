"""Settings files of unet-compare: its keys, its lists of images, both modes, its result files."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

import eval_model
import train_finetune
import train_ssl
from matssl import Segmenter, hub, weights
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.data import crops, layouts
from matssl.data.crops import CropAugmentation, CropLoader, Labelled
from matssl.data.layouts import Lists
from matssl.data.preprocess import Preprocess
from matssl.metrics import overlap
from matssl.models.segmentation import build_model
from matssl.stages import unet_compare, unet_compare_keys
from matssl.stages.finetune import scores
from matssl.stages.finetune import settings as finetune

STEADY = ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
# Of the tiny network, which learns the tiny set in a few steps.
SMALL: dict[str, Any] = {
    "dataset_name": "bubbles",
    "encoder_filters": [4, 8, 8, 16, 16],
    "decoder_filters": [16, 8, 8, 4],
    "batchnorm": True,
    "learning_rate": 0.01,
    "batch_size": 8,
    "num_epochs": 2,
    "augment": False,
}
PICTURES, TILES, SIDE = 4, 4, 32


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data/bubbles: four pictures of four tiles each, bright on dark."""
    root = tmp_path_factory.mktemp("work")
    folder = root / "data" / "bubbles"
    draw = np.random.default_rng(0)
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    for picture in range(1, PICTURES + 1):
        for tile in range(1, TILES + 1):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for _ in range(3):
                place = tuple(int(v) for v in draw.integers(5, SIDE - 5, 2))
                cv2.circle(mask, place, int(draw.integers(3, 6)), 255, -1)
            grey = 70 + 10 * picture + 90 * (mask > 0) + draw.normal(0, 6, mask.shape)
            name = f"{picture}_{tile}.png"
            cv2.imwrite(str(folder / "images" / name), grey.clip(0, 255).astype(np.uint8))
            cv2.imwrite(str(folder / "annotations" / name), mask)
    # A hidden file of a desktop is no image.
    (folder / "images" / ".DS_Store").write_bytes(b"\0")
    return root


def _write(home: Path, name: str, **content: object) -> str:
    (home / name).write_text(json.dumps(content))
    return name


def _run(home: Path, script: Any, *words: object) -> int:
    with contextlib.chdir(home):
        return guard(script.main, [str(word) for word in (*words, *STEADY, "--quiet")])


def _train(home: Path, name: str, *words: object, **content: object) -> Path:
    """The folder of a training by a file of this content over the small one."""
    out = f"out_{name}"
    file = _write(home, f"{name}.json", **{**SMALL, "results_dir": out, **content})
    assert _run(home, train_finetune, "--config", file, *words) == 0
    return home / out


def _png(path: Path) -> Any:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _said(script: Any, home: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a refused command says."""
    before = sorted(home.iterdir())
    assert _run(home, script, *words) == 2
    assert sorted(home.iterdir()) == before
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1
    return told


def _refused(**content: object) -> str:
    with pytest.raises(UserError) as error:
        unet_compare_keys.read({"dataset_name": "gb", **content}, "X.json")
    return str(error.value)


def _ours(**content: object) -> dict[str, Any]:
    return unet_compare.training({"dataset_name": "gb", **content}, "X.json")


# --- whose file it is ---
def test_a_settings_file_is_known_by_its_keys(home: Path) -> None:
    """U-01, U-02: one name that is no flag here is enough; a file of ours stays one of ours."""
    with contextlib.chdir(home):
        file = _write(home, "whose.json", dataset_name="bubbles")
        found = finetune.resolve(["--config", file])
        assert found.encoder == "classic_unet" and found.finetune_dataset == "data/bubbles"
        file = _write(home, "whose.json", finetune_dataset="x", batch_size=2, patience=3)
        found = finetune.resolve(["--config", file])
        assert (found.encoder, found.batch_size, found.patience) == ("auto", 2, 3)


@pytest.mark.parametrize(
    ("content", "owners"),
    [
        ({"dataset_name": "bubbles", "steps": 3}, ("unet-compare", "this toolkit")),
        (
            {"model": {}, "training": {}, "data": {}, "num_epochs": 2},
            ("the SimCLR study", "unet-compare"),
        ),
        ({"model": {}, "training": {}, "data": {}, "steps": 2}, ("SimCLR study", "this toolkit")),
    ],
)
def test_a_mixture_is_refused_and_both_are_named(
    content: dict[str, Any], owners: Sequence[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _write(home, "mixed.json", **content)
    told = _said(train_finetune, home, capsys, "--config", file)
    assert "mixes settings" in told and all(owner in told for owner in owners)


def test_each_mode_names_the_command_that_runs_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """U-02 operation_mode."""
    predict = {"operation_mode": "inference", "dataset_name": "bubbles", "model_path": "x.ckpt"}
    file = _write(home, "mode.json", **predict)
    told = _said(train_finetune, home, capsys, "--config", file)
    assert "python eval_model.py --config mode.json" in told
    file = _write(home, "mode.json", **SMALL)
    told = _said(eval_model, home, capsys, "--config", file)
    assert "python train_finetune.py --config mode.json" in told
    told = _said(train_ssl, home, capsys, "--config", file, "--data_path", "data")
    assert "python train_finetune.py --config mode.json" in told


# --- U-02: the keys ---
def test_every_key_has_its_default() -> None:
    """U-02, the whole table."""
    found = unet_compare_keys.read({"dataset_name": "gb"}, "X.json")
    assert found == {
        "operation_mode": "train",
        "dataset_name": "gb",
        "results_dir": None,
        "encoder_name": "UNet",
        "decoder_name": "UNet",
        "encoder_filters": [64, 128, 256, 512, 1024],
        "decoder_filters": [512, 256, 128, 64, 32],
        "batchnorm": False,
        "backbone_weights": None,
        "backbone_finetuning": True,
        "learning_rate": 1e-4,
        "L2_regularization_strength": 0.0,
        "monitor_f1": False,
        "metric_threshold": 0.5,
        "batch_size": 4,
        "num_epochs": 50,
        "augment": True,
        "cross_validation": False,
        "num_folds": None,
        "early_stopping": None,
        "patience": None,
        "training_set": None,
        "validation_set": None,
        "auto_split": None,
        "model_summary": True,
        "model_path": None,
    }


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("operation_mode", ["fit", 1, None]),
        ("dataset_name", ["x", "", 3, None]),
        ("results_dir", [3, ""]),
        ("encoder_name", ["ResNet", None]),
        ("decoder_name", ["unet", 2]),
        ("encoder_filters", [[1, 2], [64, 128, 256, 512, 0], "64", [1.5] * 5, None]),
        ("decoder_filters", [[], [8, 8, 8], [8] * 6, [8, 8, 8, -1], None]),
        ("batchnorm", ["true", 1, None]),
        ("backbone_weights", ["ImageNet", True]),
        ("backbone_finetuning", [[0], [8], [5, 5], "all", [], None]),
        ("learning_rate", [0, 1, "1e-4", True, None]),
        ("L2_regularization_strength", [-1e-9, 1, None]),
        ("monitor_f1", [0, None]),
        ("metric_threshold", [0, 1, None]),
        ("batch_size", [0, 2.5, "4", True, None]),
        ("num_epochs", [0, -1, None]),
        ("augment", ["no", None]),
        ("cross_validation", [1, None]),
        ("num_folds", [1, 2.0]),
        ("early_stopping", ["yes"]),
        ("patience", [0, 1.5]),
        ("training_set", [[], "a.png", [1]]),
        ("validation_set", [[], "a.png"]),
        ("auto_split", [0, 1, "0.2"]),
        ("model_summary", [1, None]),
        ("model_path", [3]),
    ],
)
def test_values_of_another_type_or_range_are_refused(key: str, wrong: list[Any]) -> None:
    """U-02, key by key."""
    assert set(unet_compare_keys.KEYS) >= {key}
    for value in wrong:
        assert key in _refused(**{key: value}), value


def test_all_that_is_wrong_is_told_at_once() -> None:
    told = _refused(num_epochs="ten", batch_size=0, l2_reg=0.1)
    assert all(word in told for word in ("num_epochs", "batch_size", "l2_reg"))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("l2_reg", "L2_regularization_strength"),
        ("dataset_prefix", "dataset_name"),
        ("training_mode", "operation_mode"),
        ("num_epoch", "num_epochs"),
        ("Batch_Size", "batch_size"),
        ("monitorf1", "monitor_f1"),
        ("decoder_filter", "decoder_filters"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(key: str, meant: str) -> None:
    """F-U16: three of the four documented files have such names, which were ignored."""
    assert f"unknown key '{key}'; did you mean {meant}?" in _refused(**{key: 1})


def test_settings_are_those_of_the_file() -> None:
    """U-02 to U-07: what each key becomes here."""
    found = _ours()
    assert found["encoder"] == found["decoder"] == "classic_unet"
    assert (found["lr"], found["l2"], found["batch_size"], found["epochs"]) == (1e-4, 0.0, 4, 50)
    assert (found["loss"], found["monitor"], found["threshold"]) == ("ce", "loss", 0.5)
    assert (found["d4"], found["epoch_views"], found["val_epochs"]) == ("each", 8, 1)
    assert (found["weights"], found["finetune_blocks"], found["patience"]) == ("none", "all", 0)
    assert found["auto_split"] == 0.4 and "folds" not in found
    assert (found["schedule"], found["warmup"], found["weight_decay"]) == ("constant", 0.0, 0.0)
    found = _ours(
        decoder_name="UNet++",
        monitor_f1=True,
        metric_threshold=0.3,
        augment=False,
        early_stopping=True,
        patience=7,
        L2_regularization_strength=1e-3,
        validation_set=["a"],
    )
    assert (found["decoder"], found["monitor"], found["threshold"]) == (
        "classic_unetplusplus",
        "f1",
        0.3,
    )
    assert (found["d4"], found["epoch_views"], found["patience"]) == ("none", 1, 7)
    assert (found["l2"], found["validation_set"]) == (1e-3, ["a"]) and "auto_split" not in found
    found = _ours(cross_validation=True, num_folds=5)
    assert (found["folds"], found["training_set"]) == ("5", ["all"]) and "auto_split" not in found
    assert _ours(cross_validation=True, num_folds=2, training_set=["a"])["training_set"] == ["a"]


@pytest.mark.parametrize(
    ("chosen", "start", "learn"),
    [
        (True, "imagenet", "1,2,3,4,5,6,7"),
        (False, "imagenet", "none"),
        ([7, 5, 6], "imagenet", "5,6,7"),
        ([5], "random", "all"),
    ],
)
def test_blocks_of_the_backbone_are_chosen_as_there(chosen: Any, start: str, learn: str) -> None:
    """U-06: of ImageNet weights all, none or these; BatchNorm frozen; of random ones all learn."""
    content = {"encoder_name": "EfficientNetB7", "backbone_weights": start}
    found = _ours(**content, backbone_finetuning=chosen)
    assert found["encoder"] == "efficientnet-b7" and found["finetune_blocks"] == learn
    assert found["weights"] == ("imagenet" if start == "imagenet" else "none")
    assert "encoder_filters" not in found


def test_imagenet_weights_of_the_backbone_are_fetched_by_a_command_that_is_named() -> None:
    """U-02 backbone_weights: nothing is fetched unasked, and nothing else is taken instead."""
    entry = hub.imagenet("efficientnet-b7")
    assert entry is not None
    if not entry.path.is_file():
        with pytest.raises(UserError, match="fetch_weights imagenet-efficientnet-b7"):
            weights.imagenet(torch.nn.Identity(), "efficientnet-b7", 3)


def test_the_backbone_needs_to_be_told_its_start_and_five_decoder_filters() -> None:
    told = _refused(encoder_name="EfficientNetB7")
    assert "backbone_weights must be random or imagenet" in told
    content = {"encoder_name": "EfficientNetB7", "backbone_weights": "random"}
    assert "5 numbers" in _refused(**content, decoder_filters=[8, 8, 8, 8])


def test_patience_and_early_stopping_go_together() -> None:
    """F-U17: each without the other was ignored or failed; folds would stop at different epochs."""
    assert "early_stopping needs patience" in _refused(early_stopping=True)
    for content in ({"patience": 3}, {"patience": 3, "early_stopping": False}):
        assert "patience acts with early_stopping true alone" in _refused(**content)
    both = {"early_stopping": True, "patience": 3, "cross_validation": True, "num_folds": 3}
    assert "early_stopping and cross_validation exclude each other" in _refused(**both)


def test_folds_are_counted() -> None:
    """F-U18: null folds passed; a fold for each image, which was forbidden, is allowed."""
    assert "cross_validation needs num_folds" in _refused(cross_validation=True)
    assert "num_folds acts with cross_validation" in _refused(num_folds=3)
    held = _refused(cross_validation=True, num_folds=3, validation_set=["a"])
    assert "do not go with cross_validation" in held


def test_two_words_on_what_validates_are_one_too_many() -> None:
    """U-03."""
    both = _refused(training_set=["a", "b"], validation_set=["b"])
    assert "both name b" in both
    assert "give one of them" in _refused(validation_set=["b"], auto_split=0.2)


def test_keys_without_effect_are_said(home: Path) -> None:
    """U-02: what a file says in vain, and a batch size that is no power of 2."""
    content = {**SMALL, "batch_size": 6, "backbone_finetuning": [5], "model_path": "x.ckpt"}
    told = "\n".join(unet_compare.notes(content, "X.json"))
    assert "read as a file of unet-compare" in told and "no power of 2" in told
    assert "without effect in this file: model_path, backbone_finetuning" in told


def test_flags_beat_the_file(home: Path) -> None:
    with contextlib.chdir(home):
        file = _write(home, "beaten.json", **SMALL)
        found = finetune.resolve(["--config", file, "--epochs", "9", "--results_dir", "there"])
    assert (found.epochs, found.results_dir, found.batch_size) == (9, "there", 8)


def test_a_data_set_is_below_data_or_a_path(home: Path, tmp_path: Path) -> None:
    """U-04."""
    with contextlib.chdir(home):
        assert unet_compare.folder("bubbles") == "data/bubbles"
        assert unet_compare.folder(str(tmp_path)) == str(tmp_path)
        assert unet_compare.folder("absent") == "data/absent"


def test_the_folder_of_the_results_has_data_mode_and_time_in_its_name() -> None:
    """U-02 results_dir: null."""
    clock = r"\(\d{4}-\d\d-\d\d\)_\(\d\d-\d\d-\d\d\)"
    found = _ours(decoder_name="UNet++", cross_validation=True, num_folds=2)["results_dir"]
    assert re.fullmatch(rf"results_gb_train_UNet_UNet\+\+_crossval_{clock}", found)
    content = {"operation_mode": "inference", "dataset_name": "data/gb", "model_path": "x"}
    found = unet_compare.inference(content, "X.json")["results_dir"]
    assert re.fullmatch(rf"results_gb_inference_{clock}", str(found))


# --- U-03: which images validate ---
def _parted(home: Path, regex: str | None = None, **lists: Any) -> dict[str, list[str]]:
    folder = home / "data" / "bubbles"
    found = layouts.find(folder, lists=Lists(**lists), group_regex=regex)
    parts: dict[str, list[str]] = {}
    for pair in found.pairs:
        parts.setdefault(pair.split, []).append(pair.image.stem)
    parts["notes"] = list(found.notes)
    return parts


def _tiles(*pictures: int) -> list[str]:
    return [f"{picture}_{tile}" for picture in pictures for tile in range(1, TILES + 1)]


def test_lists_of_whole_pictures_are_taken_as_they_are(home: Path) -> None:
    """U-03, with the rest as a test (F-U21: there was none)."""
    found = _parted(home, training=tuple(_tiles(1, 2)), validation=tuple(_tiles(3)))
    assert found["train"] == _tiles(1, 2) and found["val"] == _tiles(3)
    assert found["test"] == _tiles(4)
    found = _parted(home, training=tuple(f"{name}.png" for name in _tiles(1, 2)))
    assert found["train"] == _tiles(1, 2) and found["val"] == _tiles(3, 4)
    found = _parted(home, validation=tuple(_tiles(2)))
    assert found["train"] == _tiles(1, 3, 4) and found["val"] == _tiles(2)
    assert any(
        "none tests, so scores are of images that chose the model" in n for n in found["notes"]
    )


def test_a_share_validates_by_whole_pictures(home: Path) -> None:
    """U-03 auto_split, F-U15."""
    found = _parted(home, share=0.25)
    pictures = {part: {name[0] for name in found[part]} for part in ("train", "val")}
    assert not pictures["train"] & pictures["val"] and len(pictures["val"]) == 1
    again = _parted(home, share=0.25)
    assert again["val"] == found["val"]
    found = _parted(home, training=tuple(_tiles(1, 2)), share=0.5)
    assert {name[0] for name in found["train"]} | {name[0] for name in found["val"]} == {"1", "2"}
    assert len(found["val"]) == TILES and sorted(found["test"]) == _tiles(3, 4)


def test_tiles_of_one_picture_are_never_on_both_sides(home: Path) -> None:
    """F-U15: in the documented split every validation tile has three siblings in training."""
    train = tuple(f"{p}_{t}" for p in range(1, 5) for t in (1, 2, 3))
    val = tuple(f"{p}_4" for p in range(1, 5))
    found = _parted(home, training=train, validation=val)
    pictures = {part: {name[0] for name in found[part]} for part in ("train", "val")}
    assert not pictures["train"] & pictures["val"]
    assert len(found["train"]) == 12 and len(found["val"]) == 4
    assert any(
        "4 images of 4 to validate show pictures that also train" in n for n in found["notes"]
    )
    # Who says that each tile is a specimen of its own has the lists as they are.
    found = _parted(home, regex="(.+)", training=train, validation=val)
    assert sorted(found["train"]) == sorted(train) and sorted(found["val"]) == sorted(val)


def test_a_few_shared_pictures_go_to_the_side_that_has_most_of_them(home: Path) -> None:
    found = _parted(
        home, training=tuple([*_tiles(1), "2_1"]), validation=tuple([*_tiles(3), "2_2", "2_3"])
    )
    assert found["train"] == _tiles(1)
    assert sorted(found["val"]) == ["2_1", "2_2", "2_3", *_tiles(3)]
    # What no list names gives way to what one names: the rest of picture 1 is left out.
    found = _parted(home, training=("1_1", "1_2"))
    assert found["train"] == ["1_1", "1_2"] and found["val"] == _tiles(2, 3, 4)
    assert any(
        "2 images of pictures that train or validate are in no list" in n for n in found["notes"]
    )


def test_lists_that_name_nothing_and_shares_that_leave_nothing_are_refused(home: Path) -> None:
    """U-03: a name must exist; a share leaves one image to train on (below 1 - 1/n)."""
    with pytest.raises(UserError, match=r"training set \(--training_set\) names '9_9' in train"):
        _parted(home, training=("1_1", "9_9"))
    with pytest.raises(UserError, match="both name 1_1"):
        _parted(home, training=("1_1", "1_2"), validation=("1_1.png",))
    with pytest.raises(UserError, match="--auto_split 0.8 of 4 images .* leaves none"):
        _parted(home, training=tuple(_tiles(1)), share=0.8)


def test_a_test_of_the_folder_stays_closed(synthetic_folder: Path) -> None:
    """What a folder calls a test is none of the images that a share parts."""
    found = layouts.find(synthetic_folder, lists=Lists(share=0.5))
    parts = {split: len(found.split(split)) for split in found.splits}
    assert parts["test"] == 2 and parts["train"] + parts["val"] == 6


def test_folds_are_of_the_list_or_of_all(home: Path) -> None:
    """U-03: cross-validation on the training list, else on all images."""
    found = _parted(home, training=("all",), folds=True)
    assert sorted(found["train"]) == _tiles(1, 2, 3, 4) and "val" not in found
    found = _parted(home, training=tuple(_tiles(1, 2)), folds=True)
    assert found["train"] == _tiles(1, 2) and found["test"] == _tiles(3, 4)


# --- U-07: what is learned from, and by what it is measured ---
def test_an_epoch_shows_each_image_in_each_of_its_eight_orientations() -> None:
    """U-07: four turns, each mirrored too, once each."""
    plane = np.arange(256, dtype=np.float32).reshape(16, 16) / 256
    planes = (plane, plane + 1)
    mask = np.zeros((16, 16), np.uint8)
    data = Labelled(planes, (mask, mask), (), ((8, None),) * 2)
    record = Preprocess(window="dtype", mean=(0.0,), std=(1.0,))
    loader = CropLoader(data, record, 2, CropAugmentation(16, 0.0, "each"), 4, seed=3)
    seen = [image.numpy()[0] for images, _ in loader.batches(0, 4) for image in images]
    for number in range(2):
        own = {part.tobytes() for part in seen if (part.min() >= 1) == (number == 1)}
        turned = [
            np.rot90(m, k) for m in (planes[number], planes[number][:, ::-1]) for k in range(4)
        ]
        assert own == {np.ascontiguousarray(part).tobytes() for part in turned}
    assert len(seen) == 16


def test_its_loss_is_the_cross_entropy_of_two_classes() -> None:
    """U-07: binary cross-entropy of a sigmoid is that of the softmax of two logits."""
    torch.manual_seed(0)
    logits, target = torch.randn(2, 2, 5, 4), torch.randint(0, 2, (2, 5, 4))
    from matssl.models import losses

    sigmoid = (logits[:, 1] - logits[:, 0]).sigmoid()
    wanted = torch.nn.functional.binary_cross_entropy(sigmoid, target.float())
    assert float(losses.cross_entropy(logits, target)) == pytest.approx(float(wanted), rel=1e-5)


def test_f1_precision_and_recall_are_those_of_the_counts() -> None:
    """U-07, worked example 9 of the reference: TP 60, FP 20, FN 40."""
    counts = np.array([[880, 20], [40, 60]])
    found = scores.figures(counts)
    assert found == pytest.approx({"precision": 0.75, "recall": 0.6, "f1": 0.6667}, abs=1e-4)
    course = scores.Course()
    course.add(1.0, (20, 15, 10))
    course.add(2.0, (40, 5, 30))
    row = course.row()
    assert row["train_loss"] == 1.5 and row["train_f1"] == pytest.approx(found["f1"])
    assert scores.Course.read(course.stored()) == course


def test_the_monitor_chooses_what_the_kept_model_is_the_best_in() -> None:
    """U-02 monitor_f1; F-U17: patience follows the same number."""
    counts = np.array([[880, 20], [40, 60]])
    assert scores.monitored("f1", counts, 0.3) == pytest.approx(2 / 3, abs=1e-3)
    assert scores.monitored("loss", counts, 0.3) == -0.3
    assert scores.monitored("miou", counts, 0.3) == overlap.miou(counts)


# --- both modes, end to end ---
@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    return _train(
        home,
        "whole",
        num_epochs=3,
        L2_regularization_strength=1e-3,
        metric_threshold=0.4,
        training_set=_tiles(1, 2),
        validation_set=_tiles(3),
    )


def test_a_training_leaves_the_files_of_unet_compare(trained: Path) -> None:
    """U-01, U-08: its names beside ours."""
    names = {path.name for path in trained.iterdir()}
    assert names >= {"metrics.csv", "metrics.png", "train_preds", "val_preds", "configs.json"}
    assert names >= {
        "model_summary.out",
        "trainable.out",
        "best.ckpt",
        "report.html",
        "splits.json",
    }
    config = json.loads((trained / "configs.json").read_text())
    assert config["num_epochs"] == 3 and config["decoder_name"] == "UNet"
    assert set(config) == set(unet_compare_keys.KEYS)
    splits = json.loads((trained / "splits.json").read_text())
    assert splits["val"] == [f"{name}.png" for name in _tiles(3)]
    assert splits["test"] == [f"{name}.png" for name in _tiles(4)]
    summary = (trained / "model_summary.out").read_text()
    assert "encoder.blocks.0.layers.conv1" in summary and "4 x 32 x 32" in summary
    assert "encoder.blocks.0.layers.conv1 True" in (trained / "trainable.out").read_text()


def test_metrics_csv_has_the_columns_by_their_names(trained: Path) -> None:
    """U-08, F-U4: there, columns were read by number, so that "loss" showed recall."""
    rows, log = _rows(trained / "metrics.csv"), _rows(trained / "log.csv")
    assert list(rows[0]) == [
        "epoch",
        *(f"{p}{n}" for p in ("", "val_") for n in ("F1Score", "loss", "precision", "recall")),
        "l2",
    ]
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for row, other in zip(rows, log, strict=True):
        assert row["recall"] == other["train_recall"] and row["val_loss"] == other["val_loss"]
        assert row["F1Score"] == other["train_f1"] and row["precision"] == other["train_precision"]


def test_the_l2_term_is_logged_apart(trained: Path) -> None:
    """F-U21: there it is part of "BCE" and of what the model is chosen by."""
    steps = _rows(trained / "steps.csv")
    assert all(float(row["l2"]) > 0.05 for row in steps)
    # Eight images in batches of eight: a step an epoch.
    assert [float(r["loss"]) for r in _rows(trained / "metrics.csv")] == pytest.approx(
        [float(row["loss"]) for row in steps], rel=1e-5
    )
    model = checkpoint.load(trained / "last.ckpt", stage="finetune")["state"]
    own = {k: v for k, v in model.items() if v.ndim == 4 and not k.startswith("ema.")}
    squares = sum(float(v.double().square().sum()) for v in own.values())
    assert float(steps[-1]["l2"]) == pytest.approx(1e-3 * squares, rel=0.2)


def test_the_best_epoch_is_that_of_the_lowest_loss_without_the_l2_term(trained: Path) -> None:
    """F-U21, U-02 monitor_f1 false."""
    losses = [float(row["val_loss"]) for row in _rows(trained / "metrics.csv")]
    best = checkpoint.load(trained / "best.ckpt", stage="finetune")
    assert best["step"] == 1 + int(np.argmin(losses))


def test_stored_predictions_are_255_times_the_probability(trained: Path, home: Path) -> None:
    """F-U2, U-08: no stretch; the threshold means the same in every picture."""
    model = Segmenter.load(trained, device="cpu", precision="fp32")
    images = home / "data" / "bubbles" / "images"
    for place, name in (("train_preds", "1_1"), ("val_preds", "3_2")):
        stored = _png(trained / place / f"{name}.png")
        seen = model.record.tensor(model.record.plane(model.record.read(images / f"{name}.png")))
        with torch.inference_mode():
            logits = model.network.model(torch.from_numpy(seen)[None])
        found = logits.softmax(dim=1)[0, 1].numpy()
        assert stored.dtype == np.uint8 and stored.shape == found.shape
        assert np.abs(stored - 255 * found).max() <= 0.51
    assert len(list((trained / "train_preds").iterdir())) == 8


def test_images_are_normalised_once_and_the_checkpoint_says_how(trained: Path) -> None:
    """F-U3: there twice, so that contrast was 255 times too small."""
    record = Preprocess.from_dict(checkpoint.load(trained / "best.ckpt")["preprocess"])
    plane = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    seen = record.tensor(np.stack([plane] * 3, axis=-1))
    wanted = (plane - record.mean[0]) / record.std[0]
    assert record.window == "dtype" and seen[0] == pytest.approx(wanted, abs=1e-5)
    # Levels of the training images spread over about one deviation.
    assert 0.02 < record.std[0] < 0.5


def test_a_prediction_runs_by_its_file(trained: Path, home: Path, tmp_path: Path) -> None:
    """U-10: whole images of any size, a picture each; hidden files and TIFF do no harm (F-U22)."""
    flat = tmp_path / "flat"
    flat.mkdir()
    draw = np.random.default_rng(1)
    for number, (shape, kind, end) in enumerate(
        [((40, 70), np.uint8, "png"), ((33, 33), np.uint16, "tif"), ((19, 90), np.uint8, "jpg")]
    ):
        top = 255 if kind is np.uint8 else 65_535
        image = (draw.random(shape) * top).astype(kind)
        cv2.imwrite(str(flat / f"a.b{number}.{end}"), image)
    (flat / ".hidden.png").write_bytes(b"none")
    content = {"operation_mode": "inference", "dataset_name": str(flat), "results_dir": "flat_out"}
    file = _write(home, "flat.json", **content, model_path=f"{trained.name}/best.ckpt")
    assert _run(home, eval_model, "--config", file) == 0
    out = home / "flat_out"
    sizes = {path.name: _png(path).shape for path in (out / "preds").iterdir()}
    assert sizes == {"a.b0.png": (40, 70), "a.b1.png": (33, 33), "a.b2.png": (19, 90)}
    assert json.loads((out / "configs.json").read_text())["operation_mode"] == "inference"
    assert _run(home, eval_model, "--config", file) == 2  # it exists


def test_masks_follow_the_threshold_of_the_training_or_of_the_file(
    trained: Path, home: Path
) -> None:
    """U-02 metric_threshold: in validation, masks and scores."""
    image = home / "data" / "bubbles" / "images" / "4_1.png"
    model = Segmenter.load(trained, device="cpu", precision="fp32")
    assert model.threshold == 0.4 and model.trained_on.lists.validation == tuple(_tiles(3))
    raw = torch.from_numpy(model.record.tensor(model.record.plane(model.record.read(image))))
    with torch.inference_mode():
        chance = model.network.model(raw[None]).softmax(dim=1)[0, 1].numpy()
    assert (model.predict(image).classes == (chance > 0.4)).all()
    content = {"operation_mode": "inference", "dataset_name": "bubbles", "results_dir": "limits"}
    content["model_path"] = f"{trained.name}/best.ckpt"
    file = _write(home, "limits.json", **content, metric_threshold=0.6)
    assert _run(home, eval_model, "--config", file) == 0
    said = (home / "limits" / "preflight.txt").read_text()
    assert "foreground is where its probability is above 0.6 (--threshold)" in said
    # At home the splits are those of the lists, so that the test alone is scored.
    rows = _rows(home / "limits" / "per_image.csv")
    assert sorted(Path(row["image"]).stem for row in rows) == _tiles(4)
    mask = tifffile.imread(home / "limits" / "masks" / "label" / "4_1.tif")
    assert (mask == (chance > 0.6)).all()
    # What is stored is what the threshold acts on: the network's own, not the calibrated one.
    shown = _png(home / "limits" / "preds" / "4_1.png")
    assert np.abs(shown - 255 * chance).max() <= 0.51


def test_a_threshold_is_for_two_classes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = home / "data" / "three"
    if not three.exists():
        shutil.copytree(home / "data" / "bubbles", three)
        for path in (three / "annotations").iterdir():
            mask = _png(path)
            mask[:4] = 128
            cv2.imwrite(str(path), mask)
    file = _write(home, "three.json", **{**SMALL, "dataset_name": "three"})
    told = _said(train_finetune, home, capsys, "--config", file)
    assert "--threshold is for two classes" in told and "--classes binary" in told


def test_a_keras_model_is_refused_with_a_reason(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """U-02 model_path."""
    content = {"operation_mode": "inference", "dataset_name": "bubbles", "model_path": "a.b.keras"}
    told = _said(eval_model, home, capsys, "--config", _write(home, "keras.json", **content))
    assert "Keras model" in told and "train it again with train_finetune.py" in told


def test_soft_masks_are_refused_and_zero_and_one_are_two_classes(
    home: Path, tmp_path: Path
) -> None:
    """F-U14: there 0.05 counts as positive, and a mask of 0 and 1 as two shades of nothing."""
    for kind in ("soft", "small"):
        root = tmp_path / kind
        shutil.copytree(home / "data" / "bubbles", root)
        for path in (root / "annotations").iterdir():
            mask = _png(path)
            mask = cv2.GaussianBlur(mask, (0, 0), 4) if kind == "soft" else mask // 255
            cv2.imwrite(str(path), mask)
    with pytest.raises(UserError, match="grey values"):
        layouts.find(tmp_path / "soft")
    found = layouts.find(tmp_path / "small")
    assert found.table is not None and found.table.num_classes == 2


def test_fewer_images_than_a_batch_still_take_steps(home: Path) -> None:
    """F-U21: there n below the batch size gave no step at all."""
    assert finetune.FinetuneSettings(epochs=3, batch_size=64, epoch_views=8)
    from matssl.stages.finetune import inputs

    few = finetune.FinetuneSettings(epochs=3, batch_size=64, val_epochs=1)
    assert inputs.total_steps(few, 2) == 3 and inputs.val_every(few, 2) == 1
    views = finetune.FinetuneSettings(epochs=3, batch_size=4, epoch_views=8, val_epochs=2)
    assert inputs.total_steps(views, 10) == 60 and inputs.val_every(views, 10) == 40


def test_patience_counts_epochs(home: Path, no_drawing: None) -> None:
    """F-U17: the shipped example never stopped; a rate that spoils the model stops here."""
    out = _train(
        home,
        "patient",
        num_epochs=30,
        early_stopping=True,
        patience=2,
        monitor_f1=True,
        learning_rate=0.9,
        auto_split=0.25,
    )
    rows = _rows(out / "metrics.csv")
    f1 = [float(row["val_F1Score"] or "nan") for row in rows]
    best = int(np.nanargmax(f1)) if np.isfinite(f1).any() else -1
    assert len(rows) == best + 3 < 30


def test_nested_skips_and_resuming_end_at_the_same_bits(home: Path, no_drawing: None) -> None:
    """U-05 UNet++; a run that is stopped goes on, its epoch's sums too."""
    content: dict[str, Any] = {
        "decoder_name": "UNet++",
        "num_epochs": 2,
        "augment": True,
        "L2_regularization_strength": 1e-4,
        "auto_split": 0.5,
        "model_summary": False,
    }
    whole = _train(home, "nested", **content)
    assert not (whole / "model_summary.out").exists()
    file = home / "nested.json"
    argv = ["--config", file, "--results_dir", "again", "--checkpoint_every", "3"]
    from matssl.stages.finetune.learner import Learner

    steps, learn = 0, Learner.learn

    def stopping(self: Learner, *given: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise UserError("stopped on purpose")
        return learn(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", stopping)
        assert _run(home, train_finetune, *argv) == 2
    assert _run(home, train_finetune, *argv, "--resume") == 0
    assert (home / "again" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    one, other = (checkpoint.load(home / n / "best.ckpt")["state"] for n in ("again", whole.name))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_frozen_blocks_stay_as_they_were(home: Path, no_drawing: None) -> None:
    """U-06: weights, and the statistics of BatchNorm."""
    argv: list[object] = ["--finetune_dataset", "data/bubbles", "--output_dir", "frozen"]
    argv += ["--name", "x"]
    argv += ["--encoder", "tu-test_resnet", "--steps", 3, "--crop_size", 32, "--batch_size", 2]
    argv += ["--finetune_blocks", "4", "--seed", 5, "--val_every", 3]
    assert _run(home, train_finetune, *argv) == 0
    last = checkpoint.load(home / "frozen" / "finetune" / "x" / "last.ckpt", stage="finetune")
    torch.manual_seed(5)
    start = build_model(**last["model"]).state_dict()
    moved = {
        name
        for name, value in start.items()
        if name.startswith("encoder.") and not torch.equal(value, last["state"][name])
    }
    assert moved and all("layer4" in name and ".bn" not in name for name in moved)


def test_more_blocks_than_there_are_end_before_anything_is_written(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--finetune_dataset", "data/bubbles", "--encoder", "resnet18", "--finetune_blocks"]
    told = _said(train_finetune, home, capsys, *argv, "6")
    assert "resnet18 has 4 blocks" in told
    told = _said(train_finetune, home, capsys, *argv, "some")
    assert "--finetune_blocks must be all, none or numbers" in told


def test_a_cross_validation_runs_by_its_file(home: Path, no_drawing: None) -> None:
    """U-09: a folder a fold with its files; F-U18: as many folds as pictures are allowed."""
    out = _train(
        home,
        "folds",
        cross_validation=True,
        num_folds=2,
        num_epochs=1,
        training_set=_tiles(1, 2),
    )
    assert (out / "cv_summary.csv").is_file() and (out / "ensemble.ckpt").is_file()
    for number in (1, 2):
        names = {path.name for path in (out / f"fold_{number}").iterdir()}
        assert names >= {"best.ckpt", "splits.json", "configs.json", "train_preds"}
    held = {row["image"]: row["fold"] for row in _rows(out / "folds.csv")}
    assert len(held) == 8
    assert len({(Path(image).stem[0], fold) for image, fold in held.items()}) == 2


def test_more_folds_than_pictures_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F-U18: k above n passed."""
    content = {**SMALL, "cross_validation": True, "num_folds": 5, "results_dir": "many"}
    told = _said(train_finetune, home, capsys, "--config", _write(home, "many.json", **content))
    assert "--folds 5" in told and "4 at most" in told


def test_whole_images_need_no_size(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F-U22: the square that holds every image, filled up with what counts nowhere."""
    argv = ["--finetune_dataset", "data/bubbles", "--whole_images"]
    told = _said(train_finetune, home, capsys, *argv, "--crop_size", 64, "--rare_class_p", 0)
    assert "--crop_size and --whole_images" in told or "--whole_images and --crop_size" in told
    assert "--rare_class_p 0" in _said(train_finetune, home, capsys, *argv)
    pairs = [p for p in layouts.find(home / "data" / "bubbles").pairs][:1]
    table = layouts.find(home / "data" / "bubbles").table
    assert table is not None
    record = Preprocess(window="dtype", mean=(0.0,), std=(1.0,))
    data = crops.load(pairs, record, table)
    loader = CropLoader(data, record, 2, CropAugmentation(48, 0.0, "none"), 1, seed=0)
    image, mask = loader.batch(0)
    assert (mask[0, :SIDE, :SIDE].numpy() == data.masks[0]).all()
    assert (mask[0, SIDE:] == 255).all() and image.shape == (1, 1, 48, 48)
