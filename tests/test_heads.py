"""Heads on frozen features: what they see, how they learn, their runs, the mean with a network."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import train_finetune
from matssl import weights
from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.forest import growing, logistic
from matssl.forest.growing import Pixels
from matssl.models.encoders import build_encoder, encoder_facts
from matssl.models.pixels import Features, PixelClassifier
from matssl.pictures import segmentation
from matssl.stages.finetune.settings import resolve
from matssl.tools import inspect_weights
from matssl.trained import ensemble, passes
from matssl.trained.network import Network
from matssl.trained.segmenter import Segmenter

SMALL = (0.7, 1.6)


def _pixels(rows: int = 600, columns: int = 5, pictures: int = 1) -> Pixels:
    generator = np.random.default_rng(0)
    x = generator.normal(3, [1, 10, 0.1, 1, 5][:columns], (rows, columns)).astype(np.float32)
    x[:, -1] = 7  # tells nothing
    score = x[:, 0] - 3 + (x[:, 1] - 3) / 10 + generator.normal(0, 0.5, rows)
    target = np.digitize(score, [-0.7, 0.9]).astype(np.uint8)
    picture = np.arange(rows) * pictures // rows
    labelled = np.bincount(target, minlength=4)[:4] * 10
    return Pixels(x, target, picture, np.arange(rows) % 97, labelled)


def test_the_linear_head_is_the_optimum_that_scikit_learn_finds() -> None:
    pixels = _pixels()
    found = logistic.fit(pixels, 4, (), 1, ["a"])
    assert found.penalty in logistic.PENALTIES and len(found.losses) == len(logistic.PENALTIES)
    own = np.array([pixels.weights.get(int(kind), 0) for kind in pixels.target])
    x = pixels.features[:, :4]
    scaled = np.clip((x - x.mean(axis=0)) / x.std(axis=0), -logistic.CUT_OFF, logistic.CUT_OFF)
    theirs = LogisticRegression(C=1 / (found.penalty * own.sum()), tol=1e-8, max_iter=5000)
    theirs.fit(scaled, pixels.target, sample_weight=own)
    said = found.linear.of_pixels(np.ascontiguousarray(pixels.features.T))
    assert np.abs(said[:3].T - theirs.predict_proba(scaled)).max() < 2e-3
    # A class without a label wins nowhere; what never varies has no weight.
    assert not said[3].any() and not found.linear.weight[4].any()
    assert found.importance.sum() == pytest.approx(1) and found.importance[0] > 0.3


def test_a_penalty_is_chosen_on_what_was_held_out() -> None:
    """Of a hundred features of noise and forty labelled pixels the weakest penalty overfits."""
    generator = np.random.default_rng(1)
    x = generator.normal(0, 1, (60, 100)).astype(np.float32)
    target = (x[:, 0] + generator.normal(0, 1, 60) > 0).astype(np.uint8)
    pixels = Pixels(x, target, np.zeros(60, np.int64), np.arange(60), np.bincount(target))
    found = logistic.fit(pixels, 2, (), 1, ["a"])
    assert found.penalty is not None and found.penalty > logistic.PENALTIES[-1]
    assert np.argmin(found.losses) == logistic.PENALTIES.index(found.penalty)


@pytest.mark.parametrize(
    "pictures, groups, folds",
    [(4, "aabb", {(0, 1), (2, 3)}), (3, "aaa", {(0,), (1,), (2,)})],
)
def test_specimens_are_held_out_before_pictures(
    pictures: int, groups: str, folds: set[tuple[int, ...]]
) -> None:
    pixels = _pixels(pictures=pictures)
    fold = logistic._folds(pixels, list(groups))
    assert fold is not None
    found = {
        tuple(np.unique(pixels.picture[fold == number]).tolist()) for number in np.unique(fold)
    }
    assert found == folds


def test_one_picture_is_held_out_by_upright_strips_of_equal_numbers() -> None:
    pixels = _pixels()
    fold = logistic._folds(pixels, ["a"])
    assert fold is not None and len(np.unique(fold)) == 4
    assert (np.diff(fold[np.argsort(pixels.column, kind="stable")]) >= 0).all()
    column = replace(pixels, column=np.zeros(600, np.int64))
    assert logistic._folds(column, ["a"]) is None
    assert logistic.fit(column, 4, (), 1, ["a"]).penalty is None


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_encoder("small_unet", 1).eval()


def _picture(height: int = 64, width: int = 96) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    mask = (x >= width // 2).astype(np.uint8)
    plane = np.where(mask == 0, np.sin(y), np.cos(x / 2)) + generator.normal(0, 0.1, mask.shape)
    return plane.astype(np.float32)[None], mask


@pytest.mark.parametrize("sigmas", [(), SMALL])
@pytest.mark.parametrize("kind", ["forest", "linear"])
def test_a_head_says_of_a_picture_what_it_says_of_its_pixels(
    kind: str, sigmas: tuple[float, ...], encoder: torch.nn.Module
) -> None:
    """Whole pictures go another way (strips, scores before interpolation) than single pixels."""
    image, mask = _picture()
    features = Features(sigmas, 1, encoder, "small_unet")
    assert len(features.groups) == features.filters + sum(encoder_facts(encoder).channels)
    assert features.others == len(features.groups) - features.filters
    pixels = growing.drawn([image], [mask], 2, features.at, 800, 0)
    assert pixels.features.shape == (800, len(features.groups))
    if kind == "forest":
        classifier: Any = growing.planted(pixels, 2, sigmas, 1, trees=10).forest
    else:
        classifier = logistic.fit(pixels, 2, sigmas, 1, ["a"]).linear
    model = PixelClassifier(classifier, features)
    found = Network.on(model, "cpu", "fp32").probabilities(image, 2)
    places = growing.chosen([mask], 2, 800, 0)[0]
    of = classifier.of_pixels(np.ascontiguousarray(pixels.features.T))
    assert np.abs(found.reshape(2, -1)[:, places] - of).max() < (0.05 if kind == "forest" else 1e-3)
    assert found.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert (found.argmax(axis=0) == mask).mean() > 0.9
    # As a checkpoint holds it.
    again = PixelClassifier.stored(model.description, model.state_dict())
    same = Network.on(again, "cpu", "fp32").probabilities(image, 2)
    assert np.array_equal(same, found)


def test_scores_count_in_single_precision_where_the_maps_come_in_bfloat16(
    encoder: torch.nn.Module,
) -> None:
    image, mask = _picture()
    features = Features((), 1, encoder, "small_unet")
    pixels = growing.drawn([image], [mask], 2, features.at, 800, 0)
    model = PixelClassifier(logistic.fit(pixels, 2, (), 1, ["a"]).linear, features)
    x = torch.from_numpy(image)[None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        maps, found = features.maps(x), model(x)
    whole = torch.cat(
        [
            F.interpolate(level, x.shape[-2:], mode="bilinear", align_corners=False)
            for level in maps
        ],
        dim=1,
    )
    weight = torch.from_numpy(model.classifier.weight)
    by_hand = torch.einsum("fc,bfhw->bchw", weight, whole)
    by_hand += torch.from_numpy(model.classifier.bias)[:, None, None]
    assert found.dtype == torch.float32
    assert (found - by_hand).abs().max() < 1e-3 * by_hand.abs().max()


def test_maps_coarser_than_sixteen_pixels_are_not_seen() -> None:
    """By hand: ResNet-18 has 64, 64, 128, 256 and 512 channels at strides 2 to 32."""
    deep = Features((), 1, build_encoder("resnet18", 1).eval(), "resnet18")
    assert deep.seen == ((64, 2), (64, 4), (128, 8), (256, 16)) and deep.others == 512
    assert [level.shape[-1] for level in deep.maps(torch.zeros(1, 1, 64, 64))] == [32, 16, 8, 4]


def test_tiles_of_a_head_are_hardly_seen(encoder: torch.nn.Module) -> None:
    image, mask = _picture(160, 224)
    features = Features(SMALL, 1, encoder, "small_unet")
    pixels = growing.drawn([image], [mask], 2, features.at, 800, 0)
    model = PixelClassifier(logistic.fit(pixels, 2, SMALL, 1, ["a"]).linear, features)
    network = Network.on(model, "cpu", "fp32")
    whole = network.probabilities(image, 2)
    tiles = network.probabilities(image, 2, tile_size=96, overlap=48)
    assert (whole.argmax(axis=0) == tiles.argmax(axis=0)).mean() > 0.995


HEADS = {
    "linear-filters": "--head linear",
    "linear-both": "--head linear --features both --encoder small_unet",
    "forest-encoder": "--head forest --trees 5 --features encoder --encoder small_unet",
}


@pytest.fixture(scope="module")
def runs(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("heads")
    common = "--samples 600 --threads 1 --quiet --filters 0.7,1.6".split()
    found = {}
    for name, words in HEADS.items():
        own = [w for w in common if "encoder" not in name or w not in ("--filters", "0.7,1.6")]
        where = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(out)]
        assert train_finetune.main([*where, *words.split(), *own, "--name", name]) == 0
        found[name] = out / "finetune" / name
    return found


@pytest.mark.parametrize("name", list(HEADS))
def test_a_run_of_a_head_is_a_run_and_predicts_as_its_report_says(
    runs: dict[str, Path], name: str, synthetic_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[name]
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "done" and 0.25 < status["best_miou"] <= 1
    page = (run / "report.html").read_text()
    assert "What it looks at" in page and ("encoder, map" in page) == (name != "linear-filters")
    segmenter = Segmenter.load(run, device="cpu", precision="fp32")
    image = sorted((synthetic_folder / "test").iterdir())[0]
    found = segmenter.predict(image)
    assert found.probabilities.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert segmenter.lineage.last["head"] == name.split("-")[0]
    assert inspect_weights.main([str(run / "best.ckpt")]) == 0
    said = capsys.readouterr().out
    assert ("linear classifier" if "linear" in name else "random forest") in said
    assert ("small_unet" in said) == (name != "linear-filters")


def test_the_encoder_of_a_head_is_one_to_start_from(runs: dict[str, Path]) -> None:
    assert weights.architecture(str(runs["linear-both"] / "best.ckpt"))[0] == "small_unet"
    with pytest.raises(UserError, match="classifier on filters .* has no encoder"):
        weights.architecture(str(runs["linear-filters"] / "best.ckpt"))


def test_damaged_coefficients_are_refused_in_a_line(runs: dict[str, Path], tmp_path: Path) -> None:
    payload = dict(checkpoint.load(runs["linear-both"] / "best.ckpt", stage="finetune"))
    payload["state"]["linear_weight"] = payload["state"]["linear_weight"][1:]
    path = tmp_path / "best.ckpt"
    checkpoint.save(path, {k: v for k, v in payload.items() if k != "format"})
    with pytest.raises(UserError, match="incomplete or damaged"):
        Segmenter.load(path, device="cpu")


def _network(folder: Path, out: Path, *more: str) -> Path:
    words = "--encoder small_unet --steps 4 --val_every 2 --crop_size 32 --batch_size 2 --threads 1"
    where = ["--finetune_dataset", str(folder), "--output_dir", str(out), "--quiet", "--name", "n"]
    assert train_finetune.main([*where, *words.split(), *more]) == 0
    return out / "finetune" / "n"


def test_the_mean_of_network_and_head_is_one_model_and_the_run_goes_on_as_before(
    synthetic_folder: Path, tmp_path: Path, no_drawing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels: list[NDArray[np.uint8]] = []
    monkeypatch.setattr(segmentation, "panel", lambda _i, _m, found, *_rest: panels.append(found))
    more = "--average_with linear --samples 600 --first_answer".split()
    run = _network(synthetic_folder, tmp_path / "a", *more)
    shown = list(panels)
    plain = _network(synthetic_folder, tmp_path / "b")
    facts = json.loads((run / "average.json").read_text())
    assert facts["share"] == facts["shares"][int(np.argmax(facts["miou"]))] > 0
    # Neither the first answer nor the head changes the network.
    old, new = (
        checkpoint.load(path, stage="finetune")
        for path in (plain / "best.ckpt", run / "network.ckpt")
    )
    assert all(torch.equal(value, new["state"][name]) for name, value in old["state"].items())
    image = sorted((synthetic_folder / "test").iterdir())[0]
    both = Segmenter.load(run, device="cpu", precision="fp32")
    assert len(both.members) == 2 and both.members[1].of == pytest.approx(1 / facts["share"])
    alone = Segmenter.load(run / "network.ckpt", device="cpu", precision="fp32")
    head = Segmenter.load(run / "first.ckpt", device="cpu", precision="fp32")
    assert head.lineage.last["head"] == "linear"
    found = [one.predict(image).probabilities for one in (both, alone)]
    share = facts["share"]
    each = list(passes.shares(both, "ensemble"))
    assert each == pytest.approx([1, share / (1 - share)])
    rest = (found[0] - (1 - share) * found[1]) / share
    assert rest.min() > -1e-4 and rest.sum(axis=0) == pytest.approx(1, abs=1e-3)
    status = json.loads((run / "status.json").read_text())
    assert status["best_miou"] == pytest.approx(max(facts["miou"]))
    # What the report shows of the validation images is what the kept model says of them.
    drawn = [both.predict(path).classes for path in sorted((synthetic_folder / "val").iterdir())]
    assert len(shown) == len(drawn) > 0
    # The training may have computed in bfloat16.
    assert all(np.mean(one == two) > 0.98 for one, two in zip(shown, drawn, strict=True))
    assert "the network&#x27;s alone" in (run / "report.html").read_text()
    (published,) = run.glob("*_best_*.pth")
    assert f"_{max(facts['miou']):.4f}_" in published.name
    assert published.read_bytes() == (run / "best.ckpt").read_bytes()
    # What compares trainings, and who looks for the published name, has the mean.
    assert checkpoint.load(run / "best.ckpt")["progress"]["top"] == max(facts["miou"])
    (named,) = run.glob("*.pth")
    assert named.read_bytes() == (run / "best.ckpt").read_bytes()
    # A finished run that is asked to go on ends where it was.
    before = (run / "network.ckpt").stat().st_size
    again = _network(synthetic_folder, tmp_path / "a", *more, "--resume")
    assert (again / "network.ckpt").stat().st_size == before
    last = Segmenter.load(again, device="cpu", precision="fp32").predict(image).probabilities
    assert np.array_equal(last, found[0])


def test_the_better_of_both_heads_stands_beside_the_network(
    synthetic_folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    found = {}
    for kind in ("linear", "forest", "auto"):
        more = f"--average_with {kind} --samples 600 --trees 5".split()
        more = more[: -2 if kind == "linear" else None]
        run = _network(synthetic_folder, tmp_path / kind, *more)
        found[kind] = run, json.loads((run / "average.json").read_text())
    auto = found["auto"][1]
    each = {found[kind][1]["head"]: found[kind][1]["miou"] for kind in ("linear", "forest")}
    assert auto["tried"] == each and len(each) == 2
    assert auto["head"] == max(each, key=lambda head: max(each[head]))
    assert auto["miou"] == each[auto["head"]]
    kind = "forest" if "forest" in auto["head"] else "linear"
    image = sorted((synthetic_folder / "test").iterdir())[0]
    kept, same = (
        Segmenter.load(found[name][0], device="cpu", precision="fp32").predict(image).probabilities
        for name in ("auto", kind)
    )
    assert np.array_equal(kept, same)
    with pytest.raises(UserError, match="--trees: only with"):
        resolve(["--finetune_dataset", ".", "--trees", "5"])


class _Killed(BaseException):
    pass


def test_a_run_is_done_when_the_mean_is_kept_and_its_panels_are_of_the_mean(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    more = "--average_with linear --samples 600".split()
    save = checkpoint.save

    def killed(path: Path, payload: dict[str, object], **how: object) -> None:
        if "members" in payload["progress"]:  # type: ignore[operator]
            raise _Killed
        save(path, payload, **how)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(checkpoint, "save", killed)
        _network(synthetic_folder, tmp_path, *more)
    run = tmp_path / "finetune" / "n"
    assert json.loads((run / "status.json").read_text())["state"] != "done"
    shown: list[np.ndarray] = []
    with monkeypatch.context() as patch:
        panel = "matssl.pictures.segmentation.panel"
        patch.setattr(panel, lambda image, mask, said, *rest: shown.append(said))
        _network(synthetic_folder, tmp_path, *more, "--resume")
    both = Segmenter.load(run, device="cpu", precision="fp32")
    assert len(both.members) == 2 and (run / "network.ckpt").is_file()
    rows = (run / "data.csv").read_text(encoding="utf-8-sig").splitlines()
    image = next(row.split(",")[0] for row in rows if ",val," in row)
    assert np.array_equal(shown[0], both.predict(image).classes)


def test_stored_predictions_of_a_mean_are_those_of_the_mean(
    synthetic_folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    """``--results_dir``: they were the network's, where the kept model is another one."""
    run = tmp_path / "run"
    words = "--encoder small_unet --steps 4 --val_every 2 --crop_size 32 --batch_size 2 --threads 1"
    words += " --precision fp32 --quiet --average_with linear --samples 600 --classes binary"
    where = ["--finetune_dataset", str(synthetic_folder), "--results_dir", str(run)]
    assert train_finetune.main([*where, *words.split()]) == 0
    both, alone = (
        Segmenter.load(path, device="cpu", precision="fp32") for path in (run, run / "network.ckpt")
    )
    image = sorted((synthetic_folder / "val").iterdir())[0]
    (file, *_rest) = sorted((run / "val_preds").iterdir())
    stored = cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.float64)
    wanted, network = (255 * m.predict(image).probabilities[1] for m in (both, alone))
    assert np.abs(stored - wanted).max() <= 0.51
    assert np.abs(stored - network).max() > 10


def test_ensembles_of_ensembles_keep_every_share() -> None:
    """By hand: 0.75 and 0.25 of the first, joined with a third alike: 3/8, 1/8, 1/2."""

    def model(kind: str) -> dict[str, Any]:
        record = {"window": "image", "mean": [0.5], "std": [0.1]}
        described = {"kind": kind, "num_classes": 2, "in_channels": 1}
        state = {"x": torch.zeros(1)}
        return {"model": described, "state": state, "preprocess": record, "progress": {}}

    inner = ensemble.joined([model("a"), model("b")], [0.75, 0.25])
    outer = ensemble.joined([inner, model("a")])
    assert [fact["share"] for fact in outer["progress"]["members"]] == [0.75, 0.25, 1.0]
    assert [fact["model"]["kind"] for fact in outer["progress"]["members"]] == ["a", "b", "a"]
    assert outer["model"] == {"num_classes": 2, "in_channels": 1, "members": 3}
    alike = ensemble.joined([model("a"), model("a")])
    assert alike["model"]["kind"] == "a" and "share" not in alike["progress"]["members"][0]
    other = model("a")
    other["preprocess"] = {**other["preprocess"], "window": "dtype"}
    with pytest.raises(ValueError, match="read images in different ways"):
        ensemble.joined([model("a"), other])


@pytest.mark.parametrize(
    "words, told",
    [
        ("--features both", "--features: only with --head forest or linear"),
        ("--head linear --trees 5", "--trees: only with --head forest"),
        ("--head linear --features encoder --filters 1", "no effect with --features encoder"),
        ("--head linear --first_answer", "--first_answer acts beside a network"),
        ("--head forest --average_with linear", "--average_with acts beside a network"),
        ("--head linear --name x --resume", "leave --resume out"),
    ],
)
def test_what_does_not_go_together_is_refused(
    synthetic_folder: Path, words: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        resolve(["--finetune_dataset", str(synthetic_folder), *words.split()])


def test_an_encoder_is_heeded_where_it_is_seen(synthetic_folder: Path) -> None:
    words = ["--finetune_dataset", str(synthetic_folder), "--head", "linear", "--steps", "7"]
    assert resolve([*words, "--encoder", "resnet34"]).unheeded() == ["--encoder", "--steps"]
    seen = resolve([*words, "--encoder", "resnet34", "--features", "encoder"])
    assert seen.unheeded() == ["--steps"] and seen.sees_encoder
    # Given weights are used: both is what was measured to be the best.
    assert resolve([*words, "--weights", "imagenet"]).seen(True) == "both"


def test_nothing_that_was_not_given_is_called_without_effect(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--finetune_dataset", str(synthetic_folder), "--head", "linear", "--samples", "300"]
    words += ["--features", "encoder", "--encoder", "tu-test_resnet", "--threads", "1"]
    assert train_finetune.main([*words, "--output_dir", str(tmp_path), "--name", "said"]) == 0
    assert "without effect" not in capsys.readouterr().out


def test_the_score_of_held_out_parts_says_what_is_a_mean_of_them_and_what_is_pooled(
    synthetic_folder: Path, tmp_path: Path, no_drawing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One picture: the mean over its halves is not the mean of the classes beside it."""
    data = tmp_path / "one"
    for split in ("train", "train_annot"):
        (data / split).mkdir(parents=True)
        file = sorted((synthetic_folder / split).iterdir())[0]
        shutil.copy(file, data / split)
    words = ["--finetune_dataset", str(data), "--output_dir", str(tmp_path), "--name", "h"]
    more = "--head linear --samples 300 --filters 0.7,1.6 --threads 1".split()
    assert train_finetune.main([*words, *more]) == 0
    said = capsys.readouterr().out
    told = re.search(r"mean of the mIoU of 2 folds ([\d.]+) \(classes, all held-out pixels", said)
    assert told is not None
    status = json.loads((tmp_path / "finetune" / "h" / "status.json").read_text())
    assert float(told[1]) == pytest.approx(100 * status["best_miou"], abs=0.06)
