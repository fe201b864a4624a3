"""Factors of the classes that validation images choose, and where they act."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import eval_model
import train_finetune
from matssl import Segmenter
from matssl.core import checkpoint
from matssl.core.arrays import decided
from matssl.core.errors import UserError, guard
from matssl.data import synthetic
from matssl.metrics import calibration, decision
from matssl.metrics.calibration import Sample
from matssl.metrics.decision import Choice
from matssl.stages.finetune import settings
from tests.test_few_labels import _argv


def _sample(seed: int, bias: float = 0.0, pixels: int = 3000) -> Sample:
    """Pixels of three classes, the last one rare and said too seldom by the given bias."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(3, pixels, p=(0.7, 0.25, 0.05))
    logits = generator.normal(0, 1, (3, pixels))
    logits[truth, np.arange(pixels)] += 2
    logits[2] -= bias
    logs = logits - np.log(np.exp(logits).sum(axis=0))
    return Sample(logs, truth)


def _miou(said: np.ndarray, truth: np.ndarray, classes: int = 3) -> float:
    each = [
        ((said == c) & (truth == c)).sum() / ((said == c) | (truth == c)).sum()
        for c in range(classes)
    ]
    return float(np.mean(each))


# --- the choice ---
def test_a_class_is_the_largest_probability_times_its_factor() -> None:
    chance = np.array([0.7, 0.25, 0.05], np.float32).reshape(3, 1, 1)
    assert decided(chance)[0, 0] == 0
    assert decided(chance, None, (0.3, 1, 1))[0, 0] == 1
    assert decided(chance, None, (0.05, 0.1, 1))[0, 0] == 2


def test_the_offset_of_two_classes_is_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    truth = (generator.random(500) < 0.1).astype(np.int64)
    p = np.clip(0.2 * generator.random(500) + 0.35 * truth, 1e-3, 1 - 1e-3)
    logs = np.log(np.stack([1 - p, p]))
    offsets, value = decision.best([Sample(logs, truth)])
    steps = np.arange(-60, 61) / 20
    brute = max(_miou((logs[1] + s > logs[0]).astype(int), truth, 2) for s in steps)
    assert value == pytest.approx(brute)
    assert offsets.max() == 0 and offsets[1] > offsets[0]
    said = (logs + offsets[:, None]).argmax(axis=0)
    assert _miou(said, truth, 2) == pytest.approx(value)


def test_of_three_classes_hardly_any_offset_on_a_grid_is_better() -> None:
    one = _sample(1, bias=2.0)
    offsets, value = decision.best([one])
    grid = np.arange(-3, 3.1, 0.5)
    brute = max(
        _miou((one.logs + np.array([0, a, b])[:, None]).argmax(axis=0), one.truth)
        for a, b in itertools.product(grid, grid)
    )
    assert value > brute - 0.003
    # It gives back what was taken from the rare class.
    assert offsets[2] - offsets[0] > 0.5


def test_offsets_are_taken_where_they_pay_on_groups_that_did_not_choose_them() -> None:
    images = [_sample(seed, bias=2.5) for seed in range(4)]
    found = decision.chosen(images, ["a", "a", "b", "c"])
    assert found.groups == 3 and found.pays
    assert found.before < found.others <= found.after + 0.01
    # Two specimens that ask for the contrary: what one chose spoils the other.
    torn = decision.chosen([_sample(0, 3.0), _sample(1, -3.0)], ["a", "b"])
    assert torn.after >= torn.before and not torn.pays
    alone = decision.chosen(images[:1], ["a"])
    assert np.isnan(alone.others) and not alone.pays


def test_a_class_that_is_absent_leaves_the_mean() -> None:
    logs = np.log(np.array([[0.6, 0.4], [0.4, 0.6], [1e-6, 1e-6]]))
    offsets, value = decision.best([Sample(logs, np.array([0, 1]))])
    assert value == 1 and (offsets == 0).all()


def test_the_mirrored_image_chooses_the_same() -> None:
    chance = np.random.default_rng(2).dirichlet((1, 1, 1), (32, 32)).transpose(2, 0, 1)
    truth = chance.argmax(axis=0).astype(np.uint8)
    truth[:8] = 2
    first = calibration.sample(chance, truth, 1)
    second = calibration.sample(chance[..., ::-1], truth[:, ::-1], 1)
    assert decision.best([first])[1] == pytest.approx(decision.best([second])[1])


# --- the command ---
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decided") / "steel"
    synthetic.write_dataset(root, "two_phase", n_train=2, n_val=2, n_test=1, size=64, seed=0)
    return root


OFFSETS = (-1.5, 0.0, -0.5)


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(OFFSETS, 0.3, 0.4, 0.35, 2)
    monkeypatch.setattr(decision, "chosen", lambda samples, groups: choice)


def test_what_validation_chose_acts_wherever_the_model_is_used(
    folder: Path,
    tmp_path: Path,
    paying: None,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = _argv(folder, tmp_path, "--decision", "validation")
    assert guard(train_finetune.main, argv) == 0
    said = capsys.readouterr().out
    assert "decision: probabilities are multiplied" in said and "35.0 % instead of 30.0 %" in said
    run = tmp_path / "finetune" / "few"
    assert json.loads((run / "decision.json").read_text())["taken"]
    assert "Decision" in (run / "report.html").read_text()
    model = Segmenter.load(run, device="cpu", precision="fp32", threads=1)
    assert model.factors == pytest.approx(tuple(np.exp(OFFSETS)))
    found = model.predict(next((folder / "test").iterdir()))
    # Probabilities stay those of the network, tempered; the decision is of its own ones.
    own = np.array(found.probabilities)
    calibration.temper(own, 1 / model.temperature)
    assert np.mean(decided(own, None, model.factors) == found.classes) > 0.999
    assert (own.argmax(axis=0) != found.classes).any()
    words = ["--model_path", str(run), "--dataset", str(folder), "--output_dir", str(tmp_path)]
    assert guard(eval_model.main, [*words, "--no-baselines", "--threads", "1"]) == 0
    assert "a class is where its probability times a factor is largest" in capsys.readouterr().out


def test_an_ensemble_chooses_by_the_mean_of_its_models(
    folder: Path, tmp_path: Path, paying: None, no_drawing: None
) -> None:
    argv = _argv(folder, tmp_path, "--decision", "validation", "--ensemble", 2, "--quiet")
    assert guard(train_finetune.main, argv) == 0
    model = Segmenter.load(tmp_path / "finetune/few", device="cpu", precision="fp32", threads=1)
    assert len(model.members) == 2 and model.factors == pytest.approx(tuple(np.exp(OFFSETS)))
    found = model.predict(next((folder / "test").iterdir()))
    assert (decided(found.probabilities, None, model.factors) == found.classes).all()


def test_factors_that_do_not_pay_leave_the_model_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    for name, words in (("a", ()), ("b", ("--decision", "validation"))):
        choice = Choice(OFFSETS, 0.3, 0.4, 0.29, 2)
        monkeypatch.setattr(decision, "chosen", lambda samples, groups, own=choice: own)
        assert guard(train_finetune.main, _argv(folder, tmp_path / name, *words, "--quiet")) == 0
    one, other = (
        checkpoint.load(tmp_path / name / "finetune/few/best.ckpt")["progress"] for name in "ab"
    )
    assert one == other and "factors" not in one


def test_garbled_factors_are_damage(folder: Path, tmp_path: Path, no_drawing: None) -> None:
    assert guard(train_finetune.main, _argv(folder, tmp_path, "--steps", 2, "--quiet")) == 0
    payload = checkpoint.load(tmp_path / "finetune/few/best.ckpt")
    for wrong in ([1.0], [1.0, 2.0, 1.0], ["a", 1.0, 1.0], 3):
        progress = {**payload["progress"], "factors": wrong}
        checkpoint.save(tmp_path / "x.ckpt", {**payload, "progress": progress})
        with pytest.raises(UserError, match="damaged"):
            Segmenter.load(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--threshold", "0.3"), "both say where a class is"),
        (("--average_with", "forest"), "of a network alone"),
    ],
)
def test_other_decisions_do_not_go_together_with_factors(
    words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        settings.resolve(["--finetune_dataset", "x", "--decision", "validation", *words])


def test_factors_that_nothing_chooses_and_an_ensemble_of_a_head_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    root = tmp_path / "one"
    synthetic.write_dataset(root, "two_phase", n_train=2, n_val=0, n_test=0, size=64, seed=0)
    words = ["--finetune_dataset", root, "--output_dir", tmp_path, "--decision", "validation"]
    words += ["--encoder", "tu-test_resnet", "--crop_size", 32, "--steps", 1, "--threads", 1]
    words += ["--val_fraction", 0, "--device", "cpu", "--name"]
    assert guard(train_finetune.main, [*map(str, words), "x"]) == 0
    assert "--decision validation is without effect" in capsys.readouterr().out
    assert guard(train_finetune.main, [*map(str, words), "y", "--folds", "2"]) == 0
    assert "all folds as one take the most likely class" in capsys.readouterr().out
    with pytest.raises(UserError, match="leave it out with --head"):
        settings.resolve(["--finetune_dataset", "x", "--head", "linear", "--ensemble", "2"])
