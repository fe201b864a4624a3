"""Models that leave: what is written says what torch says, or nothing is written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from matssl.core import checkpoint
from matssl.core.damage import file_hash
from matssl.core.errors import UserError, guard
from matssl.data import layouts, readers
from matssl.data.preprocess import Preprocess
from matssl.forest.logistic import Linear
from matssl.metrics import overlap
from matssl.metrics.counts import confusion
from matssl.models.encoders import build_encoder
from matssl.models.pixels import Features, PixelClassifier
from matssl.models.segmentation import build_model
from matssl.stages.export import bioimageio, exporting, graphs, pack, parity, sample, targets
from matssl.stages.export.settings import TARGETS as NAMES
from matssl.stages.export.settings import ExportSettings
from matssl.tools import check_export, export_model
from matssl.trained import ensemble, exported
from matssl.trained.exported import RECIPE, Recipe
from matssl.trained.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent


def _payload(folder: Path, seed: int = 0, **model: Any) -> dict[str, Any]:
    table = layouts.find(folder).table
    assert table is not None
    torch.manual_seed(seed)
    told = {"encoder": "tu-test_resnet", "decoder": "unet", "decoder_filters": [16, 8, 8, 8, 8]}
    network = build_model(num_classes=table.num_classes, **{**told, **model})
    return {
        "stage": "finetune",
        "model": network.description,
        "state": network.state_dict(),
        "preprocess": Preprocess(crop_bottom="auto", mean=(0.45,), std=(0.2,)).to_dict(),
        "classes": table.to_dict(),
        "recipe": {"finetune_dataset": str(folder)},
        "lineage": [{"stage": "finetune", "dataset": "made up"}],
        "progress": {"temperature": 1.4},
        "step": 1,
    }


@pytest.fixture(scope="module")
def run(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "steel"
    folder.mkdir()
    checkpoint.save(folder / "best.ckpt", _payload(synthetic_folder))
    return folder


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exports of one model to every target, with the pack of the first."""
    folder = tmp_path_factory.mktemp("out")
    for name in NAMES:
        settings = ExportSettings(
            run=str(run), to=name, output_dir=str(folder / name), pack=name == "onnx"
        )
        exporting.export(settings)
    return {name: folder / name for name in NAMES}


def _tool(*argv: object) -> int:
    return guard(export_model.main, [str(word) for word in argv])


# --- every target ---
def test_every_target_of_the_flag_is_built() -> None:
    assert list(targets.TARGETS) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_what_was_written_and_what_the_comparison_found(
    name: str, out: dict[str, Path], run: Path
) -> None:
    recipe = Recipe.read(out[name] / RECIPE)
    assert (recipe.target, recipe.precision) == (name, "fp32")
    (graph,) = recipe.graphs
    written = {path.name for path in out[name].iterdir()} - {RECIPE, pack.NAME}
    assert set(graph.digests) == written and graph.file in written
    assert all(file_hash(out[name] / file) == told for file, told in graph.digests.items())
    assert (graph.encoder, graph.decoder) == ("tu-test_resnet", "unet")
    assert (graph.mean, graph.std, graph.temperature) == ((0.45,), (0.2,), 1.4)
    assert graph.side is None
    found = recipe.parity
    assert 0 <= found["largest_difference_of_probabilities"] <= 1e-4
    assert found["labels_changed"] <= 1e-4 * found["pixels"]
    assert found["pixels"] == sum(height * width for height, width in parity.SIZES)
    assert recipe.source == f"{run.name}/best.ckpt"


@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript"])
def test_a_file_takes_tiles_of_any_number_and_size_and_says_what_torch_says(
    name: str, out: dict[str, Path], run: Path
) -> None:
    (graph,) = Recipe.read(out[name] / RECIPE).graphs
    model = Segmenter.load(run, device="cpu", precision="fp32").network.model  # type: ignore[attr-defined]
    runs = targets.TARGETS[name].run(out[name] / graph.file, 1)
    for shape in ((1, 1, 32, 32), (3, 1, 96, 160)):
        tiles = torch.randn(*shape)
        with torch.inference_mode():
            expected = model(tiles).numpy()
        np.testing.assert_allclose(runs(tiles.numpy())[0], expected, atol=2e-5)


def test_given_pictures_are_compared_as_well(
    run: Path, synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = synthetic_folder / "test"
    argv = [run, "--to", "torchscript", "--pictures", pictures, "--output_dir", tmp_path / "out"]
    assert _tool(*argv) == 0
    names = Recipe.read(tmp_path / "out" / RECIPE).parity["pictures"]
    assert names[2:] == sorted(path.name for path in pictures.iterdir())
    assert names[2] in capsys.readouterr().out


class _Shifted(nn.Module):
    """Says of class 0 a little more than the network does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return torch.cat([logits[:, :1] + 0.01, logits[:, 1:]], dim=1)


def test_a_file_that_says_something_else_is_refused_and_nothing_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(module: nn.Module, example: Tensor, path: Path, dynamic: bool) -> None:
        targets.write_torchscript(_Shifted(module), example, path, dynamic)

    wrong = targets.TARGETS["torchscript"]._replace(write=write)
    monkeypatch.setitem(targets.TARGETS, "torchscript", wrong)
    assert _tool(run, "--to", "torchscript", "--output_dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "does not say in model.pt what it says in torch" in said and "0.0001" in said
    assert not (tmp_path / "out").exists()


def test_a_difference_counts_labels_and_the_largest_of_the_probabilities() -> None:
    one = np.array([[[0.6, 0.2]], [[0.4, 0.8]]], np.float32)
    other = np.array([[[0.45, 0.2]], [[0.55, 0.8]]], np.float32)
    found = parity.compared(lambda _: one, lambda _: other, [("a", one)])
    assert found.largest == pytest.approx(0.15) and (found.changed, found.pixels) == (1, 2)
    assert not found.holds and found.share == 0.5
    wrong = np.full_like(one, np.nan)
    assert parity.compared(lambda _: one, lambda _: wrong, [("a", one)]).largest == np.inf


# --- what can go out ---
def test_a_vision_transformer_goes_out_for_tiles_of_one_size(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"encoder": "vit_tiny_patch14_for_tests", "decoder": "dpt"}
    payload = _payload(synthetic_folder, **model, decoder_filters=[8, 8, 8, 8, 8])
    checkpoint.save(tmp_path / "best.ckpt", payload)
    argv = [tmp_path, "--to", "onnx", "--tile_size"]
    assert _tool(*argv, 100) == 2
    assert "multiples of 14; give 112" in capsys.readouterr().err
    assert _tool(*argv, 112) == 0
    assert "for tiles of 112 x 112 pixels alone" in capsys.readouterr().out
    (graph,) = Recipe.read(tmp_path / "exported" / RECIPE).graphs
    assert (graph.side, graph.multiple) == (112, 14)
    picture = next((synthetic_folder / "test").iterdir())
    expected = Segmenter.load(tmp_path, device="cpu", precision="fp32").predict(
        picture, tile_size=112
    )
    found = Segmenter.load(tmp_path / "exported", device="cpu").predict(picture)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)


def _linear(kind: Any, sigmas: tuple[float, ...] = ()) -> PixelClassifier:
    torch.manual_seed(0)
    encoder = build_encoder("tu-test_resnet", 1)
    features = Features(sigmas, 1, encoder, "tu-test_resnet")
    generator = np.random.default_rng(0)
    every = features.filters + features.others
    weight = generator.normal(size=(every, 3)).astype(np.float32)
    return PixelClassifier(kind(weight, np.zeros(3, np.float32), sigmas, 1), features)


def test_a_linear_head_on_an_encoder_goes_out_and_one_on_filters_does_not() -> None:
    model = _linear(Linear).eval()
    going = graphs.outgoing(model, "x.ckpt")
    x = torch.randn(2, 1, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(going.module(x), model(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"x.ckpt .* looks at filters of the picture"):
        graphs.outgoing(_linear(Linear, (1.0,)), "x.ckpt")


def test_a_package_of_bioimage_io_holds_no_ensemble(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payloads = [_payload(synthetic_folder, seed) for seed in (0, 1)]
    parts = ensemble.joined(payloads)
    progress = {**payloads[0]["progress"], **parts["progress"]}
    checkpoint.save(tmp_path / "best.ckpt", {**payloads[0], **parts, "progress": progress})
    assert _tool(tmp_path, "--to", "bioimageio") == 2
    assert "holds 2 models as one" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--int8", "--calibrate", "x"], "--int8 needs --to openvino"),
        (["--to", "openvino", "--int8"], "--int8 needs --calibrate FOLDER"),
        (["--to", "torchscript", "--pack"], "--pack is for a computer without torch"),
        (["--pictures", "nowhere"], "there is no such file or folder"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(tmp_path) if word == "x" else word for word in flags]
    assert _tool(run, *flags) == 2
    assert said in capsys.readouterr().err


def test_an_export_is_not_overwritten_unasked(
    run: Path, out: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (out["torchscript"] / RECIPE).read_bytes()
    assert _tool(run, "--to", "torchscript", "--output_dir", out["torchscript"]) == 2
    assert "give another --output_dir or --overwrite" in capsys.readouterr().err
    assert (out["torchscript"] / RECIPE).read_bytes() == before


def test_an_export_is_not_exported_again(
    out: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _tool(out["onnx"], "--to", "torchscript") == 2
    assert "is an export already" in capsys.readouterr().err


def test_an_absent_package_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert _tool(run, "--output_dir", tmp_path / "out") == 2
    assert "needs onnx: pip install 'matssl[export]'" in capsys.readouterr().err


# --- 8 bits ---
def test_what_8_bits_cost_is_measured_on_the_pictures_and_said(
    run: Path,
    out: dict[str, Path],
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [run, "--to", "openvino", "--int8", "--calibrate", synthetic_folder]
    assert _tool(*argv, "--output_dir", tmp_path / "low") == 0
    said = capsys.readouterr().out
    recipe = Recipe.read(tmp_path / "low" / RECIPE)
    assert recipe.precision == "int8"
    text = (tmp_path / "low" / recipe.graphs[0].file).read_text(encoding="utf-8")
    assert "FakeQuantize" in text or 'element_type="i8"' in text
    found = recipe.parity["int8"]
    models = {"fp32": out["openvino"], "int8": tmp_path / "low"}
    pairs = layouts.find(synthetic_folder).pairs
    for kind, folder in models.items():
        model = exported.load(folder, "cpu", "auto", None, None, None)
        counts, areas = 0, np.zeros(model.table.num_classes)
        for pair in pairs:
            classes = model.predict(pair.image).classes
            assert pair.mask is not None
            truth = model.table.decode(readers.read_mask(pair.mask))
            counts = counts + confusion(truth, classes, model.table.num_classes)
            areas += [(classes == number).sum() for number in range(len(areas))]
        shares = [one[kind] for one in found["area_fractions"].values()]
        np.testing.assert_allclose(shares, areas / areas.sum())
        assert found["miou"][kind] == pytest.approx(overlap.miou(counts))
    assert found["count"] == found["masks"] == len(pairs)
    for name, one in found["area_fractions"].items():
        assert one["change"] == pytest.approx(one["int8"] - one["fp32"])
        assert f"{name}: {100 * one['fp32']:.3f} % of the area become" in said
    assert f"({100 * found['miou']['change']:+.2f} points)" in said


def test_masks_of_other_classes_end_the_export_before_anything_is_written(
    run: Path, synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(synthetic_folder, other)
    mask = next((other / "train_annot").iterdir())
    values = readers.read_mask(mask)
    import cv2

    cv2.imwrite(str(mask), np.where(values == values.max(), 77, values))
    argv = [run, "--to", "openvino", "--int8", "--calibrate", other]
    assert _tool(*argv, "--output_dir", tmp_path / "low") == 2
    assert "values that no class lists: 77" in capsys.readouterr().err
    assert not (tmp_path / "low").exists()


# --- bioimage.io ---
def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _prepared(raw: np.ndarray, steps: list[dict[str, Any]]) -> np.ndarray:
    """The steps of rdf.yaml as its specification has them, of (1, C, H, W)."""
    x, axes = raw.astype(np.float64), {"channel": 1, "y": 2, "x": 3}
    for step in steps:
        kwargs = step["kwargs"]
        over = tuple(axes[name] for name in kwargs.get("axes", []))
        if step["id"] == "zero_mean_unit_variance":
            x = (x - x.mean(over, keepdims=True)) / (x.std(over, keepdims=True) + 1e-6)
        elif step["id"] == "scale_range":
            ends = [
                np.percentile(x, kwargs[f"{end}_percentile"], axis=over, keepdims=True)
                for end in ("min", "max")
            ]
            x = (x - ends[0]) / (ends[1] - ends[0] + 1e-6)
        elif step["id"] == "clip":
            x = x.clip(kwargs["min"], kwargs["max"])
        else:
            assert step["id"] == "scale_linear"
            gain, offset = (np.array(kwargs[name]) for name in ("gain", "offset"))
            if kwargs.get("axis") == "channel":
                gain, offset = gain[:, None, None], offset[:, None, None]
            x = x * gain + offset
    return x.astype(np.float32)


@pytest.mark.parametrize(
    "told",
    [
        {"window": "standard"},
        {"window": "standard", "channels": 3, "color": "rgb", "mean": (0.4, 0.5, 0.6)},
        {"window": "standard", "channels": 3, "depth": 3},
        {"window": "percentile", "low": 1.0, "high": 98.0},
        {"window": "fixed", "low": 20.0, "high": 180.0},
        {"window": "dtype"},
    ],
    ids=str,
)
def test_the_steps_of_the_package_prepare_a_picture_as_the_record_does(
    told: dict[str, Any],
) -> None:
    std = (0.2,) * len(told.get("mean", (0.5,)))
    record = Preprocess(**{"std": std, **told})
    raw, image = bioimageio._sample(record, 96)
    np.testing.assert_allclose(_prepared(raw, bioimageio.steps(record)), image, atol=2e-3)


def test_the_library_of_bioimage_io_takes_the_package_and_its_test_holds(
    out: dict[str, Path],
) -> None:
    from bioimageio.spec import load_description
    from bioimageio.spec.model.v0_5 import ModelDescr

    found = load_description(out["bioimageio"] / bioimageio.NAME, perform_io_checks=True)
    assert isinstance(found, ModelDescr)
    members = _members(out["bioimageio"] / bioimageio.NAME)
    rdf = yaml.safe_load(members["rdf.yaml"])
    (out["bioimageio"].parent / "w.onnx").write_bytes(members["weights.onnx"])
    raw, expected = (
        np.load(out["bioimageio"].parent / name)
        for name in (
            _put(out["bioimageio"].parent, members, "test_input.npy"),
            _put(out["bioimageio"].parent, members, "test_output.npy"),
        )
    )
    image = _prepared(raw, rdf["inputs"][0]["preprocessing"])
    run = targets.TARGETS["onnx"].run(out["bioimageio"].parent / "w.onnx", 1)
    np.testing.assert_allclose(run(image)[0], expected, atol=1e-4)
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-5)
    page = members["README.md"].decode()
    assert "measured on the whole micrograph" in page and "information bar" in page


def _put(folder: Path, members: dict[str, bytes], name: str) -> str:
    (folder / name).write_bytes(members[name])
    return name


# --- the pack ---
@pytest.fixture
def unpacked(out: dict[str, Path], tmp_path: Path) -> Path:
    with zipfile.ZipFile(out["onnx"] / pack.NAME) as archive:
        archive.extractall(tmp_path)
    return tmp_path / pack.INSIDE


# What the other computer runs, and which packages that loaded; torch is out of reach.
ELSEWHERE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "timm", "segmentation_models_pytorch"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Absent())
from matssl.core.errors import guard
from matssl.tools import check_export
import eval_model
code = guard(check_export.main, ["."])
argv = ["--model_path", "model.json", "--dataset", sys.argv[1], "--output_dir", "results"]
code = code or guard(eval_model.main, argv)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
sys.exit(code)
"""


def test_an_unpacked_model_checks_itself_and_predicts_with_the_listed_wheels_alone(
    unpacked: Path, synthetic_folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(synthetic_folder)],
        cwd=unpacked,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 153600 labels differ" in done.stdout
    assert len(list((unpacked / "results").rglob("masks/index/*.png"))) > 0
    listed = (unpacked / sample.WHEELS).read_text(encoding="utf-8").split()
    names = {line.partition("==")[0].lower() for line in listed}
    installed = metadata.packages_distributions()
    loaded = {
        name.lower()
        for module in json.loads(done.stdout.splitlines()[-1])
        for name in installed.get(module, [])
    }
    # What comes along with a listed one is found by pip; extras of theirs are not.
    waiting = [*names]
    while waiting:
        for line in _requires(waiting.pop()):
            found = re.match(r"[\w.-]+", line)
            if "extra ==" not in line and found and found[0].lower() not in names:
                names.add(found[0].lower())
                waiting.append(found[0].lower())
    # Libraries take these two where they are there.
    beside = loaded - names - {"matssl", "pip", "setuptools", "psutil", "rich"}
    assert not beside, beside


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        # Of another system than this one.
        return []


@pytest.mark.parametrize("name", ["model.onnx", "matssl/tiles.py", "sample.png"])
def test_a_file_that_was_changed_is_named(
    name: str, unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((unpacked / name).read_bytes())
    content[-1] ^= 1
    (unpacked / name).write_bytes(bytes(content))
    assert guard(check_export.main, [str(unpacked)]) == 2
    assert f"the first {name}" in capsys.readouterr().err


def test_a_computer_that_predicts_other_labels_is_told(
    unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    path = unpacked / sample.EXPECTED
    labels = readers.read_mask(path)
    labels[:1] = (labels[:1] + 1) % 2
    cv2.imwrite(str(path), labels)
    sample.sums(unpacked)
    assert guard(check_export.main, [str(unpacked)]) == 2
    assert f"{labels.shape[1]} of {labels.size} labels of the sample" in capsys.readouterr().err


def test_a_folder_without_a_pack_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(check_export.main, [str(tmp_path)]) == 2
    assert "is no unpacked export: it has no SHA256SUMS" in capsys.readouterr().err


@pytest.mark.parametrize(
    "told",
    [{}, {"channels": 3, "depth": 3}, {"channels": 3, "color": "rgb", "mean": (0.5, 0.5, 0.5)}],
    ids=str,
)
def test_the_sample_is_read_as_the_model_reads_pictures(
    told: dict[str, Any], tmp_path: Path
) -> None:
    std = (0.2,) * len(told.get("mean", (0.5,)))
    record = Preprocess(crop_bottom=12, **{"std": std, **told})
    picture = sample.write(record, tmp_path)
    image = record.tensor(record.plane(record.read(picture)))
    assert image.shape == (record.channels, *sample.SHAPE)
    assert record.channels == 1 or np.abs(image[0] - image[-1]).max() > 0.1
