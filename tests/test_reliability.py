"""Calibration of probabilities: expected calibration error and the temperature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import train_finetune
from matssl import Segmenter
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.metrics import calibration
from matssl.metrics.calibration import BINS, fitted, reliability, sample, temper, together
from matssl.pictures import reliability as pictures


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    shares = np.exp(logits - logits.max(axis=0))
    return (shares / shares.sum(axis=0)).astype(np.float32)


def _drawn(classes: int, side: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Logits (C, H, W), and a truth that is drawn from exactly their softmax."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (classes, side, side))
    upto = _softmax(logits).astype(np.float64).cumsum(axis=0)
    truth = (draw.random((side, side)) > upto[:-1]).sum(axis=0)
    return logits, truth.astype(np.uint8)


def test_the_calibration_error_of_four_pixels_is_that_by_hand() -> None:
    """Two pixels said 0.9, one of them right; two said 0.62, both right; one is ignored."""
    first = np.array([[0.9, 0.9, 0.62, 0.38, 0.5]], np.float32)
    truth = np.array([[0, 1, 0, 1, 255]], np.uint8)
    found = reliability(np.stack([first, 1 - first]), truth)
    # Bins of 1/15: 0.9 lies in number 13, 0.62 in number 9.
    assert found.pixels[[9, 13]].tolist() == [2, 2] and found.pixels.sum() == 4
    assert found.right[[9, 13]].tolist() == [2, 1]
    # (2 * |1 - 0.62| + 2 * |0.5 - 0.9|) / 4
    assert found.error == pytest.approx(0.39, abs=1e-6)
    # Mean probability 0.76, three of four right.
    assert found.excess == pytest.approx(0.76 - 0.75, abs=1e-6)
    rows = found.rows()
    assert [row["pixels"] for row in rows] == [2, 2]
    assert rows[0]["from"] == pytest.approx(9 / BINS) and rows[0]["share_right"] == 1
    whole = together([found, found])
    assert whole is not None and whole.error == pytest.approx(0.39, abs=1e-6)
    assert together([]) is None


def test_certain_pixels_are_in_the_last_bin_and_no_pixels_have_no_error() -> None:
    sure = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    found = reliability(sure, np.array([[0, 1]], np.uint8))
    assert found.pixels[-1] == 2 and found.error == 0
    none = reliability(sure, np.full((1, 2), 255, np.uint8))
    assert np.isnan(none.error) and np.isnan(none.excess) and none.rows() == []


@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_that_are_true_have_no_calibration_error(classes: int) -> None:
    logits, truth = _drawn(classes, 600, classes)
    right = reliability(_softmax(logits), truth)
    # 360,000 draws: the noise of a bin is a few thousandths.
    assert right.error < 0.004
    assert fitted([sample(_softmax(logits), truth, 1)]) == pytest.approx(1, rel=0.02)
    # Twice the logits are too sure, half of them not sure enough.
    assert reliability(_softmax(2 * logits), truth).excess > 0.03
    assert reliability(_softmax(logits / 2), truth).excess < -0.03


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.7, 3.0])
def test_a_known_temperature_is_recovered_to_two_per_cent(temperature: float) -> None:
    logits, truth = _drawn(3, 500, 7)
    said = _softmax(temperature * logits)
    # Of two images, one with a stride as large pictures have.
    samples = [sample(said[:, :200], truth[:200], 1), sample(said[:, 200:], truth[200:], 2)]
    found = fitted(samples)
    assert found == pytest.approx(temperature, rel=0.02)
    before = reliability(said, truth).error
    mended = said.copy()
    temper(mended, found)
    assert reliability(mended, truth).error < 0.005 < before
    np.testing.assert_allclose(mended, _softmax(logits), atol=0.01)


def test_a_temperature_ends_at_its_bounds_and_needs_labels() -> None:
    """Images without an error would ask for 0, and answers by chance for infinity."""
    said = _softmax(np.array([[[1.0, -1.0, 2.0]], [[0.0, 0.0, 0.0]]]))
    right = np.array([[0, 1, 0]], np.uint8)
    assert fitted([sample(said, right, 1)]) == pytest.approx(calibration.LOWEST, rel=1e-3)
    assert fitted([sample(said, 1 - right, 1)]) == pytest.approx(calibration.HIGHEST, rel=1e-3)
    assert fitted([sample(said, np.full((1, 3), 255, np.uint8), 1)]) == fitted([]) == 1


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_tempering_keeps_order_and_sum_and_is_undone_by_its_inverse(temperature: float) -> None:
    logits, _ = _drawn(3, 300, 11)
    said = _softmax(logits)
    mended = said.copy()
    temper(mended, temperature)
    assert np.array_equal(mended.argmax(axis=0), said.argmax(axis=0))
    np.testing.assert_allclose(mended.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(mended, _softmax(logits / temperature), atol=1e-6)
    temper(mended, 1 / temperature)
    np.testing.assert_allclose(mended, said, atol=2e-6)
    certain = np.array([[[1.0]], [[0.0]]], np.float32)
    temper(certain, temperature)
    assert certain.ravel().tolist() == pytest.approx([1, 0], abs=1e-6)


def test_the_reliability_diagram_is_drawn(tmp_path: Path) -> None:
    logits, truth = _drawn(2, 100, 3)
    points = {"before": reliability(_softmax(2 * logits), truth).points}
    pictures.plot(points, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000


# --- in the commands ---
STEADY = ["--threads", "1", "--precision", "fp32", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def tuned(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two validation images."""
    out = tmp_path_factory.mktemp("tuned")
    argv = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(out), "--name", "x"]
    argv += ["--encoder", "tu-test_resnet", "--decoder", "unet", "--crop_size", "64"]
    argv += ["--steps", "12", "--val_every", "6", "--batch_size", "2", "--lr", "0.01"]
    assert guard(train_finetune.main, [*argv, *STEADY]) == 0
    return out / "finetune" / "x"


def test_a_fine_tuning_keeps_the_temperature_of_its_validation_images(tuned: Path) -> None:
    kept = checkpoint.load(tuned / "best.ckpt", stage="finetune")
    told = json.loads((tuned / "calibration.json").read_text(encoding="utf-8"))
    assert kept["progress"]["temperature"] == told["temperature"] != 1
    assert told["images"] == 2 and told["pixels"] == 2 * 96 * 96
    assert told["ece_after"] < told["ece_before"]
    assert sum(row["pixels"] for row in told["bins_after"]) == told["pixels"]
    assert Segmenter.load(tuned).temperature == told["temperature"]
    page = (tuned / "report.html").read_text(encoding="utf-8")
    assert "Calibration" in page and "fitted on 2 validation images" in page
    # last.ckpt goes on learning and has none.
    assert Segmenter.load(tuned / "last.ckpt").temperature == 1


def test_a_temperature_changes_probabilities_and_no_mask(
    tuned: Path, synthetic_folder: Path
) -> None:
    picture = next((synthetic_folder / "test").iterdir())
    model = Segmenter.load(tuned, device="cpu", precision="fp32", threads=1)
    plain = Segmenter.load(tuned / "best.ckpt", device="cpu", precision="fp32", threads=1)
    object.__setattr__(plain, "temperature", 1.0)
    mended, raw = model.predict(picture), plain.predict(picture)
    assert np.array_equal(mended.classes, raw.classes)
    expected = raw.probabilities.copy()
    temper(expected, model.temperature)
    assert np.array_equal(mended.probabilities, expected)
    assert not np.array_equal(mended.probabilities, raw.probabilities)
    assert (mended.temperature, raw.temperature) == (model.temperature, 1)


@pytest.mark.parametrize("value", ["hot", True, 0.0, -1.0, 1e9, float("nan")])
def test_a_temperature_that_nobody_fitted_is_damage(
    value: object, tuned: Path, tmp_path: Path
) -> None:
    payload = checkpoint.load(tuned / "best.ckpt")
    payload["progress"]["temperature"] = value
    checkpoint.save(tmp_path / "x.ckpt", payload)
    with pytest.raises(UserError, match="damaged: its temperature"):
        Segmenter.load(tmp_path / "x.ckpt")
