"""What drawing classes and drawing phases share: names of files and pictures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import roomy, strips
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.pictures import segmentation as pictures

# Bytes of a name of output files; file systems allow 255, with ending and temporary marks.
LONGEST = 160


def output_names(paths: Sequence[Path], root: Path) -> list[str]:
    """Return a name for each image's files: its stem; folders and ending too where two clash.

    Names too long for a file system with what is added to them are cut, and end in a check sum of
    the whole name.
    """
    home = root.parent if root.is_file() else root
    places = [Path(os.path.relpath(path, home)) for path in paths]
    stems = Counter(place.stem for place in places)
    joined = ["_".join(place.with_suffix("").parts) for place in places]
    twice = Counter(joined)
    names = [
        place.stem
        if stems[place.stem] == 1
        else name
        if twice[name] == 1
        else f"{name}_{place.suffix.lstrip('.')}"
        for place, name in zip(places, joined, strict=True)
    ]
    return [fitting(name) for name in names]


def fitting(name: str) -> str:
    """Return a name that a file system takes: of one too long the beginning and a check sum."""
    data = os.fsencode(name)
    if len(data) <= LONGEST:
        return name
    start = data[: LONGEST - 9].decode("utf-8", "ignore")
    return f"{start}_{hashlib.sha256(data).hexdigest()[:8]}"


def colour_bgr(classes: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return class indices in colour, uint8 (H, W, 3) in OpenCV's order, to be written."""
    result = roomy((*classes.shape, 3), np.uint8)
    for rows in strips(len(classes)):
        result[rows] = pictures.colour_mask(classes[rows], count)[..., ::-1]
    return result


def data_name(path: str) -> str:
    """Return what a folder of images, or one image, is called in the name of a run."""
    place = Path(path).resolve()
    return (place.stem if place.is_file() else place.name).replace(" ", "_")


def shown(micrograph: Micrograph, record: Preprocess) -> NDArray[np.uint8]:
    """Return the micrograph at native size in 8 bit, stretched between its 0.5 and 99.5 %."""
    native = replace(
        record, window="percentile", low=0.5, high=99.5, resize=None, target_pixel_size=None
    )
    return native.plane_u8(micrograph)
