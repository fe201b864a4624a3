"""The contact sheet of doctor: what is cut, where the mask lies, whose specimen it is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl import contact_sheet, preflight
from matssl.core.errors import UserError
from matssl.data import layouts
from matssl.data.preprocess import Preprocess
from matssl.pictures import contact
from matssl.pictures.contact import Cell
from matssl.tools import doctor

AUTO = Preprocess(crop_bottom="auto")


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _folder(root: Path, count: int, bar: int = 40) -> Path:
    """Write noise 320 x 280 with a white bar, masks whose left half is another class."""
    for number in range(count):
        image = np.random.default_rng(number).integers(90, 120, (280, 320)).astype(np.uint8)
        if bar:
            image[-bar:] = 255
            image[-bar] = 0
            image[-20:-16, 20:100] = 0
        mask = np.zeros((280, 320), np.uint8)
        mask[:, :160] = 1
        _write(root / "images" / f"steel{'AB'[number % 2]}_{number:03d}.png", image)
        _write(root / "masks" / f"steel{'AB'[number % 2]}_{number:03d}.png", mask)
    return root


def _pixels(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """Return where a picture has exactly this colour, as rows and columns."""
    return np.argwhere((cv2.imread(str(path))[..., ::-1] == colour).all(axis=2))


def test_the_cut_and_the_outline_lie_where_they_are(tmp_path: Path) -> None:
    """Issue point 1: one look tells; here at the picture's own size."""
    image = np.full((280, 320), 128, np.uint8)
    labels = np.zeros((240, 320), np.uint8)
    labels[:, :160] = 1
    cell = Cell(image, "steel A", "a.png", 240 / 280, "", labels)
    drawn = np.asarray(contact._thumbnail(cell, 640, 20))
    assert drawn.shape == (560, 640, 3)
    cut = np.argwhere((drawn == contact.CUT).all(axis=2))
    assert abs(cut[:, 0] - 480).max() <= 2
    assert set(cut[:, 1].tolist()) == set(range(640))
    line = np.argwhere((drawn == contact.OUTLINE).all(axis=2))
    assert abs(line[:, 1] - 319.5).max() <= 2
    assert line[:, 0].max() < 480
    # What is cut off stays in sight, paler than it was.
    assert (drawn[500, 20] > 150).all()


def test_doctor_writes_a_sheet_and_says_what_is_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, sheet = _folder(tmp_path / "set", 4), tmp_path / "sheet.png"
    assert doctor.main([str(root), "--pictures", str(sheet)]) == 0
    assert f"pictures     {sheet}: 4 pictures" in capsys.readouterr().out
    assert len(_pixels(sheet, contact.CUT)) > 4 * 300
    assert len(_pixels(sheet, contact.OUTLINE)) > 4 * 100


def test_of_too_many_pictures_those_that_need_a_look_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "MOST", 10)
    root = _folder(tmp_path / "set", 14)
    plain = np.random.default_rng(0).integers(90, 120, (280, 320)).astype(np.uint8)
    for number in (7, 11):
        _write(root / "images" / f"steelB_{number:03d}.png", plain)
    (root / "images" / "steelA_004.png").write_bytes(b"no picture")
    found = preflight.examine_dataset(layouts.find(root), AUTO)
    chosen = contact_sheet._chosen(found)
    assert len(chosen) == contact.MOST
    names = {fact.path.stem for fact in chosen}
    assert {"steelB_007", "steelB_011", "steelA_004"} <= names
    told = contact_sheet.write(found, tmp_path / "sheet.png")
    assert told.startswith("10 of 14 pictures: all that need a look")
    assert told.endswith("4 left out")


def test_pictures_of_any_kind_and_shape_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, shape).astype(np.uint8)
        for shape in ((3, 900), (900, 3), (50, 60, 3), (1, 1))
    ]
    cells = [Cell(image, "x" * 200, "y" * 200, wrong="z " * 100) for image in images]
    contact.sheet([*cells, Cell(None, "", "")], tmp_path / "s.png", "title", "text " * 100)
    assert cv2.imread(str(tmp_path / "s.png")).shape[1] <= contact.PAGE_WIDTH


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_grey_levels_are_shown_from_black_to_white(dtype: type) -> None:
    """Those above the cut: a white bar does not darken the specimen."""
    plane = np.linspace(0, 100, 200 * 100).reshape(200, 100).astype(dtype)
    plane[150:] = 255
    shown = contact_sheet.gray(plane, 150)
    assert shown.dtype == np.uint8
    assert shown[:150].min() == 0
    assert shown[:150].max() == 255


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("sheet.jpg", "must be a PNG file"),
        ("absent/sheet.png", "there is no folder"),
        ("set/images/sheet.png", "would be read as one of them"),
    ],
)
def test_a_place_where_the_sheet_cannot_be_is_refused(
    tmp_path: Path, place: str, sentence: str
) -> None:
    root = _folder(tmp_path / "set", 1)
    with pytest.raises(UserError, match=sentence):
        doctor.main([str(root), "--pictures", str(tmp_path / place)])
