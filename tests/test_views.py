"""Views arrive where their maps say, and depend on nothing but their numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from matssl.core import geometry
from matssl.core.errors import UserError
from matssl.data import cache, crops, readers, views
from matssl.data.crops import CropAugmentation, CropLoader, Labelled
from matssl.data.datasets import ViewLoader, tile_boxes
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewAugmentation
from matssl.models.encoders import build_encoder, pyramid

GEOMETRY_ONLY = ViewAugmentation(size=64, scale=(0.2, 1.0), photometry_p=0, blur_p=0, noise_p=0)


def _coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Planes whose pixels hold their own x and y, scaled to the grey range."""
    y, x = np.mgrid[:height, :width]
    scale = 250 / max(height, width)
    return (x * scale).astype(np.uint8), (y * scale).astype(np.uint8)


def _draw(
    augmentation: ViewAugmentation, count: int, shape: tuple[int, int], view: int = 0
) -> views.Draws:
    tiles = np.tile([0, 0, *shape], (count, 1))
    return views.draw(augmentation, tiles, 3, 1, np.arange(count), view)


def _rendered(augmentation: ViewAugmentation, draws: views.Draws, plane: np.ndarray) -> np.ndarray:
    count = len(draws.flips)
    out = np.empty((count, 1, augmentation.size, augmentation.size), np.uint8)
    views.render(augmentation, draws, [plane] * count, out)
    return out[:, 0]


# Views that are enlarged, and that are shrunk in each of the three ways of doing so.
@pytest.mark.parametrize("size", [16, 32, 48, 64, 128])
def test_the_coordinate_image_arrives_where_the_map_says(size: int) -> None:
    height, width = 125, 100
    planes = _coordinates(height, width)
    augmentation = replace(GEOMETRY_ONLY, size=size)
    draws = _draw(augmentation, 32, (height, width))
    seen = [_rendered(augmentation, draws, plane).astype(float) for plane in planes]
    maps = draws.maps(size)
    centres = geometry.cell_centres(size, size)
    # All eight elements of D4 are among the views.
    assert len({(bool(f), int(t)) for f, t in zip(draws.flips, draws.turns, strict=True)}) == 8
    for sample in range(32):
        expected = geometry.transform(maps[sample], centres) - 0.5
        inside = slice(2, -2)
        for axis in range(2):
            # Two grey levels to a source pixel; each of up to three roundings costs half a level.
            got = seen[axis][sample][inside, inside] / 2
            want = expected[:, axis].reshape(size, size)[inside, inside]
            assert np.abs(got - want).max() < 1.0
            assert np.abs((got - want).mean()) < 0.6


def test_orientation_is_the_same_for_one_plane_and_for_colour() -> None:
    plane = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    augmentation = replace(GEOMETRY_ONLY, size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    draws = _draw(augmentation, 64, (32, 32))
    gray = _rendered(augmentation, draws, plane)
    colour = np.empty((64, 3, 32, 32), np.uint8)
    views.render(augmentation, draws, [np.repeat(plane[..., None], 3, axis=2)] * 64, colour)
    assert np.array_equal(colour, np.repeat(gray[:, None], 3, axis=1))
    for i in range(64):
        flip, turns = bool(draws.flips[i]), int(draws.turns[i])
        assert np.array_equal(gray[i], geometry.apply_d4(plane, flip, turns))


@pytest.mark.parametrize("level", range(4))
def test_cells_of_the_pyramid_correspond_between_two_views(level: int) -> None:
    planes = _coordinates(250, 250)
    first, second = (_draw(GEOMETRY_ONLY, 16, (250, 250), view=v) for v in (0, 1))
    grid = 64 // (4 * 2**level)
    index, valid = geometry.correspondence(first.maps(64), second.maps(64), 64, 64, grid)
    assert valid.any()
    pooled = []
    for draws in (first, second):
        maps = [_rendered(GEOMETRY_ONLY, draws, plane).astype(float) for plane in planes]
        cells = [m.reshape(16, grid, 64 // grid, grid, 64 // grid).mean((2, 4)) for m in maps]
        pooled.append(np.stack([c.reshape(16, -1) for c in cells], axis=-1))
    sizes = second.boxes[:, 2:].max(axis=1) / grid
    for sample in range(16):
        here = pooled[0][sample][valid[sample]]
        there = pooled[1][sample][index[sample][valid[sample]]]
        # The key's cell holds the query's centre, so centres differ by half a key cell at most.
        distance = np.abs(here - there).max(axis=1)
        assert (distance <= sizes[sample] / 2 + 2.5).all()


def test_feature_maps_have_the_grids_that_correspondence_assumes() -> None:
    maps = pyramid(build_encoder("resnet18").eval(), torch.zeros(1, 1, 128, 128))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4]


def test_masks_of_crops_follow_their_image() -> None:
    x, y = _coordinates(120, 150)
    plane = (x.astype(np.float32) + 0) / 255
    mask = x // 2
    data = Labelled((plane,), (mask,), (Pair(Path("a"), None, "g", "train"),), ((8, None),))
    record = Preprocess(mean=(0.0,), std=(1.0,))
    for scale in (0.0, 0.4):
        augmentation = CropAugmentation(size=64, rare_p=0.5, scale=scale)
        loader = CropLoader(data, record, 126, augmentation, 8, seed=0)
        for step in range(3):
            images, masks = loader.batch(step)
            difference = images[:, 0] * 255 / 2 - masks.float()
            assert difference[:, 2:-2, 2:-2].abs().max() < 2.6


def test_a_view_depends_on_its_own_numbers_only() -> None:
    tiles = np.tile([0, 0, 90, 80], (6, 1))
    whole = views.draw(ViewAugmentation(), tiles, 5, 2, np.arange(6), 1)
    part = views.draw(ViewAugmentation(), tiles[3:4], 5, 2, np.array([3]), 1)
    for name in ("boxes", "flips", "turns", "gains", "sigmas", "noise", "offsets"):
        assert np.array_equal(getattr(whole, name)[3:4], getattr(part, name))


@pytest.mark.parametrize(
    ("d4", "elements"),
    [("full", 8), ("flips", 4), ("hflip", 2), ("none", 1)],
)
def test_orientations_are_those_asked_for(d4: str, elements: int) -> None:
    draws = _draw(ViewAugmentation(d4=d4), 200, (90, 80))
    found = {(bool(f), int(t)) for f, t in zip(draws.flips, draws.turns, strict=True)}
    assert len(found) == elements


def test_crops_stay_inside_their_tile() -> None:
    tiles = np.tile([30, 40, 50, 60], (300, 1))
    boxes = views.draw(ViewAugmentation(scale=(0.05, 1.0)), tiles, 0, 0, np.arange(300), 0).boxes
    assert boxes[:, :2].min(0).tolist() >= [30, 40]
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 80
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 100
    shares = boxes[:, 2] * boxes[:, 3] / 3000
    assert shares.min() < 0.12 and shares.max() > 0.8


def test_sides_of_a_crop_are_drawn_apart_whatever_the_tiles_shape() -> None:
    tiles = np.tile([30, 40, 500, 200], (400, 1))
    whole = views.draw(
        ViewAugmentation(size=300, sides=(1, 1)), tiles, 0, 0, np.arange(400), 0
    ).boxes
    assert (whole == tiles).all()
    boxes = views.draw(
        ViewAugmentation(size=300, sides=(0.8, 1)), tiles, 0, 0, np.arange(400), 0
    ).boxes
    shares = boxes[:, 2:] / [500, 200]
    assert shares.min() >= 0.8 and (shares.min(0) < 0.81).all() and (shares.max(0) > 0.99).all()
    assert abs(np.corrcoef(shares.T)[0, 1]) < 0.15
    assert (boxes[:, :2] >= [30, 40]).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [530, 240]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 0.3, "photometry_p": 1.0},
        {"contrast": 0.3, "photometry_p": 1.0},
        {"gamma": 0.3, "photometry_p": 1.0},
        {"solarise_p": 1.0},
        {"blur_p": 1.0},
        {"noise_p": 1.0, "noise_sigma": 0.1},
    ],
)
def test_each_change_of_grey_levels_acts(change: dict[str, float]) -> None:
    still = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "photometry_p": 0.0}
    still |= {"blur_p": 0.0, "noise_p": 0.0}
    plane = np.random.default_rng(0).integers(60, 200, (90, 90)).astype(np.uint8)
    plain, changed = (
        ViewAugmentation(size=64, **still),
        ViewAugmentation(size=64, **{**still, **change}),
    )
    first = _rendered(plain, _draw(plain, 4, (90, 90)), plane)
    second = _rendered(changed, _draw(changed, 4, (90, 90)), plane)
    assert not np.array_equal(first, second)


def test_blur_is_the_gaussian_of_its_sigma_and_noise_has_its_standard_deviation() -> None:
    augmentation = ViewAugmentation(
        size=96, scale=(1.0, 1.0), ratio=(1.0, 1.0), d4="none", photometry_p=0
    )
    plane = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    blurred = replace(augmentation, blur_p=1.0, noise_p=0.0)
    draws = _draw(blurred, 8, (96, 96))
    for seen, sigma in zip(_rendered(blurred, draws, plane), draws.sigmas, strict=True):
        # The exact one reaches further; ours is cut at two sigma, where 5 % of the weight are left.
        exact = cv2.GaussianBlur(plane.astype(np.float64), (15, 15), sigma)
        assert np.abs(seen - exact).mean() < 1.5
    noisy = replace(augmentation, blur_p=0.0, noise_p=1.0, noise_sigma=0.05)
    draws = _draw(noisy, 8, (96, 96))
    flat = np.full((96, 96), 128, np.uint8)
    for seen, sigma in zip(_rendered(noisy, draws, flat), draws.noise, strict=True):
        # Rounding to grey levels adds the variance 1/12.
        assert seen.std() == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.1, abs=0.1)
        assert seen.mean() == pytest.approx(128, abs=0.3)


def test_noise_reaches_views_that_are_larger_than_the_usual_sample() -> None:
    augmentation = ViewAugmentation(size=1100, noise_p=1.0)
    draws = _draw(augmentation, 1, (90, 80))
    assert _rendered(augmentation, draws, np.full((90, 80), 128, np.uint8)).shape == (1, 1100, 1100)


@pytest.mark.parametrize("side", [140, 200, 270, 350, 450, 600])
def test_shrinking_is_near_to_antialiased_bilinear(side: int) -> None:
    noise = np.random.default_rng(1).normal(128, 60, (side, side))
    plane = cv2.GaussianBlur(noise, (0, 0), 1.0).clip(0, 255).astype(np.uint8)
    tensor = torch.from_numpy(plane)[None, None].float()
    smooth = torch.nn.functional.interpolate(tensor, (128, 128), mode="bilinear", antialias=True)[
        0, 0
    ].numpy()
    ours = np.abs(views.shrink(plane, 128) - smooth).mean()
    linear = np.abs(cv2.resize(plane, (128, 128), interpolation=cv2.INTER_LINEAR) - smooth).mean()
    # Within rounding where hardly anything is left out, half of plain interpolation's elsewhere.
    assert ours < max(1.0, 0.6 * linear)


# --- the loader ---
@pytest.fixture(scope="module")
def pool(pool_folder: Path) -> cache.Pool:
    record = Preprocess(crop_bottom="auto")
    return cache.build(readers.find_images(pool_folder), record, cache_dir=None, quiet=True)


def _loader(pool: cache.Pool, **options: int) -> ViewLoader:
    values = {"batch_size": 4, "tile_size": 48, "seed": 7, **options}
    return ViewLoader(pool, [ViewAugmentation(size=32)] * 2, **values)  # type: ignore[arg-type]


def test_any_number_of_threads_gives_the_same_bits(pool: cache.Pool) -> None:
    runs = [list(_loader(pool, threads=t).epoch(1)) for t in (0, 1, 3)]
    for other in runs[1:]:
        assert len(other) == len(runs[0])
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a.index, b.index)
            assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_a_device_makes_the_batches_of_the_cpu(pool: cache.Pool) -> None:
    augmentations = [ViewAugmentation(32), ViewAugmentation(48)]
    ours = ViewLoader(pool, augmentations, 4, 48, seed=1)
    cpu = torch.device("cpu")
    made = [
        list(ViewLoader(pool, augmentations, 4, 48, 1, threads, device=cpu).epoch(0))
        for threads in (0, 2)
    ]
    for batch, one, other in zip(ours.epoch(0), *made, strict=True):
        for mine, first, second in zip(batch.views, one.views, other.views, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)
            assert (mine.float() - first.float()).abs().mean() < 2
        torch.testing.assert_close(batch.maps, one.maps)
        torch.testing.assert_close(batch.index, one.index)


def test_processes_share_the_batch_that_one_would_see(pool: cache.Pool) -> None:
    whole = next(iter(_loader(pool).epoch(0)))
    parts = [next(iter(_loader(pool, rank=r, world_size=2).epoch(0))) for r in range(2)]
    for rank, part in enumerate(parts):
        # Dealt out like cards.
        assert torch.equal(part.index, whole.index[rank::2])
        assert torch.equal(part.views[1], whole.views[1][rank::2])
        assert torch.equal(part.maps, whole.maps[:, rank::2])


def test_the_views_of_a_sample_differ_and_change_every_epoch(pool: cache.Pool) -> None:
    first, second = (next(iter(_loader(pool).epoch(e))) for e in (0, 1))
    again = _loader(pool)._views(first.index.numpy(), epoch=1)
    seen = [*first.views, *again.views]
    for i in range(len(first.index)):
        pixels = {view[i].numpy().tobytes() for view in seen}
        assert len(pixels) == 4
        assert not torch.equal(first.maps[0, i], first.maps[1, i])
    assert not torch.equal(first.index, second.index)


def test_an_epoch_can_start_in_the_middle(pool: cache.Pool) -> None:
    whole, rest = list(_loader(pool).epoch(2)), list(_loader(pool).epoch(2, start_step=3))
    assert torch.equal(whole[3].views[0], rest[0].views[0])
    assert len(rest) == len(whole) - 3


def test_large_images_give_several_tiles_that_cover_them() -> None:
    tiles = tile_boxes([(100, 210), (30, 40)], 50)
    first = tiles[tiles[:, 0] == 0]
    assert len(first) == 8 and (first[:, 3] * first[:, 4]).sum() == 100 * 210
    assert tiles[tiles[:, 0] == 1].tolist() == [[1, 0, 0, 30, 40]]


def test_groups_name_the_image_of_each_tile(pool: cache.Pool) -> None:
    batch = next(iter(_loader(pool, batch_size=16).epoch(0)))
    images = _loader(pool).tiles[batch.index.numpy(), 0]
    assert batch.group.tolist() == pool.groups[images].tolist()


def test_a_batch_larger_than_the_set_is_refused(pool: cache.Pool) -> None:
    with pytest.raises(UserError, match=r"larger than the set \(48 tiles"):
        _loader(pool, batch_size=49)
    with pytest.raises(UserError, match="cannot be shared by 3"):
        _loader(pool, batch_size=4, world_size=3)


# --- labelled crops ---
def _labelled(mask: np.ndarray) -> Labelled:
    plane = np.random.default_rng(0).random(mask.shape).astype(np.float32)
    return Labelled((plane,), (mask,), (Pair(Path("a"), None, "g", "train"),), ((8, None),))


def test_rare_classes_are_in_the_batches() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[200:203, 200:203] = 1
    mask[10:14, 380:384] = 2
    augmentation = CropAugmentation(size=32, rare_p=0.75)
    loader = CropLoader(_labelled(mask), Preprocess(), 3, augmentation, 4, seed=0)
    for step in range(20):
        assert set(np.unique(loader.batch(step)[1].numpy())) == {0, 1, 2}
    without = CropLoader(
        _labelled(mask), Preprocess(), 3, CropAugmentation(size=32, rare_p=0.0), 4, seed=0
    )
    assert sum(int((without.batch(step)[1] == 1).any()) for step in range(20)) < 10


def test_crops_are_a_function_of_seed_and_step() -> None:
    data = _labelled(np.arange(6400).reshape(80, 80).astype(np.uint8) % 3)
    augmentation = CropAugmentation(size=32, brightness=0.1, gamma=0.2, noise_p=0.5, blur_p=0.5)
    one = CropLoader(data, Preprocess(), 3, augmentation, 4, seed=0)
    threads = CropLoader(data, Preprocess(), 3, augmentation, 4, seed=0, threads=3)
    halves = [
        CropLoader(data, Preprocess(), 3, augmentation, 4, seed=0, rank=r, world_size=2)
        for r in (0, 1)
    ]
    for step, (images, masks) in enumerate(threads.batches(0, 5)):
        assert torch.equal(images, one.batch(step)[0]) and torch.equal(masks, one.batch(step)[1])
        assert torch.equal(images, torch.cat([half.batch(step)[0] for half in halves]))
    other = CropLoader(data, Preprocess(), 3, augmentation, 4, seed=1)
    assert not torch.equal(one.batch(0)[0], other.batch(0)[0])


def test_images_smaller_than_a_crop_are_mirrored_and_the_rest_is_unlabelled() -> None:
    data = _labelled(np.ones((20, 90), np.uint8))
    images, masks = CropLoader(data, Preprocess(), 2, CropAugmentation(size=64), 2, seed=0).batch(0)
    assert images.shape == (2, 1, 64, 64)
    assert set(np.unique(masks.numpy())) == {1, 255}
    assert (masks == 1).sum() == 2 * 20 * 64


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 0.2},
        {"contrast": 0.3},
        {"gamma": 0.3},
        {"illumination": 0.3},
        {"blur_p": 1.0},
        {"noise_p": 1.0},
    ],
)
def test_each_change_of_a_crop_acts_and_keeps_its_shape(change: dict[str, float]) -> None:
    plane = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    result = crops.photometry(plane, CropAugmentation(**change), np.random.default_rng(1))
    assert result.shape == plane.shape and result.dtype == np.float32
    assert not np.allclose(result, plane)
    assert np.array_equal(
        crops.photometry(plane, CropAugmentation(), np.random.default_rng(1)), plane
    )


def test_all_ignored_masks_are_refused() -> None:
    with pytest.raises(UserError, match="to be ignored"):
        CropLoader(
            _labelled(np.full((40, 40), 255, np.uint8)), Preprocess(), 2, CropAugmentation(), 2, 0
        )
