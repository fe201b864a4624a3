"""Benchmarks of validation against seconds, and of statistics fitted to pictures: what they say."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import adaptation, time_to_quality
from benchmarks.time_to_quality import OURS, PLAIN, THEIRS, Plan
from matssl.models.segmentation import build_model

SAID = "step 100/500: loss 0.812, validation mIoU 56.8 (matrix 50.1, pore 63.5) *"


def _plan(folder: Path) -> Plan:
    return Plan(folder, folder, 1, "cpu", {"short": "--steps 9 --lr 2e-3"})


def test_lines_of_both_programs_are_read() -> None:
    ours, theirs = OURS.search(SAID), THEIRS.search("step 200 loss 1.234 val mIoU 0.4567")
    assert ours and ours.groups() == ("100", "56.8")
    assert theirs and theirs.groups() == ("200", "0.4567")


def test_a_validation_has_the_seconds_since_its_process_began() -> None:
    code = f"import time; time.sleep(0.3); print({SAID!r}); time.sleep(0.3)"
    found = time_to_quality.timed([sys.executable, "-c", code], OURS, 0.01)
    (point,) = found["points"]
    assert point["step"] == 100 and point["miou"] == pytest.approx(0.568)
    assert 0.3 <= point["seconds"] <= found["seconds"] - 0.2
    assert 0 < found["computed"] < found["seconds"]


def test_a_run_that_fails_or_says_nothing_ends_the_campaign() -> None:
    for code in ("raise SystemExit(3)", "print('no score')"):
        with pytest.raises(SystemExit, match="failed"):
            time_to_quality.timed([sys.executable, "-c", code], OURS, 0.01)


def test_a_setting_is_given_as_flags_and_no_run_opens_test_images(tmp_path: Path) -> None:
    words = _plan(tmp_path).command("uhcs", "short", 3)
    assert words[1] == "train_finetune.py" and words[-4:] == ["--steps", "9", "--lr", "2e-3"]
    assert words[words.index("--seed") + 1] == "3"
    assert "--validation_only" in _plan(tmp_path).command("uhcs", PLAIN, 3)


@pytest.mark.parametrize(
    ("miou", "seconds", "share"),
    # Of 100 seconds: as good in a quarter, better but too late, in time but worse.
    [(0.70, 25, "**0.25**"), (0.75, 30, "0.30"), (0.69, 10, "0.10")],
)
def test_bold_is_what_reaches_the_plain_score_in_a_quarter_of_its_time(
    miou: float, seconds: float, share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _plan(tmp_path)
    (tmp_path / "results").mkdir()
    for name, score, took in ((PLAIN, 0.70, 100), ("short", miou, seconds)):
        points = [{"step": 5, "miou": 0.1, "seconds": took / 2, "computed": took / 2}]
        points += [{"step": 9, "miou": score, "seconds": took, "computed": took}]
        result = {"points": points, "seconds": took, "computed": took, "dataset": "uhcs"}
        result |= {"name": name, "seed": 0}
        plan.result("uhcs", name, 0).write_text(json.dumps(result))
    time_to_quality.table(plan, "seconds")
    row = next(line for line in capsys.readouterr().out.splitlines() if "| short |" in line)
    assert f"| {share} | 1 |" in row
    assert (tmp_path / "curve.png").is_file()


def test_every_layer_measures_what_the_adapted_layers_before_it_make_of_the_tiles() -> None:
    # PyTorch's own training mode normalises by the batch, and keeps all of it at momentum 1.
    torch.manual_seed(0)
    model = build_model("tu-test_resnet", "unet", 2).eval()
    tiles = torch.rand(3, 1, 64, 64)
    other = copy.deepcopy(model).train()
    for layer in adaptation.layers(other).values():
        layer.momentum = 1.0  # type: ignore[assignment]
    with torch.no_grad():
        expected, plain = other(tiles).softmax(dim=1), model(tiles).softmax(dim=1)
    with adaptation.kept(model):
        probabilities, seen = adaptation.passed(model, tiles, 0.0)
        after = adaptation.statistics(model)
    assert torch.allclose(probabilities, expected, atol=1e-5)
    for name, (mean, _) in adaptation.statistics(other).items():
        assert torch.allclose(seen[name][0], mean, atol=1e-4)
        assert torch.equal(after[name][0], seen[name][0])
    # Beside a prior that weighs all, and after it, the model is what it was.
    same, _ = adaptation.passed(model, tiles, 1.0)
    assert torch.equal(same, plain)
