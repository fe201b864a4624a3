"""What drawing classes and drawing phases share: names of files and pictures."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from matssl.core import palette
from matssl.core.arrays import Array, roomy, strips
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph

# Masks repeat from row to row: the difference to the row above in runs is smaller and several times
# faster than the writer's own choice.
MASK_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)
# Bytes of a PNG file before its second chunk, and where the type of its colours stands: 3 is a
# palette.
PNG_HEADER, PNG_COLOUR, PNG_PALETTE = 33, 25, 3
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
        result[rows] = palette.colour_mask(classes[rows], count)[..., ::-1]
    return result


def eight_bit(probabilities: Array) -> NDArray[np.uint8]:
    """Return 255 times the probability of the second of two classes, uint8 (H, W).

    A pixel above a threshold t is one above 255 t, in every picture alike.

    Args:
        probabilities: (2, H, W).
    """
    return np.rint(255 * probabilities[1]).astype(np.uint8)


def data_name(path: str) -> str:
    """Return what a folder of images, or one image, is called in the name of a run."""
    place = Path(path).resolve()
    return (place.stem if place.is_file() else place.name).replace(" ", "_")


def shown(micrograph: Micrograph, record: Preprocess) -> NDArray[np.uint8]:
    """Return the micrograph at native size in 8 bit, stretched between its 0.5 and 99.5 %.

    Of several frames it is the middle one.
    """
    native = replace(
        record, window="percentile", low=0.5, high=99.5, resize=None, target_pixel_size=None
    )
    return native.plane_u8(micrograph.middle)


def write_masks(
    folder: RunFolder,
    kind: str,
    name: str,
    classes: NDArray[np.uint8],
    num_classes: int,
) -> None:
    """Write class indices as a PNG that viewers show in colour, and as a colour PNG.

    Args:
        folder: of the run.
        kind: folder inside it, masks or maps.
        name: of the files.
        classes: uint8 (H, W); 255 for none.
        num_classes: how many colours there are.
    """
    colour = mask_png(colour_bgr(classes, num_classes))
    for place, content in (("index", indexed_png(classes, num_classes)), ("colour", colour)):
        with atomic_path(folder.path(f"{kind}/{place}/{name}.png")) as temporary:
            temporary.write_bytes(content)


def write_label(
    folder: RunFolder, name: str, classes: NDArray[np.uint8], pixel_size: float | None
) -> None:
    """Write class indices as TIFF with the pixel size.

    Args:
        folder: of the run.
        name: of the file.
        classes: uint8 (H, W); 255 for none.
        pixel_size: nm, None where unknown.
    """
    with atomic_path(folder.path(f"masks/label/{name}.tif")) as temporary:
        tifffile.imwrite(temporary, classes, compression="zlib", **scale_tags(pixel_size))


def indexed_png(classes: NDArray[np.uint8], num_classes: int) -> bytes:
    """Return class indices as PNG whose palette has the colours of the classes.

    Args:
        classes: uint8 (H, W); what is no class is light grey.
        num_classes: how many colours there are.
    """
    every = np.arange(256, dtype=np.uint8)[None]
    return palette_png(classes, palette.colour_mask(every, num_classes)[0])


def mask_png(pixels: Array) -> bytes:
    """Return a mask, or one in colours in OpenCV's order, as PNG.

    Args:
        pixels: (H, W) or (H, W, 3), uint8 or uint16.
    """
    return bytes(cv2.imencode(".png", pixels, MASK_PNG)[1].tobytes())


def palette_png(values: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    """Return values as PNG with a palette.

    OpenCV writes one byte a pixel as grey; the same bytes are indices where the header says so and
    the palette follows it (PNG specification, sections 11.2.2 and 11.2.3).

    Args:
        values: uint8 (H, W).
        colours: RGB of each value, uint8 (256, 3).
    """
    data = mask_png(values)
    head = bytearray(data[:PNG_HEADER])
    head[PNG_COLOUR] = PNG_PALETTE
    head[-4:] = struct.pack(">I", zlib.crc32(head[12:-4]))
    chunk = b"PLTE" + colours.tobytes()
    palette = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return bytes(head) + palette + data[PNG_HEADER:]


def scale_tags(pixel_size: float | None) -> dict[str, Any]:
    """Return what a TIFF file needs to carry a pixel size, as ImageJ writes and reads it.

    Args:
        pixel_size: nm, None where unknown.
    """
    if pixel_size is None:
        return {}
    per_pixel = (1 / pixel_size, 1 / pixel_size)
    text = "ImageJ=1.54f\nunit=nm\n"
    return {"resolution": per_pixel, "resolutionunit": 1, "description": text, "metadata": None}
