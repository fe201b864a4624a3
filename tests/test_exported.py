"""Exported models in the place of checkpoints: the same masks and report, and torch nowhere."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from matssl.core import checkpoint
from matssl.core.damage import Damaged, file_hash
from matssl.core.errors import UserError
from matssl.data import layouts, readers
from matssl.data.preprocess import Preprocess
from matssl.models.segmentation import build_model
from matssl.stages.evaluate import load_model
from matssl.stages.evaluate import predict as stage
from matssl.stages.evaluate.published import results_root
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.export.exporting import export
from matssl.stages.export.settings import ExportSettings
from matssl.trained import engines, ensemble, exported, passes
from matssl.trained.exported import RECIPE, Graph, Recipe
from matssl.trained.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent
# Runs the command with every network library of training out of reach.
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "timm", "segmentation_models_pytorch"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Absent())
from matssl import baselines
from matssl.core.errors import guard
import eval_model
# As in conftest.
baselines.TREES, baselines.SAMPLES, baselines.PIXELS_PER_IMAGE = 5, 500, 400
sys.exit(guard(eval_model.main))
"""
Make = Callable[[], Path]


def _payload(folder: Path, seed: int, **more: Any) -> dict[str, Any]:
    """Return a checkpoint as fine-tuning writes it, of a network with random weights."""
    found = layouts.find(folder)
    assert found.table is not None
    torch.manual_seed(seed)
    model = build_model("tu-test_resnet", "unet", found.table.num_classes)
    learned = [pair.image for pair in found.split("train")]
    return {
        "stage": "finetune",
        "model": model.description,
        "state": model.state_dict(),
        "step": 1,
        "recipe": {"finetune_dataset": str(folder)},
        "preprocess": Preprocess(crop_bottom="auto").to_dict(),
        "classes": found.table.to_dict(),
        "lineage": [{"stage": "finetune", "dataset": "made up"}],
        "progress": {
            "train_images": [str(path) for path in learned],
            "train_digests": [readers.digest(readers.read(path).pixels) for path in learned],
            "temperature": 1.4,
            **more,
        },
    }


@pytest.fixture(scope="module")
def run(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint and its export."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder / "best.ckpt", _payload(synthetic_folder, 3))
    export(ExportSettings(run=str(folder), to="onnx"))
    return folder


@pytest.fixture(scope="module")
def openvino(run: Path) -> Path:
    """The same model as files of OpenVINO."""
    import openvino as library

    home, files = run / "openvino", {}
    home.mkdir()
    for stem in ("model", "model-maps"):
        model = library.convert_model(run / "exported" / f"{stem}.onnx")
        library.save_model(model, home / f"{stem}.xml", compress_to_fp16=False)
        for name in (f"{stem}.xml", f"{stem}.bin"):
            files[name] = file_hash(home / name)
    recipe = Recipe.read(run / "exported" / RECIPE)
    graph = replace(recipe.graphs[0], file="model.xml", maps="model-maps.xml", digests=files)
    replace(recipe, target="openvino", graphs=(graph,)).write(home / RECIPE)
    return home


@pytest.fixture(scope="module")
def several(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an ensemble of unlike shares, factors of its classes, and its export."""
    folder = tmp_path_factory.mktemp("several")
    payloads = [_payload(synthetic_folder, seed) for seed in (3, 4)]
    payloads[1]["preprocess"]["mean"] = [0.4]
    parts = ensemble.joined(payloads, [3.0, 1.0])
    facts = {**payloads[0]["progress"], **parts["progress"], "factors": [1.0, 0.3, 0.7]}
    checkpoint.save(folder / "best.ckpt", {**payloads[0], **parts, "progress": facts})
    export(ExportSettings(run=str(folder), to="onnx"))
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may spoil."""
    return Path(shutil.copytree(run / "exported", tmp_path / "copied"))


def _metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    # Where the model lies is all that may differ.
    return {name: value for name, value in metrics.items() if name != "model"}


def _evaluated(model: Path, data: Path, out: Path, **flags: Any) -> dict[str, Any]:
    options = {"threads": 1, "precision": "fp32", "quiet": True, "baselines": False, **flags}
    settings = EvaluateSettings(
        model_path=str(model), dataset=str(data), output_dir=str(out), name="x", **options
    )
    return _metrics(stage.evaluate(settings))


def _near(one: Any, other: Any, most: float = 1e-4) -> bool:
    """Return whether two records are the same but for rounding."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(_near(one[k], other[k], most) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_near, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= most * max(1, abs(one))
    return bool(one == other)


# --- the command ---
@pytest.mark.usefixtures("no_drawing")
def test_the_command_gives_the_same_masks_and_report_where_there_is_no_torch(
    run: Path, synthetic_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model_path", str(run / "exported"), "--dataset", str(synthetic_folder)]
    flags += ["--output_dir", str(tmp_path), "--name", "x", "--threads", "1", "--quiet"]
    flags += ["--save_probabilities", "--tta", "--tile_size", "64"]
    words = [sys.executable, "-c", WITHOUT_TORCH, *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = tmp_path / "eval" / "x"
    how = {"tta": True, "tile_size": 64, "save_probabilities": True, "baselines": True}
    with_torch = _evaluated(run, synthetic_folder, tmp_path / "torch", **how)
    here, without = tmp_path / "torch" / "eval" / "x", _metrics(there)
    # A classifier on features that differ in the seventh digit may differ in a pixel.
    fitted = [metrics.pop("baselines") for metrics in (with_torch, without)]
    assert _near(with_torch, without) and list(fitted[0]) == list(fitted[1])
    for name in fitted[0]:
        assert fitted[0][name]["miou"] == pytest.approx(fitted[1][name]["miou"], abs=0.005), name
    masks = sorted(path.relative_to(here) for path in here.glob("masks/**/*.png"))
    assert masks
    for name in masks:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    files = [
        {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        for root in (here, there)
    ]
    assert files[0] == files[1]
    tables = [(root / "per_image.csv").read_text().splitlines() for root in (here, there)]
    rows = [list(csv.DictReader(table)) for table in tables]
    assert [row["image"] for row in rows[0]] == [row["image"] for row in rows[1]]
    environment = json.loads((there / "environment.json").read_text())
    assert environment["threads"] is None and "onnxruntime" in environment["packages"]


@pytest.mark.usefixtures("no_drawing")
def test_openvino_gives_the_same_scores(
    run: Path, openvino: Path, synthetic_folder: Path, tmp_path: Path
) -> None:
    wanted = _evaluated(run, synthetic_folder, tmp_path / "a", split="all")
    assert _near(wanted, _evaluated(openvino, synthetic_folder, tmp_path / "b", split="all"))


def test_what_an_exported_model_cannot_do_is_refused_in_one_line(
    run: Path, synthetic_folder: Path, tmp_path: Path
) -> None:
    for flags, told in (
        ({"device": "cuda"}, "--device"),
        ({"precision": "bf16"}, "--precision"),
        ({"encoder": "resnet18"}, "--encoder"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            _evaluated(run / "exported", synthetic_folder, tmp_path, **flags)
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"model-maps.onnx is no network of .*give the folder, or"):
        Segmenter.load(run / "exported" / "model-maps.onnx")


def test_results_of_an_export_stand_beside_those_of_its_checkpoint(
    run: Path, openvino: Path
) -> None:
    names = []
    for model in (run, run / "exported", run / "exported" / "model.onnx", run / "openvino"):
        settings = EvaluateSettings(model_path=str(model), dataset="pictures", output_dir="out")
        names.append(str(results_root(settings, raw=False)))
    ending = f"{run.name}-on-pictures", f"{run.name}-exported-on-pictures"
    assert names == [f"out/eval/{ending[0]}", *[f"out/eval/{ending[1]}"] * 2, names[3]]
    assert names[3] == "out/eval/openvino-on-pictures"


# --- in Python ---
def _image(seed: int = 0, size: tuple[int, int] = (150, 101)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 255, (12, 9)).astype(np.uint8)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_prediction_is_that_of_torch(run: Path, openvino: Path, batch: int) -> None:
    how: dict[str, Any] = {"tile_size": 64, "overlap": 16, "batch_size": batch}
    wanted = Segmenter.load(run, precision="fp32").predict(_image(), **how)
    for path in (run / "exported" / RECIPE, run / "exported" / "model.onnx", openvino):
        found = Segmenter.load(path, threads=1).predict(_image(), **how)
        assert np.abs(found.probabilities - wanted.probabilities).max() < 1e-5
        assert np.array_equal(found.classes, wanted.classes)
        assert found.temperature == wanted.temperature and found.names == wanted.names


def test_an_ensemble_keeps_its_shares_levels_and_factors(several: Path) -> None:
    wanted, found = (Segmenter.load(path) for path in (several, several / "exported"))
    assert len(found.members) == 2 and found.factors == wanted.factors == (1.0, 0.3, 0.7)
    assert [m.record.mean for m in found.members] == [m.record.mean for m in wanted.members]
    one, other = wanted.predict(_image()), found.predict(_image())
    assert np.abs(one.probabilities - other.probabilities).max() < 1e-5
    assert np.array_equal(one.classes, other.classes)


def test_passes_of_an_exported_ensemble_may_contradict_each_other(several: Path) -> None:
    found = Segmenter.load(several / "exported")
    assert passes.kind(found) == "ensemble"
    assert len(list(passes.probabilities(found, _image(), "ensemble", 0, 0))) == 2
    alone = replace(found, members=())
    with pytest.raises(UserError, match="dropout"):
        passes.kind(alone, "dropout")
    assert passes.kind(alone) == "orientations"


def test_the_recipe_keeps_what_the_segmenter_knew(run: Path) -> None:
    wanted, found = (Segmenter.load(path) for path in (run, run / "exported"))
    for name in ("record", "table", "trained_on", "lineage", "temperature", "threshold", "raw"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert "onnxruntime" in found.note


def test_scripts_that_want_the_torch_module_are_told(run: Path) -> None:
    with pytest.raises(UserError, match="exported"):
        load_model(run / "exported")


# --- files ---
def test_a_recipe_reads_what_it_wrote(run: Path, tmp_path: Path) -> None:
    recipe = Recipe.read(run / "exported" / RECIPE)
    changed = replace(recipe, factors=(0.5, 1.0, 0.2), note="two\nlines", raw=True)
    changed.write(tmp_path / RECIPE)
    assert Recipe.read(tmp_path / RECIPE) == changed


def test_a_changed_network_is_not_used(copied: Path) -> None:
    data = bytearray((copied / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.onnx").write_bytes(data)
    with pytest.raises(Damaged, match="SHA-256"):
        Segmenter.load(copied)


@pytest.mark.parametrize("name", ["model.onnx", "model-maps.onnx", RECIPE])
def test_what_is_absent_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UserError, match=name):
        Segmenter.load(copied / ("model.onnx" if name == RECIPE else RECIPE))


def test_a_file_that_is_no_network_is_said_to_be_none(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"no network at all")
    recipe = Recipe.read(copied / RECIPE)
    digests = {**recipe.graphs[0].digests, "model.onnx": file_hash(copied / "model.onnx")}
    replace(recipe, graphs=(replace(recipe.graphs[0], digests=digests),)).write(copied / RECIPE)
    with pytest.raises(Damaged, match="damaged"):
        Segmenter.load(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "matssl-export/2"},
        {"format": 3},
        {"networks": []},
        {"networks": [{"file": "../model.onnx"}]},
        {"networks": "model.onnx"},
        {"classes": {}},
        {"preprocess": []},
        {"trained_on": None},
        {"factors": [2.0]},
        {"threshold": "half"},
        {"lineage": 5, "parity": 7},
    ],
)
def test_a_garbled_recipe_is_refused_in_one_line(copied: Path, change: dict[str, Any]) -> None:
    values = json.loads((copied / RECIPE).read_text())
    (copied / RECIPE).write_text(json.dumps(values | change))
    with pytest.raises(UserError) as caught:
        Recipe.read(copied / RECIPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../model.onnx"},
        {"file": "absent.onnx"},
        {"digests": {}},
        {"digests": {"../model.onnx": "0"}},
        {"temperature": 0},
        {"share": -1},
        {"multiple": 0},
        {"side": 33},
        {"mean": []},
        {"std": [0.0]},
        {"maps": "other.onnx"},
    ],
)
def test_a_network_of_a_recipe_must_be_one(copied: Path, change: dict[str, Any]) -> None:
    values = json.loads((copied / RECIPE).read_text())
    values["networks"][0] |= change
    (copied / RECIPE).write_text(json.dumps(values))
    with pytest.raises(Damaged, match=RECIPE):
        Recipe.read(copied / RECIPE)


def test_a_network_of_other_classes_is_damaged_and_gives_no_mask(copied: Path) -> None:
    found = Segmenter.load(copied)
    with pytest.raises(Damaged, match="gives an array"):
        found.network.probabilities(np.zeros((1, 64, 64), np.float32), 5)


def test_a_library_that_is_not_installed_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime: pip install matssl\[runtime\]"):
        Segmenter.load(run / "exported")


def test_tiles_of_one_size_alone_are_kept_to() -> None:
    seen = []

    def run(tiles: np.ndarray) -> list[np.ndarray]:
        seen.append(tiles.shape)
        return [np.concatenate([tiles, -tiles], axis=1)]

    network = engines.Exported(run, 32, 96, None, "model.onnx")
    image = np.random.default_rng(0).standard_normal((1, 70, 200)).astype(np.float32)
    found = network.probabilities(image, 2, overlap=0)
    assert set(seen) == {(1, 1, 96, 96)} and len(seen) == 3
    wanted = 1 / (1 + np.exp(-2 * image[0]))
    assert np.abs(found[0] - wanted).max() < 1e-6 and np.abs(found.sum(axis=0) - 1).max() < 1e-6
    with pytest.raises(UserError, match="--tile_size"):
        network.probabilities(image, 2, tile_size=64)


def test_the_encoder_of_an_export_gives_the_maps_of_torch(run: Path, openvino: Path) -> None:
    image = np.random.default_rng(5).standard_normal((1, 64, 96)).astype(np.float32)
    wanted = Segmenter.load(run, precision="fp32").network.maps
    assert wanted is not None
    for path in (run / "exported", openvino):
        found = Segmenter.load(path).network.maps
        assert found is not None and found.multiple == wanted.multiple
        for one, other in zip(wanted.of(image), found.of(image), strict=True):
            assert one.shape == other.shape and np.abs(one - other).max() < 1e-4


def test_only_paths_of_exports_are_taken_for_some(run: Path) -> None:
    assert exported.leads_to_one(run / "exported")
    assert not exported.leads_to_one(run) and not exported.leads_to_one(run / "best.ckpt")
    assert Graph("a.onnx", {}, "e", "d", (0.0,), (1.0,)).multiple == 32
