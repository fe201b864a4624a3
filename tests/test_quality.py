"""Sharpness, noise and contrast of pictures: numbers known beforehand, and what stands out."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.data import quality
from matssl.data.quality import Quality, measured
from matssl.tools import doctor


def _cells(side: int = 512, seed: int = 0) -> np.ndarray:
    """Two grey levels, edges in all directions and at all places, drawn eight times finer."""
    noise = np.random.default_rng(seed).standard_normal((side // 4, side // 4)).astype(np.float32)
    smooth = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 4), (8 * side,) * 2)
    two = (smooth > 0).astype(np.float32)
    return cv2.resize(two, (side, side), interpolation=cv2.INTER_AREA)


def _noisy(picture: np.ndarray, sigma: float, seed: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(picture.shape).astype(np.float32)
    return (picture + np.float32(sigma) * drawn).astype(np.float32)


def _blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def _close(first: Quality, second: Quality, rel: float) -> None:
    assert second.sharpness == pytest.approx(first.sharpness, rel=rel, abs=rel)
    assert second.noise == pytest.approx(first.noise, rel=rel, abs=rel)
    assert second.contrast == pytest.approx(first.contrast, rel=rel, abs=rel)


@pytest.mark.parametrize("blur", [0.0, 1.0, 2.0, 4.0])
def test_edges_of_a_known_blur_have_the_sharpness_of_the_formula(blur: float) -> None:
    """log2((4 + b^2)/(1 + b^2))/2; an unblurred step of pixels is one pixel wide: b^2 = 1/12."""
    step = np.zeros((256, 256), np.float32)
    step[:, 128:] = 1
    picture = _blurred(step, blur) if blur else step
    # A difference over two pixels is itself a box of variance 1/3.
    b2 = blur**2 + 1 / 3
    wanted = 0.5 * math.log2((4 + b2) / (1 + b2))
    assert quality.sharpness(picture, 0.0) == pytest.approx(wanted, abs=0.03)


def test_a_slope_has_no_sharpness_and_no_noise() -> None:
    slope = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (200, 1))
    inside = quality.sharpness(slope, 0.0)
    assert 0 <= inside < 0.05
    assert quality.noise_sigma(slope) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_blur_lowers_sharpness_step_by_step(seed: int) -> None:
    for noise, slack in ((0.0, 0.0), (0.1, 0.02)):
        picture = _noisy(_cells(seed=seed), noise, seed)
        found = [measured(picture).sharpness]
        found += [measured(_blurred(picture, s)).sharpness for s in (0.5, 0.8, 1.2, 2, 3, 5)]
        assert all(b <= a + slack for a, b in itertools.pairwise(found))
        assert found[0] - found[4] > 0.3


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1, 0.3])
def test_added_noise_is_found_again_to_a_tenth(sigma: float) -> None:
    for seed in range(3):
        picture = _cells(seed=seed)
        found = quality.noise_sigma(_noisy(picture, sigma, seed))
        assert found == pytest.approx(sigma, rel=0.1)
        share = measured(_noisy(picture, sigma, seed)).noise
        assert share == pytest.approx(sigma / math.hypot(picture.std(), sigma), rel=0.1)


@pytest.mark.parametrize("sigma", [5, 20])
def test_noise_is_found_in_8_bit(sigma: int) -> None:
    picture = np.clip(np.rint(_noisy(60 + 120 * _cells(), sigma)), 0, 255).astype(np.uint8)
    spread = float(picture.astype(float).std())
    assert measured(picture).noise == pytest.approx(sigma / spread, rel=0.1)


def test_nothing_but_noise_is_all_noise_and_has_no_edges() -> None:
    found = measured(_noisy(np.zeros((256, 256), np.float32), 1.0))
    assert found.noise == pytest.approx(1, abs=0.02)
    assert math.isnan(found.sharpness)


def test_noise_hardly_changes_sharpness() -> None:
    sharp = measured(_cells()).sharpness
    for sigma in (0.03, 0.1, 0.2):
        assert measured(_noisy(_cells(), sigma)).sharpness == pytest.approx(sharp, abs=0.08)


def test_contrast_of_two_levels_is_known_by_hand() -> None:
    """Without noise 1; with noise p(1-p)d^2 of p(1-p)d^2 + s^2, where levels do not overlap."""
    two = np.zeros((400, 400), np.float32)
    two[:, :100] = 1
    assert measured(two).contrast == pytest.approx(1, abs=1e-6)
    between, sigma = 0.25 * 0.75, 0.1
    wanted = between / (between + sigma**2)
    assert measured(_noisy(two, sigma)).contrast == pytest.approx(wanted, abs=0.005)


def test_contrast_of_known_distributions() -> None:
    """Split in the middle, a uniform one keeps 3/4 of its variance, a normal one 2/pi."""
    rng = np.random.default_rng(0)
    assert measured(rng.random((500, 500))).contrast == pytest.approx(3 / 4, abs=0.003)
    assert measured(rng.standard_normal((500, 500))).contrast == pytest.approx(
        2 / math.pi, abs=0.01
    )


def _real() -> np.ndarray:
    return _noisy(_blurred(_cells(400), 1.0), 0.05)


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_orientation_changes_nothing(turn: int, mirrored: bool) -> None:
    picture = _real()[:300]
    moved = np.rot90(picture[:, ::-1] if mirrored else picture, turn)
    _close(measured(picture), measured(moved), 1e-4)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 100.0), (1e-3, 0.0), (4000.0, -7.0), (-1, 0)])
def test_gain_offset_and_inversion_change_nothing(gain: float, offset: float) -> None:
    _close(measured(_real()), measured(_real() * gain + offset), 2e-3)


def test_depth_changes_nothing() -> None:
    plane = np.clip(0.2 + 0.6 * _real(), 0, 1)
    sixteen = np.rint(plane * 65535).astype(np.uint16)
    eight = np.rint(plane * 255).astype(np.uint8)
    for other in (sixteen, eight, np.repeat(eight[..., None], 3, axis=2), plane.astype(np.float64)):
        _close(measured(plane), measured(other), 0.01)


def test_size_and_crop_change_little() -> None:
    """The same material in a larger field, and in a quarter of it."""
    large = _noisy(_blurred(_cells(1024), 1.0), 0.05)
    for part in (large[:512, :512], large[512:, 256:768], large[100:900]):
        _close(measured(large), measured(part), 0.06)


def test_half_the_size_keeps_what_is_sharp_sharp() -> None:
    large = _cells(1024)
    half = cv2.resize(large, (512, 512), interpolation=cv2.INTER_AREA)
    assert measured(half).sharpness == pytest.approx(measured(large).sharpness, abs=0.15)
    double = cv2.resize(large, (2048, 2048), interpolation=cv2.INTER_CUBIC)
    assert measured(double).sharpness < measured(large).sharpness - 0.08


def test_hot_pixels_change_nothing() -> None:
    picture = _real()
    hot = picture.copy()
    hot.reshape(-1)[::9973] = 20
    before, after = measured(picture), measured(hot)
    assert after.contrast == pytest.approx(before.contrast, abs=0.01)
    assert quality.noise_sigma(hot) == pytest.approx(quality.noise_sigma(picture), rel=0.01)


def test_a_picture_of_one_level_or_of_few_pixels_has_no_quality() -> None:
    for picture in (np.full((64, 64), 7, np.uint8), np.zeros((8, 9)), np.full((64, 64), np.nan)):
        assert measured(picture).blank


# --- what stands out ---
def _folder(count: int = 12) -> dict[Path, np.ndarray]:
    return {Path(f"{i}.png"): _noisy(_blurred(_cells(256, i), 0.7), 0.04, i) for i in range(count)}


def _out(pictures: dict[Path, np.ndarray]) -> dict[str, list[str]]:
    found = {path: measured(picture) for path, picture in pictures.items()}
    out = quality.standing_out(found, dict.fromkeys(found, "all"))
    return {path.name: [one.what for one in outliers] for path, outliers in out.items()}


def test_nothing_stands_out_among_pictures_that_are_alike() -> None:
    assert _out(_folder()) == {}


def test_one_blurred_one_noisy_and_one_with_a_hole_stand_out_and_no_other() -> None:
    pictures = _folder()
    pictures[Path("3.png")] = _blurred(pictures[Path("3.png")], 2.5)
    pictures[Path("5.png")] = _noisy(pictures[Path("5.png")], 0.3)
    holed = 0.5 * pictures[Path("7.png")]
    holed[:10, :10] = -6
    pictures[Path("7.png")] = holed
    out = _out(pictures)
    assert out.pop("3.png") == ["sharpness"]
    assert out.pop("5.png")[0] == "noise"
    assert "contrast" in out.pop("7.png")
    assert out == {}


def test_sharper_and_quieter_pictures_do_not_stand_out() -> None:
    pictures = {p: _noisy(_blurred(x, 1.5), 0.1) for p, x in _folder().items()}
    pictures[Path("0.png")] = _cells(256)
    assert _out(pictures) == {}


def test_a_small_difference_among_equal_pictures_does_not_stand_out() -> None:
    same = {Path(f"{i}.png"): Quality(1.0, 0.05, 0.8) for i in range(9)}
    same[Path("x.png")] = Quality(0.9, 0.06, 0.78)
    assert quality.standing_out(same, dict.fromkeys(same, "")) == {}
    same[Path("x.png")] = Quality(0.5, 0.4, 0.3)
    whats = [one.what for one in quality.standing_out(same, dict.fromkeys(same, ""))[Path("x.png")]]
    assert whats == ["sharpness", "noise", "contrast"]


def test_pictures_are_compared_within_their_group_and_few_say_nothing() -> None:
    first = {Path(f"a/{i}.png"): Quality(2.0, 0.05, 0.8) for i in range(9)}
    second = {Path(f"b/{i}.png"): Quality(0.5, 0.05, 0.8) for i in range(9)}
    both = first | second
    groups = {path: path.parts[0] for path in both}
    assert quality.standing_out(both, groups) == {}
    assert (
        len(
            quality.standing_out(
                first | dict([next(iter(second.items()))]), groups | dict.fromkeys(second, "a")
            )
        )
        == 1
    )
    few = dict(list(first.items())[:6]) | dict([next(iter(second.items()))])
    assert quality.standing_out(few, dict.fromkeys(few, "")) == {}


def test_the_screen_names_the_pictures_and_says_what_is_usual() -> None:
    pictures = {Path(f"{i}.png"): Quality(1.0, 0.05, 0.8) for i in range(9)}
    pictures[Path("soft one.png")] = Quality(0.4, 0.05, 0.8)
    pictures[Path("empty.png")] = Quality()
    lines = quality.told(pictures, dict.fromkeys(pictures, ""))
    assert (
        lines[0].split()
        == (
            "quality sharpness 1.00 (0.40 to 1.00), noise 0.05 (0.05 to 0.05), contrast 0.80 "
            "(0.80 to 0.80): median and range of 10 pictures"
        ).split()
    )
    assert lines[1].strip() == "look at      1 picture shows one grey level (first: empty.png)"
    assert lines[2].strip() == (
        "look at      soft one.png: less sharp than the others: sharpness 0.40, median 1.00 of 10"
    )


def test_the_doctor_names_what_stands_out_on_screen_in_a_table_and_on_the_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    before = {}
    for path, picture in _folder(9).items():
        shown = _blurred(picture, 3) if path.name == "4.png" else picture
        cv2.imwrite(str(folder / path), np.rint(np.clip(40 + 150 * shown, 0, 255)))
        before[path.name] = (folder / path).read_bytes()
    table, sheet = tmp_path / "quality.csv", tmp_path / "sheet.png"
    argv = [str(folder), "--quality", str(table), "--pictures", str(sheet)]
    assert doctor.main(argv) == 0
    screen = capsys.readouterr().out
    assert "look at      4.png: less sharp than the others: sharpness" in screen
    assert screen.count("look at") == 1
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert [r["image"].rpartition("/")[2] for r in rows if r["stands out"]] == ["4.png"]
    assert all(0 < float(r["noise"]) < 1 for r in rows)
    assert sheet.is_file()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("q.txt", "must be a CSV file"),
        ("no/q.csv", "no folder"),
        ("in/q.csv", "lies in the folder"),
    ],
)
def test_a_place_that_the_table_cannot_have_is_refused(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=words):
        quality.check_path(tmp_path / name, tmp_path / "in")
