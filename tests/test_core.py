"""The ground floor: errors, configuration, randomness, geometry, run folders, checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numeric import view_map

from matssl.core import checkpoint, geometry, machine, rng, run_folder, runtime, torchvision_ops
from matssl.core.errors import UserError, guard
from matssl.methods import METHODS, recipes
from matssl.stages.finetune import settings as finetune
from matssl.stages.pretrain import settings
from matssl.stages.pretrain.settings import PretrainSettings


# --- errors ---
def test_a_user_error_is_one_line_on_stderr_and_exit_code_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: Any) -> None:
        raise UserError("no images\nin /a b/c; choose another folder")

    assert guard(main, []) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: no images in /a b/c; choose another folder\n"
    assert captured.out == ""


def test_debug_shows_the_traceback_of_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Any) -> None:
        raise UserError("wrong")

    assert guard(main, ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_before_the_work_begins_is_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: Any) -> None:
        raise KeyboardInterrupt

    assert guard(main, []) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_link_that_leads_to_itself_and_a_file_that_may_not_grow_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "a.ckpt"
    loop.symlink_to(loop)

    def resolved(argv: Any) -> int:
        # Python 3.13 no longer says anything of it.
        loop.resolve()
        raise RuntimeError(f"Symlink loop from '{loop}'")

    def large(argv: Any) -> int:
        raise OSError(27, "File too large", "b.png")

    for main, told in ((resolved, "Symlink loop from"), (large, "b.png: File too large")):
        assert guard(main, []) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1


def test_a_programming_error_is_not_hidden() -> None:
    def main(argv: Any) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        guard(main, [])


# --- configuration ---
def _pretrain(*argv: str) -> PretrainSettings:
    return settings.resolve(["--data_path", "x", *argv]).run


def test_flags_beat_the_config_file_and_the_file_beats_the_recipe(tmp_path: Path) -> None:
    recipe, file = tmp_path / "r.yaml", tmp_path / "c.yaml"
    recipe.write_text("lr: 1e-2\nmomentum: 0.5\nbatch_size: 7\n")
    file.write_text("lr: 2e-2\nmomentum: 0.6\n")
    result = _pretrain("--recipe", str(recipe), "--config", str(file), "--lr", "3e-2")
    assert (result.lr, result.momentum, result.batch_size) == (3e-2, 0.6, 7)


def test_a_plan_in_steps_and_one_in_epochs_do_not_mix(tmp_path: Path) -> None:
    recipe, file = tmp_path / "r.yaml", tmp_path / "c.yaml"
    recipe.write_text("steps: 70\n")
    file.write_text("epochs: 5\n")
    assert _pretrain("--recipe", str(recipe)).steps == 70
    mixed = _pretrain("--recipe", str(recipe), "--config", str(file))
    assert (mixed.steps, mixed.epochs) == (None, 5)
    flag = _pretrain("--recipe", str(recipe), "--config", str(file), "--steps", "9")
    assert (flag.steps, flag.epochs) == (9, None)
    with pytest.raises(UserError, match="--steps and --epochs are two plans"):
        _pretrain("--steps", "9", "--epochs", "2")


def test_a_wrong_method_is_said_before_its_recipe_is_looked_for() -> None:
    with pytest.raises(UserError, match="model must be one of matssl, .*, not c"):
        _pretrain("--model", "c")


def test_yaml_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("weight_decay: 1e-4\n")
    assert _pretrain("--recipe", str(recipe)).weight_decay == 1e-4


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning_rat", "1"], "unrecognized"),
        (["--batch_sise", "1"], "did you mean --batch_size"),
        (["--batch_size", "many"], "whole number"),
        (["--optimizer", "adagrad"], "must be one of"),
        (["--recipe", "famous"], "there are: "),
        (["--config", "absent.yaml"], "cannot read"),
    ],
)
def test_wrong_flags_are_user_errors(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        _pretrain(*argv)


def test_unknown_settings_in_a_file_name_the_nearest_one(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("weight_decy: 1\n")
    with pytest.raises(UserError, match="did you mean weight_decay"):
        _pretrain("--config", str(file))


def test_a_missing_required_flag_is_named() -> None:
    with pytest.raises(UserError, match="--finetune_dataset"):
        finetune.resolve([])


def test_every_recipe_is_read_without_complaint() -> None:
    for path in Path(finetune.RECIPES).glob("*.yaml"):
        finetune.resolve(["--finetune_dataset", "x", "--recipe", str(path)])
    for model in METHODS:
        for path in Path(recipes(model)).glob("*.yaml"):
            _pretrain("--model", model, "--recipe", str(path), "--labeled_path", "x")


# --- randomness ---
def test_draws_depend_on_nothing_but_the_numbers() -> None:
    first = rng.generator(1, 2, 3, 0).random(5)
    rng.generator(1, 2, 4, 0).random(100)
    assert np.array_equal(first, rng.generator(1, 2, 3, 0).random(5))


def test_all_numbers_matter() -> None:
    base = (1, 2, 3, 4, 0)
    reference = rng.generator(*base).random(4)
    for place in range(5):
        other = list(base)
        other[place] += 1
        assert not np.array_equal(reference, rng.generator(*other).random(4))


def test_an_epoch_visits_each_sample_once_in_another_order_each_time() -> None:
    first, second = rng.epoch_order(0, 0, 50), rng.epoch_order(0, 1, 50)
    assert sorted(first) == list(range(50))
    assert not np.array_equal(first, second)


# --- geometry ---
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_the_map_of_a_view_sends_each_pixel_to_where_it_came_from(flip: bool, turns: int) -> None:
    y, x = np.mgrid[:12, :12] + 0.5
    image = np.stack([x, y], axis=-1)
    affine = view_map(3, 2, 6, 6, flip, turns, size=6)
    pixels = geometry.apply_d4(image[3:9, 2:8], flip, turns)
    places = geometry.transform(affine, geometry.cell_centres(6, 6))
    assert np.allclose(places, pixels.reshape(-1, 2))


def test_an_inverted_map_undoes() -> None:
    affine = view_map(3.2, 1.7, 20, 31, True, 3, size=64)
    points = np.array([[0.5, 0.5], [10, 63]])
    back = geometry.transform(geometry.invert(affine), geometry.transform(affine, points))
    assert np.allclose(back, points)


# --- run folder ---
def test_an_existing_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    run = run_folder.RunFolder.open("ssl", "a", tmp_path)
    run.write_text("config.yaml", "x: 1\n")
    with pytest.raises(UserError, match="--resume"):
        run_folder.RunFolder.open("ssl", "a", tmp_path)
    again = run_folder.RunFolder.open("ssl", "a", tmp_path, overwrite=True)
    assert not again.path("config.yaml").exists()


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    run_folder.RunFolder.open("ssl", "x", tmp_path).write_text("last.ckpt", "")
    code = (
        "import sys; from matssl.core.run_folder import RunFolder; from matssl.core import errors;"
        "errors.guard(lambda _: RunFolder.open('ssl', 'x', sys.argv[1], resume=True) and 0, [])"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.run(words, capture_output=True, text=True)
    assert "another process is writing to" in other.stderr
    run_folder.RunFolder.open("ssl", "y", tmp_path)
    assert subprocess.run(words, capture_output=True, text=True).stderr == ""


def test_overwrite_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "ssl" / "a").mkdir(parents=True)
    (tmp_path / "ssl" / "a" / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match="no run folder"):
        run_folder.RunFolder.open("ssl", "a", tmp_path, overwrite=True)
    assert (tmp_path / "ssl" / "a" / "thesis.doc").exists()


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        run_folder.RunFolder.open("ssl", "a", tmp_path, resume=True)
    assert not (tmp_path / "ssl").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), run_folder.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_rows_after_the_resumed_step_and_half_rows_are_dropped(tmp_path: Path) -> None:
    run = run_folder.RunFolder.open("ssl", "a", tmp_path)
    for step in (10, 20, 30):
        run.append_csv("steps.csv", {"step": step, "loss": 0.5})
    with open(run.path("steps.csv"), "a") as file:
        file.write("2")
    run.truncate_csv("steps.csv", "step", 20)
    assert run.path("steps.csv").read_text() == "step,loss\n10,0.5\n20,0.5\n"


def test_nan_is_null_in_json(tmp_path: Path) -> None:
    run = run_folder.RunFolder.open("eval", "a", tmp_path)
    run.write_json("m.json", {"iou": [np.float64("nan"), 0.5]})
    assert json.loads(run.path("m.json").read_text()) == {"iou": [None, 0.5]}


# --- checkpoint ---
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    payload = {"stage": "ssl", "step": 3, "state": {"w": torch.arange(3.0)}}
    checkpoint.save(tmp_path / "a.ckpt", payload)
    result = checkpoint.load(tmp_path / "a.ckpt", stage="ssl")
    assert result["step"] == 3
    assert torch.equal(result["state"]["w"], torch.arange(3.0))


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_wrong_checkpoints_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.ckpt"
    checkpoint.save(good, {"stage": "ssl", "state": {"w": torch.zeros(1000)}})
    (tmp_path / "cut.ckpt").write_bytes(good.read_bytes()[:1500])
    (tmp_path / "text.ckpt").write_text("not weights at all")
    torch.save({"a": _Evil()}, tmp_path / "evil.ckpt")
    torch.save({"format": "matssl/9"}, tmp_path / "new.ckpt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.ckpt")
    cases = {
        "absent": "no file",
        "cut": "truncated",
        "text": "no weights file|truncated",
        "evil": "wants to run code",
        "new": "update matssl",
        "other": "no checkpoint of matssl",
    }
    for name, sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            checkpoint.load(tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match="stage"):
        checkpoint.load(good, stage="finetune")
    assert "code ran" not in capsys.readouterr().out


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"stage": "ssl", "step": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        checkpoint.save(path, {"stage": "ssl", "step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


# --- runtime ---
def test_an_absent_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="no GPU"):
        runtime.setup(device="cuda")


def test_the_published_gpu_flag_falls_back_to_the_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert runtime.setup(gpu_id=0).device.type == "cpu"


def test_torchvision_can_be_imported_beside_a_cpu_torch() -> None:
    torchvision_ops.ensure()
    import torchvision

    assert torchvision.models.resnet18(weights=None) is not None


# --- the commands ---
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["train_ssl.py", "train_finetune.py", "eval_model.py"])
def test_help_is_shown_without_importing_torch(name: str) -> None:
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help', 'all']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'numpy', 'cv2', 'yaml'} & set(sys.modules), 'heavy import'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / name)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert "(default: 0)" in words[words.index("--seed X") :]


@pytest.mark.parametrize(
    ("here", "all_", "wanted"), [(None, None, 8), ("2", "16", 4), (None, "4", 2), ("16", "16", 1)]
)
def test_the_processes_of_one_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, here: str | None, all_: str | None, wanted: int
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    for name, value in (("LOCAL_WORLD_SIZE", here), ("WORLD_SIZE", all_)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert machine.own_cores() == wanted


@pytest.mark.parametrize(
    ("said", "torchrun", "wanted"),
    [("1", False, 1), ("1,2", False, 1), ("1", True, 8), ("0", False, 8), ("x", False, 8)],
)
def test_threads_are_no_more_than_the_environment_says_but_for_torchruns_own_word(
    monkeypatch: pytest.MonkeyPatch, said: str, torchrun: bool, wanted: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert machine.available_cores() == wanted
