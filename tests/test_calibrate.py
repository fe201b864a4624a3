"""A scale by hand: the drawn scale bar measured, pixel sizes put into specimens.csv."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import drawn_bars
from matssl.core.errors import UserError
from matssl.data import layouts, synthetic
from matssl.data.preprocess import Preprocess
from matssl.data.readers import scale_bar
from matssl.data.specimens.sizes import write_pixel_sizes
from matssl.data.specimens.table import read_table
from matssl.tools import calibrate


def _image(path: Path, length: int, seed: int = 0) -> Path:
    """Write a picture 320 x 280 whose bar of 40 rows holds a scale bar of this length."""
    image, _ = synthetic.micrograph("cracks", 280, 320, seed)
    image[240:] = 0
    image[240] = 255
    cv2.putText(image, "100 um", (12, 258), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    if length:
        image[265:269, 12 : 12 + length] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def _text(path: Path) -> list[str]:
    return path.read_text("utf-8-sig").splitlines()


# --- the drawn scale bar ---
@pytest.mark.parametrize("style", list(drawn_bars.STYLES))
def test_the_scale_bar_of_each_maker_is_measured(style: str) -> None:
    """Filled, with ticks at the ends, in ticks alone; in JPEG too."""
    for seed in range(3):
        g = np.random.default_rng(seed)
        specimen, _ = synthetic.micrograph("cracks", 200, 640, seed)
        bar, length = drawn_bars.STYLES[style](48, 640, g)
        whole = np.concatenate([specimen, bar])
        data = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
        for pixels in (whole, cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)):
            found = scale_bar.find(pixels)
            assert found is not None
            assert found.in_bar
            assert found.pixels == pytest.approx(length, abs=1.5)


def test_a_scale_bar_on_the_specimen_is_measured_and_none_is_seen_without() -> None:
    image, _ = synthetic.micrograph("two_phase", 240, 320, 2)
    assert scale_bar.find(np.clip(image, 6, 249)) is None
    drawn = np.clip(image, 6, 249)
    drawn[210:215, 230:301] = 255
    found = scale_bar.find(drawn)
    assert found is not None
    assert (found.left, found.right, found.row, found.in_bar) == (230, 301, 212, False)


def test_a_line_whose_middle_is_free_is_measured_from_end_to_end() -> None:
    """FEI's newer bars: a tick, half a line, the length, half a line, a tick."""
    image, _ = synthetic.micrograph("cracks", 200, 400, 2)
    bar = np.zeros((40, 400), np.uint8)
    for left, tick in ((200, 200), (320, 359)):
        bar[20, left : left + 40] = 255
        bar[15:26, tick] = 255
    cv2.putText(bar, "5 um", (250, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    cv2.putText(bar, "HV 20 kV", (10, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    found = scale_bar.find(np.concatenate([image, bar]))
    assert found is not None
    assert (found.left, found.right) == (200, 360)


# --- the table ---
def test_pixel_sizes_keep_all_else_that_the_table_says(tmp_path: Path) -> None:
    """Semicolons, other columns, notes with commas, lines of other images, a decimal comma."""
    images = [_image(tmp_path / f"{name}.png", 0) for name in "abc"]
    table = tmp_path / "specimens.csv"
    table.write_text(
        "Bild;Probe;Heat treatment;Pixel [nm]\r\na.png;S1;2 h, 900 C;12,5\r\nc.png;S2;as cast;\r\n"
        "b.png;S1;'=x;3\r\n",
        encoding="latin-1",
    )
    written = write_pixel_sizes(table, {images[0]: 20.0, images[2]: 0.25})
    assert (written.added, written.changed, written.others) == (0, 1, 1)
    assert _text(table) == [
        "Bild;Probe;Heat treatment;Pixel [nm]",
        "a.png;S1;2 h, 900 C;20nm",
        "c.png;S2;as cast;0.25nm",
        "b.png;S1;'=x;3",
    ]
    sizes = {row.image: row.pixel_size for row in read_table(table).rows}
    assert sizes == {"a.png": 20, "c.png": 0.25, "b.png": 3}


def test_a_table_without_pixel_sizes_gets_the_column_and_lines(tmp_path: Path) -> None:
    images = [_image(tmp_path / "S1" / f"{name}.png", 0) for name in "ab"]
    table = tmp_path / "specimens.csv"
    table.write_text("image,field\nS1/b.png,7\n")
    written = write_pixel_sizes(table, dict.fromkeys(images, 10.0))
    assert (written.added, written.changed) == (1, 0)
    assert _text(table) == ["image,field,pixel_size", "S1/b.png,7,10nm", "S1/a.png,,10nm"]


def test_a_table_of_specimens_gets_no_line_without_one(tmp_path: Path) -> None:
    images = [_image(tmp_path / f"{name}.png", 0) for name in "ab"]
    table = tmp_path / "specimens.csv"
    table.write_text("image,specimen\na.png,S1\n")
    with pytest.raises(UserError, match=r"no specimen for 1 image \(first: b.png\)"):
        write_pixel_sizes(table, dict.fromkeys(images, 10.0))
    assert _text(table) == ["image,specimen", "a.png,S1"]


# --- the command ---
def test_pixels_and_length_give_the_pixel_size_of_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    for number in range(3):
        _image(folder / f"a_{number}.png", 0)
    assert calibrate.main([str(folder), "--length", "100um", "--pixels", "243"]) == 0
    assert "411.52 nm (3 images)" in capsys.readouterr().out
    dataset = layouts.find(folder, need_masks=False)
    record = Preprocess().told(dataset.grouping.pixel_sizes)
    assert record.read(folder / "a_1.png").pixel_size == pytest.approx(1e5 / 243)


def test_what_the_table_said_before_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old and new pixel size stand side by side, and a table beside the images stays the one."""
    folder = tmp_path / "set"
    for number in range(3):
        _image(folder / "images" / f"a_{number}.png", 0)
    table = folder / "images" / "specimens.csv"
    table.write_text("image,specimen,pixel_size\na_0,A,12.5nm\na_1,A,\na_2,B,10nm\n")
    assert calibrate.main([str(folder), "--length", "1um", "--pixels", "100"]) == 0
    said = capsys.readouterr().out
    assert "changed      12.5 nm -> 10 nm (1 image: a_0.png)" in said
    assert said.count("changed") == 1 and "0 new, 1 had another pixel size" in said
    assert not (folder / "specimens.csv").exists()
    assert [row.pixel_size for row in read_table(table).rows] == [10.0, 10.0, 10.0]
    assert layouts.find(folder, need_masks=False).grouping.names == ("A", "A", "B")


def test_drawn_bars_are_measured_and_shown_and_doubts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sheet = tmp_path / "set", tmp_path / "taken.png"
    for name, length in (("a", 80), ("b", 80), ("c", 0), ("d", 160)):
        _image(folder / f"{name}.png", length)
    command = [str(folder), "--length", "100 µm", "--bar"]
    assert calibrate.main([*command, "--pictures", str(sheet)]) == 1
    said = capsys.readouterr().out
    assert "1250 nm (2 images)" in said
    assert "625 nm (1 image)" in said
    assert "no scale bar found in 1 image (c.png)" in said
    assert "80 to 160 pixels long" in said
    assert cv2.imread(str(sheet)).shape[1] >= 1000
    lines = _text(folder / "specimens.csv")
    assert lines[1:] == ["a.png,,,,1250nm", "b.png,,,,1250nm", "d.png,,,,625nm"]
    assert calibrate.main([*command, "--images", "[ab]*"]) == 0
    assert _text(folder / "specimens.csv") == lines


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--length", "100um"], "either --pixels"),
        (["--length", "100um", "--pixels", "9", "--bar"], "either --pixels"),
        (["--length", "100", "--bar"], "--length '100' is no length"),
        (["--length", "100um", "--pixels", "0"], "--pixels"),
        (["--length", "100um", "--bar"], "no scale bar is found in 1 image"),
        (["--length", "1um", "--pixels", "9", "--images", "x*"], "no image of .* fits --images"),
        (["--length", "1um", "--pixels", "9", "--pictures", "set/p.png"], "would be read as one"),
        (["--length", "1um", "--pixels", "9", "--pictures", "p.jpg"], "must be a PNG file"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _image(tmp_path / "set" / "a.png", 0)
    with pytest.raises(UserError, match=sentence):
        calibrate.main(["set", *words])
    assert not (tmp_path / "set" / "specimens.csv").exists()
