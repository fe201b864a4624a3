"""The random forest on filters of the picture: its filters, its trees, its run, its use."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

import train_finetune
from matssl import weights
from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.core.geometry import apply_d4
from matssl.data import readers
from matssl.forest import filters, growing, trees
from matssl.models.pixels import Features, PixelClassifier
from matssl.stages.evaluate import predict as evaluation
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.finetune.settings import resolve
from matssl.tools import inspect_weights
from matssl.trained.segmenter import Segmenter

SMALL = (0.7, 1.6)
PER_SCALE = len(filters.KINDS)


def _noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def _all(image: NDArray[np.float32], sigmas: tuple[float, ...]) -> NDArray[np.float32]:
    return filters.filtered(image, slice(0, image.shape[1]), sigmas)


def test_a_gaussian_is_that_of_scipy_and_every_filter_has_a_name() -> None:
    image = _noise(2, 40, 50)
    found = _all(image, SMALL)
    assert len(found) == len(filters.names(SMALL, 2)) == 2 * (1 + 2 * PER_SCALE)
    for channel, plane in enumerate(image):
        for number, sigma in enumerate(SMALL):
            own = found[channel * len(found) // 2 + 1 + number * PER_SCALE]
            reach = max(1, int(np.ceil(4 * sigma)))
            theirs = ndimage.gaussian_filter(plane, sigma, radius=reach, mode="reflect")
            assert np.abs(own - theirs).max() < 1e-5


def test_a_bowl_has_its_own_curvatures_and_a_slope_its_own_steepness() -> None:
    """By hand: of a x^2 / 2 + b y^2 / 2 + c x y the Hessian is [[a, c], [c, b]] everywhere."""
    y, x = np.mgrid[-40:41, -40:41].astype(np.float64)
    bowl = (0.03 * x**2 / 2 + 0.01 * y**2 / 2 + 0.01 * x * y).astype(np.float32)
    middle = _all(bowl[None], (1.6,))[1:, 40, 40]
    larger, smaller = np.linalg.eigvalsh([[0.03, 0.01], [0.01, 0.01]])[::-1]
    assert middle[2:5] == pytest.approx([0.04, larger, smaller], abs=1e-5)
    slope = (0.3 * x + 0.4 * y).astype(np.float32)
    middle = _all(slope[None], (1.6,))[1:, 40, 40]
    assert middle[1:] == pytest.approx([0.5, 0, 0, 0, 0.25, 0], abs=1e-4)


def test_strips_give_the_same_bits_as_the_whole_picture() -> None:
    image = _noise(1, 300, 37)
    whole = _all(image, filters.SIGMAS)
    parts = [
        filters.filtered(image, slice(top, min(top + 70, 300)), filters.SIGMAS)
        for top in range(0, 300, 70)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("element", [(True, 0), (False, 1), (True, 3)])
def test_a_turned_picture_has_turned_filters(element: tuple[bool, int]) -> None:
    image = _noise(30, 44)
    whole = _all(image[None], SMALL)
    turned = _all(np.ascontiguousarray(apply_d4(image, *element))[None], SMALL)
    for own, other in zip(whole, turned, strict=True):
        assert np.abs(apply_d4(own, *element) - other).max() < 1e-5


def _stripes(seed: int, side: int = 64) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Lying stripes on the left, standing ones on the right, of equal mean, and two greys below."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    mask = (x >= side // 2).astype(np.uint8)
    plane = np.where(mask == 0, np.sin(y), np.cos(x / 2))
    plane = plane + generator.normal(0, 0.1, plane.shape)
    return plane.astype(np.float32)[None], mask


def _said(grown: growing.Grown, image: NDArray[np.float32]) -> NDArray[np.float32]:
    features = Features(grown.forest.sigmas, len(image))
    return PixelClassifier(grown.forest, features).probabilities(image)


@pytest.fixture(scope="module")
def grown() -> growing.Grown:
    image, mask = _stripes(0)
    return growing.grow([image], [mask], 2, trees=20, samples=1500, sigmas=SMALL)


def test_arrays_answer_as_scikit_learn_does() -> None:
    """Of its own forest, of three classes, with ties at thresholds."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((4000, 15)).astype(np.float32).round(1)
    target = (features[:, 0] > 0).astype(int) + (features[:, 1] + features[:, 2] > 0.5)
    model = RandomForestClassifier(30, min_samples_leaf=2, random_state=0).fit(
        features[:1000], target[:1000]
    )
    forest = growing._arrays(model, 3, SMALL, 1)
    for few in (1, 256, 10**6):  # all parts followed one by one, some, none
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trees, "FEW", few)
            own = forest.of_pixels(np.ascontiguousarray(features.T))
        assert np.abs(own.T - model.predict_proba(features)).max() < 1e-6
    assert np.array_equal(own, forest.of_pixels(np.ascontiguousarray(features.T), jobs=3))


def test_textures_that_greys_cannot_tell_are_told(grown: growing.Grown) -> None:
    image, mask = _stripes(1)
    found = _said(grown, image)
    assert found.sum(axis=0) == pytest.approx(1, abs=1e-5)
    inner = np.abs(np.arange(64) - 32) > 5
    assert (found.argmax(axis=0) == mask)[:, inner].mean() > 0.95
    assert grown.importance.sum() == pytest.approx(1)


def test_the_same_seed_grows_the_same_trees_whatever_the_threads(grown: growing.Grown) -> None:
    image, mask = _stripes(0)
    same, other = (
        growing.grow([image], [mask], 2, trees=20, samples=1500, sigmas=SMALL, seed=seed, jobs=jobs)
        for seed, jobs in ((0, 2), (1, 1))
    )
    for name, array in grown.forest.arrays().items():
        assert np.array_equal(array, same.forest.arrays()[name]), name
    assert len(other.forest.feature) != len(grown.forest.feature)


def test_strokes_of_two_classes_are_labels_enough() -> None:
    image, mask = _stripes(0)
    strokes = np.full_like(mask, 255)
    along = np.arange(24)
    for start in (4, 36):
        strokes[20 + along, start + along] = mask[20 + along, start + along]
    grown = growing.grow([image], [strokes], 3, trees=20, sigmas=SMALL, least=2)
    assert grown.pixels == (24, 24, 0)
    found = _said(grown, _stripes(1)[0])
    assert not found[2].any()
    inner = np.abs(np.arange(64) - 32) > 5
    assert (found.argmax(axis=0) == mask)[:, inner].mean() > 0.9


def test_classes_and_images_share_the_pixels_alike() -> None:
    """By hand: 90 for three classes; class 1 has 10, so 40 each of the others."""
    first = np.zeros((20, 20), np.uint8)
    first[0] = 2
    second = np.full((30, 30), 2, np.uint8)
    second[0, :10], second[1] = 1, 255
    places = growing.chosen([first, second], 3, 90, seed=0)
    drawn = [
        np.bincount(m.ravel()[p], minlength=256)
        for m, p in zip((first, second), places, strict=True)
    ]
    assert [n[:3].tolist() for n in drawn] == [[40, 0, 20], [0, 10, 20]]
    assert not any(n[255] for n in drawn)
    again = growing.chosen([first, second], 3, 90, seed=0)
    assert all(np.array_equal(p, q) for p, q in zip(places, again, strict=True))
    assert all((np.diff(p) > 0).all() for p in places)


def test_no_label_is_no_forest() -> None:
    image, mask = _stripes(0)
    with pytest.raises(ValueError):
        growing.grow([image], [np.full_like(mask, 255)], 2)


@pytest.mark.parametrize("name", ["children", "feature", "value", "roots", "threshold"])
def test_arrays_that_are_no_trees_are_refused(grown: growing.Grown, name: str) -> None:
    """A child before its parent would send pixels in circles for ever."""
    model = PixelClassifier(grown.forest, Features(SMALL, 1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    again = PixelClassifier.stored(model.description, state).classifier
    assert all(np.array_equal(a, again.arrays()[n]) for n, a in grown.forest.arrays().items())
    broken = state[f"tree_{name}"]
    if name == "threshold":
        state[f"tree_{name}"] = broken[1:]
    else:
        broken[0] = 0 if name == "children" else 10**6
    with pytest.raises(ValueError):
        PixelClassifier.stored(model.description, state)


@pytest.fixture(scope="module")
def run(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("forest")
    flags = "--head forest --trees 10 --samples 1000 --filters 0.7,1.6 --name f --threads 1"
    words = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(out)]
    assert train_finetune.main([*words, *flags.split(), "--lr", "0.1", "--quiet"]) == 0
    return out / "finetune" / "f"


def test_a_run_of_a_forest_is_a_run_folder(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    kept = {"best.ckpt", "report.html", "log.csv", "config.yaml", "data.csv", "command.txt"}
    assert kept <= names and not names & {"last.ckpt", "steps.csv"}
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "done" and 0.5 < status["best_miou"] <= 1
    page = (run / "report.html").read_text()
    assert "random forest" in page and "Laplacian" in page or "Gaussian" in page


def _test_image(folder: Path) -> Path:
    return sorted((folder / "test").iterdir())[0]


def test_a_forest_predicts_as_any_model_with_the_record_of_its_run(
    run: Path, synthetic_folder: Path
) -> None:
    segmenter = Segmenter.load(run, device="cpu")
    path = _test_image(synthetic_folder)
    found = segmenter.predict(path)
    picture = readers.read(path)
    assert found.classes.shape == picture.pixels.shape[:2]
    assert found.probabilities.sum(axis=0) == pytest.approx(1, abs=1e-5)
    # Tiles and orientations mean nothing to it.
    other = segmenter.predict(path, tile_size=32, overlap=4, tta=True, batch_size=3)
    assert np.array_equal(found.probabilities, other.probabilities)
    assert len(segmenter.trained_on.images) > 0 and segmenter.lineage.last["head"] == "forest"
    # Another brightness is the same picture to its window.
    changed = replace(picture, pixels=(picture.pixels // 2 + 60).astype(picture.pixels.dtype))
    assert (segmenter.predict(changed).classes == found.classes).mean() > 0.97


def _evaluated(run: Path, folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings = EvaluateSettings(
        model_path=str(run), dataset=str(folder), output_dir=str(out), name="e", threads=1, **more
    )
    result: dict[str, Any] = json.loads(
        (evaluation.evaluate(settings) / "metrics.json").read_text()
    )
    return result


def test_an_evaluation_takes_a_forest_and_says_what_it_does_not_heed(
    run: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_drawing: None,
) -> None:
    metrics = _evaluated(run, synthetic_folder, tmp_path, tta=True)
    said = capsys.readouterr().out
    assert "without effect on filters of the picture, which need no tiles: --tta" in said
    assert metrics["pooled"]["means"]["miou"] > 0.5
    assert list(metrics["baselines"])[0] == "majority class" and len(metrics["baselines"]) == 2


def test_objects_are_matched_in_metrics_table_and_report(
    run: Path, synthetic_folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    name = Segmenter.load(run, device="cpu").table.names[1]
    metrics = _evaluated(run, synthetic_folder, tmp_path, objects=name, baselines=False)
    found = metrics["objects"][name]
    assert found["fields"] == 2 and found["matched"] <= min(found["true"], found["predicted"])
    assert 0 <= found["pq"] <= found["f1"] <= 1
    with open(tmp_path / "eval" / "e" / "per_image.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for count in ("true", "predicted", "matched"):
        assert sum(float(row[f"objects {count} {name}"]) for row in rows) == found[count]
    page = (tmp_path / "eval" / "e" / "report.html").read_text()
    assert "panoptic quality" in page and "Hausdorff 95" in page
    none = _evaluated(run, synthetic_folder, tmp_path / "none", objects="none", baselines=False)
    assert "objects" not in none


def test_objects_of_no_class_of_the_model_are_refused(
    run: Path, synthetic_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--objects grains: the model knows"):
        _evaluated(run, synthetic_folder, tmp_path, objects="grains")
    assert not (tmp_path / "eval").exists()


def test_folds_of_forests_are_one_model(
    synthetic_folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    flags = "--head forest --trees 3 --samples 300 --filters 1 --name c --threads 1 --folds 2"
    words = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(tmp_path), "--quiet"]
    assert train_finetune.main([*words, *flags.split()]) == 0
    root = tmp_path / "finetune" / "c"
    path = _test_image(synthetic_folder)
    found = Segmenter.load(root / "ensemble.ckpt", device="cpu").predict(path)
    folds = [Segmenter.load(root / f"fold_{n}", device="cpu").predict(path) for n in (1, 2)]
    mean = np.mean([fold.probabilities for fold in folds], axis=0)
    assert np.abs(found.probabilities - mean).max() < 1e-5
    assert len(json.loads((root / "metrics.json").read_text())["classes"]) == 3


def test_flags_of_a_network_are_told_to_be_without_effect(synthetic_folder: Path) -> None:
    words = ["--finetune_dataset", str(synthetic_folder), "--head", "forest"]
    assert resolve(words).unheeded() == []
    given = resolve([*words, "--encoder", "resnet34", "--steps", "7", "--seed", "3"]).unheeded()
    assert given == ["--encoder", "--steps"]


@pytest.mark.parametrize(
    "words, told",
    [
        ("--trees 5", "--trees: only with --head forest"),
        ("--head forest --name x --resume", "leave --resume out"),
        ("--head forest --filters 3,1", "--filters must be"),
        ("--head forest --filters 0.7,many", "--filters must be"),
        ("--head forest --trees 0", "--trees must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    synthetic_folder: Path, words: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        resolve(["--finetune_dataset", str(synthetic_folder), *words.split()])


def test_a_forest_is_no_encoder_and_is_described(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="classifier on filters .* has no encoder"):
        weights.architecture(str(run / "best.ckpt"))
    assert inspect_weights.main([str(run / "best.ckpt")]) == 0
    assert "random forest" in capsys.readouterr().out


def test_a_damaged_forest_is_refused_in_a_line(run: Path, tmp_path: Path) -> None:
    payload = dict(checkpoint.load(run / "best.ckpt", stage="finetune"))
    payload["state"]["tree_children"][0] = torch.tensor([0, 0], dtype=torch.int32)
    path = tmp_path / "best.ckpt"
    checkpoint.save(path, {k: v for k, v in payload.items() if k != "format"})
    with pytest.raises(UserError, match="incomplete or damaged"):
        Segmenter.load(path, device="cpu")
