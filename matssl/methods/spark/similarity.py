"""SSIM of pictures, differentiable: Wang et al. 2004 (doi:10.1109/TIP.2003.819861)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the paper: window, its spread, and the constants of luminance and contrast.
SIDE, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the mean SSIM of each pair of images, (B,), Eq. 13 of the paper.

    Windows that lie in the image as a whole count. The gradient flows into both.

    Args:
        x: (B, C, H, W), sides of 11 pixels or more.
        y: the same.
        data_range: from black to white.
    """
    channels = x.shape[1]
    steps = torch.arange(SIDE, dtype=x.dtype, device=x.device) - SIDE // 2
    bell = torch.exp(-steps.square() / (2 * SIGMA**2))
    bell = bell / bell.sum()
    window = (bell[:, None] * bell[None]).expand(channels, 1, SIDE, SIDE)

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=channels)

    a, b = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    light = (2 * a * b + c1) / (a * a + b * b + c1)
    shape = (2 * cov + c2) / (var_x + var_y + c2)
    return (light * shape).flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair of images in dB, (B,).

    10 log10(range^2 / MSE), with the range as it is given and never that of the images at hand.
    """
    error = (x - y).square().flatten(1).mean(1).clamp(min=1e-12)
    return 10 * torch.log10(data_range**2 / error)
