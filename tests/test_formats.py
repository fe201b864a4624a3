"""Pictures are read as a viewer shows them: upright, in their colours, from the right page."""

from __future__ import annotations

import os
import socket
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from matssl.core.errors import UserError
from matssl.core.flags import declared
from matssl.data import readers
from matssl.data.preprocess import Preprocess
from matssl.data.readers import orientation, photometric, planes
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.phase_map.settings import PhaseMapSettings
from matssl.stages.pretrain.settings import PretrainSettings
from matssl.tools import doctor, probe, regions

GREY = cv2.GaussianBlur(np.random.default_rng(0).random((48, 64), dtype=np.float32), (0, 0), 2)
GREY = cv2.normalize(GREY, np.empty_like(GREY), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 16
COLOUR = np.repeat(GREY[..., None], 3, axis=2)

# The picture as a file of each orientation stores it (TIFF 6.0, p. 36: where row 0, column 0 lie).
STORED = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: np.rot90(GREY, 1),
    7: GREY[::-1, ::-1].T,
    8: np.rot90(GREY, -1),
}


def _tiff(path: Path, pixels: Any, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **{"metadata": None} | options)
    return path


def _off(path: Path, truth: Any = GREY) -> float:
    """Largest distance of what is read from what is right."""
    found = readers.read(path).pixels
    assert found.shape == truth.shape
    return float(np.abs(found.astype(float) - truth).max())


# --- A6: orientation ---
@pytest.mark.parametrize("turned", STORED)
def test_a_picture_of_every_orientation_is_read_upright(tmp_path: Path, turned: int) -> None:
    """A6, in JPEG, PNG, WebP and TIFF."""
    stored = np.ascontiguousarray(STORED[turned])
    exif = Image.Exif()
    exif[0x0112] = turned
    for suffix, options in ((".jpg", {"quality": 100}), (".png", {}), (".webp", {"lossless": 1})):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(stored).save(path, exif=exif.tobytes(), **options)
        assert _off(path) <= 2, suffix
        assert any("upright" in note for note in readers.read(path).notes) == (turned != 1)
    assert _off(_tiff(tmp_path / "a.tif", stored, extratags=[(274, 3, 1, turned, True)])) == 0
    Image.fromarray(stored).save(tmp_path / "mask.png", exif=exif.tobytes())
    assert np.array_equal(readers.read_mask(tmp_path / "mask.png"), GREY)


def test_a_mask_of_the_stored_orientation_is_refused_in_words(tmp_path: Path) -> None:
    """A6: the labels lie on the picture as it is stored, and the sentence says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(tmp_path / "a.jpg", exif=exif.tobytes())
    micrograph = readers.read(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="EXIF orientation 6.*turn the mask"):
        Preprocess().mask(np.zeros((64, 48), np.uint8), micrograph)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01", b"GIF89a"]
)
def test_a_damaged_exif_block_leaves_the_picture_as_it_is(block: bytes) -> None:
    """A6: metadata never cost the picture."""
    assert orientation.exif_orientation(block) == 1


def test_a_bar_of_the_metadata_is_none_of_a_turned_picture(tmp_path: Path) -> None:
    """A6: the bar lies below the picture as it was stored, which is another side of it."""
    tags = [(50431, 2, 0, "[MAIN]\nPixelSizeX=1e-8\nImageStripSize=8\n", True)]
    plain = _tiff(tmp_path / "a.tif", GREY, extratags=tags)
    turned = _tiff(tmp_path / "b.tif", GREY, extratags=[*tags, (274, 3, 1, 3, True)])
    assert [readers.read(p).bar_height for p in (plain, turned)] == [8, None]


# --- A7: kinds of colour ---
def _palette(levels: Any) -> Any:
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(levels)] = np.asarray(levels, np.uint16) * 257
    return table


def test_palettes_become_the_grey_levels_they_show(tmp_path: Path) -> None:
    """A7: identical, inverted and shuffled ramps; also tables filled to 8 of their 16 bits."""
    identity, inverse = np.arange(256), np.arange(256)[::-1]
    order = np.random.default_rng(1).permutation(256)
    shuffled = np.empty(256, int)
    shuffled[order] = identity
    cases = {"same": (GREY, identity), "inverse": (255 - GREY, inverse)}
    cases["shuffled"] = (order[GREY].astype(np.uint8), shuffled)
    for name, (stored, levels) in cases.items():
        path = tmp_path / f"{name}.tif"
        _tiff(path, stored, photometric="palette", colormap=_palette(levels))
        assert _off(path) == 0, name
    narrow = _palette(identity) // 257
    path = _tiff(tmp_path / "narrow.tif", GREY, photometric="palette", colormap=narrow)
    assert _off(path) == 0


def test_a_palette_of_colours_is_colour_and_in_a_mask_indices(tmp_path: Path) -> None:
    """A7: a picture shows the colours, a mask counts the classes."""
    table = np.zeros((3, 256), np.uint16)
    table[:, 1] = 200 * 257, 0, 0
    indices = np.eye(8, dtype=np.uint8)
    path = _tiff(tmp_path / "a.tif", indices, photometric="palette", colormap=table)
    # 0.299 * 200, ITU-R BT.601
    assert set(np.unique(readers.read(path).pixels)) == {0, 60}
    assert readers.read(path, color="rgb").pixels[0, 0].tolist() == [200, 0, 0]
    assert np.array_equal(readers.read_mask(path), indices)


def test_inks_of_a_print_are_colours(tmp_path: Path) -> None:
    """A7: CMYK in TIFF (8 and 16 bit, by channels, black ink alone) and in JPEG."""
    inks = np.concatenate([255 - COLOUR, np.zeros((48, 64, 1), np.uint8)], axis=2)
    black = np.concatenate([np.zeros_like(COLOUR), 255 - GREY[..., None]], axis=2)
    wide = inks.astype(np.uint16) * 257
    wide[..., 3] = 0
    assert _off(_tiff(tmp_path / "a.tif", inks, photometric="separated")) == 0
    assert _off(_tiff(tmp_path / "k.tif", black, photometric="separated")) == 0
    options = {"photometric": "separated", "planarconfig": "separate"}
    assert _off(_tiff(tmp_path / "p.tif", np.moveaxis(inks, 2, 0), **options)) == 0
    assert _off(_tiff(tmp_path / "w.tif", wide, photometric="separated"), GREY * 257.0) == 0
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert _off(tmp_path / "a.jpg") <= 3


def test_luminance_with_colour_differences_is_colour(tmp_path: Path) -> None:
    """A7: YCbCr as it is, by channels, and inside a JPEG."""
    stored = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    options: dict[str, Any] = {"photometric": "ycbcr", "subsampling": (1, 1)}
    assert _off(_tiff(tmp_path / "a.tif", stored, **options)) <= 1
    planar = np.moveaxis(stored, 2, 0)
    assert _off(_tiff(tmp_path / "b.tif", planar, planarconfig="separate", **options)) <= 1
    # Given R, G, B, tifffile writes YCbCr where it may thin the colours out.
    jpeg: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "subsampling": (2, 2)}
    assert _off(_tiff(tmp_path / "c.tif", COLOUR, **jpeg)) <= 12
    Image.fromarray(COLOUR).save(tmp_path / "d.tif", compression="jpeg")
    assert _off(tmp_path / "d.tif") <= 12


def test_conversion_of_luminance_follows_the_standard() -> None:
    """A7: pure red is (76, 85, 255) in YCbCr of full range (BT.601 by hand)."""
    red = np.array([[[76, 85, 255]]], np.uint8)
    pixels, _ = photometric.shown(red, photometric.Facts("YCBCR", 8), Path("a.tif"))
    assert np.abs(pixels[0, 0].astype(int) - [254, 0, 0]).max() <= 2


def test_kinds_of_colour_that_are_not_read_are_refused_by_name(tmp_path: Path) -> None:
    """A7: no number is made of what is not understood."""
    for kind, name in (("cielab", "CIELAB"), ("cfa", "CFA"), ("logl", "LOGL")):
        pixels = COLOUR if kind == "cielab" else GREY
        with pytest.raises(UserError, match=f"{name}, which is not read"):
            readers.read(_tiff(tmp_path / "a.tif", pixels, photometric=kind))
    with pytest.raises(UserError, match="complex64"):
        readers.read(_tiff(tmp_path / "b.tif", GREY.astype(np.complex64)))
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    five = _tiff(tmp_path / "c.tif", np.stack([GREY] * 5, 2), **options)
    with pytest.raises(UserError, match="5 channels"):
        readers.read(five)


def test_channels_one_after_the_other_are_channels(tmp_path: Path) -> None:
    """A7: planar grey with alpha had "192 channels"."""
    options = {"planarconfig": "separate", "photometric": "minisblack"}
    assert _off(_tiff(tmp_path / "a.tif", np.stack([GREY, GREY]), **options)) == 0
    rgb = {"planarconfig": "separate", "photometric": "rgb", "extrasamples": ["unassalpha"]}
    assert _off(_tiff(tmp_path / "b.tif", np.stack([DEEP] * 4), **rgb), DEEP) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pages_that_tifffile_saved_as_colours_are_asked_for(tmp_path: Path) -> None:
    """A stack of 3 or 4 pages became one picture, the mean of its pages, and nothing said so."""
    pages = np.stack([np.roll(GREY, 7 * n, 0) for n in range(4)])
    with pytest.raises(UserError, match="these are 4 pages of a stack.*minisblack"):
        readers.read(_tiff(tmp_path / "four.tif", pages))
    (note, *_) = readers.read(_tiff(tmp_path / "three.tif", pages[:3])).notes
    assert note.startswith("planes read as colours; if they are 3 pages of a stack")
    # A transparency is none or all but at edges; equal planes are grey, whoever wrote them.
    opaque = np.concatenate([pages[:3], np.full_like(pages[:1], 255)])
    assert "planes read as colours" in readers.read(_tiff(tmp_path / "a.tif", opaque)).notes[0]
    assert readers.read(_tiff(tmp_path / "b.tif", np.stack([GREY] * 4))).notes == (
        "alpha channel dropped",
    )
    told = {"photometric": "minisblack"}
    assert "page 1 of 4" in readers.read(_tiff(tmp_path / "c.tif", pages, **told)).notes[0]


@pytest.mark.parametrize("packed", [False, True])
def test_12_bit_levels_whose_zero_is_white_stay_12_bit(tmp_path: Path, packed: bool) -> None:
    """A7: they were turned into 16 bit near the top."""
    options: dict[str, Any] = {"bitspersample": 12} if packed else {}
    path = _tiff(tmp_path / "a.tif", 4095 - DEEP, photometric="miniswhite", **options)
    assert _off(path, DEEP) == 0
    assert readers.read(path).bits == 12


def test_few_bits_span_the_whole_range(tmp_path: Path) -> None:
    """A7: of 4 bits 15 is white, of 1 bit 1; zero is white where the file says so."""
    four = _tiff(tmp_path / "a.tif", GREY >> 4, photometric="minisblack", bitspersample=4)
    assert _off(four, (GREY >> 4) * 17) == 0
    for kind, stored in (("minisblack", GREY > 99), ("miniswhite", GREY <= 99)):
        path = _tiff(tmp_path / f"{kind}.tif", stored, photometric=kind)
        assert _off(path, (GREY > 99) * 255) == 0


def test_bits_that_the_file_states_are_believed(tmp_path: Path) -> None:
    """A7: a dark 12-bit picture is one of 12 bits."""
    path = _tiff(tmp_path / "a.tif", DEEP // 8, photometric="minisblack", bitspersample=12)
    assert readers.read(path).bits == 12


@pytest.mark.parametrize("layout", [{"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}])
def test_every_layout_of_a_tiff_gives_the_same_levels(tmp_path: Path, layout: Any) -> None:
    assert _off(_tiff(tmp_path / "a.tif", DEEP, **layout), DEEP) == 0


def test_a_16_bit_png_with_alpha_keeps_its_levels(tmp_path: Path) -> None:
    pixels = np.dstack([DEEP * 16] * 3 + [np.full_like(DEEP, 65_535)])
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert _off(tmp_path / "a.png", DEEP * 16) == 0


# --- A8: pages ---
def test_the_largest_and_deepest_page_is_read_and_said(tmp_path: Path) -> None:
    """A8: a preview, or an overlay of 8 bits, in front of the picture."""
    for name, first, word in (("a", GREY[::4, ::4], "largest"), ("b", COLOUR, "deepest")):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(first, photometric="rgb" if first.ndim == 3 else "minisblack")
            file.write(DEEP)
        micrograph = readers.read(tmp_path / f"{name}.tif")
        assert np.array_equal(micrograph.pixels, DEEP)
        assert micrograph.notes == (f"page 2 of 2 is read, the {word}",)


def test_a_picture_inside_a_page_is_found(tmp_path: Path) -> None:
    """A8: raw cameras write a preview whose SubIFD is the picture."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY[::4, ::4], subifds=1)
        file.write(DEEP)
    assert _off(tmp_path / "a.tif", DEEP) == 0


def test_a_page_is_chosen_by_its_number(tmp_path: Path) -> None:
    """A8: --page counts from 1, and a file without that page is refused."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY[::4, ::4])
        file.write(DEEP)
    record = Preprocess(page=1)
    assert record.read(path).pixels.shape == (12, 16)
    assert record.read(path).notes == ("page 1 of 2 is read",)
    cv2.imwrite(str(tmp_path / "b.png"), GREY)
    assert record.read(tmp_path / "b.png").pixels.shape == (48, 64)
    for name in ("a.tif", "b.png"):
        with pytest.raises(UserError, match=r"page 3 was asked for \(--page\)"):
            Preprocess(page=3).read(tmp_path / name)


def test_the_flag_reaches_what_every_command_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A8: doctor as a user sees it, the records of both trainings, the flags of the others."""
    for number in range(2):
        with tifffile.TiffWriter(tmp_path / f"a{number}.tif") as file:
            file.write(GREY[::4, ::4])
            file.write(DEEP)
    doctor.main([str(tmp_path)])
    assert "64 x 48 (2)" in capsys.readouterr().out
    doctor.main([str(tmp_path), "--page", "1"])
    said = capsys.readouterr().out
    assert "16 x 12 (2)" in said and "page 1 of 2 is read: 2 files" in said
    for settings in (PretrainSettings(page=2), FinetuneSettings(page=2)):
        assert settings.record(1).page == 2
    for kind in (EvaluateSettings, PhaseMapSettings, regions.SETTINGS, probe.SETTINGS):
        assert "page" in declared(kind)


def test_a_record_of_before_pages_is_the_same_and_one_with_a_page_keeps_it() -> None:
    """A8: the page is in the checkpoint; caches and checkpoints of before stay valid."""
    assert "page" not in Preprocess().to_dict()
    assert Preprocess.from_dict(Preprocess(page=2).to_dict()).page == 2


def test_a_chain_of_pages_that_leads_into_the_pixels_ends_at_once(tmp_path: Path) -> None:
    """D10: a page of 503 tags, the rest of them pixels, kept tifffile busy for minutes."""
    path = _tiff(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (400, 300), "u1"))
    data = bytearray(path.read_bytes())
    (place,) = struct.unpack("<I", data[4:8])
    data[place : place + 2] = struct.pack("<H", 503)
    path.write_bytes(data)
    done = threading.Event()

    def read() -> None:
        try:
            readers.read(path)
        except UserError:
            pass
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(20)


# --- A9: signed numbers ---
def test_signed_grey_levels_get_no_offset_by_file(tmp_path: Path) -> None:
    """A9: the same grey is the same number beside a file that has a negative one."""
    plain = DEEP.astype(np.int16)
    dark = plain.copy()
    dark[0, 0] = -5
    first = readers.read(_tiff(tmp_path / "a.tif", plain))
    second = readers.read(_tiff(tmp_path / "b.tif", dark))
    assert first.pixels.dtype == np.uint16
    assert second.pixels.dtype == np.float32
    assert np.array_equal(first.pixels[1:], second.pixels[1:])
    assert second.pixels[0, 0] == -5
    assert any("negative" in note for note in second.notes)
    # The full range of both is that of 12 bits, not of 0 to 1.
    record = Preprocess(window="dtype")
    assert np.array_equal(record.plane(first)[1:], record.plane(second)[1:])


def test_wide_numbers_keep_their_values_and_full_range(tmp_path: Path) -> None:
    """A9: uint32 beyond 16 bits becomes float32 whose full range is that of its bits."""
    wide = DEEP.astype(np.uint32) * 1000
    micrograph = readers.read(_tiff(tmp_path / "a.tif", wide))
    assert np.array_equal(micrograph.pixels, wide)
    assert micrograph.bits == 22
    assert Preprocess(window="dtype").plane(micrograph).max() <= 1
    huge = np.array([[0, 2**32 - 1]], np.uint32)
    pixels, bits, _ = planes.plane(huge, "gray", "a")
    # 32 bits are the mark of floating-point levels; no level is lost by one bit more.
    assert bits == 33 and pixels.dtype == np.float32


# --- D3: damage ---
def _jpeg() -> bytes:
    large = cv2.resize(GREY, (500, 400), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def test_a_jpeg_that_the_library_had_to_guess_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """D3: zeros in the middle; libjpeg says so, in our sentence and not beside it."""
    data = bytearray(_jpeg())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(UserError, match="a.jpg is damaged: Corrupt JPEG data"):
        readers.read(tmp_path / "a.jpg")
    assert capfd.readouterr().err == ""


def test_bytes_too_many_after_a_jpeg_are_said_and_the_picture_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """D3: many cameras write them."""
    data = _jpeg()
    (tmp_path / "a.jpg").write_bytes(data[:-2] + bytes(100) + data[-2:])
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    micrograph = readers.read(tmp_path / "a.jpg")
    assert np.array_equal(micrograph.pixels, whole)
    assert any("extraneous bytes" in note for note in micrograph.notes)
    assert capfd.readouterr().err == ""


def test_what_others_print_while_a_jpeg_is_decoded_is_not_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3: only what the library says of the picture is taken off the screen."""
    (tmp_path / "a.jpg").write_bytes(_jpeg())
    decode = cv2.imdecode

    def noisy(*words: Any) -> Any:
        os.write(2, b"progress of another thread\n")
        return decode(*words)

    monkeypatch.setattr(cv2, "imdecode", noisy)
    readers.read(tmp_path / "a.jpg")
    assert capfd.readouterr().err == "progress of another thread\n"


def test_a_png_whose_checksum_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """D3: one flipped bit, a file that is cut, one without an end, one without a beginning."""
    whole = cv2.imencode(".png", GREY)[1].tobytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"IDAT") + 100] ^= 4
    headless = bytearray(whole)
    headless[12:16] = b"tEXt"
    body = bytes(headless[12:29])
    headless[29:33] = struct.pack(">I", zlib.crc32(body))
    for data in (bytes(flipped), whole[:-12], whole[: len(whole) // 2], bytes(headless)):
        (tmp_path / "a.png").write_bytes(data)
        for reader in (readers.read, readers.read_mask):
            with pytest.raises(UserError, match="a.png is (damaged|broken)") as error:
                reader(tmp_path / "a.png")
            assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def _png(data: bytes, height: int) -> bytes:
    """A PNG file of compressed rows whose checksums all fit."""
    head = struct.pack(">IIBBBBB", GREY.shape[1], height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_damage_behind_fitting_checksums_is_told_in_our_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """D3: a filter that does not exist, a bad stream, rows too few; rows too many are noted."""
    rows = [b"\0" + row.tobytes() for row in GREY]
    filtered = zlib.compress(b"".join([*rows[:9], b"\x09" + rows[9][1:], *rows[10:]]))
    whole = zlib.compress(b"".join(rows))
    spoiled = whole[: len(whole) // 2] + bytes(9) + whole[len(whole) // 2 + 9 :]
    short = zlib.compress(b"".join(rows[:9]))
    for data in (filtered, spoiled, short):
        (tmp_path / "a.png").write_bytes(_png(data, 48))
        with pytest.raises(UserError, match=r"a\.png is broken: ") as error:
            readers.read(tmp_path / "a.png")
        assert "libpng" not in str(error.value)
    (tmp_path / "a.png").write_bytes(_png(whole, 20))
    micrograph = readers.read(tmp_path / "a.png")
    assert np.array_equal(micrograph.pixels, GREY[:20])
    assert micrograph.notes == ("the PNG library says: IDAT: Too much image data",)
    assert capfd.readouterr().err == ""


def test_what_stands_beside_the_pixels_of_a_png_makes_nobody_print(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """D3: a bad colour profile made libpng print; the picture is whole."""
    Image.fromarray(GREY).save(tmp_path / "a.png", icc_profile=b"no profile")
    assert _off(tmp_path / "a.png") == 0
    assert capfd.readouterr().err == ""


def test_a_tiff_that_lacks_a_strip_is_refused(tmp_path: Path) -> None:
    """D3: tifffile gives zeros for what is absent."""
    path = _tiff(tmp_path / "a.tif", GREY, rowsperstrip=8, compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["StripByteCounts"].valueoffset
    data = bytearray(path.read_bytes())
    data[place : place + 2] = bytes(2)
    path.write_bytes(data)
    with pytest.raises(UserError, match="1 of 6 parts of its picture are not in the file"):
        readers.read(path)


def test_a_palette_png_above_178_megapixels_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3: Pillow's bound on a decompression bomb is asked only where nothing else judges."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    indices = (GREY > 99).astype(np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.png")
    Image.fromarray(GREY > 99).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert np.array_equal(readers.read_mask(tmp_path / name), indices)


# --- D10, D11 ---
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """D10: of 150 mutated files none ends in another exception than a sentence of ours."""
    rng = np.random.default_rng(7)
    makers = [
        _tiff(tmp_path / "0.tif", DEEP, compression="zlib", predictor=True),
        _tiff(tmp_path / "1.tif", GREY, photometric="palette", colormap=_palette(range(256))),
        _tiff(tmp_path / "2.tif", np.stack([GREY, GREY]), photometric="minisblack"),
        tmp_path / "3.png",
        tmp_path / "4.jpg",
    ]
    cv2.imwrite(str(makers[3]), GREY)
    makers[4].write_bytes(_jpeg())
    refused = 0
    for number in range(150):
        source = makers[number % len(makers)]
        data = bytearray(source.read_bytes())
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(min(len(data), 500)))] = int(rng.integers(256))
        if number % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        path = tmp_path / f"mutant{source.suffix}"
        path.write_bytes(data)
        for reader in (readers.read, readers.read_mask):
            try:
                reader(path)
            except UserError as error:
                refused += 1
                assert len(str(error)) < 400 and "\n" not in str(error)
    assert refused > 100


def test_a_volume_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """D10: a damaged depth of 4000 million slices was decoded slice by slice."""
    volume = np.stack([GREY] * 4)
    path = _tiff(tmp_path / "a.tif", volume, volumetric=True, photometric="minisblack")
    with pytest.raises(UserError, match="3 dimensions"):
        readers.read(path)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["ImageDepth"].valueoffset
    data = bytearray(path.read_bytes())
    data[place : place + 4] = bytes([255, 255, 255, 127])
    path.write_bytes(data)
    with pytest.raises(UserError):
        readers.read(path)


def test_pipes_devices_and_sockets_are_refused_at_once(tmp_path: Path) -> None:
    """D11: nothing waits for a writer, nothing reads without end."""
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "device.tif")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        names = {"pipe.png": "a pipe", "device.tif": "a device", "s.jpg": "a socket"}
        for name, kind in (names | {"folder.png": "a folder"}).items():
            for reader in (readers.read, readers.read_mask, readers.header):
                with pytest.raises(UserError, match=f"{name} is {kind}, no image file"):
                    reader(tmp_path / name)


def test_a_pipe_beside_a_picture_is_no_description_of_it(tmp_path: Path) -> None:
    """D11: the text files of microscopes are looked for beside every picture."""
    cv2.imwrite(str(tmp_path / "a.png"), GREY)
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "a-png.hdr")
    assert readers.read(tmp_path / "a.png").pixel_size is None


def test_a_picture_of_numbers_that_no_pixel_can_have_is_refused(tmp_path: Path) -> None:
    """All became infinite, and the smallest of the few others took their place."""
    path = _tiff(tmp_path / "a.tif", np.arange(12.0).reshape(3, 4) * 1e300)
    with pytest.raises(UserError, match="beyond 3.4e38 in 11 of 12 pixels"):
        readers.read(path)


def test_masks_of_numbers_that_are_no_whole_ones_are_refused(tmp_path: Path) -> None:
    """D10: infinite, NaN and astronomically large class numbers."""
    for value in (np.inf, np.nan, 1e300, 0.5):
        path = _tiff(tmp_path / "a.tif", np.array([[0.0, value]]))
        with pytest.raises(UserError, match="fractions|NaN"):
            readers.read_mask(path)
