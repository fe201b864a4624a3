"""Views made on a device: those of the CPU, all at once."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from matssl.core import geometry
from matssl.data import views
from matssl.data.device_views import Renderer
from matssl.data.views import Draws, ViewAugmentation

SIZE = 64
TILES = np.array([[0, 0, 200, 180], [30, 40, 90, 90], [5, 0, 64, 64], [10, 20, 128, 150]])


def micrograph(seed: int = 0, side: int = 220) -> NDArray[np.uint8]:
    """Return blobs of a few pixels and up, uint8 (side, side)."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    blobs = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (1.5, 4, 9))
    return cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def both(
    augmentation: ViewAugmentation, planes: list[NDArray[np.uint8]], count: int = 24
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Draws]:
    """Return the views of the CPU and of a device, and what was drawn."""
    images = np.arange(count) % len(planes)
    draws = views.draw(augmentation, TILES[np.arange(count) % len(TILES)], 3, 0, range(count), 0)
    channels = 1 if planes[0].ndim == 2 else planes[0].shape[2]
    out = np.empty((count, channels, augmentation.size, augmentation.size), np.uint8)
    views.render(augmentation, draws, [planes[i] for i in images], out)
    made = Renderer(planes, channels, torch.device("cpu")).render(augmentation, draws, images)
    assert made.dtype == torch.uint8
    return out, made.numpy(), draws


PLAIN = ViewAugmentation(SIZE, photometry_p=0, blur_p=0, noise_p=0, d4="none")


@pytest.mark.parametrize(
    ("augmentation", "mean"),
    [
        (PLAIN, 1.0),
        (replace(PLAIN, d4="full"), 1.0),
        (replace(PLAIN, photometry_p=1, gamma=0.5), 1.5),
        (replace(PLAIN, solarise_p=1), 1.0),
        (replace(PLAIN, blur_p=1, blur_sigma=(0.3, 2)), 0.7),
        (replace(PLAIN, noise_p=1, noise_sigma=0.1), 1.2),
        (ViewAugmentation(SIZE), 1.5),
    ],
)
def test_views_of_a_device_are_those_of_the_cpu(
    augmentation: ViewAugmentation, mean: float
) -> None:
    ours, made, _ = both(augmentation, [micrograph(0), micrograph(1)])
    apart = np.abs(ours.astype(int) - made)
    assert apart.mean() < mean
    # Where OpenCV interpolates, and of the others all but edges.
    assert np.quantile(apart, 0.99) <= 8


def test_small_reductions_are_interpolated_to_half_a_level() -> None:
    augmentation = replace(PLAIN, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    plane = micrograph()
    tiles = np.array([[3, 7, 64, 64], [3, 7, 70, 66], [0, 0, 50, 64]])
    draws = views.draw(augmentation, tiles, 0, 0, range(3), 0)
    out = np.empty((3, 1, SIZE, SIZE), np.uint8)
    views.render(augmentation, draws, [plane] * 3, out)
    made = Renderer([plane], 1, torch.device("cpu")).render(
        augmentation, draws, np.zeros(3, np.int64)
    )
    assert np.abs(out.astype(int) - made.numpy()).max() <= 1


def test_halves_are_exact_means_of_four_pixels() -> None:
    plane = micrograph()
    tiles = np.array([[2, 4, 2 * SIZE, 2 * SIZE]])
    augmentation = replace(PLAIN, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    draws = views.draw(augmentation, tiles, 0, 0, [0], 0)
    made = Renderer([plane], 1, torch.device("cpu")).render(augmentation, draws, np.array([0]))
    crop = plane[2 : 2 + 2 * SIZE, 4 : 4 + 2 * SIZE].astype(float)
    wanted = crop.reshape(SIZE, 2, SIZE, 2).mean((1, 3))
    assert np.abs(made.numpy()[0, 0] - wanted).max() <= 0.5


def test_the_coordinate_image_arrives_where_the_map_says() -> None:
    y, x = np.mgrid[:220, :220]
    plane = np.stack([x, y], axis=2).astype(np.uint8)
    augmentation = replace(PLAIN, d4="full")
    _, made, draws = both(augmentation, [plane])
    centres = geometry.cell_centres(SIZE, SIZE)
    source = geometry.transform(draws.maps(SIZE), centres) - 0.5
    got = made.transpose(0, 2, 3, 1).reshape(len(made), -1, 2)
    assert np.abs(got - source).max() < 1.5


def test_colour_is_three_planes_that_share_their_changes() -> None:
    grey = micrograph()
    colour = np.stack([grey, grey, grey], axis=2)
    augmentation = replace(ViewAugmentation(SIZE), solarise_p=0.3)
    _, of_grey, _ = both(augmentation, [grey])
    _, of_colour, _ = both(augmentation, [colour])
    np.testing.assert_array_equal(of_colour[:, 0], of_grey[:, 0])
    np.testing.assert_array_equal(of_colour[:, 2], of_grey[:, 0])


def test_a_view_does_not_depend_on_its_batch() -> None:
    plane = micrograph()
    augmentation = ViewAugmentation(SIZE)
    renderer = Renderer([plane], 1, torch.device("cpu"))
    whole = views.draw(augmentation, TILES, 1, 0, range(4), 0)
    one = views.draw(augmentation, TILES[2:3], 1, 0, [2], 0)
    together = renderer.render(augmentation, whole, np.zeros(4, np.int64))[2]
    alone = renderer.render(augmentation, one, np.zeros(1, np.int64))[0]
    assert int((together.int() - alone.int()).abs().max()) <= 1
