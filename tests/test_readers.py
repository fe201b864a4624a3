"""Files as they are: bits, colour, metadata of the makers, bars, and broken files."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from matssl.core.errors import UserError
from matssl.data import readers, synthetic

RAMP16 = np.arange(65_536, dtype=np.uint16).reshape(256, 256)


def _tiff(path: Path, pixels: Any, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_16_bit_ramp_keeps_every_level(tmp_path: Path, compression: str | None) -> None:
    micrograph = readers.read(_tiff(tmp_path / "a.tif", RAMP16, compression=compression))
    assert np.array_equal(micrograph.pixels, RAMP16)
    assert micrograph.bits == 16


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tiff"])
def test_8_bit_files_of_every_kind_are_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.full((40, 60), 77, np.uint8)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), pixels)
    micrograph = readers.read(path)
    assert micrograph.pixels.shape == (40, 60)
    assert abs(int(micrograph.pixels.mean()) - 77) <= 1
    assert micrograph.bits == 8


def test_12_bit_data_in_a_16_bit_file_is_found_by_its_maximum(tmp_path: Path) -> None:
    assert readers.read(_tiff(tmp_path / "a.tif", RAMP16 // 16)).bits == 12


def test_float_files_stay_float_and_holes_are_said(tmp_path: Path) -> None:
    pixels = np.linspace(-1, 2, 400, dtype=np.float32).reshape(20, 20)
    pixels[3, 4] = np.nan
    micrograph = readers.read(_tiff(tmp_path / "a.tif", pixels))
    assert micrograph.pixels.dtype == np.float32
    assert micrograph.pixels[3, 4] == pytest.approx(-1)
    assert any("non-finite" in note for note in micrograph.notes)


def test_equal_channels_become_one_plane_and_real_colour_luminance(tmp_path: Path) -> None:
    gray = np.arange(100, dtype=np.uint8).reshape(10, 10)
    cv2.imwrite(str(tmp_path / "g.png"), np.repeat(gray[..., None], 3, axis=2))
    assert np.array_equal(readers.read(tmp_path / "g.png").pixels, gray)
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 2] = 200  # red in OpenCV's order
    cv2.imwrite(str(tmp_path / "c.png"), colour)
    assert readers.read(tmp_path / "c.png").pixels[0, 0] == 60  # 0.299 * 200
    assert readers.read(tmp_path / "c.png", color="rgb").pixels[0, 0].tolist() == [200, 0, 0]


def test_alpha_is_dropped_and_said(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 50, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    micrograph = readers.read(tmp_path / "a.png")
    assert micrograph.pixels.shape == (8, 8)
    assert "alpha channel dropped" in micrograph.notes


def test_pages_are_counted_and_chosen(tmp_path: Path) -> None:
    stack = np.stack([np.full((9, 9), v, np.uint8) for v in (1, 2, 3)])
    path = _tiff(tmp_path / "a.tif", stack, photometric="minisblack")
    assert readers.read(path).notes == ("page 1 of 3 is read",)
    assert readers.read(path, page=2).pixels[0, 0] == 3
    with pytest.raises(UserError, match="3 pages"):
        readers.read(path, page=3)


def test_the_first_bytes_and_not_the_name_decide_the_kind(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 9, np.uint8)
    (tmp_path / "png named.tiff").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    assert np.array_equal(readers.read(tmp_path / "png named.tiff").pixels, pixels)


# --- pixel size and bar by maker ---
PIXELS = np.zeros((100, 80), np.uint8)


def _with_tag(path: Path, code: int, text: str) -> readers.Micrograph:
    tag = (code, 2, 0, text, True)
    return readers.read(_tiff(path, PIXELS, extratags=[tag], metadata=None))


def test_fei_pixel_size_and_bar(tmp_path: Path) -> None:
    text = "[Scan]\r\nPixelWidth=2.5e-009\r\nHorFieldsize=2e-7\r\n[Image]\r\nResolutionY=93\r\n"
    micrograph = _with_tag(tmp_path / "a.tif", 34682, text)
    assert micrograph.pixel_size == pytest.approx(2.5)
    assert micrograph.unit == "nm"
    assert micrograph.bar_height == 7


def test_tescan_pixel_size_and_bar(tmp_path: Path) -> None:
    text = "[MAIN]\nPixelSizeX=1.25e-8\nImageStripSize=12\n"
    micrograph = _with_tag(tmp_path / "a.tif", 50431, text)
    assert (micrograph.pixel_size, micrograph.bar_height) == (pytest.approx(12.5), 12)


def test_tescan_sidecar(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS)
    (tmp_path / "a-png.hdr").write_text("[MAIN]\nPixelSizeX=4e-9\n")
    assert readers.read(tmp_path / "a.png").pixel_size == pytest.approx(4)


def test_zeiss_takes_the_image_pixel_size_and_not_that_of_the_screen(tmp_path: Path) -> None:
    text = (
        "\r\n".join(["0"] * 10)
        + "\r\nAP_PIXEL_SIZE\r\nPixel Size = 9.9 nm\r\n"
        + "AP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 3.3 nm\r\n"
    )
    assert _with_tag(tmp_path / "a.tif", 34118, text).pixel_size == pytest.approx(3.3)


def test_jeol_sidecar(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.bmp"), PIXELS)
    (tmp_path / "a.txt").write_text(
        "$$SM_MICRON_BAR 50\n$$SM_MICRON_MARKER 1um\n$CM_FULL_SIZE 80 92\n"
    )
    micrograph = readers.read(tmp_path / "a.bmp")
    assert (micrograph.pixel_size, micrograph.bar_height) == (pytest.approx(20), 8)
    assert any("1 %" in note for note in micrograph.notes)


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_hitachi_sidecar(tmp_path: Path, encoding: str) -> None:
    cv2.imwrite(str(tmp_path / "a.bmp"), PIXELS)
    text = "[SemImageFile]\nPixelSize=6.5\nDataSize=80x90\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    micrograph = readers.read(tmp_path / "a.bmp")
    assert (micrograph.pixel_size, micrograph.bar_height) == (pytest.approx(6.5), 10)


def test_imagej_unit_counts_and_plain_resolution_does_not(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "ij.tif", PIXELS, imagej=True, resolution=(4, 4), metadata={"unit": "um"}
    )
    assert readers.read(tmp_path / "ij.tif").pixel_size == pytest.approx(250)
    plain = _tiff(tmp_path / "p.tif", PIXELS, resolution=(300, 300), resolutionunit=2)
    assert readers.read(plain).pixel_size is None


def test_ome_physical_size(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        PIXELS,
        metadata={"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"},
    )
    assert readers.read(tmp_path / "a.ome.tif").pixel_size == pytest.approx(250)


@pytest.mark.parametrize(("text", "nm"), [("12.5nm", 12.5), ("0.1 um", 100), ("2e-3µm", 2)])
def test_pixel_sizes_are_written_with_a_unit(text: str, nm: float) -> None:
    assert readers.parse_pixel_size(text) == pytest.approx(nm)


@pytest.mark.parametrize("text", ["12.5", "nm", "0nm", "-1nm", "1 parsec"])
def test_a_pixel_size_without_length_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no pixel size"):
        readers.parse_pixel_size(text)


@pytest.mark.parametrize("kind", list(synthetic.KINDS))
def test_a_drawn_bar_is_found_and_specimen_is_not_taken_for_one(kind: str) -> None:
    for seed in range(3):
        image, _ = synthetic.micrograph(kind, 256, 256, seed)
        assert readers.bar_height(image) == 0
        with_bar, mask = synthetic.micrograph(kind, 256, 256, seed, bar=True)
        assert readers.bar_height(with_bar) == with_bar.shape[0] - mask.shape[0]


def test_a_dark_flat_mount_is_no_bar() -> None:
    image, _ = synthetic.micrograph("two_phase", 256, 256, 0)
    image[-40:] = 3
    assert readers.bar_height(image) == 0


# --- bad files ---
def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + b"\0" * 900


def _bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 1000, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + b"\0" * 900
    )


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    good = cv2.imencode(".png", RAMP16)[1].tobytes()
    cases = {
        "empty.tif": (b"", "is empty"),
        "two.tif": (b"II", "no TIFF, PNG"),
        "text.png": (b"hello world, this is no image", "no TIFF, PNG"),
        "cut.png": (good[: len(good) // 3], "broken"),
        "huge.png": (_png_header(100_000, 100_000), "claims 100000 x 100000"),
        "huge.bmp": (_bmp_header(100_000, 100_000), "claims 100000 x 100000"),
        "cut.tif": (b"II*\0\x08\0\0\0\xff\xff", "broken"),
    }
    for name, (content, sentence) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=sentence) as error:
            readers.read(tmp_path / name)
        assert name in str(error.value)


def test_a_cut_off_tiff_is_refused(tmp_path: Path) -> None:
    whole = _tiff(tmp_path / "a.tif", RAMP16, compression="zlib").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="b.tif"):
        readers.read(tmp_path / "b.tif")


def test_a_huge_tiff_header_is_refused(tmp_path: Path) -> None:
    entries = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 100_000)]
    entries += [(279, 4, 1, 100)]
    body = struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + body + b"\0" * 800)
    with pytest.raises(UserError, match="claims 100000 x 100000"):
        readers.read(tmp_path / "a.tif")


def test_images_are_found_in_natural_order_without_junk(tmp_path: Path) -> None:
    names = ["b 10.png", "b 2.png", "ä #1 (x).y.tif", "sub/c.JPG"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for junk in (".hidden.png", "Thumbs.db", "notes.txt", "._b 2.png"):
        (tmp_path / junk).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "z.png").write_bytes(b"x")
    found = [str(p.relative_to(tmp_path)) for p in readers.find_images(tmp_path)]
    assert found == ["b 2.png", "b 10.png", "sub/c.JPG", "ä #1 (x).y.tif"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    os.symlink(tmp_path, tmp_path / "again")
    assert [p.name for p in readers.find_images(tmp_path)] == ["a.png"]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path, sentence in (
        (tmp_path, "no image in"),
        (tmp_path / "absent", "no folder"),
        (tmp_path / "notes.txt", "is a file"),
    ):
        with pytest.raises(UserError, match=sentence):
            readers.find_images(path)


# --- masks ---
def test_palette_masks_are_indices_and_not_colours(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 3]], np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "m.png")
    assert np.array_equal(readers.read_mask(tmp_path / "m.png"), indices)
    colormap = np.zeros((3, 256), np.uint16)
    colormap[0] = np.arange(256) * 257
    _tiff(tmp_path / "m.tif", indices, photometric="palette", colormap=colormap)
    assert np.array_equal(readers.read_mask(tmp_path / "m.tif"), indices)


def test_one_bit_masks_are_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "m.png")
    assert readers.read_mask(tmp_path / "m.png").tolist() == [[1, 0]]


def test_signed_masks_keep_their_sign(tmp_path: Path) -> None:
    mask = np.array([[-1, 0], [2, 3]], np.int64)
    assert np.array_equal(readers.read_mask(_tiff(tmp_path / "m.tif", mask)), mask)


def test_masks_of_fractions_are_refused(tmp_path: Path) -> None:
    path = _tiff(tmp_path / "m.tif", np.array([[0.5, 1.0]], np.float32))
    with pytest.raises(UserError, match="fractions"):
        readers.read_mask(path)
