"""The screen before a run says what is there and what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl import preflight
from matssl.data import layouts, synthetic
from matssl.data.preprocess import Preprocess
from matssl.tools import doctor

RECORD = Preprocess(crop_bottom="auto")


def _screen(folder: Path, **options: object) -> str:
    dataset = layouts.find(folder, need_masks=False)
    return preflight.examine_dataset(dataset, RECORD, **options).text()  # type: ignore[arg-type]


def test_the_screen_names_sizes_depth_classes_and_specimens(synthetic_folder: Path) -> None:
    text = _screen(synthetic_folder)
    for part in (
        "8 (train 4, val 2, test 2)",
        "96 x 96 (8)",
        "8 bit (8)",
        "lamellar",
        "each image is its own",
    ):
        assert part in text
    assert "duplicates   none" in text


def test_copies_across_splits_are_found_even_when_turned(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, "two_phase", 2, 1, 1, size=128, seed=3)
    source = next((tmp_path / "train").iterdir())
    turned = np.rot90(cv2.imread(str(source), 0), 1)[:, ::-1]
    target = next((tmp_path / "test").iterdir())
    cv2.imwrite(str(target), turned)
    text = _screen(tmp_path)
    assert "1 near-duplicates across splits" in text
    assert f"train/{source.name} = test/{target.name}" in text


def test_copies_of_test_images_in_the_pool_are_found(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path / "set", "cracks", 1, 1, 1, size=128, seed=4)
    pool = tmp_path / "pool"
    synthetic.write_pool(pool, 4, size=128, seed=9)
    test = next((tmp_path / "set" / "test").iterdir())
    copy = pool / "copy.png"
    copy.write_bytes(test.read_bytes())
    text = _screen(tmp_path / "set", pool=sorted(pool.iterdir()))
    assert "test/" + test.name in text and "copies of test images in the pool spoil" in text


def test_copies_of_training_images_in_the_pool_are_no_leak(tmp_path: Path) -> None:
    """A pretraining sees no masks: it may learn from what is trained and validated on."""
    synthetic.write_dataset(tmp_path / "set", "cracks", 1, 1, 1, size=128, seed=4)
    pool = tmp_path / "pool"
    synthetic.write_pool(pool, 4, size=128, seed=9)
    for split in ("train", "val"):
        source = next((tmp_path / "set" / split).iterdir())
        (pool / f"{split}.png").write_bytes(source.read_bytes())
    dataset = layouts.find(tmp_path / "set")
    found = preflight.examine_dataset(dataset, Preprocess(), sorted(pool.iterdir()))
    assert found.exit_code == 0 and len(found.duplicates) == 2 and not found.leaks
    told = (
        "note         2 pictures of the pool show images for training and validation: pretraining"
    )
    assert told in found.text() and "duplicates   none across splits" in found.text()
    assert "warning" not in found.text()


def test_frames_without_a_mask_beside_labelled_ones_are_no_leak(tmp_path: Path) -> None:
    """Nothing learns from them and nothing is scored on them."""
    synthetic.write_dataset(tmp_path / "made", "two_phase", 4, 0, 0, size=128, seed=3)
    shutil.copytree(tmp_path / "made" / "train", tmp_path / "set" / "images")
    shutil.copytree(tmp_path / "made" / "train_annot", tmp_path / "set" / "masks")
    for source in sorted((tmp_path / "set" / "images").iterdir()):
        shutil.copyfile(source, source.with_name(source.name.replace("_1", "_2")))
    dataset = layouts.find(tmp_path / "set", depth=3)
    found = preflight.examine_dataset(dataset, Preprocess(depth=3))
    assert [fact.split for fact in found.facts].count("predict") == 4
    assert not found.leaks and "duplicates   none across splits" in found.text()


def test_the_doctor_takes_no_mask_of_a_pool_for_an_image(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool" / "set"
    synthetic.write_dataset(pool, "cracks", 2, 1, 1, size=64, seed=11)
    doctor.main([str(synthetic_folder), "--pool", str(pool.parent)])
    said = capsys.readouterr().out
    assert "(train 4, val 2, test 2, pool 4)" in said
    assert "left out     folders of masks: test_annot, train_annot, val_annot" in said


def test_a_specimen_on_two_sides_is_a_warning(tmp_path: Path) -> None:
    for split, number in (("train", 1), ("test", 2)):
        image, mask = synthetic.micrograph("two_phase", 96, 96, number)
        for folder, pixels in ((split, image), (f"{split}_annot", mask)):
            (tmp_path / folder).mkdir()
            cv2.imwrite(str(tmp_path / folder / f"S12_{number}.png"), pixels)
            cv2.imwrite(str(tmp_path / folder / f"T{number}_1.png"), pixels)
    assert "groups on both sides of a split: S12" in _screen(tmp_path)


def test_the_doctor_prints_and_answers_by_its_exit_code(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([str(synthetic_folder)]) == 0
    assert "two phase #1" in capsys.readouterr().out
    (tmp_path / "a.png").write_bytes(b"II")
    assert doctor.main([str(tmp_path)]) == 1
    assert "unreadable   1" in capsys.readouterr().out


def test_the_doctor_ends_in_one_line_for_a_missing_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "matssl.tools.doctor", str(tmp_path / "absent")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "there is no folder" in result.stderr
