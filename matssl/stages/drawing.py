"""What drawing classes and drawing phases share: names of files and pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph


def output_names(paths: Sequence[Path], root: Path) -> list[str]:
    """Return a name for each image's files: its stem; folders and ending too where two clash."""
    home = root.parent if root.is_file() else root
    places = [Path(os.path.relpath(path, home)) for path in paths]
    stems = Counter(place.stem for place in places)
    joined = ["_".join(place.with_suffix("").parts) for place in places]
    twice = Counter(joined)
    return [
        place.stem
        if stems[place.stem] == 1
        else name
        if twice[name] == 1
        else f"{name}_{place.suffix.lstrip('.')}"
        for place, name in zip(places, joined, strict=True)
    ]


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
