"""Random views made where the network computes: the same draws, one pass over a whole batch.

A GPU waits for views that processors make one by one. Here the decoded pool lies in the memory of
the device, and crops of all samples are cut, scaled, changed and turned together. Geometry, grey
tables, blur and noise are those of :mod:`matssl.data.views`, number by number; sums are rounded in
another order and sizes between the halves are averaged exactly, so that a few pixels differ by a
grey level or two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from matssl.data import views
from matssl.data.views import Draws, ViewAugmentation

# Up to this reduction OpenCV's plain interpolation is what views.shrink uses.
NEAR = 1.15
# Share of a device's free memory that a pool may take.
SHARE = 0.25


class Renderer:
    """Planes on a device, and the views of them.

    Attributes:
        device: where.
        channels: of every plane.
    """

    def __init__(
        self, planes: Iterable[NDArray[np.uint8]], channels: int, device: torch.device
    ) -> None:
        """Copy the planes to the device.

        Args:
            planes: uint8 (H, W) or (H, W, channels) each.
            channels: of every plane.
            device: where.
        """
        self.device, self.channels = device, channels
        sizes, parts = [], []
        for plane in planes:
            sizes.append(plane.shape[:2])
            parts.append(torch.from_numpy(np.array(plane).reshape(-1)).to(device))
        self._widths = np.array([width for _, width in sizes], np.int64)
        counts = np.array([height * width * channels for height, width in sizes], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._flat = torch.cat(parts)
        # Half precision holds grey levels and their weights to a sixteenth of a level.
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._noise: dict[int, Tensor] = {}

    def render(
        self, augmentation: ViewAugmentation, draws: Draws, images: NDArray[np.int64]
    ) -> Tensor:
        """Return the views, uint8 (B, C, size, size) on the device.

        Args:
            augmentation: gives the size.
            draws: the random part of B views.
            images: int64 (B,), number of the plane of each.
        """
        levels = self._shrunk(draws, images, augmentation.size)
        levels = self._photometry(levels, draws)
        levels = self._blurred(levels, draws)
        levels = self._noisy(levels, draws)
        return _oriented(levels.round_().clamp_(0, 255).to(torch.uint8), draws)

    def _told(self, values: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        """Return numbers of the draws on the device; the copy does not wait for it."""
        told = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        pinned = told.pin_memory() if self.device.type == "cuda" else told
        return pinned.to(self.device, non_blocking=True)

    def _shrunk(self, draws: Draws, images: NDArray[np.int64], size: int) -> Tensor:
        """Return the crops at size x size, float32 (B, C, size, size), 0 to 255."""
        boxes = draws.boxes.astype(np.int64)
        top, left, heights, widths = boxes.T
        largest_y, largest_x = int(heights.max()), int(widths.max())
        first = self._starts[images] + (top * self._widths[images] + left) * self.channels
        first_t, row_t = (
            self._told(first, torch.int64),
            self._told(self._widths[images], torch.int64),
        )
        heights_t, widths_t = (self._told(v, torch.int64) for v in (heights, widths))
        # Beyond the box of a smaller crop its last row and column come again; their weight is 0.
        y = torch.arange(largest_y, device=self.device)
        x = torch.arange(largest_x, device=self.device)
        y = torch.minimum(y[None], heights_t[:, None] - 1)
        x = torch.minimum(x[None], widths_t[:, None] - 1)
        index = first_t[:, None, None] + self.channels * (
            y[:, :, None] * row_t[:, None, None] + x[:, None, :]
        )
        near = np.maximum(heights, widths) <= NEAR * size
        near_t = self._told(near, torch.bool)
        down = self._weights(heights_t, near_t, size, largest_y)
        across = self._weights(widths_t, near_t, size, largest_x).transpose(1, 2)
        made = []
        for channel in range(self.channels):
            crops = self._flat[index + channel].to(self._dtype)
            made.append(torch.bmm(torch.bmm(down, crops), across))
        return torch.stack(made, dim=1).float()

    def _weights(self, sides: Tensor, near: Tensor, size: int, largest: int) -> Tensor:
        """Return what each pixel of a side of the crops gives to the view, (B, size, largest).

        Interpolation between two pixels where the reduction is small, else the share of the pixel
        in what the view's pixel covers.
        """
        step = (sides.float() / size)[:, None, None]
        at = torch.arange(size, device=self.device, dtype=torch.float32)[None, :, None]
        pixel = torch.arange(largest, device=self.device, dtype=torch.float32)[None, None]
        inside = (pixel < sides[:, None, None]).float()
        centre = ((at + 0.5) * step - 0.5).clamp_min(0).minimum(sides.float()[:, None, None] - 1)
        between = (1 - (pixel - centre).abs()).clamp_min(0)
        first, last = at * step, (at + 1) * step
        covered = (torch.minimum(last, pixel + 1) - torch.maximum(first, pixel)).clamp_min(0) / step
        return (torch.where(near[:, None, None], between, covered) * inside).to(self._dtype)

    def _photometry(self, levels: Tensor, draws: Draws) -> Tensor:
        """Return the levels after gamma, brightness, contrast and solarisation of their views."""
        if not draws.changed.any():
            return levels
        gains = self._told(draws.gains, torch.float32)
        brightness, contrast, gamma, solarise = (gains[:, i, None, None, None] for i in range(4))
        centre = (levels.mean(dim=(1, 2, 3), keepdim=True) / 255) ** gamma * brightness
        values = (levels / 255).clamp_(0, 1) ** gamma * brightness
        values = (values - centre) * contrast + centre
        values = torch.where((solarise > 0) & (values > 0.5), 1 - values, values).clamp_(0, 1)
        changed = self._told(draws.changed, torch.bool)[:, None, None, None]
        return torch.where(changed, values * 255, levels)

    def _blurred(self, levels: Tensor, draws: Draws) -> Tensor:
        """Return the levels under the Gaussian of each view, mirrored at the edges."""
        blurred = draws.sigmas > 0
        if not blurred.any():
            return levels
        reach = math.ceil(2 * float(draws.sigmas.max()))
        weights = np.zeros((len(levels), 2 * reach + 1), np.float32)
        weights[~blurred, reach] = 1
        for i in np.flatnonzero(blurred):
            kernel = views.gaussian(draws.sigmas[i])
            start = reach - len(kernel) // 2
            weights[i, start : start + len(kernel)] = kernel
        taps = self._told(weights, torch.float32)
        for dim in (2, 3):
            pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
            padded = functional.pad(levels, pad, mode="reflect")
            size, total = levels.shape[dim], torch.zeros_like(levels)
            for tap in range(2 * reach + 1):
                weight = taps[:, tap, None, None, None]
                total.addcmul_(weight, padded.narrow(dim, tap, size))
            levels = total
        return levels

    def _noisy(self, levels: Tensor, draws: Draws) -> Tensor:
        """Return the levels with the noise of each view."""
        if not (draws.noise > 0).any():
            return levels
        size = levels.shape[-1]
        if size not in self._noise:
            sample = views.noise_sample(size)
            self._noise[size] = torch.from_numpy(sample).to(self.device)
        offsets = self._told(draws.offsets, torch.int64)
        place = offsets[:, None] + torch.arange(size**2, device=self.device)
        noise = self._noise[size][place].view(-1, 1, size, size).float().sub_(views.NOISE_MEAN)
        amount = self._told(draws.noise / views.NOISE_STEPS, torch.float32)
        return levels.addcmul_(noise, amount[:, None, None, None])


def fits(pool_bytes: int, device: torch.device) -> bool:
    """Return whether a pool of so many bytes may lie in the memory of a GPU.

    Args:
        pool_bytes: of all planes.
        device: the GPU.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return pool_bytes <= SHARE * free


def _oriented(levels: Tensor, draws: Draws) -> Tensor:
    """Return the views turned and mirrored as drawn: mirror first, then quarter turns."""
    out = torch.empty_like(levels)
    kinds = draws.flips.astype(np.int64) * 4 + draws.turns % 4
    for kind in np.unique(kinds):
        which = torch.from_numpy(np.flatnonzero(kinds == kind)).to(levels.device, non_blocking=True)
        some = levels[which]
        if kind >= 4:
            some = some.flip(3)
        out[which] = torch.rot90(some, int(kind % 4), (2, 3))
    return out
