"""The check for a GPU, as far as a CPU can run it, and what a GPU would meet first."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import train_finetune
import train_ssl
from benchmarks import gpu_check
from matssl import pictures
from matssl.core import runtime
from matssl.methods.contrastive import nt_xent
from matssl.methods.matssl.method import MatSSL

SMALL = ["--steps", "4", "--batch_size", "4", "--threads", "1", "--device", "cpu", "--quiet"]


def _sheet(path: Path) -> gpu_check.Sheet:
    return gpu_check.Sheet(path / "sheet.json")


def test_a_part_that_fails_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    sheet = _sheet(tmp_path)
    for number in (1, 0):
        with sheet.part(f"part {number}"):
            sheet.row(f"inverse of {number}", 1 / number, "1", True)
    with sheet.part("the last"):
        raise SystemExit(143)
    kept = json.loads((tmp_path / "sheet.json").read_text())
    assert [row["ok"] for row in kept["rows"]] == [True, False, False]
    assert "ZeroDivisionError" in kept["errors"][0] and "Traceback" in kept["errors"][0]
    section = {"state": "done", "seconds": 1.0, **kept}
    content = {"device": "cpu", "tiny": True, "date": "today", "seconds": 1.0}
    table = gpu_check.markdown({**content, "sections": {"speed": section}})
    assert "| speed | inverse of 1 | 1 | 1 |" in table and "**ZeroDivisionError" in table
    assert len(gpu_check.failures({"speed": section, "x": {"state": "left out", "rows": []}})) == 3


def test_the_speed_of_a_loop_leaves_out_its_first_steps() -> None:
    # A second for each of the first steps, then half a second, a tenth of it waiting.
    warm, rows, clock, waited = gpu_check.WARM, [], 0.0, 0.0
    for step in range(warm + 4):
        clock += 1.0 if step < warm else 0.5
        waited += 0.0 if step < warm else 0.05
        views = 8 * (step + 1) / clock
        rows.append({"views_per_s": str(views), "wait_share": str(waited / clock)})
    speed, wait = gpu_check.loop_speed({"rows": rows}, 8)
    assert speed == pytest.approx(16) and wait == pytest.approx(0.1)


def test_equal_numbers_under_other_names_or_with_other_bits_are_not_the_same(
    tmp_path: Path,
) -> None:
    values = {"a": torch.tensor([0.0, 1.0]), "b": [torch.tensor(2), {"c": torch.zeros(2, 2)}]}
    files = [tmp_path / f"{n}.pt" for n in range(3)]
    torch.save(values, files[0])
    torch.save({**values, "note": "no tensor"}, files[1])
    torch.save({**values, "a": torch.tensor([-0.0, 1.0])}, files[2])
    assert gpu_check.same_tensors(files[0], files[1])
    assert not gpu_check.same_tensors(files[0], files[2])


@pytest.mark.slow
@pytest.mark.parametrize("section", ("environment", "predict"))
def test_sections_run_on_a_cpu(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The section leaves out drawing in its process; here others draw after it.
    monkeypatch.setattr(pictures, "save", pictures.save)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    small = dataclasses.replace(gpu_check.TINY, picture=64, tile_batches=(1,))
    monkeypatch.setattr(gpu_check, "TINY", small)
    args = argparse.Namespace(section=section, tiny=True, device="cpu", data=str(tmp_path))
    gpu_check.work(args)
    found = json.loads((tmp_path / f"{section}.json").read_text())
    assert found["rows"] and not found["errors"], found["errors"]
    assert all(row["ok"] is not False for row in found["rows"])


@pytest.mark.slow
def test_compiled_networks_are_saved_under_plain_names_and_resume_to_the_same_bits(
    pool_folder: Path,
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_drawing: None,
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    argv = ["--data_path", str(pool_folder), "--output_dir", str(tmp_path), "--view_size", "32"]
    # Of few layers: tracing takes the time of this test.
    argv += [*SMALL, "--compile", "--encoder", "small_unet"]
    assert train_ssl.main([*argv, "--name", "whole"]) == 0
    calls: list[float] = []

    def stops_after_two(self: MatSSL, progress: float) -> None:
        calls.append(progress)
        if len(calls) == 2:
            # As Python calls it; a real signal ends a process in which OpenVINO has computed.
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler)
            handler(signal.SIGTERM, None)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(MatSSL, "after_step", stops_after_two)
        train_ssl.main([*argv, "--name", "broken"])
    assert stopped.value.code == 143 and len(calls) == 2
    torch._dynamo.reset()
    assert train_ssl.main([*argv, "--name", "broken", "--resume"]) == 0
    whole, broken = (tmp_path / "ssl" / name for name in ("whole", "broken"))
    name = "encoder.safetensors"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert not [n for n in gpu_check.tensors(broken / "last.ckpt") if "_orig_mod" in n]

    argv = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(tmp_path)]
    argv += ["--name", "x", "--crop_size", "32", "--ssl_weights_path", str(whole / name)]
    assert train_finetune.main([*argv, *SMALL, "--compile"]) == 0
    best = tmp_path / "finetune" / "x" / "best.ckpt"
    assert not [n for n in gpu_check.tensors(best) if "_orig_mod" in n]


def test_compiling_asks_for_the_compiler_that_the_device_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CC", raising=False)
    cases: dict[str, tuple[str, str]] = {"gcc": ("C++ compiler", ""), "g++": ("", "a C compiler")}
    for only, lacking in cases.items():
        monkeypatch.setattr(shutil, "which", lambda name, only=only: name if name == only else None)
        for device, text in zip(("cpu", "cuda"), lacking, strict=True):
            said = runtime._compiler_lacking(device)
            assert text in said and bool(said) == bool(text)


def test_kernels_are_searched_for_in_a_training_without_equal_bits_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for wanted, searched in ((False, True), (True, False), (None, False)):
        runtime._equal_bits(wanted)
        assert torch.backends.cudnn.benchmark is searched
    assert asked == [False, True, False]


def test_the_memory_of_a_gpu_is_told_where_a_run_is_on_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reserved(device: torch.device) -> int:
        return 7 + (device.index or 0)

    monkeypatch.setattr(torch.cuda, "max_memory_reserved", reserved)
    assert runtime.peak_memory(torch.device("cuda", 1)) == 8
    assert runtime.peak_memory(torch.device("cpu")) == pytest.approx(runtime.peak_memory(), rel=0.1)


def test_a_loss_with_groups_brings_no_index_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU such an index is copied while everything waits."""
    made: list[Any] = []
    real = torch.arange

    def arange(*args: Any, **options: Any) -> torch.Tensor:
        made.append(options.get("device"))
        return real(*args, **options)

    monkeypatch.setattr(torch, "arange", arange)
    rows = torch.eye(4)
    nt_xent(rows, rows.flip(0), 0.5, torch.tensor([0, 0, 1, 1]))
    assert len(made) == 2 and all(device is not None for device in made)
