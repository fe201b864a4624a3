"""The information bar drawn at the bottom of a micrograph."""

from __future__ import annotations

import numpy as np

from matssl.core.arrays import Array


def bar_height(pixels: Array) -> int:
    """Return the rows of an information bar drawn at the bottom of an image; 0 for none.

    A bar is drawn, not imaged: from a full-width straight edge down to the last row, every row has
    one grey level on most of its width. Specimen, even a dark mount, is noisy and fails this test.

    Args:
        pixels: (H, W) or (H, W, 3).
    """
    plane = pixels if pixels.ndim == 2 else pixels[..., 0]
    height, width = plane.shape
    limit = height // 5
    if limit < 8 or width < 64:
        return 0
    band = plane[height - limit :]
    drawn = np.zeros(limit, dtype=bool)
    level = np.zeros(limit)
    for row in range(limit):
        values, counts = np.unique(band[row], return_counts=True)
        best = int(counts.argmax())
        level[row] = float(values[best])
        drawn[row] = counts[best] >= 0.3 * width
    if not drawn[-2:].all():
        return 0
    # Text rows of a bar may have less background; short gaps belong to it.
    top = limit
    gap = 0
    for row in range(limit - 1, -1, -1):
        if drawn[row]:
            top, gap = row, 0
        else:
            gap += 1
            if gap > max(4, limit // 8):
                break
    rows = limit - top
    if rows < 8 or top == 0:
        return 0
    share = float((band[top:] == np.bincount(band[top:].ravel().astype(np.int64)).argmax()).mean())
    edge = float((np.abs(band[top].astype(float) - level[top]) < 1).mean())
    step = np.abs(band[top - 1].astype(float) - band[top].astype(float))
    if share < 0.5 or edge < 0.9 or float(np.median(step)) < 2:
        return 0
    # A saturated or empty part of the specimen is flat too, but carries no writing.
    values = band[top:]
    if np.ptp(values.astype(float)) < 40 * max(1.0, float(np.iinfo(plane.dtype).max) / 255):
        return 0
    return rows
