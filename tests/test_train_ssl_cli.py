"""What a user can type wrong at train_ssl.py, and what each flag does."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from matssl.core import checkpoint, flags
from matssl.core.errors import guard
from matssl.methods import METHODS, settings_class
from matssl.methods.settings import GuidedSettings, PoolFacts, negatives
from matssl.methods.slotcon.settings import SlotConSettings
from matssl.pictures import training as pictures
from matssl.stages.pretrain import plan, settings
from matssl.stages.pretrain.plan import make_plan

TINY = ["--view_size", "32", "--tile_size", "48", "--batch_size", "6", "--threads", "1"]
TINY += ["--encoder", "tu-test_resnet", "--hidden_dim", "32", "--global_output_dim", "16"]
TINY += ["--precision", "fp32", "--quiet"]


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; other tests look at pictures."""
    for name in ("views_sheet", "features_sheet", "pretraining_curves"):
        monkeypatch.setattr(pictures, name, lambda *args: args[-1].write_bytes(b"picture"))


def _main(*argv: object) -> int:
    return guard(importlib.import_module("train_ssl").main, [str(a) for a in argv])


def _help(script: str, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main([*argv, "--help", "all"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_names_the_defaults_that_a_run_gets(capsys: pytest.CaptureFixture[str]) -> None:
    effective = _parse()
    words = _help("train_ssl", capsys)
    for name in ("lr", "weight_decay", "contrast", "warmup"):
        said = words[words.index(f"--{name} X ") :].split("(default: ")[1].split(")")[0]
        assert float(said) == getattr(effective, name), name


def test_help_is_that_of_the_method_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*argv: str) -> dict[str, str]:
        words = _help("train_ssl", capsys, *argv)
        shown = r"--(\w+) \S+ (?:(?! --)[^)])*\(default: ([^)]*)\)"
        return dict(re.findall(shown, words.split("[--FLAG X ...]")[1]))

    spark = _parse("--model", "spark")
    assert said("--model", "spark")["weight_decay"] == str(spark.weight_decay)
    assert said("--model", "spark")["patch_size"] == str(spark.patch_size) == "16"
    # A method's own flags are shown beside it alone.
    assert "patch_size" not in said() and "prototypes" not in said()
    assert said("--model", "slotcon", "--recipe", "paper")["prototypes"] == "256"
    # Of a flag that several methods have, and of a variant, the method's own; no recipe is hidden
    # behind a default of the code.
    slotcon = said("--model", "slotcon")
    assert (slotcon["dense_stage"], slotcon["hidden_dim"]) == ("2", "256")
    assert said("--model", "pscl-moco")["top_k"] == "8"
    assert said("--model", "mocov2", "--recipe", "paper")["queue_size"] == "65536"
    assert said("--model", "mocov2")["queue_size"] == "4096"
    assert _main("--model", "unknown", "--help") == 2
    assert "model must be one of matssl, simclr" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train_ssl", "train_finetune", "eval_model"])
def test_help_shows_the_flags_one_needs_first(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    short = capsys.readouterr().out
    named = set(re.findall(r"^  --(\w+)", short, re.MULTILINE))
    assert len(named) <= 10 and "--help all shows all" in short
    whole = _help(script, capsys)
    assert all(f"--{name}" in whole for name in named)
    assert len(set(re.findall(r" --(\w+)", whole))) > 2 * len(named)


def test_a_specimen_that_fills_the_pool_keeps_its_negatives(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    names = [f"sample1_{i:04d}" for i in range(9)] + ["sample2_1", "sample3_1", "sample4_1"]
    for name, source in zip(names, sorted(pool_folder.glob("*")), strict=True):
        shutil.copy(source, pool / f"{name}{source.suffix}")
    flags = ["--data_path", pool, "--output_dir", tmp_path, *TINY, "--steps", 1]
    flags = [word for word in flags if word != "--quiet"]
    for name, more, wanted, sentence in (
        ("auto", [], "keep", "its own tiles are negatives, too"),
        ("drop", ["--group_negatives", "drop"], "drop", "42 % of the negatives are left"),
        ("regex", ["--group_regex", "(.*)"], "drop", None),
        ("spark", ["--model", "spark", "--view_size", 64, "--tile_size", 64], None, None),
    ):
        assert _main(*flags, *more, "--name", name) == 0
        said = capsys.readouterr().out
        settings = yaml.safe_load((tmp_path / "ssl" / name / "config.yaml").read_text())
        assert settings.get("group_negatives") == wanted, name
        assert ("specimen 'sample1' holds 75 % of the pool" in said) == (sentence is not None)
        assert sentence is None or sentence in said


def test_what_few_specimens_mean_to_a_comparison_is_said_plainly() -> None:
    """SlotCon's note spoke of telling apart, and not of what is done or how to do otherwise."""
    shares = {"a": 0.4, "b": 0.3, "c": 0.3}
    auto = SlotConSettings(group_negatives="auto")
    settings, (note,) = negatives(auto, PoolFacts(8, 100, shares))
    assert settings.group_negatives == "drop"
    assert note.startswith("only 3 specimens in the pool (as far as names tell; specimens.csv or ")
    assert "tiles of one specimen are not compared" in note and "--group_negatives keep" in note
    _, (note,) = negatives(auto, PoolFacts(8, 100, shares, named=True))
    assert note.startswith("only 3 specimens in the pool: ")


def test_masks_stay_out_of_the_pool_and_test_folders_are_named(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data_path", synthetic_folder, "--test_folder", synthetic_folder, *TINY]
    argv = [word for word in argv if word != "--quiet"]
    assert _main(*argv, "--steps", "1", "--output_dir", tmp_path, "--name", "x") == 0
    said = capsys.readouterr().out
    # Four, two and two images; their eight masks are no micrographs, and two images are tests.
    assert "images       10 (pool 8, test 2)" in said
    assert "folders of masks: test_annot, train_annot, val_annot" in said
    assert "2 test images learned from, by their folders' names" in said
    sources = [row["image"] for row in _rows(tmp_path / "ssl" / "x" / "data.csv")]
    assert len(sources) == 8 and not any("annot" in source for source in sources)


def _parse(*argv: str) -> SimpleNamespace:
    model = flags.peek(argv, "model") or "matssl"
    guided = issubclass(settings_class(model), GuidedSettings)
    argv = ("--labeled_path", "x", *argv) if guided else argv
    resolved = settings.resolve(["--data_path", "x", *argv])
    return SimpleNamespace(**flags.to_dict(resolved.run, resolved.method))


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


GUIDED = ["--model", "pscl", "--labeled_path", "absent"]
LOTS = ["--model", "pscl-moco", "--labeled_path", "absent"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--view_size", "16"], "--view_size must be at least 32 and at most 8192, not 16"),
        (["--tile_size", "0"], "--tile_size must be at least 32"),
        (["--batch_size", "1"], "--batch_size must be at least 2"),
        (["--batch_size", "2.5"], "--batch_size must be a whole number"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--epochs", "-1"], "--epochs must be at least 1"),
        (["--checkpoint_every", "0"], "--checkpoint_every must be at least 1"),
        (["--lr", "0"], "--lr must be above 0"),
        (["--lr", "nan"], "--lr must be above 0"),
        (["--lr", "fast"], "--lr must be a number"),
        (["--temperature", "-1"], "--temperature must be above 0"),
        (["--warmup", "1"], "--warmup must be at least 0 and below 1"),
        (["--momentum", "1"], "--momentum must be at least 0 and below 1"),
        (["--blur_p", "1.5"], "--blur_p must be at least 0 and at most 1"),
        (["--noise_sigma", "-1"], "--noise_sigma must be at least 0"),
        (["--scale_min", "0.9", "--scale_max", "0.5"], "shares of the area"),
        (["--clip", "-1"], "--clip must be at least 0"),
        (["--color", "rgb"], "--color rgb needs --in_channels 3"),
        (["--in_channels", "2"], "--in_channels must be 1 or 3, not 2"),
        (["--resume", "--name", ""], "--name is empty"),
        (["--name", ".."], "cannot name a run"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--num_workers", "-1"], "--num_workers must be at least 0"),
        (["--model", "simsiam"], "simsiam"),
        (["--recipe", "none"], "no recipe 'none'"),
        (["--optimiser", "sgd"], "did you mean --optimizer?"),
        (["--config", "absent.yaml"], "cannot read the configuration"),
        (["--file_list", "absent.txt"], "there is no file list"),
        (["--group_regex", "("], "--group_regex"),
        (["--group_regex", "absent"], "--group_regex 'absent' fits none of the 12 file names"),
        (["--mask_ratio", "1"], "--mask_ratio must be above 0 and below 1, not 1.0"),
        ([*GUIDED, "--batch_regex", "(["], "--batch_regex '([' is not valid"),
        ([*GUIDED, "--batch_regex", "^a"], "--batch_regex '^a' has no group"),
        ([*LOTS, "--batch_regex", "(a)", "--batch_csv", "b.csv"], "not both"),
        (["--seed", str(2**70)], "--seed must be at least 0 and at most 4294967295"),
        (["--bn_splits", "0"], "--bn_splits must be at least 1"),
        ([*GUIDED, "--global_local_ratio", "0"], "leaves out the patch loss"),
        (["--test_folder", "absent"], "there is no folder"),
    ],
)
def test_a_wrong_setting_is_one_line_and_writes_nothing(
    flags: list[str],
    sentence: str,
    pool_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    argv = ["--data_path", pool_folder, "--output_dir", out, "--name", "x", *TINY]
    argv += [] if "--epochs" in flags else ["--steps", "2"]
    assert _main(*argv, *flags) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert sentence in message
    assert not out.exists()


def test_all_paths_that_lead_nowhere_are_told_at_once(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: one run used to tell one missing folder."""
    (tmp_path / "list.txt").touch()
    places = {
        "--data_path": "pool",
        "--test_folder": "tests",
        "--probe_path": "probe",
        "--weights": "w.pth",
        "--splits": "s.json",
        "--classes": "c.yaml",
        "--file_list": "absent.txt",
        "--list_root": "list.txt",
        "--config": "c.yaml",
    }
    words = [word for flag, name in places.items() for word in (flag, tmp_path / name)]
    assert _main(*words, "--output_dir", tmp_path / "out", "--lr", "-1") == 2
    message = capsys.readouterr().err
    for flag, name in places.items():
        assert flag == "--config" or f"{tmp_path / name} ({flag})" in message or name == "list.txt"
    assert f"{tmp_path / 'list.txt'} is a file; give the folder" in message
    assert "cannot read the configuration" in message and "--lr must be above 0" in message
    assert message.count("\n") == 1 and not (tmp_path / "out").exists()
    # Flags of another method, which have no effect, lead nowhere either and are not asked.
    argv = ["--data_path", pool_folder, "--labeled_path", tmp_path / "absent", "--steps", "0"]
    assert _main(*argv) == 2
    assert "absent" not in capsys.readouterr().err


def test_all_wrong_settings_are_told_at_once(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--view_size", "8", "--lr", "-1", "--blur_p", "7"]
    assert _main("--data_path", pool_folder, "--output_dir", tmp_path / "out", *flags) == 2
    message = capsys.readouterr().err
    assert all(flag in message for flag in ("--view_size", "--lr", "--blur_p"))


def test_resuming_needs_to_know_which_run(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("--data_path", pool_folder, "--output_dir", tmp_path / "out", "--resume") == 2
    assert "--resume needs the --name of the run" in capsys.readouterr().err


def test_tensorboard_is_asked_for_before_anything_is_written(
    pool_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = tmp_path / "out"
    argv = ["--data_path", pool_folder, "--output_dir", out, *TINY, "--steps", "2"]
    assert _main(*argv, "--tensorboard") == 2
    assert "pip install matssl[track]" in capsys.readouterr().err
    assert not out.exists()


def test_an_existing_run_is_refused_and_left_alone(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "ssl" / "mine"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("keep me")
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path, "--name", "mine", *TINY]
    assert _main(*argv, "--steps", "2") == 2
    assert "exists already" in capsys.readouterr().err
    assert _main(*argv, "--steps", "2", "--overwrite") == 2
    assert "is no run folder of matssl" in capsys.readouterr().err
    assert (other / "notes.txt").read_text() == "keep me"


def test_broken_images_are_left_out_listed_and_refused_above_a_tenth(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(pool_folder, tmp_path / "pool"))
    (folder / "broken 1.png").write_bytes(b"no image")
    argv = ["--data_path", folder, "--output_dir", tmp_path / "out", *TINY, "--steps", "1"]
    assert _main(*argv, "--name", "stops", "--on_bad_image", "stop") == 2
    assert "broken 1.png" in capsys.readouterr().err
    assert _main(*argv, "--name", "skips") == 0
    run = tmp_path / "out" / "ssl" / "skips"
    assert [Path(r["image"]).name for r in _rows(run / "bad_images.csv")] == ["broken 1.png"]
    assert len(_rows(run / "data.csv")) == 12
    (folder / "broken 2.png").write_bytes(b"no image")
    assert _main(*argv, "--name", "refused") == 2
    assert "more than 10 %" in capsys.readouterr().err


def test_a_file_list_adds_images_to_the_pool(pool_folder: Path, tmp_path: Path) -> None:
    extra = Path(shutil.copytree(pool_folder, tmp_path / "extra"))
    names = sorted(path.name for path in extra.iterdir() if path.suffix != ".txt")[:3]
    (tmp_path / "list.txt").write_text("# more\n" + "\n".join(names) + "\n")
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path / "out", *TINY, "--steps", "1"]
    more = ["--file_list", tmp_path / "list.txt", "--list_root", extra, "--name", "x"]
    assert _main(*argv, *more) == 0
    run = tmp_path / "out" / "ssl" / "x"
    images = [Path(row["image"]) for row in _rows(run / "data.csv")]
    assert len(images) == 15
    assert [path.name for path in images if path.parent == extra] == names


def test_flags_beat_the_configuration_file_and_all_is_written_down(
    pool_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 5e-4\nsteps: 7\nmodel: simclr\n")
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path / "out", "--name", "x", *TINY]
    assert _main(*argv, "--config", tmp_path / "mine.yaml", "--steps", "2") == 0
    run = tmp_path / "out" / "ssl" / "x"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["lr"], written["steps"], written["model"]) == (5e-4, 2, "simclr")
    # What neither file nor flag says comes from the recipe.
    assert written["optimizer"] == "adamw"
    assert "--steps 2" in (run / "command.txt").read_text()
    assert checkpoint.load(run / "last.ckpt")["recipe"]["lr"] == 5e-4


def test_epochs_are_counted_where_they_are_given(pool_folder: Path, tmp_path: Path) -> None:
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path, "--name", "x", *TINY]
    assert _main(*argv, "--epochs", "2", "--tile_size", "96") == 0
    status = json.loads((tmp_path / "ssl" / "x" / "status.json").read_text())
    # Twelve images of one tile each, six a step.
    assert status["step"] == 2 * 2


def test_a_run_without_a_length_has_the_default_one() -> None:
    assert _parse().steps is None and _parse().epochs is None
    assert make_plan(_parse(), 20, 0).total_steps == plan.DEFAULT_STEPS
    assert make_plan(_parse("--epochs", "3"), 20, 0).total_steps == 60
    # Steps that are given beat the epochs of a recipe.
    paper = _parse("--recipe", "paper", "--steps", "9")
    assert paper.epochs is None and make_plan(paper, 20, 0).total_steps == 9


def test_a_score_of_the_probe_takes_a_fiftieth_of_the_steps_between_two() -> None:
    def every(*flags: str) -> int:
        return make_plan(_parse(*flags), 20, 24 * 256**2).probe_every

    assert every("--steps", "3000") == 150
    # Such a score takes the work of 2.4 steps of 32 views of 128 pixels.
    assert every("--steps", "400") == 120
    assert every("--steps", "400", "--batch_size", "16", "--view_size", "64") == 960
    assert every("--steps", "400", "--probe_every", "7") == 7


# --- recipes ------------------------------------------------------------------------------------
def test_the_paper_recipe_of_matssl_has_the_published_numbers() -> None:
    c = _parse("--model", "matssl", "--recipe", "paper")
    assert (c.encoder, c.weights, c.in_channels, c.view_size) == ("resnet50", "imagenet", 3, 224)
    assert (c.optimizer, c.lr, c.momentum, c.weight_decay) == ("sgd", 0.1, 0.9, 1e-6)
    assert (c.epochs, c.steps, c.batch_size, c.schedule) == (100, None, 32, "cosine_epoch")
    assert (c.warmup, c.lr_scaling, c.clip) == (0.0, "none", 0.0)
    assert (c.temperature, c.hidden_dim, c.global_output_dim) == (0.07, 2048, 128)
    assert (c.scale_min, c.scale_max, c.d4, c.group_negatives) == (0.2, 1.0, "hflip", "keep")
    assert (c.brightness, c.contrast, c.photometry_p) == (0.4, 0.4, 0.8)
    assert (c.blur_p, c.blur_sigma, c.noise_p, c.solarise_p) == (0.5, 2.0, 0.0, 0.0)


def test_the_paper_recipe_of_simclr_has_the_published_numbers() -> None:
    c = _parse("--model", "simclr", "--recipe", "paper")
    assert (c.encoder, c.weights, c.view_size, c.batch_size) == ("resnet50", "none", 224, 4096)
    assert (c.optimizer, c.lr, c.lr_scaling, c.weight_decay) == ("lars", 0.3, "linear", 1e-6)
    assert (c.epochs, c.warmup, c.schedule) == (100, 0.1, "cosine")
    assert (c.temperature, c.hidden_dim, c.global_output_dim) == (0.1, None, 128)
    assert (c.scale_min, c.d4, c.brightness, c.contrast) == (0.08, "hflip", 0.8, 0.8)


@pytest.mark.parametrize("model", METHODS)
def test_our_recipe_is_made_for_micrographs(model: str) -> None:
    c = _parse("--model", model)
    assert (c.d4, c.in_channels) == ("full", 1)
    assert getattr(c, "group_negatives", "auto") == "auto"
    assert (c.scale_min, c.scale_max, c.solarise_p, c.warmup) == (0.3, 1.0, 0.0, 0.05)
    assert 32 <= c.batch_size <= 64


def test_the_published_flags_are_accepted() -> None:
    flags = "--model matssl --batch_size 16 --num_workers 2 --gpu_id 0 --global_output_dim 64"
    c = _parse(*flags.split())
    assert (c.batch_size, c.num_workers, c.gpu_id, c.global_output_dim) == (16, 2, 0, 64)
