"""Masks to labelling programs and back, two annotators, annotation files in the place of masks."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import layouts, readers
from matssl.data.annotations import FORMATS, Marked, module_of
from matssl.measure.intervals import jackknife
from matssl.metrics.agreement import kappa
from matssl.pictures.agreement import DIFFERENT, FIRST, PAPER, SECOND, disagreement
from matssl.tools import annotations, doctor, measure
from tests.test_annotation_programs import WRITTEN, _random

NAMES = ("matrix", "Karbid", "α phase-2", "炭化物")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "matssl" / "annotations"


def _png(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def _picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(30, 220, size, np.uint8)


def _run(folder: Path, masks: Mapping[str, NDArray[np.uint8]], images: Path) -> Path:
    """What eval_model.py leaves of its predictions."""
    rows = ["image,group,pixel_size_nm"]
    for name, mask in masks.items():
        _png(images / f"{name}.png", _picture(mask.shape))
        _png(folder / "masks" / "index" / f"{Path(name).name}.png", mask)
        rows.append(f"{images / name}.png,a,")
    (folder / "per_image.csv").write_text("\n".join(rows) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"classes": dict.fromkeys(NAMES, 0.5)}))
    return folder


def _call(*words: object) -> None:
    assert annotations.main([str(word) for word in words]) == 0


# --- export ---
def test_files_lead_to_their_pictures_wherever_they_are_written(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", {"a": _random(1)}, tmp_path / "pictures")
    for place in ("out", "some/where/else"):
        _call("export", run, "--format", "labelme", "--output_dir", tmp_path / place)
        way = json.loads((tmp_path / place / "a.json").read_text())["imagePath"]
        assert (tmp_path / place / way).resolve() == (tmp_path / "pictures/a.png").resolve()
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("format_", WRITTEN)
def test_predictions_of_a_stack_are_exported_with_a_picture_a_page(
    format_: str, moved: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = [_random(2) for _ in range(3)]
    size = masks[0].shape
    film = np.stack([257 * _picture(size, n).astype(np.uint16) for n in range(3)])
    stack = tmp_path / "gone" / "S1" / "film.tif"
    stack.parent.mkdir(parents=True)
    tifffile.imwrite(stack, film, photometric="minisblack")
    rows, run = ["image,group,sequence,frame,pixel_size_nm"], tmp_path / "run"
    for n, mask in enumerate(masks, 1):
        _png(run / "masks" / "index" / f"film-{n:04}.png", mask)
        rows.append(f"{stack}/film-{n:04}.tif,film,film,{n},")
    (run / "per_image.csv").write_text("\n".join(rows) + "\n")
    (run / "metrics.json").write_text(json.dumps({"classes": dict.fromkeys(NAMES, 0.5)}))
    further: tuple[object, ...] = ()
    if moved:
        (tmp_path / "gone").rename(tmp_path / "here")
        _call("export", run, "--format", format_, "--output_dir", tmp_path / "bare")
        assert "3 pictures not found: --images says where they are" in capsys.readouterr().out
        further = ("--images", tmp_path / "here")
    out, back = tmp_path / "out", tmp_path / "back"
    _call("export", run, "--format", format_, "--output_dir", out, *further)
    said = capsys.readouterr().out
    assert "the same pixels in all of 3 pictures" in said
    assert f"3 pages of stacks as pictures, to be opened with the files: {out}/pictures" in said
    pictures = sorted((out / "pictures").rglob("*.png"))
    assert [p.name for p in pictures] == [f"film-{n:04}.png" for n in (1, 2, 3)]
    for path, page in zip(pictures, film, strict=True):
        np.testing.assert_array_equal(readers.read(path).pixels, page)
    (command,) = re.findall(r"annotations (import .*)", said)
    _call(*command.replace("MASKS", str(back)).split())
    for path, mask in zip(sorted(back.rglob("film-*.png")), masks, strict=True):
        np.testing.assert_array_equal(readers.read_mask(path), mask)


@pytest.mark.parametrize("format_", WRITTEN)
def test_predictions_come_back_through_import_as_they_were(
    format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {"S1/a": _random(1), "S2/b": _random(2), "S2/c d": _random(4)}
    run = _run(tmp_path / "run", masks, tmp_path / "pictures")
    out, back = tmp_path / "out", tmp_path / "back"
    _call("export", run, "--format", format_, "--output_dir", out)
    said = capsys.readouterr().out
    assert "the same pixels in all of 3 pictures" in said
    _call(
        *("import", out, "--format", format_, "--images", tmp_path / "pictures"),
        *("--classes", out / "classes.yaml", "--output_dir", back),
    )
    for name, mask in masks.items():
        assert (np.asarray(readers.read_mask(back / f"{name}.png")) == mask).all()


def test_a_labelled_folder_and_masks_alone_are_exported_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((20, 31), np.uint8)
    mask[3:9, 4:20], mask[12:, 5:8] = 1, 2
    _png(tmp_path / "set" / "images" / "a.png", _picture(mask.shape))
    _png(tmp_path / "set" / "masks" / "a.png", mask)
    text = "classes: {matrix: 0, pore: 1, carbide: 2}\n"
    (tmp_path / "set" / "classes.yaml").write_text(text)
    _call("export", tmp_path / "set", "--format", "QuPath", "--output_dir", tmp_path / "q")
    content = json.loads((tmp_path / "q" / "images" / "a.geojson").read_text())
    names = [f["properties"]["classification"]["name"] for f in content["features"]]
    assert names == ["pore", "carbide"]
    masks = tmp_path / "set" / "masks"
    _call(
        "export",
        masks,
        "--format",
        "labelme",
        "--output_dir",
        tmp_path / "l",
        "--every_class",
        "--classes",
        "matrix,pore,carbide",
    )
    content = json.loads((tmp_path / "l" / "a.json").read_text())
    assert {s["label"] for s in content["shapes"]} == {"matrix", "pore", "carbide"}
    assert "without images beside" in capsys.readouterr().out


def test_a_mask_that_ends_above_the_information_bar_is_filled_up_with_ignored_rows(
    tmp_path: Path,
) -> None:
    mask = np.ones((20, 31), np.uint8)
    run = _run(tmp_path / "run", {"a": mask}, tmp_path / "pictures")
    _png(tmp_path / "pictures" / "a.png", _picture((24, 31)))
    _call("export", run, "--format", "napari_labels", "--output_dir", tmp_path / "n")
    drawn = np.asarray(readers.read_mask(tmp_path / "n" / "a.tif"))
    assert (drawn[:20] == 1).all() and (drawn[20:] == IGNORE).all()


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", {"a": _random(1)}, tmp_path / "pictures")
    out = tmp_path / "out"

    def told(*more: object) -> str:
        with pytest.raises(UserError) as error:
            _call("export", run, "--output_dir", out, *more)
        assert not out.exists()
        return str(error.value)

    assert "read and not written" in told("--format", "via")
    assert "unknown format 'paint'" in told("--format", "paint")
    assert "leave --classes out" in told("--format", "labelme", "--classes", "a,b")
    content = {"classes": {"a": 1, "b": 1, "c": 1, "Background": 1}}
    (run / "metrics.json").write_text(json.dumps(content))
    assert "class 3 is called 'Background'" in told("--format", "labelme")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- two annotators ---
def _two(folder: Path) -> tuple[Path, Path]:
    """Ten by ten pixels: A says 40 of class 1, B 50; 30 of them are the same."""
    a, b = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    a[:4], b[1:6] = 1, 1
    for name, mask in (("a", a), ("b", b)):
        _png(folder / name / "p.png", mask)
    return folder / "a", folder / "b"


def test_two_that_agree_differ_nowhere_and_all_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = _two(tmp_path)
    for first, second, differ in ((one, one, False), (one, other, True)):
        out = tmp_path / f"out {differ}"
        _call("compare", first, second, "--classes", "matrix,pore", "--output_dir", out)
        page = (out / "report.html").read_text()
        assert ("Where they differ most" in page) == differ
        assert ("Both give each pixel the same class." in page) != differ
        written = capsys.readouterr().out.splitlines()[-1]
        for path in out.glob("*.csv"):
            assert path.name in written


def test_agreement_is_what_hand_arithmetic_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = _two(tmp_path)
    out = tmp_path / "out"
    _call("compare", one, other, "--classes", "matrix,pore", "--output_dir", out)
    with open(out / "agreement.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    # 30 both, 10 A alone, 20 B alone, 40 neither.
    assert float(rows["pore"]["IoU"]) == pytest.approx(30 / 60)
    assert float(rows["pore"]["Dice"]) == pytest.approx(60 / 90, rel=1e-5)
    assert float(rows["matrix"]["IoU"]) == pytest.approx(40 / 70, rel=1e-5)
    assert rows["pore"]["IoU low"] == ""
    with open(out / "summary.csv", newline="") as file:
        figures = {row["figure"]: float(row["value"]) for row in csv.DictReader(file)}
    # p_o = 0.7, p_e = 0.4 * 0.5 + 0.6 * 0.5 = 0.5.
    assert figures["Cohen's kappa"] == pytest.approx(0.4)
    assert figures["share of equal pixels"] == pytest.approx(0.7)
    with open(out / "confusion.csv", newline="") as file:
        (_, *names), *lines = csv.reader(file)
    assert names == ["matrix", "pore"] and lines == [["matrix", "40", "20"], ["pore", "10", "30"]]
    assert (out / "report.html").is_file() and (out / "pictures" / "p.png").is_file()
    said = capsys.readouterr().out
    assert "no intervals below 5 pictures" in said and "0.400" in said


def test_who_is_called_a_and_who_b_changes_no_figure(tmp_path: Path) -> None:
    one, other = _two(tmp_path)
    words = ("--classes", "matrix,pore", "--output_dir")
    _call("compare", one, other, *words, tmp_path / "ab")
    _call("compare", other, one, *words, tmp_path / "ba")
    figures = [(tmp_path / name / "summary.csv").read_text() for name in ("ab", "ba")]
    assert figures[0] == figures[1]


def test_kappa_is_the_one_of_the_worked_example_of_1960_and_none_of_one_class() -> None:
    # Cohen 1960, table 1: p_o = .29, p_e = .41 x .. is given in shares of 200.
    counts = np.array([[50, 26, 24], [24, 4, 32], [6, 30, 4]])
    observed, rows, columns = 58 / 200, counts.sum(axis=1) / 200, counts.sum(axis=0) / 200
    expected = float(rows @ columns)
    assert expected == pytest.approx(0.5 * 0.4 + 0.3 * 0.3 + 0.2 * 0.3)
    assert kappa(counts) == pytest.approx((observed - expected) / (1 - expected))
    assert kappa(np.diag([3, 9])) == 1 and math.isnan(kappa(np.array([[7, 0], [0, 0]])))


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.array([0.62, 0.7, 0.66, 0.71, 0.58, 0.64])
    without = [float(np.delete(values, i).mean()) for i in range(6)]
    found = jackknife(float(values.mean()), without)
    # t(5) = 2.5706
    half = 2.570582 * values.std(ddof=1) / math.sqrt(6)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), rel=1e-6
    )
    assert math.isnan(jackknife(0.5, [0.4, 0.5, 0.5, 0.6]).low)
    assert math.isnan(jackknife(0.0, [0.0] * 6).low)
    assert math.isnan(jackknife(0.5, [0.5, 0.5, math.nan, 0.5, 0.5]).low)


def test_six_pictures_carry_intervals(tmp_path: Path) -> None:
    for number in range(6):
        mask = (_picture((30, 40), number) > 120).astype(np.uint8)
        _png(tmp_path / "a" / f"p{number}.png", mask)
        mask[:, : 2 + number] = 0
        _png(tmp_path / "b" / f"p{number}.png", mask)
    _call(
        "compare",
        tmp_path / "a",
        tmp_path / "b",
        "--classes",
        "m,p",
        "--output_dir",
        tmp_path / "o",
    )
    with open(tmp_path / "o" / "agreement.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name in ("IoU", "Dice", "boundary F1"):
                low, value, high = (float(row[f"{name}{end}"]) for end in (" low", "", " high"))
                assert 0 <= low < value < high <= 1


def test_names_that_differ_hardly_are_a_question_and_others_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = _two(tmp_path)
    (one / "classes.yaml").write_text("classes: {matrix: 0, Pore: 1}\n")
    (other / "classes.yaml").write_text("classes: {matrix: 0, pore: 1}\n")
    with pytest.raises(UserError, match="'Pore' and .* 'pore': give both one name"):
        _call("compare", one, other, "--output_dir", tmp_path / "o")
    (other / "classes.yaml").write_text("classes: {matrix: 0, crack: 1}\n")
    _call("compare", one, other, "--output_dir", tmp_path / "o")
    assert "alone: crack" in capsys.readouterr().out
    (other / "classes.yaml").write_text("classes: {ferrite: 0, crack: 1}\n")
    with pytest.raises(UserError, match="no class in common"):
        _call("compare", one, other, "--output_dir", tmp_path / "p")


def test_an_annotation_file_and_a_mask_of_one_picture_are_compared(tmp_path: Path) -> None:
    mask = np.zeros((20, 31), np.uint8)
    mask[3:9, 4:20] = 1
    _png(tmp_path / "images" / "p.png", _picture(mask.shape))
    module: Any = module_of("qupath")
    module.write(tmp_path / "a", [Marked("p.png", mask)], {1: "pore"})
    mask[3] = 0
    _png(tmp_path / "b" / "p.png", mask)
    (tmp_path / "b" / "classes.yaml").write_text("classes: {background: 0, pore: 1}\n")
    _call(
        *("compare", tmp_path / "a", tmp_path / "b", "--images", tmp_path / "images"),
        *("--output_dir", tmp_path / "o"),
    )
    with open(tmp_path / "o" / "agreement.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert float(rows["pore"]["IoU"]) == pytest.approx(80 / 96, rel=1e-5)


def test_annotations_without_pictures_are_compared_on_those_of_the_other(tmp_path: Path) -> None:
    mask = np.zeros((20, 31), np.uint8)
    mask[3:9, 4:20] = 1
    _png(tmp_path / "a" / "p.png", _picture(mask.shape))
    for folder, format_ in (("a", "coco"), ("b", "qupath")):
        module: Any = module_of(format_)
        module.write(tmp_path / folder, [Marked("p.png", mask)], {1: "pore"})
        mask[3] = 0
    for name, sides in (("ab", "ab"), ("ba", "ba")):
        _call("compare", *(tmp_path / side for side in sides), "--output_dir", tmp_path / name)
        with open(tmp_path / name / "agreement.csv", newline="") as file:
            rows = {row["class"]: row for row in csv.DictReader(file)}
        assert float(rows["pore"]["IoU"]) == pytest.approx(80 / 96, rel=1e-5)
    (tmp_path / "a" / "p.png").unlink()
    with pytest.raises(UserError, match="holds no pictures; --images says where they are"):
        _call("compare", tmp_path / "a", tmp_path / "b")


def test_pictures_show_where_two_differ_and_both_outlines() -> None:
    one, other = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    one[:, :3], other[:, :5] = 1, 1
    other[5, 3] = IGNORE
    drawn = disagreement(one, other)
    assert drawn[0, 2].tolist() == list(FIRST) and drawn[0, 4].tolist() == list(SECOND)
    assert drawn[0, 0].tolist() == [PAPER] * 3
    mixed = np.rint(0.6 * np.array(DIFFERENT) + 0.4 * PAPER)
    assert drawn[0, 3].tolist() == mixed.tolist()


# --- annotation files in the place of masks ---
def _annotated(root: Path, format_: str, folder: str = "") -> dict[str, NDArray[np.uint8]]:
    masks = {f"p{n}.png": _random(n) for n in range(1, 4)}
    for name, mask in masks.items():
        _png(root / name, _picture(mask.shape, 1))
    module: Any = module_of(format_)
    marked = [Marked(n, m) for n, m in masks.items()]
    module.write(root / folder, marked, {1: "a", 2: "b", 3: "c"})
    return masks


@pytest.mark.parametrize(
    "format_", [n for n in WRITTEN if n not in ("napari_labels", "ilastik", "ome_zarr_05")]
)
def test_a_folder_with_annotation_files_is_read_as_if_it_were_imported(
    format_: str, tmp_path: Path
) -> None:
    masks = _annotated(tmp_path, format_)
    found = layouts.find(tmp_path)
    assert found.layout == f"images with annotations of {format_}"
    assert found.table is not None
    assert found.table.names == ("background", "a", "b", "c")
    for pair in found.pairs:
        assert pair.mask is not None
        decoded = found.table.decode(readers.read_mask(pair.mask))
        assert (decoded == masks[pair.image.name]).all()
    said = " ".join(found.notes)
    assert f"annotations of {format_}: 3 pictures" in said
    assert "is taken for background (0)" in said


def test_what_was_made_once_is_read_again_and_a_corrected_file_gives_new_masks(
    tmp_path: Path, _cache: Path
) -> None:
    _annotated(tmp_path, "labelme")
    first = layouts.find(tmp_path)
    again = layouts.find(tmp_path)
    assert [p.mask for p in first.pairs] == [p.mask for p in again.pairs]
    assert first.notes == again.notes and len(list(_cache.iterdir())) == 1
    file = tmp_path / "p2.json"
    content = json.loads(file.read_text())
    content["shapes"] = content["shapes"][:1]
    file.write_text(json.dumps(content))
    changed = layouts.find(tmp_path)
    assert first.pairs[1].mask != changed.pairs[1].mask
    shutil.rmtree(_cache)
    rebuilt = layouts.find(tmp_path)
    assert [p.mask for p in rebuilt.pairs] == [p.mask for p in changed.pairs]


def test_masks_go_before_annotation_files_which_are_named(tmp_path: Path) -> None:
    masks = _annotated(tmp_path / "images", "labelme")
    for name, mask in masks.items():
        _png(tmp_path / "masks" / name, np.where(mask == 1, np.uint8(1), np.uint8(0)))
    found = layouts.find(tmp_path)
    assert found.layout == "images + masks" and found.made is None
    assert any("3 files of LabelMe" in note for note in found.notes)


@pytest.mark.parametrize("folder", ["labels", "annotations", "json"])
def test_annotations_in_a_folder_beside_the_images_are_found(folder: str, tmp_path: Path) -> None:
    masks = _annotated(tmp_path / "images", "coco", f"../{folder}")
    found = layouts.find(tmp_path)
    assert found.made is not None
    assert sorted(pair.image.name for pair in found.pairs) == sorted(masks)
    # Named by --mask_folder it is the same.
    named = layouts.find(tmp_path / "images", mask_folder=str(tmp_path / folder))
    assert named.made is not None and len(named.pairs) == 3


def test_folders_of_splits_with_a_file_each_keep_their_splits(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        mask = _random(number + 1)
        _png(tmp_path / split / f"p{number}.png", _picture(mask.shape))
        module: Any = module_of("coco")
        module.write(tmp_path / split, [Marked(f"p{number}.png", mask)], {1: "a", 2: "b", 3: "c"})
    found = layouts.find(tmp_path)
    assert [(p.image.name, p.split) for p in found.pairs] == [
        ("p0.png", "train"),
        ("p1.png", "val"),
        ("p2.png", "test"),
    ]


def test_a_class_file_in_the_folder_gives_labels_their_numbers(tmp_path: Path) -> None:
    masks = _annotated(tmp_path, "labelme")
    (tmp_path / "classes.yaml").write_text("classes: {matrix: 0, c: 1, a: 2, b: 3}\n")
    found = layouts.find(tmp_path)
    assert found.table is not None and found.table.names == ("matrix", "c", "a", "b")
    (mask,) = [p.mask for p in found.pairs if p.image.name == "p1.png"]
    assert mask is not None
    places = np.arange(256, dtype=np.uint8)
    places[:4] = (0, 2, 3, 1)
    assert (found.table.decode(readers.read_mask(mask)) == places[masks["p1.png"]]).all()


def test_masks_that_import_wrote_keep_their_names_as_mask_folder(tmp_path: Path) -> None:
    _annotated(tmp_path / "images", "labelme", "../drawn")
    words = ("--images", tmp_path / "images", "--output_dir", tmp_path / "masks")
    _call("import", tmp_path / "drawn", *words)
    found = layouts.find(tmp_path / "images", mask_folder=str(tmp_path / "masks"))
    assert found.table is not None
    assert found.table.names == ("background", "a", "b", "c")
    # A class file of the data set goes first.
    text = "classes: {m: 0, x: 1, y: 2, z: 3}\nignore: 255\n"
    (tmp_path / "images" / "classes.yaml").write_text(text)
    found = layouts.find(tmp_path / "images", mask_folder=str(tmp_path / "masks"))
    assert found.table is not None and found.table.names == ("m", "x", "y", "z")


def test_what_import_would_ask_is_asked_with_the_command_that_answers(tmp_path: Path) -> None:
    _png(tmp_path / "p.png", _picture((40, 50)))
    boxes = [[[2, 2], [30, 2], [30, 30], [2, 30], [2, 2]], [[9, 9], [40, 9], [40, 20], [9, 9]]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}},
        }
        for name, ring in zip("ab", boxes, strict=True)
    ]
    (tmp_path / "p.geojson").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"a and b both claim .*--overlap.*annotations import"):
        layouts.find(tmp_path)
    module: Any = module_of("labelme")
    module.write(tmp_path, [Marked("p.png", np.ones((40, 50), np.uint8))], {1: "a"})
    with pytest.raises(UserError, match="labelme and qupath; .*--format NAME"):
        layouts.find(tmp_path)


def test_pictures_without_annotation_are_for_prediction(tmp_path: Path) -> None:
    _annotated(tmp_path, "imagej")
    _png(tmp_path / "p9.png", _picture((30, 30)))
    found = layouts.find(tmp_path)
    alone = [p for p in found.pairs if p.mask is None]
    assert [p.image.name for p in alone] == ["p9.png"]
    assert "1 image without a mask" in " ".join(found.notes)


def test_the_doctor_and_the_measurement_take_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((64, 80), np.uint8)
    mask[:16] = 1
    for number in range(2):
        _png(tmp_path / "set" / f"p{number}.png", _picture(mask.shape, number))
    module: Any = module_of("cvat")
    pictures = [Marked(f"p{number}.png", mask) for number in range(2)]
    module.write(tmp_path / "set", pictures, {1: "pore"})
    assert doctor.main([str(tmp_path / "set")]) in (0, 1)
    said = capsys.readouterr().out
    assert "annotations of cvat: 2 pictures" in said
    # Not the name of a file in the cache.
    assert re.search(r"p1\.png +from annotations ", said) and "000001.png" not in said
    words = [str(tmp_path / "set"), "--what", "fractions", "--output_dir", str(tmp_path / "o")]
    assert measure.main(words) == 0
    table = next((tmp_path / "o").rglob("fractions.csv")).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["area fraction pore %"] for row in rows] == ["25", "25"]


def test_formats_that_are_read_only_say_so() -> None:
    assert set(FORMATS) - set(WRITTEN) <= {"via", "yolo"}
