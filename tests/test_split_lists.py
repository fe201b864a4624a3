"""Lists of splits and of classes as Excel, Notepad and people write them (A19)."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.data import layouts

NFC = unicodedata.normalize("NFC", "Gefüge_1")
NAMES = (NFC, "b2", "c3", "d4")
WANTED = {NFC: "train", "b2": "train", "c3": "val", "d4": "test"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images with masks in images/ and masks/."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 1
    for name in NAMES:
        for folder in ("images", "masks"):
            path = tmp_path / "set" / folder / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".tif", mask)[1].tobytes())
    return tmp_path / "set"


def _splits(data: Path, source: Path) -> dict[str, str]:
    found = layouts.find(data, splits=source)
    return {unicodedata.normalize("NFC", p.image.stem): p.split for p in found.pairs}


LINES = [
    ("images\\" + unicodedata.normalize("NFD", "GEFÜGE_1") + ".TIF", "Train"),
    ("set/images/B2", "training"),
    ("C3.tif", "Validation"),
    (".\\images\\d4.TIFF", "TEST"),
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("head", ["image,split", "Split,Image", "FILE,Set", "Bild,Teil"])
def test_a_table_is_read_as_programs_write_it(
    data: Path, tmp_path: Path, separator: str, encoding: str, head: str
) -> None:
    """A19: a BOM, semicolons, backslashes, capitals and umlauts of the other kind."""
    turned = head.lower().startswith("split")
    rows = [head.split(","), *([s, n] if turned else [n, s] for n, s in LINES), ["", ""]]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "S.CSV").write_bytes(text.encode(encoding))
    assert _splits(data, tmp_path / "S.CSV") == WANTED


def test_a_table_in_the_code_of_old_windows_is_read(data: Path, tmp_path: Path) -> None:
    """A19: Excel's plain CSV is no UTF-8."""
    text = "sep=;\r\nimage;split\r\ngefüge_1.tif;train\r\nb2.tif;train\r\nc3;val\r\nd4;test\r\n"
    (tmp_path / "s.csv").write_bytes(text.encode("cp1252"))
    assert _splits(data, tmp_path / "s.csv") == WANTED


def test_text_lists_and_json_are_read_as_programs_write_them(data: Path, tmp_path: Path) -> None:
    """A19: SPLIT.txt of Notepad, a JSON with capitals."""
    (tmp_path / "lists").mkdir()
    for split in ("Train", "VAL", "test"):
        lines = [name for name, told in LINES if told.lower().startswith(split.lower())]
        file = tmp_path / "lists" / f"{split}.{'TXT' if split == 'VAL' else 'txt'}"
        file.write_bytes(("\r\n".join(["# names", *lines, ""])).encode("utf-8-sig"))
    assert _splits(data, tmp_path / "lists") == WANTED
    table: dict[str, list[str]] = {}
    for name, split in LINES:
        table.setdefault(split, []).append(name)
    (tmp_path / "s.json").write_bytes(json.dumps(table).encode("utf-8-sig"))
    assert _splits(data, tmp_path / "s.json") == WANTED


def test_a_name_that_several_images_have_needs_its_folder(tmp_path: Path) -> None:
    """A19: the first of them was taken, whichever folder the line named."""
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 1
    for specimen in ("S1", "S2"):
        for folder, pixels in (("pics", rng.integers(0, 255, (32, 32))), ("done", mask)):
            for number in "12":
                path = tmp_path / folder / specimen / f"img_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    lists = tmp_path / "s.csv"
    lists.write_text("image;split\nS1\\img_1.png;train\nS2/img_1;val\nold/pics/S2/img_2;test\n")
    found = layouts.find(tmp_path, splits=lists)
    told = {(p.image.parent.name, p.image.stem): p.split for p in found.pairs}
    assert told == {("S1", "img_1"): "train", ("S2", "img_1"): "val", ("S2", "img_2"): "test"}
    lists.write_text("image,split\nimg_1.png,train\n")
    with pytest.raises(UserError, match=r"'img_1.png' in train, which several images .* folders"):
        layouts.find(tmp_path, splits=lists)


def test_all_absent_names_are_told_at_once(data: Path, tmp_path: Path) -> None:
    """A19: one name a run was told."""
    lists = tmp_path / "s.csv"
    lists.write_text("image,split\n" + "".join(f"x{i},train\n" for i in range(9)) + "b2,val\n")
    with pytest.raises(UserError, match=r"'x0' in train, 'x1' in train, .* and 6 more, which are"):
        layouts.find(data, splits=lists)
    lists.write_text("image,split\nb2,train\nB2.tif,train\nc3,\n")
    assert _splits(data, lists) == {"b2": "train"}
    lists.write_text("image,split\n,train\n")
    with pytest.raises(UserError, match="line 2: no image is named|needs the columns"):
        layouts.find(data, splits=lists)


def test_a_class_file_is_read_as_programs_write_it(data: Path) -> None:
    """A19: classes.csv of Excel: a BOM, semicolons, capitals in names of file and columns."""
    text = "Name;Value\r\nMatrix;0\r\nGefüge;1\r\n"
    (data / "Classes.CSV").write_bytes(text.encode("utf-8-sig"))
    found = layouts.find(data)
    assert found.table is not None
    assert [(c.name, c.values) for c in found.table.classes] == [("Matrix", (0,)), ("Gefüge", (1,))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.tsv", "image\tsplit\nb2\ttrain\nc3\tval\nd4\ttest\n"),
        ("s.csv", "train;val;test\nb2;c3.tif;images\\D4\n;;\n"),
        ("s.csv", "Bild;Teil\nb2;Training\nc3;Validierung\nd4;Testing\n"),
    ],
)
def test_other_ways_to_write_a_table_are_read(
    data: Path, tmp_path: Path, name: str, text: str
) -> None:
    """A19: tabs, a column for each split, German words."""
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert _splits(data, tmp_path / name) == {"b2": "train", "c3": "val", "d4": "test"}


def test_a_list_copied_from_a_program_keeps_its_names(data: Path, tmp_path: Path) -> None:
    """A19: quotation marks and commas about the names are none of theirs."""
    (tmp_path / "s.txt").write_text("\"b2.tif\",\n'c3',\nd4;\n", encoding="utf-8")
    assert _splits(data, tmp_path / "s.txt") == dict.fromkeys(("b2", "c3", "d4"), "train")


def test_a_table_that_gives_no_image_a_split_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("image,split\nb2\nc3,\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"s\.csv gives no image a split"):
        layouts.find(data, splits=tmp_path / "s.csv")
