"""Random views of a tile: crop, resize once, one table of grey levels, blur, noise, D4.

Speed comes from the order (crop before resize, one channel, a 256-entry table for all photometry)
and from drawing the numbers of a whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.arrays import Array
from matssl.core.geometry import affines, apply_d4
from matssl.data.levels import MOST_CHANNELS

# Uniform numbers a view may use; a fixed count keeps each draw at its place in the stream.
DRAWS = 16
(
    _SCALE,
    _RATIO,
    _TOP,
    _LEFT,
    _FLIP,
    _TURNS,
    _PHOTOMETRY,
    _BRIGHTNESS,
    _CONTRAST,
    _GAMMA,
    _SOLARISE,
    _BLUR,
    _SIGMA,
    _NOISE,
    _AMOUNT,
    _OFFSET,
) = range(DRAWS)
# Noise is a window into one long sample: a random offset costs less than new numbers, and two
# views share a window only by a chance of one in a million.
_POOL_SIZE = 1 << 20
# The sample is kept in bytes, this many to a standard deviation about the mean: adding bytes with a
# weight is one pass. Noise ends at four standard deviations and its steps are below a grey level.
NOISE_STEPS, NOISE_MEAN = 32, 128


@dataclass(frozen=True)
class ViewAugmentation:
    """What a random view may be. Amounts are the largest change, probabilities end in ``_p``.

    Attributes:
        size: side of the view in pixels.
        scale: smallest and largest crop as a share of the tile's area.
        ratio: narrowest and widest crop, width over height.
        sides: smallest and largest crop as a share of the tile's height and, drawn apart, of its
            width; in place of ``scale`` and ``ratio`` where it is given.
        d4: "full" (eight elements), "flips" (no quarter turns), "hflip" or "none".
        brightness: factor 1 -/+ this.
        contrast: factor 1 -/+ this about the crop's own mean.
        gamma: exponent between exp(-this) and exp(this).
        photometry_p: share of views whose grey levels change.
        solarise_p: share of views with levels above one half inverted.
        blur_p: share of blurred views.
        blur_sigma: smallest and largest Gaussian sigma in view pixels.
        noise_p: share of views with added Gaussian noise.
        noise_sigma: largest noise as a share of the grey range.
    """

    size: int = 128
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    sides: tuple[float, float] | None = None
    d4: str = "full"
    brightness: float = 0.3
    contrast: float = 0.3
    gamma: float = 0.3
    photometry_p: float = 0.8
    solarise_p: float = 0.0
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 1.0)
    noise_p: float = 0.5
    noise_sigma: float = 0.02


@dataclass(frozen=True)
class Draws:
    """Everything random about B views.

    Attributes:
        boxes: float64 (B, 4) crops as top, left, height, width in image pixels; whole numbers.
        flips: bool (B,).
        turns: int64 (B,).
        gains: float64 (B, 4), brightness, contrast, gamma, and whether levels are solarised.
        changed: bool (B,), which views change their grey levels.
        sigmas: float64 (B,), 0 for no blur.
        noise: float64 (B,) standard deviation in grey levels, 0 for none.
        offsets: int64 (B,), where in the noise sample a view reads.
    """

    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]
    turns: NDArray[np.int64]
    gains: NDArray[np.float64]
    changed: NDArray[np.bool_]
    sigmas: NDArray[np.float64]
    noise: NDArray[np.float64]
    offsets: NDArray[np.int64]

    def maps(self, size: int) -> NDArray[np.float64]:
        """Return (B, 2, 3), view pixels to image pixels."""
        return affines(self.boxes, self.flips, self.turns, size)


def draw(
    augmentation: ViewAugmentation,
    tiles: NDArray[np.int64],
    seed: int,
    epoch: int,
    samples: Sequence[int] | NDArray[np.int64],
    view: int,
) -> Draws:
    """Return the random part of one view of each sample.

    Args:
        augmentation: what may be drawn.
        tiles: int64 (B, 4), top, left, height, width of each sample's tile in its image.
        seed: of the run.
        epoch: of the run.
        samples: (B,) number of each sample; each draw depends on its own number alone.
        view: number of the view.
    """
    u = np.stack([rng.generator(seed, epoch, int(s), view).random(DRAWS) for s in samples])
    boxes = _boxes(augmentation, tiles, u)
    flips = (u[:, _FLIP] < 0.5) & (augmentation.d4 != "none")
    turns = np.zeros(len(u), np.int64)
    if augmentation.d4 == "full":
        turns = (u[:, _TURNS] * 4).astype(np.int64)
    elif augmentation.d4 == "flips":
        # With the mirror, a half turn gives both flips and their product.
        turns = 2 * (u[:, _TURNS] * 2).astype(np.int64)
    photometry = u[:, _PHOTOMETRY] < augmentation.photometry_p
    gains = np.stack(
        [
            np.where(photometry, 1 + augmentation.brightness * (2 * u[:, _BRIGHTNESS] - 1), 1.0),
            np.where(photometry, 1 + augmentation.contrast * (2 * u[:, _CONTRAST] - 1), 1.0),
            np.where(photometry, np.exp(augmentation.gamma * (2 * u[:, _GAMMA] - 1)), 1.0),
            (u[:, _SOLARISE] < augmentation.solarise_p).astype(float),
        ],
        axis=1,
    )
    low, high = augmentation.blur_sigma
    sigmas = np.where(u[:, _BLUR] < augmentation.blur_p, low + (high - low) * u[:, _SIGMA], 0.0)
    noise = np.where(
        u[:, _NOISE] < augmentation.noise_p, 255 * augmentation.noise_sigma * u[:, _AMOUNT], 0.0
    )
    room = _pool_size(augmentation.size) - augmentation.size**2
    offsets = (u[:, _OFFSET] * room).astype(np.int64)
    changed = photometry | (gains[:, 3] > 0)
    return Draws(boxes, flips, turns, gains, changed, sigmas, noise, offsets)


def render(
    augmentation: ViewAugmentation,
    draws: Draws,
    planes: Sequence[NDArray[np.uint8]],
    out: NDArray[np.uint8],
) -> None:
    """Write the views into ``out``.

    Args:
        augmentation: gives the size.
        draws: the random part of B views.
        planes: B images, uint8 (H, W) or (H, W, C).
        out: uint8 (B, C, size, size), overwritten.
    """
    size = augmentation.size
    boxes = draws.boxes.astype(np.int64)
    crops = []
    for i, plane in enumerate(planes):
        top, left, height, width = boxes[i]
        crops.append(shrink(plane[top : top + height, left : left + width], size))
    tables = _tables(draws.gains, np.array([_mean(crop) for crop in crops]))
    for i, crop in enumerate(crops):
        if draws.changed[i]:
            crop = cv2.LUT(crop, tables[i])
        if draws.sigmas[i] > 0:
            kernel = gaussian(draws.sigmas[i])
            # Half the time of cv2.GaussianBlur, which is bit-exact between machines at that price.
            crop = cv2.sepFilter2D(crop, -1, kernel, kernel)
        if draws.noise[i] > 0:
            crop = _noisy(crop, draws.noise[i], int(draws.offsets[i]))
        _orient(crop, bool(draws.flips[i]), int(draws.turns[i]), out[i])


def shrink(crop: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the crop at size x size, antialiased at a fraction of area averaging's price.

    OpenCV is quick at area averaging by exact halves only. So the crop is halved while it is at
    least twice too large; what is then near the size is interpolated, what is not is interpolated
    to twice the size and halved once more.
    """
    if crop.ndim == 3 and crop.shape[2] > MOST_CHANNELS:
        return np.stack([shrink(crop[..., i], size) for i in range(crop.shape[2])], axis=2)
    height, width = crop.shape[:2]
    near = 1.15
    while height >= 2 * size and width >= 2 * size:
        crop = cv2.resize(
            crop[: height // 2 * 2, : width // 2 * 2],
            (width // 2, height // 2),
            interpolation=cv2.INTER_AREA,
        )
        height, width = crop.shape[:2]
        # Half of the averaging is done: interpolation is good over a wider range.
        near = 1.5
    if max(height, width) <= near * size:
        return cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    double = cv2.resize(crop, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(double, (size, size), interpolation=cv2.INTER_AREA)


def _boxes(
    augmentation: ViewAugmentation, tiles: NDArray[np.int64], u: Array
) -> NDArray[np.float64]:
    """Return crops of random area and shape inside each tile, whole pixels."""
    top, left, height, width = np.asarray(tiles, np.float64).T
    if augmentation.sides is None:
        area = height * width * _between(augmentation.scale, u[:, _SCALE])
        low, high = np.log(augmentation.ratio)
        ratio = np.exp(_between((low, high), u[:, _RATIO]))
        h, w = np.sqrt(area / ratio), np.sqrt(area * ratio)
    else:
        h = height * _between(augmentation.sides, u[:, _SCALE])
        w = width * _between(augmentation.sides, u[:, _RATIO])
    # A box that would leave the tile is cut to it; torchvision would draw again up to ten times.
    h, w = np.clip(np.rint(h), 1, height), np.clip(np.rint(w), 1, width)
    # Sides that can be halved as often as :func:`shrink` does it: a row cut off there would shift
    # the view against its map.
    halves = 2 ** np.floor(np.log2(np.maximum(np.minimum(h, w) / augmentation.size, 1)))
    h, w = h // halves * halves, w // halves * halves
    y = top + np.floor((height - h + 1) * u[:, _TOP])
    x = left + np.floor((width - w + 1) * u[:, _LEFT])
    return np.stack([y, x, h, w], axis=1)


def _between(ends: tuple[float, float], u: Array) -> Array:
    """Return uniform numbers from 0 to 1 spread over the range."""
    return ends[0] + (ends[1] - ends[0]) * u


def _tables(gains: Array, means: Array) -> NDArray[np.uint8]:
    """Return (B, 256): gamma, then brightness, then contrast about the mean, then solarisation."""
    levels = np.arange(256) / 255.0
    brightness, contrast, gamma, solarise = (gains[:, i, None] for i in range(4))
    values = levels[None] ** gamma * brightness
    # The mean after gamma and brightness, to first order: that of the mean level.
    centre = (means[:, None] / 255) ** gamma * brightness
    values = (values - centre) * contrast + centre
    values = np.where((solarise > 0) & (values > 0.5), 1 - values, values)
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _mean(crop: NDArray[np.uint8]) -> float:
    """Return the mean level; seven times as quick as numpy's."""
    channels = 1 if crop.ndim == 2 else crop.shape[2]
    if channels > MOST_CHANNELS:
        return float(crop.mean())
    return sum(cv2.mean(crop)[:channels]) / channels


def gaussian(sigma: float) -> NDArray[np.float32]:
    """Return a Gaussian's weights out to two standard deviations."""
    offsets = np.arange(-math.ceil(2 * sigma), math.ceil(2 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _pool_size(size: int) -> int:
    """Return the length of the noise sample for views of this size."""
    return max(_POOL_SIZE, 4 * size**2)


@lru_cache(maxsize=2)
def noise_sample(size: int) -> NDArray[np.uint8]:
    """Return the normal noise that views of this side read windows of, as bytes, flat."""
    generator = rng.generator(0, 0, 0, stream=rng.NOISE)
    length = _pool_size(size)
    noise = NOISE_MEAN + NOISE_STEPS * generator.standard_normal(length, dtype=np.float32)
    return np.rint(noise).clip(0, 255).astype(np.uint8)


def _noisy(crop: NDArray[np.uint8], sigma: float, offset: int) -> NDArray[np.uint8]:
    height, width = crop.shape[:2]
    sample = noise_sample(height)[offset : offset + height * width]
    sample = sample.reshape(height, width)
    if crop.ndim == 3:
        sample = np.repeat(sample[..., None], crop.shape[2], axis=2)
    weight = sigma / NOISE_STEPS
    return cv2.addWeighted(crop, 1.0, sample, weight, -NOISE_MEAN * weight)


def _orient(crop: NDArray[np.uint8], flip: bool, turns: int, out: NDArray[np.uint8]) -> None:
    """Write ``apply_d4(crop, flip, turns)`` into ``out`` (C, S, S).

    One plane goes through OpenCV, which moves blocks where numpy moves single pixels.
    """
    if crop.ndim == 3:
        out[:] = np.moveaxis(apply_d4(crop, flip, turns), 2, 0)
    elif (flip, turns) == (False, 0):
        out[0] = crop
    elif turns % 2 == 0:
        # Mirrors and the half turn: OpenCV counts 1 left to right, 0 top to bottom, -1 both.
        code = -1 if not flip else (1 if turns == 0 else 0)
        cv2.flip(crop, code, dst=out[0])
    elif not flip:
        code = cv2.ROTATE_90_COUNTERCLOCKWISE if turns == 1 else cv2.ROTATE_90_CLOCKWISE
        cv2.rotate(crop, code, dst=out[0])
    elif turns == 1:
        cv2.transpose(crop, dst=out[0])
    else:
        cv2.flip(cv2.transpose(crop), -1, dst=out[0])
