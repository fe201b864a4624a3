"""The pretraining stage: resuming, stopping, and what it does when something goes wrong."""

from __future__ import annotations

import csv
import dataclasses
import errno
import importlib
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from matssl import monitor, weights
from matssl.core import checkpoint, flags, optim
from matssl.core.damage import file_hash
from matssl.core.errors import UserError, guard
from matssl.core.run_folder import RunFolder
from matssl.methods import distinct, settings_class
from matssl.methods.pscl.moco.settings import PSCLMoCoSettings
from matssl.methods.pscl.settings import PSCLSimCLRSettings
from matssl.methods.settings import GuidedSettings, MethodSettings
from matssl.models.encoders import build_encoder
from matssl.models.segmentation import build_model
from matssl.pictures import training as pictures
from matssl.stages import console, resume
from matssl.stages.pretrain import guides, plan, watch
from matssl.stages.pretrain import loop as pretrain
from matssl.stages.pretrain.loop import Run
from matssl.stages.pretrain.settings import PretrainSettings

DISTINCT = distinct()

TINY = ["--view_size", "32", "--tile_size", "48", "--batch_size", "6", "--threads", "1"]
TINY += ["--encoder", "tu-test_resnet", "--hidden_dim", "32", "--global_output_dim", "16"]
TINY += ["--precision", "fp32"]
CURVES, VIEWS = pictures.pretraining_curves, pictures.views_sheet
FEATURES = pictures.features_sheet


class Killed(BaseException):
    """Stands for a process that ends in the middle of a step."""


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; the module's shared run and the tests below draw."""
    for name in ("views_sheet", "features_sheet", "pretraining_curves"):
        monkeypatch.setattr(pictures, name, lambda *args: args[-1].write_bytes(b"picture"))


def _main(*argv: object) -> int:
    return guard(importlib.import_module("train_ssl").main, [str(a) for a in argv])


def _argv(pool: Path, out: Path, name: str, *more: object) -> list[object]:
    return ["--data_path", pool, "--output_dir", out, "--name", name, *TINY, *more]


def _at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Run], None]) -> None:
    """Let ``act`` happen when a run begins the step after ``step``."""
    real = Run._one_step

    def patched(self: Run, batch: Any) -> dict[str, float]:
        if self.step == step:
            act(self)
        return real(self, batch)

    monkeypatch.setattr(Run, "_one_step", patched)


def _received(number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def _kill(run: Run) -> None:
    raise Killed


def _break_and_resume(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    """Let a run end in the middle of its fourth step, then go on from its checkpoint."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _at_step(patch, 3, _kill)
        _main(*argv)
    assert _main(*argv, "--resume") == 0


def _bits(run: Path) -> bytes:
    """Every tensor of the encoder; the file's own bytes also hold no date or path."""
    return (run / "encoder.safetensors").read_bytes()


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _status(run: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((run / "status.json").read_text())
    return status


@pytest.fixture(scope="module")
def whole(pool_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of 8 steps."""
    out = tmp_path_factory.mktemp("whole")
    assert _main(*_argv(pool_folder, out, "x", "--steps", 8, "--checkpoint_every", 3)) == 0
    return out / "ssl" / "x"


# --- resuming -----------------------------------------------------------------------------------
@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_broke_off_resumes_to_the_same_bits_and_logs(
    step: int, pool_folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = _argv(pool_folder, tmp_path, "x", "--steps", 8, "--checkpoint_every", 3, "--quiet")
    run = tmp_path / "ssl" / "x"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _at_step(patch, step, _kill)
        _main(*argv)
    # Step 1 is before the first interval: the checkpoint of the start is there.
    assert checkpoint.load(run / "last.ckpt")["step"] == step // 3 * 3
    (run / ".last.ckpt.half.ckpt").write_bytes(b"half of a file that a killed process left")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert _main(*argv, "--resume") == 0
    assert _bits(run) == _bits(whole)
    for name in ("steps.csv", "log.csv"):
        drop = ("views_per_s", "wait_share")
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in drop} for row in _rows(r / name)]
            for r in (run, whole)
        )
        assert ours == theirs, name
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert not list(run.glob(".*"))


def test_an_encoder_that_drops_paths_at_random_resumes_to_the_same_bits(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--steps", 4, "--checkpoint_every", 2, "--encoder", "efficientnet-b0", "--quiet"]
    assert _main(*_argv(pool_folder, tmp_path, "whole", *more)) == 0
    _break_and_resume(monkeypatch, *_argv(pool_folder, tmp_path, "broken", *more))
    assert _bits(tmp_path / "ssl" / "broken") == _bits(tmp_path / "ssl" / "whole")


# Settings that give a method more state than its defaults do.
METHOD_FLAGS: dict[str, list[object]] = {
    "mocov2": ["--bn_splits", 2, "--symmetric", "--queue_size", 12],
    "densecl": ["--bn_splits", 2, "--dense_stage", 3, "--dense_warmup_steps", 2],
    "byol": ["--ema_schedule", "cosine", "--second_blur_p", 0, "--second_solarise_p", 1],
    "slotcon": ["--prototypes", 6, "--dense_stage", 2],
    "pscl-simclr": ["--global_local_ratio", 1, "--decoder", "unetplusplus"],
    "pscl-moco": ["--queue_size", 12, "--top_k", 3],
}


@pytest.mark.parametrize("model", DISTINCT)
def test_every_method_resumes_to_the_same_bits(
    model: str,
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = ["--model", model, "--steps", 4, "--checkpoint_every", 2, "--quiet"]
    more += METHOD_FLAGS.get(model, [])
    if issubclass(settings_class(model), GuidedSettings):
        more += ["--labeled_path", synthetic_folder]
    assert _main(*_argv(pool_folder, tmp_path, "whole", *more)) == 0
    _break_and_resume(monkeypatch, *_argv(pool_folder, tmp_path, "broken", *more))
    states = [
        checkpoint.load(tmp_path / "ssl" / name / "last.ckpt")["state"]
        for name in ("whole", "broken")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    # Whether labels took part goes with the weights.
    files = [tmp_path / "ssl" / "whole" / name for name in ("encoder.safetensors", "last.ckpt")]
    made = weights.read(files[0]).lineage.last
    assert made["method"] == model
    # Fine-tuning takes the same parts from both files.
    assert weights.architecture(files[0]) == weights.architecture(files[1])
    encoder, decoder = weights.architecture(files[0])
    segmenters = [build_model(encoder or "", decoder or "unet", 2, 1) for _ in files]
    parts = {
        weights.load(segmenter, file, in_channels=1).parts
        for segmenter, file in zip(segmenters, files, strict=True)
    }
    assert parts == {("encoder", "decoder") if decoder else ("encoder",)}
    for part in parts.pop():
        both = [segmenter.get_submodule(part).state_dict() for segmenter in segmenters]
        assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
    guides = [r for r in _rows(tmp_path / "ssl" / "whole" / "data.csv") if r["split"] == "guide"]
    assert made.get("labelled_images", 0) == len(guides)
    assert len(guides) == (4 if issubclass(settings_class(model), GuidedSettings) else 0)
    assert [d[:16] for d in made.get("labelled_digests", [])] == sorted(r["hash"] for r in guides)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pretraining_is_guided_by_the_images_that_fine_tuning_learns_from(
    seed: int, pool_folder: Path, synthetic_folder: Path, tmp_path: Path
) -> None:
    more = ["--model", "pscl", "--labeled_path", synthetic_folder, "--labeled_count", 1]
    more += ["--steps", 1, "--seed", seed, "--quiet"]
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 0
    argv = ["--finetune_dataset", synthetic_folder, "--max_train_images", 1, "--seed", seed]
    argv += ["--output_dir", tmp_path, "--name", "x", "--steps", 1, "--crop_size", 64, "--quiet"]
    argv += ["--encoder", "tu-test_resnet"]
    tune = importlib.import_module("train_finetune").main
    assert guard(tune, [str(a) for a in [*argv, "--threads", 1]]) == 0
    images = [
        [row["hash"] for row in _rows(tmp_path / stage / "x" / "data.csv") if row["split"] == part]
        for stage, part in (("ssl", "guide"), ("finetune", "train"))
    ]
    assert len(images[0]) == 1 and images[0] == images[1]


def test_production_batches_come_from_names_or_a_table(tmp_path: Path) -> None:
    names = [Path(name) for name in ("heat12_a.png", "heat12_b.png", "heat7_a.png", "other.png")]
    table = tmp_path / "batches.csv"
    table.write_text("image,batch\nheat12_a.png,twelve\nheat12_b,twelve\nheat7_a.png, seven \n")
    settings = PretrainSettings(model="pscl-moco", quiet=True)
    rt = settings.runtime()

    def lots(own: MethodSettings, names: list[Path], what: str = "images of the pool") -> Any:
        return guides.lots(settings, own, rt, names, what)

    found = []
    by_table = PSCLMoCoSettings(batch_csv=str(table))
    for own in (PSCLMoCoSettings(batch_regex=r"heat(\d+)"), by_table):
        numbers = lots(own, names)
        assert numbers[0] == numbers[1] != numbers[2] and min(numbers[:3]) >= 0
        assert numbers[3] == -1
        # The labelled images are asked for in a call of their own.
        assert lots(own, names[2:3], "labelled images")[0] == numbers[2]
        found.append(numbers)
        assert lots(own, names[3:], "labelled images").tolist() == [-1]
    # A method that has no use for them is not given any.
    assert lots(PSCLSimCLRSettings(), names) is None
    assert found[0][0] != found[1][0]
    # Spreadsheets of many countries write semicolons.
    table.write_text("image;batch\nheat12_a.png;twelve, first\n")
    assert (lots(by_table, names) >= 0).tolist() == [True, False, False, False]
    table.write_text("image\nheat12_a.png\n")
    with pytest.raises(UserError, match="has no second column"):
        lots(by_table, names)
    with pytest.raises(UserError, match="cannot read --batch_csv"):
        lots(PSCLMoCoSettings(batch_csv=str(tmp_path / "absent.csv")), names)


@pytest.mark.parametrize("model", ["simclr", "spark"])
def test_the_features_that_are_judged_are_those_of_unmasked_views(
    model: str, pool_folder: Path, tmp_path: Path
) -> None:
    more = ["--model", model, "--steps", 2, "--quiet"]
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 0
    row = _rows(tmp_path / "ssl" / "x" / "log.csv")[-1]
    tiles = sum(1 for _ in _rows(tmp_path / "ssl" / "x" / "data.csv")) * 4
    assert int(row["feature_dimensions"]) == 2 * min(tiles, watch.WATCHED_SAMPLES)


def test_a_labelled_image_may_be_of_no_production_batch_but_not_the_whole_pool(
    pool_folder: Path, synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", "pscl-moco", "--labeled_path", synthetic_folder]
    more += ["--steps", 1]
    names = sorted(path.name for path in pool_folder.iterdir())
    table = tmp_path / "batches.csv"
    rows = "".join(f"{name},{place % 2}\n" for place, name in enumerate(names))
    table.write_text(f"image,batch\n{rows}")
    assert _main(*_argv(pool_folder, tmp_path, "x", *more, "--batch_csv", table)) == 0
    said = capsys.readouterr().out
    assert "batches 2 production batches of images of the pool, 0 images of none" in said
    assert "note    no labelled image is of a production batch of the pool" in said
    argv = _argv(pool_folder, tmp_path, "y", *more, "--batch_regex", "absent(.)")
    assert _main(*argv) == 2
    told = "--batch_regex names the production batch of none of the 12 images of the pool (first: "
    assert told in capsys.readouterr().err


def test_an_encoder_that_stands_still_is_seen_after_a_resume_too(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MIN_STEPS_BETWEEN_REPORTS", 1)
    build = pretrain.build_encoder

    def frozen(*args: Any) -> Any:
        return build(*args).requires_grad_(False)

    monkeypatch.setattr(pretrain, "build_encoder", frozen)
    # Enough steps that weights which stay mean something.
    more = ["--steps", 16, "--checkpoint_every", 2, "--quiet"]
    assert _main(*_argv(pool_folder, tmp_path, "whole", *more)) == 0
    _break_and_resume(monkeypatch, *_argv(pool_folder, tmp_path, "broken", *more))
    logs = [_rows(tmp_path / "ssl" / name / "log.csv") for name in ("whole", "broken")]
    verdicts = [[row["verdict"] for row in log] for log in logs]
    assert verdicts[0] == verdicts[1] and verdicts[0][-1].startswith("frozen")


def test_every_process_takes_part_in_the_panel_and_one_writes_it(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Plain masked autoencoding shares the statistics of the batch while it draws: a process that
    # stayed away would be waited for.
    runs: list[Run] = []
    more = ["--model", "spark", "--masking", "dense", "--steps", 2, "--quiet"]
    _at_step(monkeypatch, 1, runs.append)
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 0
    run, panel = runs[0], tmp_path / "ssl" / "x" / "panel.png"
    panel.unlink()
    drawn: list[object] = []
    real = run.method.panel
    monkeypatch.setattr(run.method, "panel", lambda batch: drawn.append(0) or real(batch))
    for rank in (1, 0):
        run.rt = dataclasses.replace(run.rt, rank=rank)
        run.save()
        assert panel.exists() == (rank == 0)
    assert len(drawn) == 2


@pytest.mark.parametrize(("model", "decoder"), [("spark", "unet"), ("pscl", "unetplusplus")])
def test_views_that_do_not_fit_are_refused_before_anything_is_written(
    model: str,
    decoder: str,
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--model", model, "--decoder", decoder, "--view_size", 48, "--steps", 1]
    if issubclass(settings_class(model), GuidedSettings):
        more += ["--labeled_path", synthetic_folder]
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert not (tmp_path / "ssl").exists()


@pytest.mark.parametrize(("model", "batch"), [("mocov2", 6), ("densecl", 32), ("pscl-moco", 6)])
def test_a_queue_is_never_longer_than_half_the_pool(
    model: str,
    batch: int,
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 48 tiles: a batch of 32 alone is more than half of them.
    more = ["--model", model, "--bn_splits", 1, "--steps", 3, "--queue_size", 65536]
    more += ["--batch_size", batch]
    if issubclass(settings_class(model), GuidedSettings):
        more += ["--labeled_path", synthetic_folder]
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 0
    text = capsys.readouterr().out
    state = checkpoint.load(tmp_path / "ssl" / "x" / "last.ckpt")["state"]
    tiles = int(re.search(r"half of the (\d+) tiles", text)[1])  # type: ignore[index]
    assert tiles / 4 < len(state["queue.rows"]) <= tiles / 2
    assert "instead of 65536" in text
    row = _rows(tmp_path / "ssl" / "x" / "log.csv")[-1]
    assert int(row["queue_age"]) >= 1 and row["verdict"].startswith("too early")


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(
    pool_folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "ssl" / "x"))
    argv = _argv(pool_folder, tmp_path, "x", "--steps", 8, "--checkpoint_every", 3)
    assert _main(*argv, "--resume") == 0
    assert _bits(run) == _bits(whole)
    assert _rows(run / "log.csv") == _rows(whole / "log.csv")
    assert _status(run) == _status(whole)
    assert "resumed at step 8" in capsys.readouterr().out


def test_the_weights_a_run_started_from_may_be_gone_when_it_resumes(
    pool_folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Path(shutil.copy(whole / "encoder.safetensors", tmp_path / "start.safetensors"))
    digest = file_hash(start)
    argv = _argv(pool_folder, tmp_path, "x", "--steps", 4, "--weights", start, "--quiet")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _at_step(patch, 2, _kill)
        _main(*argv)
    start.unlink()
    assert _main(*argv, "--resume") == 0
    lineage = checkpoint.load(tmp_path / "ssl" / "x" / "last.ckpt")["lineage"]
    assert [link.get("steps") for link in lineage] == [8, None, 4]
    assert lineage[1]["sha256"] == digest


@pytest.mark.filterwarnings("error")
def test_views_made_on_the_device_train_as_those_of_the_cpu_do(
    pool_folder: Path, tmp_path: Path
) -> None:
    losses = {}
    for where in ("cpu", "device"):
        argv = _argv(pool_folder, tmp_path, where, "--steps", 2, "--views_on", where)
        assert _main(*argv) == 0
        with open(tmp_path / "ssl" / where / "steps.csv", newline="") as file:
            losses[where] = [float(row["loss"]) for row in csv.DictReader(file)]
    # A few pixels differ by a level or two, and so do the losses by a little.
    assert losses["cpu"] != losses["device"]
    assert losses["device"] == pytest.approx(losses["cpu"], rel=0.2)
    assert losses["device"][0] == pytest.approx(losses["cpu"][0], rel=0.03)


def test_a_pool_that_moved_continues_its_run(pool_folder: Path, tmp_path: Path) -> None:
    steps = ["--steps", 2, "--quiet"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        _at_step(patch, 1, _kill)
        _main(*_argv(pool_folder, tmp_path, "x", *steps, "--checkpoint_every", 1))
    copy = Path(shutil.copytree(pool_folder, tmp_path / "pool"))
    assert _main(*_argv(copy, tmp_path, "x", *steps, "--resume")) == 0


def test_changed_images_are_no_continuation(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(pool_folder, tmp_path / "pool"))
    argv = _argv(folder, tmp_path, "x", "--steps", 2, "--quiet")
    assert _main(*argv) == 0
    next(path for path in folder.iterdir() if path.suffix != ".txt").unlink()
    assert _main(*argv, "--resume") == 2
    message = capsys.readouterr().err
    assert "changed since this run began" in message and "--weights" in message


# --- stopping -----------------------------------------------------------------------------------
def test_sigterm_finishes_the_step_saves_and_exits_143(
    pool_folder: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = _argv(pool_folder, tmp_path, "x", "--steps", 8, "--checkpoint_every", 3)
    run = tmp_path / "ssl" / "x"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        # The handler that the run has set, called as Python calls it: a signal itself, sent to a
        # process in which OpenVINO has computed, ends that process. Real ones: test_commands.
        _at_step(patch, 4, lambda run: _received(signal.SIGTERM))
        _main(*argv)
    assert stopped.value.code == 143
    assert "stopped at step 5" in capsys.readouterr().out
    assert _status(run)["state"] == "stopped" and _status(run)["step"] == 5
    assert checkpoint.load(run / "last.ckpt")["step"] == 5
    # Whoever goes on from it is told, in one line.
    told = weights.load(build_encoder("tu-test_resnet", 1), run, in_channels=1).text()
    assert told.count("encoder of a run that stopped at step 5 of 8") == 1
    assert _main(*argv, "--resume", "--quiet") == 0
    assert _bits(run) == _bits(whole)
    told = weights.load(build_encoder("tu-test_resnet", 1), run, in_channels=1).text()
    assert "stopped at step" not in told


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint_and_names_the_images(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def poison(run: Run) -> None:
        with torch.no_grad():
            next(run.method.parameters()).fill_(float("nan"))

    _at_step(monkeypatch, 3, poison)
    argv = _argv(pool_folder, tmp_path, "x", "--steps", 8, "--checkpoint_every", 2, "--quiet")
    assert _main(*argv) == 2
    message = capsys.readouterr().err
    assert "not finite at step 4" in message
    run = tmp_path / "ssl" / "x"
    payload = checkpoint.load(run / "last.ckpt")
    assert payload["step"] == 2
    assert all(torch.isfinite(t.float()).all() for t in payload["state"].values())
    images = (run / "not_finite.txt").read_text().split("\n")[:-1]
    assert 1 <= len(images) <= 6 and Path(images[0]).name in message
    assert _status(run)["state"] == "failed" and "step 4" in _status(run)["error"]


def test_weights_that_are_not_finite_are_never_saved(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--steps", 4, "--checkpoint_every", 1, "--optimizer", "sgd", "--clip", 0]
    more += ["--weight_decay", 1000, "--quiet"]
    # The first loss is finite, but a step of this length leaves the range of float32.
    monkeypatch.setattr(optim, "learning_rate", lambda *plan: 3e38)
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 2
    assert "the weights are not finite after step 1" in capsys.readouterr().err
    payload = checkpoint.load(tmp_path / "ssl" / "x" / "last.ckpt")
    assert payload["step"] == 0
    assert all(torch.isfinite(t.float()).all() for t in payload["state"].values())


def test_a_collapse_stops_the_run_where_that_was_asked_for(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = monitor.examine
    monkeypatch.setattr(monitor, "examine", lambda z, *rest: real(1 + 1e-4 * z, *rest))
    monkeypatch.setattr(monitor, "SETTLED", 1)
    monkeypatch.setattr(plan, "MIN_STEPS_BETWEEN_REPORTS", 1)
    more = ["--steps", 60, "--checkpoint_every", 500, "--quiet"]
    assert _main(*_argv(pool_folder, tmp_path, "stops", *more, "--on_collapse", "stop")) == 2
    message = capsys.readouterr().err
    assert "collapsed: all images get nearly the same embedding" in message
    row = _rows(tmp_path / "ssl" / "stops" / "log.csv")[0]
    assert int(row["step"]) < 60 and row["verdict"].startswith("collapsed")
    run = tmp_path / "ssl" / "stops"
    assert checkpoint.load(run / "last.ckpt")["step"] == int(row["step"])
    # What there is to see of it is on its page, and whoever uses its weights is told.
    assert str(run / "report.html") in message
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "collapsed" in page and "--ssl_weights_path" not in page
    file = run / "encoder.safetensors"
    encoder = build_encoder(weights.architecture(file)[0] or "", 1)
    said = weights.load(encoder, file, in_channels=1).text()
    assert "warning the monitor called the pretraining 'collapsed'" in said


def test_a_disk_that_fills_up_while_logging_is_said(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = RunFolder.append_csv

    def fills_up(self: RunFolder, name: str, row: Any) -> None:
        if name == "steps.csv" and row["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, name, row)

    monkeypatch.setattr(RunFolder, "append_csv", fills_up)
    more = ["--steps", 6, "--checkpoint_every", 2, "--quiet"]
    assert _main(*_argv(pool_folder, tmp_path, "x", *more)) == 2
    message = capsys.readouterr().err
    assert "the disk is full" in message and "--resume" in message and message.count("\n") == 1
    assert checkpoint.load(tmp_path / "ssl" / "x" / "last.ckpt")["step"] == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_says_which_flags_to_lower(
    error: Exception,
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def too_large(run: Run) -> None:
        raise error

    _at_step(monkeypatch, 1, too_large)
    assert _main(*_argv(pool_folder, tmp_path, "x", "--steps", 3, "--quiet")) == 2
    message = capsys.readouterr().err
    assert "out of memory; lower --batch_size, --view_size" in message


# --- what is said -------------------------------------------------------------------------------
def test_lines_tell_of_the_progress_where_no_terminal_shows_a_bar(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    assert _main(*_argv(pool_folder, tmp_path, "x", "--steps", 5)) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("step 4/5"))
    assert all(word in line for word in ("loss", "views/s", "wait", "left"))
    assert "estimate" in said and "verdict:" in said
    assert "images" in said  # the screen of what was found


def test_quiet_prints_the_result_only(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(*_argv(pool_folder, tmp_path, "x", "--steps", 1, "--quiet")) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("done: ") and len(captured.out.splitlines()) == 3
    assert captured.err == ""


def test_one_image_is_compared_with_its_own_tiles(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    image = next(path for path in sorted(pool_folder.iterdir()) if path.suffix != ".txt")
    shutil.copy(image, folder)
    argv = _argv(folder, tmp_path, "x", "--steps", 2, "--tile_size", 32)
    assert _main(*argv) == 0
    assert "its own tiles are the negatives" in capsys.readouterr().out
    # Without any negative the loss would be zero.
    assert float(_rows(tmp_path / "ssl" / "x" / "steps.csv")[0]["loss"]) > 0.5
    assert _main(*argv, "--resume") == 0


def test_the_report_stands_alone_and_names_the_next_command(whole: Path) -> None:
    html = (whole / "report.html").read_text()
    assert html.count("data:image/png;base64") == 3
    assert "train_finetune.py" in html and "encoder.safetensors" in html
    assert 'src="http' not in html and "Verdict" in html


def test_the_encoder_file_says_where_it_comes_from(whole: Path) -> None:
    with safe_open(whole / "encoder.safetensors", "pt") as file:
        facts = file.metadata()
        names = list(file.keys())
    assert facts["format"] == "matssl/1"
    assert json.loads(facts["lineage"])[-1]["steps"] == 8
    assert all(name.startswith("encoder.") for name in names)


# --- pictures -----------------------------------------------------------------------------------
def test_features_of_two_textures_get_two_colours() -> None:
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(2, 8))
    features = np.empty((8, 6, 10))
    features[:, :, :5], features[:, :, 5:] = kinds[0][:, None, None], kinds[1][:, None, None]
    features += 0.01 * generator.normal(size=features.shape)
    (colour,) = pictures.project_to_colour([features])
    assert colour.shape == (6, 10, 3) and colour.min() >= 0 and colour.max() <= 1
    left, right = colour[:, :5, 0], colour[:, 5:, 0]
    assert abs(left.mean() - right.mean()) > 0.8 > 0.2 > max(left.std(), right.std())


def test_pictures_are_drawn_from_the_least_there_can_be(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("step,loss,lr\n1,4.2,0.1\n")
    (tmp_path / "log.csv").write_text("step,std,ideal_std,rank,dimensions\n1,0.2,0.25,3,16\n")
    CURVES(tmp_path / "steps.csv", tmp_path / "log.csv", tmp_path / "none.csv", tmp_path / "c.png")
    views = [np.zeros((2, channels, 32, 32), np.uint8) for channels in (1, 3)]
    VIEWS(views, tmp_path / "v.png")
    FEATURES([np.zeros((64, 32), np.uint8)], [np.ones((3, 8, 4))], tmp_path / "f.png")
    for name in "cvf":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_setting_that_an_older_checkpoint_lacks_counts_as_its_default() -> None:
    now = {"steps": 5, "schedule": "cosine", "stripes": 0.5}
    defaults: dict[str, object] = {"steps": None, "schedule": "constant", "stripes": 0.5}
    before = {"steps": 5, "schedule": "cosine"}
    resume.refuse_other_plan(before, now, defaults, "begin anew")
    with pytest.raises(UserError, match="--stripes was 0.5, is 0.1; .* or begin anew"):
        resume.refuse_other_plan(before, {**now, "stripes": 0.1}, defaults, "begin anew")
    with pytest.raises(UserError, match="--schedule was cosine, is constant"):
        resume.refuse_other_plan(before, {**now, "schedule": "constant"}, defaults, "begin anew")
    threads: dict[str, object] = {"threads": None, "snapshot_every": 0, **defaults}
    told = resume.refuse_other_plan(
        before, {**now, "threads": 2, "snapshot_every": 5}, threads, "begin anew"
    )
    assert told.startswith("resumed elsewhere (--threads was None, is 2): the same plan")


def test_a_run_goes_on_elsewhere_and_says_so(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """B10: another device, other snapshots."""
    argv = _argv(pool_folder, tmp_path, "x", "--steps", 5, "--checkpoint_every", 3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _at_step(patch, 3, _kill)
        _main(*argv, "--device", "cpu")
    capsys.readouterr()
    argv = [word for word in argv if word != "--quiet"]
    assert _main(*argv, "--resume", "--snapshot_every", 5) == 0
    assert "note    resumed elsewhere (--device was cpu, is auto)" in capsys.readouterr().out
    assert (tmp_path / "ssl" / "x" / "snapshots" / "encoder_000005.safetensors").is_file()


def test_every_setting_of_a_run_has_a_default() -> None:
    parts = PretrainSettings("x"), PSCLMoCoSettings()
    assert flags.defaults(*map(type, parts)).keys() == flags.to_dict(*parts).keys()
