"""Pixel sizes of metadata: every spelling of a length, or unknown, never another length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from matssl.data import readers
from matssl.data.preprocess import Preprocess
from matssl.data.readers import units

PIXELS = np.zeros((100, 80), np.uint8)


def _read(path: Path, pixels: Any = PIXELS, **options: Any) -> readers.Micrograph:
    tifffile.imwrite(path, pixels, **{"metadata": None} | options)
    return readers.read(path)


def _imagej(path: Path, lines: str, resolution: Any = (4, 4), **options: Any) -> Any:
    text = f"ImageJ=1.54f\n{lines}\n".encode(options.pop("encoding", "latin-1"))
    return _read(path, description=text, resolution=resolution, resolutionunit=1, **options)


def _ome(path: Path, pixels: str, head: str = "", **options: Any) -> Any:
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>{head}'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f"{pixels}</Image></OME>"
    )
    return _read(path, description=text.encode("utf-8"), **options)


SPELLINGS = {
    "um": ["um", "µm", "μm", "micron", "microns", "micrometer", "Micrometers", "micrometre", "UM"],
    "nm": ["nm", "nanometer", "nanometres", "NM"],
    "mm": ["mm", "millimeter"],
    "pm": ["pm", "picometer"],
    "å": ["Å", "å", "A", "Angstrom", "ångström", "angstroms"],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_units_are_known_however_they_are_spelled(name: str) -> None:
    """A11: also as HTML, as an escape, and as UTF-8 that was read as Latin-1."""
    for spelling in SPELLINGS[name]:
        assert units.unit(spelling) == name, spelling
    for spelling in (r"\u00B5m", r"\u00b5m", "&#181;m", "&micro;m", "Âµm", "Î¼m", '"µm"'):
        assert units.unit(spelling) == "um", spelling


@pytest.mark.parametrize("word", ["pixel", "pixels", "reference frame", "", "parsec", "s", "dpi"])
def test_other_words_are_no_unit(word: str) -> None:
    """A11: unknown, not guessed."""
    assert units.unit(word) is None


# --- A4: bars ---
def test_imagej_and_ome_know_nothing_of_bars(tmp_path: Path) -> None:
    """A4: a picture saved by them is as likely to have a bar as any; its pixels tell."""
    assert _imagej(tmp_path / "a.tif", "unit=nm").bar_height is None
    ome = _ome(tmp_path / "b.tif", '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="1"/>')
    assert ome.pixel_size == 1000 and ome.bar_height is None


def test_fei_without_the_rows_of_the_scan_knows_nothing_of_a_bar(tmp_path: Path) -> None:
    """A4: only ResolutionY says how many rows are picture."""
    tags = [(34682, 2, 0, "[Scan]\r\nPixelWidth=2.5e-009\r\n[Image]\r\nResolutionX=80\r\n", True)]
    assert _read(tmp_path / "a.tif", extratags=tags).bar_height is None
    tags = [(34682, 2, 0, "[Scan]\r\nPixelWidth=2.5e-009\r\n[Image]\r\nResolutionY=100\r\n", True)]
    assert _read(tmp_path / "b.tif", extratags=tags).bar_height == 0


FEI_XML = """<?xml version="1.0"?><Metadata><BinaryResult><PixelSize>
<X unit="m" unitPrefixPower="{power}">{x}</X><Y unit="m" unitPrefixPower="{power}">{x}</Y>
</PixelSize></BinaryResult></Metadata>"""


@pytest.mark.parametrize(("power", "x"), [(0, "2.5E-09"), (-9, "2.5"), (0, "2,5E-09")])
def test_the_xml_of_newer_fei_files(tmp_path: Path, power: int, x: str) -> None:
    """A11: with powers of ten of their own."""
    tags = [(34683, 2, 0, FEI_XML.format(power=power, x=x), True)]
    assert _read(tmp_path / "a.tif", extratags=tags).pixel_size == pytest.approx(2.5)


# --- A10: pixels that are not square ---
def test_the_area_of_a_pixel_that_is_not_square_is_right_and_both_sides_are_said(
    tmp_path: Path,
) -> None:
    """A10, by every way of telling two sides: 10 x 40 nm is the area of 20 x 20 nm."""
    fei = "[Scan]\r\nPixelWidth=1e-8\r\nPixelHeight=4e-8\r\n[Image]\r\nResolutionY=93\r\n"
    tescan = "[MAIN]\nPixelSizeX=1e-8\nPixelSizeY=4e-8\n"
    both = '<Pixels SizeX="80" SizeY="100" PhysicalSizeX=".01" PhysicalSizeY=".04"/>'
    found = [
        _read(tmp_path / "a.tif", extratags=[(34682, 2, 0, fei, True)]),
        _read(tmp_path / "b.tif", extratags=[(50431, 2, 0, tescan, True)]),
        _ome(tmp_path / "c.tif", both),
        _imagej(tmp_path / "d.tif", "unit=nm", (0.1, 0.025)),
        _imagej(tmp_path / "e.tif", "unit=nm\nyunit=um", (0.1, 25)),
    ]
    for micrograph in found:
        assert micrograph.pixel_size == pytest.approx(20), micrograph.source
        assert any("10 x 40 nm" in note for note in micrograph.notes), micrograph.source


def test_sides_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    """A10: 1 in 1000 is a rounded number, no other pixel."""
    micrograph = _imagej(tmp_path / "a.tif", "unit=nm", (0.1, 0.1001))
    assert micrograph.pixel_size == pytest.approx(10)
    assert micrograph.notes == ()


# --- A11: calibration ---
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_imagej_units_of_every_code_page(tmp_path: Path, encoding: str) -> None:
    """A11: 4 pixels a µm are 250 nm."""
    found = [
        _imagej(tmp_path / f"{i}.tif", f"images=1\nunit={unit}", encoding=encoding)
        for i, unit in enumerate(("µm", r"\u00B5m", "micron", "Micrometer"))
    ]
    assert [m.pixel_size for m in found] == pytest.approx([250] * 4)


@pytest.mark.parametrize("unit", ["inch", "inches", "cm", "centimeter"])
def test_a_print_resolution_in_imagej_is_no_pixel_size_and_said(tmp_path: Path, unit: str) -> None:
    """A11: 72 pixels an inch gave 352778 nm."""
    micrograph = _imagej(tmp_path / "a.tif", f"unit={unit}", (72, 72))
    assert micrograph.pixel_size is None
    assert any("printing" in note for note in micrograph.notes)


def test_pixels_and_zero_resolutions_are_no_pixel_size(tmp_path: Path) -> None:
    """A11."""
    assert _imagej(tmp_path / "a.tif", "unit=pixel").pixel_size is None
    assert _imagej(tmp_path / "b.tif", "unit=nm", ((0, 1), (0, 1))).pixel_size is None


OME = {
    "<Pixels SizeX='80' SizeY='100' PhysicalSizeX='2' PhysicalSizeXUnit='nm'/>": 2,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX = "2" PhysicalSizeXUnit = "nm"/>': 2,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2"/>': 2000,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2" PhysicalSizeXUnit="&#181;m"/>': 2000,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2" PhysicalSizeXUnit="micrometer"/>': 2000,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2" PhysicalSizeXUnit="Å"/>': 0.2,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="0,5"/>': 500,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2" PhysicalSizeXUnit="pixel"/>': None,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2" PhysicalSizeXUnit="reference frame"/>': None,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="0"/>': None,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="-3"/>': None,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="NaN"/>': None,
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2" Broken/>': None,
    # The preview stands first, with pixels of its own size.
    '<Pixels SizeX="8" SizeY="10" PhysicalSizeX="20"/></Image><Image ID="Image:1">'
    '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="2"/>': 2000,
}


@pytest.mark.parametrize("pixels", OME)
def test_ome_is_read_as_xml(tmp_path: Path, pixels: str) -> None:
    """A11: a unit in single quotes was overlooked, and the size 1000 times too large."""
    nm = OME[pixels]
    size = _ome(tmp_path / "a.ome.tif", pixels).pixel_size
    assert size == (None if nm is None else pytest.approx(nm))


def test_entities_of_xml_are_not_expanded(tmp_path: Path) -> None:
    """A11, D7: a description that multiplies itself is no description."""
    head = '<!DOCTYPE a [<!ENTITY b "2">]>'
    pixels = '<Pixels SizeX="80" SizeY="100" PhysicalSizeX="&b;"/>'
    assert _ome(tmp_path / "a.ome.tif", pixels, head).pixel_size is None


def test_decimal_commas_of_the_makers(tmp_path: Path) -> None:
    """A11: a German microscope writes 3,3 nm."""
    zeiss = "\r\n".join(["0"] * 10) + "\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 3,3 {}\r\n"
    fei = "[Scan]\r\nPixelWidth=2,5e-009\r\n[Image]\r\nResolutionY=93\r\n"
    tescan = "[MAIN]\nPixelSizeX=1,25e-8\n"
    for number, (code, text, nm) in enumerate(
        [
            (34118, zeiss.format("nm"), 3.3),
            (34118, zeiss.format("µm"), 3300),
            (34682, fei, 2.5),
            (50431, tescan, 12.5),
        ]
    ):
        tag = (code, 1, len(text.encode("latin-1")), text.encode("latin-1"), True)
        path = tmp_path / f"{number}.tif"
        assert _read(path, extratags=[tag]).pixel_size == pytest.approx(nm), text


@pytest.mark.parametrize(
    ("marker", "encoding"),
    [("1um", "ascii"), ("1µm", "latin-1"), ("1µm", "utf-8"), ("1 micrometer", "ascii")]
    + [("1000nm", "utf-16"), ("1μm", "cp932"), ("1,0 µm", "cp1252")],
)
def test_jeol_texts_in_capitals_and_any_code_page(
    tmp_path: Path, marker: str, encoding: str
) -> None:
    """A11: 1 µm of 50 pixels is 20 nm, whatever the system that wrote it."""
    cv2.imwrite(str(tmp_path / "A.BMP"), PIXELS)
    text = f"$$SM_MICRON_BAR 50\r\n$$SM_MICRON_MARKER {marker}\r\n$CM_FULL_SIZE 80 92\r\n"
    (tmp_path / "A.TXT").write_bytes(text.encode(encoding))
    micrograph = readers.read(tmp_path / "A.BMP")
    assert micrograph.pixel_size == pytest.approx(20)
    assert micrograph.bar_height == 8


def test_a_tescan_text_in_capitals(tmp_path: Path) -> None:
    """A11."""
    cv2.imwrite(str(tmp_path / "A.PNG"), PIXELS)
    (tmp_path / "A-PNG.HDR").write_text("[MAIN]\nPixelSizeX=4e-9\n")
    assert readers.read(tmp_path / "A.PNG").pixel_size == pytest.approx(4)


# --- D9: side-car texts ---
@pytest.mark.parametrize(
    "number", ["1.2.3", "-4.5", "0", "", "nan", "inf", "1e999", "--", "1e", "6.5.nm", "1" * 400]
)
def test_side_car_numbers_that_are_none_give_no_pixel_size(tmp_path: Path, number: str) -> None:
    """D9: 1.2.3 raised; -4.5 and 0 became pixel sizes."""
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS)
    texts = {
        "a.txt": (
            f"[SemImageFile]\nPixelSize={number}\nDataSize=80x90\n",
            f"$$SM_MICRON_BAR 50\n$$SM_MICRON_MARKER {number}um\n$CM_FULL_SIZE 80 x\n",
            f"$$SM_MICRON_BAR {number}\n$$SM_MICRON_MARKER 1um\n$CM_FULL_SIZE 80 92\n",
        ),
        "a-png.hdr": (f"[MAIN]\nPixelSizeX={number}\nImageStripSize={number}\n",),
    }
    for name, contents in texts.items():
        for content in contents:
            (tmp_path / name).write_text(content)
            micrograph = readers.read(tmp_path / "a.png")
            assert micrograph.pixel_size is None, content
            Preprocess(crop_bottom="auto").kept_rows(micrograph)
        (tmp_path / name).unlink()


def test_impossible_pixel_sizes_are_left_out_and_said(tmp_path: Path) -> None:
    """D9: metres where nanometres were meant are no pixel size."""
    tags = [(50431, 2, 0, "[MAIN]\nPixelSizeX=12.5\n", True)]
    micrograph = _read(tmp_path / "a.tif", extratags=tags)
    assert micrograph.pixel_size is None
    assert any("impossible" in note for note in micrograph.notes)


def test_a_bar_of_more_than_half_the_picture_is_none(tmp_path: Path) -> None:
    """D9: 99 of 100 rows were cut off, and 100 were an error in words about a flag."""
    for rows in (99, 100, 5000):
        tags = [(50431, 2, 0, f"[MAIN]\nPixelSizeX=1e-9\nImageStripSize={rows}\n", True)]
        assert _read(tmp_path / "a.tif", extratags=tags).bar_height is None


def test_a_text_too_long_to_describe_a_picture_is_not_read(tmp_path: Path) -> None:
    """D9."""
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS)
    text = "[MAIN]\nPixelSizeX=4e-9\n" + "x" * (1 << 20)
    (tmp_path / "a-png.hdr").write_text(text)
    assert readers.read(tmp_path / "a.png").pixel_size is None
