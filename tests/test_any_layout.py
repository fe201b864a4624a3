"""Folders of any naming: a mask is known by few values, stem and size (A12, A13, A20)."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.data import layouts, readers
from matssl.data.layouts import content, matching
from matssl.data.layouts.content import Holds

SIDE = 64


def _picture(seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy micrograph of bright discs and its mask, 0 and 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), np.uint8)
    for _ in range(4):
        cy, cx, r = rng.uniform(0, side, 2).tolist() + [side / 8]
        mask[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = 1
    gray = 100 + 60.0 * mask + rng.normal(0, 12, mask.shape)
    return gray.clip(0, 255).astype(np.uint8), mask


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def _pairs(root: Path, pairs: dict[str, str], values: int = 255) -> None:
    for seed, (image, mask) in enumerate(pairs.items()):
        gray, drawn = _picture(seed)
        _write(root / image, gray)
        _write(root / mask, drawn * values)


def _found(root: Path, dataset: layouts.Dataset) -> dict[str, str]:
    return {
        str(pair.image.relative_to(root)): str(pair.mask.relative_to(root)) if pair.mask else ""
        for pair in dataset.pairs
    }


def _flat(images: str, masks: str, stems: str = "abcd") -> dict[str, str]:
    return {images.format(s): masks.format(s) for s in stems}


# Image and mask of a stem {}, as in found.md A13 and as programs and people name them otherwise.
NAMINGS = {
    "a folder an image": ("case_{}/image.png", "case_{}/mask.png"),
    "a folder an image, below a specimen": ("S1/{}/raw.tif", "S1/{}/gt.png"),
    "imgs, masks1": ("imgs/{}.tif", "masks1/{}.png"),
    "raw_images, masks_3class": ("raw_images/{}.tif", "masks_3class/{}.png"),
    "raw, raw/labeled": ("raw/{}.tif", "raw/labeled/{}.tif"),
    "raw, labeled": ("raw/{}.tif", "labeled/{}.tif"),
    "by specimen": ("images/S1/{}.tif", "masks/S1/{}.png"),
    "Bilder, Masken": ("Bilder/{}.tif", "Masken/{}.png"),
    "mmsegmentation": ("img_dir/train/{}.jpg", "ann_dir/train/{}.png"),
    "nnU-Net": ("imagesTr/{}_0000.png", "labelsTr/{}.png"),
    "Pascal": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "names that say nothing": ("A/{}.tif", "B/{}.tif"),
    "names that say the reverse": ("labels/{}.tif", "pictures/{}.tif"),
    "root and folder": ("{}.tif", "done/{}.png"),
    "same folder and stem": ("{}.tif", "{}.png"),
    "beside in folders": ("S1/{}.tif", "S1/{}_phases.png"),
    "any word behind": ("{}.tif", "{}_phase map.png"),
    "any word before": ("{}.tif", "phases_{}.png"),
    "ImageJ": ("{}.tif", "Mask of {}.tif"),
    "ilastik": ("{}.tif", "{}_Simple Segmentation.tif"),
    "ilastik of h5": ("raw/{}.tif", "out/{}-data_Simple Segmentation.png"),
    "Cellpose": ("{}.tif", "{}_cp_masks.png"),
    "ending kept": ("images/{}.tif", "labels_png/{}.tif.png"),
    "words on both": ("images/{}_image.png", "gt_dir/{}_gtruth.png"),
    "Cityscapes": ("leftImg8bit/x/{}_leftImg8bit.png", "gtFine/x/{}_gtFine_labelIds.png"),
    "capitals": ("Images/{}.TIF", "Labels2/{}.png"),
}
NAMINGS |= {
    "words before both": ("images/img_00{}.png", "masks/mask_00{}.png"),
    "numbers behind words": ("images/image1{}.png", "masks/mask1{}.png"),
}
for _end in ("_mask", "_masks", "-mask", "_label", "-label", "_seg", "_segmentation", "_gt"):
    NAMINGS[f"{_end} in a folder"] = ("pics/{}.tif", f"other/{{}}{_end}.png")
for _end in ("_annotation", "_labels", "_target", "_truth"):
    NAMINGS[f"{_end} beside"] = ("{}.tif", f"{{}}{_end}.png")


@pytest.mark.parametrize("name", NAMINGS)
def test_a_folder_of_any_naming_is_paired_and_its_masks_are_in_no_pool(
    tmp_path: Path, name: str
) -> None:
    """A13: masks were taken for micrographs wherever folder names were not on the list."""
    wanted = _flat(*NAMINGS[name])
    _pairs(tmp_path, wanted)
    assert _found(tmp_path, layouts.find(tmp_path)) == wanted
    images, left_out = layouts.unlabelled(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in images) == sorted(wanted)
    assert sum(part.files for part in left_out if part.why == "mask") == len(wanted)


def test_a_mask_deep_in_a_pool_is_no_micrograph_whatever_it_is_called(tmp_path: Path) -> None:
    """A13: a labelled set somewhere in a pool."""
    _pairs(tmp_path / "2024" / "session 3", _flat("frames/{}.tif", "done/{}.png"))
    for seed in range(5):
        _write(tmp_path / "2025" / f"n{seed}.tif", _picture(seed)[0])
    images, left_out = layouts.unlabelled(tmp_path)
    assert len(images) == 9 and not any(p.parent.name == "done" for p in images)
    assert [(part.path.name, part.files) for part in left_out] == [("done", 4)]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{}/{}.tif", "{}/{}_mask.png"),
        ("{}/S1/images/{}.tif", "{}/S1/masks/{}.png"),
        ("images/{}/{}.tif", "labels/{}/{}.png"),
        ("pics/{}/{}.tif", "drawn by hand/{}/{}.png"),
        ("{}/pics/{}.tif", "{}/drawn/{}.png"),
        ("pics/{}_images/{}.tif", "done/{}_done/{}.png"),
    ],
)
def test_folders_inside_name_the_splits(tmp_path: Path, images: str, masks: str) -> None:
    """A13: images/train beside labels/train."""
    wanted, split = {}, {}
    for name, stems in (("train", "ab"), ("val", "cd"), ("test", "ef")):
        for stem in stems:
            wanted[images.format(name, stem)] = masks.format(name, stem)
            split[stem] = name
    _pairs(tmp_path, wanted)
    found = layouts.find(tmp_path)
    assert _found(tmp_path, found) == wanted and not found.cut.automatic
    assert {pair.image.stem: pair.split for pair in found.pairs} == split


def test_the_same_stems_in_several_folders_go_with_the_mask_of_their_folder(tmp_path: Path) -> None:
    """A13: images/<specimen> beside masks/<specimen>; every specimen has its 1, 2, 3."""
    wanted = {
        f"frames/{s}/{n}.tif": f"phases/{s}/{n}.tif" for s in ("S1", "S2", "S3") for n in "123"
    }
    _pairs(tmp_path, wanted)
    found = layouts.find(tmp_path)
    assert _found(tmp_path, found) == wanted
    assert len(layouts.unlabelled(tmp_path)[0]) == 9


def test_each_specimen_has_its_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    """A13: a0_mask.png beside a0.tif was known in one folder alone."""
    wanted = {f"S{s}/a{n}.tif": f"S{s}/a{n}_mask.png" for s in "123" for n in "12"}
    _pairs(tmp_path, wanted)
    found = layouts.find(tmp_path)
    assert _found(tmp_path, found) == wanted and found.cut.kind == "drawn"


def test_a_mask_without_its_image_is_no_micrograph(tmp_path: Path) -> None:
    """A13: what lies among masks and holds few values is one, though its image is elsewhere."""
    _pairs(tmp_path, _flat("raw/{}.tif", "done/{}.png"))
    _write(tmp_path / "done" / "z.png", 255 * _picture(9)[1])
    _write(tmp_path / "raw" / "y.tif", _picture(8)[0])
    images, left_out = layouts.unlabelled(tmp_path)
    assert [p.stem for p in images] == ["a", "b", "c", "d", "y"]
    assert left_out == [layouts.LeftOut(tmp_path / "done", "mask", 5)]
    found = layouts.find(tmp_path)
    assert len(found.pairs) == 5
    told = [layouts.LeftOut(tmp_path / "done" / "z.png", "masks that are not used")]
    assert list(found.left_out) == told


def test_masks_of_a_pool_whose_images_are_not_there_are_no_micrographs(tmp_path: Path) -> None:
    """A13: a folder that is called one of masks, below a pool; what JPEG smeared goes with it."""
    for n in range(3):
        _write(tmp_path / f"p{n}.png", _picture(n)[0])
        _write(tmp_path / "Masken1" / "Probe A" / f"m{n}.png", 255 * _picture(n + 5)[1])
    smeared = cv2.GaussianBlur(255 * _picture(9)[1], (0, 0), 2)
    _write(tmp_path / "Masken1" / "Probe A" / "m9.jpg", smeared)
    images, left_out = layouts.unlabelled(tmp_path)
    assert [p.stem for p in images] == ["p0", "p1", "p2"]
    assert sum(item.files for item in left_out) == 4


def test_a_mask_that_fits_two_images_is_a_question(tmp_path: Path) -> None:
    """A13: nobody guesses which of two it is."""
    _pairs(tmp_path, {"S1/a.tif": "done/a.png", "S1/b.tif": "done/b.png"})
    shutil.copy(tmp_path / "S1" / "a.tif", tmp_path / "x.tif")
    (tmp_path / "S2").mkdir()
    shutil.copy(tmp_path / "S1" / "a.tif", tmp_path / "S2" / "a.tif")
    with pytest.raises(UserError, match=r"1 mask in .* may belong to more than one image \(first"):
        layouts.find(tmp_path)


def test_two_sets_of_masks_are_one_question_that_names_the_flag(tmp_path: Path) -> None:
    """A13: masks of two and of three classes for the same images."""
    for folder, values in (("two", 255), ("three", 1)):
        _pairs(tmp_path, _flat("frames/{}.tif", folder + "/{}.png"), values)
    with pytest.raises(UserError, match=r"several sets of masks.*--mask_folder (two|three)"):
        layouts.find(tmp_path)
    assert len(layouts.unlabelled(tmp_path)[0]) == 4
    for folder in ("two", "three"):
        found = layouts.find(tmp_path, mask_folder=folder)
        assert _found(tmp_path, found) == _flat("frames/{}.tif", folder + "/{}.png")


def test_a_named_folder_of_masks_needs_no_few_values_and_takes_a_pattern(tmp_path: Path) -> None:
    """A13: what pictures hold and what they are called may both say nothing."""
    for seed, stem in enumerate("abc"):
        _write(tmp_path / "in" / f"{stem}.png", _picture(seed)[0])
        gray, drawn = _picture(seed + 9)
        _write(tmp_path / "out" / f"0{stem}7.png", gray * drawn)
    with pytest.raises(UserError, match="--mask_folder"):
        layouts.find(tmp_path)
    with pytest.raises(UserError, match=r"no mask in .*out has the name of an image"):
        layouts.find(tmp_path, mask_folder="out", classes="binary:1")
    found = layouts.find(tmp_path, mask_folder="out/0*7.png", classes="binary:1")
    assert _found(tmp_path, found) == _flat("in/{}.png", "out/0{}7.png", "abc")
    with pytest.raises(UserError, match=r"there is no folder absent in .*--mask_folder"):
        layouts.find(tmp_path, mask_folder="absent")
    with pytest.raises(UserError, match="there is no mask in"):
        layouts.find(tmp_path, mask_folder="out/*_seg.png")


def test_pictures_alike_in_name_and_size_are_no_masks(tmp_path: Path) -> None:
    """A13: the same counter in every folder, an export beside each picture, a second detector."""
    for folder in ("S1", "S2"):
        for number in range(4):
            gray = _picture(number + 10 * (folder == "S2"))[0]
            _write(tmp_path / folder / f"img_{number}.tif", gray)
            _write(tmp_path / folder / f"img_{number}.jpg", gray)
            _write(tmp_path / folder / f"img_{number}_BSE.tif", 255 - gray)
    images, left_out = layouts.unlabelled(tmp_path)
    assert len(images) == 24 and left_out == []


def test_a_picture_of_another_size_is_no_mask(tmp_path: Path) -> None:
    """A13: stem and size must match; a fifth of the rows may be lacking, as under a bar."""
    gray, drawn = _picture(0)
    for stem, rows in (("a", 56), ("b", 40)):
        _write(tmp_path / "in" / f"{stem}.tif", gray)
        _write(tmp_path / "out" / f"{stem}.tif", drawn[:rows])
    _write(tmp_path / "in" / "c.tif", gray)
    _write(tmp_path / "out" / "c.tif", drawn[:, :-1])
    found = layouts.find(tmp_path)
    assert _found(tmp_path, found)["in/a.tif"] == "out/a.tif"
    assert {k: v for k, v in _found(tmp_path, found).items() if v} == {"in/a.tif": "out/a.tif"}


def test_overlays_of_a_labelling_program_are_neither_image_nor_mask(tmp_path: Path) -> None:
    """A13: LabelMe's folder per image, its exports with pictures for people."""
    for number in range(3):
        gray, drawn = _picture(number)
        place = tmp_path / "labelme" / f"a{number}_json"
        over = np.dstack([gray, gray, np.maximum(gray, 200 * drawn)])
        _write(place / "img.png", gray)
        _write(place / "label.png", drawn)
        _write(place / "label_viz.png", over)
        other = tmp_path / "export"
        _write(other / "JPEGImages" / f"{number}.jpg", gray)
        _write(other / "SegmentationClassPNG" / f"{number}.png", drawn)
        _write(other / "SegmentationClassVisualization" / f"{number}.jpg", over)
    for name in ("labelme", "export"):
        images, _ = layouts.unlabelled(tmp_path / name)
        assert len(images) == 3, name
        found = layouts.find(tmp_path / name)
        assert len(found.pairs) == 3 and all(pair.mask for pair in found.pairs), name


def test_a_second_mask_for_one_image_is_called_that(tmp_path: Path) -> None:
    """Issue point 2: images/ and masks/ with a.png and a_mask.png said "without an image"."""
    _pairs(tmp_path, _flat("images/{}.tif", "masks/{}.png", "ab"))
    shutil.copy(tmp_path / "masks" / "a.png", tmp_path / "masks" / "a_mask.png")
    with pytest.raises(UserError, match=r"a\.tif has the masks a\.png and a_mask\.png.* remove"):
        layouts.find(tmp_path)
    os.remove(tmp_path / "images" / "b.tif")
    with pytest.raises(UserError, match=r"(?s)a_mask\.png.*1 mask in .* without an image .*b\.png"):
        layouts.find(tmp_path)


# --- what is no picture of a microscope at all ---
def test_previews_and_deleted_files_of_servers_are_in_no_pool(tmp_path: Path) -> None:
    """A12: @eaDir, #recycle, $RECYCLE.BIN, .thumbnails."""
    for seed, place in enumerate(
        ("", "@eaDir/a.tif", "#recycle", "$RECYCLE.BIN/S-1", ".thumbnails/normal", "@Recycle")
        + ("System Volume Information", "S1/@eaDir/b.tif", ".@__thumb", "__MACOSX")
    ):
        _write(tmp_path / place / "a.jpg", _picture(seed)[0])
    images, left_out = layouts.unlabelled(tmp_path)
    assert images == [tmp_path / "a.jpg"]
    told = {part.path.name for part in left_out if part.why == "previews or deleted files"}
    assert {"@eaDir", "#recycle", "$RECYCLE.BIN"} <= told


def test_pictures_of_our_own_runs_are_no_micrographs(tmp_path: Path) -> None:
    """Issue point 2: experiments/ below the images: masks, panels, curves.png."""
    for seed in range(3):
        _write(tmp_path / f"a{seed}.tif", _picture(seed)[0])
    run = tmp_path / "experiments" / "eval" / "x"
    for name in ("masks/index/a0.png", "masks/colour/a0.png", "visualizations/a0.png"):
        _write(run / name, _picture(7)[0])
    for name in ("config.yaml", "command.txt", "environment.json"):
        (run / name).write_text("{}")
    images, left_out = layouts.unlabelled(tmp_path)
    assert len(images) == 3 and left_out == [layouts.LeftOut(run, "results of matssl", 0)]
    with pytest.raises(UserError, match="holds results of a run"):
        layouts.unlabelled(run)
    with pytest.raises(UserError, match=r"there is no image in .*eval/x holds results of a run"):
        layouts.unlabelled(tmp_path / "experiments")
    # Who gives a folder of pictures in it means them.
    assert len(layouts.unlabelled(run / "visualizations")[0]) == 1


EMPTY = {
    "labelme": ("a.json", json.dumps({"shapes": [], "imagePath": "a.tif", "imageData": None})),
    "coco": ("c.json", json.dumps({"images": [], "annotations": [], "categories": []})),
    "cvat": (
        "annotations.xml",
        "<?xml version='1.0'?><annotations><image id='0' name='a.tif' width='64' height='64' />"
        "</annotations>",
    ),
}


@pytest.mark.parametrize("program", EMPTY)
def test_annotation_files_without_a_shape_are_named(tmp_path: Path, program: str) -> None:
    """A20: they were never named in a message. Images are predicted all the same."""
    name, text = EMPTY[program]
    _write(tmp_path / "a.tif", _picture(0)[0])
    (tmp_path / name).write_text(text)
    (tmp_path / "other.json").write_text('{"SEM": 1}')
    told = f"annotations of {program} in .* name no picture of .* with a shape on it"
    with pytest.raises(UserError, match=f"no masks.*{told}"):
        layouts.find(tmp_path)
    found = layouts.find(tmp_path, need_masks=False)
    assert [pair.image.name for pair in found.pairs] == ["a.tif"]
    assert sum(bool(re.search(told, note)) for note in found.notes) == 1


def test_annotation_files_that_are_damaged_are_no_images_without_masks(tmp_path: Path) -> None:
    """What was drawn would be missing from the scores in silence."""
    _write(tmp_path / "a.tif", _picture(0)[0])
    with zipfile.ZipFile(tmp_path / "RoiSet.zip", "w") as archive:
        archive.writestr("0030-0040.roi", b"Iout")
    with pytest.raises(UserError, match="annotations of imagej in .* is damaged"):
        layouts.find(tmp_path, need_masks=False)


# --- what a picture holds ---
def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def test_masks_of_every_make_hold_few_values_and_micrographs_many(tmp_path: Path) -> None:
    """A13: 0/1, 0/255, colours, one number a particle, after JPEG, with soft edges, in alpha."""
    gray, drawn = _picture(3, 256)
    _, numbers = cv2.connectedComponents(drawn)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    particles = np.kron(np.arange(1, 257).reshape(16, 16), np.ones((16, 16))).astype(np.uint16)
    alpha = np.dstack([np.zeros((256, 256, 3), np.uint8), 255 * drawn])
    masks = {
        "0 and 1": drawn,
        "0 and 255": 255 * drawn,
        "colour": colours[drawn + (gray > 90) * (np.arange(256) > 128)],
        "particles": numbers.astype(np.uint16),
        "many particles": particles,
        "jpeg 95": _jpeg(255 * drawn, 95),
        "jpeg 60": _jpeg(255 * drawn, 60),
        "soft": cv2.GaussianBlur(255 * drawn, (0, 0), 1.0),
        "alpha": alpha,
        "fine": np.uint8(255) * (np.add.outer(np.arange(256), np.arange(256)) % 4 < 2),
        "ten classes": (np.arange(256)[None] // 26 * 20 + np.zeros((256, 1))).astype(np.uint8),
    }
    masks["colour"] = np.where((np.arange(256) > 128)[:, None, None], colours[drawn], 9)
    for name, pixels in masks.items():
        assert content.of_pixels(pixels) == Holds.FEW, name
    dark = np.where(np.hypot(*(np.mgrid[:256, :256] - 128)) < 90, gray, 0)
    others = {
        "8 bit": gray,
        "12 bit in 16": gray.astype(np.uint16) * 16 + 3,
        "dark around": dark,
        "jpeg 20": _jpeg(gray, 20),
        "five bits": gray >> 3 << 3,
        "low contrast": gray // 8 + 100,
        "colour": np.dstack([gray, gray // 2, 255 - gray]),
        "smooth": cv2.GaussianBlur(gray, (0, 0), 2.0),
    }
    for name, pixels in others.items():
        assert content.of_pixels(pixels) == Holds.MANY, name
    assert content.of_pixels(np.full((9, 9), 7)) == Holds.ONE
    for kind, pictures in ((Holds.FEW, masks), (Holds.MANY, others)):
        for name, pixels in pictures.items():
            for end in (".png", ".tif"):
                _write(tmp_path / f"x{end}", pixels)
                assert content.holds(tmp_path / f"x{end}") == kind, (name, end)
    _write(tmp_path / "x.jpg", gray)
    assert content.holds(tmp_path / "x.jpg") == Holds.MANY
    _write(tmp_path / "x.jpg", 255 * drawn)
    assert content.holds(tmp_path / "x.jpg") == Holds.FEW
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert content.holds(tmp_path / "x.png") is None


def test_of_many_files_few_are_opened_unless_they_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A13: to see whether pictures are masks must stay cheap in a big pool."""
    gray, drawn = _picture(0)
    for number in range(200):
        _write(tmp_path / "in" / f"{number}.png", gray)
        _write(tmp_path / "out" / f"{number}.png", drawn)
        _write(tmp_path / "alone" / f"n{number}.png", gray)
    monkeypatch.setattr(matching, "LOOKED_AT", 40)
    opened: list[Path] = []
    whole = content.holds
    monkeypatch.setattr(content, "holds", lambda path: opened.append(path) or whole(path))
    start = time.perf_counter()
    images, left_out = layouts.unlabelled(tmp_path)
    assert len(images) == 400 and len(opened) < 50 and time.perf_counter() - start < 20
    assert not any(path.parent.name == "alone" for path in opened)
    # One picture among the masks is found where those that are looked at disagree.
    _write(tmp_path / "out" / "0.png", gray)
    assert len(layouts.unlabelled(tmp_path)[0]) == 401


# --- one image ---
def test_one_image_stands_for_itself(tmp_path: Path) -> None:
    """C12: a single image file was refused."""
    _pairs(tmp_path, _flat("images/{}.tif", "masks/{}.png"))
    image = tmp_path / "images" / "a.tif"
    found = layouts.find(image, need_masks=False)
    assert [pair.image for pair in found.pairs] == [image] and found.splits == ("predict",)
    assert layouts.unlabelled(image) == ([image], [])
    with pytest.raises(UserError, match="is one image; give the folder"):
        layouts.find(image)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is a file and no image"):
        layouts.unlabelled(tmp_path / "notes.txt")


def test_names_are_compared_without_capitals_and_ways_of_storing_umlauts(tmp_path: Path) -> None:
    """A19: a mask from a Mac (NFD) belongs to the image from Windows (NFC)."""
    gray, drawn = _picture(0)
    for number in "12":
        _write(tmp_path / "bilder" / unicodedata.normalize("NFC", f"Gefüge{number}.TIF"), gray)
        _write(tmp_path / "fertig" / unicodedata.normalize("NFD", f"gefüge{number}.png"), drawn)
    found = layouts.find(tmp_path)
    assert len(found.pairs) == 2 and all(pair.mask for pair in found.pairs)
    assert readers.find_images(tmp_path)


# --- names that agree in a number, or say that a picture was drawn --------------------------------
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("sem/SEM_{}.tif", "seg/SEG_{}.png"),
        ("input/in_{}.png", "output/out_{}.png"),
        ("img/a00{}.png", "msk/{}.png"),
        ("imgs/IMG_000{}.jpg", "masks/MASK_000{}.png"),
    ],
)
def test_folders_whose_numbers_agree_are_pairs(tmp_path: Path, image: str, mask: str) -> None:
    """A13: no mask is learned from as a picture where only its number is the image's."""
    right = _flat(image, mask, "0123")
    _pairs(tmp_path, right)
    assert _found(tmp_path, layouts.find(tmp_path)) == right
    images, _ = layouts.unlabelled(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in images) == sorted(right)


def test_two_folders_of_micrographs_with_equal_numbers_stay_pictures(tmp_path: Path) -> None:
    for seed in range(4):
        _write(tmp_path / f"steel/A_{seed}.png", _picture(seed)[0])
        _write(tmp_path / f"brass/B_{seed}.png", _picture(10 + seed)[0])
    assert len(layouts.unlabelled(tmp_path)[0]) == 8


@pytest.mark.parametrize("end", ["_overlay.png", "-preview.jpg", "_Probabilities.tif", ".viz.png"])
def test_what_was_drawn_from_a_picture_beside_it_is_no_micrograph(tmp_path: Path, end: str) -> None:
    """A13: a_overlay.png beside a.png is neither learned from nor predicted."""
    _pairs(tmp_path, _flat("{}.png", "{}_mask.png"))
    for seed, name in enumerate("abcd"):
        _write(tmp_path / f"{name}{end}", _picture(30 + seed)[0])
    _write(tmp_path / "one overlay.png", _picture(50)[0])
    images, left_out = layouts.unlabelled(tmp_path)
    assert [path.name for path in images] == ["a.png", "b.png", "c.png", "d.png", "one overlay.png"]
    assert sum(out.files for out in left_out if out.why.startswith("drawn")) == 4
    assert {pair.image.name for pair in layouts.find(tmp_path).pairs} == {p.name for p in images}
