"""The public Python API: what docs/api.md shows runs, and says the same as the commands."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import matssl
from matssl import Encoder, Segmenter, read
from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import readers, synthetic
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.models.encoders import build_encoder, pyramid
from matssl.models.segmentation import build_model
from matssl.trained import member

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
NAMES = ("ferrite", "pearlite", "pore")


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fine-tuning and a pretraining run; their weights are random."""
    folder = tmp_path_factory.mktemp("here")
    tuned, trained = (folder / "experiments" / stage / "steel" for stage in ("finetune", "ssl"))
    for run in (tuned, trained):
        run.mkdir(parents=True)
    torch.manual_seed(0)
    model = build_model("resnet18", "unet", len(NAMES))
    _save(tuned / "best.ckpt", model, Preprocess(crop_bottom="auto"))
    encoder = build_encoder("resnet18", 1)
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    record = Preprocess(crop_bottom="auto", window="dtype", mean=(0.4,), std=(0.2,))
    payload = {"stage": "ssl", "method": "simclr", "state": state, "step": 0, "lineage": []}
    payload |= {"recipe": {"encoder": "resnet18", "in_channels": 1}}
    checkpoint.save(trained / "last.ckpt", payload | {"preprocess": record.to_dict()})
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": "[]"}
    save_file(state, trained / "encoder.safetensors", facts)
    return folder


def _save(path: Path, model: Any, record: Preprocess) -> None:
    classes = tuple(MaskClass(i, name, (i,)) for i, name in enumerate(NAMES))
    payload = {"stage": "finetune", "model": model.description, "state": model.state_dict()}
    payload |= {"step": 1, "recipe": {}, "preprocess": record.to_dict(), "lineage": []}
    checkpoint.save(path, payload | {"classes": ClassTable("index", classes).to_dict()})


@pytest.fixture(scope="module")
def segmenter(experiments: Path) -> Segmenter:
    return Segmenter.load(experiments / "experiments/finetune/steel", device="cpu")


def test_the_examples_of_the_guide_run_from_top_to_bottom(
    experiments: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(experiments)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)  # noqa: S102
    said = capsys.readouterr().out
    assert "ferrite" in said and "rows of a bar, {255}" in said and "cannot segment" in said


def test_the_package_alone_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, matssl; sys.exit(bool({'torch', 'numpy', 'cv2', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
    for name in matssl.__all__:
        assert getattr(matssl, name)
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        matssl.Segmentor  # noqa: B018


def test_a_file_a_micrograph_and_an_array_are_the_same_picture(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    image, _ = synthetic.micrograph("two_phase", 70, 101, 0, bar=True)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = segmenter.predict(tmp_path / "a.png")
    assert found.classes.shape == image.shape and found.probabilities.shape == (3, 70, 101)
    assert (found.classes[70:] == IGNORE).all() and found.rows == 70 and not found.resized
    assert np.array_equal(found.classes[:70], found.probabilities.argmax(0))
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    expected = [(found.classes[:70] == number).mean() for number in range(3)]
    np.testing.assert_allclose(found.fractions, expected)
    coloured = np.repeat(image[..., None], 3, axis=2)
    for picture in (str(tmp_path / "a.png"), read(tmp_path / "a.png"), image, coloured):
        again = segmenter.predict(picture)
        assert np.array_equal(again.probabilities, found.probabilities)


def test_a_colour_picture_is_seen_as_its_luminance(segmenter: Segmenter, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), np.ascontiguousarray(colours[..., ::-1]))
    expected = segmenter.predict(tmp_path / "a.png").probabilities
    for picture in (colours, read(tmp_path / "a.png", color="rgb")):
        assert np.array_equal(segmenter.predict(picture).probabilities, expected)


def test_a_prediction_has_the_native_size_and_the_scale_that_is_known(
    experiments: Path, tmp_path: Path
) -> None:
    model = build_model("resnet18", "unet", len(NAMES))
    _save(tmp_path / "best.ckpt", model, Preprocess(target_pixel_size=20.0, pixel_size=10.0))
    segmenter = Segmenter.load(tmp_path / "best.ckpt", device="cpu", precision="fp32")
    image, _ = synthetic.micrograph("two_phase", 96, 128, 0)
    found = segmenter.predict(image)
    assert found.resized and found.seen == (48, 64) and found.pixel_size == 10.0
    assert found.probabilities.shape == (3, 96, 128)
    # Its own pixel size beats that of the training.
    cv2.imwrite(str(tmp_path / "a.png"), image)
    finer = segmenter.predict(replace(read(tmp_path / "a.png"), pixel_size=5.0, unit="nm"))
    assert finer.seen == (24, 32) and finer.pixel_size == 5.0
    squared = Segmenter.load(tmp_path / "best.ckpt", device="cpu", input_size=64).predict(image)
    assert squared.seen == (64, 64) and squared.classes.shape == (96, 128)


def test_probabilities_of_a_large_image_lie_in_a_file(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = synthetic.micrograph("two_phase", 96, 96, 0)
    expected = segmenter.predict(image, scratch=tmp_path)
    assert not isinstance(expected.probabilities, np.memmap)
    monkeypatch.setattr(member, "IN_MEMORY_BYTES", 0)
    found = segmenter.predict(image, scratch=tmp_path)
    assert isinstance(found.probabilities, np.memmap)
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_loading_leaves_the_generator_of_torch_alone(experiments: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Segmenter.load(experiments / "experiments/finetune/steel", device="cpu")
    Encoder.load("none", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_features_are_of_the_run_whatever_file_of_it_is_given(experiments: Path) -> None:
    run = experiments / "experiments/ssl/steel"
    image, _ = synthetic.micrograph("two_phase", 70, 101, 0)
    encoder = Encoder.load(run / "last.ckpt", device="cpu", precision="fp32")
    assert encoder.record.window == "dtype" and encoder.record.mean == (0.4,)
    features = encoder.features(image)
    assert features.shape == (128 + 256, 9, 13)
    np.testing.assert_allclose(np.linalg.norm(features[:128], axis=0), 1, atol=1e-5)
    other = Encoder.load(run, device="cpu", precision="fp32")
    assert other.record == encoder.record and np.array_equal(other.features(image), features)


def test_maps_of_the_middle_are_those_of_the_plain_network(experiments: Path) -> None:
    encoder = Encoder.load(experiments / "experiments/ssl/steel", device="cpu", precision="fp32")
    image, _ = synthetic.micrograph("two_phase", 256, 256, 0)
    found = encoder.maps(image)
    x = torch.from_numpy(encoder.record.tensor(encoder.record.plane(readers.from_array(image))))[
        None
    ]
    with torch.inference_mode():
        plain = pyramid(encoder.network.model, x)
    assert [level.shape for level in found] == [tuple(level.shape[1:]) for level in plain]
    # The first stage sees 43 pixels around; behind a margin both see the same.
    inside = slice(16, 48)
    expected = plain[0][0, :, inside, inside].numpy()
    np.testing.assert_allclose(found[0][:, inside, inside], expected, atol=1e-4)


def test_mistakes_are_told_in_one_line(experiments: Path, segmenter: Segmenter) -> None:
    run = experiments / "experiments/ssl/steel"
    for wrong, sentence in (
        (lambda: Segmenter.load("absent.ckpt"), "there is no weights file"),
        (lambda: Segmenter.load(run / "last.ckpt"), "comes from the stage 'ssl'"),
        (lambda: Segmenter.load(run / "encoder.safetensors"), "cannot segment"),
        (lambda: Segmenter.load(segmenter.source, device="tpu"), "cuda:N, not 'tpu'"),
        (lambda: Segmenter.load(segmenter.source, precision="fp8"), "fp32 or bf16, not 'fp8'"),
        (lambda: Segmenter.load(segmenter.source, threads=0), "at least 1, not 0"),
        (lambda: Segmenter.load(segmenter.source, input_size=8), "at least 32, not 8"),
        (lambda: segmenter.predict(np.zeros((4, 4, 4, 4))), r"has the shape \(4, 4, 4, 4\)"),
        (lambda: segmenter.predict(np.zeros((9, 9, 7))), "array has 7 channels"),
        (lambda: segmenter.predict("absent.png"), "cannot read absent.png"),
        (lambda: segmenter.predict(np.zeros((99, 99)), tile_size=0), "cannot cover an image"),
        (lambda: Encoder.load("absent.pth"), "there is no weights file"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            wrong()
        assert "\n" not in str(caught.value)
