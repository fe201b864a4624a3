"""What gets more out of few labels: copy-paste, rates by layer, dropout, averages, ensembles."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import train_finetune
from matssl import Segmenter, pictures
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.core.labels import IGNORE
from matssl.data import pasting, synthetic
from matssl.data.crops import CropAugmentation, CropLoader, Labelled
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess
from matssl.models import losses
from matssl.models.segmentation import build_model
from matssl.stages.finetune import averaging, loop, settings
from matssl.stages.finetune.averaging import Averaging, Kept
from matssl.stages.finetune.learner import Learner
from matssl.stages.finetune.objective import Objective, Schedule

STEADY = ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
PLAN = ["--encoder", "tu-test_resnet", "--decoder", "unet", "--crop_size", "32"]
PLAN += ["--batch_size", "2", "--val_every", "2", "--lr", "0.01", "--checkpoint_every", "2"]


def _labelled(*masks: np.ndarray, planes: tuple[np.ndarray, ...] = ()) -> Labelled:
    drawn = planes or tuple(
        np.random.default_rng(i).random(mask.shape).astype(np.float32)
        for i, mask in enumerate(masks)
    )
    pairs = tuple(Pair(Path(f"{i}.png"), None, str(i), "train") for i in range(len(masks)))
    return Labelled(drawn, masks, pairs, tuple((8, None) for _ in masks))


# --- copy-paste ---
def _cracked() -> tuple[np.ndarray, np.ndarray]:
    """A picture of half epoxy (0, level 0.2), half oxide (1, level 0.6) with a crack (2, 0.3)."""
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 1
    mask[60:63, 80:110] = 2
    noise = np.random.default_rng(0).normal(0, 0.01, mask.shape)
    plane = np.array([0.2, 0.6, 0.3])[mask] + noise
    return plane.astype(np.float32), mask


def test_rare_classes_are_those_below_their_even_share() -> None:
    mask = np.repeat(np.array([0, 1, 2, IGNORE], np.uint8), [70, 25, 5, 900])[None]
    kinds, chances = pasting.rare([mask], 4)
    assert kinds.tolist() == [1, 2]
    # By the inverse root of their shares, 25 to 5.
    assert chances[1] / chances[0] == pytest.approx(5**0.5)
    assert chances.sum() == pytest.approx(1)
    assert len(pasting.rare([np.array([[0, 1]], np.uint8)], 2)[0]) == 0


def test_a_region_is_the_connected_part_with_the_class_about_it() -> None:
    plane, mask = _cracked()
    mask[100:103, 80:110] = 2
    found = pasting.region(plane, mask, (61, 95), 40)
    assert found is not None and (found.kind, found.host) == (2, 1)
    # The other crack and the epoxy are no part of it.
    assert np.count_nonzero(found.shape) == 3 * 30
    about = found.plane[found.about]
    assert about.min() > 0.5 and len(about) == (3 + 16) * (30 + 16) - 90
    # Of a line that reaches out of the circle a stretch is taken, of a wide phase no piece.
    small = pasting.region(plane, mask, (61, 95), 5)
    assert small is not None and 0 < np.count_nonzero(small.shape) <= 33
    assert pasting.region(plane, mask, (30, 66), 20) is None
    mask[20:50, 80:110] = 2
    wide = pasting.region(plane, mask, (30, 90), 40)
    assert wide is not None and np.count_nonzero(wide.shape) == 900
    alone = np.zeros((40, 40), np.uint8)
    assert pasting.region(np.zeros((40, 40), np.float32), alone, (20, 20), 8) is None


def test_a_crack_is_pasted_into_oxide_alone_with_its_contrast() -> None:
    plane, mask = _cracked()
    found = pasting.region(plane, mask, (61, 95), 40)
    assert found is not None
    # A darker picture of half the contrast, half of it not labelled.
    crop_mask = np.where(np.arange(96)[None] < 48, 1, IGNORE).astype(np.uint8).repeat(96, 0)
    crop_mask[:, :10] = 0
    noise = np.random.default_rng(1).normal(0, 0.01, crop_mask.shape)
    crop = (0.4 + noise).astype(np.float32)
    before, pasted = crop_mask.copy(), 0
    for draw in range(20):
        image, labels = crop.copy(), crop_mask.copy()
        if not pasting.paste(image, labels, found, np.random.default_rng(draw)):
            continue
        pasted += 1
        changed = labels != before
        assert changed.any() and (labels[changed] == 2).all() and (before[changed] == 1).all()
        assert np.array_equal(image[before != 1], crop[before != 1])
        # The crack was 0.3 below its oxide, and is so here.
        assert float(image[changed].mean()) == pytest.approx(0.4 - 0.3, abs=0.05)
    assert pasted > 10
    none = np.zeros((32, 32), np.uint8)
    assert not pasting.paste(np.zeros((32, 32), np.float32), none, found, np.random.default_rng(0))


def test_crops_with_pasted_regions_are_a_function_of_seed_and_step() -> None:
    plane, mask = _cracked()
    data = _labelled(mask, mask.copy(), planes=(plane, plane[::-1].copy()))
    how = CropAugmentation(size=64, rare_p=0.0, d4="none", paste_p=1.0)
    one = CropLoader(data, Preprocess(), 3, how, 4, seed=0)
    threads = CropLoader(data, Preprocess(), 3, how, 4, seed=0, threads=3)
    parts = [CropLoader(data, Preprocess(), 3, how, 4, 0, 0, rank, 2) for rank in (0, 1)]
    plain = CropLoader(data, Preprocess(), 3, CropAugmentation(64, 0.0, "none"), 4, seed=0)
    cracks = [0, 0]
    for step, (images, masks) in enumerate(threads.batches(0, 6)):
        assert torch.equal(images, one.batch(step)[0]) and torch.equal(masks, one.batch(step)[1])
        halves = torch.cat([part.batch(step)[1] for part in parts])
        assert torch.equal(halves, masks)
        # The crops are cut where they are without it.
        others = plain.batch(step)[1]
        assert torch.equal(others == 0, (masks == 0) & (others == 0))
        cracks[0] += int((others == 2).sum())
        cracks[1] += int((masks == 2).sum())
    assert cracks[1] > 1.5 * cracks[0]
    # The labelled pictures themselves stay as they were.
    assert np.array_equal(data.masks[0], mask) and np.array_equal(data.planes[0], _cracked()[0])


def test_colour_pictures_are_pasted_channel_by_channel() -> None:
    plane, mask = _cracked()
    colour = np.stack([plane, plane * 0.5, 1 - plane], axis=2)
    loader = CropLoader(
        _labelled(mask, planes=(colour,)),
        Preprocess(color="rgb", channels=3),
        3,
        CropAugmentation(size=64, paste_p=1.0),
        2,
        seed=0,
    )
    images, masks = loader.batch(0)
    assert images.shape == (2, 3, 64, 64) and bool(torch.isfinite(images).all())
    assert bool((masks == 2).any())


# --- rates by layer, dropout, smoothing ---
@pytest.mark.parametrize(
    ("encoder", "decoder", "deepest", "first", "blocks"),
    [
        ("resnet18", "unet", "layer4.1.conv2.weight", "conv1.weight", 4),
        ("tu-tf_efficientnet_lite0", "unet", "model.conv_head.weight", "model.conv_stem.weight", 7),
        ("dinov2-vit-s14", "dpt", "model.blocks.11.mlp.fc2.weight", "model.cls_token", 12),
    ],
)
def test_rates_fall_block_by_block_towards_the_image(
    encoder: str, decoder: str, deepest: str, first: str, blocks: int
) -> None:
    with torch.device("meta"):
        model = build_model(encoder, decoder, 2, 3)
    plan = Schedule(total_steps=1, lr=1.0, layer_decay=0.5, encoder_lr_factor=0.8)
    rates: dict[int, float] = {}
    for group in plan.optimizer(model).param_groups:
        rates |= {id(parameter): group["factor"] for parameter in group["params"]}
    named = dict(model.named_parameters())

    def rate(name: str) -> float:
        return rates[id(named[name])]

    names = [name for name in named if name.startswith("encoder.")]
    last = next(n for n in reversed(names) if n.endswith(deepest) or rate(n) == 0.4)
    assert rate(last) == pytest.approx(0.8 * 0.5)
    assert rate(f"encoder.{first}") == pytest.approx(0.8 * 0.5**blocks)
    assert {rate(n) for n in named if not n.startswith("encoder.")} == {1.0}
    assert len({rate(n) for n in names}) == blocks


def test_without_decay_the_groups_are_those_of_before() -> None:
    model = build_model("resnet18", "unet", 2)
    groups = Schedule(1, 1.0, encoder_lr_factor=0.1).optimizer(model).param_groups
    assert [group["factor"] for group in groups] == [0.1, 0.1, 1.0, 1.0]


def _learner(**objective: Any) -> Learner:
    mask = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8)
    torch.manual_seed(0)
    return Learner(
        build_model("tu-test_resnet", "unet", 2),
        _labelled(mask),
        Preprocess(),
        settings.resolve(["--finetune_dataset", "x", *STEADY]).runtime(),
        objective=Objective("dice_ce", **objective),
        schedule=Schedule(10, 0.01),
        crops=CropAugmentation(32),
        batch_size=2,
        seed=0,
    )


def test_dropout_acts_in_training_alone_and_leaves_the_weights_names() -> None:
    plain, dropped = _learner(), _learner(dropout=0.5)
    assert list(plain.model.state_dict()) == list(dropped.model.state_dict())
    plane = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    for learner in (plain, dropped):
        learner.model.eval()
    assert np.array_equal(plain.probabilities(plane), dropped.probabilities(plane))
    images, masks = plain.loader.batch(0)
    values = [learner.learn(0, 0.01, images, masks) for learner in (plain, dropped)]
    assert values[0] != values[1]
    # The same step again: what is left out follows from seed and step.
    again = _learner(dropout=0.5)
    assert again.learn(0, 0.01, images, masks) == values[1]


def test_smoothed_labels_are_spread_over_all_classes() -> None:
    logits = torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1)
    target = torch.zeros(1, 1, 1, dtype=torch.long)
    logs = torch.log_softmax(logits, 1).flatten()
    expected = -(0.9 * logs[0] + 0.1 * logs.mean())
    assert float(losses.cross_entropy(logits, target, None, 0.1)) == pytest.approx(float(expected))
    smooth = Objective("dice_ce", options={"smoothing": 0.1}).function()(logits, target, None)
    assert float(smooth) == pytest.approx(float(losses.dice(logits, target) + expected))


# --- averaged checkpoints ---
def _state(value: float) -> dict[str, Tensor]:
    return {
        "w": torch.tensor([value]),
        "n": torch.tensor(round(10 * value) if value == value else 0),
    }


def test_the_best_validations_are_held_and_survive_a_checkpoint() -> None:
    held = Averaging(2)
    for step, value in enumerate((0.3, 0.5, float("nan"), 0.4, 0.5, 0.2)):
        held.add(step, value, _state(value))
    assert [(kept.step, kept.value) for kept in held.held] == [(1, 0.5), (4, 0.5)]
    again = Averaging(2)
    again.restore({"state": held.state(), "progress": json.loads(json.dumps(held.stored()))})
    assert [kept.step for kept in again.held] == [1, 4]
    assert torch.equal(again.held[1].state["w"], held.held[1].state["w"])
    assert Averaging(0).stored() == {}


def test_models_are_added_to_the_mean_where_validation_gains() -> None:
    held = [Kept(1, 0.8, _state(4.0)), Kept(2, 0.7, _state(0.0)), Kept(3, 0.6, _state(1.0))]

    # The best weight is 2.5: 4 alone is 1.5 off, 4 with 0 is 0.5 off, 4 with 1 would be right.
    def score(state: Any) -> float:
        return 0.95 - 0.1 * abs(float(state["w"]) - 2.5)

    chosen, value = averaging.soup(held, score)
    assert [kept.step for kept in chosen] == [1, 2] and value == pytest.approx(0.9)
    assert averaging.mean([kept.state for kept in chosen])["n"] == 40
    assert averaging.soup(held, lambda state: 0.0)[1] == 0.8


# --- the command ---
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few") / "steel"
    synthetic.write_dataset(root, "two_phase", n_train=2, n_val=2, n_test=1, size=64, seed=0)
    return root


def _argv(folder: Path, out: Path, *words: object) -> list[str]:
    argv = ["--finetune_dataset", folder, "--output_dir", out, "--name", "few", "--steps", 6]
    return [str(word) for word in [*argv, *PLAN, *STEADY, *words]]


def _same(first: Path, second: Path) -> bool:
    one, other = (checkpoint.load(path)["state"] for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


INGREDIENTS = ("--copy_paste", 0.7, "--layer_decay", 0.7, "--decoder_dropout", 0.2)
INGREDIENTS += ("--label_smoothing", 0.1, "--average_checkpoints", 2, "--scale_jitter", 0.69)


class _Killed(BaseException):
    pass


def test_a_run_with_all_of_it_that_is_killed_goes_on_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    whole, broken = (_argv(folder, tmp_path / n, *INGREDIENTS, "--quiet") for n in "ab")
    assert guard(train_finetune.main, whole) == 0
    learn = Learner.learn

    def stops(self: Learner, step: int, *rest: Any) -> float:
        if step == 5:
            raise _Killed
        return learn(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", stops)
        with pytest.raises(_Killed):
            train_finetune.main(broken)
    assert guard(train_finetune.main, [*broken, "--resume"]) == 0
    one, other = (tmp_path / n / "finetune" / "few" for n in "ab")
    for name in ("best.ckpt", "last.ckpt"):
        assert _same(one / name, other / name)
    for name in ("averaged.json", "log.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    held = json.loads((one / "averaged.json").read_text())
    assert len(held["held"]) == 2 and held["value"] >= held["held"][0]["value"]
    # What is kept scores what is said.
    best = checkpoint.load(one / "best.ckpt")
    status = json.loads((one / "status.json").read_text())
    assert status["best_miou"] == pytest.approx(best["progress"]["best"])
    assert best["progress"]["top"] == held["value"]
    assert Segmenter.load(one / "last.ckpt", device="cpu").table.num_classes == 3
    # Another share is another plan.
    assert guard(train_finetune.main, [*broken, "--resume", "--copy_paste", "0.6"]) == 2


def test_averages_without_validation_are_said_to_be_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    root = tmp_path / "one"
    synthetic.write_dataset(root, "two_phase", n_train=1, n_val=0, n_test=0, size=64, seed=0)
    words = ("--val_fraction", 0, "--average_checkpoints", 2)
    assert guard(train_finetune.main, _argv(root, tmp_path, *words)) == 0
    assert "--average_checkpoints is without effect" in capsys.readouterr().out


@pytest.fixture(scope="module")
def seeds(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds")
    with pictures.undrawn():
        argv = _argv(folder, out, "--ensemble", 2, "--seed", 3, "--quiet")
        assert guard(train_finetune.main, argv) == 0
    return out / "finetune" / "few"


def test_seeds_are_trained_apart_and_their_probabilities_averaged(
    seeds: Path, folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    argv = _argv(folder, tmp_path, "--seed", 4, "--quiet")
    assert guard(train_finetune.main, argv) == 0
    assert _same(tmp_path / "finetune/few/best.ckpt", seeds / "seed_4" / "best.ckpt")
    assert not _same(seeds / "seed_3" / "best.ckpt", seeds / "seed_4" / "best.ckpt")
    how = {"device": "cpu", "precision": "fp32", "threads": 1}
    whole = Segmenter.load(seeds, **how)
    assert len(whole.members) == 2 and whole.source == str(seeds / "best.ckpt")
    picture = next((folder / "test").iterdir())
    each = [Segmenter.load(seeds / f"seed_{n}", **how).predict(picture) for n in (3, 4)]
    expected = np.mean([found.probabilities for found in each], axis=0)
    found = whole.predict(picture)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    with open(seeds / "seeds.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["seed_3", "seed_4", "all as one"]
    for row, name in zip(rows, ("seed_3", "seed_4"), strict=False):
        best = json.loads((seeds / name / "status.json").read_text())["best_miou"]
        assert float(row["val_miou"]) == pytest.approx(best, abs=1e-4)
    assert json.loads((seeds / "status.json").read_text())["state"] == "done"
    # A report, as every run folder has one.
    page = (seeds / "report.html").read_text(encoding="utf-8")
    assert f"{100 * float(rows[-1]['val_miou']):.1f} %" in page and "seed_3/, seed_4/" in page


def test_images_are_drawn_by_the_seed_of_the_command_for_all_models(
    tmp_path: Path, no_drawing: None
) -> None:
    root = tmp_path / "five"
    synthetic.write_dataset(root, "two_phase", n_train=5, n_val=0, n_test=0, size=64, seed=0)
    argv = _argv(root, tmp_path, "--ensemble", 2, "--max_train_images", 3, "--quiet")
    assert guard(train_finetune.main, argv) == 0
    both = [tmp_path / "finetune" / "few" / f"seed_{n}" / "data.csv" for n in (0, 1)]
    assert both[0].read_bytes() == both[1].read_bytes()


def test_an_ensemble_that_is_killed_goes_on_and_keeps_what_is_done(
    seeds: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = _argv(folder, tmp_path, "--ensemble", 2, "--seed", 3)
    mine, validate = tmp_path / "finetune" / "few", loop.Run._validate

    def stops(self: loop.Run, loss: float, *rest: Any) -> None:
        validate(self, loss, *rest)
        if self.folder.root.name == "seed_4" and self.step == 4:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_validate", stops)
        with pytest.raises(_Killed):
            train_finetune.main(argv)
    assert not (mine / "best.ckpt").exists()
    capsys.readouterr()
    assert guard(train_finetune.main, [*argv, "--resume", "--lr", "1"]) == 2
    assert "--lr was 0.01, is 1" in capsys.readouterr().err
    assert guard(train_finetune.main, [*argv, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "seed 3 of few: done before, kept" in said and "resumed at step 2" in said
    assert "as one (" in said
    assert _same(mine / "best.ckpt", seeds / "best.ckpt")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--ensemble", 2, "--folds", 2), "--folds otherwise"),
        (("--ensemble", 2, "--head", "forest"), "leave it out with --head"),
        (("--label_smoothing", 0.1, "--loss", "focal"), "not in focal"),
        (("--average_checkpoints", 1), "needs 2 or more"),
        (("--layer_decay", 0), "--layer_decay must be above 0"),
        (("--copy_paste", 1.5), "--copy_paste must be"),
    ],
)
def test_what_does_not_go_together_is_told(words: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings.resolve(["--finetune_dataset", "x", *map(str, words)])
