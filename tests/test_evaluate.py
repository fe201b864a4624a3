"""Evaluation of a checkpoint on a folder; the networks here are untrained, the counting is not."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.data import layouts, readers
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.metrics import by_name, gather, mean_name, overlap
from matssl.models.segmentation import build_model
from matssl.stages import drawing
from matssl.stages.evaluate import predict as stage
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.evaluate.published import published_results
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.trained import member
from matssl.trained.segmenter import Segmenter

NAMES = ("matrix phase", "pore")
Make = Callable[..., Path]


def _table(names: Sequence[str], values: Sequence[int | str], **more: Any) -> ClassTable:
    kind = "color" if any(isinstance(v, str) for v in values) else "index"
    classes = tuple(
        MaskClass(i, name, () if value == "rest" else (value,))
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    )
    rest = list(values).index("rest") if "rest" in values else None
    return ClassTable(kind, classes, rest_index=rest, **more)


@pytest.fixture
def make_model(tmp_path: Path) -> Make:
    """Write a checkpoint as fine-tuning does, of a network with random weights."""

    def make(
        table: ClassTable | None = None,
        record: Preprocess | None = None,
        trained: Sequence[Path] = (),
        digests: Sequence[str] = (),
        guides: Sequence[str] = (),
        recipe: dict[str, Any] | None = None,
        name: str = "best.ckpt",
    ) -> Path:
        table = table or _table(NAMES, (0, 1))
        torch.manual_seed(3)
        model = build_model("tu-test_resnet", "unet", table.num_classes)
        path = tmp_path / name
        payload = {
            "stage": "finetune",
            "model": model.description,
            "state": model.state_dict(),
            "step": 1,
            "recipe": recipe or {},
            "preprocess": (record or Preprocess()).to_dict(),
            "classes": table.to_dict(),
            "lineage": [
                {"stage": "ssl", "labelled_digests": list(guides)},
                {"stage": "finetune", "dataset": "made up"},
            ],
            "progress": {
                "train_images": [str(path) for path in trained],
                "train_digests": list(digests),
            },
        }
        checkpoint.save(path, payload)
        return path

    return make


@pytest.fixture
def make_data(tmp_path: Path) -> Make:
    """Write images of random texture in ``test`` with the masks given in ``test_annot``."""

    def make(name: str, masks: Sequence[np.ndarray], split: str = "test") -> Path:
        folder = tmp_path / name
        for part in (split, f"{split}_annot"):
            (folder / part).mkdir(parents=True)
        for number, mask in enumerate(masks):
            generator = np.random.default_rng(number)
            small = generator.integers(0, 255, (8, 8)).astype(np.uint8)
            image = cv2.resize(small, mask.shape[1::-1], interpolation=cv2.INTER_CUBIC)
            file = f"field{chr(65 + number)}.png"
            cv2.imwrite(str(folder / split / file), image)
            cv2.imwrite(str(folder / f"{split}_annot" / file), mask)
        return folder

    return make


def _masks(count: int = 2, classes: int = 2, size: int = 64) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    blocks = [generator.integers(0, classes, (4, 4)).astype(np.uint8) for _ in range(count)]
    return [np.kron(block, np.ones((size // 4, size // 4), np.uint8)) for block in blocks]


def _run(model: Path, data: Path, out: Path, **flags: Any) -> dict[str, Any]:
    options = {"threads": 1, "precision": "fp32", "quiet": True, **flags}
    config = EvaluateSettings(
        model_path=str(model), dataset=str(data), output_dir=str(out.parent), name="x", **options
    )
    stage.evaluate(config).rename(out)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


# --- classes of the model and of the folder ---
def test_a_class_file_matches_other_values_to_the_model_by_name(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model = make_model()
    same = _run(model, make_data("same", _masks()), tmp_path / "a")
    # The other way round on purpose: 255 is the model's class 0.
    other = make_data("other", [255 * (1 - mask) for mask in _masks()])
    (other / "classes.yaml").write_text("classes: {pore: 0, matrix phase: 255}\n")
    assert _run(model, other, tmp_path / "b")["confusion"] == same["confusion"]
    (other / "classes.yaml").rename(tmp_path / "elsewhere.yaml")
    given = _run(model, other, tmp_path / "c", classes=str(tmp_path / "elsewhere.yaml"))
    assert given["confusion"] == same["confusion"]


def test_masks_after_jpeg_are_cut_half_way_in_an_evaluation_too(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    """A15: with --classes binary a 1 in a 0/255 mask is no particle; what was done is shown."""
    # Edges inside the blocks of JPEG.
    clean = [np.roll(255 * mask, (3, 5), (0, 1)) for mask in _masks()]
    soft = [cv2.imdecode(cv2.imencode(".jpg", mask, [1, 85])[1], 0) for mask in clean]
    assert any(((mask > 0) & (mask < 64)).any() for mask in soft)
    model = make_model()
    wanted = _run(model, make_data("clean", clean), tmp_path / "a", classes="binary")
    data = make_data("soft", soft)
    for number, classes in enumerate(("binary", "binary:128")):
        out = tmp_path / f"b{number}"
        assert _run(model, data, out, classes=classes)["confusion"] == wanted["confusion"]
    assert "half-way" in (tmp_path / "b0" / "report.html").read_text()


def test_masks_that_training_has_not_opened_may_be_saved_in_another_way(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    """A14, A15: the test masks of a set went through JPEG, or are white at 1 beside 255."""
    drawn = [np.roll(mask, (3, 5), (0, 1)) for mask in _masks(3)]
    model = make_model(_table(NAMES, (0, 255)))
    wanted = _run(model, make_data("clean", [255 * m for m in drawn]), tmp_path / "a")
    soft = cv2.imdecode(cv2.imencode(".jpg", 255 * drawn[2], [1, 85])[1], 0)
    for name, last in (("soft", soft), ("dark", drawn[2])):
        data = make_data(name, [255 * drawn[0], 255 * drawn[1], last])
        found = _run(model, data, tmp_path / f"out {name}")
        assert found["confusion"] == wanted["confusion"], name
    dark = make_model(_table(NAMES, (0, 1)), name="dark.ckpt")
    found = _run(dark, tmp_path / "dark", tmp_path / "other way round")
    assert found["confusion"] == wanted["confusion"]


def _refused(model: Path, data: Path, out: Path, *parts: str, **flags: Any) -> None:
    with pytest.raises(UserError) as caught:
        _run(model, data, out, **flags)
    for part in parts:
        assert part in str(caught.value)
    assert not out.exists()


def test_other_values_without_a_class_file_are_refused_naming_both(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    data = make_data("other", [255 * mask for mask in _masks()])
    _refused(make_model(), data, tmp_path / "out", "255", "matrix phase = 0; pore = 1")


def test_other_names_for_the_same_values_are_refused_naming_both(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    data = make_data("named", _masks())
    (data / "classes.yaml").write_text("classes: {ferrite: 0, cementite: 1}\n")
    _refused(make_model(), data, tmp_path / "out", "ferrite = 0; cementite = 1", "pore = 1")


def test_a_model_whose_classes_nobody_named_takes_names_of_the_same_values(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model = make_model(_table(("background", "foreground"), (0, 1)))
    data = make_data("named", _masks())
    (data / "classes.yaml").write_text("classes: {ferrite: 0, cementite: 1}\n")
    assert _run(model, data, tmp_path / "out")["classes"] == ["background", "foreground"]


def test_a_two_class_model_refuses_three_class_truth(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    data = make_data("three", _masks(classes=3))
    _refused(make_model(), data, tmp_path / "out", "that no class lists: 2", "2 classes")


def test_a_colour_of_its_own_does_not_vanish_in_the_rest(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model = make_model(_table(("matrix", "class 1"), ("rest", "#0000ff")))
    drawn = []
    for mask in _masks(classes=3):
        gray = np.random.default_rng(0).integers(0, 255, mask.shape).astype(np.uint8)
        picture = np.repeat(gray[..., None], 3, axis=2)
        # OpenCV writes blue, green, red.
        picture[mask == 1] = (255, 0, 0)
        picture[mask == 2] = (0, 0, 255)
        drawn.append(picture)
    data = make_data("drawn", drawn)
    _refused(model, data, tmp_path / "out", "#ff0000", "class 1 = #0000ff")
    for path in (data / "test_annot").iterdir():
        picture = cv2.imread(str(path))
        picture[(picture == (0, 0, 255)).all(axis=2)] = 128
        cv2.imwrite(str(path), picture)
    share = np.mean([mask == 1 for mask in _masks(classes=3)])
    metrics = _run(model, data, tmp_path / "out")
    assert metrics["phase_fractions"]["class 1"]["truth"]["mean"] == pytest.approx(share)


# --- which images ---
def _flat(make_data: Make, count: int) -> Path:
    """Return a folder ``images`` + ``masks`` without any split."""
    folder = make_data("flat", _masks(count), split="x")
    (folder / "x").rename(folder / "images")
    (folder / "x_annot").rename(folder / "masks")
    return folder


def test_an_uncut_folder_is_evaluated_whole_unless_the_model_was_trained_on_part_of_it(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    data = _flat(make_data, 6)
    assert _run(make_model(), data, tmp_path / "a")["images"] == 6
    for seed in (1, 5):
        cut = layouts.find(data, seed=seed)
        recipe = {"seed": seed, "finetune_dataset": str(data)}
        trained = [pair.image for pair in cut.split("train")]
        model = make_model(trained=trained, recipe=recipe, name=f"{seed}.ckpt")
        out = tmp_path / f"seed{seed}"
        metrics = _run(model, data, out)
        expected = {str(pair.image) for pair in cut.split("test")}
        assert {row["image"] for row in _rows(out / "per_image.csv")} == expected
        assert metrics["warnings"] == []


def test_images_of_one_name_get_files_of_their_own() -> None:
    root = Path("data")
    places = ["a/x.png", "b/x.png", "b/x.tif", "a/y.png"]
    pairs = [Pair(root / place, None, "group", "test") for place in places]
    names = drawing.output_names([pair.image for pair in pairs], root)
    assert names == ["a_x", "b_x_png", "b_x_tif", "y"]


# --- what is counted ---
def test_both_phase_fractions_are_over_the_labelled_pixels(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    mask = _masks(1)[0]
    mask[:, :40] = 9
    table = _table(NAMES, (0, 1), ignore_values=(9,))
    out = tmp_path / "out"
    _run(make_model(table), make_data("part", [mask]), out)
    guess = np.array(Image.open(out / "masks/index/fieldA.png"))
    row = _rows(out / "per_image.csv")[0]
    assert float(row["predicted fraction pore"]) == pytest.approx(
        (guess[:, 40:] == 1).mean(), abs=1e-5
    )
    assert float(row["true fraction pore"]) == pytest.approx((mask[:, 40:] == 1).mean(), abs=1e-5)
    assert (guess[:, 40:] == 1).mean() != (guess == 1).mean()


def test_an_image_without_a_labelled_pixel_is_predicted_and_not_scored(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    table = _table(NAMES, (0, 1), ignore_values=(9,))
    empty = np.full((64, 64), 9, np.uint8)
    model = make_model(table)
    metrics = _run(model, make_data("some", [*_masks(2), empty]), tmp_path / "a")
    assert (metrics["images"], metrics["images_with_truth"]) == (3, 2)
    entry = metrics["phase_fractions"]["pore"]["truth"]
    assert (entry["specimens"], entry["fields"]) == (2, 2)
    scores = [row["miou"] for row in _rows(tmp_path / "a/per_image.csv")]
    assert scores[0] and scores[1] and not scores[2]
    _refused(model, make_data("none", [empty]), tmp_path / "b", "is to be ignored")


def test_scores_are_of_the_native_size_whatever_the_network_sees(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model = make_model(record=Preprocess(resize=32))
    out = tmp_path / "out"
    metrics = _run(model, make_data("data", _masks()), out)
    assert sum(map(sum, metrics["confusion"])) == 2 * 64 * 64
    assert tifffile.imread(out / "masks/label/fieldA.tif").shape == (64, 64)


def test_large_images_give_the_same_masks_through_a_file(
    make_model: Make, make_data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = make_model(), make_data("data", _masks())
    plain = _run(model, data, tmp_path / "a", save_probabilities=True)
    monkeypatch.setattr(member, "IN_MEMORY_BYTES", 0)
    mapped = _run(model, data, tmp_path / "b", save_probabilities=True)
    assert plain["confusion"] == mapped["confusion"]
    first, second = (tifffile.imread(tmp_path / name / "probabilities/fieldA.tif") for name in "ab")
    assert first.shape == (2, 64, 64) and np.array_equal(first, second)
    assert not [path for path in (tmp_path / "b").rglob("*") if path.name.startswith(".")]


def test_the_page_says_whether_probabilities_are_to_be_believed(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    masks = _masks(3)
    model, data = make_model(), make_data("data", masks)
    plain = _run(model, data, tmp_path / "plain", save_probabilities=True)
    payload = checkpoint.load(model)
    payload["progress"]["temperature"] = 0.25
    checkpoint.save(model, payload)
    mended = _run(model, data, tmp_path / "mended", save_probabilities=True)
    entry = plain["calibration"]
    assert entry["ece_before"] == entry["ece_after"] and entry["pixels"] == 3 * 64 * 64
    # By hand, from what was saved: the mean over bins of 1/15, weighed by their pixels.
    found = []
    for place in ("plain", "mended"):
        maps = [
            tifffile.imread(tmp_path / place / f"probabilities/field{n}.tif").astype(float)
            for n in "ABC"
        ]
        sure = np.concatenate([one.max(0).ravel() for one in maps])
        right = np.concatenate(
            [(m.argmax(0) == t).ravel() for m, t in zip(maps, masks, strict=True)]
        )
        bins = np.minimum((15 * sure).astype(int), 14)
        gaps = [abs(right[bins == b].sum() - sure[bins == b].sum()) for b in range(15)]
        found.append(sum(gaps) / len(sure))
    # Half precision rounds to three digits.
    assert entry["ece_after"] == pytest.approx(found[0], abs=2e-3)
    entry = mended["calibration"]
    assert entry["ece_before"] == pytest.approx(found[0], abs=2e-3)
    assert entry["ece_after"] == pytest.approx(found[1], abs=2e-3)
    assert abs(found[0] - found[1]) > 0.02 and mended["temperature"] == 0.25
    assert mended["confusion"] == plain["confusion"]
    page = (tmp_path / "mended" / "report.html").read_text(encoding="utf-8")
    assert "Calibration of the probabilities" in page and "before the temperature" in page


def test_averaging_over_orientations_changes_the_masks_and_keeps_probabilities(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model, data = make_model(), make_data("data", _masks())
    for name, tta in (("a", False), ("b", True)):
        _run(model, data, tmp_path / name, tta=tta, save_probabilities=True)
    plain, averaged = (
        tifffile.imread(tmp_path / name / "probabilities/fieldA.tif").astype(float) for name in "ab"
    )
    assert np.abs(averaged.sum(axis=0) - 1).max() < 2e-3
    assert np.abs(plain - averaged).max() > 1e-3


# --- pictures and files ---
def test_the_report_has_pictures_whether_they_are_saved_or_not(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model, data = make_model(), make_data("data", _masks(7))
    _run(model, data, tmp_path / "a", baselines=False)
    assert not (tmp_path / "a/visualizations").exists()
    assert (tmp_path / "a/report.html").read_text().count("data:image/png") == 3 + 6
    _run(model, data, tmp_path / "b", baselines=False, save_visualizations=True)
    names = {path.name for path in (tmp_path / "b/visualizations").iterdir()}
    plain = {f"field{letter}.png" for letter in "ABCDEFG"}
    assert names == plain | {f"vis_batch0_img{i}.png" for i in range(7)}
    assert (tmp_path / "b/report.html").read_text().count("data:image/png") == 3 + 6
    for folder in ("a", "b"):
        assert not [p for p in (tmp_path / folder).rglob("*") if p.name.startswith(".")]


def test_results_do_not_depend_on_the_batch_of_tiles(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model, data = make_model(), make_data("data", _masks(2, size=128))
    results = [
        _run(model, data, tmp_path / str(n), batch_size=n, tile_size=64, overlap=16) for n in (1, 5)
    ]
    first, second = (np.array(metrics["confusion"]) for metrics in results)
    # A pixel whose classes are equally likely may fall on either side.
    assert np.abs(first - second).max() <= 2


# --- scores of counts ---
def test_the_published_file_means_over_batches_with_absent_classes_as_zero() -> None:
    first = np.array([[50, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    second = np.diag([10, 10, 10, 10])
    second[0, 1] = 10
    result = published_results([first] * 128 + [second], 4)
    assert [batch["batch_idx"] for batch in result["batch_results"]] == [0, 1]
    assert result["batch_results"][0]["iou"]["mean_IOU"] == pytest.approx(0.25)
    means = result["avg_class_ious"]
    assert means["0"] == pytest.approx((1 + 0.5) / 2)
    assert means["1"] == pytest.approx((0 + 0.5) / 2)
    assert means["mean_IOU"] == pytest.approx((0.75 + 0.25 + 0.5 + 0.5) / 4)
    assert means["mean_IOU_no_minority"] == pytest.approx((0.75 + 0.25 + 0.5) / 3)
    assert "pixel_metrics" not in result
    # C4: the published numbers of MetalDAM leave its precipitates out, those of a batch too.
    result = published_results([first] * 128 + [second], 4, dataset="MetalDAM (bar cut)")
    assert result["batch_results"][1]["iou"]["mean_IOU"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert result["avg_class_ious"]["mean_IOU"] == pytest.approx((0.75 + 0.25 + 0.5) / 3)


def test_the_published_pixel_metrics_are_of_class_one() -> None:
    result = published_results([np.array([[880, 20], [40, 60]])], 2)["pixel_metrics"]
    assert (result["true_positives"], result["false_positives"]) == (60, 20)
    assert (result["false_negatives"], result["true_negatives"]) == (40, 880)
    assert result["precision"] == pytest.approx(0.75)
    assert result["recall"] == pytest.approx(0.6)
    assert result["f1_score"] == pytest.approx(2 / 3)
    assert result["accuracy"] == pytest.approx(0.94)


def test_last_and_best_checkpoint_give_the_averaged_weights(make_model: Make) -> None:
    best = make_model()
    payload = checkpoint.load(best)
    own = {name: torch.zeros_like(value) for name, value in payload["state"].items()}
    averaged = {f"ema.{name}": value for name, value in payload["state"].items()}
    last = best.with_name("last.ckpt")
    del payload["format"]
    checkpoint.save(last, {**payload, "state": {**own, **averaged}})
    first, second = (
        Segmenter.load(path, device="cpu").network.model.state_dict() for path in (best, last)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pooled_and_single_image_scores_follow_from_the_files(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    masks = _masks(5)
    out = tmp_path / "out"
    metrics = _run(make_model(), make_data("data", masks), out)
    total = np.zeros((2, 2), np.int64)
    gathered = []
    for mask, row in zip(masks, _rows(out / "per_image.csv"), strict=True):
        name = Path(row["image"]).stem
        guess = np.array(Image.open(out / f"masks/index/{name}.png"))
        matrix = np.array([[((mask == t) & (guess == p)).sum() for p in (0, 1)] for t in (0, 1)])
        assert float(row["miou"]) == pytest.approx(overlap.miou(matrix), abs=1e-5)
        for score, values in by_name([gather(mask, guess, 2)]).items():
            given = [float(row[f"{score} {kind}"] or "nan") for kind in NAMES]
            assert given == pytest.approx(values, abs=1e-5, nan_ok=True)
        gathered.append(gather(mask, guess, 2))
        total += matrix
    assert metrics["confusion"] == total.tolist()
    low, high = metrics["pooled"]["miou_interval_95"]
    assert low <= metrics["pooled"]["means"]["miou"] <= high
    page = (out / "report.html").read_text(encoding="utf-8")
    for score, values in by_name(gathered).items():
        pooled = [metrics["pooled"]["classes"][kind][score] for kind in NAMES]
        assert pooled == pytest.approx(values)
        assert metrics["pooled"]["means"][mean_name(score)] == pytest.approx(np.mean(values))
        assert f">{score}</th>" in page


def test_images_of_one_specimen_are_one_field(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    data = make_data("data", _masks(6))
    free = _run(make_model(), data, tmp_path / "a")
    assert free["pooled"]["miou_interval_95"]
    assert free["phase_fractions"]["pore"]["predicted"]["fields"] == 6
    grouped = _run(make_model(), data, tmp_path / "b", group_regex="(field)[A-C]")
    entry = grouped["phase_fractions"]["pore"]["predicted"]
    assert grouped["pooled"]["miou_interval_95"] is None
    # C15: the fields are the images; the interval is over specimens, and of four there is none.
    assert (entry["specimens"], entry["fields"], entry["over"]) == (4, 6, "specimens")
    assert entry["half_width"] is None and entry["low"] is None


def test_a_training_image_is_known_by_its_pixels_under_any_name(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    home, other = make_data("home", _masks(2)), make_data("other", _masks(3))
    trained = [home / "test" / "fieldB.png"]
    digests = [readers.digest(readers.read(path).pixels) for path in trained]
    # B is a copy; A has the name of a training image and other pixels.
    (other / "test" / "fieldA.png").write_bytes((other / "test" / "fieldC.png").read_bytes())
    trained.append(home / "test" / "fieldA.png")
    digests.append(readers.digest(readers.read(trained[-1]).pixels))
    tiff = other / "test" / "renamed.tif"
    tifffile.imwrite(tiff, cv2.imread(str(other / "test" / "fieldB.png"), cv2.IMREAD_UNCHANGED))
    (other / "test" / "fieldB.png").unlink()
    (other / "test_annot" / "fieldB.png").rename(other / "test_annot" / "renamed.png")
    recipe = {"finetune_dataset": str(home)}
    guide = readers.digest(readers.read(other / "test" / "fieldC.png").pixels)
    model = make_model(trained=trained, digests=digests, recipe=recipe, guides=[guide])
    found = _run(model, other, tmp_path / "a")
    assert found["warnings"] == [
        "1 of 3 images are copies of training images of this model (renamed); the scores are no "
        "test of it",
        "2 of 3 images guided or judged the pretraining of this model with their masks (fieldA, "
        "fieldC); the scores are no test of it",
    ]
    # found.md C6: the page says it too, and also where there are no masks and no scores.
    shutil.rmtree(other / "test_annot")
    _run(model, other, tmp_path / "b")
    for name, copies in (("a", "of 3 images are copies of"), ("b", "of 3 images are copies of")):
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        assert f"Warning: 1 {copies}" in page
    # C7: nothing was compared with a truth, so that nothing is said of errors.
    assert "Errors are means" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "Errors are means" not in page
    assert str(tmp_path) not in page


def test_images_of_a_specimen_that_was_trained_on_are_named(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    data = make_data("data", _masks(2))
    recipe = {"finetune_dataset": str(data), "group_regex": "(field)"}
    trained = [data / "train" / "fieldZ.png"]
    found = _run(make_model(trained=trained, recipe=recipe), data, tmp_path / "a")
    assert found["warnings"] == ["2 of 2 images are of specimens it was trained on (field)"]
    # The same name in another folder is another specimen.
    elsewhere = make_data("other", _masks(2))
    model = make_model(trained=trained, recipe=recipe, name="again.ckpt")
    assert _run(model, elsewhere, tmp_path / "b", group_regex="(field)")["warnings"] == []


@pytest.mark.usefixtures("no_drawing")
def test_crop_bottom_of_the_command_beats_the_checkpoint_and_a_short_mask_is_scored(
    make_model: Make, tmp_path: Path
) -> None:
    """found.md A2, A3: the mask lacks eight rows; the rows cut off are no field and not scored."""
    model, data = make_model(record=Preprocess(crop_bottom=0)), tmp_path / "set"
    image = np.random.default_rng(0).integers(60, 200, (64, 64)).astype(np.uint8)
    for folder, pixels in (("images", image), ("masks", np.tile(_masks()[0], 1)[:56] % 2)):
        (data / folder).mkdir(parents=True)
        (data / folder / "a.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    kept = {"none": 64, "12": 52, "auto": 56}
    for given, rows in kept.items():
        result = _run(model, data, tmp_path / given, crop_bottom=given, split="train")
        said = (tmp_path / given / "preflight.txt").read_text(encoding="utf-8")
        assert ("beats the none that the weights" in said) == (given != "none")
        assert "1 of 1 mask of pictures of 64 x 64 is 8 rows shorter: the upper part" in said
        drawn = readers.read_mask(tmp_path / given / "masks" / "index" / "a.png")
        assert drawn.shape == (64, 64)
        assert (drawn[:rows] != 255).all()
        assert (drawn[rows:] == 255).all()
        assert np.sum(result["confusion"]) == 64 * min(rows, 56)


# --- the model's own error ---
def test_an_evaluation_keeps_its_truth_and_takes_that_of_the_models_folds(
    make_model: Make, make_data: Make, tmp_path: Path
) -> None:
    model, data = make_model(), make_data("data", _masks(5))
    first = _run(model, data, tmp_path / "a")
    kept = json.loads((tmp_path / "a/confusion.json").read_text())
    assert kept["classes"] == list(NAMES) and len(kept["images"]) == 5
    total = np.sum([one["confusion"] for one in kept["images"]], axis=0)
    assert total.tolist() == first["confusion"]
    assert first["classifier_error"]["corrected"] == {}
    page = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    assert "own error is not in these intervals" in page and "corrected %" not in page

    # Of every held-out specimen half of the pores are missed, and a tenth of the rest is found.
    images = [
        {"image": f"h{k}", "specimen": f"h{k}", "confusion": [[810, 90], [50 + k, 50 - k]]}
        for k in range(5)
    ]
    truth = {"classes": list(NAMES), "images": images}
    (model.parent / "confusion.json").write_text(json.dumps(truth), encoding="utf-8")
    second = _run(model, data, tmp_path / "b")
    raw = second["phase_fractions"]["pore"]["predicted"]["mean"]
    found = second["classifier_error"]["corrected"]["pore"]
    assert found["mean"] == pytest.approx((raw - 0.1) / (1 - 0.52 - 0.1), abs=1e-6)
    assert found["low"] < found["mean"] < found["high"] and found["held_out_specimens"] == 5
    page = (tmp_path / "b/report.html").read_text(encoding="utf-8")
    assert "corrected %" in page and "5 held-out images of 5 specimens" in page


def test_the_flag_of_the_former_intervals_is_understood_and_said_to_do_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--model_path", "best.ckpt", "--dataset", "data"]
    assert evaluate_settings.resolve([*argv, "--bootstrap", "50"]) is not None
    assert "--bootstrap has no effect any more" in capsys.readouterr().out
    evaluate_settings.resolve(argv)
    assert capsys.readouterr().out == ""
