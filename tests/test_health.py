"""Runs that are broken on purpose are recognised within three epochs; sound ones are left alone."""

from __future__ import annotations

import csv
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric import small_encoder

from matssl import monitor
from matssl.core.batch import Batch, Losses
from matssl.core.errors import guard
from matssl.data import synthetic
from matssl.data.datasets import ViewLoader
from matssl.methods import distinct
from matssl.methods.byol.method import BYOL
from matssl.methods.contrastive import negative_cosine
from matssl.methods.mocov2.settings import MoCoV2Settings
from matssl.stages.pretrain import loop as pretrain
from matssl.stages.pretrain import plan, report, settings, watch

EPOCH = 32  # 256 tiles in batches of 8
SHORT = 4
# The targets follow closely: what is wrong with them acts sooner.
QUICKLY = ["--ema_momentum", 0.9]
# A network of a thirtieth of a ResNet-18 shows what a first look finds, and that nothing is found.
SMALL = "tu-test_resnet"
# At a hundredfold rate BYOL on the small one keeps five dimensions, one more than a thin run has.
LARGE = {"byol": "resnet18"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    synthetic.write_pool(folder, n=64, size=64, seed=2)
    return folder


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For faults of input and settings, which the first look finds."""
    folder = tmp_path_factory.mktemp("small")
    synthetic.write_pool(folder, n=8, size=64, seed=2)
    return folder


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*args: Any) -> None:
        Path(args[-1]).write_text("picture")

    for name in ("views_sheet", "features_sheet", "pretraining_curves"):
        monkeypatch.setattr(report.pictures, name, draw)
    # As many as users have: what is found in them is what these tests are about.
    monkeypatch.setattr(watch, "WATCHED_SAMPLES", 128)
    # Four steps an epoch in the small pool: a look after each.
    monkeypatch.setattr(plan, "MIN_STEPS_BETWEEN_REPORTS", SHORT)


@pytest.fixture
def _awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small encoder that is broken within three epochs: all of its layers act from the start."""
    build = pretrain.build_encoder

    def awake(name: str, in_channels: int, dilated: bool) -> torch.nn.Module:
        return small_encoder(in_channels) if name == SMALL else build(name, in_channels, dilated)

    monkeypatch.setattr(pretrain, "build_encoder", awake)


def _run(
    pool: Path, out: Path, capsys: pytest.CaptureFixture[str], model: str, *flags: object
) -> str:
    """Return what a run of three epochs says when it stops itself; nothing if it does not."""
    argv = ["--model", model, "--data_path", pool, "--output_dir", out, "--name", "x"]
    steps = 3 * (EPOCH if len(list(pool.iterdir())) > 32 else SHORT)
    argv += ["--view_size", 32, "--tile_size", 32, "--batch_size", 8, "--steps", steps]
    argv += ["--threads", 1, "--precision", "fp32", "--on_collapse", "stop", "--quiet"]
    argv += ["--hidden_dim", 128, "--global_output_dim", 64]
    argv += ["--encoder", SMALL, *flags]
    code = guard(importlib.import_module("train_ssl").main, [str(a) for a in argv])
    error = capsys.readouterr().err
    assert code == (2 if error else 0)
    return error


@pytest.mark.parametrize("model", ["matssl", "mocov2", "byol"])
def test_a_sound_run_is_left_alone(
    model: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(pool, tmp_path, capsys, model) == ""


@pytest.mark.usefixtures("_awake")
def test_no_stop_gradient_is_seen(
    pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(self: BYOL, batch: Batch) -> Losses:
        first, second = (self.project(view) for view in batch.views)
        loss = 2 - 2 * F.cosine_similarity(first, second, dim=1).mean()
        return Losses(loss, {}, torch.cat([first, second]).detach())

    monkeypatch.setattr(BYOL, "forward", forward)
    assert "collapsed: all images get nearly the same" in _run(
        pool, tmp_path, capsys, "byol", *QUICKLY
    )


@pytest.mark.usefixtures("_awake")
def test_a_missing_predictor_is_seen(
    pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(self: BYOL, batch: Batch) -> Losses:
        first, second = batch.views
        online = [self.project(first), self.project(second)]
        targets = [self.target(second), self.target(first)]
        pairs = zip(online, targets, strict=True)
        loss = torch.stack([negative_cosine(p, t).mean() for p, t in pairs]).sum()
        return Losses(loss, {}, torch.cat(online).detach())

    monkeypatch.setattr(BYOL, "forward", forward)
    assert "collapsed: all images get nearly the same" in _run(
        pool, tmp_path, capsys, "byol", *QUICKLY
    )


@pytest.mark.usefixtures("_awake")
@pytest.mark.parametrize("model", ["matssl", "mocov2", "byol"])
def test_a_hundredfold_learning_rate_is_seen(
    model: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = settings.resolve(["--data_path", "x", "--model", model]).run.lr
    flags = ["--encoder", LARGE.get(model, SMALL), "--lr", 100 * usual]
    said = _run(pool, tmp_path, capsys, model, *flags)
    assert any(word in said for word in ("thin:", "collapsed:", "not finite")), said
    assert "--lr" in said


@pytest.mark.parametrize("model", ["matssl", "mocov2"])
def test_a_flat_softmax_is_seen(
    model: str, small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _run(small_pool, tmp_path, capsys, model, "--temperature", 5)
    assert "flat: at temperature 5 even perfect embeddings" in said


def test_constant_images_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "constant"
    folder.mkdir()
    for level in range(8):
        assert cv2.imwrite(str(folder / f"{level}.png"), np.full((64, 64), 20 * level, np.uint8))
    assert "blank: 100 % of the tiles" in _run(folder, tmp_path, capsys, "matssl")


@pytest.mark.parametrize("model", ["simclr", "slotcon", "spark"])
def test_identical_views_are_seen_where_two_are_needed(
    model: str,
    small_pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = ViewLoader._views

    def twice(self: ViewLoader, *args: Any, **options: Any) -> Batch:
        batch = make(self, *args, **options)
        return dataclasses.replace(batch, views=(batch.views[0],) * 2)

    monkeypatch.setattr(ViewLoader, "_views", twice)
    said = _run(small_pool, tmp_path, capsys, model)
    assert ("trivial: both views are equal" in said) == (model != "spark"), said


def test_a_queue_longer_than_the_data_is_seen(
    small_pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The stage itself never lets a queue grow that long.
    monkeypatch.setattr(MoCoV2Settings, "resolved", lambda own, pool: (own, ()))
    assert "stale: the queue holds" in _run(
        small_pool, tmp_path, capsys, "mocov2", "--queue_size", 4096
    )


def test_a_frozen_encoder_is_seen(
    small_pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = pretrain.build_encoder

    def frozen(name: str, in_channels: int, dilated: bool) -> torch.nn.Module:
        return build(name, in_channels, dilated).requires_grad_(False)

    monkeypatch.setattr(pretrain, "build_encoder", frozen)
    assert "frozen: no weight of the encoder" in _run(small_pool, tmp_path, capsys, "matssl")


def test_the_queue_of_the_stage_is_at_most_half_of_the_tiles(
    small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(small_pool, tmp_path, capsys, "mocov2", "--queue_size", 4096) == ""
    rows = (tmp_path / "ssl" / "x" / "log.csv").read_text().splitlines()
    ages = [int(float(row.split(",")[rows[0].split(",").index("queue_age")])) for row in rows[1:]]
    assert max(ages) == 16 // 8


@pytest.mark.parametrize("model", [name for name in distinct() if not name.startswith("pscl")])
def test_a_single_step_is_too_early_to_say(
    model: str, small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B18, B19: the first step against an empty queue has a loss of 0 and moves no weight."""
    assert _run(small_pool, tmp_path, capsys, model, "--steps", 1) == ""
    with open(tmp_path / "ssl" / "x" / "log.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["verdict"].startswith("too early to say after 1 step (")


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [
        ({"blank": 0.6}, "blank"),
        ({"same": 0.6}, "trivial"),
        ({"moved": False}, "frozen"),
        ({"temperature": 5.0}, "flat"),
        ({"queue": 0.6}, "stale"),
        ({"idle": 0.6}, "idle"),
        ({"steps": 59}, "too early to say after 59 steps"),
        ({"steps": 1, "moved": False, "idle": 1.0}, "too early to say after 1 step ("),
        ({"steps": 10, "moved": False}, "frozen"),
        ({"steps": 10, "idle": 1.0}, "idle"),
        ({"prototypes": 1.2}, "collapsed: 1.2 prototypes"),
        ({"prototypes": 1.0, "undecided": 1.0}, "collapsed: every cell belongs to all"),
        ({"loss": 1.0, "chance": 1.0}, "not learning"),
        ({"loss": 0.98, "chance": 1.0}, "healthy"),
        ({"blank": 0.1, "same": 0.1, "temperature": 1.0, "queue": 0.5, "prototypes": 8}, "healthy"),
        ({"loss": 0.5, "chance": 1.0}, "healthy"),
    ],
)
def test_signs_besides_the_embeddings_decide(signs: dict[str, Any], verdict: str) -> None:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(64, 32, generator=g).repeat(2, 1)
    health = monitor.examine(
        base + 0.2 * torch.randn(128, 32, generator=g), base, monitor.Signs(**signs)
    )
    found = health.verdict()
    assert found.text.startswith(verdict)
    assert found.failing == (not verdict.startswith(("healthy", "too early", "not learning")))


@pytest.mark.parametrize("prototypes", [None, 8.0])
def test_a_method_that_compares_no_pooled_views_is_judged_by_its_features(
    prototypes: float | None,
) -> None:
    g = torch.Generator().manual_seed(0)
    same = torch.ones(128, 32) + 0.001 * torch.randn(128, 32, generator=g)
    signs = monitor.Signs(pooled=False, prototypes=prototypes)
    said = monitor.examine(same, torch.randn(128, 32, generator=g), signs).verdict().text
    assert said.startswith("healthy: features use")
    assert said.endswith("8.0 prototypes in use") == (prototypes is not None)
    assert monitor.examine(same, same, signs).verdict().state == "thin"


def test_queue_age() -> None:
    assert [monitor.queue_age(k, 8) for k in (0, 8, 9, 64)] == [0, 1, 2, 8]
