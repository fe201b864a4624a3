"""Statistics of grey levels as a file: S-05 and F-S3 of SRPU-Model, F-S5 beside it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from srpu_project import MAPPING, project, write

from matssl.core.errors import UserError
from matssl.data import preprocess
from matssl.data.preprocess import Preprocess
from matssl.data.statistics import read_statistics
from matssl.stages.finetune import inputs, settings
from matssl.tools import statistics as tool


def _file(path: Path, **content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_mean_and_spread_are_of_all_pixels_of_the_training_images(tmp_path: Path) -> None:
    """S-05; F-S3: images of other sizes and widths, every row and column counted once."""
    root = tmp_path / "pool"
    generator = np.random.default_rng(0)
    planes = [generator.integers(0, 256, size).astype(np.uint8) for size in ((30, 50), (64, 20))]
    for number, plane in enumerate(planes):
        write(root / f"{number}.png", plane)
    out = tmp_path / "dataset_stats.json"
    tool.main([str(root), "--window", "dtype", "--output", str(out), "--crop_bottom", "none"])
    pixels = np.concatenate([plane.ravel() for plane in planes]) / 255
    found = json.loads(out.read_text())
    assert found["mean"] == pytest.approx([pixels.mean()], abs=1e-6)
    assert found["std"] == pytest.approx([pixels.std()], abs=1e-6)
    assert (found["images"], found["pixels"], found["window"]) == (2, 30 * 50 + 64 * 20, "dtype")


def test_with_masks_the_images_for_training_are_measured(tmp_path: Path) -> None:
    root, out = project(tmp_path), tmp_path / "stats.json"
    tool.main([str(root), "--output", str(out)])
    content = json.loads(out.read_text())
    argv = ["--finetune_dataset", str(root)]
    asked = settings.resolve(argv)
    dataset, known, _ = inputs.find(asked)
    train = inputs.parted(asked, known)[0]
    assert content["split"] == "train" and content["images"] == len(train) < 11
    # What a training measures itself.
    own = inputs.load(dataset, train, (), asked.record(1)).record
    assert content["mean"] == pytest.approx(own.mean) and content["std"] == pytest.approx(own.std)


def test_an_absent_image_is_no_black_one(tmp_path: Path) -> None:
    """F-S3: files that are not there counted as black."""
    from matssl.tools import index

    index.main([str(project(tmp_path))])
    (tmp_path / "datasets/dataset1_LInCl/raw_images/4.2V-009.png").unlink()
    with pytest.raises(UserError, match="4.2V-009.png"):
        tool.main([str(tmp_path / "json/master_ssl_dataset.json"), "--output", str(tmp_path / "s")])
    assert not (tmp_path / "s").exists()


def test_a_training_normalises_by_the_file(tmp_path: Path) -> None:
    """S-05: --statistics acts, and the checkpoint's record carries the numbers."""
    root = project(tmp_path)
    (tmp_path / "base.py").write_text(MAPPING)
    file = _file(tmp_path / "dataset_stats.json", mean=[0.25] * 3, std=[0.125] * 3)
    argv = ["--finetune_dataset", str(root), "--statistics", str(file), "--window", "dtype"]
    asked = settings.resolve(argv)
    dataset, known, _ = inputs.find(asked)
    train = inputs.parted(asked, known)[0]
    record = inputs.load(dataset, train, (), asked.record(1)).record
    assert (record.mean, record.std) == ((0.25,), (0.125,))
    grey = np.full((4, 4), 0.5, np.float32)
    assert np.allclose(record.tensor(grey), 2.0)
    again = Preprocess.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again == record and "given" not in record.to_dict()
    # Colour takes one number for all channels.
    colour = settings.resolve([*argv, "--color", "rgb", "--in_channels", "3"]).record(3)
    assert preprocess.measure(colour, []).mean == (0.25,) * 3


@pytest.mark.parametrize(
    ("content", "window", "said"),
    [
        ({"mean": [0.4], "std": [0.2]}, "standard", "add --window dtype"),
        ({"mean": [0.4], "std": [0.2], "window": "standard"}, "dtype", "add --window standard"),
        ({"mean": [0.4] * 512, "std": [0.2] * 512}, "dtype", "one a row of the images"),
        ({"mean": [0.1, 0.4, 0.5], "std": [0.2] * 3}, "dtype", "numbers of 3 channels"),
        ({"mean": [104.0], "std": [40.0]}, "dtype", "is no mean of grey levels"),
        ({"mean": [0.4], "std": [0.0]}, "dtype", "is no std of grey levels"),
        ({"mean": [0.4], "std": [0.1, 0.1]}, "dtype", "1 means and 2 deviations"),
        ({"average": 1}, "dtype", "says no mean and std"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    tmp_path: Path, content: dict[str, object], window: str, said: str
) -> None:
    """F-S3: 512 means of rows; the loader dropped them, so that nothing was normalised."""
    file = _file(tmp_path / "s.json", **content)
    with pytest.raises(UserError, match=said):
        read_statistics(file).given(Preprocess(window=window))


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    file = _file(tmp_path / "s.json", mean=[0.4], std=[0.1])
    before = file.read_text()
    with pytest.raises(UserError, match="is there already"):
        tool.main([str(project(tmp_path)), "--output", str(file)])
    assert file.read_text() == before
    tool.main([str(tmp_path / "datasets"), "--output", str(file), "--overwrite"])
    assert file.read_text() != before


def test_images_are_read_at_their_own_size_and_shape(tmp_path: Path) -> None:
    """F-S5: all were squeezed to 512 x 512, so that a pixel meant another length in each."""
    path = tmp_path / "wide.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((30, 90), np.uint8))[1].tobytes())
    record = settings.resolve(["--finetune_dataset", "."]).record(1)
    assert record.plane(record.read(path)).shape == (30, 90)
