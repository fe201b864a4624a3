"""Masks of the pages of a stack as one stack, with the axes and the pixel size of the picture's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.data import readers
from matssl.data.readers import tiff
from matssl.data.readers.tiff import Kind

# ImageJ finds pages of larger files by counting bytes, and does not read packed ones so.
PLAIN_BYTES = 1 << 31


def write(
    folder: RunFolder,
    kind: str,
    images: Sequence[Path],
    names: Sequence[str],
    sizes: Mapping[Path, float | None],
) -> list[Path]:
    """Join masks that were written page by page; return the stacks.

    A stack comes back where all its pages were asked for. A page without a mask, since it could not
    be read, is 255 throughout.

    Args:
        folder: of the run.
        kind: folder inside it, masks or maps; its stacks lie in ``stack/``.
        images: pictures, pages of stacks and others.
        names: of the files of each.
        sizes: side of a pixel of each in nm, None where unknown.
    """
    stacks: dict[Path, dict[Path, str]] = {}
    for image, name in zip(images, names, strict=True):
        file = readers.file_of(image)
        if file != image:
            stacks.setdefault(file, {})[image] = name
    written = []
    for file, own in stacks.items():
        places = {p: folder.path(f"{kind}/index/{name}.png") for p, name in own.items()}
        made = [page for page, place in places.items() if place.is_file()]
        frames = readers.frames(file)
        if not made or not set(frames) <= set(own):
            continue
        pages = [places[page] for page in frames]
        known = next((size for page in made if (size := sizes.get(page)) is not None), None)
        name = re.sub(r"-\d+$", "", own[made[0]])
        path = folder.path(f"{kind}/stack/{name}.tif")
        with atomic_path(path) as temporary:
            _write(temporary, pages, places[made[0]], tiff.kind(file), known)
        written.append(path)
    return written


def _write(
    path: Path, pages: Sequence[Path], first: Path, kind: Kind, pixel_size: float | None
) -> None:
    """Write masks as the pages of one file, each read when its turn comes.

    Args:
        path: of the file.
        pages: mask of each page; it may be absent.
        first: a mask that is there.
        kind: of the picture's file.
        pixel_size: nm, None where unknown.
    """
    shape = readers.read_mask(first).shape

    def masks() -> Iterator[NDArray[np.uint8]]:
        for page in pages:
            if not page.is_file():
                yield np.full(shape, IGNORE, np.uint8)
            else:
                yield np.asarray(readers.read_mask(page), np.uint8)

    size = len(pages) * int(np.prod(shape))
    axes = f"{kind.axis}YX"
    tags: dict[str, Any] = {"compression": "zlib", "metadata": None}
    if pixel_size is not None:
        tags |= {"resolution": (1 / pixel_size, 1 / pixel_size), "resolutionunit": 1}
    if kind.program == "ome":
        scale = {f"PhysicalSize{axis}": pixel_size for axis in "XY" if pixel_size is not None}
        units = {f"{name}Unit": "nm" for name in scale}
        tags |= {"ome": True, "metadata": {"axes": axes, **scale, **units, **kind.apart}}
    elif (kind.program == "imagej" or pixel_size is not None) and size < PLAIN_BYTES:
        # Without ImageJ's own description no program would find a unit.
        unit = {"unit": "nm"} if pixel_size is not None else {}
        axes = axes.replace("I", "Z")
        tags |= {"imagej": True, "compression": None}
        tags |= {"metadata": {"axes": axes, **unit, **kind.apart}}
    tifffile.imwrite(
        path,
        masks(),
        shape=(len(pages), *shape),
        dtype=np.uint8,
        photometric="minisblack",
        **tags,
    )
