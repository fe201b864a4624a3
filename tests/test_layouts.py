"""Folders as people lay them out: pairs, splits, groups, and what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl import preflight
from matssl.core.errors import UserError
from matssl.data import layouts, masks, readers
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import Pair, cut_validation, folds

MASK = np.array([[0, 1], [1, 0]], np.uint8)
PICTURE = np.full((2, 2), 9, np.uint8)


def _image(path: Path, pixels: np.ndarray = MASK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def _split_annot(root: Path) -> None:
    for name in ("train/a", "test/b"):
        _image(root / f"{name}.png", PICTURE)
        split, stem = name.split("/")
        _image(root / f"{split}_annot" / f"{stem}.png")


def _inputs_targets(root: Path) -> None:
    for split in ("train", "test"):
        _image(root / split / "inputs" / f"{split}.png", PICTURE)
        _image(root / split / "targets" / f"{split}.png")


def _images_masks(root: Path) -> None:
    for name in "ab":
        _image(root / "images" / f"{name}.png", PICTURE)
        _image(root / "masks" / f"{name}.png")


def _beside(root: Path) -> None:
    for name, mask in (("a0", "a0_masks.tif"), ("a1.b", "mask_A1.b.png")):
        _image(root / f"{name}.tif", PICTURE)
        _image(root / mask)


def _labelme(root: Path) -> None:
    for name in "ab":
        _image(root / f"{name}_json" / "img.png", PICTURE)
        _image(root / f"{name}_json" / "label.png")


def _srpu(root: Path) -> None:
    for name in ("dataset1/{}/4.2V-001", "dataset2/{}/LPSCl-011"):
        _image(root / f"{name.format('raw_images')}.png", PICTURE)
        _image(root / f"{name.format('masks_3class')}.png")


# A tiny folder of every layout: pictures hold PICTURE, masks hold MASK.
EXAMPLES: dict[str, Callable[[Path], None]] = {
    "split + split_annot": _split_annot,
    "split/inputs + split/targets": _inputs_targets,
    "images + masks": _images_masks,
    "mask beside its image": _beside,
    "a folder an image": _labelme,
    "raw_images + masks_3class": _srpu,
}


def _example(name: str, root: Path) -> None:
    if name not in EXAMPLES:
        pytest.fail(
            f"DATA_LAYOUTS has {name!r} and EXAMPLES in tests/test_layouts.py has not: add there a "
            "function that writes two pictures (PICTURE) and their masks (MASK) in this layout"
        )
    EXAMPLES[name](root)


def _is_mask(path: Path) -> bool:
    return bool((readers.read(path).pixels == MASK).all())


# --- what every layout promises ---
@pytest.mark.parametrize("name", layouts.DATA_LAYOUTS)
def test_a_layout_pairs_its_images_with_their_masks(tmp_path: Path, name: str) -> None:
    _example(name, tmp_path)
    dataset = layouts.find(tmp_path)
    assert dataset.layout == name and len(dataset.pairs) == 2
    for pair in dataset.pairs:
        assert not _is_mask(pair.image) and pair.mask is not None and _is_mask(pair.mask)


@pytest.mark.parametrize("place", [".", "deep/in the pool #1"])
@pytest.mark.parametrize("name", layouts.DATA_LAYOUTS)
def test_masks_of_a_layout_are_in_no_pool(tmp_path: Path, name: str, place: str) -> None:
    _image(tmp_path / "others" / "c.png", PICTURE)
    _example(name, tmp_path / place)
    paths, left_out = layouts.unlabelled(tmp_path)
    assert len(paths) == 3 and not any(map(_is_mask, paths))
    out = {part.path for part in left_out}
    assert out and all(out.isdisjoint((p, *p.parents)) for p in paths)


@pytest.mark.parametrize("name", layouts.DATA_LAYOUTS)
def test_masks_deep_in_a_folder_are_neither_predicted_nor_examined(
    tmp_path: Path, name: str
) -> None:
    _example(name, tmp_path / "deep" / "set")
    dataset = layouts.find(tmp_path, need_masks=False)
    assert dataset.layout == "images only" and dataset.splits == ("predict",)
    assert len(dataset.pairs) == 2 and not any(_is_mask(pair.image) for pair in dataset.pairs)
    assert "  left out     " in preflight.examine_dataset(dataset, Preprocess()).text()


@pytest.mark.parametrize("name", layouts.DATA_LAYOUTS)
def test_a_layout_leaves_plain_folders_of_images_alone(tmp_path: Path, name: str) -> None:
    for file in ("a.png", "a_1.png", "label.png", "masks.png", "S1/a.tif", "labels/b.tif"):
        _image(tmp_path / file, PICTURE)
    layout = layouts.DATA_LAYOUTS[name]
    assert not layout.pairs(tmp_path) and not layout.no_micrographs(tmp_path)


def test_rooms_that_read_files_do_without_torch() -> None:
    code = (
        "import sys; from matssl.data import layouts, masks, readers, specimens; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- the layouts one by one ---
def _names(dataset: layouts.Dataset, split: str) -> list[str]:
    return [pair.image.name for pair in dataset.split(split)]


def test_split_and_annot_folders_with_or_without_the_suffix(tmp_path: Path) -> None:
    for split in ("train", "val", "test", "different_test"):
        _image(tmp_path / split / f"a #1 (x).b {split}.tif")
        _image(tmp_path / f"{split}_annot" / f"a #1 (x).b {split}_mask.tif")
    _image(tmp_path / "train" / "B.png")
    _image(tmp_path / "train_annot" / "b.tif")
    dataset = layouts.find(tmp_path)
    assert dataset.splits == ("train", "val", "test", "different_test")
    assert _names(dataset, "train") == ["B.png", "a #1 (x).b train.tif"]
    assert all(pair.mask is not None for pair in dataset.pairs)


def test_inputs_and_targets_inside_the_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        _image(tmp_path / split / "inputs" / "a.png")
        _image(tmp_path / split / "targets" / "a.png")
    dataset = layouts.find(tmp_path)
    assert dataset.splits == ("train", "val", "test") and not dataset.cut.automatic


@pytest.mark.parametrize("folder", ["annotations", "masks", "labels"])
def test_images_beside_masks_are_cut_by_group(tmp_path: Path, folder: str) -> None:
    for parent in range(10):
        for tile in range(4):
            _image(tmp_path / "images" / f"{parent}_{tile}.jpg")
            _image(tmp_path / folder / f"{parent}_{tile}.png")
    dataset = layouts.find(tmp_path)
    assert {len(dataset.split(s)) for s in ("val", "test")} == {8}
    sides = {}
    for pair in dataset.pairs:
        assert sides.setdefault(pair.group, pair.split) == pair.split
    assert dataset.cut == layouts.Cut("drawn", images=40, groups=10, seed=0, parts=(24, 8, 8))
    again = layouts.find(tmp_path)
    assert again.pairs == dataset.pairs
    assert layouts.find(tmp_path, seed=1).pairs != dataset.pairs


def test_split_files_of_every_kind(tmp_path: Path) -> None:
    root = tmp_path / "nasa" / "set"
    for name in ("a", "b", "c"):
        _image(root / "images" / f"{name}.tif")
        _image(root / "masks" / f"{name}.tif")
    table = {"train": ["a.tif"], "validation": ["b"], "test": ["c.tif"]}
    (tmp_path / "s.json").write_text(json.dumps(table))
    (tmp_path / "p.json").write_text(json.dumps({"nasa/set": table, "set2": {"train": []}}))
    (tmp_path / "s.csv").write_text("image,split\na.tif,train\nb.tif,val\nc.tif,test\n")
    (tmp_path / "lists").mkdir()
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        (tmp_path / "lists" / f"{split}.txt").write_text(f"# names\n{name}.tif\n")
    for source in ("s.json", "p.json", "s.csv", "lists"):
        dataset = layouts.find(root, splits=tmp_path / source)
        assert [_names(dataset, s) for s in ("train", "val", "test")] == [
            ["a.tif"],
            ["b.tif"],
            ["c.tif"],
        ]


def test_wrong_split_files_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    _image(root / "images" / "a.tif")
    _image(root / "masks" / "a.tif")
    for content, sentence in (
        ('{"train": ["z.tif"]}', "not in"),
        ('{"train": ["a.tif"], "test": ["a.tif"]}', "puts 'a.tif' into"),
        ('{"other": {"train": ["a.tif"]}}', "no entry"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "s.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            layouts.find(root, splits=tmp_path / "s.json")
    with pytest.raises(UserError, match="no split file"):
        layouts.find(root, splits=tmp_path / "absent.json")


def test_a_folder_without_masks_is_for_prediction(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    dataset = layouts.find(tmp_path, need_masks=False)
    assert dataset.splits == ("predict",) and dataset.table is None
    with pytest.raises(UserError, match="no masks"):
        layouts.find(tmp_path)


def test_lonely_images_and_masks_are_counted_and_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _image(tmp_path / "train" / f"{name}.png")
        _image(tmp_path / "train_annot" / f"{name}.png")
    _image(tmp_path / "train" / "c.png")
    with pytest.raises(UserError, match=r"1 image in .* without a mask .*c\.png"):
        layouts.find(tmp_path)
    os.remove(tmp_path / "train" / "c.png")
    _image(tmp_path / "train_annot" / "d.png")
    with pytest.raises(UserError, match=r"1 mask in .* without an image .*d\.png"):
        layouts.find(tmp_path)


@pytest.mark.parametrize(
    "mask",
    ["a0_mask.png", "a0_masks.tif", "a0-mask.tif", "A0_Label.png", "a0_labels.png", "a0-label.png"]
    + ["a0_seg.png", "a0_segmentation.png", "a0_gt.tif", "a0_annotation.png", "mask_a0.png"],
)
def test_a_mask_beside_its_image_is_known_by_its_name(tmp_path: Path, mask: str) -> None:
    for name in ("a0.tif", "b.tif"):
        _image(tmp_path / name, PICTURE)
    _image(tmp_path / mask)
    found = layouts.find(tmp_path)
    assert found.layout == "mask beside its image"
    pairs = [(p.image.name, p.mask and p.mask.name, p.split) for p in found.pairs]
    assert pairs == [("a0.tif", mask, "train"), ("b.tif", None, "predict")]
    assert "1 image without a mask: neither learned from nor scored" in found.notes
    paths, left_out = layouts.unlabelled(tmp_path)
    assert [p.name for p in paths] == ["a0.tif", "b.tif"]
    assert left_out == [layouts.LeftOut(tmp_path / mask, "mask")]
    said = preflight.examine("x", {"pool": paths}, Preprocess(), left_out=left_out).text()
    assert f"left out     1 mask beside micrographs (first: {mask})" in said


def test_a_name_makes_no_mask_where_no_image_has_its_stem(tmp_path: Path) -> None:
    for name in ("steel_mask.tif", "b_label.png", "mask_c.tif", "d_seg.png", "d.txt.tif"):
        _image(tmp_path / name, PICTURE)
    assert len(layouts.unlabelled(tmp_path)[0]) == 5 and layouts.unlabelled(tmp_path)[1] == []
    assert layouts.find(tmp_path, need_masks=False).layout == "images only"


def test_masks_beside_images_belong_to_one_image_each(tmp_path: Path) -> None:
    _image(tmp_path / "a.tif", PICTURE)
    _image(tmp_path / "a_mask.png")
    _image(tmp_path / "a_seg.png")
    with pytest.raises(UserError, match=r"a\.tif has the masks a_mask\.png and a_seg\.png"):
        layouts.find(tmp_path)
    os.rename(tmp_path / "a_seg.png", tmp_path / "a.png")
    with pytest.raises(UserError, match=r"holds a\.png and a\.tif, but only a_mask\.png"):
        layouts.find(tmp_path)


def _pairs(groups: str) -> list[Pair]:
    return [Pair(Path(f"{i}.png"), None, g, "train") for i, g in enumerate(groups)]


def test_validation_takes_whole_groups() -> None:
    train, val = cut_validation(_pairs("aabbccdd"), 0.25, seed=0)
    assert len(val) == 2 and len({pair.group for pair in val}) == 1
    assert not {p.group for p in train} & {p.group for p in val}
    assert cut_validation(_pairs("aaa"), 0.5, seed=0)[1] == ()


def test_folds_hold_each_image_out_once() -> None:
    parts = folds(_pairs("aabc"), 3, seed=0)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3]
    assert [0, 1] in [sorted(part) for part in parts]


def test_fewer_than_four_labelled_images_are_all_for_training(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for number in range(3):
            picture = np.eye(32, dtype=np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), picture)
    found = layouts.find(tmp_path)
    assert found.splits == ("train",) and len(found.pairs) == 3
    assert found.cut == layouts.Cut("few", images=3, groups=3) and found.cut.automatic
    assert "only 3 images: all are for training" in found.cut.text
    assert found.cut.text in found.notes


def test_a_drawn_test_that_holds_the_only_labels_is_said(tmp_path: Path) -> None:
    """B7: training saw masks of one value, and the labelled one was closed."""
    for number in range(6):
        for place, value in (("images", 90), ("masks", 255)):
            (tmp_path / place).mkdir(exist_ok=True)
            cv2.imwrite(
                str(tmp_path / place / f"a{number}.png"), np.full((20, 20), value, np.uint8)
            )
    drawn = layouts.find(tmp_path, table=masks.binary_table())
    (test,) = drawn.split("test")
    labels = np.full((20, 20), 255, np.uint8)
    labels[:8], labels[:4] = 0, 1
    cv2.imwrite(str(test.mask), labels)
    with pytest.raises(UserError, match="1 image for the test stay closed: --splits names"):
        layouts.find(tmp_path, opened=("train", "val"))
    assert layouts.find(tmp_path).table is not None
