"""Pages of stacks as pictures of their own, since labelling programs open files and no pages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

import cv2
import tifffile

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_path
from matssl.data import readers
from matssl.data.annotations.numbered import PICTURES as PLACE
from matssl.stages.annotations.masks import Masks, OneMask


def written(found: Masks, out: Path) -> Masks:
    """Return masks whose pictures are files, those of pages in ``out/pictures``.

    A page becomes a PNG of its own grey levels, 8 or 16 bits, and a TIFF where it has others. Where
    some pictures are pages, the others are copied to them: a program opens one folder.

    Args:
        found: the masks.
        out: folder of the files of the labelling program.

    Raises:
        UserError: a page cannot be read, or two pictures would be one file.
    """
    paged = [one for one in found.masks if one.image and readers.file_of(one.image) != one.image]
    if not paged:
        return found
    made: dict[str, Path] = {}
    masks = []
    for one in found.masks:
        if one.image is None:
            masks.append(one)
            continue
        new = _written(one.image, out / PLACE / one.picture)
        name = new.relative_to(out / PLACE).as_posix()
        other = made.setdefault(PurePosixPath(name).with_suffix("").as_posix(), one.image)
        if other != one.image:
            raise UserError(f"{other} and {one.image} would be one picture {name}; rename one")
        masks.append(OneMask(name, new, one.file))
    return replace(found, masks=tuple(masks), pages=len(paged))


def _written(image: Path, path: Path) -> Path:
    """Write a picture and return its file, whose ending is that of its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if readers.file_of(image) == image:
        shutil.copyfile(image, path)
        return path
    pixels = readers.read(image, color="rgb").pixels
    plain = pixels.dtype.name in ("uint8", "uint16")
    path = path.with_suffix(".png" if plain else ".tif")
    with atomic_path(path) as temporary:
        if plain:
            content = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1]
            temporary.write_bytes(content.tobytes())
        else:
            tifffile.imwrite(temporary, pixels, photometric="minisblack", compression="zlib")
    return path
