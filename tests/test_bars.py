"""Information bars: found in pixels, judged together, cut off images and masks alike."""

from __future__ import annotations

import importlib
from dataclasses import fields, is_dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import bars as bench
from benchmarks import drawn_bars
from matssl import preflight
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import bars, crops, layouts, readers, synthetic
from matssl.data.preprocess import Preprocess
from matssl.data.readers.bar import _is_paper
from matssl.stages.settings import bar_problem
from matssl.tools import doctor, regions, study

AUTO = Preprocess(crop_bottom="auto")


def _png(path: Path, pixels: np.ndarray, *options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels, options)[1].tobytes())
    return path


def _specimen(seed: int, height: int = 240, width: int = 320) -> tuple[np.ndarray, np.ndarray]:
    return synthetic.micrograph("cracks", height, width, seed)


def _bar(rows: int, width: int = 320) -> np.ndarray:
    """White with a black frame, a scale bar and writing; drawn here by hand."""
    bar = np.full((rows, width), 255, np.uint8)
    cv2.rectangle(bar, (0, 0), (width - 1, rows - 1), 0, 1)
    cv2.line(bar, (12, rows - 8), (72, rows - 8), 0, 2)
    cv2.putText(bar, "EHT 15 kV", (100, rows - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0, 1)
    return bar


def _folder(root: Path, rows: dict[str, int], missing: dict[str, int]) -> Path:
    """Write JPEG images 320 x 280 with bars of these rows, masks that lack so many rows."""
    for number, (name, bar) in enumerate(rows.items()):
        image, mask = _specimen(number, 280)
        if bar:
            image[280 - bar :] = _bar(bar)
        _png(root / "images" / f"{name}.jpg", image, cv2.IMWRITE_JPEG_QUALITY, 80)
        _png(root / "masks" / f"{name}.png", mask[: 280 - missing.get(name, 0)])
    return root


# --- found ---
@pytest.mark.parametrize("number", range(0, 60, 3))
def test_drawn_bars_of_six_makers_are_found(number: int) -> None:
    """A1, A5: white, black and grey, JPEG, inverted, coloured, 12 and 16 bit, float."""
    drawn = drawn_bars.with_bar(number, (240, 400))
    assert abs(readers.bar_height(drawn.pixels) - drawn.rows) <= 1, drawn.what


@pytest.mark.parametrize("number", range(0, 44, 2))
def test_no_bar_is_seen_where_none_is(number: int) -> None:
    """A1: flat substrates, white resin, gradients, polished bands, writing on the specimen."""
    drawn = drawn_bars.without_bar(number, (240, 400))
    assert readers.bar_height(drawn.pixels) == 0, drawn.what


@pytest.mark.parametrize("number", [4, 5, 29])
def test_a_bar_whose_paper_was_made_noisy_without_jpeg_is_found(number: int) -> None:
    """Converted pictures: each pixel may be off by up to two grey levels, and never by more."""
    drawn = drawn_bars.with_bar(number, (240, 400))
    noise = np.random.default_rng(number).integers(-2, 3, drawn.pixels.shape)
    noisy = np.clip(drawn.pixels.astype(int) + noise, 0, 255).astype(np.uint8)
    assert abs(readers.bar_height(noisy) - drawn.rows) <= 1


def test_paper_is_told_from_the_noise_of_a_detector_by_its_bounds() -> None:
    """Both differ from pixel to pixel as often; the detector's has tails."""
    generator = np.random.default_rng(0)
    drawn = 100 + generator.integers(-2, 3, (40, 300))
    seen = np.rint(100 + generator.normal(0, np.sqrt(2), (40, 300)))
    for values, paper in ((drawn, True), (seen, False)):
        away = np.abs(values - 100).astype(np.int16)
        assert _is_paper(away, values.astype(np.uint8)) == paper


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("rows", [50, 57, 65])
def test_a_white_bar_whose_frame_jpeg_has_smeared_is_found(quality: int, rows: int) -> None:
    """A1: a black line as last row, no row of one exact grey."""
    image, _ = synthetic.micrograph("cracks", 340, 512, rows)
    bar = np.full((rows, 512), 255, np.uint8)
    bar[0] = bar[-1] = 0
    cv2.putText(bar, "WD 8.5 mm  2 um", (30, rows - 18), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 0, 1)
    whole = np.concatenate([image, bar])
    data = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    smeared = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    assert abs(readers.bar_height(smeared) - rows) <= 1


def test_a_bright_frame_that_jpeg_has_smeared_goes_with_its_bar() -> None:
    """A1: of a gray bar in a frame of two rows the frame stayed with the specimen."""
    found = []
    for n in range(12):
        noise = np.random.default_rng(n).normal(0, 1, (300, 512)).astype(np.float32)
        image = np.where(cv2.GaussianBlur(noise, (0, 0), 9) > 0, 170, 70) + 10 * noise
        bar = np.full((39, 512), 60, np.uint8)
        cv2.putText(bar, "HV 20.00  spot 3", (30, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 230, 1)
        cv2.line(bar, (300, 29), (400, 29), 230, 2)
        for edge in (bar[:2], bar[-2:], bar[:, :2], bar[:, -2:]):
            edge[:] = 230
        whole = np.clip(np.concatenate([image, bar]), 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, 60 + 2 * n])[1]
        found.append(readers.bar_height(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)))
    assert all(abs(rows - 39) <= 1 for rows in found), found


@pytest.mark.parametrize("scale", [1.0, 1 / 255, 1e-3, 1e4])
def test_a_float_picture_has_a_bar_at_any_scale(scale: float) -> None:
    """A5."""
    image, _ = _specimen(1)
    whole = np.concatenate([image, _bar(36)]).astype(np.float32) * np.float32(scale)
    assert readers.bar_height(whole) == 36
    assert readers.bar_height(image.astype(np.float32) * np.float32(scale)) == 0


def test_constant_and_tiny_pictures_have_no_bar() -> None:
    for pixels in (np.zeros((200, 300), np.uint8), np.full((300, 300), np.float32(np.pi))):
        assert readers.bar_height(pixels) == 0
    assert readers.bar_height(np.zeros((6, 300), np.uint8)) == 0
    assert readers.bar_height(np.zeros((300, 6, 3), np.uint16)) == 0


# --- judged together ---
def test_where_a_picture_alone_is_unsure_the_others_of_its_size_decide(tmp_path: Path) -> None:
    """A1: a bar whose writing was wiped out, beside two whole ones."""
    root = _folder(tmp_path, {"a": 40, "b": 40, "c": 0}, {})
    image, _ = _specimen(7, 280)
    image[240:] = 255
    image[240] = image[279] = 0
    _png(root / "images" / "c.jpg", image, cv2.IMWRITE_JPEG_QUALITY, 80)
    assert readers.bar_height(AUTO.read(root / "images" / "c.jpg").pixels) == 0
    found = preflight.examine_dataset(layouts.find(root), AUTO)
    assert [fact.bar for fact in found.facts] == [40, 40, 40]
    assert not found.judged.warnings


def test_a_warning_names_the_few_without_a_bar(tmp_path: Path) -> None:
    """A1."""
    root = _folder(tmp_path, {"a": 40, "b": 41, "c": 0, "d": 40}, {})
    text = preflight.examine_dataset(layouts.find(root), AUTO).text()
    assert "3 of 4 pictures of 320 x 280 have an information bar (40 rows)" in text
    assert "none was found in c.jpg" in text
    assert "--crop_bottom" in text


# --- masks that end above the bar ---
def test_a_mask_without_the_rows_of_the_bar_is_the_upper_part(tmp_path: Path) -> None:
    """A3: heights that differ by a row from file to file; the pixels need not show the bar."""
    names = {"a": 40, "b": 40, "c": 41, "d": 0}
    root = _folder(tmp_path, names, {"a": 40, "b": 40, "c": 41, "d": 9})
    dataset = layouts.find(root)
    found = preflight.examine_dataset(dataset, AUTO)
    text = found.text()
    assert "2 of 4 masks of pictures of 320 x 280 are 40 rows shorter: the upper part" in text
    assert "1 of 4 masks of pictures of 320 x 280 is 9 rows shorter: the upper part" in text
    assert not found.judged.misfits
    assert dataset.table is not None
    for record in (AUTO, found.record):
        data = crops.load(dataset.pairs, record, dataset.table)
        assert [plane.shape for plane in data.planes] == [mask.shape for mask in data.masks]
        heights = {
            pair.image.stem: len(plane) for pair, plane in zip(data.pairs, data.planes, strict=True)
        }
        assert heights == {"a": 240, "b": 240, "c": 239, "d": 271}


def test_rows_that_a_short_mask_lacks_are_ignored_where_nothing_is_cut(tmp_path: Path) -> None:
    """A3: the user says that there is no bar; the mask says nothing of the last rows."""
    image, mask = _specimen(3)
    micrograph = readers.from_array(image)
    fitted = Preprocess(crop_bottom=0).mask(mask[:200], micrograph)
    assert fitted.shape == (240, 320)
    assert (fitted[:200] == mask[:200]).all()
    assert (fitted[200:] == IGNORE).all()


@pytest.mark.parametrize("shape", [(191, 320), (240, 319), (241, 320), (180, 240)])
def test_other_sizes_do_not_fit(shape: tuple[int, int]) -> None:
    """A3: more than a fifth fewer rows, another width, more rows, another scale."""
    image, _ = _specimen(3)
    with pytest.raises(UserError, match="they must be equal"):
        AUTO.mask(np.zeros(shape, np.uint8), readers.from_array(image))


def test_all_misfits_are_told_at_once_and_doctor_refuses_as_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A3."""
    root = _folder(tmp_path, dict.fromkeys("abcd", 40), {"b": 100, "c": 90, "d": 40})
    dataset = layouts.find(root)
    found = preflight.examine_dataset(dataset, AUTO)
    assert set(found.judged.misfits) == {root / "images" / "b.jpg", root / "images" / "c.jpg"}
    sentence = "2 masks do not fit the picture: b.jpg is 320 x 280, b.png 320 x 180; c.jpg is"
    with pytest.raises(UserError, match=sentence) as refused:
        crops.load(dataset.pairs, AUTO, dataset.table)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=sentence) as told:
        doctor.main([str(root)])
    assert str(told.value) == str(refused.value)
    assert "\n" not in str(told.value)
    assert "c.jpg is 320 x 280, c.png 320 x 190" in capsys.readouterr().out


# --- --crop_bottom ---
def test_a_number_beats_what_is_seen_and_none_cuts_nothing(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"a": 40, "b": 40}, {})
    for given, kept in (("auto", 240), ("none", 280), ("52", 228)):
        record = Preprocess.chosen(channels=1, crop_bottom=given)
        found = preflight.examine_dataset(layouts.find(root), record)
        assert [fact.bar for fact in found.facts] == [280 - kept] * 2
        micrograph = found.record.read(root / "images" / "a.jpg")
        assert found.record.plane(micrograph).shape == (kept, 320)


def test_a_command_s_own_crop_beats_the_record_and_is_said() -> None:
    """A2."""
    record, told = AUTO.cutting("65")
    assert record.crop_bottom == 65
    assert told == "--crop_bottom 65 beats the auto that the weights were trained with"
    assert AUTO.cutting(None) == (AUTO, "")
    assert AUTO.cutting("auto") == (AUTO, "")
    record, told = Preprocess(crop_bottom=12).cutting("none")
    assert (record.crop_bottom, "none beats the 12" in told) == (0, True)


def test_bars_of_files_are_neither_compared_nor_stored() -> None:
    known = AUTO.knowing({Path("a.tif"): 12})
    assert known == AUTO
    assert known.to_dict() == AUTO.to_dict()
    assert Preprocess.from_dict(known.to_dict()) == AUTO


# --- the measure ---
def test_the_measure_counts_what_is_wrong() -> None:
    row = {"name": "0", "what": "Zeiss, 8 bit", "rows": 40, "scale": 60, "scale_found": 61.0}
    rows = [{**row, "kind": "bar", "found": 41}, {**row, "kind": "bar", "found": 0, "name": "1"}]
    rows += [{"kind": "none", "name": "0", "what": "smooth", "rows": 0, "found": 0}]
    rows += [{"kind": "real", "name": "x.tif", "what": "x.tif", "rows": None, "found": 9}]
    lines = bench.table(rows).splitlines()
    assert "| bar, Zeiss | 2 | 1 | 1: 0 for 40 (Zeiss, 8 bit) |" in lines
    assert "| real micrographs | 1 | | a bar is found in: x.tif (9 rows) |" in lines
    assert "| scale bars, to 1.5 pixels | 2 | 2 | none |" in lines


def test_a_long_list_of_misfits_is_counted() -> None:
    looks = [
        bars.Look(Path(f"{i}.tif"), (100, 100), mask=Path(f"{i}.png"), mask_shape=(50, 100))
        for i in range(20)
    ]
    with pytest.raises(UserError, match="20 masks do not fit.*11.tif is.* and 8 more; a mask"):
        bars.judge(looks).refuse_misfits()


@pytest.mark.parametrize(
    "place",
    [
        *(f"matssl.stages.{stage}.settings" for stage in ("pretrain", "finetune")),
        *(f"matssl.stages.{stage}.settings" for stage in ("evaluate", "phase_map", "measure")),
        *(f"matssl.tools.{tool}" for tool in ("doctor", "probe", "study")),
    ],
)
def test_every_command_that_reads_pictures_takes_crop_bottom(place: str) -> None:
    """A2."""
    module = importlib.import_module(place)
    kinds = [k for k in vars(module).values() if isinstance(k, type) and is_dataclass(k)]
    own = [kind for kind in kinds if kind.__module__ == place and kind.__name__ != "Problem"]
    declared = {field.name: field for kind in own for field in fields(kind)}
    assert "crop_bottom" in declared
    assert bar_problem("none") == bar_problem("auto") == bar_problem("65") == ""
    for wrong in ("-1", "some", "1.5", "9" * 9, "٣"):
        assert "--crop_bottom must be auto, none or a number" in bar_problem(wrong)


def test_a_study_cuts_all_that_it_runs() -> None:
    """A2: above what its file says of a data set, a pretraining or an evaluation."""
    content = {
        "datasets": {"a": {"finetune_dataset": "A", "crop_bottom": 3}, "b": {}},
        "starts": {"random": "none", "ssl": {"pretrain": {"crop_bottom": 4}}},
        "evaluate": {"crop_bottom": 5, "tta": True},
    }
    study._cut(content, "65")
    assert content == {
        "datasets": {
            "a": {"finetune_dataset": "A", "crop_bottom": "65"},
            "b": {"crop_bottom": "65"},
        },
        "starts": {"random": "none", "ssl": {"pretrain": {"crop_bottom": "65"}}},
        "evaluate": {"tta": True},
        "pretrain": {"crop_bottom": "65"},
    }


def test_regions_of_a_run_refuse_a_crop_that_would_do_nothing(tmp_path: Path) -> None:
    (tmp_path / "masks" / "index").mkdir(parents=True)
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(UserError, match="--crop_bottom acts on a labelled folder"):
        regions.main([str(tmp_path), "--crop_bottom", "12"])
