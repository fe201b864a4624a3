"""Run folders and checkpoints of an earlier version still serve: benchmarks/make_before.py."""

from __future__ import annotations

import csv
import importlib
import json
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import tifffile
import yaml

from matssl.core.errors import guard

pytestmark = [pytest.mark.usefixtures("no_drawing"), pytest.mark.slow]

FIXTURE = Path(__file__).parent / "fixtures" / "before"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))
METHODS = [name.removeprefix("ssl/") for name in EXPECTED if name.startswith("ssl/")]
STEADY = "--threads 1 --precision fp32 --device cpu --quiet"
# Processors add in other orders. The first step after the break starts from equal weights, those
# behind it from weights that have parted, and PSCL chooses other cells where two are alike.
FIRST, LATER = 1e-3, 0.2


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(FIXTURE / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def place(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the sets of then; the commands were typed in such a one."""
    monkeypatch.chdir(tmp_path)
    for name in ("pool", "labelled", "few"):
        (tmp_path / name).symlink_to(before / name)
    return tmp_path


def _kept(before: Path, run: str) -> Path:
    """Return a copy of a run folder of then, below the working folder."""
    copy = Path("experiments") / run
    shutil.copytree(before / "experiments" / run, copy)
    return copy


def _main(module: str, *words: object) -> None:
    main = importlib.import_module(module).main
    assert guard(main, [part for word in words for part in shlex.split(str(word))]) == 0


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _same_course(folder: Path, run: str, steps_before: list[dict[str, str]]) -> None:
    """Assert that a resumed run is the one that nothing broke off."""
    steps = _rows(folder / "steps.csv")
    assert steps[: len(steps_before)] == steps_before
    losses = [float(row["loss"]) for row in steps]
    expected = [row["loss"] for row in EXPECTED[run]]
    assert [int(row["step"]) for row in steps] == [row["step"] for row in EXPECTED[run]]
    break_off = len(steps_before)
    assert losses[break_off] == pytest.approx(expected[break_off], rel=FIRST, abs=FIRST)
    assert losses == pytest.approx(expected, rel=LATER, abs=LATER)
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "done"


@pytest.mark.parametrize("method", METHODS)
def test_a_pretraining_goes_on_by_its_own_command(method: str, before: Path, place: Path) -> None:
    folder = _kept(before, f"ssl/{method}")
    words = shlex.split((folder / "command.txt").read_text(encoding="utf-8"))[2:]
    steps = _rows(folder / "steps.csv")
    assert len(steps) == 2
    _main("train_ssl", *words, "--resume")
    _same_course(folder, f"ssl/{method}", steps)


@pytest.mark.parametrize("name", ["ssl", "folds"])
def test_a_fine_tuning_goes_on_by_its_own_command(name: str, before: Path, place: Path) -> None:
    folder = _kept(before, f"finetune/{name}")
    words = shlex.split((folder / "command.txt").read_text(encoding="utf-8"))[2:]
    steps = _rows(folder / "steps.csv")
    assert len(steps) == 2
    # The encoder it started from is not needed any more.
    _main("train_finetune", *words, "--resume")
    _same_course(folder, f"finetune/{name}", steps)


@pytest.mark.parametrize("file", ["best.ckpt", "last.ckpt"])
def test_a_model_still_segments(file: str, before: Path, place: Path) -> None:
    model = before / "experiments/finetune/ssl" / file
    flags = f"--dataset labelled --output_dir . --name out --save_probabilities {STEADY}"
    _main("eval_model", "--model_path", model, flags)
    # The run was broken off right behind its best step: both files hold the same averaged weights.
    for row, numbers in zip(
        _rows(Path("eval/out/per_image.csv")), EXPECTED["eval/test"], strict=True
    ):
        assert {name: float(row[name]) for name in numbers} == pytest.approx(numbers, abs=0.02)
    maps = sorted(Path("eval/out/probabilities").iterdir())
    for path, values in zip(maps, EXPECTED["probabilities"], strict=True):
        found = tifffile.imread(path).astype(float)[:, 8::16, 8::16].ravel()
        assert found.tolist() == pytest.approx(values, abs=2e-3)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ("ssl/matssl", "encoder"),
        ("ssl/spark/encoder.safetensors", "decoder"),
        ("ssl/pscl-moco/last.ckpt", "decoder"),
        ("finetune/ssl/best.ckpt", "encoder"),
    ],
)
def test_a_fine_tuning_starts_from_weights_of_then(
    weights: str, parts: str, before: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = before / "experiments" / weights
    flags = "--finetune_dataset labelled --steps 1 --batch_size 2 --crop_size 32 --output_dir out"
    steady = STEADY.replace(" --quiet", "")
    _main("train_finetune", flags, "--name x --ssl_weights_path", source, steady)
    said = capsys.readouterr().out
    assert "encoder tensors loaded" in said
    assert ("pretrained decoder (unet): all" in said) == (parts == "decoder")
    settings = yaml.safe_load(Path("out/finetune/x/config.yaml").read_text(encoding="utf-8"))
    assert settings["encoder"] == "tu-test_resnet" and settings["decoder"] == "unet"


def test_a_pretraining_starts_from_an_encoder_of_then(before: Path, place: Path) -> None:
    weights = before / "experiments/ssl/byol/encoder.safetensors"
    flags = "--model simclr --data_path pool --encoder tu-test_resnet --view_size 32 --steps 1"
    _main("train_ssl", flags, "--batch_size 4 --name x --weights", weights, STEADY)


def test_phase_maps_regions_and_the_probe_read_run_folders_of_then(
    before: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = before / "experiments"
    phases = "matssl.tools.phase_map"
    _main(phases, "--data pool --output_dir a --phases 3 --model_path", runs / "ssl/matssl", STEADY)
    for run in ("eval/test", "phases/matssl"):
        _main("matssl.tools.regions", runs / run, "--output_dir", f"measured/{run}")
        assert _rows(Path("measured", run, "measure", run.split("/")[1], "specimens.csv"))
    _main("matssl.tools.probe", runs / "ssl/slotcon", "--probe_path labelled --threads 1")
    assert "%" in capsys.readouterr().out
