"""A small project laid out as that of SRPU-Model: data sets, masks in its colours, sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

COLOURS = np.array([(0, 0, 255), (0, 255, 255), (255, 126, 126)], np.uint8)
FRAMES: Mapping[str, Sequence[str]] = {
    "dataset1_LInCl": ("4.2V-009", "4.2V-010", "4.4V-006", "4.4V-007", "pristine-006"),
    "dataset2_LPSCl": ("LPSCl-011", "LPSCl-012", "cycled-003", "cycled-004"),
}
POOL = "pool-001"
MAPPING = """
BILINEAR = True
MAPPING = {
    (0, 0, 255): 0,  # carbon
    (0, 255, 255): 1,  # SE
    (255, 126, 126): 2,  # AM
}
"""


def write(path: Path, pixels: np.ndarray) -> Path:
    """Write a PNG; colours are given as RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flipped = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(flipped))[1].tobytes())
    return path


def labels(number: int, side: int) -> np.ndarray:
    """Return a mask of three classes whose borders move with the number of the frame."""
    rows, columns = np.mgrid[:side, :side]
    found = np.where((columns + 5 * number) % side < side // 3, 0, 1)
    found[(rows + 3 * number) % side < side // 3] = 2
    return found


def project(
    root: Path, frames: Mapping[str, Sequence[str]] = FRAMES, side: int = 48, pool: bool = True
) -> Path:
    """Write datasets/NAME/{raw_images,masks_3class} below a folder and return datasets."""
    generator = np.random.default_rng(0)
    for place, (data, names) in enumerate(frames.items()):
        for number, name in enumerate((*names, POOL) if pool else names):
            mask = labels(10 * place + number, side)
            grey = 60 + 70 * mask + generator.normal(0, 6, mask.shape)
            home = root / "datasets" / data
            write(home / "raw_images" / f"{name}.png", grey.clip(0, 255).astype(np.uint8))
            if name != POOL:
                write(home / "masks_3class" / f"{name}.png", COLOURS[mask])
    return root / "datasets"
