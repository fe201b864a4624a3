"""Pictures that show one place again are found, whatever was done to them; other fields are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import train_ssl
from matssl import preflight
from matssl.core.errors import UserError, guard
from matssl.data import copies, layouts, synthetic
from matssl.data.preprocess import Preprocess
from matssl.stages.pretrain import guides

Picture = NDArray[np.uint8]
SIZE = 256


def _field(seed: int) -> Picture:
    return synthetic.micrograph("particles", SIZE, SIZE, seed)[0]


def _turned(picture: Picture, degrees: float) -> Picture:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1)
    return cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC)


def _with_bar(picture: Picture) -> Picture:
    result = picture.copy()
    result[-24:] = 255
    cv2.putText(result, "20 kV  500 x  50 um", (6, SIZE - 8), 0, 0.4, 0)
    result[-40:-34, 150:210] = 255
    return result


DONE: dict[str, tuple[Callable[[Picture], Picture], str]] = {
    "nothing": (lambda p: p, "the same"),
    "97 %": (lambda p: p[:, : int(0.97 * SIZE)], "the same"),
    "a quarter": (lambda p: p[90:218, 50:178], "25 % of it"),
    "5 degrees": (lambda p: _turned(p, 5), "turned by 5 degrees"),
    "90 degrees": (lambda p: np.rot90(p).copy(), "the same, turned by 90 degrees"),
    "a mirror": (lambda p: p[:, ::-1].copy(), "the same, mirrored"),
    "local contrast": (lambda p: cv2.createCLAHE(4, (8, 8)).apply(p), "the same"),
    "a bar": (_with_bar, "the same"),
    "inversion": (lambda p: 255 - p, "bright and dark exchanged"),
    "half the size": (lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=3), "0.5 times"),
    "twice the size": (lambda p: cv2.resize(p, None, fx=2, fy=2, interpolation=2), "2 times"),
}


@pytest.fixture(scope="module")
def fields() -> list[Picture]:
    return [_field(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def finder(fields: list[Picture]) -> copies.Finder:
    return copies.Finder([copies.sketch(field) for field in fields])


@pytest.mark.parametrize("what", list(DONE))
def test_a_copy_is_found_whatever_was_done_to_it(
    what: str, fields: list[Picture], finder: copies.Finder
) -> None:
    """A23: crop, turn, mirror, CLAHE, bar, inversion and other scales, of each of six fields."""
    change, said = DONE[what]
    for number, field in enumerate(fields):
        found = finder.look(copies.sketch(change(field)))
        assert [copy.second for copy in found] == [number]
        assert said in found[0].text


def test_other_fields_are_no_copies(finder: copies.Finder) -> None:
    """A23: fields of one specimen have like corners, and no map brings one to the other."""
    for kind in synthetic.KINDS:
        other = synthetic.micrograph(kind, SIZE, SIZE, 99)[0]
        assert finder.look(copies.sketch(other)) == []


def test_equal_shading_alone_is_no_copy() -> None:
    light = np.linspace(0, 200, 128)[None] + np.linspace(0, 100, 128)[:, None]
    detail = [np.random.default_rng(i).normal(0, 12, (128, 128)) for i in range(2)]
    both = [copies.sketch(light + cv2.GaussianBlur(d, (0, 0), 2)) for d in detail]
    assert copies.find(both[:1], both[1:]) == [] and len(copies.find(both, both)) == 2


def test_pictures_without_corners_are_copies_where_they_are_equal() -> None:
    ramp = np.linspace(0, 255, 64)[None].repeat(64, axis=0)
    blank = np.full((64, 64), 7, np.uint8)
    known = copies.Finder([copies.sketch(ramp), copies.sketch(blank)])
    assert [copy.second for copy in known.look(copies.sketch(ramp))] == [0]
    assert known.look(copies.sketch(blank)) == [] and copies.find([copies.sketch(ramp)], []) == []


def _labelled(root: Path) -> Path:
    synthetic.write_dataset(root, "particles", 2, 1, 2, size=SIZE, seed=3)
    return next((root / "test").iterdir())


def test_the_screen_says_what_of_a_test_image_the_pool_shows(tmp_path: Path) -> None:
    test = _labelled(tmp_path / "set")
    pool = tmp_path / "pool"
    synthetic.write_pool(pool, 3, size=SIZE, seed=9)
    crop = 255 - cv2.imread(str(test), 0)[100:230, 20:150][:, ::-1]
    cv2.imwrite(str(pool / "crop.png"), crop)
    dataset = layouts.find(tmp_path / "set")
    seen = preflight.examine_dataset(dataset, Preprocess(), sorted(pool.iterdir()))
    assert f"pool/crop.png = test/{test.name} (26 % of it, mirrored" in seen.text()
    assert len(seen.duplicates) == 1


@pytest.mark.parametrize("flag", ["--test_folder", "--probe_path", "--model pscl --labeled_path"])
def test_a_pretraining_that_knows_a_labelled_folder_looks_for_copies_of_its_tests(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A23: not only --test_folder."""

    def stop(*args: object) -> None:
        raise UserError("enough")

    monkeypatch.setattr(guides, "guides", stop)
    test = _labelled(tmp_path / "set")
    pool = tmp_path / "pool"
    synthetic.write_pool(pool, 6, size=SIZE, seed=9)
    cv2.imwrite(str(pool / "turned.png"), np.rot90(cv2.imread(str(test), 0)))
    words = f"--data_path {pool} --output_dir {tmp_path} {flag} {tmp_path / 'set'} --steps 1"
    assert guard(train_ssl.main, [*words.split(), "--device", "cpu"]) == 2
    assert f"pool/turned.png = test/{test.name} (the same, turned" in capsys.readouterr().out
