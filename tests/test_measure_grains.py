"""Grain size as a command: what is taken for the boundary, tables, units, refusals, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import polycrystals
from matssl.core.errors import UserError
from matssl.core.textfiles import read_rows
from matssl.data import masks
from matssl.stages.measure import inputs
from matssl.stages.measure.grains import Grains
from matssl.stages.measure.loop import measure
from matssl.stages.measure.settings import resolve

GRID = "classes: {grain: 0, boundary: 1}\n"


def _grid(side: int = 300, pitch: int = 30, offset: int = 15) -> NDArray[np.uint8]:
    drawn = np.zeros((side, side), np.uint8)
    drawn[offset::pitch] = 1
    drawn[:, offset::pitch] = 1
    return drawn


def _folder(
    root: Path, drawn: Mapping[str, NDArray[np.integer]], classes: str | None = GRID
) -> Path:
    for name, mask in drawn.items():
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        grey = np.where(mask > 0, 60, 180).astype(np.uint8)
        cv2.imwrite(str(root / "images" / f"{name}.png"), grey)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    if classes is not None:
        (root / "classes.yaml").write_text(classes, encoding="utf-8")
    return root


def _run(root: Path, *words: str, what: str = "grains") -> Path:
    argv = [str(root), "--what", what, "--output_dir", str(root / "out"), "--quiet", *words]
    return measure(resolve(argv), argv)


def _rows(result: Path, name: str = "grains") -> list[dict[str, str]]:
    return list(read_rows(result / f"{name}.csv"))


def test_a_grid_has_the_grain_size_of_the_standard(tmp_path: Path) -> None:
    """Cells of 30 µm: N 100 on 0.09 mm², G = 3.321928 log10 1111.1 − 2.954 = 7.164."""
    found = _run(_folder(tmp_path, {"a": _grid()}), "--pixel_size", "1um")
    (row,) = _rows(found)
    assert float(row["N grains"]) == 100
    assert float(row["N_A (1/mm²)"]) == pytest.approx(1111.11, rel=1e-5)
    assert float(row["G planimetric (ASTM E112)"]) == pytest.approx(7.164, abs=1e-3)
    assert float(row["G planimetric (ISO 643)"]) == pytest.approx(7.118, abs=1e-3)
    assert float(row["mean intercept 0° (µm)"]) == pytest.approx(30, rel=0.005)
    assert float(row["anisotropy index"]) == pytest.approx(1, abs=0.01)
    assert float(row["sum of intercepts / line length"]) == pytest.approx(1)
    files = ("intercept_rose.png", "grain_sizes.png", "fields/a_grains.png", "report.html")
    assert all((found / name).is_file() for name in files)
    assert "3.321928 log10 N_A" in (found / "report.html").read_text(encoding="utf-8")
    (specimen,) = _rows(found, "specimens")
    assert specimen["class"] == "grains" and not specimen["G planimetric low (ASTM E112)"]


def test_small_grains_are_written_in_nm_and_g_does_not_change(tmp_path: Path) -> None:
    found = _run(_folder(tmp_path, {"a": _grid()}), "--pixel_size", "2nm")
    (row,) = _rows(found)
    assert float(row["mean intercept 0° (nm)"]) == pytest.approx(60, rel=0.005)
    # 500 times smaller: 2 log2 500 higher.
    right = 7.164 + 2 * np.log2(500)
    assert float(row["G planimetric (ASTM E112)"]) == pytest.approx(right, abs=2e-3)


def test_without_a_pixel_size_there_are_pixels_and_no_g(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _run(_folder(tmp_path, {"a": _grid()}))
    (row,) = _rows(found)
    assert float(row["mean intercept 0° (px)"]) == pytest.approx(30, rel=0.005)
    assert not any(name.startswith("G ") for name in row)
    assert "no grain size number G" in capsys.readouterr().out


def test_specimens_have_intervals_over_their_fields(tmp_path: Path) -> None:
    drawn = {
        f"{specimen}_{i}": _grid(160, pitch, 7)
        for specimen, pitches in (("A", (16, 19, 22)), ("B", (25, 30)))
        for i, pitch in enumerate(pitches)
    }
    found = _run(_folder(tmp_path, drawn), "--pixel_size", "1um", "--group_regex", "^([AB])_")
    a, b, both = sorted(_rows(found, "specimens"), key=lambda row: row["specimen"])
    assert (a["specimen"], b["specimen"], both["specimen"]) == ("A", "B", "all specimens")
    densities = [float(r["N_A (1/mm²)"]) for r in _rows(found) if r["specimen"] == "A"]
    mean, half = np.mean(densities), 4.3027 * np.std(densities, ddof=1) / 3**0.5
    assert float(a["N_A (1/mm²)"]) == pytest.approx(mean, rel=1e-5)
    assert float(a["N_A low (1/mm²)"]) == pytest.approx(mean - half, rel=1e-3)
    assert float(a["%RA of N_A"]) == pytest.approx(100 * half / mean, rel=1e-3)
    right = 3.321928 * np.log10(mean + half) - 2.954
    assert float(a["G planimetric high (ASTM E112)"]) == pytest.approx(right, abs=1e-3)
    assert float(both["N_A (1/mm²)"]) == pytest.approx(
        (float(a["N_A (1/mm²)"]) + float(b["N_A (1/mm²)"])) / 2, rel=1e-5
    )


def test_gaps_are_closed_and_g_without_closing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = _grid()
    drawn[45, 58:61] = 0
    root = _folder(tmp_path, {"a": drawn})
    (row,) = _rows(_run(root, "--pixel_size", "1um"))
    assert (float(row["N grains"]), row["gaps closed"]) == (100, "1")
    assert float(row["N grains without closing gaps"]) == 99
    assert "1 gap of the boundaries closed (--close_gaps 5)" in capsys.readouterr().out
    (row,) = _rows(_run(root, "--pixel_size", "1um", "--close_gaps", "0", "--name", "open"))
    assert (float(row["N grains"]), row["gaps closed"]) == (99, "0")


def test_few_lines_are_few_and_said(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"a": _grid()})
    (dense,) = _rows(_run(root))
    found = _run(root, "--intercept_spacing", "20", "--name", "few")
    (sparse,) = _rows(found)
    assert float(sparse["intersections P"]) < float(dense["intersections P"]) / 10
    assert "20 px apart" in (found / "report.html").read_text(encoding="utf-8")


# --- what is the boundary ---
def _kind(names: Sequence[str], chosen: Sequence[int] = (), labelled: bool = False) -> Grains:
    kind = Grains(resolve(["x", "--what", "grains"]), names, chosen)
    kind.ready(labelled)
    return kind


@pytest.mark.parametrize(
    ("names", "boundary"),
    [
        (("grain", "boundary"), 1),
        (("grain boundary", "matrix"), 0),
        (("Korngrenze", "Korn"), 0),
        (("ferrite", "pearlite", "gb"), 2),
        (("grain_boundaries", "grains"), 0),
        (("grain", "line"), 1),
        (("gb_mask", "rest"), 0),
        (("grain", "twin boundary", "grain boundary"), 2),
    ],
)
def test_the_boundary_is_known_by_its_name(names: Sequence[str], boundary: int) -> None:
    assert _kind(names).boundaries == (boundary,)


def test_names_that_say_nothing_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which class is the grain boundary.*--class"):
        _kind(("background", "foreground"))
    assert _kind(("background", "foreground"), [1]).boundaries == (1,)
    assert _kind(("ferrite", "martensite")).boundaries == ()
    assert _kind(("background", "foreground"), labelled=True).boundaries == ()
    root = _folder(tmp_path, {"a": _grid() * 255}, None)
    with pytest.raises(UserError, match="background, foreground"):
        _run(root)
    assert not (root / "out").exists()
    (row,) = _rows(_run(root, "--class", "foreground"))
    assert float(row["N grains"]) == 100


def test_grains_are_measured_unasked_where_a_class_is_a_boundary() -> None:
    assert Grains.suits(("grain", "boundary"), False)
    assert not Grains.suits(("ferrite", "martensite"), False)
    assert not Grains.suits(("background", "foreground"), True)
    assert not Grains.suits(("grain", "twin boundary"), False)


def test_twin_boundaries_part_no_grains(tmp_path: Path) -> None:
    drawn = _grid()
    drawn[20:40, 50] = 2
    drawn[110, 77:103] = 2
    classes = "classes: {grain: 0, boundary: 1, twin boundary: 2}\n"
    (row,) = _rows(_run(_folder(tmp_path, {"a": drawn}, classes)))
    assert float(row["N grains"]) == 100


def test_borders_of_phases_part_grains_where_no_class_is_a_boundary(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :200] // 20
    drawn = ((y + x) % 2).astype(np.uint8)
    found = _run(_folder(tmp_path, {"a": drawn}, "classes: {ferrite: 0, martensite: 1}\n"))
    (row,) = _rows(found)
    assert float(row["N grains"]) == 64 + 32 / 2 + 1
    said = json.loads((found / "measure.json").read_text(encoding="utf-8"))
    assert said["grains"]["boundary"] == "borders between ferrite, martensite"


# --- label images ---
def test_label_images_of_16_bits_and_no_background_are_grains(tmp_path: Path) -> None:
    """More than 255 grains that fill the field: nothing lies around them."""
    labels = polycrystals.polycrystal(300, 300, 15, np.random.default_rng(0)).labels
    numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + 1
    assert numbers.max() > 300
    root = _folder(tmp_path, {"a": numbers.astype(np.uint16)}, None)
    (row,) = _rows(_run(root, "--pixel_size", "1um"))
    assert float(row["N grains"]) == polycrystals.grain_count(labels)
    source = inputs.find(resolve([str(root)]))
    assert source.labelled
    one = source.open(0)
    assert one.labels is not None and one.labels.dtype == np.int32
    assert len(np.unique(one.labels)) == numbers.max() and one.labels.min() == 1


def test_numbers_are_kept_where_objects_lie_on_a_background(tmp_path: Path) -> None:
    drawn = np.zeros((120, 120), np.uint16)
    for i in range(9):
        drawn[10 + 35 * (i // 3) :, 10 + 35 * (i % 3) :][:20, :20] = 1000 + 7 * i
    for root in (_folder(tmp_path / "both", {"a": drawn}, None), tmp_path / "alone"):
        if not root.exists():
            root.mkdir()
            cv2.imwrite(str(root / "a.png"), drawn)
        source = inputs.find(resolve([str(root)]))
        assert source.labelled and source.names == ("background", "foreground")
        labels = source.open(0).labels
        assert labels is not None and np.unique(labels).tolist() == list(range(10))
        assert ((labels > 0) == (drawn > 0)).all()


def test_masks_that_lie_alone_are_measured(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / "alone" / f"{name}.png"), _grid() * 255)
    source = inputs.find(resolve([str(tmp_path / "alone")]))
    assert (source.what, source.count) == ("masks", 2)
    assert any("taken for masks" in note for note in source.notes)


def test_classes_are_no_numbers(tmp_path: Path) -> None:
    source = inputs.find(resolve([str(_folder(tmp_path, {"a": _grid()}))]))
    assert not source.labelled and source.open(0).labels is None


def test_colours_number_objects_too() -> None:
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:5, :5], picture[:5, 5:] = (255, 0, 0), (0, 255, 0)
    found = masks.numbers(picture, np.asarray(picture.any(axis=2)))
    assert np.unique(found).tolist() == [0, 1, 2]
    assert found[0, 0] != found[0, 9] and not found[5:].any()


def test_training_still_wants_a_background(tmp_path: Path) -> None:
    labels = polycrystals.polycrystal(100, 100, 20, np.random.default_rng(0)).labels
    numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + 1
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), numbers.astype(np.uint8))
    with pytest.raises(UserError, match="no background around them"):
        masks.find_table([path])
    table, _ = masks.find_table([path], whole=True)
    assert table.instances


def test_a_field_without_grains_has_empty_cells(tmp_path: Path) -> None:
    drawn = {"a": _grid(), "b": np.ones((60, 60), np.uint8), "c": np.zeros((60, 60), np.uint8)}
    found = _run(_folder(tmp_path, drawn), "--pixel_size", "1um")
    text = (found / "grains.csv").read_text(encoding="utf-8-sig").lower()
    assert "nan" not in text and "inf" not in text.replace("information", "")
    rows = {row["image"].split(".")[0]: row for row in _rows(found)}
    assert rows["b"]["N grains"] == "0" and rows["c"]["N grains"] == "1"
    assert not rows["b"]["G intercept (ASTM E112)"]


def test_pixels_that_are_not_square_give_the_lengths_of_both_directions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells of 40 x 20 pixels of 10 x 20 nm are squares of 400 nm."""
    import tifffile

    drawn = np.zeros((200, 400), np.uint8)
    drawn[10::20] = 1
    drawn[:, 20::40] = 1
    root = _folder(tmp_path, {"a": drawn})
    (root / "images" / "a.png").unlink()
    tifffile.imwrite(
        root / "images" / "a.tif",
        np.where(drawn > 0, 60, 180).astype(np.uint8),
        imagej=True,
        resolution=(0.1, 0.05),
        metadata={"unit": "nm"},
    )
    (row,) = _rows(_run(root))
    assert float(row["N grains"]) == 100
    assert float(row["mean intercept 0° (nm)"]) == pytest.approx(400, rel=0.005)
    assert float(row["mean intercept 90° (nm)"]) == pytest.approx(400, rel=0.005)
    assert float(row["field area (µm²)"]) == pytest.approx(16)
    assert "Pixels are not square in 1 field" in capsys.readouterr().out
    (row,) = _rows(_run(root, "--pixel_size", "10nm", "--name", "given"))
    assert float(row["mean intercept 90° (nm)"]) == pytest.approx(200, rel=0.005)


def test_two_specimens_are_compared_by_their_g(tmp_path: Path) -> None:
    """Fields of 16, 19, 22 against 25, 30 px cells: G by Welch over fields."""
    pitches = {"A": (16, 19, 22), "B": (25, 30)}
    drawn = {f"{s}_{i}": _grid(160, p, 7) for s, own in pitches.items() for i, p in enumerate(own)}
    words = ("--group_regex", "^([AB])_", "--compare", "A", "B")
    found = _run(_folder(tmp_path, drawn), "--pixel_size", "1um", *words)
    row = _rows(found, "grains_compared")[0]
    column = "G planimetric (ASTM E112)"
    values = {s: [float(r[column]) for r in _rows(found) if r["specimen"] == s] for s in "AB"}
    assert row["class"] == "G planimetric"
    right = np.mean(values["B"]) - np.mean(values["A"])
    assert float(row["difference G"]) == pytest.approx(right, abs=1e-4)
    assert float(row["difference low G"]) < float(row["difference high G"])
