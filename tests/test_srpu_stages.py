"""Training of SRPU-Model, at once and in stages: S-11, S-12, S-13; F-S1, F-S15, F-S19."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from srpu_project import MAPPING, project

import train_finetune
from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.models.segmentation import build_model
from matssl.pictures import undrawn
from matssl.stages import lineage
from matssl.stages.finetune.learner import Learner
from matssl.stages.finetune.stage_plan import read_stages

STEADY = ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
PLAN = ["--encoder", "tu-test_resnet", "--decoder", "unet", "--crop_size", "32", "--lr", "0.01"]
PLAN += ["--batch_size", "2", "--val_every", "2", "--checkpoint_every", "1", "--quiet"]
FIRST = {"name": "first", "datasets": ["dataset1_LInCl"], "num_epochs": 2, "base_lr": 0.01}
SECOND = {
    "name": "second",
    "datasets": ["dataset2_LPSCl"],
    "num_epochs": 3,
    "batch_size": 2,
    "base_lr": 0.005,
    "encoder_lr": 0.0005,
    "finetune_mode": "finetune_differential",
}


THIRD = {"name": "third", "num_epochs": 1, "batch_size": 4, "finetune_mode": "finetune_frozen"}
STAGES = [FIRST, SECOND, THIRD]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, five images to train of the first and three of the second."""
    root = tmp_path_factory.mktemp("project")
    frames = {
        "dataset1_LInCl": ("4.2V-009", "4.2V-010", "4.4V-006", "4.4V-007", "pristine-001"),
        "dataset2_LPSCl": ("LPSCl-011", "LPSCl-012", "LPSCl-013", "cycled-003", "aged-001"),
    }
    datasets = project(root, frames, pool=False)
    (root / "base.py").write_text(MAPPING)
    table = {"train": ["4.2V", "4.4V", "LPSCl"], "val": ["pristine", "cycled"], "test": ["aged"]}
    names = [name for own in frames.values() for name in own]
    parts = {
        split: [name for name in names if name.rsplit("-", 1)[0] in own]
        for split, own in table.items()
    }
    (root / "splits.json").write_text(json.dumps(parts))
    return datasets


def _argv(data: Path, out: Path, stages: object, *more: object) -> list[str]:
    path = out / "stages.yaml"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"stages": stages}))
    words = ["--finetune_dataset", data, "--splits", data.parent / "splits.json"]
    words += ["--classes", data.parent / "base.py", "--stages", path, "--output_dir", out / "runs"]
    return [*map(str, words), "--name", "s", *PLAN, *STEADY, *map(str, more)]


def _state(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path)["state"]


def _same(a: Path, b: Path) -> bool:
    one, other = _state(a), _state(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    """Drawing curves costs more than training does here; tests of reports draw them."""
    with undrawn():
        yield


# What each stage begins with, in the unbroken training.
BEGUN: list[dict[str, torch.Tensor]] = []


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in three stages with replay, unbroken; the folder of all stages."""
    out = tmp_path_factory.mktemp("unbroken")
    before = Learner.learn

    def look(self: Learner, step: int, lr: float, *batch: torch.Tensor) -> float:
        if step == 0:
            BEGUN.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return before(self, step, lr, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", look)
        train_finetune.main(_argv(data, out, STAGES, "--replay", "0.4"))
    return out / "runs" / "finetune" / "s"


# --- S-13: each stage from the best of the one before -----------------------------------------
def test_each_stage_starts_from_the_best_model_of_the_one_before(trained: Path) -> None:
    """S-13; F-S1: all tensors arrive, head included."""
    start = _state(trained / "01_first" / "best.ckpt")
    last = checkpoint.load(trained / "02_second" / "last.ckpt")
    assert last["recipe"]["ssl_weights_path"] == str(trained / "01_first" / "best.ckpt")
    said = last["progress"]["start"]
    encoder = sum(name.startswith("encoder.") for name in start)
    assert f"{encoder} of {encoder} encoder tensors loaded" in said
    assert f"decoder and head: all {len(start) - encoder} tensors loaded" in said
    assert _same(trained / "best.ckpt", trained / "03_third" / "best.ckpt")


def test_a_stage_begins_with_the_tensors_that_the_one_before_kept(trained: Path) -> None:
    """F-S1, by the numbers."""
    assert len(BEGUN) == 3
    for place, name in enumerate(("01_first", "02_second"), start=1):
        kept = _state(trained / name / "best.ckpt")
        assert all(torch.equal(BEGUN[place][k], kept[k]) for k in kept)


def test_a_stage_has_its_own_images_length_batch_and_rates(trained: Path) -> None:
    """S-12, S-13: the keys of the program's stages act."""
    first, second = (
        checkpoint.load(trained / name / "last.ckpt") for name in ("01_first", "02_second")
    )
    # 4 images, 2 a batch, 2 epochs; 3 and 2 of the first stage, 2 a batch, 3 epochs.
    assert (first["step"], second["step"]) == (4, 6)
    recipe = second["recipe"]
    assert (recipe["lr"], recipe["encoder_lr_factor"], recipe["batch_size"]) == (0.005, 0.1, 2)
    rates = sorted(
        group["lr"] / group.get("initial_lr", 1) for group in second["optimizer"]["param_groups"]
    )
    assert rates[-1] == pytest.approx(10 * rates[0])
    stems = [Path(p).stem for p in first["progress"]["train_images"]]
    assert sorted(stems) == ["4.2V-009", "4.2V-010", "4.4V-006", "4.4V-007"]


def test_a_frozen_encoder_stays_as_it_is_with_its_batchnorm(trained: Path) -> None:
    """S-12; F-S19: running statistics moved in a frozen encoder."""
    before, after = _state(trained / "02_second/best.ckpt"), _state(trained / "03_third/last.ckpt")
    own = [name for name in before if name.startswith("encoder.") and "num_batches" not in name]
    assert any("running_mean" in name for name in own)
    assert all(torch.equal(before[name], after[name]) for name in own)
    head = "segmentation_head.0.weight"
    assert not torch.equal(before[head], after[head])


# --- F-S19: replay ----------------------------------------------------------------------------
def test_a_share_of_the_images_of_former_stages_comes_again(trained: Path) -> None:
    """F-S19: 3 of the second stage and 2 of the first are 40 % replayed."""
    plan = json.loads((trained / "stages.json").read_text())
    second = plan["stages"][1]
    assert len(second["train"]) == 3 and len(second["replayed"]) == 2
    assert all(name.startswith("dataset1_LInCl/") for name in second["replayed"])
    assert plan["stages"][0]["replayed"] == []
    # Validation and test images train in no stage.
    taught = {name for stage in plan["stages"] for name in (*stage["train"], *stage["replayed"])}
    held = {name for stage in plan["stages"] for name in stage["val"]}
    assert not taught & held and not any("aged" in name for name in taught | held)


def test_the_last_model_knows_all_images_that_taught_it(trained: Path) -> None:
    """What an evaluation warns of: a stage has seen the images of those before it, too."""
    images = checkpoint.load(trained / "best.ckpt")["progress"]["train_images"]
    assert len(images) == len(set(images)) == 7


def test_a_table_tells_what_is_forgotten(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "stages.csv").open()))
    assert [row["stage"] for row in rows] == ["first", "second", "third"]
    assert all(0 <= float(row[f"miou {n}"]) <= 1 for row in rows for n in ("first", "second"))
    best = checkpoint.load(trained / "01_first" / "best.ckpt")["progress"]["best"]
    assert float(rows[0]["miou first"]) == pytest.approx(best, abs=1e-4)


# --- a kill -----------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [3, 6])
def test_a_run_that_is_broken_off_in_any_stage_goes_on_to_the_same_bits(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Four steps are of the first stage, six of the second, two of the third."""
    taken = 0
    before = Learner.learn

    def learn(self: Learner, *arguments: object) -> float:
        nonlocal taken
        taken += 1
        if taken == at:
            raise KeyboardInterrupt
        return before(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "learn", learn)
    argv = _argv(data, tmp_path, STAGES, "--replay", "0.4")
    with pytest.raises(KeyboardInterrupt):
        train_finetune.main(argv)
    monkeypatch.undo()
    train_finetune.main([*argv, "--resume"])
    root = tmp_path / "runs/finetune/s"
    for name in ("01_first", "02_second", "03_third"):
        assert _same(root / name / "best.ckpt", trained / name / "best.ckpt")
    assert (root / "stages.csv").read_text() == (trained / "stages.csv").read_text()


def test_another_plan_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    first = {**FIRST, "num_epochs": 1}
    train_finetune.main(_argv(data, tmp_path, [first]))
    longer = {**FIRST, "num_epochs": 3}
    with pytest.raises(UserError, match="stage first changed since"):
        train_finetune.main(_argv(data, tmp_path, [longer], "--resume"))
    with pytest.raises(UserError, match="number of stages changed"):
        train_finetune.main(_argv(data, tmp_path, [first, SECOND], "--resume"))


# --- F-S1: refusals ---------------------------------------------------------------------------
def test_weights_that_do_not_arrive_are_refused(trained: Path, tmp_path: Path) -> None:
    """F-S1: zero of seventy-two tensors were matched, and success was printed."""
    payload = checkpoint.load(trained / "01_first/best.ckpt")
    model = build_model(**payload["model"])
    wrapped = {f"module.{k}": v for k, v in payload["state"].items()}
    checkpoint.save(tmp_path / "wrapped.ckpt", {**payload, "state": wrapped})
    with pytest.raises(UserError, match="wrapped.ckpt is another model's: .* tensors do not fit"):
        lineage.start_model(model, tmp_path / "wrapped.ckpt")
    report = lineage.start_model(model, trained / "01_first/best.ckpt")
    assert report.matched == report.total > 0


def test_weights_of_another_encoder_are_refused_for_the_first_stage(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    """F-S1: pretrained_encoder_path of the program's stages."""
    first = {**FIRST, "pretrained_encoder_path": str(trained / "best.ckpt")}
    argv = _argv(data, tmp_path, [first])
    argv[argv.index("tu-test_resnet")] = "resnet18"
    with pytest.raises(UserError, match="failed: "):
        train_finetune.main(argv)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{**FIRST, "datasets": ["dataset9"]}], "dataset9, which is no folder"),
        ([{**FIRST, "num_epoch": 3}], "unknown setting num_epoch; num_epochs?"),
        ([{**FIRST, "num_epochs": 0}], "num_epochs of first must be a whole number from 1"),
        ([{**FIRST, "base_lr": "fast"}], "base_lr of first must be a number"),
        ([{**FIRST, "finetune_mode": "frozen"}], "finetune_mode of first must be one of"),
        ([FIRST, {**FIRST}], "two stages are called first"),
        ([{**FIRST, "name": "a/b"}], "needs a name of letters"),
        ([FIRST, {**SECOND, "pretrained_encoder_path": "x"}], "goes on from the stage before"),
        ([], "lists no stages"),
    ],
)
def test_what_is_wrong_with_stages_is_said_and_nothing_is_written(
    data: Path, tmp_path: Path, stages: list[dict[str, object]], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        train_finetune.main(_argv(data, tmp_path, stages))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_numbers_without_a_point_and_unused_keys_of_the_program(tmp_path: Path) -> None:
    """F-C5 in its stages; train_json and val_json are said to act nowhere."""
    path = tmp_path / "stages.yaml"
    path.write_text("- {name: a, base_lr: 5e-4, train_json: x.json}\n- {name: b}\n")
    stages, notes = read_stages(path)
    assert [stage.base_lr for stage in stages] == [0.0005, None]
    assert len(notes) == 1 and notes[0].startswith("train_json of the stages is not used")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--folds", "2"], "--stages trains one model"),
        (["--head", "forest"], "have no --stages"),
    ],
)
def test_flags_that_do_not_go_with_stages(
    data: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train_finetune.main(_argv(data, tmp_path, [FIRST], *more))
    argv = ["--finetune_dataset", str(data), "--replay", "0.2"]
    with pytest.raises(UserError, match="--replay .* acts with --stages"):
        train_finetune.main(argv)


# --- S-11, F-S15 ------------------------------------------------------------------------------
def test_a_supervised_training_keeps_the_best_and_goes_on_exactly(
    data: Path, tmp_path: Path
) -> None:
    """S-11; F-S15: resuming keeps the score of the best, so that no worse model takes its place."""
    words = ["--finetune_dataset", data, "--splits", data.parent / "splits.json", "--classes"]
    words += [data.parent / "base.py", "--output_dir", tmp_path, "--name", "a", "--epochs", "4"]
    argv = [*map(str, words), *PLAN, *STEADY]
    train_finetune.main(argv)
    root = tmp_path / "finetune" / "a"
    rows = list(csv.DictReader((root / "log.csv").open()))
    best = max(float(row["val_miou"]) for row in rows)
    assert checkpoint.load(root / "best.ckpt")["progress"]["best"] == pytest.approx(best, abs=1e-6)
    assert {f"iou {name}" for name in ("carbon", "SE", "AM")} <= set(rows[0])


def test_a_stage_without_validation_hands_its_last_model_on(data: Path, tmp_path: Path) -> None:
    """F-S15: nothing was saved, and the next stage began with random weights."""
    stages = [{**FIRST, "num_epochs": 1}, {**SECOND, "num_epochs": 1}]
    argv = _argv(data, tmp_path, stages, "--val_fraction", "0")
    splits = json.loads((data.parent / "splits.json").read_text())
    (tmp_path / "train.txt").write_text("\n".join(splits["train"]))
    argv[argv.index("--splits") + 1] = str(tmp_path / "train.txt")
    train_finetune.main(argv)
    root = tmp_path / "runs/finetune/s"
    first = checkpoint.load(root / "01_first/best.ckpt")
    assert first["step"] == 2
    assert (
        "decoder and head: all"
        in checkpoint.load(root / "02_second/last.ckpt")["progress"]["start"]
    )
