"""The dense probe: ridge regression by hand, what it scores, and its part in a run."""

from __future__ import annotations

import contextlib
import csv
import importlib
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.data.crops import Labelled
from matssl.data.layouts import Pair
from matssl.models.encoders import build_encoder
from matssl.probe import DenseProbe, ridge
from matssl.stages.pretrain import loop as pretrain
from matssl.tools import probe as probe_tool
from matssl.trained.encoder import Encoder

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_ridge_equals_weighted_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    target = (x[:, 0] + 0.3 * x[:, 1] > 0.8).long()
    weight, bias = ridge(x, target, 2)
    # The same by lstsq on rows scaled by the root of their weight, with the penalty as rows.
    share = torch.bincount(target).double()
    w = share.rsqrt()[target]
    w = w / w.sum()
    mean = (w[:, None] * x).sum(0)
    scale = (w[:, None] * (x - mean) ** 2).sum(0).sqrt()
    z = (x - mean) / scale
    y = torch.nn.functional.one_hot(target).double()
    y_mean = (w[:, None] * y).sum(0)
    y = y - y_mean
    rows = torch.cat([z * w.sqrt()[:, None], 0.1**0.5 * torch.eye(5, dtype=torch.float64)])
    truth = torch.cat([y * w.sqrt()[:, None], torch.zeros(5, 2, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, truth).solution
    torch.testing.assert_close(x @ weight + bias, z @ expected + y_mean)
    assert ((x @ weight + bias).argmax(1) == target).double().mean() > 0.9


def test_a_class_without_a_row_never_wins() -> None:
    weight, bias = ridge(torch.randn(20, 3), torch.arange(20) % 2, 3)
    assert bool(torch.isfinite(weight).all())
    assert set((torch.randn(50, 3) @ weight + bias).argmax(1).tolist()) <= {0, 1}


def _labelled(count: int, side: int = 96, texture: bool = True) -> Labelled:
    """Images whose right half is striped, and bright where ``texture`` is false."""
    planes, masks, pairs = [], [], []
    for number in range(count):
        noise = np.random.default_rng(number).normal(0.5, 0.02, (side, side)).astype(np.float32)
        mask = np.zeros((side, side), np.uint8)
        mask[:, side // 2 :] = 1
        stripes = 0.2 * np.sign(np.sin(np.arange(side) / 1.2)).astype(np.float32)
        planes.append(noise + mask * (stripes[:, None] if texture else 0.3))
        masks.append(mask)
        pairs.append(Pair(Path(f"{number}.png"), Path(f"{number}.png"), str(number), "train"))
    return Labelled(tuple(planes), tuple(masks), tuple(pairs), ((8, None),) * count)


def _tensor(plane: Any) -> Any:
    return ((plane[None] - 0.5) / 0.2).astype(np.float32)


@pytest.mark.parametrize("count", [1, 4])
def test_textures_are_told_apart_even_by_random_features(count: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 1).eval()
    probe = DenseProbe(_labelled(count, 544 if count == 1 else 96), None, 2, _tensor, 0, 32)
    score = probe.score(encoder, torch.device("cpu"), contextlib.nullcontext)
    assert score > 0.8
    blind = build_encoder("resnet18", 1).eval()
    for parameter in blind.parameters():
        parameter.data.zero_()
    assert probe.score(blind, torch.device("cpu"), contextlib.nullcontext) < 0.5


def test_images_that_score_do_not_fit() -> None:
    probe = DenseProbe(_labelled(6), None, 2, _tensor, 0, 32)
    fitted = {w.image.tobytes() for w in probe.fitted}
    assert probe.scored and not fitted & {w.image.tobytes() for w in probe.scored}


def test_one_class_is_refused() -> None:
    data = _labelled(3)
    flat = Labelled(data.planes, tuple(m * 0 for m in data.masks), data.pairs, data.facts)
    with pytest.raises(UserError, match="at least two classes"):
        DenseProbe(flat, None, 2, _tensor, 0, 32)


@pytest.mark.parametrize("side", [32, 63])
def test_an_image_too_small_to_be_cut_is_refused(side: int) -> None:
    with pytest.raises(UserError, match="give more labelled images"):
        DenseProbe(_labelled(1, side), None, 2, _tensor, 0, 32)


# --- in a run ---
def _run(pool: Path, out: Path, name: str, *flags: object) -> int:
    argv = ["--model", "simclr", "--data_path", pool, "--output_dir", out, "--name", name]
    argv += ["--view_size", 32, "--tile_size", 48, "--batch_size", 6, "--threads", 1]
    argv += ["--encoder", "tu-test_resnet"]
    argv += ["--precision", "fp32", "--hidden_dim", 32, "--global_output_dim", 16]
    argv += ["--steps", 6, "--checkpoint_every", 2, "--probe_every", 2, *flags]
    return guard(importlib.import_module("train_ssl").main, [str(a) for a in argv])


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_keeps_the_encoder_that_scores_best_and_resumes_with_it(
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--probe_path", synthetic_folder, "--snapshot_every", 4]
    assert _run(pool_folder, tmp_path, "whole", *flags) == 0
    said = capsys.readouterr().out
    assert "probe   mIoU" in said
    whole = tmp_path / "ssl" / "whole"
    scores = [float(row["probe_miou"]) for row in _rows(whole / "probe.csv")]
    # The next command takes the better of the two encoders.
    last = int(np.argmax(scores)) in (0, len(scores) - 1)
    better = "encoder.safetensors" if last else "encoder_best.safetensors"
    page = (whole / "report.html").read_text(encoding="utf-8")
    # A page is for others: of a path that is absolute here it keeps the end.
    assert "best by the probe: " in said and f"--ssl_weights_path …/{better}" in page
    assert [row["step"] for row in _rows(whole / "probe.csv")] == ["0", "2", "4", "6"]
    progress = checkpoint.load(whole / "last.ckpt")["progress"]
    assert progress["best"] == pytest.approx(max(scores), abs=1e-5)
    assert progress["step"] == 2 * int(np.argmax(scores))
    assert (whole / "curves.png").stat().st_size > 0
    # Encoders on the way are kept, and score from the shell what they scored in the run.
    kept = list((whole / "snapshots").iterdir())
    assert [path.name for path in kept] == ["encoder_000004.safetensors"]
    found = [str(p) for p in (*kept, whole)]
    words = [*found, "none", "--probe_path", str(synthetic_folder), "--threads", "1"]
    # As the run: some processors would take bf16.
    words += ["--precision", "fp32"]
    capsys.readouterr()
    assert probe_tool.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line.split("%  ")[1].split("  ") for line in lines]
    assert [source for source, _ in told] == [*found, "none"]
    assert [what for _, what in told] == [
        "(tu-test_resnet, simclr, step 4)",
        "(encoder.safetensors, tu-test_resnet, simclr, step 6)",
        "(random weights, resnet18)",
    ]
    # Images are read as the run read them, so it is the same score.
    assert float(lines[0].split()[0]) == pytest.approx(100 * scores[2], abs=0.051)
    # Killed after step 5, resumed from step 4: the same scores and the same best encoder.
    real = pretrain.Run._one_step

    def killed(self: pretrain.Run, batch: Any) -> Any:
        if self.step == 5:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Run, "_one_step", killed)
        with contextlib.suppress(KeyboardInterrupt):
            _run(pool_folder, tmp_path, "broken", *flags)
    assert _run(pool_folder, tmp_path, "broken", *flags, "--resume") == 0
    broken = tmp_path / "ssl" / "broken"
    assert checkpoint.load(broken / "last.ckpt")["progress"] == progress
    best = "encoder_best.safetensors"
    assert (broken / best).read_bytes() == (whole / best).read_bytes()
    same = [{k: row[k] for k in ("step", "probe_miou")} for row in _rows(broken / "probe.csv")]
    assert [float(row["probe_miou"]) for row in same] == scores


def test_the_test_masks_of_the_probes_folder_stay_closed(
    pool_folder: Path, synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matssl.data import readers

    opened: dict[str, list[str]] = {"read": [], "read_mask": []}
    for name in opened:
        real = getattr(readers, name)

        def note(
            path: Any, *args: Any, _real: Any = real, _name: str = name, **options: Any
        ) -> Any:
            opened[_name].append(str(path))
            return _real(path, *args, **options)

        monkeypatch.setattr(readers, name, note)
    assert _run(pool_folder, tmp_path, "x", "--probe_path", synthetic_folder, "--steps", 2) == 0
    assert any("val" in path for path in opened["read_mask"])
    assert not any(f"{synthetic_folder}/test" in path for path in opened["read_mask"])
    # The pictures are looked at once, to say which of them the pool shows.
    tests = [path for path in opened["read"] if f"{synthetic_folder}/test" in path]
    assert len(tests) == len(set(tests)) == 2


def test_a_run_resumes_where_its_labelled_images_moved_but_not_with_others(
    pool_folder: Path, synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(synthetic_folder, labels)
    flags = ["--steps", 2, "--quiet", "--probe_path"]
    assert _run(pool_folder, tmp_path, "x", *flags, labels) == 0
    weights = (tmp_path / "ssl" / "x" / "encoder.safetensors").read_bytes()
    moved = labels.rename(tmp_path / "moved")
    assert _run(pool_folder, tmp_path, "x", *flags, moved, "--resume") == 0
    mask = next(iter(sorted((moved / "val_annot").iterdir())))
    cv2.imwrite(str(mask), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)[::-1])
    assert _run(pool_folder, tmp_path, "x", *flags, moved, "--resume") == 2
    assert "the labelled images changed" in capsys.readouterr().err
    assert (tmp_path / "ssl" / "x" / "encoder.safetensors").read_bytes() == weights


def test_a_missing_probe_folder_is_said_before_anything_is_written(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(pool_folder, tmp_path, "x", "--probe_path", tmp_path / "none") == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "ssl").exists()


def test_weights_are_shown_the_grey_levels_of_their_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "snapshots").mkdir(parents=True)
    (run / "config.yaml").write_text("window: dtype\nlow: 1.0\nhigh: 99.0\nlr: 0.1\n")
    state = {f"encoder.{k}": v for k, v in build_encoder("resnet18", 1).state_dict().items()}
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": "[]"}
    expected = ("dtype", 1.0, 99.0)
    for name in ("encoder.safetensors", "snapshots/encoder_000004.safetensors"):
        save_file(state, run / name, facts)
        assert _grey_levels(run / name) == expected
    assert _grey_levels(run) == expected
    save_file(state, tmp_path / "x.safetensors", facts)
    untold = ("standard", 0.5, 99.5)
    assert _grey_levels("none") == _grey_levels(tmp_path / "x.safetensors") == untold


def test_all_weights_that_cannot_be_used_are_told_at_once_before_one_is_scored(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.pth").write_text("no weights")
    other = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(3, 3)}, other)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(other.read_bytes()[:-40])
    gone = tmp_path / "gone.pth"
    labels = ["--probe_path", synthetic_folder]

    def told(*sources: object) -> str:
        words = [str(w) for w in (*sources, *labels)]
        assert guard(probe_tool.main, words) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        return said.err

    # Before anything is opened, then what only whole files tell.
    first = told(gone, tmp_path / "notes.pth", "none")
    assert "there is no weights file" in first and "no weights file: it is a text file" in first
    second = told("none", other, cut)
    assert second.startswith("error: 2 of 3 weights cannot be used: ")
    assert "other.pth" in second and "cut.pth" in second


def _grey_levels(source: Path | str) -> tuple[str, float, float]:
    record = Encoder.load(source, device="cpu").record
    return record.window, record.low, record.high
