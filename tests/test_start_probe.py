"""Starts compared before a fine-tuning: the cross-validated probe, the warning, "auto"."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import train_finetune
from matssl import hub, weights
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.data import readers
from matssl.data.crops import Labelled
from matssl.data.layouts import Pair
from matssl.models.encoders import build_encoder
from matssl.probe import MARGIN, CrossProbe
from matssl.stages.finetune import cross, start_candidates, start_probe
from matssl.stages.finetune.settings import resolve

pytestmark = pytest.mark.usefixtures("no_drawing")

ENCODER = "tu-test_resnet"
CPU = torch.device("cpu")


# --- the probe ---
def _images(count: int, side: int = 96, group: str = "") -> Labelled:
    """Images of which stripes of two classes cross a field of grains; noise tells them apart."""
    planes, masks, pairs = [], [], []
    for number in range(count):
        generator = np.random.default_rng(number)
        mask = (np.add.outer(np.arange(side), np.arange(side)) // 24 % 2).astype(np.uint8)
        noise = generator.normal(0, 1, (side, side)) * np.where(mask, 0.3, 0.05)
        planes.append((0.5 + noise).astype(np.float32))
        masks.append(mask)
        name = Path(f"{number}.png")
        pairs.append(Pair(name, name, group or str(number), "train"))
    facts = ((8, None),) * count
    return Labelled(tuple(planes), tuple(masks), tuple(pairs), facts)


def _tensor(plane: Any) -> Any:
    return ((plane[None] - 0.5) / 0.2).astype(np.float32)


def _encoder(seed: int, name: str = ENCODER) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(name, 1).eval()


def test_blocks_of_one_image_do_not_overlap_and_keep_a_gap() -> None:
    data = _images(1, 512)
    # The plane is its own address, so that the windows tell where they were cut.
    address = np.arange(512 * 512, dtype=np.float64).reshape(512, 512)
    data = Labelled((address,), data.masks, data.pairs, data.facts)  # type: ignore[arg-type]
    probe = CrossProbe(data, 2, lambda plane: plane[None], 0, 32)
    assert probe.unit == "blocks of the image" and len(probe.blocks) >= 16
    assert {block.fold for block in probe.blocks} == {0, 1, 2, 3}
    places = []
    for block in probe.blocks:
        w = block.window
        places.append([(int(a) // 512, int(a) % 512) for a in w.image[0, w.y, w.x]])
    for one, first in zip(probe.blocks, places, strict=True):
        for other, second in zip(probe.blocks, places, strict=True):
            if one.fold == other.fold:
                continue
            a, b = np.array(first), np.array(second)
            gap = np.abs(a[:, None] - b[None]).max(axis=2).min()
            assert gap > 2 * MARGIN - 2


def test_specimens_are_held_out_whole_and_images_where_all_are_of_one() -> None:
    several = CrossProbe(_images(6), 2, _tensor, 0, 32)
    assert several.unit == "specimens" and len({b.unit for b in several.blocks}) == 6
    own = {block.unit: set() for block in several.blocks}  # type: dict[str, set[int]]
    for block in several.blocks:
        own[block.unit].add(block.fold)
    assert all(len(folds) == 1 for folds in own.values())
    one = CrossProbe(_images(6, group="a"), 2, _tensor, 0, 32)
    assert one.unit == "images" and len({b.unit for b in one.blocks}) == 6
    # Of two or three nothing is known of the spread between them: it is that of their blocks.
    few = CrossProbe(_images(3), 2, _tensor, 0, 32)
    assert few.unit == "blocks of 3 specimens" and len({b.fold for b in few.blocks}) == 3


def test_classes_that_one_part_alone_shows_are_not_scored() -> None:
    data = _images(1, 512)
    mask = data.masks[0].copy()
    mask[4:60, 4:60] = 2
    data = Labelled(data.planes, (mask,), data.pairs, data.facts)
    probe = CrossProbe(data, 3, _tensor, 0, 32)
    assert probe.classes == [0, 1]
    counts = probe.counts(_encoder(0), CPU, contextlib.nullcontext)
    total = counts.sum(axis=0)
    iou = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in (0, 1)]
    assert probe.score(counts) == pytest.approx(np.mean(iou))


def test_too_few_labels_are_said() -> None:
    data = _images(1)
    flat = Labelled(data.planes, (data.masks[0] * 0,), data.pairs, data.facts)
    with pytest.raises(UserError, match="fewer than two classes"):
        CrossProbe(flat, 2, _tensor, 0, 32)


def test_the_gain_is_a_paired_jackknife() -> None:
    probe = CrossProbe(_images(6), 2, _tensor, 0, 32)
    generator = np.random.default_rng(0)
    first = generator.integers(1, 50, (6, 2, 2))
    second = first + np.array([[10, 0], [0, 10]]) + generator.integers(0, 6, (6, 2, 2))

    def miou(counts: Any) -> float:
        c = counts.sum(axis=0)
        return float(np.mean([c[k, k] / (c[k].sum() + c[:, k].sum() - c[k, k]) for k in (0, 1)]))

    value = miou(second) - miou(first)
    rest = [[n for n in range(6) if n != left] for left in range(6)]
    without = np.array([miou(second[r]) - miou(first[r]) for r in rest])
    half = 2.5706 * np.sqrt(5 / 6 * np.sum((without - without.mean()) ** 2))
    found = probe.gain(first, second)
    assert (found.low, found.high) == pytest.approx((value - half, value + half), abs=1e-4)
    same = probe.gain(first, first)
    assert np.isnan(same.low)


def test_the_probe_says_the_same_twice_and_draws_nothing() -> None:
    data = _images(1, 256)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    encoder = start_probe._fresh(ENCODER, 1, 3, CPU).eval()
    counts = [
        CrossProbe(data, 2, _tensor, 0, 32).counts(encoder, CPU, contextlib.nullcontext)
        for _ in range(2)
    ]
    assert np.array_equal(*counts)
    assert torch.equal(before, torch.random.get_rng_state())
    again = _encoder(3).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in encoder.state_dict().items())


# --- in a run ---
def _file(path: Path, encoder: torch.nn.Module, *links: dict[str, object]) -> Path:
    """Write an encoder as train_ssl.py does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"encoder.{k}": v.contiguous() for k, v in encoder.state_dict().items()}
    own = {"stage": "ssl", "method": "simclr", "encoder": ENCODER, "steps": 7}
    lineage = json.dumps([*links, own])
    save_file(state, path, {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": lineage})
    return path


def _blind() -> torch.nn.Module:
    """An encoder that sees nothing."""
    encoder = _encoder(0)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    return encoder


def _argv(data: Path, out: Path, name: str, *flags: object) -> list[str]:
    argv = ["--finetune_dataset", data, "--output_dir", out, "--name", name, "--steps", 2]
    argv += ["--crop_size", 32, "--batch_size", 2, "--val_every", 2, "--threads", 1]
    argv += ["--precision", "fp32", "--decoder_filters", 16, 8, 8, 8, 8]
    return [str(word) for word in (*argv, *flags)]


def _tune(data: Path, out: Path, name: str, *flags: object) -> int:
    return guard(train_finetune.main, _argv(data, out, name, *flags))


def _table(run: Path) -> list[dict[str, str]]:
    with open(run / "start_probe.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _losses(run: Path) -> list[str]:
    with open(run / "steps.csv", encoding="utf-8", newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def _written(folder: Path) -> Path:
    """Write four images whose two classes any network that sees tells apart."""
    data = _images(4)
    for place in ("train", "train_annot"):
        (folder / place).mkdir(parents=True)
    for number, (plane, mask) in enumerate(zip(data.planes, data.masks, strict=True)):
        grey = np.clip(255 * plane, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "train" / f"{number}.png"), grey)
        cv2.imwrite(str(folder / "train_annot" / f"{number}.png"), mask)
    return folder


def test_a_start_that_hurts_is_said_everywhere_and_changes_no_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = _written(tmp_path / "grains")
    bad = _file(tmp_path / "bad.safetensors", _blind())
    words = ["--ssl_weights_path", bad, "--encoder", ENCODER]
    assert _tune(labels, tmp_path, "looked", *words) == 0
    said = capsys.readouterr().out
    (warned,) = [line for line in said.splitlines() if line.startswith("warning")]
    assert "worse than random weights" in warned and "Leave the weights out" in warned
    run = tmp_path / "finetune" / "looked"
    rows = _table(run)
    assert [row["start"] for row in rows] == [str(bad), "none"]
    assert [row["reference"] for row in rows] == ["True", "False"]
    assert float(rows[1]["low"]) > 0 and rows[1]["draws"] == "3"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "done" and "worse than random weights" in status["start"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("the given start is worse than random weights") >= 2
    # Never: nothing is said, and the training is the same to the last bit.
    assert _tune(labels, tmp_path, "blind", *words, "--check_start", "none") == 0
    other = tmp_path / "finetune" / "blind"
    assert "warning" not in capsys.readouterr().out
    assert not (other / "start_probe.csv").exists()
    assert "start" not in json.loads((other / "status.json").read_text())
    assert _losses(run) == _losses(other)
    one, two = (checkpoint.load(r / "last.ckpt")["state"] for r in (run, other))
    assert all(torch.equal(one[key], two[key]) for key in one)
    # Where only the result is printed, the warning is.
    assert _tune(labels, tmp_path, "quiet", *words, "--quiet") == 0
    assert capsys.readouterr().out.startswith("warning")


def test_random_weights_alone_are_held_against_nothing(
    synthetic_folder: Path, tmp_path: Path
) -> None:
    assert _tune(synthetic_folder, tmp_path, "x", "--encoder", ENCODER) == 0
    assert not (tmp_path / "finetune" / "x" / "start_probe.csv").exists()


def test_auto_takes_the_best_as_if_it_had_been_given(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ssl = tmp_path / "ssl"
    for seed in range(20, 23):
        _file(ssl / f"run{seed}" / "encoder.safetensors", _encoder(seed))
    _file(ssl / "blind" / "encoder.safetensors", _blind())
    (ssl / "torn").mkdir()
    (ssl / "torn" / "encoder.safetensors").write_bytes(b"\x08")
    words = ["--encoder", ENCODER, "--seed", 1]
    assert _tune(synthetic_folder, tmp_path, "auto", *words, "--ssl_weights_path", "auto") == 0
    said = capsys.readouterr().out
    assert "torn" in said and "left out: " in said
    run = tmp_path / "finetune" / "auto"
    rows = _table(run)
    assert len(rows) == 5 and not any("torn" in row["start"] for row in rows)
    best = max(rows, key=lambda row: float(row["miou"]))
    assert best["reference"] == "True" and "blind" not in best["start"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    plain = best["start"] == "none"
    assert config["ssl_weights_path"] == (None if plain else best["start"])
    given = [] if plain else ["--ssl_weights_path", best["start"]]
    assert _tune(synthetic_folder, tmp_path, "given", *words, *given) == 0
    other = tmp_path / "finetune" / "given"
    assert _losses(run) == _losses(other)
    one, two = (checkpoint.load(r / "best.ckpt")["lineage"] for r in (run, other))
    assert one == two
    # A run goes on with what it took, whatever lies there now.
    newer = _file(ssl / "newer" / "encoder.safetensors", _encoder(30))
    resumed = ["--ssl_weights_path", "auto", "--resume"]
    assert _tune(synthetic_folder, tmp_path, "auto", *words, *resumed) == 0
    assert str(newer) not in (run / "config.yaml").read_text()
    assert yaml.safe_load((run / "config.yaml").read_text()) == config
    status = json.loads((run / "status.json").read_text())
    assert "the best of 5 starts at hand" in status["start"]


def test_auto_takes_the_encoder_of_the_best_where_none_is_named(
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(weights, "imagenet_at_hand", lambda _: None)
    monkeypatch.setattr(hub, "weights_registry", dict)
    monkeypatch.setattr(start_candidates, "DEFAULT_ENCODER", "tu-test_efficientnet")
    blind = build_encoder("tu-test_efficientnet", 1)
    for parameter in blind.parameters():
        parameter.data.zero_()
    monkeypatch.setattr(start_probe, "_fresh", _blind_but_for(blind))
    path = _file(tmp_path / "ssl" / "run" / "encoder.safetensors", _encoder(20))
    assert _tune(synthetic_folder, tmp_path, "x", "--ssl_weights_path", "auto") == 0
    config = yaml.safe_load((tmp_path / "finetune" / "x" / "config.yaml").read_text())
    assert (config["encoder"], config["decoder"]) == (ENCODER, "unet")
    assert config["ssl_weights_path"] == str(path)
    # Random weights are of another encoder than the one taken, which is said.
    assert "random weights of tu-test_efficientnet (mean of" in capsys.readouterr().out


def _blind_but_for(blind: torch.nn.Module) -> Any:
    def fresh(name: str, channels: int, seed: int, _: torch.device) -> torch.nn.Module:
        return _encoder(seed) if name == ENCODER else blind

    return fresh


def test_nothing_at_hand_is_random_and_said(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", ENCODER, "--ssl_weights_path", "auto"]
    assert _tune(synthetic_folder, tmp_path, "x", *words) == 0
    said = capsys.readouterr().out
    assert "random weights: no pretraining run and no weights at hand fit" in said
    assert _tune(synthetic_folder, tmp_path, "y", "--encoder", ENCODER) == 0
    runs = tmp_path / "finetune"
    assert _losses(runs / "x") == _losses(runs / "y")


def test_a_file_called_auto_is_asked_for(
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _file(tmp_path / "auto", _encoder(3))
    assert _tune(synthetic_folder, tmp_path, "x", "--ssl_weights_path", "auto") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "say ./auto" in said
    assert not (tmp_path / "finetune").exists()
    words = ["--ssl_weights_path", "./auto", "--check_start", "none"]
    assert _tune(synthetic_folder, tmp_path, "x", *words) == 0


def test_auto_is_no_whole_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--finetune_dataset", "x", "--ssl_weights_path", "auto", "--whole_model"]
    with pytest.raises(UserError, match="--whole_model needs the file"):
        resolve(words)


def test_weights_that_learned_from_these_masks_are_not_probed_on_them(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _tune(synthetic_folder, tmp_path, "first", "--encoder", ENCODER) == 0
    best = tmp_path / "finetune" / "first" / "best.ckpt"
    capsys.readouterr()
    assert _tune(synthetic_folder, tmp_path, "second", "--ssl_weights_path", best) == 0
    said = capsys.readouterr().out
    assert "not compared with others: it has learned from the masks of 4 of these 4 images" in said
    digests = checkpoint.load(best)["progress"]["train_digests"]
    guided: dict[str, object] = {"method": "pscl", "labelled_digests": digests[:1]}
    judged: dict[str, object] = {"method": "simclr", "labelled_digests": digests}
    ssl = tmp_path / "ssl"
    val = sorted((synthetic_folder / "val").iterdir())[0]
    spoilt = {**guided, "labelled_digests": [readers.digest(readers.read(val).pixels)]}
    _file(ssl / "guided" / "encoder.safetensors", _encoder(3), guided)
    _file(ssl / "spoilt" / "encoder.safetensors", _encoder(5), spoilt)
    _file(ssl / "judged" / "encoder.safetensors", _encoder(4), judged)
    words = ["--encoder", ENCODER, "--ssl_weights_path", "auto"]
    assert _tune(synthetic_folder, tmp_path, "third", *words) == 0
    said = capsys.readouterr().out
    assert "guided/encoder.safetensors: it has learned from the masks of 1 of these" in said
    starts = [row["start"] for row in _table(tmp_path / "finetune" / "third")]
    assert any("judged" in start for start in starts)
    assert not any("guided" in start or "spoilt" in start for start in starts)


def test_each_fold_chooses_without_the_images_that_it_holds_out(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = start_probe.compared

    def noted(settings: Any, rt: Any, inputs: Any) -> Any:
        found = real(settings, rt, inputs)
        seen.append({pair.image.name for pair in inputs.train.pairs})
        return found

    monkeypatch.setattr(start_probe, "compared", noted)
    _file(tmp_path / "ssl" / "run" / "encoder.safetensors", _encoder(20))
    argv = _argv(synthetic_folder, tmp_path, "x", "--encoder", ENCODER, "--folds", 2)
    cross.cross_validate(resolve([*argv, "--ssl_weights_path", "auto"]), [], lambda *a, **k: None)
    root = tmp_path / "finetune" / "x"
    assert len(seen) == 2 and not seen[0] & seen[1]
    tables = [_table(root / f"fold_{number}") for number in (1, 2)]
    assert [len(rows) for rows in tables] == [2, 2]
    # Given weights are looked at once.
    argv[argv.index("x")] = "y"
    path = str(tmp_path / "ssl" / "run" / "encoder.safetensors")
    cross.cross_validate(resolve([*argv, "--ssl_weights_path", path]), [], lambda *a, **k: None)
    root = tmp_path / "finetune" / "y"
    assert (root / "fold_1" / "start_probe.csv").is_file()
    assert not (root / "fold_2" / "start_probe.csv").exists()


def test_imagenet_weights_of_the_encoder_are_compared_where_they_lie_here(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _file(tmp_path / "hub" / "net.safetensors", _encoder(9))
    entry = hub.Weights("imagenet-test", "net.safetensors", "here", architecture=ENCODER)
    other = hub.Weights("imagenet-other", "absent.pth", "here", architecture=ENCODER)
    monkeypatch.setattr(hub, "MODEL_HUB", file.parent)
    monkeypatch.setattr(hub, "weights_registry", lambda: {e.name: e for e in (entry, other)})
    bad = _file(tmp_path / "bad.safetensors", _blind())
    words = ["--encoder", ENCODER, "--ssl_weights_path", bad]
    assert _tune(synthetic_folder, tmp_path, "x", *words) == 0
    starts = [row["start"] for row in _table(tmp_path / "finetune" / "x")]
    assert starts == [str(bad), "none", "imagenet-test"]
    # Given itself, it is not held against itself, whatever it is called.
    words[-1] = file
    assert _tune(synthetic_folder, tmp_path, "y", *words) == 0
    starts = [row["start"] for row in _table(tmp_path / "finetune" / "y")]
    assert starts == [str(file), "none"]


def test_imagenet_weights_that_are_asked_for_are_one_start_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``auto --weights imagenet`` took no notice of the second where they had not been fetched."""
    monkeypatch.setattr(hub, "weights_registry", dict)
    monkeypatch.setattr(weights, "imagenet_at_hand", lambda _: None)
    real, there = start_probe.lineage.start_weights, [True]

    def start(model: torch.nn.Module, source: str, *rest: Any) -> Any:
        if source == "imagenet" and not there[0]:
            raise UserError("they cannot be fetched here")
        return real(model, "none" if source == "imagenet" else source, *rest)

    monkeypatch.setattr(start_probe.lineage, "start_weights", start)
    data = _written(tmp_path / "data")
    words = ["--encoder", ENCODER, "--ssl_weights_path", "auto", "--weights"]
    assert _tune(data, tmp_path, "x", *words, "imagenet") == 0
    starts = [row["start"] for row in _table(tmp_path / "finetune" / "x")]
    assert starts == ["none", "imagenet"]
    # Where they cannot be had that is said, and none is compared that nobody asked for.
    there[0] = False
    for name, more, told in (("y", "imagenet", True), ("z", "none", False)):
        capsys.readouterr()
        assert _tune(data, tmp_path, name, *words, more) == 0
        assert ("left out: they cannot be fetched here" in capsys.readouterr().out) == told
