"""The command's area fractions: by specimen, with both errors, compared, from a run or a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from matssl.core.errors import UserError
from matssl.stages.measure import settings
from matssl.stages.measure.loop import measure

CLASSES = ["ferrite", "pearlite", "carbide"]
SPECIMENS = {"steel 1": (0.12, 6), "steel 2": (0.2, 6), "steel 3": (0.31, 1), "cast": (0.02, 5)}


def _run_of_predictions(root: Path) -> Path:
    """A folder of results of eval_model.py: masks, their table, their classes."""
    rng, lines = np.random.default_rng(0), ["image,group,pixel_size_nm"]
    (root / "masks/index").mkdir(parents=True)
    for specimen, (share, count) in SPECIMENS.items():
        for number in range(count):
            grey = gaussian_filter(rng.standard_normal((120, 160)), 1.5)
            mask = (grey > np.quantile(grey, 1 - share * rng.uniform(0.8, 1.2))).astype(np.uint8)
            if specimen == "steel 2":
                mask[grey < np.quantile(grey, 0.08)] = 2
            name = f"{specimen.replace(' ', '')}_{number}"
            cv2.imwrite(str(root / f"masks/index/{name}.png"), mask)
            lines.append(f"/gone/{name}.tif,{specimen},50")
    (root / "per_image.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "metrics.json").write_text(json.dumps({"classes": CLASSES}), encoding="utf-8")
    (root / "status.json").write_text("{}", encoding="utf-8")
    return root


def _folds(root: Path, specimens: int = 8, classes: list[str] = CLASSES) -> Path:
    """A run folder with held-out truth: pearlite is missed by a fifth, and found by error."""
    rng, images = np.random.default_rng(1), []
    for specimen in range(specimens):
        for number in range(2):
            share, carbide = np.clip(rng.normal(0.2, 0.08), 0.02, 0.6), rng.uniform(0.02, 0.04)
            miss, alarm = rng.beta(8, 32), rng.beta(2, 80)
            truth = 100_000 * np.array([1 - share - carbide, share, carbide])
            rates = [
                [1 - alarm - 0.003, alarm, 0.003],
                [miss, 0.99 - miss, 0.01],
                [0.1, 0.05, 0.85],
            ]
            confusion = np.rint(truth[:, None] * np.array(rates)).astype(int).tolist()
            name = {"image": f"h{specimen}_{number}", "specimen": f"h{specimen}"}
            images.append({**name, "confusion": confusion})
    root.mkdir()
    content = {"classes": classes, "images": images}
    (root / "confusion.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def _measured(source: Path, out: Path, *flags: str) -> Path:
    argv = [str(source), "--what", "fractions", "--output_dir", str(out), "--quiet", *flags]
    return measure(settings.resolve(argv, here=True), argv)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results of one command, with all that it may be told; and what it printed."""
    root = tmp_path_factory.mktemp("whole")
    run, folds = _run_of_predictions(root / "run"), _folds(root / "folds")
    flags = ("--folds_from", str(folds), "--compare", "steel 1", "steel 2")
    return _measured(run, root / "out", *flags), ""


def test_a_row_a_specimen_and_class_says_raw_and_corrected(whole: tuple[Path, str]) -> None:
    rows = {(r["specimen"], r["class"]): r for r in _rows(whole[0] / "specimens.csv")}
    assert len(rows) == len(SPECIMENS) * len(CLASSES)
    own = rows["steel 2", "pearlite"]
    raw, fixed = float(own["area fraction %"]), float(own["corrected %"])
    assert float(own["area fraction low %"]) < raw < float(own["area fraction high %"])
    # A fifth is missed: the true fraction is larger, and less sure than the spread of fields says.
    assert raw < fixed
    parts = [
        float(own[f"corrected half width from {name} %"]) for name in ("sampling", "classifier")
    ]
    both = float(own["corrected half width from both %"])
    # With more degrees of freedom together than either alone.
    assert 0.9 * max(parts) < both < sum(parts)
    assert float(own["corrected high %"]) - float(own["corrected low %"]) > (
        float(own["area fraction high %"]) - float(own["area fraction low %"])
    )
    assert own["held-out specimens"] == "8" and own["fields"] == "6"
    for specimen in SPECIMENS:
        corrected = [float(rows[specimen, name]["corrected %"]) for name in CLASSES]
        assert sum(corrected) == pytest.approx(100, abs=1e-3)


def test_one_field_has_an_interval_by_its_correlation(whole: tuple[Path, str]) -> None:
    rows = {(r["specimen"], r["class"]): r for r in _rows(whole[0] / "specimens.csv")}
    alone = rows["steel 3", "pearlite"]
    assert alone["fields"] == "1" and alone["area fraction std %"] == ""
    assert alone["area fraction interval"].startswith("correlation within the field")
    assert 0 < float(alone["area fraction low %"]) < float(alone["area fraction %"])
    # A class that the only field does not have tells nothing.
    assert rows["steel 3", "carbide"]["area fraction interval"].startswith("none: the phase is all")
    # In all fields of a specimen nothing: a bound over fields.
    nothing = rows["steel 1", "carbide"]
    assert nothing["area fraction interval"] == "rule of three"
    assert float(nothing["area fraction high %"]) == pytest.approx(50)


def test_the_mean_over_specimens_is_a_second_number(whole: tuple[Path, str]) -> None:
    rows = {r["class"]: r for r in _rows(whole[0] / "fractions_over_specimens.csv")}
    by_specimen = [r for r in _rows(whole[0] / "specimens.csv") if r["class"] == "pearlite"]
    mean = np.mean([float(r["area fraction %"]) for r in by_specimen])
    assert float(rows["pearlite"]["area fraction %"]) == pytest.approx(mean, abs=1e-3)
    assert (rows["pearlite"]["specimens"], rows["pearlite"]["fields"]) == ("4", "18")
    # Four specimens carry no interval of other specimens.
    assert rows["pearlite"]["area fraction low %"] == ""


def test_specimens_are_compared(whole: tuple[Path, str]) -> None:
    rows = _rows(whole[0] / "fractions_compared.csv")
    raw = next(r for r in rows if r["class"] == "pearlite" and r["what"] == "area fraction")
    fixed = next(
        r for r in rows if r["class"] == "pearlite" and r["what"] == "corrected area fraction"
    )
    assert (raw["first"], raw["second"]) == ("steel 1", "steel 2")
    assert float(raw["difference %"]) == pytest.approx(8, abs=3) and raw["clear"] == "yes"
    wide = [float(r["difference high %"]) - float(r["difference low %"]) for r in (raw, fixed)]
    assert wide[0] < wide[1]


def test_a_field_has_a_row_and_the_page_says_what_it_all_means(whole: tuple[Path, str]) -> None:
    root = whole[0]
    rows = _rows(root / "fractions.csv")
    assert len(rows) == 18 and float(rows[0]["pixel size nm"]) == 50
    assert sum(float(rows[0][f"area fraction {name} %"]) for name in CLASSES) == pytest.approx(
        100, abs=1e-3
    )
    page = (root / "report.html").read_text(encoding="utf-8")
    for words in (
        "ASTM E1245",
        "Each class was corrected against the rest",
        "16 held-out images of 8 specimens",
        "each estimated from the others",
        "steel 2 minus steel 1",
        "30 fields are wanted; the fewest here are 1",
    ):
        assert words in page, words
    assert "E562" not in page and "data:image/png" in page
    found = json.loads((root / "measure.json").read_text(encoding="utf-8"))["fractions"]
    assert len(found["specimens"]) == 12 and len(found["over_specimens"]) == 3


def test_predictions_without_held_out_truth_say_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _measured(_run_of_predictions(tmp_path / "run"), tmp_path / "out", "--class", "pearlite")
    said = capsys.readouterr().out
    assert "The classifier's own error is not in these intervals" in said and "--folds_from" in said
    rows = _rows(out / "specimens.csv")
    assert {row["class"] for row in rows} == {"pearlite"} and "corrected %" not in rows[0]


def test_three_held_out_specimens_give_raw_numbers_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folds = _run_of_predictions(tmp_path / "run"), _folds(tmp_path / "folds", 3)
    out = _measured(run, tmp_path / "out", "--folds_from", str(folds))
    said = capsys.readouterr().out
    assert "holds 3 specimens, and 4 are needed" in said
    assert {row["corrected %"] for row in _rows(out / "specimens.csv")} == {""}


def test_held_out_specimens_that_are_measured_are_corrected_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folds = _run_of_predictions(tmp_path / "run"), _folds(tmp_path / "folds")
    path = folds / "confusion.json"
    path.write_text(path.read_text().replace('"h0"', '"steel 1"'), encoding="utf-8")
    out = _measured(run, tmp_path / "out", "--folds_from", str(folds))
    assert "1 specimen of the held-out truth measured here" in capsys.readouterr().out
    rows = {(r["specimen"], r["class"]): r for r in _rows(out / "specimens.csv")}
    assert rows["steel 1", "pearlite"]["held-out specimens"] == "7"
    assert rows["steel 2", "pearlite"]["held-out specimens"] == "8"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--compare", "steel 1", "steel 9"), "--compare steel 9: there is no such specimen"),
        (("--compare", "steel 1"), "--compare takes the names of two specimens, not 1"),
        (("--folds_from", "nowhere"), "nowhere"),
        (("--folds_from", "run"), "has no confusion.json"),
        (("--folds_from", "other"), "speaks of ferrite, pearlite, cementite"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    flags: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = _run_of_predictions(tmp_path / "run")
    _folds(tmp_path / "other", classes=["ferrite", "pearlite", "cementite"])
    with pytest.raises(UserError, match=told):
        _measured(run, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_mirrored_and_turned_masks_give_the_same_fractions(tmp_path: Path) -> None:
    run = _run_of_predictions(tmp_path / "run")
    first = _rows(_measured(run, tmp_path / "a") / "specimens.csv")
    for path in (run / "masks/index").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.rot90(mask[:, ::-1]))
    second = _rows(_measured(run, tmp_path / "b") / "specimens.csv")
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            try:
                assert float(other[name]) == pytest.approx(float(value), rel=1e-4), name
            except ValueError:
                assert other[name] == value


def test_fields_that_count_nowhere_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run_of_predictions(tmp_path / "run")
    empty = np.full((120, 160), 255, np.uint8)
    cv2.imwrite(str(run / "masks/index/steel1_0.png"), empty)
    rows = _rows(_measured(run, tmp_path / "out") / "specimens.csv")
    assert next(r for r in rows if r["specimen"] == "steel 1")["fields"] == "5"
    assert "1 field without a pixel that counts left out" in capsys.readouterr().out
