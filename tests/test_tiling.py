"""The tiled predictor: no pixel lost or moved, no seams, bounded memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from matssl import blending, tiles, tiling
from matssl.core.errors import UserError
from matssl.models import losses
from matssl.models.segmentation import build_model


def _pointwise(x: Tensor) -> Tensor:
    return torch.cat([x, -x, 0.3 * x.square()], dim=1)


def _exact(image: np.ndarray) -> np.ndarray:
    return _pointwise(torch.from_numpy(image)[None]).softmax(1)[0].numpy()


@pytest.mark.parametrize("size", [(7, 9), (64, 64), (200, 333), (700, 129)])
@pytest.mark.parametrize("tile", [None, 64])
def test_every_pixel_is_predicted_once_and_in_its_place(
    size: tuple[int, int], tile: int | None
) -> None:
    image = np.random.default_rng(0).standard_normal((1, *size)).astype(np.float32)
    result = tiling.predict(_pointwise, image, tile_size=tile, overlap=16)
    assert result.shape == (3, *size)
    assert np.abs(result - _exact(image)).max() < 1e-6
    assert np.abs(result.sum(0) - 1).max() < 1e-5


def test_the_number_of_tiles_at_once_does_not_matter() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", "unet", 2).eval()
    image = np.random.default_rng(1).standard_normal((1, 150, 210)).astype(np.float32)
    results = [
        tiling.predict(model, image, tile_size=96, overlap=32, batch=batch) for batch in (1, 2, 5)
    ]
    for other in results[1:]:
        assert np.abs(other - results[0]).max() < 1e-5


def test_test_time_augmentation_averages_the_eight_orientations() -> None:
    weight = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, padding=1)

    image = np.random.default_rng(2).standard_normal((1, 64, 64)).astype(np.float32)
    result = tiling.predict(model, image, tta=True)
    # An average over the group commutes with its elements; the plain prediction does not.
    for flip, turns in blending.D4:
        turned = np.ascontiguousarray(np.rot90(image[:, :, ::-1] if flip else image, turns, (1, 2)))
        other = tiling.predict(model, turned, tta=True)
        expected = np.rot90(result[:, :, ::-1] if flip else result, turns, (1, 2))
        assert np.abs(other - expected).max() < 1e-5
    assert np.abs(tiling.predict(model, image) - result).max() > 0.05


def test_a_memory_mapped_result_is_filled_in_strips(tmp_path: Path) -> None:
    image = np.lib.format.open_memmap(
        tmp_path / "i.npy", mode="w+", dtype=np.float32, shape=(1, 900, 300)
    )
    image[:] = np.random.default_rng(3).standard_normal(image.shape)
    out = np.lib.format.open_memmap(
        tmp_path / "o.npy", mode="w+", dtype=np.float32, shape=(3, 900, 300)
    )
    assert tiling.predict(_pointwise, image, tile_size=96, overlap=32, out=out) is out
    assert np.abs(out - _exact(np.asarray(image))).max() < 1e-6


@pytest.mark.parametrize(("side", "count"), [(512, 1), (640, 1), (1024, 4), (2048, 16)])
def test_tiles_fit_the_image(side: int, count: int) -> None:
    plan = tiles.plan(side, side)
    assert len(plan.tops) * len(plan.lefts) == count
    assert plan.tops[-1] + plan.tile[0] >= side
    assert all(s % 32 == 0 for s in plan.tile)


@pytest.mark.parametrize("multiple", [16, 48])
def test_tiles_take_the_multiple_of_the_model(multiple: int) -> None:
    shapes = []

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shapes.append(x.shape[-2:])
            return _pointwise(x)

    model = Model()
    model.multiple = multiple  # type: ignore[assignment]
    image = np.random.default_rng(7).standard_normal((1, 77, 300)).astype(np.float32)
    for size in (None, 100):
        result = tiling.predict(model, image, tile_size=size, overlap=200)
        assert np.abs(result - _exact(image)).max() < 1e-6
    assert all(side % multiple == 0 for shape in shapes for side in shape)
    assert shapes[0][0] == {16: 80, 48: 96}[multiple]


def test_tiles_of_a_network_agree_with_the_whole_image() -> None:
    # Seams would show where a tile does not see what its neighbour sees.
    torch.manual_seed(0)
    model = build_model("resnet18", "unet", 2).eval()
    image = np.random.default_rng(4).standard_normal((1, 448, 448)).astype(np.float32)
    whole = tiling.predict(model, image)
    tiled = tiling.predict(model, image, tile_size=288, overlap=128)
    assert np.abs(whole - tiled).mean() < 0.02


@pytest.mark.parametrize("size", [(50, 70), (131, 97)])
def test_test_time_augmentation_turns_with_images_of_any_size_and_many_tiles(
    size: tuple[int, int],
) -> None:
    # Odd sides: padding and places of the tiles are not the same in all orientations.
    weight = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, padding=4)

    image = np.random.default_rng(5).standard_normal((1, *size)).astype(np.float32)
    result = tiling.predict(model, image, tile_size=64, overlap=16, tta=True)
    for flip, turns in blending.D4:
        turned = np.ascontiguousarray(np.rot90(image[:, :, ::-1] if flip else image, turns, (1, 2)))
        other = tiling.predict(model, turned, tile_size=64, overlap=16, tta=True)
        expected = np.rot90(result[:, :, ::-1] if flip else result, turns, (1, 2))
        assert np.abs(other - expected).max() < 1e-5


def test_augmentation_fills_a_given_result_as_one_of_its_own() -> None:
    weight = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    image = np.random.default_rng(6).standard_normal((1, 70, 45)).astype(np.float32)

    def model(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, padding=1)

    out = np.full((2, 70, 45), np.nan, np.float32)
    assert tiling.predict(model, image, tta=True, out=out) is out
    assert np.array_equal(out, tiling.predict(model, image, tta=True))
    assert np.abs(out.sum(0) - 1).max() < 1e-5


@pytest.mark.parametrize("overlap", [0, 1, 17, 40, 500])
def test_weights_of_tiles_sum_to_one_at_each_pixel(overlap: int) -> None:
    for length in (1, 31, 64, 65, 127, 200, 333):
        starts = tiles.starts(length, 64, overlap)
        total = np.zeros(max(length, starts[-1] + 64))
        for start, window in zip(starts, tiles.windows(starts, 64, length), strict=True):
            total[start : start + 64] += window
        assert np.abs(total[:length] - 1).max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (641, 700), (900, 2500), (3000, 1111)])
def test_no_other_tile_computes_fewer_pixels(size: tuple[int, int]) -> None:
    best = tiles.plan(*size)
    cost = best.tile[0] * best.tile[1] * len(best.tops) * len(best.lefts)
    for tile in range(tiles.MIN_TILE, tiles.MAX_TILE + 1, 32):
        other = tiles.plan(*size, tile_size=tile)
        assert cost <= tile**2 * len(other.tops) * len(other.lefts)


def test_tiles_that_cannot_cover_an_image_are_refused() -> None:
    with pytest.raises(UserError, match="--overlap"):
        tiles.plan(100, 100, overlap=-1)
    with pytest.raises(UserError, match="--tile_size"):
        tiles.plan(100, 100, tile_size=0)


def test_memory_holds_a_row_of_tiles_and_never_the_image(tmp_path: Path) -> None:
    shape = (4000, 300)
    image = np.lib.format.open_memmap(
        tmp_path / "i.npy", mode="w+", dtype=np.float32, shape=(1, *shape)
    )
    image[0] = np.arange(shape[0], dtype=np.float32)[:, None] / 1000
    out = np.lib.format.open_memmap(
        tmp_path / "o.npy", mode="w+", dtype=np.float32, shape=(3, *shape)
    )
    tiling.predict(_pointwise, np.zeros((1, 64, 64), np.float32))
    tracemalloc.start()
    tiling.predict(_pointwise, image, tile_size=64, overlap=16, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Memory-mapped files are not counted; one row of tiles in classes and image is 0.3 MB.
    assert peak < 2**20 < out.nbytes / 10
    assert np.abs(out[:, ::97] - _exact(np.asarray(image[:, ::97]))).max() < 1e-6


def test_forward_passes_run_in_the_given_context_on_the_given_number_of_tiles() -> None:
    entered: list[str] = []
    shapes: list[tuple[int, ...]] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        entered.append("in")
        with torch.autocast("cpu", torch.bfloat16):
            yield

    def model(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.conv2d(x, torch.ones(2, 1, 1, 1))

    image = np.zeros((1, 64, 300), np.float32)
    result = tiling.predict(model, image, tile_size=64, overlap=0, batch=3, autocast=context)
    assert shapes == [(3, 1, 64, 64), (2, 1, 64, 64)] and len(entered) == 2
    assert result.dtype == np.float32


def test_labels_of_a_trained_network_do_not_depend_on_the_tiles() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    field = cv2.GaussianBlur(random.standard_normal((384, 384)), None, 8)
    mask = (field > 0).astype(np.int64)
    # Noise as strong as the phases differ: single pixels do not tell them apart.
    plane = (2 * mask - 1 + random.normal(0, 2, mask.shape)).astype(np.float32)
    model = build_model("tu-test_resnet", "unet", 2)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.3
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        corners = random.integers(0, 384 - 96, (2, 2))
        x = torch.from_numpy(np.stack([plane[a : a + 96, b : b + 96] for a, b in corners]))
        y = torch.from_numpy(np.stack([mask[a : a + 96, b : b + 96] for a, b in corners]))
        optimizer.zero_grad()
        losses.dice_ce(model(x[:, None]), y).backward()
        optimizer.step()
    model.eval()
    whole = tiling.predict(model, plane[None])
    tiled = tiling.predict(model, plane[None], tile_size=192, overlap=64)
    assert (whole.argmax(0) == mask).mean() > 0.85
    assert (whole.argmax(0) != tiled.argmax(0)).mean() < 0.01
