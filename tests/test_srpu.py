"""Folders, index files, colours and crops of SRPU-Model, by their S and F in docs/migrating.md.

S-01 index, S-02 sequences, S-03 colours, S-04 split, S-06 sizes, S-07 rotation; F-S4, F-S8, F-S11,
F-S13, F-S14, F-S18. Training, statistics, masked reconstruction and evaluation: the other files
named tests/test_srpu_*.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from srpu_project import COLOURS, FRAMES, MAPPING, POOL, labels, project, write

from matssl.core.errors import UserError
from matssl.data import layouts, masks, readers
from matssl.data.crops import CropAugmentation, CropLoader, Labelled, cut_turned
from matssl.data.layouts import index, index_files
from matssl.data.masks.mapping import read_mapping
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import Pair
from matssl.tools import doctor
from matssl.tools import index as index_tool


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# --- S-01, F-S14: the index -------------------------------------------------------------------
def test_one_command_writes_the_index_files_of_the_program(tmp_path: Path) -> None:
    """S-01; F-S14: the mode of its README is a flag here."""
    root = project(tmp_path)
    assert index_tool.main([str(root), "--mode", "generate_all"]) == 0
    written = sorted(path.name for path in (tmp_path / "json").iterdir())
    assert written == [
        "dataset1_LInCl.json",
        "dataset1_LInCl_ssl.json",
        "dataset2_LPSCl.json",
        "dataset2_LPSCl_ssl.json",
        "dataset_split_summary.json",
        "master_labeled_dataset.json",
        "master_labeled_dataset_test.json",
        "master_labeled_dataset_train.json",
        "master_labeled_dataset_val.json",
        "master_ssl_dataset.json",
    ]
    master = _json(tmp_path / "json" / "master_labeled_dataset.json")
    assert master["num_samples"] == len(master["samples"]) == 9
    assert master["datasets_info"]["dataset1_LInCl"] == {
        "raw_image_root": "datasets/dataset1_LInCl/raw_images",
        "mask_root": "datasets/dataset1_LInCl/masks_3class",
    }
    assert master["samples"][0] == {
        "sample_id": "4.2V_4.2V-009_centerFrameIdx0009",
        "dataset": "dataset1_LInCl",
        "frames": ["4.2V-009.png"],
        "mask_file": "4.2V-009.png",
    }
    bare = _json(tmp_path / "json" / "master_ssl_dataset.json")
    assert bare["num_samples"] == 11 and not any("mask_file" in s for s in bare["samples"])


def test_the_index_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    root = project(tmp_path)
    for name in ("a", "b"):
        index_tool.main([str(root), "--output_dir", str(tmp_path / name)])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_folder_without_data_sets_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data set"):
        index_tool.main([str(tmp_path / "empty")])
    assert not (tmp_path / "json").exists()


def test_two_frames_of_one_number_are_refused(tmp_path: Path) -> None:
    root = project(tmp_path, {"d1": ("a-1", "a_01")})
    with pytest.raises(UserError, match="both frame 1 of d1/a"):
        index_files.scan(root)


# --- S-02, F-S18: sequences -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stem", "sequence", "number"),
    [
        ("4.2V-001", "4.2V", 1),
        ("LNOCl_pristine-057", "LNOCl_pristine", 57),
        ("LPSCl011", "LPSCl", 11),
        ("overview", "overview", 0),
        ("012", "", 12),
    ],
)
def test_a_name_is_a_sequence_and_the_number_of_a_frame(
    stem: str, sequence: str, number: int
) -> None:
    """S-02: the program's own pattern; the point of 4.2V is no ending (F-S7)."""
    assert index.sequence_of(stem) == (sequence, number)


def test_neighbours_are_those_of_the_next_numbers_labelled_or_not(tmp_path: Path) -> None:
    """F-S18: by number and not by rank, unlabelled frames among them; ends are clamped."""
    root = project(tmp_path, {"d1": ("s-1", "s-2", "s-5")}, pool=False)
    write(root / "d1" / "raw_images" / "s-3.png", np.zeros((48, 48), np.uint8))
    made, gaps = index_files.samples(index_files.scan(root), 3)
    stacks = {str(s["sample_id"])[-4:]: s["frames"] for s in made}
    assert stacks == {
        "0001": ["s-1.png", "s-1.png", "s-2.png"],
        "0002": ["s-1.png", "s-2.png", "s-3.png"],
        "0003": ["s-2.png", "s-3.png", "s-3.png"],
        "0005": ["s-5.png", "s-5.png", "s-5.png"],
    }
    # 4 is asked for by 3 and by 5.
    assert gaps == 2


def test_an_index_of_labelled_frames_is_stacked_with_the_others_it_names(tmp_path: Path) -> None:
    """S-02, F-S18: --input_depth reads unlabelled neighbours; at 1 the middle frame counts."""
    root = project(tmp_path, {"d1": ("s-1", "s-3", "t-1", "t-2")}, pool=False)
    write(root / "d1" / "raw_images" / "s-2.png", np.zeros((48, 48), np.uint8))
    index_tool.main([str(root), "--depth", "3", "--mode", "generate_labeled_unlabeled"])
    path = tmp_path / "json" / "master_labeled_dataset.json"
    assert sorted(p.image.stem for p in layouts.find(path).pairs) == ["s-1", "s-3", "t-1", "t-2"]
    found = layouts.find(path, depth=3)
    stacks = {
        image.stem: [near.stem for near in frames] for image, frames in found.neighbours(3).items()
    }
    assert stacks["s-3"] == ["s-2", "s-3", "s-3"] and stacks["s-1"] == ["s-1", "s-1", "s-2"]
    assert stacks["t-1"] == ["t-1", "t-1", "t-2"]


def test_an_even_depth_is_refused(tmp_path: Path) -> None:
    """F-S18: it silently gave no sample."""
    root = project(tmp_path)
    with pytest.raises(UserError, match="--depth must be odd"):
        index_tool.main([str(root), "--depth", "2"])
    assert not (tmp_path / "json").exists()


# --- folders and index files are data sets here -----------------------------------------------
def test_a_project_is_read_as_it_is_and_a_sequence_is_a_specimen(tmp_path: Path) -> None:
    root = project(tmp_path)
    for place in (root, tmp_path):
        found = layouts.find(place)
        assert found.layout == "raw_images + masks_3class"
        assert sum(pair.mask is not None for pair in found.pairs) == 9
        assert all(pair.mask is None or pair.mask.stem == pair.image.stem for pair in found.pairs)
        assert [p.split for p in found.pairs if p.image.stem == POOL] == ["predict"] * 2
    groups = {pair.image.stem: pair.group for pair in layouts.find(root).pairs}
    assert groups["4.2V-009"] == groups["4.2V-010"] == "dataset1_LInCl/4.2V"
    assert groups["cycled-003"] == "dataset2_LPSCl/cycled"
    sides: dict[str, set[str]] = {}
    for pair in layouts.find(root).pairs:
        if pair.mask is not None:
            sides.setdefault(pair.group, set()).add(pair.split)
    assert all(len(splits) == 1 for splits in sides.values())


def test_one_data_set_of_a_project_is_read_alone(tmp_path: Path) -> None:
    found = layouts.find(project(tmp_path) / "dataset1_LInCl")
    assert {pair.group for pair in found.pairs} == {"4.2V", "4.4V", "pristine", "pool"}


def test_masks_are_in_no_pool(tmp_path: Path) -> None:
    images, left_out = layouts.unlabelled(project(tmp_path))
    assert len(images) == 11 and all(path.parent.name == "raw_images" for path in images)
    assert {out.path.name for out in left_out} == {"masks_3class"}


def test_a_mask_without_an_image_is_named(tmp_path: Path) -> None:
    root = project(tmp_path)
    write(root / "dataset1_LInCl" / "masks_3class" / "gone-1.png", COLOURS[labels(0, 48)])
    with pytest.raises(UserError, match="1 mask in .* without an image .*gone-1.png"):
        layouts.find(root)


def test_an_index_stands_for_the_images_it_lists(tmp_path: Path) -> None:
    root = project(tmp_path)
    index_tool.main([str(root), "--depth", "3"])
    of_index = layouts.find(tmp_path / "json" / "master_labeled_dataset.json")
    of_folder = layouts.find(root)
    labelled = [pair for pair in of_folder.pairs if pair.mask is not None]
    key = lambda pair: (pair.image.resolve(), pair.mask.resolve(), pair.group, pair.split)  # noqa: E731
    assert sorted(map(key, of_index.pairs)) == sorted(map(key, labelled))
    pool, _ = layouts.unlabelled(tmp_path / "json" / "master_ssl_dataset.json")
    assert {path.stem for path in pool} == {s for own in FRAMES.values() for s in own} | {POOL}


def test_a_former_index_with_backslashes_and_one_root_is_read(tmp_path: Path) -> None:
    """The form before datasets_info; frames in folders, as Windows writes them."""
    raw, mask = tmp_path / "data" / "raw" / "cell", tmp_path / "data" / "labeled" / "cell"
    for number in (9, 10):
        write(raw / f"4.2V-{number:03d}.png", np.zeros((8, 8), np.uint8))
        write(mask / f"4.2V-{number:03d}.png", COLOURS[labels(number, 8)])
    names = [f"cell\\4.2V-{number:03d}.png" for number in (9, 9, 10)]
    content = {
        "root_raw_image_dir": "data\\raw",
        "root_labeled_mask_dir": "data/labeled",
        "input_depth": 3,
        "samples": [{"sample_id": "x", "frames": names, "mask_file": "cell/4.2V-009.png"}],
    }
    path = tmp_path / "json" / "master_labeled_dataset.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    found = index.read_index(path).found
    assert [(item.image, item.mask) for item in found] == [
        (raw / "4.2V-009.png", mask / "4.2V-009.png")
    ]


def test_names_of_each_data_sets_own_index_are_found(tmp_path: Path) -> None:
    """F-S13: its SSL index crashed on frames, and its names led nowhere."""
    index_tool.main([str(project(tmp_path))])
    found = index.read_index(tmp_path / "json" / "dataset2_LPSCl_ssl.json")
    assert len(found.found) == 5 and all(item.image.is_file() for item in found.found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("datasets_info"), "sample 1: there is no raw_image_root"),
        (lambda c: c["samples"][0].pop("frames"), "sample 1, names no image"),
        (
            lambda c: c["samples"][0].update(frames=["no.png"]),
            "1 file that are not there|not there",
        ),
        (lambda c: c["samples"][0].update(frames=["x" * 5000]), "not there"),
        (lambda c: c.update(samples=[]), "lists no sample"),
        (lambda c: c.pop("samples"), "is no index of images"),
    ],
)
def test_what_is_wrong_with_an_index_is_said_in_one_line(
    tmp_path: Path, change: object, said: str
) -> None:
    index_tool.main([str(project(tmp_path))])
    path = tmp_path / "json" / "master_labeled_dataset.json"
    content = _json(path)
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as caught:
        layouts.find(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# --- S-04, F-S8: splits -----------------------------------------------------------------------
def test_splits_are_of_whole_sequences_and_the_summary_names_them(tmp_path: Path) -> None:
    """S-04; F-S8: frames of one sequence are on one side, and the test part is a split."""
    root = project(tmp_path)
    index_tool.main([str(root), "--val_split", "0.2", "--test_split", "0.2"])
    summary = _json(tmp_path / "json" / "dataset_split_summary.json")
    parts = [set(summary["sequences"][name]) for name in ("train", "val", "test")]
    assert all(parts) and len(set.union(*parts)) == sum(map(len, parts)) == 5
    assert sum(summary["split_counts"].values()) == 9
    found = layouts.find(root, splits=tmp_path / "json")
    assert {p.split for p in found.pairs} == {"train", "val", "test"}
    for name, own in zip(("train", "val", "test"), parts, strict=True):
        assert {pair.group for pair in found.split(name)} == own
    # One file of the set says its split, too.
    alone = layouts.find(root, splits=tmp_path / "json" / "master_labeled_dataset_val.json")
    assert {p.split for p in alone.pairs} == {"val"}


def test_an_index_without_splits_is_no_list_of_splits(tmp_path: Path) -> None:
    root = project(tmp_path)
    index_tool.main([str(root)])
    with pytest.raises(UserError, match="not which split they are in"):
        layouts.find(root, splits=tmp_path / "json" / "master_labeled_dataset.json")


def test_splits_of_two_indices_in_one_folder_are_a_question(tmp_path: Path) -> None:
    root = project(tmp_path)
    index_tool.main([str(root)])
    for split in ("train", "val"):
        path = tmp_path / "json" / f"master_labeled_dataset_{split}.json"
        (tmp_path / "json" / f"other_{split}.json").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="several index files"):
        layouts.find(root, splits=tmp_path / "json")


def test_one_sequence_is_never_parted(tmp_path: Path) -> None:
    root = project(tmp_path, {"d1": ("s-1", "s-2", "s-3")}, pool=False)
    with pytest.raises(UserError, match="has one sequence"):
        index_tool.main([str(root)])


def test_splits_by_image_that_part_a_sequence_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F-S8: the program's own split files are taken as they are, and what they part is said."""
    root = project(tmp_path)
    index_tool.main([str(root)])
    whole = _json(tmp_path / "json" / "master_labeled_dataset.json")
    place = tmp_path / "theirs"
    place.mkdir()
    for split, own in (("train", slice(0, None, 2)), ("val", slice(1, None, 2))):
        part = {**whole, "samples": whole["samples"][own]}
        (place / f"master_{split}.json").write_text(json.dumps(part))
    doctor.main([str(root), "--splits", str(place)])
    assert "groups on both sides of a split" in capsys.readouterr().out


# --- S-06: sizes ------------------------------------------------------------------------------
def test_sizes_of_images_and_masks_are_told_for_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-06: image and mask that differ are named."""
    root = project(tmp_path)
    doctor.main([str(root), "--list"])
    assert capsys.readouterr().out.count("48 x 48") >= 11
    write(root / "dataset1_LInCl" / "masks_3class" / "4.2V-009.png", COLOURS[labels(0, 20)])
    with pytest.raises(UserError, match="4.2V-009.png"):
        doctor.main([str(root)])


# --- S-03, F-S4: colours ----------------------------------------------------------------------
def _mapping(path: Path, text: str = MAPPING) -> Path:
    path.write_text(text)
    return path


def test_the_table_of_colours_of_its_configuration_is_a_class_file(tmp_path: Path) -> None:
    """S-03: a Python file, read and never run; comments are the names."""
    file = _mapping(tmp_path / "base.py", "raise SystemExit(3)\n" + MAPPING)
    found = layouts.find(project(tmp_path), classes=str(file))
    assert found.table is not None
    assert [(c.name, c.values) for c in found.table.classes] == [
        ("carbon", ("#0000ff",)),
        ("SE", ("#00ffff",)),
        ("AM", ("#ff7e7e",)),
    ]
    mask = next(pair.mask for pair in found.pairs if pair.mask and pair.image.stem == "4.2V-010")
    assert np.array_equal(found.table.decode(readers.read_mask(mask)), labels(1, 48))


@pytest.mark.parametrize(
    "text",
    [
        '{"0,0,255": 0, "0,255,255": 1, "(255, 126, 126)": 2}',
        '{"MAPPING": {"#0000ff": 0, "#00ffff": 1, "#ff7e7e": 2}}',
        "[[[0, 0, 255], 0], [[0, 255, 255], 1], [[255, 126, 126], 2]]",
        '[{"color": [0,0,255]}, {"rgb": [0,255,255], "index": 1}, {"colour": [255,126,126]}]',
        '{"class 0": [0,0,255], "class 1": [0,255,255], "class 2": [255,126,126]}',
    ],
)
def test_the_same_table_as_json(tmp_path: Path, text: str) -> None:
    entries, ignored = read_mapping(_mapping(tmp_path / "mapping.json", text))
    assert ignored == ()
    assert entries == [
        ("class 0", ("#0000ff",)),
        ("class 1", ("#00ffff",)),
        ("class 2", ("#ff7e7e",)),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MAPPING = {(0, 0, 255): 0, (0, 255, 255): 2}", "numbers its classes 0, 2"),
        ("MAPPING = {(0, 0, 256): 0, (0, 255, 255): 1}", "is no colour"),
        ("MAPPING = {(0, 0, 255): 0, (0, 0, 255): 1}", "twice"),
        ("MAPPING = {(0, 0, 255): 'a', (0, 1, 255): 1}", "no number of a class"),
        ("MAPPING = 3", "holds no table of colours"),
        ("MAPPING = {", "is no Python file"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_mapping(_mapping(tmp_path / "base.py", text))


def test_stray_colours_and_black_are_ignored_and_counted(tmp_path: Path) -> None:
    """F-S4: they became carbon, a phase that is there."""
    root = project(tmp_path)
    mask = COLOURS[labels(0, 48)].copy()
    mask[:2] = 0
    mask[2, :5] = (0, 128, 255)
    path = write(root / "dataset1_LInCl" / "masks_3class" / "4.2V-009.png", mask)
    file = _mapping(tmp_path / "base.py")
    found = layouts.find(root, classes=str(file))
    note = next(note for note in found.notes if "ignored" in note)
    assert "mask 4.2V-009.png: 101 px" in note
    assert "#000000 (96 px), #0080ff (5 px)" in note
    assert found.table is not None and "ignored: all others" in found.table.describe()
    decoded = found.table.decode(readers.read_mask(path))
    assert (decoded[:2] == 255).all() and (decoded[2, :5] == 255).all()
    assert (decoded != 255).sum() == 48 * 48 - 101
    # What the table became goes through a checkpoint and a class file.
    again = masks.ClassTable.from_dict(json.loads(json.dumps(found.table.to_dict())))
    assert np.array_equal(again.decode(readers.read_mask(path)), decoded)


def test_a_yaml_file_ignores_the_rest_too(tmp_path: Path) -> None:
    root = project(tmp_path)
    mask = COLOURS[labels(0, 48)].copy()
    mask[:2] = 0
    path = write(root / "dataset1_LInCl" / "masks_3class" / "4.2V-009.png", mask)
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {carbon: '#0000ff', SE: '#00ffff', AM: '#ff7e7e'}\nignore: rest\n")
    found = layouts.find(root, classes=str(file))
    assert found.table is not None
    assert (found.table.decode(readers.read_mask(path))[:2] == 255).all()


def test_a_table_of_other_colours_is_refused_and_bgr_is_recognised(tmp_path: Path) -> None:
    root = project(tmp_path)
    turned = "MAPPING = {(255, 0, 0): 0, (255, 255, 0): 1, (126, 126, 255): 2}"
    with pytest.raises(UserError, match="explains 0 % .* written as BGR"):
        layouts.find(root, classes=str(_mapping(tmp_path / "base.py", turned)))


def test_class_numbers_among_coloured_masks_are_a_question(tmp_path: Path) -> None:
    root = project(tmp_path)
    write(root / "dataset1_LInCl" / "masks_3class" / "4.2V-009.png", labels(0, 48).astype(np.uint8))
    with pytest.raises(UserError, match="class numbers"):
        layouts.find(root, classes=str(_mapping(tmp_path / "base.py")))


# --- S-07, F-S11: rotation --------------------------------------------------------------------
def _coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:height, :width]
    return rows.astype(np.float32), columns.astype(np.float32)


def test_picture_and_mask_are_turned_alike_and_classes_stay_classes() -> None:
    """S-07: a pixel of the mask is the one nearest to where the picture was taken."""
    rows, columns = _coordinates(90, 140)
    mask = ((rows // 7 + columns // 9) % 3).astype(np.uint8)
    for degrees in (30.0, -17.3, 4.0):
        seen = [cut_turned(plane, mask, 25, 40, 32, degrees) for plane in (rows, columns)]
        (y, turned), (x, _) = seen
        assert np.array_equal(turned, mask[np.rint(y).astype(int), np.rint(x).astype(int)])
        # A turn by the angle about the middle of the square.
        angle = np.deg2rad(degrees)
        middle = np.array([25 + 15.5, 40 + 15.5])
        wanted = middle + np.array(
            [
                -15.5 * np.cos(angle) + -15.5 * np.sin(angle),
                -15.5 * np.cos(angle) - -15.5 * np.sin(angle),
            ]
        )
        assert np.allclose((y[0, 0], x[0, 0]), wanted, atol=0.05)


def test_a_quarter_turn_and_none_are_exact() -> None:
    rows, columns = _coordinates(60, 80)
    mask = ((rows // 7 + columns // 9) % 3).astype(np.uint8)
    plane = rows * 100 + columns
    for degrees, quarter in ((0.0, 0), (90.0, 1), (180.0, 2), (-90.0, 3)):
        turned = cut_turned(plane, mask, 11, 23, 24, degrees)
        for one, whole in zip(turned, (plane, mask), strict=True):
            assert np.array_equal(one, np.rot90(whole[11:35, 23:47], quarter))


def test_beyond_the_image_grey_levels_are_mirrored_and_classes_ignored() -> None:
    """F-S11: an image that is not square keeps its shape."""
    plane, mask = np.full((20, 50, 3), 0.5, np.float32), np.ones((20, 50), np.uint8)
    seen, labelled = cut_turned(plane, mask, 0, 0, 32, 20.0)
    assert seen.shape == (32, 32, 3) and np.allclose(seen, 0.5)
    assert set(np.unique(labelled)) == {1, 255}
    assert abs(int((labelled == 1).sum()) - 20 * 32) < 120


def test_what_a_crop_was_chosen_for_stays_in_it() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[63, 63] = 1
    for degrees in (-30.0, 11.0, 30.0):
        turned = cut_turned(mask.astype(np.float32), mask, 40, 40, 32, degrees, pivot=(63, 63))
        assert turned[1][31, 31] == 1


def _loader(rotation: float | None = None) -> CropLoader:
    generator = np.random.default_rng(3)
    planes = tuple(generator.random((50, 70)).astype(np.float32) for _ in range(2))
    found = tuple(generator.integers(0, 3, (50, 70)).astype(np.uint8) for _ in range(2))
    pairs = tuple(Pair(Path(f"{n}.png"), Path(f"{n}.png"), str(n), "train") for n in range(2))
    data = Labelled(planes, found, pairs, ((8, None),) * 2)
    augmentation = CropAugmentation(size=32, brightness=0.1, blur_p=0.5, noise_p=0.5)
    if rotation is not None:
        augmentation = replace(augmentation, rotation=rotation)
    return CropLoader(data, Preprocess(), 3, augmentation, 4, seed=5)


def test_rotation_changes_crops_and_none_changes_no_bit() -> None:
    plain, off, on = _loader(), _loader(rotation=0.0), _loader(rotation=30.0)
    for step in range(3):
        (a, b), (c, d), (e, f) = (one.batch(step) for one in (plain, off, on))
        assert bool((a == c).all()) and bool((b == d).all())
        assert not bool((a == e).all()) and not bool((b == f).all())
        assert set(f.unique().tolist()) <= {0, 1, 2, 255}
