"""Faults of the published codes that no other file looks at, as the behaviour they have here."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import train_finetune
import train_ssl
from matssl import hub, metrics
from matssl.core import checkpoint, run_folder, runtime
from matssl.core.damage import file_hash
from matssl.core.errors import UserError, guard
from matssl.data import cache, crops, layouts, masks, readers, synthetic
from matssl.data.datasets import ViewLoader
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewAugmentation
from matssl.models.segmentation import build_model
from matssl.stages import published
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.evaluate.published import results_root
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.evaluate.summary import excluded_classes
from matssl.stages.finetune import inputs as tuning
from matssl.stages.finetune import settings as tuning_settings
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.pretrain import inputs, loop, settings
from matssl.stages.pretrain.settings import PretrainSettings
from matssl.trained.segmenter import Segmenter
from matssl.weights import folding

pytestmark = pytest.mark.usefixtures("no_drawing")

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--threads", "1", "--precision", "fp32", "--crop_size", "32", "--batch_size", "2"]
QUICK += ["--encoder", "tu-test_resnet"]


def _run(main: Any, *argv: object) -> int:
    return guard(main, [str(word) for word in argv])


def _pairs(split: str, count: int) -> list[Pair]:
    return [
        Pair(Path(f"{split}/{i}.png"), Path(f"{split}/{i}_mask.png"), f"{split}{i}", split)
        for i in range(count)
    ]


def _dataset(*pairs: Pair) -> layouts.Dataset:
    return layouts.Dataset(Path("x"), "made", tuple(pairs), None, ())


# --- names of runs and of results ---
def test_runs_of_other_weights_data_and_notes_have_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "today", lambda: "T")
    ssl = str(tmp_path / "ssl" / "first run" / "encoder.safetensors")
    starts: list[dict[str, Any]] = [{}, {"ssl_weights_path": ssl}, {"weights": "imagenet"}]
    names = {
        tuning.default_name(FinetuneSettings(finetune_dataset=data, note=note, **start))
        for data in ("d/EBC 1/", "d/EBC2")
        for note in ("", "x")
        for start in starts
    }
    assert len(names) == 12
    assert {"random-EBC_1-T", "first run-EBC2-T-x", "imagenet-EBC_1-T-x"} <= names


def test_both_variants_of_pscl_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "today", lambda: "T")
    models = ("pscl-moco", "pscl-simclr")
    names = [loop._default_name(PretrainSettings(model=m, data_path="d/al/")) for m in models]
    assert names == ["pscl-moco-al-T", "pscl-simclr-al-T"]


def test_a_slash_behind_the_pool_touches_no_other_run(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_folder, "today", lambda: "T")
    run = tmp_path / "ssl" / f"matssl-{pool_folder.name}-T"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    argv = ["--data_path", f"{pool_folder}/", "--output_dir", tmp_path, "--threads", 1]
    assert _run(train_ssl.main, *argv) == 2
    assert f"{run} exists already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*.*")] == ["notes.txt"]


def test_results_of_each_model_and_folder_have_a_place_of_their_own() -> None:
    def place(model: str, data: str, **more: Any) -> Path:
        settings = EvaluateSettings(model_path=model, dataset=data, **more)
        return results_root(settings, raw=False)

    places = {
        place("r/first/best.ckpt", "d/EBC-1/"),
        place("r/first/best.ckpt", "d/EBC-2"),
        place("r/other/best.ckpt", "d/EBC-2"),
        place("r/first/best.ckpt", "d/EBC-2", split="val"),
        place("hub/published.pth", "d/EBC-2"),
    }
    assert len(places) == 5
    named = place("r/first/best.ckpt", "d/x", dataset_name="EBC 2")
    assert named == place("r/first/best.ckpt", "d/EBC 2")
    for name in ("../up", "a/b"):
        words = ["--model_path", "r/first/best.ckpt", "--dataset", "d/x", "--dataset_name", name]
        with pytest.raises(UserError, match="has slashes"):
            evaluate_settings.resolve(words)


# --- images and masks ---
def test_every_kind_of_image_the_published_code_took_is_read(tmp_path: Path) -> None:
    plane = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)
    for suffix in ("pgm", "ppm", "webp", "bmp"):
        picture = plane if suffix != "ppm" else np.repeat(plane[..., None], 3, axis=2)
        options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == "webp" else []
        cv2.imwrite(str(tmp_path / f"a_{suffix}.{suffix}"), picture, options)
    found = readers.find_images(tmp_path)
    assert len(found) == 4
    for path in found:
        pixels = readers.read(path).pixels
        assert np.array_equal(pixels if pixels.ndim == 2 else pixels[..., 0], plane), path.name


def test_stray_files_shift_no_pair(tmp_path: Path) -> None:
    picture = np.zeros((32, 32), np.uint8)
    for split in ("train", "test"):
        for kind in ("inputs", "targets", "visualized"):
            (tmp_path / split / kind).mkdir(parents=True)
            for name in "ab":
                picture[4:, 4:] = 255 if name == "b" else 128
                picture[:2] = 0
                cv2.imwrite(str(tmp_path / split / kind / f"{name}.png"), picture)
    (tmp_path / "visualized").mkdir()
    cv2.imwrite(str(tmp_path / "visualized" / "a.png"), picture)
    (tmp_path / "class_analysis.txt").write_text("x")
    (tmp_path / "train" / "inputs" / "Thumbs.db").write_bytes(b"x")
    found = layouts.find(tmp_path)
    assert found.splits == ("train", "test") and len(found.pairs) == 4
    for pair in found.pairs:
        assert pair.mask is not None and pair.mask.parent.name == "targets"
        assert pair.mask.name == pair.image.name and pair.image.parent.name == "inputs"


def test_two_images_for_one_mask_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "train_annot"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.eye(32, dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "train" / "a.jpg"), np.eye(32, dtype=np.uint8))
    with pytest.raises(UserError, match=r"a.jpg and a.png, but train_annot only a.png"):
        layouts.find(tmp_path)


def test_lists_in_a_class_file_are_colours_or_numbers_as_the_masks_are(tmp_path: Path) -> None:
    color = np.zeros((4, 3, 3), np.uint8)
    color[:, 1], color[:, 2] = (0, 0, 255), (255, 0, 0)
    cv2.imwrite(str(tmp_path / "c.png"), color[..., ::-1])
    cv2.imwrite(str(tmp_path / "g.png"), np.array([[0, 1, 2, 3, 4]], np.uint8))
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {bg: [0, 0, 0], blue: [0, 0, 255], red: '#ff0000'}")
    table, _ = masks.find_table([tmp_path / "c.png"], str(file))
    assert table.decode(color)[0].tolist() == [0, 1, 2]
    file.write_text("classes: {a: 0, b: [1, 2, 3], c: rest}\nignore: [7, 8, 9]")
    table, _ = masks.find_table([tmp_path / "g.png"], str(file))
    assert table.decode(np.array([[0, 1, 2, 3, 4, 8]], np.uint8)).tolist() == [[0, 1, 1, 1, 2, 255]]


# --- what chooses the model ---
def test_no_test_image_and_no_test_mask_is_opened_by_training(
    synthetic_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(synthetic_folder, folder)
    for path in [*(folder / "test").iterdir(), *(folder / "test_annot").iterdir()]:
        path.write_bytes(b"whoever opens this fails")
    argv = ["--finetune_dataset", folder, "--output_dir", tmp_path, "--name", "x", *QUICK]
    assert _run(train_finetune.main, *argv, "--steps", 1) == 0


def test_validation_is_cut_from_train_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _dataset(*_pairs("train", 10), *_pairs("test", 4))
    cuts = [tuning.split(data, seed=seed) for seed in (0, 0, 1)]
    for train, val in cuts:
        assert len(val) == 2 and len(train) == 8
        assert {str(p.image) for p in (*train, *val)} == {f"train/{i}.png" for i in range(10)}
    assert cuts[0] == cuts[1] != cuts[2]
    # One specimen alone: its images validate each other instead of being trained on ten times.
    alone = _dataset(*(replace(p, group="one") for p in _pairs("train", 10)))
    assert [len(part) for part in tuning.split(alone)] == [8, 2]


def test_smaller_shares_of_the_labels_are_parts_of_larger_ones() -> None:
    data = _dataset(*_pairs("train", 10), *_pairs("val", 3), *_pairs("test", 4))
    parts = [tuning.split(data, data_ratio=r) for r in (0.2, 0.5, 0.8, 1.0)]
    chosen = [{p.image for p in train} for train, _ in parts]
    assert [len(part) for part in chosen] == [2, 5, 8, 10]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert len({val for _, val in parts}) == 1
    other, _ = tuning.split(data, data_ratio=0.5, seed=1)
    assert {p.image for p in other} != chosen[1]


def test_the_kept_model_is_that_of_the_best_validation(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.4] + [0.3] * 20)
    monkeypatch.setattr(metrics.overlap, "miou", lambda counts: next(scores))
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, "--name", "x"]
    argv += [*QUICK, "--val_every", 1, "--quiet"]
    assert _run(train_finetune.main, *argv, "--steps", 4) == 0
    run = tmp_path / "finetune" / "x"
    assert checkpoint.load(run / "best.ckpt")["step"] == 2
    assert json.loads((run / "status.json").read_text())["best_miou"] == 0.9
    before = file_hash(run / "best.ckpt")
    # The best score is part of what a run resumes from: worse steps replace nothing.
    payload = checkpoint.load(run / "last.ckpt")
    payload["step"] = 3
    checkpoint.save(run / "last.ckpt", {k: v for k, v in payload.items() if k != "format"})
    assert _run(train_finetune.main, *argv, "--steps", 4, "--resume") == 0
    assert file_hash(run / "best.ckpt") == before


def test_masks_without_a_labelled_pixel_to_validate_leave_the_last_model(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.overlap, "miou", lambda counts: float("nan"))
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, "--name", "x"]
    assert _run(train_finetune.main, *argv, *QUICK, "--steps", 2, "--quiet") == 0
    run = tmp_path / "finetune" / "x"
    assert checkpoint.load(run / "best.ckpt")["step"] == 2


def test_flags_of_augmentation_reach_the_crops() -> None:
    values: dict[str, Any] = {"brightness": 0.1, "contrast": 0.2, "gamma": 0.3, "blur_p": 0.5}
    values |= {"illumination": 0.4, "noise_p": 0.6, "d4": "flips"}
    chosen = FinetuneSettings(
        finetune_dataset="x", crop_size=64, scale_jitter=0.7, rare_class_p=0.8, **values
    )
    expected = crops.CropAugmentation(size=64, scale=0.7, rare_p=0.8, **values)
    assert tuning.crop_augmentation(chosen) == expected
    ours = tuning.crop_augmentation(tuning_settings.resolve(["--finetune_dataset", "x"]))
    assert ours.d4 == "full" and ours.contrast > 0 and ours.gamma > 0


def test_whole_images_come_once_an_epoch(synthetic_folder: Path) -> None:
    found = layouts.find(synthetic_folder)
    assert found.table is not None
    record = Preprocess()
    data = crops.load(found.split("train"), record, found.table)
    augmentation = crops.CropAugmentation(size=96, rare_p=0.0)
    loader = crops.CropLoader(data, record, 2, augmentation, 2, seed=0)
    seen: list[int] = []
    original = loader._image

    def spy(step: int, sample: int, generator: np.random.Generator) -> int:
        seen.append(original(step, sample, generator))
        return seen[-1]

    loader._image = spy  # type: ignore[method-assign]
    list(loader.batches(0, 4))
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]


def test_five_images_fill_batches_of_six(tmp_path: Path) -> None:
    synthetic.write_dataset(
        tmp_path / "d", "two_phase", n_train=5, n_val=1, n_test=1, size=64, seed=0
    )
    found = layouts.find(tmp_path / "d")
    assert found.table is not None
    data = crops.load(found.split("train"), Preprocess(), found.table)
    assert len(data.planes) == 5
    loader = crops.CropLoader(data, Preprocess(), 2, crops.CropAugmentation(size=32), 6, seed=0)
    batches = list(loader.batches(0, 3))
    assert [len(masks) for _, masks in batches] == [6, 6, 6]


def test_a_folder_of_pscl_is_read_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "sup_num1_0"
    for number, kind in enumerate(("480h_a_1", "24h_a_2", "24h_b_1")):
        for part, ending in (("img", ".jpg"), ("gt", ".png")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            picture = np.full((32, 32), 90, np.uint8)
            picture[:16] = np.repeat(np.arange(4, dtype=np.uint8), 8) if part == "gt" else number
            Image.fromarray(picture % 4 if part == "gt" else picture).save(
                folder / part / f"{kind}{ending}"
            )
    found = layouts.find(folder, group_regex="^([^_]+)_")
    assert found.table is not None and found.table.num_classes == 4
    assert {pair.group for pair in found.pairs} == {"480h", "24h"}
    assert all(p.mask is not None and p.mask.stem == p.image.stem for p in found.pairs)
    assert {pair.split for pair in found.pairs} == {"train"}


# --- scores ---
def test_excluded_classes_leave_a_mean_of_their_own() -> None:
    counts = np.array([[8, 0, 2], [0, 5, 0], [4, 0, 1]], np.int64)
    pairs = np.repeat(np.indices((3, 3)).reshape(2, 9), counts.ravel(), axis=1).astype(np.uint8)
    images = [metrics.gather(pairs[:1], pairs[1:], 3)]
    found = metrics.means(images, (2,))
    iou = [8 / 14, 1.0, 1 / 7]
    assert found["miou"] == pytest.approx(np.mean(iou))
    # What the excluded class loses to the first one still counts against the first.
    assert found["miou_without_excluded"] == pytest.approx(np.mean(iou[:2]))
    assert "miou_without_excluded" not in metrics.means(images)
    for names in ("c", "a,b"):
        with pytest.raises(UserError, match="at least one must be left"):
            excluded_classes(names, ("a", "b"))


def test_a_raw_model_sees_images_as_published(tmp_path: Path) -> None:
    torch.save(build_model("resnet18", "unet", 2, 3).state_dict(), tmp_path / "raw.pth")
    record = Segmenter.load(tmp_path / "raw.pth").record
    assert (record.window, record.resize) == ("dtype", 256)
    seen = record.tensor(np.full((8, 8, 3), 128 / 255, np.float32))
    for plane, mean, std in zip(seen, folding.IMAGENET_MEAN, folding.IMAGENET_STD, strict=True):
        assert plane == pytest.approx((128 / 255 - mean) / std, abs=1e-5)


# --- flags ---
def test_flags_of_another_method_are_said_to_have_no_effect() -> None:
    argv = ["--data_path", "x", "--dense_weight", "0.9", "--queue_size", "7", "--lr", "0.5"]
    for model, idle in (
        ("matssl", ["--dense_weight", "--queue_size"]),
        ("mocov2", ["--dense_weight"]),
        ("densecl", []),
    ):
        found = settings.resolve(["--model", model, *argv]).idle
        assert sorted(f"--{name}" for name in found) == idle
    labels = ["--data_path", "x", "--labeled_path", "y", "--labeled_count", "1", "--splits", "z"]
    labels += ["--batch_regex", "(a)", "--probe_every", "5"]
    for model, idle in (
        ("byol", labels[2::2]),
        ("pscl-moco", ["--probe_every"]),
        ("pscl", ["--probe_every", "--batch_regex"]),
    ):
        found = settings.resolve(["--model", model, *labels]).idle
        assert sorted(f"--{name}" for name in found) == sorted(idle)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--loss", "dice", "--class_weights", "balanced"], "--loss dice has none"),
        (["--class_weights", "1,2"], "3 numbers above 0, one for each class (1,1,10), not 1,2"),
        (["--class_weights", "1,2,none"], "or numbers above 0"),
        (["--class_weights", "1,2,0"], "or numbers above 0"),
        (["--low", "2"], "--low and --high act with --window"),
    ],
)
def test_flags_that_cannot_act_are_refused(
    flags: list[str], sentence: str, synthetic_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--finetune_dataset", synthetic_folder, *QUICK, *flags]
    assert _run(train_finetune.main, *argv) == 2
    assert sentence in capsys.readouterr().err


def test_an_environment_for_sgd_does_not_reach_our_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"export SSL_LR=0.7 # \xff\n")
    (tmp_path / "x").mkdir()
    assert published.environment() == {"lr": "0.7"}
    seen = []
    monkeypatch.setattr(loop, "pretrain", lambda found, argv: seen.append(found.run.lr))
    for recipe in ("matssl", "paper"):
        assert _run(train_ssl.main, "--data_path", "x", "--recipe", recipe) == 0
    assert seen[0] != 0.7 and seen[1] == 0.7
    assert "act with --recipe paper only: lr 0.7" in capsys.readouterr().out


def test_a_tile_is_twice_the_view_so_that_grains_keep_their_scale(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    names = inspect.signature(inputs._pool).parameters

    def stop(*args: Any) -> None:
        asked.append(dict(zip(names, args, strict=True))["tile_size"])
        raise UserError("enough")

    monkeypatch.setattr(inputs, "_pool", stop)
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path, "--view_size", 64]
    argv += ["--threads", 1]
    assert _run(train_ssl.main, *argv) == _run(train_ssl.main, *argv, "--tile_size", 96) == 2
    assert asked == [128, 96]


# --- files of others ---
def test_weights_are_read_onto_the_cpu_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    original, seen = torch.load, {}

    def spy(*args: Any, **options: Any) -> Any:
        seen.update(options)
        return original(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    checkpoint.read_tensors(tmp_path / "w.pth")
    assert str(seen["map_location"]) == "cpu" and seen["weights_only"] is True


def test_the_version_of_micronet_weights_is_in_their_name() -> None:
    registry = hub.weights_registry()
    for name, entry in registry.items():
        if name.startswith("micronet"):
            version = "1.1" if name.endswith("v1.1") else "1.0"
            assert f"_v{version}." in entry.url and f"version {version}" in entry.protocol, name
    assert "micronet-resnet50-v1.1" in registry


class _Pets:
    """Two photographs and trimaps, as torchvision lays them out."""

    def __init__(self, root: str, split: str, target_types: str, download: bool) -> None:
        folder = Path(root) / split
        folder.mkdir(parents=True)
        self._images, self._segs = [], []
        trimap = np.repeat(np.array([1, 2, 3, 2], np.uint8), 16).reshape(8, 8)
        for name in "ab":
            Image.new("RGB", (8, 8), (90, 80, 70)).save(folder / f"{name}.jpg")
            Image.fromarray(trimap).save(folder / f"{name}.png")
            self._images.append(folder / f"{name}.jpg")
            self._segs.append(folder / f"{name}.png")


class _Cifar:
    classes = ("plane", "car")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.items = [(Image.new("RGB", (32, 32)), 1), (Image.new("RGB", (32, 32)), 0)]

    def __iter__(self) -> Any:
        return iter(self.items)


def test_photographs_of_the_study_are_laid_out_for_the_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "OxfordIIITPet", _Pets)
    monkeypatch.setattr(datasets, "CIFAR10", _Cifar)
    registry = hub.data_registry()
    pets = hub.fetch_data(registry["oxford-pets"], tmp_path / "pets", quiet=True)
    found = layouts.find(pets)
    assert found.splits == ("train", "test") and found.table is not None
    assert found.table.names == ("background", "animal")
    assert found.table.decode(np.array([[1, 2, 3]], np.uint8)).tolist() == [[1, 0, 1]]
    photos = hub.fetch_data(registry["cifar10"], tmp_path / "cifar", quiet=True)
    names = [p.name for p in readers.find_images(photos / "train")]
    assert names == ["car_00000.png", "plane_00001.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar", "pets"]


def test_no_source_file_is_hidden_from_git() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    files = [str(p) for p in (ROOT / "matssl").rglob("*") if p.suffix in (".py", ".yaml")]
    done = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "" and len(files) > 60


def test_the_names_of_published_files_are_links_and_not_copies(tmp_path: Path) -> None:
    from matssl.core.run_folder import RunFolder

    folder = RunFolder.at(tmp_path / "run")
    folder.write_text("best.ckpt", "x")
    folder.alias("best.ckpt", "best_0.1.pth", "best_*.pth")
    folder.alias("best.ckpt", "best_0.2.pth", "best_*.pth")
    assert [p.name for p in folder.root.glob("*.pth")] == ["best_0.2.pth"]
    assert (folder.root / "best_0.2.pth").samefile(folder.root / "best.ckpt")


# --- the paths of a GPU, as far as a machine without one can hold them ---
def test_batches_for_a_gpu_are_made_in_pinned_memory(
    pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = cache.build(readers.find_images(pool_folder), Preprocess(), cache_dir=None, quiet=True)
    pinned: list[int] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append(self.element_size())
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    for wanted in (False, True):
        loader = ViewLoader(pool, [ViewAugmentation(size=32)] * 2, 4, 48, 7, pin=wanted)
        batch = next(iter(loader.epoch(0)))
        assert len(pinned) == (5 if wanted else 0)
    # The views travel as bytes; they are what there is most of.
    assert pinned[:2] == [1, 1] and batch.views[0].dtype == torch.uint8


def test_compiling_is_asked_for_once_and_for_the_network_that_learns(
    synthetic_folder: Path, pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def compile(model: torch.nn.Module) -> torch.nn.Module:
        compiled.append(type(model).__name__)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path, "--name", "x", "--compile"]
    argv += ["--view_size", 32, "--batch_size", 4, "--steps", 1, "--threads", 1, "--quiet"]
    assert _run(train_ssl.main, *argv) == 0
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, "--name", "x"]
    assert _run(train_finetune.main, *argv, *QUICK, "--steps", 1, "--compile", "--quiet") == 0
    assert compiled == ["MatSSL", "SegmentationModel"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    argv += ["--overwrite", "--compile", "--quiet"]
    assert _run(train_finetune.main, *argv, *QUICK, "--steps", 1) == 2


def test_equal_bits_on_a_gpu_cost_the_search_for_the_fastest_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for wanted in (False, True):
        runtime._equal_bits(wanted)
        assert torch.backends.cudnn.benchmark is not wanted
    assert asked == [False, True]


def test_the_tests_that_the_guide_for_migrants_names_exist() -> None:
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    file, count = "", 0
    for name, test in re.findall(r"(?:(test_\w+)(?:\.py)?)?::(test_\w+)", text):
        file = name or file
        source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file}::{test}"
        count += 1
    assert count > 40
