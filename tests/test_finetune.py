"""Fine-tuning: its settings, its objective, its folds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_finetune
from matssl.core.errors import UserError, guard
from matssl.data.crops import Labelled
from matssl.data.layouts import Pair
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
