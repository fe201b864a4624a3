"""Colours that mean classes, told apart by people with any colour vision."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

# The first eight are Okabe and Ito's. Each further one is the colour that lies farthest from all
# before it (CIELAB, the least distance for full colour vision and for each of its three kinds of
# loss, simulated after Machado et al. 2009), and from white, black and the grey of ignored pixels.
COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (110, 110, 110),
    (150, 0, 255),
    (90, 45, 0),
    (90, 255, 150),
    (0, 30, 135),
    (75, 45, 90),
    (135, 120, 255),
    (150, 165, 90),
    (0, 60, 45),
    (135, 90, 60),
    (135, 0, 195),
    (150, 225, 255),
    (165, 60, 0),
    (150, 240, 105),
    (165, 15, 135),
    (75, 210, 150),
    (210, 0, 180),
    (105, 150, 240),
    (135, 0, 60),
    (180, 180, 75),
    (90, 0, 105),
    (0, 0, 210),
    (30, 90, 135),
    (225, 165, 210),
    (105, 90, 240),
)


# Of pixels that are no class: light grey.
IGNORED = (200, 200, 200)


def distinct(count: int) -> NDArray[np.uint8]:
    """Return RGB colours, uint8 (count, 3), the clearest first.

    Beyond those listed they come from a colour wheel.
    """
    colours = list(COLOURS[:count])
    for i in range(count - len(colours)):
        wheel = colorsys.hsv_to_rgb((0.61803 * (i + 1)) % 1, 0.9, 0.95)
        colours.append(tuple(int(255 * channel) for channel in wheel))  # type: ignore[arg-type]
    return np.array(colours, np.uint8).reshape(count, 3)


def colour_mask(mask: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3) of class indices; ignored pixels are light grey."""
    table = np.zeros((256, 3), np.uint8)
    table[:] = IGNORED
    table[:count] = distinct(count)
    return table[mask]
