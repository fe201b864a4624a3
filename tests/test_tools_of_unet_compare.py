"""error_map, downscale and clean: what unet-compare's small tools do, without their faults."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from matssl.core.errors import guard
from matssl.data import readers
from matssl.pictures.confusion import confusion_map
from matssl.tools import clean, downscale, error_map


def _write(path: Path, pixels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return path


def _run(main: object, *words: object) -> int:
    return guard(main, [str(word) for word in words])  # type: ignore[arg-type]


# --- error_map ---
def test_the_four_outcomes_have_the_colours_of_cm2() -> None:
    truth = np.array([[1, 0, 1, 0, 1]], bool)
    prediction = np.array([[1, 1, 0, 0, 1]], bool)
    known = np.array([[1, 1, 1, 1, 0]], bool)
    grey = np.full((1, 5), 77, np.uint8)
    found = confusion_map(truth, prediction, known, grey)[0].tolist()
    assert found == [[0, 255, 0], [0, 0, 255], [255, 0, 0], [77] * 3, [77] * 3]
    assert confusion_map(truth, prediction, known)[0, 3].tolist() == [0, 0, 0]


def _pair(root: Path, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> tuple[Path, Path]:
    _write(root / "ann" / "one.png", truth)
    _write(root / "pred" / "one.png", prediction)
    return root / "ann", root / "pred"


def _counts(out: Path) -> dict[str, str]:
    with open(out / "error_map.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]


def test_the_threshold_is_that_of_the_metrics_and_otsu_is_asked_for(tmp_path: Path) -> None:
    # Fault F-U12: by Otsu a prediction with p < 0.12 became half positive.
    truth = np.zeros((20, 20), np.uint8)
    truth[:10] = 255
    faint = np.zeros((20, 20), np.uint8)
    faint[:, :10] = 28
    ann, pred = _pair(tmp_path, truth, faint)
    words = ("--ann_dir", ann, "--pred_dir", pred)
    assert _run(error_map.main, *words, "--results_dir", tmp_path / "a") == 0
    row = _counts(tmp_path / "a")
    assert (row["TP"], row["FP"], row["FN"], row["TN"]) == ("0", "0", "200", "200")
    # Without a predicted pixel there is no precision.
    assert (row["precision"], row["recall"], row["IoU"]) == ("", "0", "0")
    assert _run(error_map.main, *words, "--otsu", "--results_dir", tmp_path / "b") == 0
    assert _counts(tmp_path / "b")["FP"] == "100"
    more = ("--metric_threshold", "0.1", "--results_dir", tmp_path / "c")
    assert _run(error_map.main, *words, *more) == 0
    row = _counts(tmp_path / "c")
    assert (row["TP"], row["F1"]) == ("100", "0.5")
    assert float(row["IoU"]) == pytest.approx(1 / 3, rel=1e-4)


def test_a_map_is_drawn_on_the_micrograph_of_its_name(tmp_path: Path) -> None:
    truth = np.zeros((16, 16), np.uint8)
    truth[:8] = 255
    ann, pred = _pair(tmp_path, truth, truth.T.copy())
    _write(tmp_path / "img" / "one.jpg", np.full((16, 16), 100, np.uint8))
    words = ("--img_dir", tmp_path / "img", "--ann_dir", ann, "--pred_dir", pred)
    assert _run(error_map.main, *words, "--results_dir", tmp_path / "out") == 0
    drawn = np.asarray(cv2.imread(str(tmp_path / "out" / "one.png")))[..., ::-1]
    corners = [drawn[y, x].tolist() for y, x in ((0, 0), (0, 15), (15, 0), (15, 15))]
    assert corners == [[0, 255, 0], [255, 0, 0], [0, 0, 255], [100, 100, 100]]


def test_any_class_is_held_against_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.repeat(np.array([[0, 1, 2, 2]], np.uint8), 40, axis=0).repeat(10, axis=1)
    prediction = np.repeat(np.array([[0, 2, 2, 1]], np.uint8), 40, axis=0).repeat(10, axis=1)
    ann, pred = _pair(tmp_path, truth, prediction)
    words = ("--ann_dir", ann, "--pred_dir", pred)
    assert _run(error_map.main, *words, "--results_dir", tmp_path / "x") == 2
    assert "say which with --class" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    for named, classes in (("2", ()), ("pore", ("--classes", "steel,carbide,pore"))):
        out = tmp_path / f"out{named}"
        more = ("--class", named, *classes, "--results_dir", out)
        assert _run(error_map.main, *words, *more) == 0
        row = _counts(out)
        assert (row["TP"], row["FP"], row["FN"], row["TN"]) == ("400", "400", "400", "400")
    assert _run(error_map.main, *words, "--class", "7", "--results_dir", tmp_path / "y") == 2
    assert "--class 7: the classes are" in capsys.readouterr().err


def test_a_run_of_eval_model_says_its_classes_itself(tmp_path: Path) -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[:10] = 255
    _write(tmp_path / "ann" / "one.png", truth)
    run = tmp_path / "run"
    _write(run / "masks" / "index" / "one.png", (truth.T > 0).astype(np.uint8))
    (run / "metrics.json").write_text(json.dumps({"classes": ["steel", "pore"]}))
    words = ("--ann_dir", tmp_path / "ann", "--pred_dir", run)
    for number, more in enumerate(((), ("--class", "pore", "--classes", "steel,pore"))):
        out = tmp_path / f"out{number}"
        assert _run(error_map.main, *words, *more, "--results_dir", out) == 0
        row = _counts(out)
        assert (row["TP"], row["FP"], row["FN"], row["TN"]) == ("100",) * 4


def test_what_does_not_fit_together_is_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, pred = _pair(tmp_path, np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8))
    out = tmp_path / "out"
    words = ("--ann_dir", ann, "--pred_dir", pred, "--results_dir", out)
    assert _run(error_map.main, *words) == 2
    assert "--ann_dir: one.png has 8 x 8 pixels, one.png 8 x 9" in capsys.readouterr().err
    _write(pred / "two.png", np.zeros((8, 8), np.uint8))
    assert _run(error_map.main, *words) == 2
    assert "lacks 1 image: two" in capsys.readouterr().err
    assert _run(error_map.main, *words, "--otsu", "--metric_threshold", "0.3") == 2
    assert "leave --metric_threshold out" in capsys.readouterr().err
    assert not out.exists()


# --- downscale ---
def test_a_picture_is_averaged_and_does_not_alias() -> None:
    # Fault F-U13: stripes of one pixel became stripes of another width.
    stripes = np.zeros((64, 64), np.uint16)
    stripes[:, ::2] = 40000
    smaller = downscale.averaged(stripes, (32, 32))
    assert smaller.dtype == np.uint16 and (smaller == 20000).all()
    # 3 to 2: half of the middle pixel each.
    thirds = downscale.averaged(np.array([[0, 60, 90]], np.uint8).repeat(3, axis=0), (2, 2))
    assert thirds.tolist() == [[20, 80], [20, 80]]
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 1] = 200
    assert downscale.averaged(colour, (2, 2))[0, 0].tolist() == [0, 200, 0]


def test_a_mask_gets_the_label_that_covers_most_and_no_other() -> None:
    mask = np.array([[0, 0, 5, 5], [0, 5, 9, 5], [9, 9, 0, 5], [9, 0, 0, 0]], np.uint8)
    assert downscale.labelwise(mask, (2, 2)).tolist() == [[0, 5], [9, 0]]
    # Two of four pixels each: the nearest one decides, so that no class gains.
    halves = np.random.default_rng(0).integers(0, 2, (200, 200)).repeat(2, axis=0)
    assert downscale.labelwise(halves, (200, 100)).mean() == pytest.approx(halves.mean(), abs=0.005)
    colours = np.array([[10, 0, 0], [0, 20, 0]], np.uint8)
    picked = colours[(mask == 5).astype(int)]
    assert downscale.labelwise(picked, (2, 2)).tolist() == [
        [[10, 0, 0], [0, 20, 0]],
        [[10, 0, 0], [10, 0, 0]],
    ]


def test_a_mask_through_which_the_micrograph_shows_keeps_its_fractions() -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(60, 200, (200, 200)).astype(np.uint8)
    mask = np.repeat(grey[..., None], 3, axis=2)
    coloured = cv2.GaussianBlur(generator.random((200, 200)), (0, 0), 3) > 0.5
    mask[coloured] = (0, 0, 255)
    small = downscale.labelwise(mask, (100, 100))
    share = (small == (0, 0, 255)).all(axis=2).mean()
    assert share == pytest.approx(coloured.mean(), abs=0.005)


def test_pictures_and_masks_come_out_in_rows_and_columns_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    source, target = tmp_path / "in", tmp_path / "out"
    grey = generator.integers(1000, 60000, (80, 120)).astype(np.uint16)
    (source / "images").mkdir(parents=True)
    tifffile.imwrite(
        source / "images" / "a.tif",
        grey,
        imagej=True,
        resolution=(10, 10),
        metadata={"unit": "um"},
    )
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 30:90] = 255
    _write(source / "annotations" / "a.png", mask)
    words = ("--in_dir", source, "--out_dir", target, "--resize_shape", 40, 60)
    assert _run(downscale.main, *words) == 0
    assert "1 micrograph and 1 mask of 40 x 60 pixels (rows x columns)" in capsys.readouterr().out
    picture = readers.read(target / "images" / "a.tif")
    assert picture.pixels.shape == (40, 60) and picture.pixels.dtype == np.uint16
    assert picture.pixels[0, 0] == round(float(grey[:2, :2].mean()))
    # 100 nm become 200: the worst error would be to keep them.
    assert picture.pixel_size == pytest.approx(200, rel=1e-4)
    small = np.asarray(readers.read_mask(target / "annotations" / "a.png"))
    assert small.shape == (40, 60) and set(np.unique(small)) == {0, 255}
    with open(target / "downscale.csv", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["images/a.tif"]["pixel_size_nm before"] == "100"
    assert rows["annotations/a.png"]["kind"] == "mask"


def test_sides_that_shrink_by_different_factors_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "in" / "a.png", np.arange(6400, dtype=np.uint8).reshape(80, 80))
    words = ("--in_dir", tmp_path / "in", "--out_dir", tmp_path / "out", "--resize_shape", 40, 80)
    assert _run(downscale.main, *words) == 0
    assert "pixels are not square there" in capsys.readouterr().out
    assert readers.read(tmp_path / "out" / "a.png").pixels.shape == (40, 80)


def test_what_would_not_become_smaller_is_refused_with_all_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shape in (("a", (40, 60)), ("b", (80, 50)), ("c", (80, 120))):
        _write(tmp_path / "in" / f"{name}.png", np.zeros(shape, np.uint8))
    words = ("--in_dir", tmp_path / "in", "--out_dir", tmp_path / "out", "--resize_shape", 40, 60)
    assert _run(downscale.main, *words) == 2
    err = capsys.readouterr().err
    assert "makes 2 pictures no smaller: a.png has 40 x 60, b.png has 80 x 50" in err
    assert not (tmp_path / "out").exists()
    assert _run(downscale.main, *words[:4], "--resize_shape", 40) == 2
    assert "two numbers, rows and columns, not 1" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    assert _run(downscale.main, *words[:2], "--out_dir", tmp_path / "full", *words[4:5], 9, 9) == 2
    assert "exists already" in capsys.readouterr().err


# --- clean ---
def _a_run(root: Path, state: str = "done") -> Path:
    names = "config.yaml last.ckpt last.prev.ckpt best.ckpt encoder.safetensors ensemble.ckpt "
    names += "snapshots/step_000200.ckpt snapshots/encoder_000100.safetensors report.html"
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    (root / "status.json").write_text(json.dumps({"state": state}))
    return root


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_nothing_is_removed_unasked_and_then_what_was_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fault F-U23: every model was deleted at once.
    _a_run(tmp_path / "one")
    _a_run(tmp_path / "two", "running")
    (tmp_path / "old" / "fold_1").mkdir(parents=True)
    (tmp_path / "old" / "fold_1" / "best_model.keras").write_bytes(b"x" * 2_000_000)
    before = _files(tmp_path)
    assert _run(clean.main, tmp_path) == 0
    said = capsys.readouterr().out
    assert _files(tmp_path) == before
    assert "4 files" in said and "nothing was removed, --yes removes them" in said
    assert "2.0 MB  old/fold_1/best_model.keras  (model of Keras)" in said
    assert _run(clean.main, tmp_path, "--yes") == 0
    gone = {
        "one/last.prev.ckpt",
        "one/snapshots/step_000200.ckpt",
        "one/snapshots/encoder_000100.safetensors",
        "old/fold_1/best_model.keras",
    }
    assert before - _files(tmp_path) == gone
    assert _run(clean.main, tmp_path) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_run_alone_and_files_under_two_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _a_run(tmp_path / "one")
    os.link(run / "last.prev.ckpt", run / "second name")
    torn = run / ".last.ckpt.abc.ckpt"
    torn.write_bytes(b"x")
    os.utime(torn, (0, 0))
    (run / ".best.ckpt.now.ckpt").write_bytes(b"being written")
    (run / "linked.keras").symlink_to(run / "best.ckpt")
    assert _run(clean.main, run) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(".last.ckpt.abc.ckpt" in line for line in said)
    assert not any("now" in line or "linked" in line for line in said)
    # What has another name frees nothing.
    assert any("0.0 MB  last.prev.ckpt" in line for line in said)


def test_without_the_last_checkpoint_the_one_before_stays(tmp_path: Path) -> None:
    run = _a_run(tmp_path / "one")
    (run / "last.ckpt").unlink()
    assert "last.prev.ckpt" not in {one.path.name for one in clean.removable(tmp_path)}
