"""The command on objects: flags, files, units, pictures, and the old name it had."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.pictures import objects as pictures
from matssl.stages.measure import export
from matssl.stages.measure.object_settings import area, depth
from matssl.stages.measure.objects import Objects
from matssl.tools import measure, regions


def _mask() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 2:8] = 1
    mask[6:9, 8:12] = 1  # touches the first at a corner
    mask[14:20, 20:24] = 1  # reaches the lower edge
    mask[12:14, 2:4] = 1  # four pixels
    mask[1:5, 20:25] = 2
    return mask


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _run_folder(root: Path, images: tuple[str, ...] = ("480h_1", "480h_2", "24h_1")) -> Path:
    """What eval_model.py leaves: two images of a batch and one of another, the last with a bar."""
    for name in images:
        mask = _mask()
        if name == "24h_1":
            mask[18:] = 255
        place = root / "masks" / "index" / f"{name.replace('/', '_')}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), mask)
    (root / "metrics.json").write_text(json.dumps({"classes": ["matrix", "carbide", "pore"]}))
    lines = [f"x/{n}.tif,{n},{100 * (i + 1)}" for i, n in enumerate(images)]
    (root / "per_image.csv").write_text("image,group,pixel_size_nm\n" + "\n".join(lines) + "\n")
    return root


def _labelled(root: Path, *masks: np.ndarray) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number, mask in enumerate(masks):
        cv2.imwrite(str(root / "images" / f"f{number}.png"), 40 + 100 * np.minimum(mask, 1))
        cv2.imwrite(str(root / "masks" / f"f{number}.png"), mask)
    (root / "classes.yaml").write_text("classes: {matrix: 0, particle: 1}\n")
    return root


def _measure(tmp_path: Path, *flags: object) -> Path:
    words = [str(flag) for flag in flags]
    assert measure.main([*words, "--output_dir", str(tmp_path / "out"), "--quiet"]) == 0
    return next((tmp_path / "out" / "measure").iterdir())


def test_predictions_are_measured_by_production_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run_folder(tmp_path / "run")
    flags = ("--what", "objects", "--group_regex", "^([^_]+)_", "--min_area", "4")
    out = _measure(tmp_path, run, *flags, "--pixel_size", "100nm")
    rows = {(r["specimen"], r["class"]): r for r in _rows(out / "specimens.csv")}
    batches = ("480h", "24h", "all together")
    assert set(rows) == {(batch, kind) for batch in batches for kind in ("carbide", "pore")}
    carbide = rows["480h", "carbide"]
    assert (carbide["fields"], carbide["objects"], carbide["objects at edge"]) == ("2", "6", "2")
    # 2 x 2.5 on 2 x 20 x 30 pixels of 100 nm; the table is in nm, so that it is per µm².
    assert float(carbide["N_A (per µm²)"]) == pytest.approx(5 / (1200 * 0.01), rel=1e-5)
    # Behind the bar is no field: there the object reaches the edge, too.
    assert rows["24h", "carbide"]["objects at edge"] == "1"
    lines = _rows(out / "objects.csv")
    assert len(lines) == 12 and {row["area (nm²)"] for row in lines} >= {"360000"}
    assert [row["id"] for row in lines][:4] == ["1", "2", "3", "4"]
    assert list((out / "fields").glob("*_objects.png")) and list(out.glob("sizes_1_*.png"))
    assert "carbide" in capsys.readouterr().out
    assert "touch an edge" in (out / "report.html").read_text(encoding="utf-8")


def test_pixel_sizes_and_specimens_are_kept_where_two_images_share_a_name(tmp_path: Path) -> None:
    """C3: eval_model.py then puts the folder before the stem."""
    run = _run_folder(tmp_path / "run", ("a/x", "b/x", "b/y"))
    for mask in (run / "masks" / "index").iterdir():
        if mask.name == "b_y.png":
            mask.rename(mask.with_name("y.png"))
    out = _measure(tmp_path, run, "--what", "objects", "--class", "pore")
    found = {row["image"]: row for row in _rows(out / "objects.csv")}
    for number, name in enumerate(("a_x", "b_x", "y"), 1):
        assert found[name]["specimen"] == ("a/x", "b/x", "b/y")[number - 1]
        assert float(found[name]["area (µm²)"]) == pytest.approx(20 * (0.1 * number) ** 2)


def test_images_of_one_name_in_two_folders_keep_their_rows_and_pictures(tmp_path: Path) -> None:
    for place in ("train", "val"):
        for kind, value in (("", 120), ("_annot", 255)):
            path = tmp_path / "set" / f"{place}{kind}" / "x.png"
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), np.minimum(_mask(), 1) * value)
    out = _measure(tmp_path, tmp_path / "set", "--what", "objects")
    images = {row["image"] for row in _rows(out / "objects.csv")}
    assert images == {"train/x.png", "val/x.png"}
    assert len(list((out / "fields").glob("*_objects.png"))) == 2


def test_mixed_and_missing_pixel_sizes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run_folder(tmp_path / "run")
    _measure(tmp_path, run, "--what", "objects")
    assert "Pixel sizes from 100 to 300 nm: each field is measured" in capsys.readouterr().out
    table = (run / "per_image.csv").read_text()
    (run / "per_image.csv").write_text(table.replace(",300", ","))
    out = _measure(tmp_path, run, "--what", "objects", "--overwrite")
    assert "area (px)" in _rows(out / "objects.csv")[0]
    said = capsys.readouterr().out
    assert "24h_1 has no pixel size and others have one" in said and "lengths are in pixels" in said


def test_the_old_command_says_the_new_one_and_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run_folder(tmp_path / "run")
    assert regions.main([str(run), "--min_area", "20", "--output_dir", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "python -m matssl.tools.measure" in said and "--what objects" in said
    rows = _rows(tmp_path / "o" / "measure" / "run" / "objects.csv")
    areas = {row["image"]: 0 for row in rows}
    assert len(areas) == 3 and len(rows) == 9


def test_masks_that_none_can_read_leave_nothing_behind(tmp_path: Path) -> None:
    run = _run_folder(tmp_path / "run")
    for mask in (run / "masks" / "index").iterdir():
        mask.write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of 3 masks can be read; the first: "):
        measure.main([str(run), "--what", "objects", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_numbers_of_a_mask_are_its_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((60, 80), np.uint8)
    for number in range(12):
        y, x = divmod(number, 4)
        # Neighbours touch: only their numbers tell them apart.
        mask[5 + 15 * y : 20 + 15 * y, 5 + 15 * x : 20 + 15 * x] = number + 1
    for kind, pixels in (("images", mask * 5), ("masks", mask)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "set" / kind / "a.png"), pixels)
    out = _measure(tmp_path, tmp_path / "set", "--what", "objects", "--separate")
    assert {row["area (px)"] for row in _rows(out / "objects.csv")} == {"225"}
    assert len(_rows(out / "objects.csv")) == 12
    assert "taken as they are; --separate did not act" in capsys.readouterr().out


def test_a_run_without_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "masks" / "index").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "index" / "a.png"), _mask())
    with pytest.raises(UserError, match="broken off"):
        regions.main([str(tmp_path)])


def test_a_smallest_area_is_pixels_or_an_area_and_no_length() -> None:
    assert area("12") == area("12px") == (12.0, False)
    assert area("0.05um2") == pytest.approx((0.05e6, True))
    assert area("50 nm²") == pytest.approx((50, True))
    assert area("0.05µm^2") == pytest.approx((0.05e6, True))
    assert depth("2") == (2.0, False) and depth("0.1um") == pytest.approx((100, True))
    for wrong in ("12 bananas", "", "-3", "0", "nan", "1e400um2", "um2", "3,5"):
        with pytest.raises(UserError, match="--min_area"):
            area(wrong)
    with pytest.raises(UserError, match="is a length, and an area is wanted: write 0.05um2"):
        area("0.05um")
    with pytest.raises(UserError, match="is no length"):
        depth("4um2")


def test_flags_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    run = str(_run_folder(tmp_path / "run"))
    with pytest.raises(UserError, match="--separation_depth acts with --separate"):
        measure.main([run, "--separation_depth", "2"])
    with pytest.raises(UserError, match="--separate, --spheres: only --what objects takes it"):
        measure.main([run, "--what", "fractions", "--separate", "--spheres"])
    with pytest.raises(UserError, match="is a length, and an area is wanted"):
        measure.main([run, "--what", "objects", "--min_area", "0.1um"])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "run"]


def test_a_smallest_area_in_units_of_length_needs_a_pixel_size(tmp_path: Path) -> None:
    folder = _labelled(tmp_path / "set", *[np.minimum(_mask(), 1)] * 2)
    with pytest.raises(UserError, match="has no pixel size, so that --min_area 0.05um2"):
        _measure(tmp_path, folder, "--what", "objects", "--min_area", "0.05um2")
    assert not (tmp_path / "out").exists()
    out = _measure(
        tmp_path, folder, *("--what", "objects", "--min_area", "0.24um2", "--pixel_size", "0.1um"),
        "--overwrite",
    )  # fmt: skip
    assert {float(row["area (nm²)"]) for row in _rows(out / "objects.csv")} == {3.6e5, 2.4e5}


def test_every_flag_changes_what_it_says(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:90, :120]
    pair = (np.hypot(columns - 40, rows - 40) <= 15) | (np.hypot(columns - 63, rows - 40) <= 12)
    pair &= np.hypot(columns - 40, rows - 40) > 2
    folder = _labelled(tmp_path / "set", *[pair.astype(np.uint8)] * 2)
    base = (folder, "--what", "objects", "--pixel_size", "2um", "--overwrite")
    plain = _measure(tmp_path, *base)
    assert len(_rows(plain / "objects.csv")) == 2
    assert not (plain / "spheres.csv").exists()
    one = _rows(plain / "objects.csv")[0]
    assert one["holes"] == "1" and float(one["mean grey"]) == 140
    out = _measure(tmp_path, *base, "--fill_holes", "--separate", "--spheres")
    found = _rows(out / "objects.csv")
    assert len(found) == 4 and {row["holes"] for row in found} == {"0"}
    assert [float(row["x (µm)"]) / 2 for row in found[:2]] == pytest.approx([40.4, 64.0], abs=0.7)
    assert len(_rows(out / "spheres.csv")) == 12 * 3
    coarse = _measure(tmp_path, *base, "--separate", "--fill_holes", "--separation_depth", "30um")
    assert len(_rows(coarse / "objects.csv")) == 2


def test_tables_carry_units_intervals_and_no_nan(tmp_path: Path) -> None:
    generator, masks = np.random.default_rng(0), []
    for _ in range(6):
        mask = np.zeros((120, 160), np.uint8)
        for _ in range(30):
            y, x, r = (int(v) for v in generator.integers((0, 0, 4), (120, 160, 9)))
            cv2.circle(mask, (x, y), r, 1, -1)
        masks.append(mask)
    folder = _labelled(tmp_path / "set", *masks)
    (folder / "specimens.csv").write_text(
        "image,specimen\n" + "".join(f"f{i}.png,s\n" for i in range(6))
    )
    out = _measure(tmp_path, folder, "--what", "objects", "--pixel_size", "50nm")
    (row,) = _rows(out / "specimens.csv")
    low, mean, high = (
        float(row[name])
        for name in ("mean ECD (nm), 95 % low", "mean ECD (nm)", "mean ECD (nm), 95 % high")
    )
    assert low < mean < high
    sizes = _rows(out / "sizes.csv")
    assert [own["by"] for own in sizes] == ["number", "area"]
    assert float(sizes[1]["mean ECD (nm)"]) > float(sizes[0]["mean ECD (nm)"])
    classes = _rows(out / "size_classes.csv")
    assert float(classes[-1]["cumulative by area (%)"]) == pytest.approx(100)
    fields = _rows(out / "fields_E1245.csv")
    assert len(fields) == 6 and sum(int(own["worst field"]) for own in fields) == 1
    worst = next(own for own in fields if own["worst field"] == "1")
    assert worst["image"] == row["worst field"]
    share = float(fields[0]["A_A (%)"]) / 100
    free = 2 * (1 - share) / (float(fields[0]["S_V (1/nm)"]) / 2)
    assert float(fields[0]["mean free path (nm)"]) == pytest.approx(free, rel=1e-4)
    numbers = [v for table in (classes, fields, sizes) for own in table for v in own.values()]
    assert not {"nan", "inf"} & {str(v).lower() for v in numbers}
    told = json.loads((out / "measure.json").read_text(encoding="utf-8"))["objects"]
    assert told["unit of length"] == "nm" and math.isfinite(told["specimens"][0]["D50 (nm)"])
    assert (out / "objects.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_long_tables_are_whole_in_csv_and_begun_in_the_workbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHEET_ROWS", 5)
    monkeypatch.setattr(export, "CHUNK", 2)
    out = _measure(tmp_path, _run_folder(tmp_path / "run"), "--what", "objects", "--min_area", "4")
    assert len(_rows(out / "objects.csv")) == 12
    with zipfile.ZipFile(out / "measure.xlsx") as book:
        strings = book.read("xl/sharedStrings.xml").decode()
        # Of the sheets the second, behind that of the specimens.
        rows = book.read("xl/worksheets/sheet2.xml").count(b"<row ")
    assert rows == 1 + 5 + 1 and "the first 5 of 12 rows; all of them: objects.csv" in strings


def test_pictures_of_many_objects_number_the_largest_and_draw_without_a_micrograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageDraw

    labels = np.zeros((160, 320), np.int32)
    boxes = []
    for number in range(400):
        y, x = 2 + 7 * (number // 20), 2 + 16 * (number % 20)
        labels[y : y + 4, x : x + 4] = number + 1
        boxes.append((x, y, 4, 4))
    written: list[str] = []
    text = ImageDraw.ImageDraw.text

    def noted(self: object, xy: object, said: str, *rest: object, **more: object) -> None:
        written.append(said)
        text(self, xy, said, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    for count in (400, 20):
        written.clear()
        one = pictures.Outlined(
            "particle $x",
            np.where(labels <= count, labels, 0).astype(np.int32),
            1,
            np.array(boxes[:count]),
            np.full(count, 16.0),
            np.zeros(count, bool),
        )
        path = tmp_path / f"{count}.png"
        pictures.overlay(None, [one], path, "a", 10.0)
        numbers = [said for said in written if said.isdigit()]
        assert len(numbers) == (pictures.LARGEST if count == 400 else count)
        assert cv2.imread(str(path)).shape == (160 * 5 + 92, 1600, 3)


def test_objects_are_measured_where_a_class_may_be_some() -> None:
    assert Objects.suits(("matrix", "particle"), False)
    assert Objects.suits(("background", "grain boundary"), True)
    assert not Objects.suits(("background", "grain boundary"), False)
    assert not Objects.suits(("background", "oxide", "crack"), False)
