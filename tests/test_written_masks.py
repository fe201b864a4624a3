"""Masks as they are written: what viewers, ImageJ and this program see of them (found.md C8)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from matssl.core import palette
from matssl.core.run_folder import RunFolder
from matssl.data import masks, readers
from matssl.stages import drawing


@pytest.mark.parametrize("side", [(1, 1), (7, 300), (300, 7)])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_an_index_mask_is_shown_in_the_colours_of_its_classes(
    side: tuple[int, int], count: int, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    classes = draw.integers(0, count, side).astype(np.uint8)
    classes[-1, -1] = 255
    path = tmp_path / "x.png"
    path.write_bytes(drawing.indexed_png(classes, count))
    with Image.open(path) as picture:
        # Pillow checks every check sum.
        picture.load()
        assert picture.mode == "P" and np.array_equal(np.array(picture), classes)
        shown = np.array(picture.convert("RGB"))
    for index in range(count):
        assert (shown[classes == index] == palette.distinct(count)[index]).all()
    assert (shown[classes == 255] == 200).all()
    assert np.array_equal(cv2.imread(str(path)), drawing.colour_bgr(classes, count))
    assert np.array_equal(np.asarray(readers.read_mask(path)), classes)


def test_an_index_mask_is_as_small_as_it_was_grey() -> None:
    classes = np.zeros((500, 700), np.uint8)
    classes[100:300, 200:400] = 1
    grey = cv2.imencode(".png", classes, drawing.MASK_PNG)[1]
    assert len(drawing.indexed_png(classes, 2)) == len(grey) + 12 + 3 * 256


def test_written_masks_are_read_as_classes_of_a_labelled_folder(tmp_path: Path) -> None:
    """The colours of the palette give no other numbers to the classes."""
    paths = []
    for number in range(3):
        classes = (np.arange(64 * 64).reshape(64, 64) // (700 + number) % 3).astype(np.uint8)
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(drawing.indexed_png(classes, 3))
    table, _ = masks.find_table(paths, None, tmp_path)
    assert [c.values for c in table.classes] == [(0,), (1,), (2,)]
    decoded = table.decode(readers.read_mask(paths[1]), str(paths[1]))
    assert np.array_equal(decoded, np.array(Image.open(paths[1])))


@pytest.mark.parametrize("size", [0.137, 3.3333, 12.5, 1234.5])
def test_a_label_mask_carries_the_pixel_size(size: float, tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path / "run")
    classes = np.eye(32, 48, dtype=np.uint8)
    drawing.write_label(folder, "a b", classes, size)
    drawing.write_label(folder, "unknown", classes, None)
    path = tmp_path / "run" / "masks" / "label" / "a b.tif"
    assert readers.read(path).pixel_size == pytest.approx(size, rel=1e-6)
    with tifffile.TiffFile(path) as file:
        # What ImageJ looks for: pixels a unit, and the unit.
        assert file.is_imagej and file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "nm"
        over, under = file.pages[0].tags["XResolution"].value  # type: ignore[union-attr]
        assert over / under == pytest.approx(1 / size, rel=1e-6)
    for place in (path, path.with_name("unknown.tif")):
        assert np.array_equal(tifffile.imread(place), classes)
    assert readers.read(path.with_name("unknown.tif")).pixel_size is None
