"""Predicted masks in the colours of the masks they were learned from: NAME_mask.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.data.masks import ClassTable
from matssl.data.masks.mapping import is_mapping, read_mapping
from matssl.stages.drawing import mask_png

FOLDER, SUFFIX = "masks/rgb", "_mask.png"


def of_table(table: ClassTable, classes: str | None) -> NDArray[np.uint8]:
    """Return the colour of each class, R, G, B, uint8 (256, 3); what is no class is black.

    They are those of a table of colours (``--classes MAPPING.py``), whose classes are matched by
    name, or by number where none has the model's names; else the first colour that means a class in
    the masks it was trained on.

    Args:
        table: of the model.
        classes: ``--classes``.

    Raises:
        UserError: a class has no colour, or two have one.
    """
    named = {c.name: [v for v in c.values if isinstance(v, str)] for c in table.classes}
    if classes is not None and is_mapping(Path(classes)):
        entries, _ = read_mapping(Path(classes))
        listed = {name: [str(v) for v in values] for name, values in entries}
        if not set(listed) & set(named) and len(listed) == len(named):
            listed = dict(zip(named, listed.values(), strict=True))
        absent = [name for name in named if name not in listed]
        if absent:
            raise UserError(
                f"{classes} has no colour for {', '.join(absent)}; the model knows "
                f"{', '.join(named)}"
            )
        named = {name: listed[name] for name in named}
    colours = [next((v for v in own if v.startswith("#")), None) for own in named.values()]
    bare = [name for name, colour in zip(named, colours, strict=True) if colour is None]
    if bare:
        raise UserError(
            f"--save_rgb_masks: the masks of this model's training were not coloured, so "
            f"{', '.join(bare)} has no colour; --classes MAPPING.json gives one to each class"
        )
    if len(set(colours)) < len(colours):
        raise UserError(f"--save_rgb_masks: two classes have one colour in {classes}")
    result = np.zeros((256, 3), np.uint8)
    for place, colour in enumerate(colours):
        result[place] = list(bytes.fromhex(str(colour)[1:]))
    return result


def write(
    folder: RunFolder, name: str, classes: NDArray[np.uint8], colours: NDArray[np.uint8]
) -> None:
    """Write class indices (H, W) as a PNG in these colours.

    Args:
        folder: of the results.
        name: of the image.
        classes: uint8 (H, W); 255 for none.
        colours: from :func:`of_table`.
    """
    # OpenCV wants blue first.
    data = mask_png(colours[:, ::-1][classes])
    with atomic_path(folder.path(f"{FOLDER}/{name}{SUFFIX}")) as temporary:
        temporary.write_bytes(data)
