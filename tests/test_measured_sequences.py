"""Measuring stacks and films: every page is read, and a sequence counts as one field."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from matssl.core.errors import UserError
from matssl.measure import correlation, fractions
from matssl.measure.field import Field, areas, averaged, clusters, together
from matssl.stages.measure import settings
from matssl.stages.measure.loop import measure

pytestmark = pytest.mark.usefixtures("no_drawing")

Mask = NDArray[np.uint8]


def _texture(seed: int, share: float = 0.3, side: int = 96) -> Mask:
    grey = gaussian_filter(np.random.default_rng(seed).standard_normal((side, side)), 1.2)
    return (grey > np.quantile(grey, 1 - share)).astype(np.uint8)


def _stack(path: Path, pages: Sequence[Mask]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.stack(pages), photometric="minisblack")
    return path


def _classes(folder: Path, name: str = "carbide") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.yaml").write_text(f"classes:\n  matrix: 0\n  {name}: 1\n")


def _measured(source: Path, out: Path, *flags: str) -> Path:
    argv = [str(source), "--output_dir", str(out), *flags]
    return measure(settings.resolve(argv, here=True), argv)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


# --- arithmetic ---
def test_frames_of_a_sequence_are_one_and_other_fields_are_themselves() -> None:
    names = ["a", "", "b", "a", "", "b"]
    np.testing.assert_array_equal(clusters(names), [0, 1, 2, 0, 3, 2])
    assert together(list("uvwxyz"), names) == [["u", "x"], ["v"], ["w", "z"], ["y"]]
    values = [1.0, 2.0, 5.0, 3.0, 4.0, float("nan")]
    assert averaged(values, names) == [2.0, 2.0, 5.0, 4.0]
    # The very number of a field that stands for itself.
    assert averaged([0.1 + 0.2], [""]) == [0.1 + 0.2]


def test_an_interval_over_five_films_is_that_over_their_means() -> None:
    shares = [[10, 12, 14], [20], [15, 17], [30, 10], [18]]
    fields = [
        Field(Path(f"{n}{k}"), "", "s", np.array([100 - v, v]), None, f"{n}")
        for n, own in enumerate(shares)
        for k, v in enumerate(own)
    ]
    found = fractions.over_specimens(fields)[1]
    alone = fractions.of_specimen([0.12, 0.2, 0.16, 0.2, 0.18])
    assert found.fraction.mean == pytest.approx(0.172)
    assert found.fraction.half_width == pytest.approx(alone.fraction.half_width)
    assert (found.fields, found.specimens) == (5, 1)


def test_a_film_of_one_frame_tells_what_the_frame_tells() -> None:
    mask = _texture(1)
    one = correlation.of_field(mask == 1)
    assert correlation.of_sequence([one]) is one
    again = correlation.of_sequence([one, one, one])
    assert (again.variance, again.degrees) == (pytest.approx(one.variance), one.degrees)
    empty = correlation.of_field(np.zeros((96, 96), bool))
    assert correlation.of_sequence([one, empty]).refusal == empty.refusal


# --- every measurement, a frame again and again ---
def _grains(seed: int) -> Mask:
    from scipy.spatial import cKDTree

    places = np.random.default_rng(seed).uniform(0, 96, (30, 2))
    at = np.stack(np.meshgrid(np.arange(96), np.arange(96), indexing="ij"), axis=-1).reshape(-1, 2)
    near = cKDTree(places).query(at, 2)[0]
    return (near[:, 1] - near[:, 0] < 1.5).reshape(96, 96).astype(np.uint8)


def _layer(seed: int) -> Mask:
    mask = np.zeros((96, 96), np.uint8)
    mask[30 + seed : 50 + 3 * seed] = 1
    return mask


MADE = {
    "fractions": (_texture, "carbide", ["--what", "fractions"]),
    "objects": (_texture, "carbide", ["--what", "objects"]),
    "grains": (_grains, "boundary", ["--what", "grains"]),
    "layers": (_layer, "oxide layer", ["--what", "layers"]),
    "point_count": (_texture, "carbide", ["--what", "fractions", "--grid", "8x8"]),
}


@pytest.mark.parametrize("what", MADE)
def test_a_frame_shown_again_adds_nothing_to_what_is_known(what: str, tmp_path: Path) -> None:
    """Films of 3 equal frames give the rows of the single frames, interval and all."""
    made, name, flags = MADE[what]
    masks = [made(seed) for seed in range(5)]
    for kind, times in (("single", 1), ("films", 3)):
        _classes(tmp_path / kind, name)
        for number, mask in enumerate(masks):
            path = tmp_path / kind / f"steel {number}.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, np.stack([mask] * times).squeeze(), photometric="minisblack")
        lines = ["image,specimen", *(f"steel {n}.tif,steel" for n in range(5))]
        (tmp_path / kind / "specimens.csv").write_text("\n".join(lines) + "\n")
    single, films = (
        _measured(tmp_path / kind, tmp_path / "out", "--quiet", *flags)
        for kind in ("single", "films")
    )
    one, other = _rows(single / "specimens.csv"), _rows(films / "specimens.csv")
    assert len(one) == len(other) > 0
    counts = ("objects", "points", "cracks", "grains", "N grains")
    # Of a spread of three times as many sizes n - 1 is another number.
    spreads = ("SD (", "D10", "D50", "D90")
    for row, again in zip(one, other, strict=True):
        for head, value in row.items():
            if not head.startswith(counts) and value[:1].isdigit():
                near = 0.03 if any(word in head for word in spreads) else 1e-5
                assert float(again[head]) == pytest.approx(float(value), rel=near), head
    assert any("low" in head or "half width" in head for head in one[0])


# --- which pages are read ---
def test_every_page_of_a_folder_of_mask_stacks_is_a_field_of_its_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _classes(tmp_path / "masks")
    films = {name: [_texture(10 * n + k) for k in range(4)] for n, name in enumerate(("a", "b"))}
    for name, pages in films.items():
        _stack(tmp_path / f"masks/film {name}.tif", pages)
    root = _measured(tmp_path / "masks", tmp_path / "out", "--what", "fractions")
    rows = _rows(root / "fractions.csv")
    assert [(row["sequence"], row["frame"]) for row in rows] == [
        (f"film {name}", str(page)) for name in "ab" for page in (1, 2, 3, 4)
    ]
    truth = [100 * page.mean() for pages in films.values() for page in pages]
    assert [float(r["area fraction carbide %"]) for r in rows] == pytest.approx(truth, rel=1e-4)
    for row in _rows(root / "specimens.csv"):
        assert row["fields"] == "1"
        assert row["area fraction interval"].startswith(("correlation", "none"))
    said = capsys.readouterr().out
    assert "8 of 8 fields are frames of 2 sequences, film a (4), film b (4)" in said
    assert "a sequence counts as one field in every interval" in said
    protocol = json.loads((root / "protocol.json").read_text())
    assert len(protocol["sha256"]) == 2


def test_a_labelled_stack_is_measured_page_by_page(tmp_path: Path) -> None:
    pages = [_texture(k) for k in range(3)]
    _classes(tmp_path / "set")
    _stack(tmp_path / "set/masks/film.tif", pages)
    _stack(tmp_path / "set/images/film.tif", [50 * page + 9 for page in pages])
    root = _measured(tmp_path / "set", tmp_path / "out", "--what", "objects,fractions", "--quiet")
    rows = _rows(root / "fractions.csv")
    assert [row["frame"] for row in rows] == ["1", "2", "3"]
    truth = [100 * page.mean() for page in pages]
    assert [float(r["area fraction carbide %"]) for r in rows] == pytest.approx(truth, rel=1e-4)
    # Its grey levels are those of its own page.
    assert {float(row["mean grey"]) for row in _rows(root / "objects.csv")} == {59.0}


def test_page_n_measures_that_page_of_pictures_and_masks(tmp_path: Path) -> None:
    pages = [_texture(k, share) for k, share in enumerate((0.1, 0.2, 0.4))]
    _classes(tmp_path / "set")
    _stack(tmp_path / "set/masks/film.tif", pages)
    _stack(tmp_path / "set/images/film.tif", [50 * page + 9 for page in pages])
    for place in ("set", "set/masks"):
        root = _measured(
            *(tmp_path / place, tmp_path / "out", "--what", "fractions", "--page", "3"),
            *("--quiet", "--classes", "matrix,carbide"),
        )
        (row,) = _rows(root / "fractions.csv")
        assert float(row["area fraction carbide %"]) == pytest.approx(
            100 * pages[2].mean(), rel=1e-4
        )


@pytest.mark.parametrize(
    ("pictures", "masks", "told"),
    [
        (1, 4, r"masks/film\.tif has 4 pages and its picture .*film\.tif 1 page; save the page"),
        (3, 4, r"masks/film\.tif has 4 pages and its picture .*film\.tif 3 pages"),
        (4, 1, r"images/film\.tif has 4 pages and its mask .* one; --page N says which"),
    ],
)
def test_pages_that_do_not_go_together_are_refused(
    pictures: int, masks: int, told: str, tmp_path: Path
) -> None:
    _stack(tmp_path / "images/film.tif", [_texture(k) + 9 for k in range(pictures)])
    _stack(tmp_path / "masks/film.tif", [_texture(k) for k in range(masks)])
    with pytest.raises(UserError, match=told if pictures != 3 else "4"):
        _measured(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- runs ---
def _run(root: Path, table: Sequence[str], masks: dict[str, Mask]) -> Path:
    (root / "masks/index").mkdir(parents=True)
    for name, mask in masks.items():
        cv2.imwrite(str(root / f"masks/index/{name}.png"), mask)
    (root / "per_image.csv").write_text("\n".join(table) + "\n")
    (root / "metrics.json").write_text(json.dumps({"classes": ["matrix", "carbide"]}))
    (root / "status.json").write_text("{}")
    return root


def test_a_run_says_which_frames_its_masks_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {f"shot{n}": _texture(n) for n in range(6)}
    lines = [f"/gone/shot{n}.png,steel,{'AB'[n // 3]},{n % 3 + 1},50" for n in range(6)]
    run = _run(tmp_path / "run", ["image,group,sequence,frame,pixel_size_nm", *lines], masks)
    root = _measured(run, tmp_path / "out", "--what", "fractions")
    (matrix, carbide) = _rows(root / "specimens.csv")
    assert (matrix["specimen"], carbide["fields"]) == ("steel", "2")
    assert "6 of 6 fields are frames of 2 sequences, A (3), B (3)" in capsys.readouterr().out
    with pytest.raises(UserError, match="frames of the sequence A are of the specimens 0 and 1"):
        _measured(run, tmp_path / "cut", "--group_regex", r"(\d)")


def test_a_run_of_before_tells_pages_by_their_names(tmp_path: Path) -> None:
    masks = {f"film-{n:04}": _texture(n) for n in (1, 2, 3)}
    lines = [f"/gone/film.tif/film-{n:04}.tif,film,50" for n in (1, 2, 3)]
    run = _run(tmp_path / "run", ["image,group,pixel_size_nm", *lines], masks)
    root = _measured(run, tmp_path / "out", "--what", "fractions", "--quiet")
    assert [r["sequence"] for r in _rows(root / "fractions.csv")] == ["film"] * 3
    assert {row["fields"] for row in _rows(root / "specimens.csv")} == {"1"}


def test_pictures_of_a_stack_are_found_with_images(tmp_path: Path) -> None:
    masks = {f"film-{n:04}": _texture(n) for n in (1, 2)}
    _stack(tmp_path / "pictures/film.tif", [50 * mask + 9 for mask in masks.values()])
    lines = [f"/gone/film.tif/film-{n:04}.tif,film,50" for n in (1, 2)]
    run = _run(tmp_path / "run", ["image,group,pixel_size_nm", *lines], masks)
    words = ("--what", "objects", "--images", str(tmp_path / "pictures"), "--quiet")
    root = _measured(run, tmp_path / "out", *words)
    assert {float(row["mean grey"]) for row in _rows(root / "objects.csv")} == {59.0}


def test_one_region_is_that_of_all_pages_and_a_stack_of_regions_is_refused(tmp_path: Path) -> None:
    _classes(tmp_path / "masks")
    _stack(tmp_path / "masks/film.tif", [_texture(k) for k in range(3)])
    region = np.zeros((96, 96), np.uint8)
    region[:48] = 255
    _stack(tmp_path / "roi/film.tif", [region])
    words = ("--what", "fractions", "--quiet", "--roi", str(tmp_path / "roi"))
    root = _measured(tmp_path / "masks", tmp_path / "out", *words)
    assert {row["counted px"] for row in _rows(root / "fractions.csv")} == {str(48 * 96)}
    _stack(tmp_path / "roi/film.tif", [region] * 3)
    with pytest.raises(UserError, match=r"--roi: .*film\.tif has 3 pages; give one region"):
        _measured(tmp_path / "masks", tmp_path / "again", *words)


def test_stacks_are_refused_by_the_algorithms_of_unet_compare(tmp_path: Path) -> None:
    _stack(tmp_path / "film.tif", [255 * _texture(k) for k in range(3)])
    argv = [
        "--algorithm",
        "chac",
        "--seg_dir",
        str(tmp_path),
        "--img_scale",
        "1",
        *"--histogram_bins 0 9 3".split(),
    ]
    from matssl.stages.measure.defects import detect

    with pytest.raises(UserError, match=r"--seg_dir: .*film\.tif has 3 pages; save each as a file"):
        detect(settings.resolve([*argv, "--output_dir", str(tmp_path / "out")], here=True), argv)


def test_areas_of_a_field_are_as_before() -> None:
    field = Field(Path("a"), "a", "s", areas(np.array([[0, 1]], np.uint8), 2))
    assert field.place == {} and (field.sequence, field.frame) == ("", None)
