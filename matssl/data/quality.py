"""How sharp, noisy and contrasty a picture is, in numbers without a scale, and which stand out.

None of the numbers depends on gain, offset or depth of the grey levels, nor on mirroring or quarter
turns; none is a grade. They are compared among pictures that are meant to be alike, and nothing is
done to a picture because of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.paths import misplaced
from matssl.core.run_folder import atomic_write_text
from matssl.core.tables import csv_text
from matssl.core.wording import counted

# Of a larger picture the middle is looked at, so that a look costs the same for all.
SIDE = 1536
# Response to white noise of standard deviation 1 is 6 (Immerkaer 1996); it sees no plane nor slope.
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
# Median of the absolute values of a standard normal deviate.
_MEDIAN = 0.674489750196082
# The two widths at which gradients are taken, in pixels.
FINE, COARSE = 1.0, 2.0
BINS = 4096
# Share of the grey levels at either end that is left out of the contrast, as hot pixels are.
TAIL = 5e-4

# Robust z from which a value stands out (Iglewicz and Hoaglin 1993), and the fewest pictures that
# say what is usual.
FAR, FEWEST = 3.5, 8
LISTED = 4


@dataclass(frozen=True)
class Quality:
    """Measures of one picture; NaN where it shows nothing to measure them on.

    Attributes:
        sharpness: 0 for slow changes of grey, 1 where edges are steps, 2 for grain of a few pixels.
        noise: standard deviation of the noise as a share of that of the picture, 0 to 1.
        contrast: share of the variance of grey levels that lies between the darker and the brighter
            of two groups of pixels, 0 to 1; 1 for two levels, 0.64 for a normal distribution.
    """

    sharpness: float = math.nan
    noise: float = math.nan
    contrast: float = math.nan

    @property
    def blank(self) -> bool:
        """Whether there is nothing to measure: one grey level."""
        return math.isnan(self.noise)


class Outlier(NamedTuple):
    """A measure of a picture that is far from what is usual among its like."""

    what: str
    value: float
    median: float
    pictures: int

    @property
    def text(self) -> str:
        """What stands out, in words."""
        words = {
            "sharpness": "less sharp than the others",
            "noise": "noisier than the others",
            "contrast": "few pixels take up most grey levels",
        }
        return (
            f"{words[self.what]}: {self.what} {self.value:.2f}, median {self.median:.2f} of "
            f"{self.pictures}"
        )


def measured(pixels: Array) -> Quality:
    """Return the measures of a picture, (H, W) or (H, W, C) of any type."""
    grey = _middle(pixels)
    low, high = float(grey.min()), float(grey.max())
    if min(grey.shape) < 16 or not high > low or not math.isfinite(high - low):
        return Quality()
    # One scale for all depths; sums of float32 stay exact enough.
    grey = (grey - np.float32(low)) * np.float32(1 / (high - low))
    spread = float(np.sqrt(np.square(grey - grey.mean()).mean()))
    noise = noise_sigma(grey)
    return Quality(sharpness(grey, noise), min(noise / spread, 1.0), contrast(grey))


def noise_sigma(grey: Array) -> float:
    """Return the standard deviation of white noise, in grey levels of the picture.

    The operator of Immerkaer (1996, Computer Vision and Image Understanding 64, 300) with the
    median of Donoho and Johnstone (1994, Biometrika 81, 425) in the place of his mean: edges are
    few of all pixels and do not count. Texture of single pixels does.

    Args:
        grey: float32 (H, W).
    """
    response = np.abs(cv2.filter2D(grey, cv2.CV_32F, _NOISE)[1:-1, 1:-1])
    most = 8 * float(response.mean())
    if most == 0:
        return 0.0
    counts = cv2.calcHist([np.ascontiguousarray(response)], [0], None, [BINS], [0, most]).ravel()
    # What lies beyond eight means is above the median.
    half = response.size / 2
    below = np.cumsum(counts, dtype=np.float64)
    place = int(np.searchsorted(below, half))
    inside = (half - (below[place] - counts[place])) / max(float(counts[place]), 1.0)
    return float(most * (place + inside) / BINS) / (6 * _MEDIAN)


def sharpness(grey: Array, noise: float) -> float:
    """Return how fast the energy of gradients falls when they are taken over wider edges.

    log2(E(1)/E(2)), E(s) being the mean square gradient of the picture under a Gaussian of s
    pixels, less what white noise adds to it. Steps have E(s) ~ 1/s, hence 1; steps blurred by b
    pixels have log2((4 + b^2)/(1 + b^2))/2. Blur by a Gaussian lowers it whatever the picture
    shows: E(2)/E(1) is a mean of exp(-3 k^2) over wave numbers k, whose weight goes to low ones.

    Args:
        grey: float32 (H, W).
        noise: from :func:`noise_sigma`.
    """
    energies = []
    for sigma in (FINE, COARSE):
        smooth = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        energy = _mean_square(smooth[2:], smooth[:-2])
        energy += _mean_square(smooth[:, 2:], smooth[:, :-2])
        energies.append((energy - noise**2 * _noise_energy(sigma), energy))
    (fine, _), (coarse, whole) = energies
    # Where nearly all gradients are noise there is no edge to be sharp.
    if coarse <= 0.1 * whole or fine <= 0:
        return math.nan
    return math.log2(fine / coarse)


def contrast(grey: Array) -> float:
    """Return the separability of two groups of grey levels: the largest eta of Otsu (1979).

    IEEE Transactions on Systems, Man and Cybernetics 9, 62, equation 12.

    Args:
        grey: float32 (H, W), 0 to 1.
    """
    low, high = _ends(grey, 0.0, 1.0)
    counts = _histogram(np.clip(grey, low, high), low, high)
    share = counts / counts.sum()
    middles = np.arange(len(share)) + 0.5
    below, moment = np.cumsum(share), np.cumsum(share * middles)
    mean = moment[-1]
    total = float((share * np.square(middles - mean)).sum())
    if total == 0:
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.square(mean * below - moment) / (below * (1 - below))
    return float(np.nanmax(np.where(np.isfinite(between), between, np.nan)) / total)


def standing_out(
    pictures: Mapping[Path, Quality], groups: Mapping[Path, str]
) -> dict[Path, tuple[Outlier, ...]]:
    """Return the pictures that stand out among those of their group, with what does.

    On the bad side alone, by a robust z (0.6745 times the distance from the median, in median
    absolute deviations) above 3.5, and by a distance that is seen: see :func:`_seen`. Groups of
    fewer than eight pictures say nothing.

    Args:
        pictures: measures of each.
        groups: name of the group of each.
    """
    found: dict[Path, tuple[Outlier, ...]] = {}
    members: dict[str, list[Path]] = {}
    for path in pictures:
        members.setdefault(groups[path], []).append(path)
    for paths in members.values():
        for what, sign in (("sharpness", -1), ("noise", 1), ("contrast", -1)):
            values = {path: getattr(pictures[path], what) for path in paths}
            values = {path: value for path, value in values.items() if not math.isnan(value)}
            if len(values) < FEWEST:
                continue
            median = float(np.median(list(values.values())))
            spread = float(np.median(np.abs(np.array(list(values.values())) - median)))
            for path, value in values.items():
                far = sign * (value - median) * _MEDIAN > FAR * spread
                if far and _seen(what, value, median):
                    one = Outlier(what, value, median, len(values))
                    found[path] = (*found.get(path, ()), one)
    return found


def _seen(what: str, value: float, median: float) -> bool:
    """Return whether a picture of this measure looks different from one of the median.

    In a folder of nearly equal pictures the smallest difference has a large z.
    """
    if what == "sharpness":
        return value < median - 0.3
    if what == "noise":
        return value > max(2 * median, 0.15)
    return value < median - 0.15 and value < 0.6


def told(pictures: Mapping[Path, Quality], groups: Mapping[Path, str]) -> list[str]:
    """Return the lines of a screen: medians, and the pictures that stand out by name."""
    sound = [quality for quality in pictures.values() if not quality.blank]
    lines = []
    if sound:
        parts = []
        for what in ("sharpness", "noise", "contrast"):
            values = np.array([getattr(quality, what) for quality in sound])
            values = values[~np.isnan(values)]
            if len(values):
                low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
                parts.append(f"{what} {middle:.2f} ({low:.2f} to {high:.2f})")
        number = counted(len(sound), "picture")
        lines.append(f"  quality      {', '.join(parts)}: median and range of {number}")
    blank = [path for path, quality in pictures.items() if quality.blank]
    if blank:
        number = counted(len(blank), "picture shows", "pictures show")
        lines.append(f"  look at      {number} one grey level (first: {blank[0].name})")
    found = standing_out(pictures, groups)
    for path, outliers in list(found.items())[:LISTED]:
        lines += [f"  look at      {path.name}: {outlier.text}" for outlier in outliers]
    if len(found) > LISTED:
        lines.append(f"               and {len(found) - LISTED} more; --quality FILE.csv names all")
    return lines


def write(path: Path, pictures: Mapping[Path, Quality], groups: Mapping[Path, str]) -> None:
    """Write a row for each picture as CSV, atomically.

    Raises:
        UserError: it cannot be written.
    """
    found = standing_out(pictures, groups)
    rows = [
        {
            "image": str(picture),
            "sharpness": known.sharpness,
            "noise": known.noise,
            "contrast": known.contrast,
            "stands out": "; ".join(one.text for one in found.get(picture, ())),
        }
        for picture, known in pictures.items()
    ]
    try:
        atomic_write_text(path, csv_text(rows))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; --quality") from error


def check_path(path: Path, folder: Path) -> None:
    """Refuse a place for the table where it cannot be, or would be taken for one of the folder.

    Raises:
        UserError: no CSV file, no such folder, or inside the folder of the images.
    """
    inside = ", where tables say which image is what"
    told = misplaced("--quality", path, folder, ".csv", "a CSV file", inside)
    if told:
        raise UserError(told)


def _mean_square(first: Array, second: Array) -> float:
    difference = cv2.subtract(np.ascontiguousarray(first), np.ascontiguousarray(second))
    return float(cv2.norm(difference, cv2.NORM_L2SQR)) / difference.size


def _ends(grey: Array, low: float, high: float) -> tuple[float, float]:
    """Return the grey levels that all but few pixels lie between."""
    counts = _histogram(grey, low, high)
    below = np.cumsum(counts) / counts.sum()
    width = (high - low) / len(counts)
    first = int(np.searchsorted(below, TAIL))
    last = int(np.searchsorted(below, 1 - TAIL))
    return low + first * width, low + (last + 1) * width


def _histogram(grey: Array, low: float, high: float) -> NDArray[np.float64]:
    # Its upper end is open.
    top = high + (high - low) * 1e-6
    plane = np.ascontiguousarray(grey, np.float32)
    return cv2.calcHist([plane], [0], None, [BINS], [low, top]).ravel().astype(np.float64)


@cache
def _noise_energy(sigma: float) -> float:
    """Return the mean square gradient that white noise of standard deviation 1 has."""
    spot = np.zeros((41, 41), np.float32)
    spot[20, 20] = 1
    smooth = cv2.GaussianBlur(spot, (0, 0), sigma)
    return 2 * float(np.square(smooth[2:] - smooth[:-2]).sum())


def _middle(pixels: Array) -> NDArray[np.float32]:
    """Return the middle of a picture, its channels averaged, float32 (H, W) of its own."""
    height, width = pixels.shape[:2]
    top, left = (max(0, size - SIDE) // 2 for size in (height, width))
    part = pixels[top : top + SIDE, left : left + SIDE]
    if part.ndim == 3:
        part = part.mean(axis=2, dtype=np.float32)
    return np.array(part, np.float32)
