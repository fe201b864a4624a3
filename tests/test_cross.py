"""Cross-validation: ``train_finetune.py --folds`` end to end, on tiny sets of known specimens."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from processes import ranks

import eval_model
import train_finetune
from matssl import Segmenter, pictures
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.data import readers, specimens, synthetic
from matssl.data.layouts import Pair
from matssl.metrics.counts import confusion
from matssl.pictures import folds as curves
from matssl.stages.evaluate import rivals
from matssl.stages.finetune import cross_report, loop
from matssl.tools import measure as measuring

STEADY = ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
PLAN = ["--encoder", "tu-test_resnet", "--decoder", "unet", "--crop_size", "32"]
PLAN += ["--batch_size", "2", "--val_every", "2", "--lr", "0.01", "--checkpoint_every", "2"]
SPECIMENS, IMAGES = "ABCDE", 2


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of five specimens to train and validate on, and a test of its own."""
    root = tmp_path_factory.mktemp("folds") / "steel"
    number = 0
    for split, names in (("train", "ABC"), ("val", "DE"), ("test", "T")):
        for part in (split, f"{split}_annot"):
            (root / part).mkdir(parents=True)
        for name in names:
            for field in range(IMAGES):
                image, mask = synthetic.micrograph("two_phase", 64, 64, number)
                cv2.imwrite(str(root / split / f"specimen{name}_{field}.png"), image)
                cv2.imwrite(str(root / f"{split}_annot" / f"specimen{name}_{field}.png"), mask % 2)
                number += 1
    (root / "classes.yaml").write_text("classes:\n  matrix: 0\n  particle: 1\n")
    return root


def _argv(folder: Path, out: Path, *words: object) -> list[str]:
    argv = ["--finetune_dataset", folder, "--output_dir", out, "--name", "cv", "--steps", 4]
    return [str(word) for word in [*argv, *PLAN, *STEADY, *words]]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three folds; pictures are drawn by a test of their own."""
    out = tmp_path_factory.mktemp("cv")
    with pictures.undrawn():
        assert guard(train_finetune.main, _argv(folder, out, "--folds", 3, "--quiet")) == 0
    return out / "finetune" / "cv"


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _models(run: Path) -> list[Segmenter]:
    return [
        Segmenter.load(run / f"fold_{n}", device="cpu", precision="fp32", threads=1)
        for n in (1, 2, 3)
    ]


# --- which image is where ---
def _pairs(sizes: dict[str, int]) -> list[Pair]:
    return [
        Pair(Path(f"{group}{i}.png"), Path("m.png"), group, "train")
        for group, count in sizes.items()
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_specimen_is_never_on_both_sides_and_every_image_is_held_out_once(count: int) -> None:
    pairs = _pairs({"a": 7, "b": 1, "c": 3, "d": 3, "e": 2})
    held = specimens.grouped_folds(pairs, count, 0)
    assert sorted(i for own in held for i in own) == list(range(16)) and len(held) == count
    for own in held:
        outside = {pair.group for i, pair in enumerate(pairs) if i not in own}
        assert own and not outside & {pairs[i].group for i in own}


def test_folds_hold_about_as_many_images_and_do_not_depend_on_the_order_of_files() -> None:
    """F-U19: folders list files in any order, and the seed alone decides."""
    pairs = _pairs({name: 4 for name in "abcdefghijk"})
    first = specimens.grouped_folds(pairs, 3, 5)
    assert sorted(map(len, first)) == [12, 16, 16]
    turned = pairs[::-1]
    again = specimens.grouped_folds(turned, 3, 5)

    def groups(held: list[tuple[int, ...]], of: list[Pair]) -> list[set[str]]:
        return [{of[i].group for i in own} for own in held]

    assert groups(first, pairs) == groups(again, turned)
    assert groups(first, pairs) != groups(specimens.grouped_folds(pairs, 3, 6), pairs)


def test_quarters_of_one_picture_are_never_on_both_sides() -> None:
    """F-U15: in the documented split all validation tiles had siblings in training."""
    files = [Path(f"/x/{picture}_{part}.jpg") for picture in range(1, 12) for part in range(1, 5)]
    names = specimens.group(files, Path("/x")).names
    assert len(set(names)) == 11
    pairs = [Pair(path, path, name, "train") for path, name in zip(files, names, strict=True)]
    for own in specimens.grouped_folds(pairs, 3, 0):
        inside = {pairs[i].image.name.split("_")[0] for i in own}
        outside = {p.image.name.split("_")[0] for i, p in enumerate(pairs) if i not in own}
        assert not inside & outside and len(own) == 4 * len(inside)


def test_as_many_folds_as_specimens_leave_one_out_and_more_are_refused() -> None:
    """F-U18: k = n is the leave-one-out of the documents."""
    pairs = _pairs({"a": 2, "b": 1, "c": 1})
    assert sorted(map(len, specimens.grouped_folds(pairs, 3, 0))) == [1, 1, 2]
    for count in (0, 1, 4):
        with pytest.raises(ValueError, match="3 groups cannot"):
            specimens.grouped_folds(pairs, count, 0)


@pytest.mark.parametrize(
    ("folds", "sentence"),
    [
        ("6", "--folds 6: 10 labelled images of 5 specimens"),
        ("1", "--folds must be 2 to 1000, or all"),
        ("0", "--folds must be 2 to 1000, or all"),
        ("-3", "--folds must be 2 to 1000, or all"),
        ("2.5", "--folds must be 2 to 1000, or all"),
        ("null", "--folds must be 2 to 1000, or all"),
        ("99999999999999999999", "--folds must be 2 to 1000, or all"),
    ],
)
def test_numbers_of_folds_that_make_none_are_refused_in_a_line(
    folds: str,
    sentence: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """F-U18: null, 1 or more than there is to fold passed."""
    assert guard(train_finetune.main, _argv(folder, tmp_path / "out", "--folds", folds)) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- what comes out ---
def test_every_image_is_held_out_in_one_fold_with_its_specimen(run: Path, folder: Path) -> None:
    rows = _rows(run / "folds.csv")
    images = sorted([*(folder / "train").iterdir(), *(folder / "val").iterdir()])
    assert [Path(row["image"]).name for row in rows] == [path.name for path in images]
    held = {
        row["specimen"]: {r["fold"] for r in rows if r["specimen"] == row["specimen"]}
        for row in rows
    }
    assert len(held) == 5 and all(len(own) == 1 for own in held.values())
    assert sorted(Counter(row["fold"] for row in rows).values()) == [2, 4, 4]
    for row in rows:
        assert row[f"fold_{row['fold']}"] == "held out"
    # What validates inside a fold is of specimens that it does not learn from.
    for number in (1, 2, 3):
        parts = {
            part: {row["specimen"] for row in rows if row[f"fold_{number}"] == part}
            for part in ("train", "val", "held out")
        }
        assert all(parts.values())
        assert not parts["train"] & parts["val"] and not parts["held out"] & parts["val"]
        seen = checkpoint.load(run / f"fold_{number}" / "best.ckpt")["progress"]["train_images"]
        own = {row["image"] for row in rows if row[f"fold_{number}"] == "train"}
        assert set(seen) == own
    # F-U19: the plan is on record, whatever the folder's listing says tomorrow.
    plan = _json(run / "cross_validation.json")
    assert plan["settings"]["folds"] == "3"
    for number, fold in enumerate(plan["folds"], start=1):
        own = [row["image"] for row in rows if row["fold"] == str(number)]
        assert [str(folder / image) for image in fold["held_out"]] == own


def test_the_mask_of_an_image_comes_from_the_fold_that_has_not_seen_it(
    run: Path, folder: Path
) -> None:
    models = _models(run)
    told = 0
    for row in _rows(run / "folds.csv"):
        name = Path(row["image"]).stem
        written = np.asarray(readers.read_mask(run / "masks" / "index" / f"{name}.png"))
        guesses = [model.predict(row["image"]).classes for model in models]
        number = int(row["fold"])
        assert np.array_equal(written, guesses[number - 1])
        assert row["image"] not in models[number - 1].trained_on.images
        told += sum(not np.array_equal(written, guess) for guess in guesses)
    # The models differ, so that the comparison says something.
    assert told > 5


def test_confusions_and_scores_are_those_of_the_masks(run: Path, folder: Path) -> None:
    found = _json(run / "confusion.json")
    assert found["classes"] == ["matrix", "particle"] and len(found["images"]) == 10
    group_of = {Path(row["image"]).stem: row["specimen"] for row in _rows(run / "folds.csv")}
    total = np.zeros((2, 2), int)
    for one in found["images"]:
        (truth,) = folder.glob(f"*_annot/{one['image']}.png")
        mask = np.asarray(readers.read_mask(truth))
        guess = np.asarray(readers.read_mask(run / "masks/index" / f"{one['image']}.png"))
        assert one["confusion"] == confusion(mask, guess, 2).tolist()
        assert one["specimen"] == group_of[one["image"]]
        total += np.array(one["confusion"])
    scores = _json(run / "metrics.json")
    assert scores["confusion"] == total.tolist() and scores["images"] == 10
    assert scores["split"] == "out-of-fold" and scores["warnings"] == []
    # Simpler methods stand beside, fitted fold by fold on what the model has seen.
    assert len(scores["baselines"]) >= 3
    table = _rows(run / "per_image.csv")
    assert sorted(row["split"] for row in table) == sorted(
        f"fold_{row['fold']}" for row in _rows(run / "folds.csv")
    )


def test_the_summary_has_a_row_a_fold_and_their_mean_spread_and_t_interval(run: Path) -> None:
    rows = _rows(run / "cv_summary.csv")
    assert [row["fold"] for row in rows] == [
        "1",
        "2",
        "3",
        "mean",
        "sd",
        "low 95 %",
        "high 95 %",
        "folds",
    ]
    values = [float(row["miou"]) for row in rows[:3]]
    mean, sd = np.mean(values), np.std(values, ddof=1)
    # t(0.975, 2) = 4.303 of any table.
    half = 4.303 * sd / math.sqrt(3)
    assert float(rows[3]["miou"]) == pytest.approx(mean, rel=1e-4)
    assert float(rows[4]["miou"]) == pytest.approx(sd, rel=1e-4)
    assert float(rows[5]["miou"]) == pytest.approx(max(0, mean - half), abs=1e-4)
    assert float(rows[6]["miou"]) == pytest.approx(min(1, mean + half), abs=1e-4)
    assert rows[7]["miou"] == "3"
    assert sum(int(row["images"]) for row in rows[:3]) == 10
    assert sum(int(row["specimens"]) for row in rows[:3]) == 5
    for number in (1, 2, 3):
        status = _json(run / f"fold_{number}" / "status.json")
        assert int(rows[number - 1]["best_step"]) == status["best_step"]


def test_the_epochs_are_means_of_the_folds_by_name(run: Path) -> None:
    rows = _rows(run / "cv_epochs.csv")
    assert {row["metric"] for row in rows} == {"loss", "val_miou", "iou matrix", "iou particle"}
    logs = [_rows(run / f"fold_{n}" / "log.csv") for n in (1, 2, 3)]
    values = [float(next(row["val_miou"] for row in log if row["step"] == "4")) for log in logs]
    (told,) = (row for row in rows if (row["step"], row["metric"]) == ("4", "val_miou"))
    assert float(told["mean"]) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(told["sd"]) == pytest.approx(np.std(values, ddof=1), rel=1e-4)
    assert told["n"] == "3"
    steps = [_rows(run / f"fold_{n}" / "steps.csv") for n in (1, 2, 3)]
    (loss,) = (row for row in rows if (row["step"], row["metric"]) == ("3", "loss"))
    assert float(loss["mean"]) == pytest.approx(np.mean([float(s[2]["loss"]) for s in steps]), 1e-4)
    for name in ("loss.png", "metrics.png"):
        assert (run / name).is_file()


def test_curves_of_the_folds_are_drawn(tmp_path: Path) -> None:
    rows = cross_report.epochs(
        {n: {"loss": {i: 1 / (i + n) for i in range(1, 200)}, "a": {5: 0.1 * n}} for n in (1, 2)}
    )
    curves.band(rows, ["loss", "a"], tmp_path / "x.png", "both")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_columns_in_another_order_are_read_by_their_names(tmp_path: Path) -> None:
    """F-U4: by their number, "loss" showed recall and "precision" loss."""
    orders = [("step", "loss", "lr"), ("lr", "step", "loss")]
    for number, order in enumerate(orders, start=1):
        place = tmp_path / f"fold_{number}"
        place.mkdir()
        values = {"step": "1", "loss": str(number), "lr": "0.5"}
        text = f"{','.join(order)}\n{','.join(values[name] for name in order)}\n"
        (place / "steps.csv").write_text(text)
    courses = {n: cross_report.course(tmp_path / f"fold_{n}") for n in (1, 2)}
    (row,) = cross_report.epochs(courses)
    assert row == {"step": 1, "metric": "loss", "mean": 1.5, "sd": math.sqrt(0.5), "n": 2}


def test_folds_of_other_lengths_are_averaged_over_those_there_are() -> None:
    rows = cross_report.epochs({1: {"a": {1: 0.2, 2: 0.4}}, 2: {"a": {1: 0.4}, "b": {9: 1.0}}})
    assert [(row["step"], row["metric"], row["n"]) for row in rows] == [
        (1, "a", 2),
        (2, "a", 1),
        (9, "b", 1),
    ]
    assert rows[0]["mean"] == pytest.approx(0.3) and math.isnan(float(str(rows[1]["sd"])))


def test_the_report_and_the_measuring_command_read_the_folder(
    run: Path, tmp_path: Path, no_drawing: None
) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("out-of-fold images", "Folds", "Course of the folds", "low 95 %"):
        assert words in page
    argv = [
        str(run),
        "--what",
        "fractions",
        "--output_dir",
        str(tmp_path),
        "--name",
        "x",
        "--quiet",
    ]
    assert guard(measuring.main, argv) == 0
    rows = _rows(tmp_path / "measure" / "x" / "specimens.csv")
    assert len({row["specimen"] for row in rows}) == 5


# --- the ensemble ---
def test_the_ensemble_is_the_mean_of_the_folds_probabilities(run: Path, folder: Path) -> None:
    whole = Segmenter.load(run / "ensemble.ckpt", device="cpu", precision="fp32", threads=1)
    assert len(whole.members) == 3 and Segmenter.load(run).source == str(run / "ensemble.ckpt")
    # Larger than a tile, so that neighbours are blended.
    image, _ = synthetic.micrograph("two_phase", 300, 420, 77)
    for picture in (image, next((folder / "test").iterdir())):
        how = {"tile_size": 128, "overlap": 32}
        each = [model.predict(picture, **how).probabilities for model in _models(run)]
        found = whole.predict(picture, **how)
        expected = np.mean([own.astype(np.float64) for own in each], axis=0)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
        np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-6)
        assert (found.classes == found.probabilities.argmax(axis=0)).all()
        assert np.abs(each[0] - each[1]).max() > 0.01


def test_the_ensemble_is_evaluated_as_any_model_and_knows_what_it_has_seen(
    run: Path, folder: Path, tmp_path: Path, no_drawing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model_path", str(run / "ensemble.ckpt"), "--dataset", str(folder)]
    argv += ["--output_dir", str(tmp_path), *STEADY]
    assert guard(eval_model.main, [*argv, "--name", "test", "--save_probabilities"]) == 0
    assert _json(tmp_path / "eval/test/metrics.json")["warnings"] == []
    assert "pixel classifier" in capsys.readouterr().out
    assert guard(eval_model.main, [*argv, "--name", "all", "--split", "train", "--quiet"]) == 0
    (warning,) = _json(tmp_path / "eval/all/metrics.json")["warnings"][-1:]
    assert "are training images of this model" in warning


def test_no_training_starts_from_an_ensemble(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--finetune_dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--quiet"]
    argv += ["--weights", str(run / "ensemble.ckpt"), *STEADY]
    assert guard(train_finetune.main, argv) == 2
    said = capsys.readouterr().err
    assert "is an ensemble of several models" in said and said.count("\n") == 1


@pytest.mark.parametrize("fault", ["members", "facts", "temperature", "state"])
def test_a_garbled_ensemble_is_damage(fault: str, run: Path, tmp_path: Path) -> None:
    payload = checkpoint.load(run / "ensemble.ckpt")
    if fault == "members":
        payload["model"]["members"] = True
    elif fault == "facts":
        del payload["progress"]["members"][1]
    elif fault == "temperature":
        payload["progress"]["members"][1]["temperature"] = -1.0
    else:
        payload["state"].pop(next(iter(payload["state"])))
    checkpoint.save(tmp_path / "x.ckpt", payload)
    with pytest.raises(UserError, match="damaged"):
        Segmenter.load(tmp_path / "x.ckpt")


# --- the same loop, kept and resumed ---
def _same(first: Path, second: Path) -> bool:
    one, other = (checkpoint.load(path)["state"] for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_fold_is_what_a_single_training_on_its_images_gives(
    run: Path, folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    plan = _json(run / "cross_validation.json")["folds"][1]
    splits = {name: [Path(image).name for image in plan[name]] for name in ("train", "val")}
    splits["test"] = [Path(image).name for image in plan["held_out"]]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    argv = _argv(folder, tmp_path, "--splits", tmp_path / "splits.json", "--quiet")
    assert guard(train_finetune.main, argv) == 0
    assert _same(run / "fold_2" / "best.ckpt", tmp_path / "finetune/cv/best.ckpt")


def test_folds_killed_between_two_and_within_one_go_on_to_the_same_bits(
    run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = _argv(folder, tmp_path, "--folds", 3)
    mine = tmp_path / "finetune" / "cv"
    monkeypatch.setattr(rivals, "fitted", lambda *rest: [])

    class Killed(BaseException):
        pass

    validate = loop.Run._validate

    def stops(self: loop.Run, loss: float, *rest: Any) -> None:
        validate(self, loss, *rest)
        # Behind its first validation and checkpoint, as a SIGKILL there.
        if self.folder.root.name == "fold_2" and self.step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_validate", stops)
        with pytest.raises(Killed):
            train_finetune.main(argv)
    assert _json(mine / "status.json")["state"] == "failed"
    assert not (mine / "ensemble.ckpt").exists() and not (mine / "cv_summary.csv").exists()
    before = (mine / "fold_1" / "best.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    # Another plan is no continuation, also where the fold at hand has not begun.
    assert guard(train_finetune.main, [*argv, "--resume", "--weight_decay", "0"]) == 2
    assert "--weight_decay was 0.01, is 0" in capsys.readouterr().err
    assert guard(train_finetune.main, [*argv, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "fold 1 of cv: done before, kept" in said and "resumed at step 2" in said
    assert (mine / "fold_1" / "best.ckpt").stat().st_mtime_ns == before
    assert _same(mine / "ensemble.ckpt", run / "ensemble.ckpt")
    for name in ("confusion.json", "cv_summary.csv"):
        assert (mine / name).read_bytes() == (run / name).read_bytes()
    # Once more: nothing is trained, the same files are written.
    assert guard(train_finetune.main, [*argv, "--resume", "--quiet"]) == 0
    assert len(_rows(mine / "per_image.csv")) == 10
    assert _same(mine / "ensemble.ckpt", run / "ensemble.ckpt")


def test_a_fold_that_fails_stops_the_table_and_says_how_to_go_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """F-U20: exit codes were ignored, and files of a failed fold trained the next one."""
    argv = _argv(folder, tmp_path, "--folds", 3, "--quiet")
    mine = tmp_path / "finetune" / "cv"
    learn = loop.Learner.learn
    calls = []

    def breaks(self: Any, step: int, *rest: Any) -> float:
        calls.append(step)
        if len(calls) == 6:
            raise UserError("the loss is not finite at step 2; lower --lr")
        return learn(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Learner, "learn", breaks)
        assert guard(train_finetune.main, argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "fold 2 of cv failed" in said
    assert "the loss is not finite at step 2" in said and "--name cv --resume" in said
    assert not (mine / "fold_3").exists()
    for name in ("cv_summary.csv", "cv_epochs.csv", "ensemble.ckpt", "confusion.json"):
        assert not (mine / name).exists()
    # Each fold holds its images in memory: nothing lies in a place that the next one reads.
    assert {path.name for path in mine.iterdir()} == {
        *("config.yaml", "command.txt", "environment.json", "preflight.txt", "classes.json"),
        *("folds.csv", "cross_validation.json", "status.json", "fold_1", "fold_2"),
    }


def test_a_run_is_never_overwritten_nor_resumed_as_another(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parents[1]
    assert guard(train_finetune.main, _argv(folder, out, "--folds", 3)) == 2
    assert "exists already" in capsys.readouterr().err
    assert guard(train_finetune.main, _argv(folder, out, "--resume")) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert guard(train_finetune.main, _argv(folder, out, "--folds", 2, "--resume")) == 2
    assert "--folds was 3, is 2" in capsys.readouterr().err
    # A torn plan cannot tell which image was where.
    torn = out / "torn"
    shutil.copytree(run, torn / "finetune" / "cv")
    plan = torn / "finetune" / "cv" / "cross_validation.json"
    plan.write_text(plan.read_text()[:200])
    assert guard(train_finetune.main, _argv(folder, torn, "--folds", 3, "--resume")) == 2
    assert "cross_validation.json is damaged" in capsys.readouterr().err


def test_few_images_are_folded_too_and_a_test_stays_closed(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With fewer than four images inside, the folds within choose the number of steps."""
    monkeypatch.setattr(rivals, "fitted", lambda *rest: [])
    names = ["specimenA_0.png", "specimenB_0.png", "specimenC_0.png"]
    (tmp_path / "s.json").write_text(json.dumps({"train": names, "test": ["specimenT_0.png"]}))
    argv = _argv(folder, tmp_path, "--splits", tmp_path / "s.json", "--folds", "all")
    argv[argv.index("--steps") + 1] = "2"
    broken = folder / "test_annot" / "specimenT_0.png"
    assert broken.is_file()
    assert guard(train_finetune.main, argv) == 0
    said = capsys.readouterr().out
    assert "folds   3 of 3 specimens (3 labelled images of train and val)" in said
    assert "1 test image stay closed" in said
    assert "none inside validate" in said
    run = tmp_path / "finetune" / "cv"
    assert len(_rows(run / "per_image.csv")) == 3
    for number in (1, 2, 3):
        assert (run / f"fold_{number}" / "folds.json").is_file()
        assert Segmenter.load(run / f"fold_{number}").temperature == 1


def test_an_interruption_names_the_run_and_not_the_fold(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learn = loop.Learner.learn

    def stopped(self: Any, step: int, *rest: Any) -> float:
        signal.raise_signal(signal.SIGTERM)
        return learn(self, step, *rest)

    monkeypatch.setattr(loop.Learner, "learn", stopped)
    with pytest.raises(SystemExit) as stop:
        train_finetune.main(_argv(folder, tmp_path, "--folds", 3))
    assert stop.value.code == 143
    assert "--name cv --resume" in capsys.readouterr().out
    status = _json(tmp_path / "finetune" / "cv" / "status.json")
    assert (status["state"], status["step"]) == ("stopped", 1)


@pytest.mark.slow
def test_two_processes_go_on_with_folds(run: Path, folder: Path, tmp_path: Path) -> None:
    """That two come to the same numbers as one is shown for a single training."""
    mine = tmp_path / "finetune" / "cv"
    shutil.copytree(run, mine)
    # One fold is done, one was broken off at its end, one has not begun.
    (mine / "fold_2" / "status.json").unlink()
    shutil.rmtree(mine / "fold_3")
    (mine / "ensemble.ckpt").unlink()
    argv = _argv(folder, tmp_path, "--folds", 3, "--quiet", "--resume")
    ranks(tmp_path / "logs", "train_finetune.py", *argv)
    assert len(_rows(mine / "per_image.csv")) == 10 and (mine / "ensemble.ckpt").is_file()
    assert _same(mine / "fold_2" / "best.ckpt", run / "fold_2" / "best.ckpt")
    assert [_json(mine / f"fold_{n}" / "status.json")["state"] for n in (1, 2, 3)] == ["done"] * 3
