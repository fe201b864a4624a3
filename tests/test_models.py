"""Segmentation models, losses and the tiled predictor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import train_finetune
from matssl import tiling
from matssl.core.errors import UserError
from matssl.models import losses
from matssl.models.decoders import DECODERS
from matssl.models.segmentation import build_model


# --- models ---
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (20, 100)])
@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_have_the_size_of_the_image(decoder: str, size: tuple[int, int]) -> None:
    model = build_model("resnet18", decoder, 3, in_channels=1).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, *size)).shape == (1, 3, *size)


def test_the_script_offers_the_decoders_there_are() -> None:
    assert tuple(DECODERS) == train_finetune.DECODERS


def test_unknown_parts_are_named() -> None:
    with pytest.raises(UserError, match="no encoder 'resnet19'"):
        build_model("resnet19", "unet", 2)
    with pytest.raises(UserError, match="no decoder 'vnet'"):
        build_model("resnet18", "vnet", 2)


# --- losses ---
TARGET = torch.tensor([[[0, 0], [1, 255]]])


def _logits(p: list[float]) -> Tensor:
    """Logits of a two-class image (1, 2, 2, 2) with these probabilities of class 1."""
    q = torch.tensor(p).view(1, 2, 2)
    return torch.stack([(1 - q).log(), q.log()], dim=1)


P = [0.2, 0.4, 0.7, 0.9]


def test_dice_is_one_minus_twice_the_overlap_over_the_sizes() -> None:
    class0 = 2 * (0.8 + 0.6) / ((0.8 + 0.6 + 0.3) + 2)
    class1 = 2 * 0.7 / ((0.2 + 0.4 + 0.7) + 1)
    assert float(losses.dice(_logits(P), TARGET)) == pytest.approx(1 - (class0 + class1) / 2)


def test_cross_entropy_is_the_mean_over_the_pixels_that_count() -> None:
    expected = -(math.log(0.8) + math.log(0.6) + math.log(0.7)) / 3
    assert float(losses.cross_entropy(_logits(P), TARGET)) == pytest.approx(expected)
    weighted = -(math.log(0.8) + math.log(0.6) + 3 * math.log(0.7)) / 5
    weights = torch.tensor([1.0, 3.0])
    assert float(losses.cross_entropy(_logits(P), TARGET, weights)) == pytest.approx(weighted)


def test_focal_leaves_sure_pixels_out() -> None:
    terms = [(1 - p) ** 2 * -math.log(p) for p in (0.8, 0.6, 0.7)]
    assert float(losses.focal(_logits(P), TARGET)) == pytest.approx(sum(terms) / 3)


def test_bce_takes_each_class_against_the_others() -> None:
    zeros = torch.zeros(1, 2, 2, 2)
    assert float(losses.bce(zeros, TARGET)) == pytest.approx(math.log(2))


def test_absent_classes_leave_the_dice_mean() -> None:
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    wide = torch.cat([logits, torch.full((1, 3, 4, 4), -50.0)], dim=1)
    p = logits.softmax(1)[:, 0]
    expected = 1 - 2 * float(p.sum()) / (float(p.sum()) + 16)
    assert float(losses.dice(wide, target)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_ignored_pixels_have_no_gradient_and_no_value(name: str) -> None:
    logits = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randint(0, 3, (2, 5, 5), generator=torch.Generator().manual_seed(2))
    target[:, 2] = 255
    loss = losses.LOSSES[name](logits, target, None)
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad[:, :, 2].abs().max()) == 0
    assert float(logits.grad.abs().max()) > 0
    other = logits.detach().clone()
    other[:, :, 2] = 9.0
    assert float(losses.LOSSES[name](other, target, None)) == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_batch_without_labels_gives_zero(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = losses.LOSSES[name](logits, torch.full((1, 4, 4), 255), None)
    loss.backward()
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_perfect_logits_cost_nothing_and_half_precision_is_float32(name: str) -> None:
    target = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 30 * (torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float() * 2 - 1)
    assert float(losses.LOSSES[name](logits, target, None)) == pytest.approx(0, abs=1e-3)
    assert losses.LOSSES[name](logits.bfloat16(), target, None).dtype == torch.float32


# --- tiled prediction ---
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
    for flip, turns in tiling.D4:
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


@pytest.mark.parametrize(("side", "tiles"), [(512, 1), (640, 1), (1024, 4), (2048, 16)])
def test_tiles_fit_the_image(side: int, tiles: int) -> None:
    plan = tiling.plan(side, side)
    assert len(plan.tops) * len(plan.lefts) == tiles
    assert plan.tops[-1] + plan.tile[0] >= side
    assert all(s % 32 == 0 for s in plan.tile)


def test_tiles_of_a_network_agree_with_the_whole_image() -> None:
    # Seams would show where a tile does not see what its neighbour sees.
    torch.manual_seed(0)
    model = build_model("resnet18", "unet", 2).eval()
    image = np.random.default_rng(4).standard_normal((1, 448, 448)).astype(np.float32)
    whole = tiling.predict(model, image)
    tiled = tiling.predict(model, image, tile_size=288, overlap=128)
    assert np.abs(whole - tiled).mean() < 0.02
