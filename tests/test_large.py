"""Large pictures: strip by strip to the same bits, in files where the memory would be crowded."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from matssl.core import arrays
from matssl.core.errors import UserError
from matssl.data import cache, levels, preprocess, readers, synthetic
from matssl.data.preprocess import Preprocess
from matssl.measure.field import areas
from matssl.pictures import segmentation as pictures
from matssl.trained import encoder

RNG = np.random.default_rng(0)
# Of every kind of number, more than two strips high, and one that is longer than a block.
PICTURES = [
    (RNG.random((2500, 37)) * 255).astype(np.uint8),
    (RNG.random((2100, 41)) * 65_535).astype(np.uint16),
    RNG.normal(size=(2300, 29)).astype(np.float32),
    (RNG.random((2050, 30, 3)) * 255).astype(np.uint8),
    (RNG.random((1100, 1999)) * 255).astype(np.uint8),
]


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the smallest array lies in a file."""
    monkeypatch.setattr(arrays, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(encoder, "IN_MEMORY_BYTES", 1000)


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_the_variance_in_blocks_is_that_of_numpy_to_the_last_bit(number: int) -> None:
    """D15: numpy makes a copy in double precision, eight times an 8-bit picture."""
    values = PICTURES[number]
    assert arrays.variance(values) == np.var(values, dtype=np.float64)
    assert np.sqrt(arrays.variance(values)) == values.std(dtype=np.float64)


@pytest.mark.usefixtures("crowded")
def test_percentiles_by_counting_are_those_of_numpy_to_the_last_bit() -> None:
    """D15: of 8-bit and 16-bit numbers, whole and skewed ones, few and many."""
    for draw in range(60):
        high = 255 if draw % 2 else 60_000
        shape = (int(RNG.integers(30, 90)), int(RNG.integers(40, 90)))
        dtype = np.uint8 if draw % 2 else np.uint16
        values = (RNG.random(shape) ** (1 + draw % 5) * high).astype(dtype)
        low, up = np.sort(RNG.random(2) * 100)
        for percent in ((0.5, 99.5), (0.0, 100.0), (low, up)):
            assert arrays.percentiles(values, percent) == tuple(np.percentile(values, percent))


@pytest.mark.parametrize("window", ["standard", "percentile", "dtype"])
@pytest.mark.parametrize("number", range(len(PICTURES)))
@pytest.mark.usefixtures("crowded")
def test_a_plane_in_strips_is_the_plane_at_once(number: int, window: str) -> None:
    """D15: the same bits, written here as they were before there were strips."""
    pixels = PICTURES[number]
    channels = 3 if pixels.ndim == 3 else 1
    record = Preprocess(window=window, channels=channels, color="rgb" if channels == 3 else "gray")
    micrograph = readers.from_array(pixels, color=record.color)
    if window == "standard":
        middle, half = pixels.mean(dtype=np.float64), 3 * pixels.std(dtype=np.float64)
        low, high = middle - half, middle + half
    elif window == "percentile":
        low, high = np.percentile(pixels, [0.5, 99.5])
    else:
        low, high = 0.0, 1.0 if pixels.dtype == np.float32 else (1 << micrograph.bits) - 1
    whole = (pixels.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    whole = np.clip(whole, -0.5, 1.5)
    assert np.array_equal(record.plane(micrograph), whole)
    eight = np.rint(np.clip(whole, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(record.plane_u8(micrograph), eight)
    assert np.array_equal(preprocess.quantise(whole), eight)
    for plane in (whole, eight):
        wide = plane.astype(np.float32) * np.float32(1 if plane.dtype == np.float32 else 1 / 255)
        stack = wide[None] if wide.ndim == 2 else np.moveaxis(wide, 2, 0)
        wanted = (stack - np.float32(0.5)) * np.float32(4)
        assert np.allclose(record.tensor(plane), wanted, atol=1e-6)


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_mean_and_spread_of_a_pool_are_what_they_were(number: int) -> None:
    """D15: one value a channel, added as numpy adds the whole in double precision."""
    pixels = PICTURES[number]
    plane = pixels if pixels.dtype == np.uint8 else preprocess.quantise(pixels / 65_535.0)
    flat = plane.reshape(-1, 1 if plane.ndim == 2 else 3).astype(np.float64) / 255
    record = preprocess.measure(Preprocess(), [plane, plane])
    count, total, squares = 2 * len(flat), 2 * flat.sum(0), 2 * (flat**2).sum(0)
    mean = total / count
    assert record.mean == tuple(mean.tolist())
    assert record.std == tuple(np.maximum(np.sqrt(squares / count - mean**2), 1e-3).tolist())


@pytest.mark.usefixtures("crowded")
def test_a_resized_plane_is_the_same_in_a_file() -> None:
    """D15."""
    micrograph = readers.from_array(PICTURES[0], pixel_size=10)
    for size in (20.0, 7.0):
        plane = Preprocess(target_pixel_size=size).plane(micrograph)
        shape = tuple(round(side * 10 / size) for side in PICTURES[0].shape)
        kind = cv2.INTER_AREA if size > 10 else cv2.INTER_LINEAR
        wanted = cv2.resize(Preprocess().plane(micrograph), shape[::-1], interpolation=kind)
        assert np.array_equal(plane, wanted)


@pytest.mark.parametrize("height", [2048, 3000, 3072])
@pytest.mark.usefixtures("crowded")
def test_mirrored_margins_in_strips_are_those_at_once(height: int) -> None:
    """D15."""
    image = RNG.random((2, height, 200), dtype=np.float32)
    m = encoder.MARGIN
    for more in ((0, 0), (5, 11)):
        wanted = np.pad(image, ((0, 0), (m, m + more[0]), (m, m + more[1])), mode="symmetric")
        assert np.array_equal(encoder.mirrored(image, *more), wanted)


@pytest.mark.usefixtures("crowded")
def test_areas_are_counted_in_blocks() -> None:
    """D15: numpy's count makes eight bytes of every pixel."""
    mask = RNG.integers(0, 5, (1500, 900), dtype=np.uint8)
    mask[:3] = 255
    assert areas(mask, 4).tolist() == [int((mask == c).sum()) for c in range(4)]
    assert areas(mask[:3], 4).tolist() == [0, 0, 0, 0]


def test_a_shrunk_picture_is_the_mean_of_squares() -> None:
    """D15: what only looks at a large picture needs no copy of it."""
    plane = PICTURES[4][:1000]
    small = levels.shrunk(plane, 500)
    assert small.shape == (250, 499)
    wanted = plane[:1000, :1996].astype(float).reshape(250, 4, 499, 4).mean((1, 3))
    assert np.abs(small - wanted).max() < 1e-3
    assert levels.shrunk(plane, 1999) is plane


def test_an_array_lies_in_a_file_that_vanishes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15: nothing is left behind, and a full disk is told before it is written to."""
    monkeypatch.setattr(arrays, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(arrays.tempfile, "gettempdir", lambda: str(tmp_path))
    room = arrays.roomy((50, 60), np.float32)
    room[:] = 3
    assert float(room.sum()) == 9000
    assert list(tmp_path.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device.*TMPDIR"):
        arrays.roomy((50, 60), np.float32)


def test_preparing_a_picture_needs_no_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15: reading, plane, tensor and pool of 25 million pixels in less than one copy in float32.

    The whole commands are measured by benchmarks/large_picture.py.
    """
    monkeypatch.setattr(arrays, "IN_MEMORY_BYTES", 1 << 22)
    monkeypatch.setattr(readers.tiff, "MAPPED_BYTES", 1 << 22)
    tile = synthetic.micrograph("two_phase", 500, 500, 0)[0]
    tifffile.imwrite(tmp_path / "a.tif", np.tile(tile, (10, 10)), metadata=None)
    record = Preprocess(crop_bottom=0)
    tracemalloc.start()
    try:
        micrograph = record.read(tmp_path / "a.tif")
        record.tensor(record.plane(micrograph))
        plane = record.plane_u8(micrograph)
        preprocess.measure(record, [plane])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 90e6


def test_a_large_panel_is_drawn_smaller_with_the_share_of_all_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15: matplotlib makes several copies of what it draws."""
    monkeypatch.setattr(pictures, "MOST_DRAWN", 100)
    titles: list[str] = []
    set_title = pictures.Axes.set_title

    def noted(axis: Any, label: str, **options: Any) -> Any:
        titles.append(label)
        assert all(image.get_array().shape[0] <= 100 for image in axis.images)
        return set_title(axis, label, **options)

    monkeypatch.setattr(pictures.Axes, "set_title", noted)
    truth = np.zeros((400, 300), np.uint8)
    guess = truth.copy()
    # A line that a smaller picture would miss.
    guess[::4] = 1
    truth[:, :30] = 255
    image = np.zeros((400, 300), np.uint8)
    pictures.panel(image, truth, guess, ("a", "b"), tmp_path / "p.png", "a picture", 10.0)
    assert "errors: 25.0 % of the pixels" in titles


def test_a_pipe_in_a_pool_is_left_out_and_listed(tmp_path: Path) -> None:
    """D11: it was opened to see whether a cache fits, and waited for a writer."""
    for number in range(11):
        image = synthetic.micrograph("two_phase", 64, 64, number)[0]
        cv2.imwrite(str(tmp_path / f"a{number}.png"), image)
    os.mkfifo(tmp_path / "pipe.png")
    paths = readers.find_images(tmp_path)
    pool = cache.build(paths, Preprocess(), cache_dir=tmp_path / "cache", quiet=True)
    assert len(pool) == 11
    assert [Path(path).name for path, _ in pool.rejected] == ["pipe.png"]
