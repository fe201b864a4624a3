"""Sequences and stacks: who is beside whom, and what a network sees of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data import cache, crops, layouts, preprocess, readers, specimens, views
from matssl.data.crops import CropAugmentation
from matssl.data.datasets import ViewLoader
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import sequences
from matssl.data.views import ViewAugmentation
from matssl.weights import folding

Image = NDArray[np.uint8]


def _picture(number: int, side: int = 24) -> Image:
    """Levels that tell the frame: its number and its columns."""
    return (np.arange(side)[None] + 3 * number + np.zeros((side, 1))).astype(np.uint8)


def _files(folder: Path, names: list[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), _picture(number))
    return [folder / name for name in names]


def _stack(path: Path, pages: int, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, np.stack([_picture(n) for n in range(pages)]), **more)
    return path


def _write(path: Path, pages: NDArray[np.uint8], **more: Any) -> None:
    tifffile.imwrite(path, pages, photometric="minisblack", **more)


def _found(paths: list[Path], root: Path, every: bool = True) -> specimens.Sequences:
    return specimens.group(paths, root, frames=every).sequences


def _numbers(near: tuple[Path, ...]) -> list[int]:
    return [(sequences.named(path) or ("", -1))[1] for path in near]


# --- names and neighbours -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("4.2V-001.png", ("4.2V", 1)),
        ("film_12.TIF", ("film", 12)),
        ("film12.jpg", ("film", 12)),
        ("007.png", ("", 7)),
        ("overview.png", None),
        ("film-001_mask.png", None),
    ],
)
def test_a_file_name_tells_sequence_and_frame(name: str, told: object) -> None:
    assert sequences.named(Path(name)) == told


def test_neighbours_are_those_of_frame_numbers_and_a_gap_is_stood_in_for(tmp_path: Path) -> None:
    """Frames 1, 2, 5 (S-02): by rank 2 would have 5 beside it, which is three frames away."""
    paths = _files(tmp_path, ["a-001.png", "a-002.png", "a-005.png"])
    near = _found(paths, tmp_path).neighbours(3)
    assert [_numbers(near[path]) for path in paths] == [[1, 1, 2], [1, 2, 2], [5, 5, 5]]
    near = _found(paths, tmp_path).neighbours(7)
    assert [_numbers(near[path]) for path in paths] == [
        [1, 1, 1, 1, 2, 2, 2],
        [1, 1, 1, 2, 2, 2, 5],
        [2, 5, 5, 5, 5, 5, 5],
    ]
    (note,) = _found(paths, tmp_path).notes(3)
    assert "missing frames: a (3 to 4)" in note and "stands in" in note


def test_frames_that_are_numbered_by_ten_are_beside_each_other(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["a_000.png", "a_010.png", "a_020.png", "a_050.png"])
    near = _found(paths, tmp_path).neighbours(3)
    assert [_numbers(near[p]) for p in paths] == [[0, 0, 10], [0, 10, 20], [10, 20, 20], [50] * 3]
    assert "numbered by 10: the next of 0 is 10" in _found(paths, tmp_path).notes(3)[0]


def test_without_a_depth_or_a_table_numbered_images_are_no_sequence(tmp_path: Path) -> None:
    paths = _files(tmp_path, [f"IMG_{n:02}.png" for n in range(1, 11)])
    found = specimens.group(paths, tmp_path)
    assert not found.sequences.frames and found.how == "own" and len(set(found.names)) == 10
    found = specimens.group(paths, tmp_path, frames=True)
    assert found.how == "sequences" and set(found.names) == {"IMG"}


def test_a_folder_comes_before_the_name_where_there_are_several(tmp_path: Path) -> None:
    paths = _files(tmp_path / "S1", ["a-1.png", "a-2.png"])
    paths += _files(tmp_path / "S2", ["a-1.png", "a-2.png", "alone.png"])
    found = specimens.group(paths, tmp_path, frames=True)
    assert found.names == ("S1/a", "S1/a", "S2/a", "S2/a", "alone")
    assert found.sequences.alone == 1
    assert "1 image of no sequence" in found.sequences.notes(3)[0]


def test_two_images_of_one_frame_are_refused(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["a-1.png", "a-01.png"])
    with pytest.raises(UserError, match=r"a-1\.png and a-01\.png are both frame 1 .* remove one"):
        _found(paths, tmp_path)


def test_closed_images_are_gaps(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["a-1.png", "a-2.png", "a-3.png"])
    near = _found(paths, tmp_path).neighbours(3, closed={paths[2]})
    assert _numbers(near[paths[1]]) == [1, 2, 2] and paths[2] not in near


def test_a_table_names_sequences_of_any_file_name(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["x.png", "y.png", "z.png"])
    text = "image,specimen,sequence,frame\nx.png,S,film,3\ny.png,S,film,4\nz.png,T,other,1\n"
    (tmp_path / "specimens.csv").write_text(text, encoding="utf-8")
    found = specimens.group(paths, tmp_path)
    near = found.sequences.neighbours(3)
    assert near[paths[0]] == (paths[0], paths[0], paths[1])
    assert found.names == ("S", "S", "T") and paths[2] not in near


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("x.png,film,one", "whole number"),
        ("x.png,,1", "name of its sequence"),
        ("x.png,film,", "ends in no number; fill the column frame"),
    ],
)
def test_a_table_without_a_frame_number_is_refused(tmp_path: Path, lines: str, told: str) -> None:
    paths = _files(tmp_path, ["x.png"])
    (tmp_path / "specimens.csv").write_text(f"image,sequence,frame\n{lines}\n", encoding="utf-8")
    with pytest.raises(UserError, match=told):
        specimens.group(paths, tmp_path)


def test_specimens_that_cut_through_a_sequence_are_refused(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["a-1.png", "a-2.png"])
    with pytest.raises(UserError, match=r"sequence a are of the specimens 1 and 2, by --group_reg"):
        specimens.group(paths, tmp_path, regex=r"a-(\d)", frames=True)


# --- pages ----------------------------------------------------------------------------------------
def test_a_page_is_a_picture_of_its_own(tmp_path: Path) -> None:
    file = _stack(tmp_path / "film.tif", 3, imagej=True, metadata={"axes": "ZYX"})
    pages = readers.frames(file)
    assert [page.name for page in pages] == ["film-0001.tif", "film-0002.tif", "film-0003.tif"]
    assert all(readers.file_of(page) == file for page in pages) and readers.file_of(file) == file
    for number, page in enumerate(pages):
        micrograph = readers.read(page)
        np.testing.assert_array_equal(micrograph.pixels, _picture(number))
        assert micrograph.source == str(page)
        np.testing.assert_array_equal(readers.read_mask(page), _picture(number))
    assert readers.header(pages[2]).height == 24


def test_a_preview_is_no_frame_and_a_picture_no_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, side in enumerate((24, 12, 24)):
            file.write(_picture(number, side), metadata=None)
    assert [p.name for p in readers.frames(tmp_path / "a.tif")] == ["a-0001.tif", "a-0003.tif"]
    assert readers.frames(_stack(tmp_path / "b.tif", 1)) == ()
    assert readers.frames(_files(tmp_path, ["c.png"])[0]) == ()


def test_frames_in_two_directions_are_a_question(tmp_path: Path) -> None:
    path = tmp_path / "hyper.tif"
    tifffile.imwrite(path, np.zeros((3, 2, 8, 9), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UserError, match=r"hyper.tif holds 3 depths and 2 channels.*Split Channels"):
        readers.frames(path)


@pytest.mark.parametrize("axis", ["T", "Z"])
def test_pages_of_an_ome_file_are_frames_as_those_of_imagej_are(tmp_path: Path, axis: str) -> None:
    words = {"ome": True, "metadata": {"axes": f"{axis}YX"}}
    file = _stack(tmp_path / "film.ome.tif", 4, **words)
    pages = readers.frames(file)
    assert [page.name for page in pages] == [f"film.ome-{n:04}.tif" for n in (1, 2, 3, 4)]
    assert (np.asarray(readers.read(pages[2]).pixels) == _picture(2)).all()
    several = tmp_path / "several.ome.tif"
    axes = {"axes": "CZYX"}
    _write(several, np.zeros((2, 3, 8, 9), np.uint8), ome=True, metadata=axes)
    with pytest.raises(UserError, match="2 channels and 3 depths, and frames go in one direction"):
        readers.frames(several)


@pytest.mark.parametrize("program", ["imagej", "ome"])
def test_channels_of_one_picture_are_no_frames(tmp_path: Path, program: str) -> None:
    words = {program: True, "metadata": {"axes": "CYX"}}
    file = _stack(tmp_path / "channels.tif", 3, **words)
    with pytest.raises(UserError, match="3 channels of one picture, which are no frames"):
        readers.frames(file)


def test_a_stack_with_masks_of_all_or_of_some_pages(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _stack(tmp_path / f"images/{name}.tif", 4)
    mask = np.zeros((4, 24, 24), np.uint8)
    mask[:, :5] = 1
    (tmp_path / "masks").mkdir()
    _write(tmp_path / "masks/a.tif", mask)
    cv2.imwrite(str(tmp_path / "masks/b-003.png"), mask[0])
    found = layouts.find(tmp_path, depth=3)
    labelled = {pair.image.name for pair in found.pairs if pair.mask is not None}
    assert labelled == {"a-0001.tif", "a-0002.tif", "a-0003.tif", "a-0004.tif", "b-0003.tif"}
    assert len(found.pairs) == 12 and {pair.group for pair in found.pairs} == {"a", "b", "c"}
    near = found.neighbours(3)
    third = tmp_path / "images/b.tif/b-0003.tif"
    # Those beside it have no mask.
    assert _numbers(near[third]) == [2, 3, 4]
    with pytest.raises(UserError, match="2 images in .* without a mask in masks"):
        layouts.find(tmp_path)


def test_a_mask_stack_of_another_length_is_refused(tmp_path: Path) -> None:
    _stack(tmp_path / "images/a.tif", 4)
    _stack(tmp_path / "masks/a.tif", 3)
    with pytest.raises(UserError, match=r"a\.tif has 4 pages and its mask .*a\.tif 3; give a mask"):
        layouts.find(tmp_path, depth=3)
    (tmp_path / "masks/a.tif").unlink()
    cv2.imwrite(str(tmp_path / "masks/a-000.png"), np.zeros((24, 24), np.uint8))
    with pytest.raises(UserError, match=r"4 pages, counted from 1, and masks a mask a-000\.png"):
        layouts.find(tmp_path, depth=3)


def test_a_list_of_splits_names_a_stack_for_its_pages(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _stack(tmp_path / f"images/{name}.tif", 2)
        mask = np.zeros((2, 24, 24), np.uint8)
        mask[:, :, :5] = 1
        (tmp_path / "masks").mkdir(exist_ok=True)
        _write(tmp_path / f"masks/{name}.tif", mask)
    splits = tmp_path / "splits.csv"
    splits.write_text("image,split\na.tif,train\nb,test\n", encoding="utf-8")
    found = layouts.find(tmp_path, depth=3, splits=splits)
    assert [len(found.split(name)) for name in ("train", "test")] == [2, 2]


# --- what the network sees ------------------------------------------------------------------------
def _record(depth: int, near: dict[Path, tuple[Path, ...]]) -> Preprocess:
    record = Preprocess(channels=depth, depth=depth, crop_bottom=0)
    return record.among(near)


def test_frames_are_channels_the_earliest_first_each_in_its_own_window(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["a-1.png", "a-2.png", "a-3.png"])
    record = _record(3, _found(paths, tmp_path).neighbours(3))
    micrograph = record.read(paths[0])
    assert micrograph.pixels.shape == (24, 24, 3) and micrograph.source == str(paths[0])
    plane, single = record.plane(micrograph), Preprocess(crop_bottom=0)
    for channel, path in enumerate((paths[0], paths[0], paths[1])):
        np.testing.assert_array_equal(plane[..., channel], single.plane(single.read(path)))
    assert record.tensor(plane).shape == (3, 24, 24)
    np.testing.assert_array_equal(micrograph.middle.pixels, _picture(0))
    # The folder tells what the record was not told.
    again = Preprocess(channels=3, depth=3, crop_bottom=0).read(paths[0])
    np.testing.assert_array_equal(again.pixels, micrograph.pixels)


def test_colour_becomes_grey_in_each_frame(tmp_path: Path) -> None:
    for number in (1, 2):
        image = np.zeros((8, 9, 3), np.uint8)
        image[..., 2] = 100 * number
        cv2.imwrite(str(tmp_path / f"a-{number}.png"), image)
    micrograph = _record(3, {}).read(tmp_path / "a-1.png")
    assert micrograph.pixels[0, 0].tolist() == [30, 30, 60]
    assert micrograph.notes == ("colour becomes luminance",)


def test_neighbours_of_another_size_are_refused(tmp_path: Path) -> None:
    paths = _files(tmp_path, ["a-1.png", "a-2.png"])
    cv2.imwrite(str(paths[1]), _picture(1, 30))
    record = _record(3, _found(paths, tmp_path).neighbours(3))
    with pytest.raises(UserError, match=r"a-1\.png and its neighbour .*a-2\.png differ in size"):
        record.read(paths[0])
    pool = cache.build(paths, record, cache_dir=None, quiet=True)
    with pytest.raises(UserError, match="frames of a sequence are alike"):
        pool.stack(record.neighbours, 3)


def test_the_record_says_the_depth_and_one_without_stays_as_it_was() -> None:
    record = Preprocess(channels=5, depth=5, mean=(0.5,) * 5, std=(0.2,) * 5)
    assert Preprocess.from_dict(record.to_dict()) == record
    assert "depth" not in Preprocess().to_dict()
    for wrong in ({"depth": 2}, {"depth": 3}, {"depth": 65}):
        with pytest.raises(ValueError, match="its record reads|out of range"):
            Preprocess.from_dict(record.to_dict() | wrong)


def test_one_mean_serves_all_frames() -> None:
    record = Preprocess(channels=3, depth=3)
    plane = np.stack([np.full((4, 4), level, np.float32) for level in (0.0, 0.5, 1.0)], axis=2)
    found = preprocess.measure(record, [plane])
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.std == pytest.approx((np.sqrt(1 / 6),) * 3)


def test_labelled_frames_share_those_beside_them(tmp_path: Path) -> None:
    paths = _files(tmp_path / "images", [f"a-{n}.png" for n in range(1, 7)])
    mask = np.zeros((24, 24), np.uint8)
    mask[:4] = 1
    (tmp_path / "masks").mkdir()
    for path in paths[:3]:
        cv2.imwrite(str(tmp_path / "masks" / path.name), mask)
    found = layouts.find(tmp_path, depth=5)
    assert found.table is not None
    record = _record(5, found.neighbours(5))
    pairs = [pair for pair in found.pairs if pair.mask is not None]
    data = crops.load(pairs, record, found.table)
    for pair, plane in zip(data.pairs, data.planes, strict=True):
        np.testing.assert_array_equal(plane, record.plane(record.read(pair.image)))
    assert np.shares_memory(data.planes[0], data.planes[2])
    # 1 1 1 2 3 | 4 | 5: seven planes in the place of fifteen.
    base = data.planes[0].base
    while base is not None and base.base is not None:
        base = base.base
    assert base is not None and base.shape == (7, 24, 24)


@pytest.mark.parametrize("kept", [True, False])
def test_the_pool_stacks_frames_of_a_cache_that_holds_each_once(tmp_path: Path, kept: bool) -> None:
    paths = _files(tmp_path / "pool", [f"a-{n}.png" for n in (1, 2, 3, 4)])
    near = _found(paths, tmp_path).neighbours(3)
    folder = tmp_path / "cache" if kept else None
    plain = cache.build(paths, Preprocess(crop_bottom=0), cache_dir=folder, quiet=True)
    pool = cache.build(paths, _record(3, near), cache_dir=folder, quiet=True)
    pool.stack(near, 3)
    assert pool.channels == 3
    for number, stack in enumerate(pool.stacks):
        expected = np.stack([plain.plane(i) for i in stack], axis=2)
        np.testing.assert_array_equal(pool.plane(number), expected)
    if folder is not None:
        assert len(list(folder.glob("*.u8"))) == 1


@pytest.mark.parametrize("depth", [3, 5])
def test_a_view_changes_all_frames_alike(depth: int) -> None:
    generator = np.random.default_rng(0)
    one = generator.integers(0, 256, (90, 80)).astype(np.uint8)
    stack = np.repeat(one[..., None], depth, axis=2)
    augmentation = ViewAugmentation(size=24, blur_p=1, noise_p=1, photometry_p=1)
    tiles = np.array([[0, 0, 90, 80]] * 6, np.int64)
    draws = views.draw(augmentation, tiles, 0, 0, range(6), 0)
    out, alone = np.empty((6, depth, 24, 24), np.uint8), np.empty((6, 1, 24, 24), np.uint8)
    views.render(augmentation, draws, [stack] * 6, out)
    views.render(augmentation, draws, [one] * 6, alone)
    np.testing.assert_array_equal(out, np.repeat(alone, depth, axis=1))


def test_a_crop_changes_all_frames_alike() -> None:
    one = np.random.default_rng(0).random((40, 40), np.float32)
    stack = np.repeat(one[..., None], 5, axis=2)
    augmentation = CropAugmentation(
        brightness=0.3, contrast=0.3, gamma=0.3, illumination=0.3, blur_p=1, noise_p=1
    )
    changed = crops.photometry(stack, augmentation, np.random.default_rng(1))
    assert np.ptp(changed, axis=2).max() == 0
    alone = crops.photometry(one, augmentation, np.random.default_rng(1))
    np.testing.assert_allclose(changed[..., 0], alone, atol=1e-5)


# --- frames as positives --------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [0, 2])
def test_the_second_view_shows_a_frame_beside_the_first_at_the_same_place(
    tmp_path: Path, threads: int
) -> None:
    paths = []
    for number in range(1, 7):
        paths.append(tmp_path / f"a-{number}.png")
        # The level tells the frame, whatever the crop.
        cv2.imwrite(str(paths[-1]), np.full((64, 64), 10 * number, np.uint8))
    found = _found(paths, tmp_path)
    pool = cache.build(paths, Preprocess(window="dtype"), cache_dir=None, quiet=True)
    near = found.beside(2)
    beside = [tuple(paths.index(other) for other in near[path]) for path in paths]
    assert beside == [(1, 2), (0, 2, 3), (0, 1, 3, 4), (1, 2, 4, 5), (2, 3, 5), (3, 4)]
    still = ViewAugmentation(size=32, photometry_p=0, blur_p=0, noise_p=0)
    loader = ViewLoader(pool, [still, still], 6, 64, 0, threads, beside=beside)
    distances = set()
    for epoch in range(6):
        (batch,) = loader.epoch(epoch)
        first, second = (view[:, 0, 0, 0].numpy().astype(int) // 10 for view in batch.views)
        np.testing.assert_array_equal(first, batch.index.numpy() + 1)
        distances |= set((second - first).tolist())
    assert distances == {-2, -1, 1, 2}


# --- weights --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("theirs", "of_frames"), [(1, 1), (3, 1), (3, 3), (5, 5)])
@pytest.mark.parametrize("frames", [3, 5])
def test_a_stem_gives_a_still_sequence_the_output_of_the_picture(
    float64: None, theirs: int, of_frames: int, frames: int
) -> None:
    torch.manual_seed(0)
    stem, picture = torch.randn(4, theirs, 3, 3), torch.randn(1, 1, 8, 8)
    before = torch.nn.functional.conv2d(picture.expand(-1, theirs, -1, -1), stem)
    wanted = {"conv1.weight": torch.zeros(4, frames, 3, 3)}
    found, notes = {"conv1.weight": stem}, []
    if of_frames not in (1, frames):
        found = folding.single(found, wanted, of_frames)
    folding.fold_stem(found, wanted, frames, notes, frames, of_frames)
    after = torch.nn.functional.conv2d(picture.expand(-1, frames, -1, -1), found["conv1.weight"])
    torch.testing.assert_close(after, before)
    if of_frames == frames:
        assert found["conv1.weight"] is stem
    else:
        torch.testing.assert_close(
            found["conv1.weight"][:, 0], found["conv1.weight"][:, frames - 1]
        )


@pytest.mark.parametrize(("of_picture", "of_mask"), [(1, 4), (4, 1), (4, 3)])
def test_a_picture_and_a_mask_of_other_numbers_of_pages_are_no_pair(
    of_picture: int, of_mask: int, tmp_path: Path
) -> None:
    for kind, count in (("images", of_picture), ("masks", of_mask)):
        (tmp_path / kind).mkdir()
        pages = np.random.default_rng(0).integers(0, 2, (count, 16, 16), np.uint8).squeeze()
        tifffile.imwrite(tmp_path / kind / "a.tif", pages, photometric="minisblack")
    with pytest.raises(UserError, match=r"a\.tif has [34] pages and its"):
        layouts.find(tmp_path)
    if of_mask == 1:
        (pair,) = layouts.find(tmp_path, page=2).pairs
        assert pair.mask == tmp_path / "masks/a.tif"


def test_two_stacks_at_depth_1_are_their_first_pages_or_those_of_page_n(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        pages = np.random.default_rng(0).integers(0, 2, (4, 16, 16), np.uint8)
        tifffile.imwrite(tmp_path / kind / "a.tif", pages, photometric="minisblack")
    (pair,) = layouts.find(tmp_path).pairs
    assert pair.mask == tmp_path / "masks/a.tif"
    (pair,) = layouts.find(tmp_path, page=3).pairs
    assert pair.image == tmp_path / "images/a.tif" and pair.mask is not None
    np.testing.assert_array_equal(readers.read_mask(pair.mask), pages[2])
    found = layouts.find(tmp_path, pages=True)
    assert len(found.pairs) == 4 and found.grouping.how == "sequences"


def test_pages_of_another_size_are_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with tifffile.TiffWriter(tmp_path / "film.tif") as file:
        for side in (32, 32, 16):
            file.write(generator.integers(0, 255, (side, side), np.uint8))
    found = layouts.find(tmp_path, need_masks=False, depth=3)
    (told,) = [note for note in found.notes if "another size" in note]
    assert "1 page of 1 file" in told and "2 pages of the largest size are frames" in told
