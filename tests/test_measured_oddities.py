"""Measuring what is odd: broken, empty, tiny and strangely named masks stop nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import Incomplete, UserError
from matssl.core.textfiles import read_rows
from matssl.data.readers import parse_pixel_size
from matssl.measure.correlation import of_field
from matssl.measure.grains.specimens import mean
from matssl.stages.measure.loop import measure
from matssl.stages.measure.settings import resolve

PORES = "classes: {matrix: 0, pore: 1}\n"


def _discs(seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 64), np.uint8)
    for _ in range(5):
        at = rng.integers(8, 56, 2).tolist()
        cv2.circle(mask, (at[0], at[1]), 4, 1, -1)
    return mask


def _folder(
    root: Path, masks: Mapping[str, NDArray[np.uint8]], classes: str | None = PORES
) -> Path:
    for name, mask in masks.items():
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images" / f"{name}.png"), 60 + 90 * (mask > 0).astype(np.uint8))
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    if classes is not None:
        (root / "classes.yaml").write_text(classes, encoding="utf-8")
    return root


def _run(root: Path, *words: str) -> Path:
    argv = [str(root), "--output_dir", str(root / "out"), *words]
    return measure(resolve(argv), argv)


def _rows(result: Path, name: str) -> list[dict[str, str]]:
    return list(read_rows(result / f"{name}.csv"))


def test_a_mask_that_cannot_be_read_is_listed_and_the_others_are_measured(tmp_path: Path) -> None:
    root = _folder(tmp_path, {f"a_{i}": _discs(i) for i in range(3)})
    (root / "masks" / "a_1.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(Incomplete, match="1 of 3 images failed"):
        _run(root, "--what", "fractions,objects", "--name", "r")
    result = root / "out" / "measure" / "r"
    assert [row["image"] for row in _rows(result, "fractions")] == ["a_0.png", "a_2.png"]
    (bad,) = _rows(result, "bad_images")
    assert bad["image"].endswith("a_1.png") and "broken" in bad["reason"]


def test_a_phase_that_is_nowhere_is_a_result(tmp_path: Path) -> None:
    """Rule of three over five fields: at most 3/5, and that is wide."""
    root = _folder(tmp_path, {f"a_{i}": np.zeros((40, 40), np.uint8) for i in range(5)})
    result = _run(root, "--what", "fractions,objects", "--group_regex", "^(.)")
    row = next(r for r in _rows(result, "specimens") if r["class"] == "pore")
    assert float(row["area fraction %"]) == 0 and row["area fraction interval"] == "rule of three"
    assert float(row["objects"]) == 0
    (root / "classes.yaml").unlink()
    with pytest.raises(UserError, match=r"one class only.*name the other one in classes\.yaml"):
        _run(root, "--name", "unnamed")


def test_a_line_of_pixels_is_measured_and_has_no_interval_of_its_own(tmp_path: Path) -> None:
    line = (np.arange(90) % 9 < 3).astype(np.uint8)[None]
    assert not of_field(line > 0).holds and of_field(line > 0).refusal
    result = _run(_folder(tmp_path, {"a": line}), "--what", "fractions,objects,grains,layers")
    assert float(_rows(result, "fractions")[0]["area fraction pore %"]) == pytest.approx(
        100 / 3, abs=1e-3
    )


@pytest.mark.parametrize("text", ["1e-9nm", "1m", "0.00001nm"])
def test_a_pixel_size_of_no_microscope_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no pixel of a micrograph"):
        parse_pixel_size(text)


@pytest.mark.parametrize("name", ["all together", "All specimens", "mean of 3 specimens"])
def test_a_specimen_cannot_be_called_like_the_row_of_means(tmp_path: Path, name: str) -> None:
    root = _folder(tmp_path, {"a": _discs(), "b": _discs(1)})
    (root / "specimens.csv").write_text(f"image,specimen\na.png,{name}\nb.png,B\n")
    with pytest.raises(UserError, match="row of means"):
        _run(root)
    assert not (root / "out").exists()


def test_specimens_stand_in_natural_order_in_every_table(tmp_path: Path) -> None:
    root = _folder(tmp_path, {f"s{n}_{i}": _discs(n + i) for n in (10, 2, 1) for i in (0, 1)})
    what = "fractions,objects,grains"
    result = _run(root, "--what", what, "--class", "pore", "--group_regex", r"^(s\d+)_")
    for table in ("fractions", "fields_E1245", "grains"):
        order = list(dict.fromkeys(row["specimen"] for row in _rows(result, table)))
        assert order == ["s1", "s2", "s10"]


def test_a_long_name_or_a_line_break_does_not_tear_the_table_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path, {"n\nl": _discs(), "x" * 150: _discs(1)})
    _run(root, "--what", "objects")
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("Objects") + 1 : lines.index("Objects") + 5]
    assert any(line.startswith("n l ") for line in table)
    assert max(map(len, table)) < 170


def test_equal_objects_have_no_spread_and_all_dropped_ones_are_100_per_cent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[2:58:4, 2:58:4] = mask[3:58:4, 2:58:4] = 1
    root = _folder(tmp_path, {"a": mask})
    result = _run(root, "--what", "objects", "--min_area", "1")
    assert float(_rows(result, "sizes")[0]["SD (px)"]) == 0
    _run(root, "--what", "objects", "--min_area", "5", "--name", "none")
    said = capsys.readouterr().out
    assert "(100 % of its area)" in said and "no object in 1 field." in said


def test_compare_says_what_it_does_not_compare_and_names_a_specimen_given_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path, {f"{n}_{i}": _discs(i) for n in "ab" for i in (0, 1)})
    words = ("--what", "fractions,objects", "--group_regex", "^(.)_", "--compare", "a")
    _run(root, *words, "b")
    assert "not of objects" in capsys.readouterr().out
    with pytest.raises(UserError, match="names a twice"):
        _run(root, *words, "a")


def test_g_with_a_scale_and_g_without_one_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[10::20] = 1
    mask[:, 10::20] = 1
    root = _folder(tmp_path, {f"{n}_{i}": mask for n in "ab" for i in (0, 1)})
    (root / "specimens.csv").write_text(
        "image,specimen,pixel_size\na_0.png,a,1um\na_1.png,a,1um\nb_0.png,b,\nb_1.png,b,\n"
    )
    result = _run(root, "--what", "grains", "--class", "pore", "--compare", "a", "b")
    assert not (result / "grains_compared.csv").exists()
    said = capsys.readouterr().out
    assert "no specimens are compared" in said and "interval without width tells nothing" in said


def test_grains_per_area_never_lie_below_none() -> None:
    found = mean([1.0, 9.0])
    assert (found.value, found.low) == (5.0, 0.0) and found.high > 40


def test_grains_of_nanometres_are_counted_per_square_micrometre(tmp_path: Path) -> None:
    """Cells of 20 px of 1 nm: 2500 of them in a square micrometre."""
    mask = np.zeros((100, 100), np.uint8)
    mask[10::20] = 1
    mask[:, 10::20] = 1
    root = _folder(tmp_path, {"a": mask})
    result = _run(root, "--what", "grains", "--class", "pore", "--pixel_size", "1nm")
    assert float(_rows(result, "grains")[0]["N_A (1/µm²)"]) == pytest.approx(2500)
    assert float(_rows(result, "specimens")[0]["N_A (1/µm²)"]) == pytest.approx(2500)


def test_a_layer_that_cracks_cut_through_is_not_taken_for_cracks(tmp_path: Path) -> None:
    """No class has a name: what crosses the field once its cracks are in it is a layer."""
    whole, cut = np.zeros((120, 200), np.uint8), np.zeros((120, 200), np.uint8)
    for mask in (whole, cut):
        mask[50:62] = 1
    cut[48:64, 100:102] = 2
    whole[52:60, 60:62] = 2
    for order in ({"a": cut, "b": whole}, {"a": whole, "b": cut}):
        folder = tmp_path / str(int(order["a"] is cut))
        root = _folder(folder, order, "classes: {class 0: 0, class 1: 1, class 2: 2}\n")
        result = _run(root, "--what", "layers", "--group_regex", "^(.)", "--class", "class 1")
        found = [r for r in _rows(result, "layers") if r["thickness mean (px)"]]
        assert [r["class"] for r in found] == ["class 1", "class 1"]
        assert [float(r["thickness mean (px)"]) for r in found] == pytest.approx([12, 12], abs=0.1)
        assert {r["class"] for r in _rows(result, "cracks")} == {"class 2"}


def test_the_point_fraction_is_shown_in_per_cent_with_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2, 4, 6, 8 and 10 of 100 points: 6 ± 2.776 √10 / √5 = 3.93."""
    masks = {}
    for number in range(1, 6):
        masks[f"a_{number}"] = np.zeros((50, 50), np.uint8)
        masks[f"a_{number}"].reshape(10, 5, 10, 5)[0, :, : 2 * number] = 1
    root = _folder(tmp_path, masks)
    _run(root, "--what", "fractions", "--grid", "10x10", "--group_regex", "^(.)_")
    said = capsys.readouterr().out
    assert "point fraction P_P %" in said and "6.00 (2.07 to 9.93)" in said


def test_a_grid_finer_than_the_pixels_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    root = _folder(tmp_path, {"a": _discs()})
    with pytest.raises(UserError, match="more rows than"):
        _run(root, "--what", "fractions", "--grid", "500x500")
    assert not (root / "out").exists()


def test_pictures_of_grains_and_layers_have_a_scale_bar(tmp_path: Path) -> None:
    mask = np.zeros((300, 300), np.uint8)
    mask[100:150] = 1
    root = _folder(tmp_path, {"a": mask}, "classes: {metal: 0, oxide: 1}\n")
    for what in ("layers", "grains"):
        words = ("--what", what, "--class", "oxide", "--overwrite")
        drawn = []
        for scale in ((), ("--pixel_size", "1um")):
            place = _run(root, *words, *scale) / "fields" / f"a_{what}.png"
            drawn.append(cv2.imread(str(place)))
        plain, scaled = drawn
        changed = np.argwhere((plain != scaled).any(axis=2))
        assert len(changed) and (changed.min(axis=0) > np.array(plain.shape[:2]) // 2).all()
