"""Semi-supervised fine-tuning: methods, crops, what is believed, when it stops, runs."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from processes import ROOT, alone, check_equal, pair

import train_finetune
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime
from matssl.data import cache, synthetic, unlabelled
from matssl.data.cache import Pool
from matssl.data.crops import CropAugmentation, Labelled
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess
from matssl.data.unlabelled import UnlabelledLoader
from matssl.models.segmentation import build_model
from matssl.pictures import undrawn
from matssl.stages.evaluate import predict as evaluation
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.finetune import semi_settings, settings
from matssl.stages.finetune.learner import Learner
from matssl.stages.finetune.objective import Objective, Schedule
from matssl.stages.finetune.semi import SEMI, auto, fixmatch, mean_teacher, unimatch, watch
from matssl.stages.finetune.semi.base import Answers, Pseudo, believed_cross_entropy
from matssl.stages.finetune.semi.supervision import Plan, Supervision
from matssl.stages.finetune.semi.thresholds import labelled_shares, lost, thresholds

pytestmark = pytest.mark.usefixtures("no_drawing")

CPU = Runtime(torch.device("cpu"), "fp32", 1, 0)
PLAIN = CropAugmentation(size=32, d4="none")
EACH = pytest.mark.parametrize("name", SEMI)
FLAGS = ["--crop_size", "64", "--batch_size", "2", "--threads", "1", "--precision", "fp32"]
FLAGS += ["--val_every", "2", "--encoder", "tu-test_resnet", "--steps", "6", "--quiet"]


def _pool(folder: Path, *sides: int, groups: tuple[str, ...] | None = None) -> Pool:
    """Pictures whose grey levels tell picture and place."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, side in enumerate(sides):
        y, x = np.mgrid[:side, :side]
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), (60 * number + y // 2 + x // 4).astype(np.uint8))
        paths.append(path)
    return cache.build(paths, Preprocess(window="dtype"), groups=groups, cache_dir=None, quiet=True)


def _loader(pool: Pool, crops: CropAugmentation = PLAIN, batch: int = 4, **more: Any) -> Any:
    record = Preprocess(window="dtype", mean=(0.0,), std=(1.0,))
    return UnlabelledLoader(pool, record, crops, batch, 0, **more)


# --- what is believed ---
def test_a_rare_class_is_believed_earlier_and_a_common_one_at_the_full_threshold() -> None:
    # 0.6 + 0.35 min(1, 4 share): 0.08 gives 0.6 + 0.35 * 0.32, 0.02 gives 0.6 + 0.35 * 0.08.
    found = thresholds((0.6, 0.3, 0.08, 0.02), 0.95, 0.6)
    assert found == pytest.approx((0.95, 0.95, 0.712, 0.628))
    assert thresholds((0.5, 0.5), 0.95, 0.6) == pytest.approx((0.95, 0.95))
    assert thresholds((1.0, 0.0), 0.9, 0.7) == pytest.approx((0.9, 0.7))


def test_shares_are_those_of_the_labelled_pixels() -> None:
    masks = [np.array([[0, 0, 1, IGNORE]], np.uint8), np.array([[1, 2, 0, 0]], np.uint8)]
    assert labelled_shares(masks, 4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_a_class_is_lost_below_half_of_its_labelled_share() -> None:
    shares = (0.6, 0.3, 0.1)
    assert lost((60, 30, 10), shares, 0.5) == ()
    # 4 of 100 is below 0.05, 5 is not.
    assert lost((66, 30, 4), shares, 0.5) == (2,)
    assert lost((65, 30, 5), shares, 0.5) == ()
    assert lost((99, 1, 0), shares, 0.5) == (1, 2)
    assert lost((99, 1, 0), shares, 0.0) == ()
    assert lost((0, 0, 0), shares, 0.5) == ()


def test_a_pixel_is_believed_at_the_threshold_of_its_own_class_and_inside_the_picture() -> None:
    chance = torch.tensor([[0.94, 0.95, 0.3, 0.3, 0.99], [0.06, 0.05, 0.7, 0.7, 0.01]])
    known = torch.tensor([[[True, True, True, True, False]]])
    found = Pseudo.of(chance[None, :, None], known, torch.tensor([0.95, 0.7]))
    assert found.labels.tolist() == [[[IGNORE, 0, 1, 1, IGNORE]]]


# --- losses by hand ---
def _pseudo(chance: list[list[float]], labels: list[int]) -> Pseudo:
    """One row of pixels, (1, C, 1, W)."""
    shown = torch.ones(1, 1, len(labels), dtype=torch.bool)
    return Pseudo(torch.tensor(chance)[None, :, None], torch.tensor(labels)[None, None], shown)


def test_the_loss_is_divided_by_all_pixels_also_by_those_not_believed() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 5.0]])[None, :, None]
    pseudo = _pseudo([[0.1, 0.5], [0.9, 0.5]], [1, IGNORE])
    # Probability 3/4 of the believed class, over two pixels.
    wanted = -math.log(0.75) / 2
    assert believed_cross_entropy(logits, pseudo).item() == pytest.approx(wanted)
    assert fixmatch.loss(Answers((logits,)), pseudo, (pseudo,)).item() == pytest.approx(wanted)


def test_mean_teacher_is_the_mean_squared_distance_of_probabilities() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])[None, :, None]
    pseudo = _pseudo([[0.5, 0.5], [0.5, 0.5]], [IGNORE, IGNORE])
    # (1/4, 3/4) is apart from the even answer by 2 / 16, (1/2, 1/2) by nothing.
    found = mean_teacher.loss(Answers((logits,)), pseudo, (pseudo,))
    assert found.item() == pytest.approx((2 / 16) / 2)


def test_unimatch_weighs_each_strong_view_a_quarter_and_dropped_features_a_half() -> None:
    views = [torch.tensor([[0.0], [math.log(r)]])[None, :, None] for r in (1, 3, 7)]
    pseudo = _pseudo([[0.0], [1.0]], [1])
    found = unimatch.loss(Answers((views[0], views[1]), views[2]), pseudo, (pseudo, pseudo))
    wanted = -0.25 * math.log(1 / 2) - 0.25 * math.log(3 / 4) - 0.5 * math.log(7 / 8)
    assert found.item() == pytest.approx(wanted)


# --- crops ---
def test_a_mixture_shows_its_partner_inside_the_box_and_so_do_its_labels(tmp_path: Path) -> None:
    loader = _loader(_pool(tmp_path / "p", 80, 96), cutmix_p=1.0, views=2)
    batch = loader.batch(3)
    labels = torch.arange(4)[:, None, None].expand(4, 32, 32)
    chance = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    pseudo = Pseudo(chance, labels, batch.known)
    for view, box in zip(batch.strong, batch.boxes, strict=True):
        assert box.any(dim=(1, 2)).all() and not box.all()
        other = batch.weak[[1, 0, 3, 2]]
        assert torch.equal(view, torch.where(box[:, None], other, batch.weak))
        mixed = pseudo.mixed(box)
        assert torch.equal(mixed.labels, torch.where(box, labels ^ 1, labels))
        assert torch.equal(mixed.chance.argmax(1), mixed.labels)
    assert not torch.equal(*batch.boxes)


def test_boxes_are_of_the_published_size_and_as_frequent_as_asked(tmp_path: Path) -> None:
    loader = _loader(_pool(tmp_path / "p", 80), replace(PLAIN, size=64), cutmix_p=0.5)
    boxes = [loader._box(step, 0, 0) for step in range(200)]
    areas = np.array([box.mean() for box in boxes if box.any()])
    assert 70 < len(areas) < 130
    assert areas.min() > 0.015 and areas.max() < 0.42


def test_crops_are_the_same_for_any_number_of_threads_and_processes(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "p", 80, 96, 20)
    crops = watch.strong_crops(CropAugmentation(size=32), 1.0)
    whole = list(_loader(pool, crops).batches(2, 5))
    threads = list(_loader(pool, crops, threads=3).batches(2, 5))
    halves = [_loader(pool, crops, rank=r, world_size=2).batch(4) for r in range(2)]
    for one, two in zip(whole, threads, strict=True):
        assert torch.equal(one.weak, two.weak) and torch.equal(one.strong[0], two.strong[0])
    assert torch.equal(whole[2].weak, torch.cat([half.weak for half in halves]))
    assert torch.equal(whole[2].strong[0], torch.cat([half.strong[0] for half in halves]))
    assert not torch.equal(whole[0].strong[0], whole[0].weak)


def test_partners_are_of_one_group_and_every_picture_comes(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "p", 40, 40, 40, 40, groups=("a", "b", "a", "b"))
    loader = _loader(pool)
    first = [loader.picture(step, sample) for step in range(8) for sample in (0, 2)]
    second = [loader.picture(step, sample) for step in range(8) for sample in (1, 3)]
    assert sorted(first[:4]) == sorted(first[4:8]) == [0, 1, 2, 3]
    assert set(second) == {0, 1, 2, 3}
    assert all(a % 2 == b % 2 for a, b in zip(first, second, strict=True))
    lonely = _loader(_pool(tmp_path / "q", 40, 40))
    assert all(lonely.picture(s, 0) == lonely.picture(s, 1) for s in range(8))


def test_a_mirrored_border_is_not_known(tmp_path: Path) -> None:
    batch = _loader(_pool(tmp_path / "p", 20)).batch(0)
    assert batch.known[:, :20, :20].all() and int(batch.known.sum()) == 4 * 400


def test_an_odd_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--unlabeled_batch must be an even number, not 3"):
        _loader(_pool(tmp_path / "p", 40), batch=3)
    with pytest.raises(UserError, match="even number for each of 2 processes, not 6"):
        unlabelled.check_pairs(6, 2)


# --- when they count, and when no more ---
def _plan(**more: Any) -> Plan:
    values: dict[str, Any] = {"total_steps": 100, "warmup": None, "ramp": 0.1, "weight": 2.0}
    values |= {"guard": 0.5, "thresholds": (0.9, 0.9), "shares": (0.8, 0.2)}
    return Plan(**values | more)


def _watched(tmp_path: Path, plan: Plan) -> Supervision:
    return Supervision(SEMI["fixmatch"], plan, _loader(_pool(tmp_path / "p", 40)), CPU)


def test_the_weight_rises_by_the_published_ramp() -> None:
    plan = _plan()
    assert plan.rate(0) == pytest.approx(2 * math.exp(-5))
    assert plan.rate(5) == pytest.approx(2 * math.exp(-5 / 4))
    assert plan.rate(10) == plan.rate(50) == 2.0
    assert replace(plan, ramp=0.0).rate(0) == 2.0


def test_they_count_once_the_validation_is_stable_or_after_two_fifths(tmp_path: Path) -> None:
    made = _watched(tmp_path, _plan())
    assert made.plan.start == 40
    assert replace(made.plan, validated=False).start == 25
    assert replace(made.plan, warmup=0.1).start == 10
    for step, miou, begun in ((5, 0.3, None), (10, 0.5, None), (15, 0.53, None), (20, 0.545, 20)):
        made.looked_at(step, miou)
        assert made.begun == begun
    given = _watched(tmp_path, _plan(warmup=0.3))
    given.looked_at(5, 0.5)
    given.looked_at(10, 0.5)
    assert given.begun is None


def test_the_guard_stops_when_a_class_is_lost_and_says_which(tmp_path: Path) -> None:
    made = _watched(tmp_path, _plan())
    folder = RunFolder(tmp_path, False)
    made.begun = 10
    made.said[:], made.believed[:] = (850, 150), (800, 120)
    assert watch.looked_at(folder, made, ("matrix", "carbide"), 20, 0.5) == [
        "without labels the teacher says matrix 85.0, carbide 15.0 %; 92.0 % of the pixels are "
        "believed (matrix 87.0, carbide 13.0 %)"
    ]
    assert made.stopped is None and made.said.sum() == 0
    # The collapse: the teacher finds carbide in 5 % now, of 20 that are labelled.
    made.said[:], made.believed[:] = (950, 50), (930, 20)
    notes = watch.looked_at(folder, made, ("matrix", "carbide"), 30, 0.5)
    assert made.stopped == 30 and made.fallen == (1,)
    assert (
        "count no more from step 30 on" in notes[1]
        and "finds carbide in less than 0.5 times" in notes[1]
    )
    assert made.step(30, torch.nn.Identity(), {}) is None
    rows = list(csv.DictReader((tmp_path / "semi.csv").open(encoding="utf-8")))
    assert [row["state"] for row in rows] == ["on", "on"]
    assert float(rows[1]["believed carbide"]) == pytest.approx(20 / 950, rel=1e-4)
    watch.looked_at(folder, made, ("matrix", "carbide"), 40, 0.5)
    other = _watched(tmp_path, _plan())
    other.restore(json.loads(json.dumps(made.stored())))
    assert other.stored() == made.stored()


# --- the contract of every method ---
def _learner(name: str, pool: Pool, model: torch.nn.Module, seed: int = 0) -> Learner:
    plane, mask = (
        np.random.default_rng(0).random((48, 48), np.float32),
        np.zeros((48, 48), np.uint8),
    )
    mask[:, 24:] = 1
    pairs = (Pair(Path("0.png"), None, "0", "train"),)
    data = Labelled((plane,), (mask,), pairs, ((8, None),), ("digest",))
    record = Preprocess(window="dtype", mean=(0.0,), std=(1.0,))
    crops = CropAugmentation(size=32)
    plan = Schedule(total_steps=4, lr=1e-3)
    learner = Learner(
        model,  # type: ignore[arg-type]
        data,
        record,
        CPU,
        objective=Objective("dice_ce"),
        schedule=plan,
        crops=crops,
        batch_size=2,
        seed=seed,
    )
    method = SEMI[name]
    loader = _loader(pool, watch.strong_crops(crops, 1.0), 2, views=method.views)
    semi = _plan(total_steps=4, warmup=0.0, ramp=0.0, thresholds=(0.0, 0.0), shares=(0.5, 0.5))
    learner.supervision = Supervision(method, replace(semi, guard=0.0), loader, CPU)
    return learner


def _model(encoder: str = "tu-test_resnet", decoder: str = "unet") -> Any:
    torch.manual_seed(0)
    return build_model(encoder, decoder, 2, 1)


def test_the_settings_name_the_methods_there_are() -> None:
    assert tuple(SEMI) == semi_settings.SEMI_METHODS


@EACH
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("tu-test_resnet", "unet"), ("small_unet", "small_unet"), ("tu-test_resnet", "deeplabv3plus")],
)
def test_every_method_teaches_encoder_and_decoder_and_leaves_the_teacher_alone(
    name: str, encoder: str, decoder: str, tmp_path: Path
) -> None:
    learner = _learner(name, _pool(tmp_path / "p", 60, 64), _model(encoder, decoder))
    assert learner.supervision is not None
    model = learner.model
    teacher = {k: v.clone() for k, v in learner.averaged.items()}
    exercise = learner.supervision.step(0, model, learner.averaged)
    assert exercise is not None and not model.training
    model.train()
    images = learner.loader.batch(0)[0]
    logits = exercise.answered(learner.parallel, model.encoder, images)
    method = SEMI[name]
    assert len(logits) == 2 + 2 * (method.views + 2 * method.dropped)
    loss = exercise.loss(logits[2:])
    loss.backward()
    assert math.isfinite(loss.item()) and loss.item() > 0
    for part in ("encoder", "decoder"):
        grads = [p.grad for n, p in model.named_parameters() if n.startswith(part)]
        assert any(g is not None and bool(g.abs().sum() > 0) for g in grads), part
    assert not any(v.requires_grad for v in learner.averaged.values())
    assert all(torch.equal(teacher[k], v) for k, v in learner.averaged.items())
    # Nothing of it stays behind in the network.
    assert len(model.eval()(images)) == 2


@EACH
def test_the_same_seed_gives_the_same_bits_and_a_checkpoint_goes_on_with_them(
    name: str, tmp_path: Path
) -> None:
    pool = _pool(tmp_path / "p", 60, 64)
    one, two = (_learner(name, pool, _model()) for _ in range(2))

    def steps(learner: Learner, first: int, last: int) -> list[float]:
        batches = learner.loader.batches(first, last)
        return [learner.learn(first + i, 1e-3, *batch) for i, batch in enumerate(batches)]

    assert steps(one, 0, 2) == steps(two, 0, 2)
    payload = copy.deepcopy({**one.state(), "step": 2})
    assert one.supervision is not None
    kept = json.loads(json.dumps(one.supervision.stored()))
    last = steps(one, 2, 4)
    again = _learner(name, pool, _model())
    again.restore(payload)
    assert again.supervision is not None
    again.supervision.restore(kept)
    assert steps(again, 2, 4) == last
    state = again.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.model.state_dict().items())
    assert one.supervision.stored() == again.supervision.stored()


# --- flags ---
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--semi fixmatch", "--semi fixmatch needs --unlabeled_path"),
        ("--unlabeled_path x", "--unlabeled_path: only with --semi mean_teacher|fixmatch|"),
        ("--guard 0.2 --cutmix_p 0.1", "--cutmix_p, --guard: only with --semi"),
        ("--semi fixmatch --unlabeled_path x --folds 3", "does not go with --folds"),
        ("--semi fixmatch --unlabeled_path x --head forest", "does not go with --head"),
        ("--semi fixmatch --unlabeled_path x --input_depth 3", "does not go with --input_depth"),
        (
            "--semi fixmatch --unlabeled_path x --whole_images --rare_class_p 0",
            "does not go with --whole_images",
        ),
        ("--semi unimatch --unlabeled_path x --compile", "does not go with --compile"),
        (
            "--semi fixmatch --unlabeled_path x --rare_threshold 0.96",
            "--rare_threshold 0.96 must not be above --common_threshold 0.95",
        ),
        ("--semi mean_teacher --unlabeled_path x --rare_threshold 0.5", "believes every pixel"),
    ],
)
def test_flags_that_do_not_go_together_are_told(words: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        settings.resolve(["--finetune_dataset", "x", *words.split()])
    assert said in str(error.value)


# --- runs ---
def _run(folder: Path, out: Path, name: str, *more: object) -> int:
    argv = ["--finetune_dataset", folder, "--output_dir", out, "--name", name, *FLAGS, *more]
    return guard(train_finetune.main, [str(word) for word in argv])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def plain(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels alone."""
    out = tmp_path_factory.mktemp("plain")
    with undrawn():
        assert _run(synthetic_folder, out, "plain") == 0
    return out / "finetune" / "plain"


@EACH
def test_a_run_is_the_plain_one_until_pictures_without_labels_count(
    name: str, synthetic_folder: Path, plain: Path, tmp_path: Path
) -> None:
    pool = (
        "--semi",
        name,
        "--unlabeled_path",
        synthetic_folder,
        "--semi_warmup",
        0.5,
        "--guard",
        0,
    )
    assert _run(synthetic_folder, tmp_path, "semi", *pool) == 0
    runs = [tmp_path / "finetune" / "semi", plain]
    semi, labels = ([row["loss"] for row in _rows(run / "steps.csv")] for run in runs)
    # From the fourth step on the network sees both kinds together.
    assert semi[:3] == labels[:3] and semi[3] != labels[3]
    rows = _rows(runs[0] / "steps.csv")
    assert [float(row["unlabelled_loss"]) > 0 for row in rows[:3]] == [False] * 3
    assert float(rows[5]["unlabelled_weight"]) > 0
    assert [row["state"] for row in _rows(runs[0] / "semi.csv")] == ["warm-up", "on", "on"]
    page = (runs[0] / "report.html").read_text(encoding="utf-8")
    assert "They counted from step 3 to the end." in page
    # Neither masks nor validation and test pictures are learned from.
    assert "4 pictures without labels" in page and "4 validation or test pictures left out" in page
    # What was left out spoils no test, and is not counted among the pictures.
    assert "spoil the test" not in page and "4 (pool 4)" in page
    payload = checkpoint.load(runs[0] / "best.ckpt")
    kept = payload["progress"]["unlabelled"]
    assert {Path(path).parent.name for path in kept["images"]} == {"train"}
    assert len(payload["lineage"][-1]["unlabelled_digests"]) == 4 and kept["transductive"] == []
    assert "unlabelled" not in checkpoint.load(runs[1] / "best.ckpt")["progress"]


def test_a_killed_run_goes_on_to_the_same_bits_also_where_its_pool_was_moved(
    synthetic_folder: Path, pool_folder: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(pool_folder, pool)
    words = ("--semi", "unimatch", "--semi_warmup", 0.2, "--checkpoint_every", 3, "--guard", 0)
    assert _run(synthetic_folder, tmp_path, "whole", *words, "--unlabeled_path", pool) == 0
    whole = tmp_path / "finetune" / "whole"
    broken = _third(synthetic_folder, tmp_path, pool, words)
    moved = tmp_path / "moved"
    pool.rename(moved)
    again = ("--unlabeled_path", moved, "--resume")
    assert _run(synthetic_folder, tmp_path, "third", *words, *again) == 0
    one, two = (checkpoint.load(run / "last.ckpt") for run in (whole, broken))
    assert all(torch.equal(value, two["state"][key]) for key, value in one["state"].items())
    assert one["progress"]["semi"] == two["progress"]["semi"]
    text = [(run / "semi.csv").read_text(encoding="utf-8") for run in (whole, broken)]
    assert text[0] == text[1]
    first = sorted(moved.glob("*.png"))[0]
    cv2.imwrite(str(first), np.zeros((96, 96), np.uint8) + np.arange(96, dtype=np.uint8))
    assert _run(synthetic_folder, tmp_path, "third", *words, *again) == 2


def _third(folder: Path, out: Path, pool: Path, words: tuple[object, ...]) -> Path:
    """A run of the same plan that was stopped after its third step."""
    from matssl.stages.finetune import loop

    class Stopped(Exception):
        pass

    save = loop.Run.save

    def saved(run: loop.Run, name: str) -> None:
        save(run, name)
        if name == "last.ckpt" and run.step == 3:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "save", saved)
        argv = ["--finetune_dataset", folder, "--output_dir", out, "--name", "third", *FLAGS]
        with pytest.raises(Stopped):
            train_finetune.main([str(w) for w in (*argv, *words, "--unlabeled_path", pool)])
    return out / "finetune" / "third"


def test_test_pictures_are_learned_from_only_if_asked_and_reports_name_it(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A turned copy of a test picture under another name, beside training pictures.
    pool = tmp_path / "pool"
    pool.mkdir()
    for path in (synthetic_folder / "train").iterdir():
        shutil.copy(path, pool)
    source = sorted((synthetic_folder / "test").iterdir())[0]
    turned = cv2.rotate(cv2.imread(str(source), 0), cv2.ROTATE_90_CLOCKWISE)
    cv2.imwrite(str(pool / "another.png"), turned)
    words = ("--semi", "fixmatch", "--unlabeled_path", pool, "--semi_warmup", 0.2)
    assert _run(synthetic_folder, tmp_path, "clean", *words) == 0
    run = tmp_path / "finetune" / "clean"
    kept = checkpoint.load(run / "best.ckpt")["progress"]["unlabelled"]
    assert len(kept["images"]) == 4 and not any("another" in path for path in kept["images"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "1 validation or test picture left out, or copies of them (another.png)" in page

    assert _run(synthetic_folder, tmp_path, "all", *words, "--transductive") == 0
    run = tmp_path / "finetune" / "all"
    assert len(checkpoint.load(run / "best.ckpt")["progress"]["unlabelled"]["images"]) == 5
    assert "transductive: 1 validation or test picture among them" in (
        run / "report.html"
    ).read_text(encoding="utf-8")
    told = EvaluateSettings(
        model_path=str(run), dataset=str(pool), output_dir=str(tmp_path), name="e", threads=1
    )
    evaluation.evaluate(told)
    assert "1 of 5 images were learned from without their labels" in capsys.readouterr().out


def test_a_pool_of_test_pictures_alone_is_refused_and_nothing_is_written(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--semi", "fixmatch", "--unlabeled_path", synthetic_folder / "test")
    assert _run(synthetic_folder, tmp_path / "out", "x", *words) == 2
    assert "all 2 pictures in" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert _run(synthetic_folder, tmp_path / "out", "x", *words[:3], empty) == 2
    odd = ("--semi", "fixmatch", "--unlabeled_path", synthetic_folder, "--unlabeled_batch", 3)
    assert _run(synthetic_folder, tmp_path / "out", "x", *odd) == 2
    assert not (tmp_path / "out").exists()


def test_the_better_training_is_kept_and_labels_alone_where_they_are_as_good() -> None:
    assert auto.better({"labels": 0.5, "unimatch": 0.51}) == "unimatch"
    assert auto.better({"labels": 0.5, "unimatch": 0.5}) == "labels"
    assert auto.better({"labels": 0.5, "unimatch": 0.4}) == "labels"


def test_auto_trains_both_keeps_the_better_and_says_so(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--semi", "auto", "--unlabeled_path", synthetic_folder, "--semi_warmup", 0.2)
    assert _run(synthetic_folder, tmp_path, "both", *words) == 0
    root = tmp_path / "finetune" / "both"
    choice = json.loads((root / "semi_choice.json").read_text())
    arms = {name: json.loads((root / name / "status.json").read_text()) for name in choice["miou"]}
    assert {name: arm["best_miou"] for name, arm in arms.items()} == choice["miou"]
    kept = checkpoint.load(root / "best.ckpt")
    own = checkpoint.load(root / choice["kept"] / "best.ckpt")
    assert all(torch.equal(value, own["state"][key]) for key, value in kept["state"].items())
    first = [_rows(root / name / "steps.csv")[0]["loss"] for name in arms]
    assert first[0] == first[1]
    assert "kept" in capsys.readouterr().out
    assert "One seed" in (root / "report.html").read_text(encoding="utf-8")
    # A part that is finished is not trained again.
    (root / "unimatch" / "status.json").unlink()
    times = (root / "labels" / "best.ckpt").stat().st_mtime_ns
    assert _run(synthetic_folder, tmp_path, "both", *words, "--resume") == 0
    assert (root / "labels" / "best.ckpt").stat().st_mtime_ns == times
    assert _run(synthetic_folder, tmp_path, "both", *words, "--resume", "--lr", 0.1) == 2


# Ends itself by SIGKILL where the report of a number is about to be written, half of it there. A
# training that was called done before its report was there never got one.
_KILLED = """
import os, signal, sys
from matssl import report

write, left = report.write, [int(sys.argv.pop(1))]

def dying(path, *rest):
    left[0] -= 1
    if not left[0]:
        path.with_name(f".{path.name}.half").write_text("<html>")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, *rest)

report.write = dying
import train_finetune
train_finetune.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_auto_that_is_killed_while_a_report_is_drawn_goes_on_to_the_same_bits(
    synthetic_folder: Path, tmp_path: Path
) -> None:
    """Killed at the report of labels alone, then at that of both."""
    words = ("--semi", "auto", "--unlabeled_path", synthetic_folder, "--semi_warmup", 0.2)
    assert _run(synthetic_folder, tmp_path / "a", "both", *words) == 0
    out = tmp_path / "b"
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", out, "--name", "both", *FLAGS]
    for report, more in ((1, ()), (3, ("--resume",))):
        told = [sys.executable, "-c", _KILLED, report, *argv, *words, *more]
        paths = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [str(word) for word in told], cwd=ROOT, env=paths, capture_output=True, timeout=300
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
        assert json.loads((out / "finetune/both/status.json").read_text())["state"] == "running"
    assert _run(synthetic_folder, out, "both", *words, "--resume") == 0
    whole, broken = (tmp_path / part / "finetune" / "both" for part in "ab")
    files = [
        sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        for root in (whole, broken)
    ]
    # A checkpoint more may be kept behind the last one; nothing half written is left.
    same = [[f for f in found if "prev" not in f] for found in files]
    assert same[0] == same[1]
    for name in ("semi_choice.json", "labels/log.csv", "unimatch/log.csv", "unimatch/semi.csv"):
        assert (whole / name).read_text() == (broken / name).read_text()
    for name in ("best.ckpt", "labels/last.ckpt", "unimatch/last.ckpt", "unimatch/best.ckpt"):
        one, two = (checkpoint.load(root / name)["state"] for root in (whole, broken))
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.slow
def test_two_processes_learn_without_labels_as_one(
    synthetic_folder: Path, pool_folder: Path, tmp_path: Path
) -> None:
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path, *FLAGS]
    # Dice over half a batch is another number.
    argv += ["--loss", "ce", "--semi", "fixmatch", "--unlabeled_path", pool_folder]
    argv += ["--unlabeled_batch", 4, "--semi_warmup", 0.2, "--steps", 4]
    argv += ["--common_threshold", 0.6, "--guard", 0]
    alone("train_finetune", *argv, "--name", "alone")
    pair(tmp_path / "logs", "train_finetune", *argv, "--name", "pair")
    check_equal(*(tmp_path / "finetune" / name for name in ("alone", "pair")))


@pytest.mark.slow
def test_pictures_without_labels_help_where_one_picture_is_not_enough(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    synthetic.write_dataset(folder, "two_phase", n_train=6, n_val=3, n_test=0, size=128, seed=3)
    words = ("--max_train_images", 1, "--steps", 60, "--val_every", 10, "--batch_size", 4)
    semi = ("--semi", "fixmatch", "--unlabeled_path", folder, "--semi_warmup", 0.3)
    scores = []
    for name, more in (("plain", ()), ("semi", semi)):
        assert _run(folder, tmp_path, name, *words, *more) == 0
        status = json.loads((tmp_path / "finetune" / name / "status.json").read_text())
        scores.append(status["best_miou"])
    assert scores[1] >= scores[0] - 0.02


def test_a_single_validation_is_drawn_as_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A course of one validation was two dots on two empty axes."""
    from matssl import pictures
    from matssl.pictures import semi

    seen: list[Any] = []
    monkeypatch.setattr(pictures, "blank", lambda path: False)
    monkeypatch.setattr(pictures, "save", lambda figure, path: seen.append(figure))
    table, names = tmp_path / "semi.csv", ("matrix", "pore")
    heading = "step,state,accepted,said matrix,said pore,labelled matrix,labelled pore\n"
    waiting, one = "10,warm-up,,,,0.9,0.1\n", "20,on,0.75,0.8,0.2,0.9,0.1\n"
    table.write_text(heading + waiting + one)
    semi.believed(table, names, tmp_path / "x.png")
    table.write_text(heading + one + one.replace("20", "30"))
    semi.believed(table, names, tmp_path / "x.png")
    left, right = seen[0].axes
    assert [bar.get_height() for bar in left.patches] == [75, 25]
    assert [bar.get_height() for bar in right.patches] == [80, 20, 90, 10]
    assert "step 20" in left.get_title(loc="left")
    assert not seen[1].axes[0].patches and len(seen[1].axes[0].lines[0].get_xdata()) == 2
