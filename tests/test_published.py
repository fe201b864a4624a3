"""Commands, files and settings of the published codes that this one takes over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval_model
import train_finetune
import train_ssl
from matssl import hub, weights
from matssl.core import checkpoint, flags
from matssl.core.errors import UserError, guard
from matssl.core.labels import IGNORE
from matssl.data import masks, synthetic
from matssl.data.preprocess import Preprocess
from matssl.models.encoders import build_encoder
from matssl.models.segmentation import build_model
from matssl.stages import published
from matssl.stages.finetune import settings as finetune
from matssl.stages.pretrain import settings as pretrain
from matssl.weights import encoder_file
from matssl.weights.folding import IMAGENET_MEAN, IMAGENET_STD

QUICK = ["--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def ebc(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MatSSL lays them out, its truth in three classes, one image without crack."""
    root = tmp_path_factory.mktemp("datasets") / "nasa-EBC1"
    for split in ("train", "val", "test"):
        for kind, source in (("inputs", split), ("targets", f"{split}_annot")):
            (root / split / kind).mkdir(parents=True)
            for path in sorted((synthetic_folder / source).iterdir()):
                shutil.copy(path, root / split / kind)
        for number, path in enumerate(sorted((root / split / "targets").iterdir())):
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            mask = (mask > 0).astype(np.uint8)
            if number != 0:
                mask[:12, :40] = 2
            cv2.imwrite(str(path), mask)
    return root


def _run(main: object, argv: Sequence[object]) -> int:
    return guard(main, [str(word) for word in argv])  # type: ignore[arg-type]


# --- the three commands of MatSSL's README, with every flag that they have ---
def test_the_commands_of_matssl_work_and_leave_their_files(
    ebc: Path, pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(
        "SSL_INPUT_SIZE=32\nSSL_EPOCHS=5\nSSL_LR=0.05  # of SGD\nSSL_EXP_PATH=./experiments/ssl\n"
    )
    monkeypatch.setenv("SSL_EPOCHS", "1")
    argv = ["--model", "matssl", "--data_path", pool_folder, "--batch_size", 8]
    argv += ["--num_workers", 1, "--gpu_id", 0, "--dense_output_dim", 128]
    argv += ["--global_output_dim", 128, "--dense_weight", 0.5]
    argv += ["--recipe", "paper", "--encoder", "resnet18", "--weights", "none"]
    assert _run(train_ssl.main, [*argv, "--name", "first", *QUICK]) == 0
    run = tmp_path / "experiments" / "ssl" / "first"
    (last,) = run.glob("matssl_loss_*_epoch0.pth")
    assert float(last.name.split("_")[2]) > 0
    settings = checkpoint.load(last, stage="ssl")["recipe"]
    assert (settings["view_size"], settings["lr"], settings["epochs"]) == (32, 0.05, 1)

    hub = tmp_path / "model_hub" / "matssl-aachen-uhcs-metaldam.pth"
    hub.parent.mkdir()
    state = build_encoder("resnet34", 3).state_dict()
    torch.save({f"backbone.{k}": v for k, v in state.items()}, hub)
    argv = ["--finetune_dataset", ebc, "--ssl_weights_path", hub, "--batch_size", 128]
    argv += ["--num_workers", 0, "--gpu_id", 0, "--input_size", 64, "--note", "SSL"]
    argv += ["--custom_lr", 1e-3, "--custom_epochs", 2, "--recipe", "ebc", "--encoder", "auto"]
    assert _run(train_finetune.main, [*argv, "--name", "tuned", *QUICK]) == 0
    run = tmp_path / "experiments" / "finetune" / "tuned-SSL"
    (best,) = run.glob("unetplusplus_best_ssl_finetuned_*_epoch*.pth")
    assert checkpoint.load(best)["recipe"]["encoder"] == "resnet34"
    assert np.load(run / "mean_iou_values.npy").max() == pytest.approx(
        float(best.name.split("_")[4]), abs=1e-4
    )
    assert (run / "mean_iou_over_epochs.png").stat().st_size > 0

    argv = ["--model_path", best, "--dataset", ebc, "--dataset_name", "ebc", "--n_classes", 2]
    argv += ["--batch_size", 128, "--num_workers", 0, "--gpu_id", 0, "--input_size", 64]
    argv += ["--output_dir", "results_ebc", "--save_visualizations"]
    assert _run(eval_model.main, [*argv, *QUICK]) == 0
    found = json.loads((tmp_path / "results_ebc" / "evaluation_results.json").read_text())
    assert set(found["avg_class_ious"]) == {"0", "1", "mean_IOU_no_minority", "mean_IOU"}
    assert set(found["batch_results"][0]["iou"]) == {"IOU_0", "IOU_1", "mean_IOU"}
    assert set(found["pixel_metrics"]) == set(
        "precision recall f1_score accuracy true_positives false_positives false_negatives "
        "true_negatives".split()
    )
    for number in range(2):
        panel = f"results_ebc/visualizations/vis_batch0_img{number}.png"
        assert (tmp_path / panel).stat().st_size > 0
    assert json.loads((tmp_path / "results_ebc" / "metrics.json").read_text())["images"] == 2


def test_a_flag_beats_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("SSL_LR=0.1\nSSL_MOMENTUM='0.8'\n#SSL_EPOCHS=3\nOTHER=1\n")
    monkeypatch.setenv("SSL_LR", "0.2")
    found = published.environment(tmp_path)
    assert found == {"lr": "0.2", "momentum": "0.8"}
    argv = ["--data_path", "x", "--lr", "0.3"]
    settings = pretrain.resolve(argv, found).run
    assert (settings.lr, settings.momentum) == (0.3, 0.8)


# --- two classes on a truth of three ---
def test_a_published_model_of_two_classes_is_scored_on_three_class_truth(
    ebc: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", "unetplusplus", 2, 3)
    torch.save(model.state_dict(), tmp_path / "raw.pth")
    argv = ["--model_path", tmp_path / "raw.pth", "--dataset", ebc, "--input_size", 64]
    argv += ["--output_dir", tmp_path / "out", "--no-baselines", "--quiet", *QUICK]
    assert _run(eval_model.main, argv) == 0
    confusion = np.array(json.loads((tmp_path / "out" / "metrics.json").read_text())["confusion"])
    truth = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (ebc / "test/targets").iterdir()]
    assert confusion.sum(axis=1).tolist() == [
        sum(int((t == 0).sum()) for t in truth),
        sum(int((t > 0).sum()) for t in truth),
    ]


def test_binary_makes_one_class_of_all_that_is_not_black(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:5], mask[5:8] = 1, 255
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    color = np.zeros((20, 20, 3), np.uint8)
    color[:4] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / "b.png"), color)
    table, _ = masks.find_table([tmp_path / "a.png"], masks.BINARY)
    assert table.decode(mask).tolist() == (mask > 0).astype(int).tolist()
    assert [c.pixels for c in table.classes] == [240, 160]
    table, _ = masks.find_table([tmp_path / "a.png", tmp_path / "b.png"], masks.BINARY)
    assert table.decode(mask).tolist() == (mask > 0).astype(int).tolist()
    assert table.decode(color).tolist() == color.any(axis=2).astype(int).tolist()


def test_a_rest_class_is_binary_only_where_black_is_the_other_and_nothing_is_ignored() -> None:
    def table(value: int, ignored: tuple[int, ...] = ()) -> masks.ClassTable:
        classes = (masks.MaskClass(0, "a", (value,)), masks.MaskClass(1, "b", ()))
        return masks.ClassTable("index", classes, ignored, rest_index=1)

    row = np.array([[0, 85, 255]], np.uint8)
    assert table(0).binary and table(0).decode(row).tolist() == [[0, 1, 1]]
    assert not table(85).binary and table(85).decode(row).tolist() == [[1, 0, 1]]
    assert not table(0, (255,)).binary
    assert table(0, (255,)).decode(row).tolist() == [[0, 1, IGNORE]]


def test_binary_is_refused_for_a_model_of_more_classes(
    ebc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(build_model("resnet18", "unet", 3, 1).state_dict(), tmp_path / "raw.pth")
    argv = ["--model_path", tmp_path / "raw.pth", "--dataset", ebc, "--classes", "binary"]
    assert _run(eval_model.main, [*argv, "--output_dir", tmp_path / "out"]) == 2
    assert "--classes binary is for a model of two classes" in capsys.readouterr().err


# --- presets ---
@pytest.mark.parametrize(
    ("preset", "size", "classes", "epochs", "lr"),
    [
        ("metaldam", 256, "matrix,austenite,martensite-austenite,precipitate,defect", 200, 1e-4),
        ("aachen", 256, "binary", 50, 1e-3),
        ("ebc", 512, "binary", 200, 1e-4),
        # Of a data set that the table does not name.
        ("paper", 256, None, 50, 1e-4),
    ],
)
def test_the_presets_are_the_published_table(
    preset: str, size: int, classes: str | None, epochs: int, lr: float
) -> None:
    argv = ["--finetune_dataset", "x", "--recipe", preset]
    found = finetune.resolve(argv)
    assert (found.input_size, found.classes, found.epochs, found.lr) == (size, classes, epochs, lr)
    assert (found.decoder, found.loss, found.in_channels) == ("unetplusplus", "dice", 3)
    assert found.batch_size == 128 and found.schedule == "constant"
    assert found.d4 == "none" and found.weight_decay == found.contrast == found.noise_p == 0


# --- the SimCLR study ---
# Files of the study, and the two that its README prints.
PRETRAIN = """
model: {backbone: resnet50, projection_dim: 128, hidden_dim: 512, temperature: 0.1}
training: {batch_size: 120, accumulation_steps: 8, learning_rate: 0.3, epochs: 20, optimizer: LARS,
  weight_decay: 1e-6}
data:
  dataset: cifar10
  image_size: 224
  augmentations: {color_distortion_strength: 1.0, gaussian_blur_sigma: [0.1, 2.0]}
experiment: {name: simclr_cifar10_pretraining, save_dir: experiments/pretrained_models}
"""
FINETUNE = """
model: {backbone: resnet50, decoder: unet, pretrained_path: weights.ckpt, freeze_backbone: false}
training: {batch_size: 32, learning_rate: 1e-4, epochs: 60, optimizer: Adam, loss_function: BCE}
data: {dataset: oxford_pets, data_ratio: 0.8, train_ratio: 0.7, val_ratio: 0.15, test_ratio: 0.15,
  image_size: 224}
experiment: {name: pets_segmentation_finetune}
"""
README_PRETRAIN = """
model: {backbone: resnet50, projection_dim: 128, temperature: 0.1}
training: {batch_size: 120, learning_rate: 0.3, epochs: 20, optimizer: lars, weight_decay: 1e-6}
data: {dataset: cats_vs_dogs, image_size: 224, augmentations: simclr_strong}
"""
README_FINETUNE = """
model:
  encoder: resnet50
  decoder: unet
  pretrained_path: experiments/pretrained_models/pet_simclr_backbone.ckpt
training: {batch_size: 32, learning_rate: 1e-4, epochs: 60, loss_function: bce}
data: {dataset_ratio: 0.8, split_ratios: [0.9, 0.1], test_ratio: 0.2}
"""
# Adam at a constant rate on whole images in colour.
TUNED = {"schedule": "constant", "warmup": 0.0, "clip": 0.0, "ema": 0.0, "weight_decay": 0.0}
TUNED |= {"color": "rgb", "in_channels": 3, "window": "dtype", "rare_class_p": 0.0, "d4": "none"}
TUNED |= {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "blur_p": 0.0, "noise_p": 0.0}
TUNED |= {"encoder": "resnet50", "decoder": "unet", "batch_size": 32, "lr": 1e-4, "epochs": 60}
TUNED |= {"loss": "bce", "input_size": 224, "crop_size": 224, "data_ratio": 0.8}
TUNED |= {"finetune_dataset": "datasets/oxford-pets"}


def test_a_pretraining_file_of_the_study_is_read(tmp_path: Path) -> None:
    file = tmp_path / "simclr_cifar10.yaml"
    file.write_text(PRETRAIN)
    resolved = pretrain.resolve(["--config", str(file), "--batch_size", "60"])
    found = flags.to_dict(resolved.run, resolved.method)
    expected = {"model": "simclr", "encoder": "resnet50", "global_output_dim": 128, "lr": 0.3}
    expected |= {"hidden_dim": 512, "temperature": 0.1, "batch_size": 60, "epochs": 20}
    expected |= {"optimizer": "lars", "weight_decay": 1e-6, "data_path": "datasets/cifar10"}
    expected |= {"view_size": 224, "brightness": 0.8, "contrast": 0.8, "blur_sigma": 2.0}
    expected |= {"name": "simclr_cifar10_pretraining", "lr_scaling": "none"}
    expected |= {"color": "rgb", "in_channels": 3}
    assert {k: found[k] for k in expected} == expected
    told = published.notes(str(file), finetune=False)
    assert any("without counterpart here: training.accumulation_steps" in note for note in told)


def test_a_fine_tuning_file_of_the_study_and_its_flags_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pets_segmentation.yaml"
    file.write_text(FINETUNE)
    argv = ["--config", str(file), "--data_ratio", "0.2", "--quiet"]
    found = flags.to_dict(finetune.resolve(argv))
    expected = {**TUNED, "ssl_weights_path": "weights.ckpt", "data_ratio": 0.2}
    expected |= {"freeze_encoder_steps": 0, "val_fraction": pytest.approx(0.15 / 0.85)}
    assert {k: found[k] for k in expected} == expected
    told = published.notes(str(file), finetune=True)
    assert any(note.startswith("data.test_ratio cuts nothing") for note in told)
    assert not any("without counterpart" in note for note in told)


def test_what_the_readme_of_the_study_prints_is_read(tmp_path: Path) -> None:
    """B15: model.encoder, dataset_ratio, split_ratios and augmentations by name."""
    file = tmp_path / "config.yaml"
    file.write_text(README_PRETRAIN)
    resolved = pretrain.resolve(["--config", str(file)])
    found = flags.to_dict(resolved.run, resolved.method)
    expected = {"model": "simclr", "encoder": "resnet50", "data_path": "datasets/cats_vs_dogs"}
    expected |= {"optimizer": "lars", "lr": 0.3, "weight_decay": 1e-6, "epochs": 20, "color": "rgb"}
    expected |= {"brightness": 0.8, "contrast": 0.8, "view_size": 224, "batch_size": 120}
    assert {k: found[k] for k in expected} == expected
    assert len(published.notes(str(file), finetune=False)) == 1
    file.write_text(README_FINETUNE)
    found = flags.to_dict(finetune.resolve(["--config", str(file)]))
    weights = "experiments/pretrained_models/pet_simclr_backbone.ckpt"
    expected = {**TUNED, "ssl_weights_path": weights, "val_fraction": pytest.approx(0.1)}
    assert {k: found[k] for k in expected} == expected
    # Its command without a file.
    argv = ["--pretrained_model", "pets", "--data_ratio", "0.2", "--loss_function", "BCE"]
    found = flags.to_dict(finetune.resolve([*argv, "--epochs", "60"]))
    expected = {**TUNED, "ssl_weights_path": weights.replace("pet_", "pets_"), "data_ratio": 0.2}
    assert {k: found[k] for k in expected} == expected
    assert {*published.STUDY_DATA.values()} <= hub.data_registry().keys()


@pytest.mark.slow
def test_the_study_runs_as_printed_in_colour_and_finds_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    """B15, but for the size of its encoder, pictures and batches."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, folder in (("a", "cats_vs_dogs/cat"), ("b", "cats_vs_dogs/dog")):
        (tmp_path / "datasets" / folder).mkdir(parents=True)
        for number in range(3):
            # The last one is gray, as some photographs are.
            shape = (40, 40, 3) if number < 2 else (40, 40)
            picture = generator.integers(0, 255, shape).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "datasets" / folder / f"{name}{number}.png"), picture)
    pets = tmp_path / "datasets" / "oxford-pets"
    synthetic.write_dataset(pets, "two_phase", n_train=4, n_val=0, n_test=1, size=48, seed=0)
    for split in ("train", "test"):
        for path in (pets / f"{split}_annot").iterdir():
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), (mask > 0).astype(np.uint8))
    (tmp_path / "pretrain.yaml").write_text(README_PRETRAIN)
    (tmp_path / "finetune.yaml").write_text(README_FINETUNE)
    small = ["--encoder", "resnet18", "--batch_size", 4, *QUICK]
    argv = ["--config", "pretrain.yaml", "--view_size", 32, "--epochs", 1, "--name", "x", *small]
    assert _run(train_ssl.main, argv) == 0
    kept = checkpoint.load(tmp_path / "experiments/ssl/x/last.ckpt")
    assert kept["preprocess"]["color"] == "rgb" and len(kept["preprocess"]["mean"]) == 3
    trunks = [published.STUDY_WEIGHTS.format(name) for name in ("pets", "pet")]
    states = [torch.load(path, weights_only=True) for path in trunks]
    assert states[0]["conv1.weight"].shape == (64, 3, 7, 7)
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    argv = ["--config", "finetune.yaml", "--input_size", 32, "--crop_size", 32, "--epochs", 1]
    assert _run(train_finetune.main, [*argv, "--name", "y", *small]) == 0
    tuned = checkpoint.load(tmp_path / "experiments/finetune/y/last.ckpt")
    assert tuned["recipe"]["ssl_weights_path"] == trunks[1]
    assert tuned["preprocess"]["color"] == "rgb"


def test_a_trunk_of_another_run_is_kept_and_said(tmp_path: Path) -> None:
    """B15: a file under the study's name may be of another training, or fetched."""
    trunk, path = tmp_path / "run.ckpt", tmp_path / "pretrained_models" / "pets.ckpt"
    trunk.write_bytes(b"one")
    assert encoder_file.publish(trunk, path, None, False) == f"under the study's name: {path}"
    # The same run, resumed: its own file is written again.
    trunk.write_bytes(b"two")
    assert "kept" not in encoder_file.publish(trunk, path, b"one", False)
    assert path.read_bytes() == b"two"
    trunk.write_bytes(b"other run")
    told = encoder_file.publish(trunk, path, None, False)
    assert told.startswith(f"kept {path}, which is not of this run; its trunk is {trunk}")
    assert path.read_bytes() == b"two"
    assert "another one was replaced" in encoder_file.publish(trunk, path, None, True)
    assert path.read_bytes() == b"other run"


def test_a_trunk_is_for_images_normalised_like_imagenets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 3).eval()
    record = Preprocess(window="dtype", mean=(0.4, 0.5, 0.3), std=(0.2, 0.1, 0.3), channels=3)
    path = tmp_path / "x_simclr_backbone.ckpt"
    encoder_file.write_trunk(path, encoder.state_dict(), record)
    other = build_encoder("resnet18", 3).eval()
    other.load_state_dict(torch.load(path, weights_only=True))
    levels = torch.rand(1, 3, 64, 64)
    own, imagenet = (
        (levels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for mean, std in ((record.mean, record.std), (IMAGENET_MEAN, IMAGENET_STD))
    )
    middle = (..., slice(4, -4), slice(4, -4))
    with torch.no_grad():
        assert torch.allclose(encoder(own)[1][middle], other(imagenet)[1][middle], atol=1e-4)
        # Read back by us, it is what it was.
        weights.load(other, path, in_channels=3, mean=record.mean, std=record.std)
        assert torch.allclose(encoder(own)[-1], other(own)[-1], atol=1e-4)


def test_the_flags_of_the_study_act(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    # The study saves the bare trunk; it loads without renaming, and says how much of it did.
    torch.save(build_encoder("resnet18", 3).state_dict(), tmp_path / "trunk.ckpt")
    base = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, "--epochs", 2]
    base += ["--crop_size", 32, "--batch_size", 2, *QUICK]
    argv = [*base, "--pretrained", tmp_path / "trunk.ckpt", "--data_ratio", 0.5]
    assert _run(train_finetune.main, [*argv, "--loss_function", "Dice", "--name", "half"]) == 0
    assert "120 of 120 encoder tensors loaded" in capsys.readouterr().out
    payload = checkpoint.load(tmp_path / "finetune" / "half" / "best.ckpt")
    assert len(payload["progress"]["train_images"]) == 2
    assert payload["recipe"]["loss"] == "dice"

    assert _run(train_finetune.main, [*base, "--pretrained_model", "cifar", "--name", "no"]) == 2
    missing = "experiments/pretrained_models/cifar_simclr_backbone.ckpt"
    assert f"there is no weights file {missing}" in capsys.readouterr().err
    argv = [*base, "--pretrained_model", "baseline", "--data_ratio", 0]
    assert _run(train_finetune.main, argv) == 2
    assert "--data_ratio must be above 0" in capsys.readouterr().err


def test_an_optimiser_the_study_does_not_have_is_refused() -> None:
    content = {"model": {}, "training": {"optimizer": "RMSprop"}, "data": {}}
    with pytest.raises(UserError, match="must be LARS or Adam"):
        published.simclr_study(content, False, "x.yaml")
