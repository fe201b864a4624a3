"""The three commands end to end on synthetic micrographs, as a user types them."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from processes import alone, check_equal, pair, start

from matssl.core import checkpoint
from matssl.core.damage import file_hash
from matssl.core.errors import guard
from matssl.models.encoders import build_encoder

pytestmark = pytest.mark.usefixtures("no_drawing")

ROOT = Path(__file__).resolve().parent.parent
SSL = ["--view_size", "32", "--tile_size", "48", "--batch_size", "6", "--threads", "1"]
SSL += ["--hidden_dim", "32", "--global_output_dim", "16", "--precision", "fp32"]
TUNE = ["--crop_size", "32", "--batch_size", "2", "--threads", "1", "--precision", "fp32"]
TUNE += ["--val_every", "4"]
# A thirtieth of a ResNet-18: steps and checkpoints take no time beside what is tested.
SSL += ["--encoder", "tu-test_resnet"]
TUNE += ["--encoder", "tu-test_resnet"]


def _run(script: str, *argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def _here(script: str, *argv: object) -> int:
    """Run a script's main in this process, which saves the seconds of importing torch."""
    import importlib

    return guard(importlib.import_module(script).main, [str(a) for a in argv])


def _ssl(pool: Path, out: Path, name: str, *more: object) -> Path:
    argv = ["--model", "matssl", "--data_path", pool, "--output_dir", out, "--name", name, *SSL]
    assert _here("train_ssl", *argv, *more) == 0
    return out / "ssl" / name


def _tune(data: Path, out: Path, name: str, *more: object) -> Path:
    argv = ["--finetune_dataset", data, "--output_dir", out, "--name", name, *TUNE]
    assert _here("train_finetune", *argv, *more) == 0
    return out / "finetune" / name


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs lie that several tests look at."""
    folder = tmp_path_factory.mktemp("experiments")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a test's own runs lie; pytest removes them after the test."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def ssl_run(pool_folder: Path, shared: Path) -> Path:
    return _ssl(pool_folder, shared, "base", "--steps", 12, "--quiet")


@pytest.fixture(scope="module")
def tuned(synthetic_folder: Path, shared: Path, ssl_run: Path) -> Path:
    weights = ssl_run / "encoder.safetensors"
    return _tune(synthetic_folder, shared, "base", "--steps", 8, "--ssl_weights_path", weights)


@pytest.fixture(scope="module")
def evaluated(synthetic_folder: Path, shared: Path, tuned: Path) -> Path:
    argv = ["--model_path", tuned / "best.ckpt", "--dataset", synthetic_folder]
    argv += ["--output_dir", shared, "--name", "e", "--save_visualizations", "--save_probabilities"]
    assert _here("eval_model", *argv, "--threads", 1, "--precision", "fp32") == 0
    return shared / "eval" / "e"


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- what lies in a run folder ---
def test_a_pretraining_run_leaves_everything_it_promises(ssl_run: Path) -> None:
    for name in (
        "config.yaml command.txt environment.json data.csv log.csv steps.csv last.ckpt "
        "encoder.safetensors curves.png views.png features.png report.html metrics.jsonl "
        "status.json preflight.txt"
    ).split():
        assert (ssl_run / name).stat().st_size > 0, name
    assert len(_rows(ssl_run / "steps.csv")) == 12
    assert len(_rows(ssl_run / "data.csv")) == 12
    status = json.loads((ssl_run / "status.json").read_text())
    assert status["state"] == "done" and status["step"] == 12
    environment = json.loads((ssl_run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert not [p for p in ssl_run.rglob("*") if p.name.startswith(".")]


def test_a_fine_tuning_run_leaves_everything_it_promises(tuned: Path) -> None:
    for name in (
        "config.yaml command.txt environment.json data.csv log.csv steps.csv last.ckpt best.ckpt "
        "curves.png report.html metrics.jsonl status.json classes.json preflight.txt"
    ).split():
        assert (tuned / name).stat().st_size > 0, name
    splits = [row["split"] for row in _rows(tuned / "data.csv")]
    assert splits == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    # The test images are listed, but were never opened.
    assert [row["hash"] != "" for row in _rows(tuned / "data.csv")] == [True] * 6 + [False] * 2
    assert [row["step"] for row in _rows(tuned / "log.csv")] == ["4", "8"]


def test_the_chain_from_pool_to_model_is_in_the_checkpoint(tuned: Path, ssl_run: Path) -> None:
    payload = checkpoint.load(tuned / "best.ckpt", stage="finetune")
    stages = [step.get("stage") for step in payload["lineage"]]
    assert stages == ["ssl", None, "finetune"]
    assert payload["lineage"][1]["sha256"] == file_hash(ssl_run / "encoder.safetensors")


def test_ssl_weights_change_the_start(
    synthetic_folder: Path, out: Path, ssl_run: Path, tuned: Path
) -> None:
    other = _tune(synthetic_folder, out, "random", "--steps", 4, "--quiet")
    first = [_rows(run / "steps.csv")[0]["loss"] for run in (tuned, other)]
    assert first[0] != first[1]


# --- evaluation ---
def test_an_evaluation_leaves_scores_masks_pictures_and_a_report(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert metrics["images_with_truth"] == 2 and metrics["split"] == "test"
    assert set(metrics["pooled"]["classes"]) == {"speckled", "lamellar", "blocky"}
    assert len(metrics["baselines"]) == 4
    assert sum(map(sum, metrics["confusion"])) == 2 * 96 * 96
    for name in ("specimenG_1", "specimenH_1"):
        index = np.array(Image.open(evaluated / f"masks/index/{name}.png"))
        label = tifffile.imread(evaluated / f"masks/label/{name}.tif")
        assert index.shape == (96, 96) and index.max() <= 2
        assert np.array_equal(index, label)
        probabilities = tifffile.imread(evaluated / f"probabilities/{name}.tif")
        # float16 cannot tell near ties apart.
        sure = np.diff(np.sort(probabilities.astype(float), axis=0)[-2:], axis=0)[0] > 1e-2
        assert sure.mean() > 0.6
        assert np.array_equal(probabilities.argmax(0)[sure], index[sure])
        assert cv2.imread(str(evaluated / f"masks/colour/{name}.png")).shape == (96, 96, 3)
        assert (evaluated / f"visualizations/{name}.png").stat().st_size > 10_000
    html = (evaluated / "report.html").read_text()
    assert "data:image/png;base64" in html and "mean IoU" in html and "http" not in html


def test_the_scores_follow_from_the_masks_on_disk(evaluated: Path, synthetic_folder: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    hits, union = np.zeros(3), np.zeros(3)
    for path in (evaluated / "masks/index").iterdir():
        guess = np.array(Image.open(path))
        truth = cv2.imread(str(synthetic_folder / "test_annot" / path.name), cv2.IMREAD_UNCHANGED)
        for c in range(3):
            hits[c] += ((guess == c) & (truth == c)).sum()
            union[c] += ((guess == c) | (truth == c)).sum()
    expected = hits / union
    got = [s["IoU"] for s in metrics["pooled"]["classes"].values()]
    assert got == pytest.approx(expected.tolist(), abs=1e-9)
    assert metrics["pooled"]["means"]["miou"] == pytest.approx(expected.mean())


def test_the_published_result_keys_are_there(evaluated: Path) -> None:
    result = json.loads((evaluated / "evaluation_results.json").read_text())
    assert set(result["avg_class_ious"]) == {"0", "1", "2", "mean_IOU_no_minority", "mean_IOU"}
    assert set(result["batch_results"][0]["iou"]) == {"IOU_0", "IOU_1", "IOU_2", "mean_IOU"}


def test_a_folder_without_masks_is_predicted(pool_folder: Path, out: Path, tuned: Path) -> None:
    argv = ["--model_path", tuned / "best.ckpt", "--dataset", pool_folder, "--threads", 1]
    argv += ["--output_dir", out, "--name", "p", "--tta", "--quiet"]
    assert _here("eval_model", *argv) == 0
    metrics = json.loads((out / "eval" / "p" / "metrics.json").read_text())
    assert metrics["images"] == 12 and "pooled" not in metrics
    bars = [np.array(Image.open(p)) for p in sorted((out / "eval" / "p" / "masks/index").iterdir())]
    # Masks are as large as their image; rows of an information bar hold 255.
    tall = [mask for mask in bars if mask.shape[0] > 96]
    assert tall and all((mask[96:] == 255).all() and mask[:96].max() < 3 for mask in tall)


def test_every_image_and_one_image_can_be_evaluated(
    synthetic_folder: Path, out: Path, tuned: Path
) -> None:
    """C12: --split all and the path of one image were refused. C11: --output_dir is the parent."""
    argv = ["--model_path", tuned / "best.ckpt", "--threads", 1, "--output_dir", out, "--quiet"]
    every = ["--dataset", synthetic_folder, "--split", "all", "--name", "all", "--no-baselines"]
    assert _here("eval_model", *argv, *every) == 0
    metrics = json.loads((out / "eval" / "all" / "metrics.json").read_text())
    assert metrics["images"] == 8 and metrics["split"] == "all"
    image = next((synthetic_folder / "test").iterdir())
    assert _here("eval_model", *argv, "--dataset", image) == 0
    one = out / "eval" / f"base-on-{image.stem}"
    assert [path.stem for path in (one / "masks" / "index").iterdir()] == [image.stem]


def test_trained_images_are_no_test(synthetic_folder: Path, out: Path, tuned: Path) -> None:
    argv = ["--model_path", tuned / "best.ckpt", "--dataset", synthetic_folder, "--threads", 1]
    argv += ["--split", "train", "--output_dir", out, "--name", "leak", "--quiet"]
    assert _here("eval_model", *argv) == 0
    metrics = json.loads((out / "eval" / "leak" / "metrics.json").read_text())
    assert "4 of 4 images are training images" in metrics["warnings"][0]


# --- resume and threads ---
def _bits(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoint.load(path)["state"]
    return state


def _equal(first: Path, second: Path) -> bool:
    a, b = _bits(first), _bits(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _kill_at(script: str, argv: list[object], run: Path, step: int) -> None:
    """Start a command and kill it, without warning, once its log shows the step."""
    command = start(run.parent.parent / "printed.txt", script, *argv)
    deadline = time.monotonic() + 600
    try:
        while time.monotonic() < deadline and command.running():
            log = run / "steps.csv"
            if log.exists() and len(log.read_text().splitlines()) > step:
                break
            time.sleep(0.01)
    finally:
        command.process.kill()
    assert command.wait() == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.slow
def test_a_killed_pretraining_run_resumes_to_the_same_bits(pool_folder: Path, out: Path) -> None:
    plan = ["--steps", 20, "--checkpoint_every", 3, "--quiet"]
    whole = _ssl(pool_folder, out, "whole", *plan)
    argv = ["--model", "matssl", "--data_path", pool_folder, "--output_dir", out, *SSL, *plan]
    argv += ["--name", "killed"]
    step = random.Random(os.getpid()).randint(4, 8)
    _kill_at("train_ssl.py", argv, out / "ssl" / "killed", step)
    assert _here("train_ssl", *argv, "--resume") == 0
    assert _equal(whole / "last.ckpt", out / "ssl" / "killed" / "last.ckpt"), f"killed at {step}"
    rows = _rows(out / "ssl" / "killed" / "steps.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [r["loss"] for r in rows] == [r["loss"] for r in _rows(whole / "steps.csv")]


@pytest.mark.slow
def test_a_killed_fine_tuning_run_resumes_to_the_same_bits_also_where_its_images_were_moved(
    synthetic_folder: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["--steps", 20, "--checkpoint_every", 3, "--val_every", 5, "--quiet"]
    whole = _tune(synthetic_folder, out, "whole", *plan)
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", out, *TUNE, *plan]
    argv += ["--name", "killed"]
    _kill_at("train_finetune.py", argv, out / "finetune" / "killed", 8)
    moved = Path(shutil.copytree(synthetic_folder, tmp_path / synthetic_folder.name))
    argv[1] = moved
    mask = next((moved / "train_annot").iterdir())
    content = mask.read_bytes()
    assert cv2.imwrite(str(mask), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)[::-1])
    assert _here("train_finetune", *argv, "--resume") == 2
    assert "the labelled images changed since this run began" in capsys.readouterr().err
    mask.write_bytes(content)
    assert _here("train_finetune", *argv, "--resume") == 0
    for name in ("last.ckpt", "best.ckpt"):
        assert _equal(whole / name, out / "finetune" / "killed" / name)
    lines = (out / "finetune" / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))


def test_fine_tuning_stopped_before_its_first_step_resumes_without_the_file_it_started_from(
    ssl_run: Path,
    synthetic_folder: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from matssl.stages.finetune import loop

    weights = out / "moved.safetensors"
    shutil.copy(ssl_run / "encoder.safetensors", weights)
    plan = ["--steps", 4, "--ssl_weights_path", weights]
    whole = _tune(synthetic_folder, out, "whole-ssl", *plan)

    def full(self: loop.Run) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "train", full)
        argv = ["--finetune_dataset", synthetic_folder, "--output_dir", out, *TUNE, *plan]
        argv += ["--name", "early"]
        assert _here("train_finetune", *argv) == 2
    message = capsys.readouterr().err
    assert "the disk is full" in message and message.count("\n") == 1
    weights.unlink()
    assert _here("train_finetune", *argv, "--resume") == 0
    assert "matssl encoder" in capsys.readouterr().out
    early = out / "finetune" / "early"
    assert _equal(whole / "last.ckpt", early / "last.ckpt")
    lineages = [checkpoint.load(run / "best.ckpt")["lineage"] for run in (whole, early)]
    assert lineages[0] == lineages[1] and len(lineages[0]) == 3


def test_any_number_of_workers_gives_the_same_weights(
    pool_folder: Path, synthetic_folder: Path, out: Path
) -> None:
    runs = [
        _ssl(pool_folder, out, f"w{n}", "--steps", 4, "--num_workers", n, "--quiet")
        for n in (0, 1, 3)
    ]
    assert _equal(runs[0] / "last.ckpt", runs[1] / "last.ckpt")
    assert _equal(runs[0] / "last.ckpt", runs[2] / "last.ckpt")
    tuned = [
        _tune(synthetic_folder, out, f"w{n}", "--steps", 3, "--num_workers", n, "--quiet")
        for n in (0, 3)
    ]
    assert _equal(tuned[0] / "last.ckpt", tuned[1] / "last.ckpt")


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(pool_folder: Path, out: Path) -> None:
    argv = ["--model", "matssl", "--data_path", pool_folder, "--output_dir", out, *SSL]
    argv += ["--name", "stopped", "--steps", 400]
    command = start(out / "printed.txt", "train_ssl.py", *argv)
    log = out / "ssl" / "stopped" / "steps.csv"
    while command.running() and not (log.exists() and len(log.read_text()) > 300):
        time.sleep(0.02)
    command.send(signal.SIGINT)
    assert command.wait() == 130
    assert "--name stopped --resume" in command.printed.read_text(encoding="utf-8")
    status = json.loads((log.parent / "status.json").read_text())
    assert status["state"] == "stopped"
    assert checkpoint.load(log.parent / "last.ckpt")["step"] == status["step"]


def test_another_plan_cannot_be_resumed(
    pool_folder: Path, ssl_run: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", "matssl", "--data_path", pool_folder, "--output_dir", shared, *SSL]
    code = _here("train_ssl", *argv, "--name", ssl_run.name, "--resume", "--steps", 20)
    assert code == 2
    message = capsys.readouterr().err
    assert "--steps was 12, is 20" in message and "--weights" in message


# --- a frozen encoder, folds, and other flags ---
def test_a_frozen_encoder_keeps_weights_and_statistics(
    synthetic_folder: Path, out: Path, ssl_run: Path, tuned: Path
) -> None:
    weights = ssl_run / "encoder.safetensors"
    run = _tune(
        synthetic_folder,
        out,
        "frozen",
        "--steps",
        4,
        "--freeze_encoder_steps",
        4,
        "--ssl_weights_path",
        weights,
        "--quiet",
    )
    from safetensors.torch import load_file

    start, state = load_file(weights), _bits(run / "last.ckpt")
    assert all(torch.equal(state[k], v) for k, v in start.items())
    moved = _bits(tuned / "last.ckpt")
    assert not all(torch.equal(moved[k], v) for k, v in start.items())


def test_too_few_images_choose_the_steps_by_folds(
    synthetic_folder: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    for part in ("train", "train_annot"):
        shutil.copytree(synthetic_folder / part, few / part)
    run = _tune(few, out, "folds", "--steps", 8, "--max_train_images", 2)
    said = capsys.readouterr().out
    assert "2 folds inside choose the number of steps" in said
    # From the first step on it is said where they are, and how long they take.
    lines = [line for line in said.splitlines() if re.match("fold |estimate", line)]
    assert re.fullmatch(r"estimate .* for all folds, without scores", lines.pop(1))
    assert lines[0] == "fold 1 of 2: 8 steps, a score every 4 steps"
    assert [line.partition(":")[0] for line in lines[1:4]] == [
        "fold 1, step 4/8",
        "fold 1, step 8/8",
        "fold 1",
    ]
    chosen = json.loads((run / "folds.json").read_text())
    assert chosen["steps"] in (4, 8) and len(chosen["miou"]) == 2
    assert checkpoint.load(run / "best.ckpt")["step"] == chosen["steps"]
    single = _tune(few, out, "single", "--steps", 4, "--max_train_images", 1, "--quiet")
    assert len(json.loads((single / "folds.json").read_text())["miou"]) == 1


def test_patience_stops_early(synthetic_folder: Path, out: Path) -> None:
    run = _tune(
        synthetic_folder,
        out,
        "patient",
        "--steps",
        20,
        "--val_every",
        1,
        "--patience",
        2,
        "--lr",
        "1e-9",
        "--ema",
        0,
        "--quiet",
    )
    assert len(_rows(run / "steps.csv")) < 20


@pytest.mark.parametrize("loss", ["dice", "ce", "focal", "bce"])
def test_each_loss_trains(synthetic_folder: Path, out: Path, loss: str) -> None:
    run = _tune(synthetic_folder, out, loss, "--steps", 2, "--loss", loss, "--quiet")
    first, second = (float(row["loss"]) for row in _rows(run / "steps.csv"))
    assert second > 0
    if loss == "ce":
        # Only the ratios of the weights count.
        losses = []
        for weights in ("2,2,2", "1,1,50"):
            more = ["--steps", 1, "--loss", loss, "--class_weights", weights, "--quiet"]
            weighted = _tune(synthetic_folder, out, weights.replace(",", "-"), *more)
            losses.append(float(_rows(weighted / "steps.csv")[0]["loss"]))
        assert losses[0] == pytest.approx(first) and abs(losses[1] - first) > 0.01


def test_published_flags_act(synthetic_folder: Path, out: Path) -> None:
    run = _tune(
        synthetic_folder,
        out,
        "published",
        "--custom_epochs",
        2,
        "--custom_lr",
        "1e-4",
        "--input_size",
        64,
        "--gpu_id",
        0,
        "--note",
        "x",
        "--decoder",
        "unetplusplus",
        "--quiet",
        "--warmup",
        0,
    )
    # The note is part of the run's name.
    run = run.with_name("published-x")
    rows = _rows(run / "steps.csv")
    assert len(rows) == 4  # two epochs of four images in batches of two
    assert float(rows[0]["lr"]) == pytest.approx(1e-4)
    assert checkpoint.load(run / "best.ckpt")["preprocess"]["resize"] == 64


# --- bad input: one line, exit code 2, nothing written ---
def _refused(
    script: str, argv: list[object], out: Path, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(out.rglob("*")) if out.exists() else []
    capsys.readouterr()
    code = _here(script, *argv)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sentence in captured.err
    assert (sorted(out.rglob("*")) if out.exists() else []) == before


def test_bad_pools_are_refused(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir(), broken.mkdir()
    (broken / "a.png").write_bytes(b"II")
    (tmp_path / "locked").write_text("a file, no folder")
    torch.save(build_encoder("resnet18").state_dict(), tmp_path / "resnet18.pth")
    cases: list[tuple[list[object], str]] = [
        (["--data_path", tmp_path / "absent"], "there is no folder"),
        (["--data_path", empty], "there is no image"),
        (["--data_path", broken], "none of the 1 images"),
        (["--data_path", pool_folder, "--batch_size", "9999"], "larger than the set"),
        (["--data_path", pool_folder, "--device", "cuda"], "no GPU"),
        (["--data_path", pool_folder, "--device", "tpu"], "--device must be"),
        (["--data_path", pool_folder, "--weights", tmp_path / "w.pth"], "no weights file"),
        (["--data_path", pool_folder, "--encoder", "resnet19"], "no encoder"),
        (["--data_path", pool_folder, "--steps", "0"], "--steps must be at least 1, not 0"),
        (["--data_path", pool_folder, "--resume", "--name", "none"], "nothing to resume"),
        (["--data_path", pool_folder, "--output_dir", tmp_path / "locked"], "not a writable"),
        (["--data_path", pool_folder, "--name", "a/b"], "cannot name a run"),
        (
            [
                "--data_path",
                pool_folder,
                "--encoder",
                "resnet34",
                "--weights",
                tmp_path / "resnet18.pth",
            ],
            "holds a resnet18 encoder",
        ),
        (["--data_path", pool_folder, "--scale_min", "2"], "--scale_min"),
    ]
    if torch.cuda.is_available():
        cases = [case for case in cases if "cuda" not in case[0]]
    for flags, sentence in cases:
        base: list[object] = ["--model", "matssl", "--output_dir", tmp_path / "out", *SSL]
        _refused("train_ssl", [*base, "--steps", "2", *flags], tmp_path / "out", sentence, capsys)


def test_bad_labels_are_refused(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(synthetic_folder, tmp_path / name))

    first = "specimenA_1.png"
    size, lonely, widow, one, ignored, colour = map(
        copy, ("size", "lonely", "widow", "one", "ignored", "colour")
    )
    cv2.imwrite(str(size / "train_annot" / first), np.zeros((50, 60), np.uint8))
    (lonely / "train_annot" / first).unlink()
    (widow / "train" / first).unlink()
    for folder, value in ((one, 1), (ignored, 9)):
        for split in ("train", "val", "test"):
            for path in (folder / f"{split}_annot").iterdir():
                cv2.imwrite(str(path), np.full((96, 96), value, np.uint8))
    (ignored / "classes.yaml").write_text("classes:\n  a: 0\n  b: 1\nignore: 9\n")
    mask = cv2.imread(str(colour / "train_annot" / first), cv2.IMREAD_UNCHANGED)
    mask[:50] = 77
    cv2.imwrite(str(colour / "train_annot" / first), mask)
    cases: list[tuple[list[object], str]] = [
        (["--finetune_dataset", size], "1 mask does not fit the picture"),
        (["--finetune_dataset", lonely], "without a mask"),
        (["--finetune_dataset", widow], "without an image"),
        (["--finetune_dataset", one], "one class only"),
        (["--finetune_dataset", ignored], "to be ignored"),
        (["--finetune_dataset", colour], "does not list: 77"),
        (["--finetune_dataset", synthetic_folder, "--classes", "a,b"], "names 2 classes"),
        (["--finetune_dataset", synthetic_folder, "--decoder", "vnet"], "must be one of"),
        (["--finetune_dataset", synthetic_folder, "--crop_size", "50"], "multiple of 32"),
        (["--finetune_dataset", synthetic_folder, "--splits", "no.json"], "no split file"),
        (["--finetune_dataset", synthetic_folder / "train"], "no masks"),
    ]
    for flags, sentence in cases:
        base: list[object] = ["--output_dir", tmp_path / "out", *TUNE, "--steps", "2"]
        _refused("train_finetune", [*base, *flags], tmp_path / "out", sentence, capsys)


def test_models_and_data_that_differ_are_refused(
    synthetic_folder: Path,
    ssl_run: Path,
    tuned: Path,
    evaluated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = Path(shutil.copytree(synthetic_folder, tmp_path / "other"))
    (other / "classes.yaml").unlink()
    for path in (other / "test_annot").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) + 3)
    model = ["--model_path", tuned / "best.ckpt"]
    good: list[object] = ["--dataset", synthetic_folder]
    newer = tmp_path / "newer.ckpt"
    torch.save({"format": "matssl/2"}, newer)
    cases: list[tuple[list[object], str]] = [
        ([*model, "--dataset", other], "The model has 3 classes (speckled = 0"),
        ([*model, *good, "--n_classes", "2"], "--n_classes 2, but the model has 3"),
        ([*model, *good, "--classes", "a,b,c"], "the model knows speckled, lamellar, blocky"),
        ([*model, *good, "--split", "trial"], "has no split 'trial'"),
        ([*model, "--dataset", tmp_path / "absent"], "there is no folder"),
        (["--model_path", tmp_path / "absent.ckpt", *good], "there is no weights file"),
        (["--model_path", ssl_run / "last.ckpt", *good], "comes from the stage 'ssl'"),
        (["--model_path", newer, *good], "update matssl"),
        ([*model, *good, "--output_dir", evaluated.parent.parent, "--name", "e"], "exists already"),
    ]
    for flags, sentence in cases:
        argv = ["--output_dir", tmp_path / "out", "--threads", "1", *flags]
        _refused("eval_model", argv, tmp_path / "out", sentence, capsys)


def test_paths_of_each_command_that_lead_nowhere_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: several missing folders and files cost one run, not one each."""
    gone = [tmp_path / name for name in ("a", "b", "c", "d.yaml")]
    labels = ["--splits", gone[2], "--classes", gone[3]]
    tune = ["--finetune_dataset", gone[0], "--ssl_weights_path", gone[1], *labels]
    for command, argv in (
        ("train_finetune", tune),
        ("eval_model", ["--model_path", gone[0], "--dataset", gone[1], *labels]),
        ("matssl.tools.doctor", [gone[0], "--pool", gone[1], *labels]),
        ("matssl.tools.probe", [gone[0], "--probe_path", gone[1], *labels]),
        ("matssl.tools.phase_map", ["--model_path", gone[0], "--data", gone[1]]),
    ):
        assert _here(command, *argv) == 2
        message = capsys.readouterr().err
        named = gone if labels[0] in argv else gone[:2]
        assert message.count("\n") == 1 and all(f"{path} (" in message for path in named), message


def test_a_full_disk_during_a_checkpoint_is_said(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import errno

    real = torch.save
    calls = []

    def fills_up(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", fills_up)
    argv = ["--model", "simclr", "--data_path", pool_folder, "--output_dir", tmp_path, *SSL]
    code = _here("train_ssl", *argv, "--steps", 6, "--checkpoint_every", 2, "--name", "full")
    assert code == 2
    assert "the disk is full" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "ssl" / "full" / "last.ckpt")["step"] == 2
    status = json.loads((tmp_path / "ssl" / "full" / "status.json").read_text())
    assert status["state"] == "failed"


def test_a_loss_that_is_not_finite_stops_and_names_the_step(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", "simclr", "--data_path", pool_folder, "--output_dir", tmp_path, *SSL]
    code = _here(
        "train_ssl",
        *argv,
        "--steps",
        40,
        # Weights grow a millionfold in every step.
        "--lr",
        1000,
        "--weight_decay",
        1000,
        "--clip",
        0,
        "--optimizer",
        "sgd",
        "--warmup",
        0,
    )
    assert code == 2
    assert "not finite at step" in capsys.readouterr().err


def test_unicode_blanks_and_marks_in_paths_work(pool_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pool_folder, tmp_path / "Stähle #3 (β) d.é"))
    first = next(folder.iterdir())
    first.rename(folder / "Gefüge 50 % #1.v2.PNG")
    run = _ssl(folder, tmp_path / "aus gabe", "läuft", "--steps", 2, "--quiet")
    assert (run / "encoder.safetensors").exists()


def test_an_error_on_the_command_line_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _run("train_ssl.py", "--data_path", tmp_path / "absent", "--model", "matssl")
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no folder")
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert _here("train_ssl", "--data_path", tmp_path / "absent", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


# --- torchrun ---
@pytest.mark.slow
def test_two_processes_fine_tune_as_one(synthetic_folder: Path, out: Path) -> None:
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", out, *TUNE]
    # Dice over half a batch is another number.
    # Small crops leave BatchNorm little to take a mean of: rounding grows.
    argv += ["--steps", 3, "--quiet", "--loss", "ce", "--crop_size", 64]
    alone("train_finetune", *argv, "--name", "alone")
    pair(out / "logs", "train_finetune", *argv, "--name", "pair")
    runs = [out / "finetune" / name for name in ("alone", "pair")]
    check_equal(*runs)
    first, second = (_rows(run / "log.csv")[-1] for run in runs)
    assert float(second["val_miou"]) == pytest.approx(float(first["val_miou"]), abs=1e-6)
