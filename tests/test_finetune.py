"""Fine-tuning: its settings, its objective, its folds."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train_finetune
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.core.labels import IGNORE
from matssl.data import synthetic
from matssl.data.crops import CropAugmentation, CropLoader, Labelled
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess, measure
from matssl.models import losses
from matssl.models.segmentation import build_model
from matssl.stages.finetune import folds, inputs, settings
from matssl.stages.finetune.objective import Objective, Schedule
from matssl.stages.finetune.settings import FinetuneSettings


def _resolved(*words: object) -> FinetuneSettings:
    return settings.resolve(["--finetune_dataset", "x", *map(str, words)])


def _labelled(*sides: int) -> Labelled:
    planes = tuple(np.arange(side * side, dtype=np.float32).reshape(side, side) for side in sides)
    masks = tuple(np.zeros((side, side), np.uint8) for side in sides)
    pairs = tuple(Pair(Path(f"{i}.png"), None, str(i), "train") for i in range(len(sides)))
    digests = tuple(f"digest {i}" for i in range(len(sides)))
    return Labelled(planes, masks, pairs, tuple((8, None) for _ in sides), digests)


# --- settings ---
def test_all_mistakes_of_a_command_line_are_told_at_once_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "--batch_size": ("0", "--batch_size must be at least 1"),
        "--lr": ("nan", "--lr must be"),
        "--ema": ("1", "--ema must be"),
        "--data_ratio": ("0", "--data_ratio must be above 0"),
        "--max_train_images": ("0", "--max_train_images must be at least 1"),
        "--class_weights": ("1,2,none", "--class_weights must be none, balanced or numbers"),
        "--loss_function": ("hinge", "--loss_function must be BCE, Dice or Focal, not hinge"),
        "--decoder": ("fpm", "--decoder must be one of auto, "),
    }
    argv = ["--output_dir", str(tmp_path / "out"), "--finetune_dataset", str(tmp_path)]
    argv += [word for flag, (value, _) in wrong.items() for word in (flag, value)]
    assert guard(train_finetune.main, argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for _, sentence in wrong.values():
        assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (
            ("--loss", "dice", "--class_weights", "balanced", "--data_ratio", 0.5)
            + ("--max_train_images", 1, "--low", 2, "--color", "rgb"),
            ("--loss dice has none", "not both", "--low and --high act", "needs --in_channels 3"),
        ),
        # The published spelling decides which loss it is.
        (("--loss_function", "Dice", "--class_weights", "1,2"), ("--loss dice has none",)),
        (("--steps", 5, "--epochs", 5), ("two plans",)),
        (("--resume",), ("--resume needs the --name",)),
    ],
)
def test_settings_that_do_not_go_together_are_told_together(
    words: tuple[object, ...], sentences: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        _resolved(*words)
    for sentence in sentences:
        assert sentence in str(error.value)


def test_published_spellings_act_as_our_own() -> None:
    published = ("--pretrained", "w.pth", "--loss_function", "BCE", "--custom_lr", 0.5)
    published += ("--custom_epochs", 7, "--name", "a", "--note", "b")
    found = _resolved(*published)
    assert (found.ssl_weights_path, found.loss, found.lr) == ("w.pth", "bce", 0.5)
    assert (found.epochs, found.name, found.note) == (7, "a-b", "")
    assert dataclasses.asdict(found.resolved()) == dataclasses.asdict(found)
    cifar = "experiments/pretrained_models/cifar_simclr_backbone.ckpt"
    assert _resolved("--pretrained_model", "cifar").ssl_weights_path == cifar
    assert _resolved("--pretrained_model", "baseline").ssl_weights_path is None


def test_the_settings_name_the_losses_there_are() -> None:
    assert tuple(losses.LOSSES) == settings.LOSSES


def test_settings_are_read_without_torch_or_numpy() -> None:
    code = (
        "import sys; from matssl.stages.finetune import settings; "
        "settings.FinetuneSettings(finetune_dataset='x').problems(); "
        "sys.exit(bool({'torch', 'numpy', 'cv2', 'yaml'} & set(sys.modules)))"
    )
    root = Path(settings.__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("recipe", [path.stem for path in Path(settings.RECIPES).glob("*.yaml")])
def test_every_recipe_is_read_without_complaint(recipe: str) -> None:
    assert _resolved("--recipe", recipe).recipe == recipe


@pytest.mark.parametrize(
    ("given", "side"),
    [
        ({}, 192),
        ({"crop_size": 64}, 64),
        ({"input_size": 256}, 256),
        ({"input_size": 250}, 224),
        ({"input_size": 256, "crop_size": 64}, 64),
        # A crop larger than the image would be filled up by mirroring.
        ({"input_size": 64, "crop_size": 192}, 64),
    ],
)
def test_a_crop_is_a_multiple_of_what_the_model_takes(given: dict[str, int], side: int) -> None:
    model = build_model("resnet18", "unet", 2)
    assert inputs.crop_size(FinetuneSettings(finetune_dataset="x", **given), model) == side


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"crop_size": 33}, "--crop_size must be a multiple of 32, not 33"),
        ({"input_size": 16}, "--input_size must be at least 32, not 16"),
    ],
)
def test_crops_that_the_model_does_not_take_are_refused(
    given: dict[str, int], sentence: str
) -> None:
    model = build_model("resnet18", "unet", 2)
    with pytest.raises(UserError, match=sentence):
        inputs.crop_size(FinetuneSettings(finetune_dataset="x", **given), model)


def test_a_batch_of_whole_images_holds_all_of_them_at_most() -> None:
    whole = FinetuneSettings(finetune_dataset="x", input_size=64, rare_class_p=0.0, batch_size=128)
    assert inputs.largest_batch(whole, 5, 1) == 5
    # Two processes share a batch.
    assert inputs.largest_batch(whole, 5, 2) == 4
    assert inputs.largest_batch(replace(whole, rare_class_p=0.5), 5, 1) == 128
    assert inputs.largest_batch(replace(whole, input_size=None), 5, 1) == 128


def test_an_epoch_is_one_batch_at_least() -> None:
    plan = FinetuneSettings(finetune_dataset="x", epochs=3, batch_size=4)
    assert [inputs.total_steps(plan, images) for images in (1, 4, 10)] == [3, 3, 6]
    assert inputs.total_steps(replace(plan, epochs=None, steps=70), 10) == 70


# --- objective ---
def test_class_weights_are_those_given_or_the_inverse_root_of_the_share() -> None:
    masks = [np.array([[0, 0, 0, 1]], np.uint8), np.array([[255, 0, 0, 0]], np.uint8)]
    assert Objective("ce").weights(masks, 2) is None
    given = Objective("ce", (1.0, 3.0)).weights(masks, 2)
    assert given is not None and given.tolist() == [1.0, 3.0]
    balanced = Objective("ce", "balanced").weights(masks, 2)
    assert balanced is not None and balanced.dtype == torch.float32
    # Six pixels of seven are of class 0; the mean weight of a pixel is 1.
    assert float(balanced[1] / balanced[0]) == pytest.approx(6**0.5, rel=1e-6)
    assert float(6 * balanced[0] + balanced[1]) / 7 == pytest.approx(1, rel=1e-6)


def test_the_average_starts_young_and_ends_at_its_decay() -> None:
    schedule = Schedule(total_steps=1000, lr=1.0, ema=0.98)
    assert schedule.decay(0) == 0.1
    assert schedule.decay(10) == 11 / 20
    assert schedule.decay(10_000) == 0.98
    assert Schedule(total_steps=1000, lr=1.0, ema=0.0).decay(500) == 0.0


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(total_steps=100, lr=1.0, warmup=0.1)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[99] < 1e-3
    assert Schedule(total_steps=100, lr=0.5, shape="constant", warmup=0.0).rate(99) == 0.5


# --- folds ---
def test_each_image_is_held_out_once_and_a_single_one_by_halves() -> None:
    parts = folds.parts(_labelled(4, 6, 8))
    assert sorted(len(held.planes[0]) for _, held in parts) == [4, 6, 8]
    for train, held in parts:
        sizes = [len(plane) for part in (train, held) for plane in part.planes]
        assert sorted(sizes) == [4, 6, 8] and len(held.planes) == 1
    (left, right), swapped = folds.parts(_labelled(6))
    assert left.planes[0].shape == right.planes[0].shape == (6, 3)
    whole = np.concatenate([left.planes[0], right.planes[0]], axis=1)
    assert np.array_equal(whole, _labelled(6).planes[0])
    assert np.array_equal(swapped[0].planes[0], right.planes[0])


def test_what_the_folds_chose_survives_its_file() -> None:
    choice = folds.Choice(200, (0.25, 0.5, 0.375), 100)
    assert folds.Choice.from_dict(choice.to_dict()) == choice
    assert choice.to_dict() == {"steps": 200, "miou": [0.25, 0.5, 0.375], "every": 100}


def test_halves_of_a_single_image_are_those_of_its_labelled_pixels() -> None:
    """B7: of a half-labelled image each half has labels."""
    data = _labelled(8)
    data.masks[0][:, 4:] = IGNORE
    (left, right), swapped = folds.parts(data)
    assert left.planes[0].shape == (8, 2) and right.planes[0].shape == (8, 6)
    assert np.array_equal(swapped[0].masks[0], right.masks[0])
    # Two pixels of a scribble are parted, too; a single one cannot be.
    data.masks[0][:] = IGNORE
    data.masks[0][3, [2, 5]] = 0
    assert [len(part.planes) for pair in folds.parts(data) for part in pair] == [1, 1, 1, 1]
    data.masks[0][3, 5] = IGNORE
    assert folds.parts(data) == []


def test_a_fold_without_labels_is_left_out() -> None:
    """B7: an image whose labels are all to be ignored can neither teach nor judge alone."""
    data = _labelled(4, 6, 8)
    data.masks[1][:] = IGNORE
    held = sorted(len(held.planes[0]) for _, held in folds.parts(data))
    assert held == [4, 8]


def test_crops_without_labels_are_moved_to_a_labelled_pixel() -> None:
    """B7: a scribble of a few pixels is in every crop of its image."""
    data = _labelled(96)
    data.masks[0][:] = IGNORE
    data.masks[0][90, 3:6], data.masks[0][91, 5] = 0, 1
    record = measure(Preprocess.chosen(channels=1), data.planes)
    for rare_p in (0.0, 0.5):
        loader = CropLoader(data, record, 2, CropAugmentation(size=32, rare_p=rare_p), 4, 0)
        _, masks = next(loader.batches(0, 1))
        assert bool((masks != IGNORE).flatten(1).any(1).all())


def _sparse(folder: Path) -> Path:
    """Training images half labelled, scribbled and not at all; one to validate on without."""
    synthetic.write_dataset(folder, "two_phase", n_train=3, n_val=2, n_test=2, size=64, seed=0)
    labelled = {"train": (slice(0, 32), slice(30, 32), slice(0)), "val": (slice(0), slice(64))}
    for split, columns in labelled.items():
        paths = sorted((folder / f"{split}_annot").iterdir())
        for path, known in zip(paths, columns, strict=True):
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            sparse = np.full_like(mask, 255)
            sparse[:, known] = mask[:, known] > 0
            cv2.imwrite(str(path), sparse)
    (folder / "classes.yaml").write_text("classes: {a: 0, b: 1}\nignore: [255]\n")
    return folder


@pytest.mark.parametrize("val", [True, False])
def test_sparse_labels_train(
    val: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    """B7: half-labelled and scribbled images teach, images without labels are left out and said."""
    folder = _sparse(tmp_path / "data")
    if not val:
        shutil.rmtree(folder / "val"), shutil.rmtree(folder / "val_annot")
    argv = ["--finetune_dataset", folder, "--output_dir", tmp_path, "--name", "x", "--steps", 3]
    argv += ["--encoder", "tu-test_resnet", "--decoder", "unet", "--crop_size", 32]
    argv += ["--batch_size", 2, "--val_every", 2, "--threads", 1, "--precision", "fp32"]
    assert guard(train_finetune.main, [str(word) for word in argv]) == 0
    out = capsys.readouterr().out
    without = "note    2 images of 5" if val else "note    1 image of 3"
    assert f"{without} without a labelled pixel, left out: " in out
    assert f"images  2 to train, {int(val)} to validate" in out
    assert "mIoU" in out and "nan" not in out


def test_images_without_any_label_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _sparse(tmp_path / "data")
    for path in (folder / "train_annot").iterdir():
        cv2.imwrite(str(path), np.full((64, 64), 255, np.uint8))
    argv = ["--finetune_dataset", str(folder), "--output_dir", str(tmp_path / "out")]
    assert guard(train_finetune.main, argv) == 2
    assert "every pixel of the training masks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_val_fraction_0_takes_all_steps_on_all_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    """B16: PSCL's one to three images train for all epochs; no fold chooses the number of steps."""
    folder = tmp_path / "data"
    synthetic.write_dataset(folder, "two_phase", n_train=2, n_val=0, n_test=1, size=64, seed=0)
    argv = ["--finetune_dataset", folder, "--output_dir", tmp_path, "--name", "x", "--steps", 3]
    argv += ["--encoder", "tu-test_resnet", "--decoder", "unet", "--crop_size", 32]
    argv += ["--batch_size", 2, "--val_every", 1, "--threads", 1, "--precision", "fp32"]
    assert guard(train_finetune.main, [str(w) for w in [*argv, "--val_fraction", 0]]) == 0
    assert "fold" not in capsys.readouterr().out.replace("folder", "")
    root = tmp_path / "finetune" / "x"
    assert not (root / "folds.json").exists() and checkpoint.load(root / "best.ckpt")["step"] == 3


# --- all of a fine-tuned model ---
def test_a_run_can_start_from_all_of_a_fine_tuned_model(
    synthetic_folder: Path,
    tmp_path: Path,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At a rate of nothing it stays what it was; without the flag decoder and head are new."""
    common = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(tmp_path)]
    common += ["--crop_size", "32", "--batch_size", "2", "--ema", "0", "--quiet", "--threads", "1"]
    common += ["--encoder", "tu-test_resnet", "--val_every", "9", "--freeze_encoder_steps", "9"]
    assert guard(train_finetune.main, [*common, "--steps", "2", "--name", "a"]) == 0
    best = tmp_path / "finetune" / "a" / "best.ckpt"
    still = [
        *common,
        "--steps",
        "1",
        "--lr",
        "1e-12",
        "--weight_decay",
        "0",
        "--weights",
        str(best),
    ]
    assert guard(train_finetune.main, [*still, "--name", "b", "--whole_model"]) == 0
    assert guard(train_finetune.main, [*still, "--name", "c"]) == 0
    states = [
        checkpoint.load(tmp_path / "finetune" / name / "last.ckpt")["state"] for name in "abc"
    ]
    head = next(name for name in states[0] if name.startswith("segmentation_head"))
    assert torch.allclose(states[0][head], states[1][head], atol=1e-6)
    assert not torch.allclose(states[0][head], states[2][head], atol=1e-3)
    capsys.readouterr()
    other = ["--name", "d", "--whole_model", "--decoder", "deeplabv3plus"]
    assert guard(train_finetune.main, [*still, *other]) == 2
    assert "decoder unet there, deeplabv3plus here" in capsys.readouterr().err
    renamed = ["--name", "d", "--whole_model", "--classes", "a,b,c"]
    assert guard(train_finetune.main, [*still, *renamed]) == 2
    assert "the masks have a, b, c" in capsys.readouterr().err
    assert not (tmp_path / "finetune" / "d").exists()
    with pytest.raises(UserError, match="--whole_model needs the file"):
        _resolved("--whole_model")
