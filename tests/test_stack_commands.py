"""The commands on sequences: the depth is said once, and stacks come back as stacks."""

from __future__ import annotations

import csv
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
from matssl import Segmenter
from matssl.core.errors import UserError, guard
from matssl.data import readers
from matssl.pictures import undrawn
from matssl.tools import export_weights, measure, phase_map
from matssl.weights import files

pytestmark = pytest.mark.usefixtures("no_drawing")

QUIET = "--threads 1 --precision fp32 --device cpu --quiet"


def _main(module: Any, *words: object) -> int:
    return guard(module.main, [part for word in words for part in str(word).split()])


def _film(folder: Path, name: str, seed: int) -> None:
    """Five pages of a bright bar that moves; masks of all pages."""
    generator = np.random.default_rng(seed)
    pages = generator.normal(90, 8, (5, 48, 48))
    masks = np.zeros((5, 48, 48), np.uint8)
    for number in range(5):
        masks[number, :, 6 * number : 6 * number + 12] = 1
    pages = np.clip(pages + 60 * masks, 0, 255).astype(np.uint8)
    scale = {"imagej": True, "resolution": (0.25, 0.25)}
    meta = {"axes": "TYX", "unit": "nm", "finterval": 2.0}
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / f"images/{name}.tif", pages, metadata=meta, **scale)
    tifffile.imwrite(folder / f"masks/{name}.tif", masks, photometric="minisblack")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining and a fine-tuning from it at depth 3, in RUNS/ssl/p and RUNS/finetune/f."""
    root = tmp_path_factory.mktemp("stacks")
    for number in range(3):
        _film(root / "set", f"film {number}", number)
    out = f"--output_dir {root}/runs {QUIET}"
    views = "--steps 2 --batch_size 4 --view_size 32 --frame_positives 1 --name p"
    weights = f"{root}/runs/ssl/p/encoder.safetensors"
    words = f"--steps 2 --batch_size 2 --crop_size 32 --name f --ssl_weights_path {weights}"
    data = f"--finetune_dataset {root}/set --input_depth 3"
    with undrawn():
        assert _main(train_ssl, f"--data_path {root}/set/images --input_depth 3 {views}", out) == 0
        assert _main(train_finetune, f"{data} {words}", out) == 0
    return root


def test_a_model_of_sequences_is_used_without_saying_so(runs: Path) -> None:
    out = f"--output_dir {runs}/scored --split all --no-baselines {QUIET}"
    model = f"{runs}/runs/finetune/f/best.ckpt"
    assert _main(eval_model, f"--model_path {model} --dataset {runs}/set", out) == 0
    (stack,) = runs.glob("scored/eval/*/masks/stack/film 1.tif")
    with tifffile.TiffFile(stack) as file:
        pages = file.asarray()
        assert file.series[0].axes == "TYX" and file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "nm" and file.imagej_metadata["finterval"] == 2.0
    assert readers.read(readers.frames(stack)[0]).pixel_size == pytest.approx(4.0)
    segmenter = Segmenter.load(model, device="cpu", precision="fp32", threads=1)
    page = runs / "set/images/film 1.tif/film 1-0003.tif"
    found = segmenter.predict(page)
    np.testing.assert_array_equal(found.classes, pages[2])
    film = tifffile.imread(runs / "set/images/film 1.tif")
    again = segmenter.predict(np.moveaxis(film[1:4], 0, 2))
    np.testing.assert_allclose(again.probabilities, found.probabilities, atol=1e-6)
    # Another frame beside it gives another answer: the neighbours are looked at.
    other = segmenter.predict(np.moveaxis(film[[4, 2, 0]], 0, 2))
    assert np.abs(other.probabilities - found.probabilities).max() > 1e-4


def test_one_picture_is_not_taken_for_a_sequence(runs: Path) -> None:
    segmenter = Segmenter.load(runs / "runs/finetune/f", device="cpu", threads=1)
    with pytest.raises(UserError, match=r"reads 3 frames .* \(48, 48\) is not that; give an array"):
        segmenter.predict(np.zeros((48, 48), np.uint8))
    with pytest.raises(UserError, match=r"stack of 5 pages, .* name the page: .*film 1-0001\.tif"):
        segmenter.predict(runs / "set/images/film 1.tif")


def test_the_measurement_says_that_pages_of_a_stack_are_alike(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intervals over fields take them for independent, which neighbouring pages are not."""
    out = f"--output_dir {tmp_path} --name e --split all --no-baselines {QUIET}"
    model = f"{runs}/runs/finetune/f/best.ckpt"
    assert _main(eval_model, f"--model_path {model} --dataset {runs}/set", out) == 0
    run = tmp_path / "eval" / "e"
    rows = list(csv.DictReader((run / "per_image.csv").read_text().splitlines()))
    places = {(row["sequence"], row["frame"]) for row in rows}
    assert places == {(f"film {n}", str(page)) for n in range(3) for page in range(1, 6)}
    assert _main(measure, run, "--what fractions --output_dir", tmp_path / "a") == 0
    assert "15 of 15 fields are frames of 3 sequences" in capsys.readouterr().out
    specimens = (tmp_path / "a/measure/e/specimens.csv").read_text(encoding="utf-8-sig")
    assert {row["fields"] for row in csv.DictReader(specimens.splitlines())} == {"1"}


def test_phases_of_a_stack_are_a_stack(runs: Path) -> None:
    out = f"--output_dir {runs}/mapped --phases 2 {QUIET}"
    words = f"--model_path {runs}/runs/ssl/p --data {runs}/set/images"
    assert _main(phase_map, words, out) == 0
    (stack,) = runs.glob("mapped/phases/*/maps/stack/film 2.tif")
    assert tifffile.imread(stack).shape == (5, 48, 48)


def test_an_export_has_the_frames_as_channels_unless_one_picture_is_asked_for(runs: Path) -> None:
    source = runs / "runs/ssl/p/encoder.safetensors"
    own = files.read(source)
    assert own.frames == 3
    kernel = own.tensors["encoder.conv1.weight"]
    plain = export_weights.export(source, "torchvision")["conv1.weight"]
    assert torch.equal(plain, kernel)
    (one,) = export_weights.export(source, "torchvision", 1)["conv1.weight"].split(1, dim=1)
    torch.testing.assert_close(one, kernel.sum(dim=1, keepdim=True))
    three = export_weights.export(source, "torchvision", 3)["conv1.weight"]
    torch.testing.assert_close(three, one.expand(-1, 3, -1, -1) / 3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--input_depth 2", "--input_depth must be odd"),
        ("--input_depth 3 --color rgb", "leave --color rgb out"),
        ("--input_depth 5 --in_channels 3", "--input_depth 5 makes 5 channels"),
        ("--in_channels 2", "--in_channels must be 1 or 3"),
    ],
)
def test_a_depth_that_cannot_be_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8), np.uint8))
    assert _main(train_ssl, f"--data_path {tmp_path} {words}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize("words", ["--input_depth 3", "--frame_positives 2"])
def test_a_folder_without_sequences_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8), np.uint8))
    assert _main(train_ssl, f"--data_path {tmp_path} {words}") == 2
    assert "no images in" in capsys.readouterr().err


def test_frame_positives_are_said_to_do_nothing_for_one_view(tmp_path: Path) -> None:
    from matssl.stages.pretrain.settings import resolve

    words = ["--data_path", str(tmp_path), "--frame_positives", "2"]
    assert "frame_positives" in resolve([*words, "--model", "spark"]).idle
    assert "frame_positives" not in resolve([*words, "--model", "byol"]).idle
    assert resolve([*words, "--input_depth", "5"]).run.in_channels == 5
