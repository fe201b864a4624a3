"""Files of ours that were torn, changed or garbled: told apart from those that were written."""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from matssl import weights
from matssl.core import checkpoint, digest
from matssl.core.errors import DiskFull, UserError, guard
from matssl.core.lineage import Lineage
from matssl.core.run_folder import RunFolder
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.models.segmentation import SegmentationModel, build_model
from matssl.pictures import training, undrawn
from matssl.stages import resume
from matssl.stages.pretrain.loop import Run
from matssl.trained.segmenter import Segmenter
from matssl.weights import encoder_file

pytestmark = pytest.mark.usefixtures("no_drawing")

TINY = ["--view_size", "32", "--tile_size", "48", "--batch_size", "6", "--threads", "1"]
TINY += ["--encoder", "tu-test_resnet", "--hidden_dim", "32", "--global_output_dim", "16"]
TINY += ["--precision", "fp32", "--steps", "6", "--checkpoint_every", "2"]


def _pretrain(pool: Path, out: Path, *more: object) -> int:
    argv = ["--data_path", pool, "--output_dir", out, "--name", "x", *TINY, *more]
    return guard(importlib.import_module("train_ssl").main, [str(a) for a in argv])


@functools.cache
def _model() -> SegmentationModel:
    torch.manual_seed(3)
    return build_model("tu-test_resnet", "unet", 2)


def _payload() -> dict[str, Any]:
    model = _model()
    table = ClassTable("index", (MaskClass(0, "matrix", (0,)), MaskClass(1, "pore", (1,))))
    return {
        "stage": "finetune",
        "model": model.description,
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "step": 1,
        "recipe": {},
        "preprocess": Preprocess().to_dict(),
        "classes": table.to_dict(),
        "lineage": [],
        "progress": {},
    }


def _refused(path: Path, told: str) -> None:
    with pytest.raises(UserError) as caught:
        Segmenter.load(path, device="cpu")
    sentence = str(caught.value)
    assert told in sentence and str(path) in sentence and "\n" not in sentence, sentence


# --- D1: what is written is what is read ----------------------------------------------------------
def test_a_digest_tells_places_types_shapes_and_values_and_no_layout() -> None:
    """D1: SHA-256 of the tensors, whatever their order and layout in memory."""
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    same = {"b": [torch.tensor(1)], "a": image.contiguous(memory_format=torch.channels_last)}
    whole = digest.of_tensors({"a": image, "b": [torch.tensor(1)], "note": "x"})
    assert whole == digest.of_tensors(same) and len(whole) == 64
    others = (
        {"a": image, "b": [torch.tensor(2)]},
        {"a": image, "c": [torch.tensor(1)]},
        {"a": image.reshape(1, 3, 2, 4), "b": [torch.tensor(1)]},
        {"a": image, "b": [torch.tensor(1, dtype=torch.int32)]},
        {"a": image},
    )
    assert len({whole, *map(digest.of_tensors, others)}) == 6


def test_a_flipped_bit_in_tensors_or_records_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """D1: flipped bits were scored with exit code 0."""
    payload, path = _payload(), tmp_path / "best.ckpt"
    checkpoint.save(path, payload)
    assert digest.ENTRY not in checkpoint.load(path)
    Segmenter.load(path, device="cpu")
    whole = path.read_bytes()
    kernel = payload["state"]["encoder.model.conv1.0.weight"].numpy().tobytes()
    for place in (whole.index(kernel[:32]) + 2, whole.index(b"crop_bottom") + 3):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        _refused(path, "is damaged")
    old = {name: value for name, value in payload.items()}
    torch.save({"format": checkpoint.FORMAT, **old}, path)
    # Of before: no digest, nothing to compare.
    Segmenter.load(path, device="cpu")


def test_an_encoder_file_carries_a_digest_and_is_refused_where_it_differs(tmp_path: Path) -> None:
    """D1: every file of ours; those of before have none."""
    path = tmp_path / "encoder.safetensors"
    parts = {"encoder": {"w": torch.randn(3, 4), "b": torch.zeros(3)}}
    encoder_file.write(path, parts, Lineage())
    with safe_open(path, "pt") as file:
        facts = dict(file.metadata())
    tensors = weights.read(path).tensors
    assert facts[digest.ENTRY] == digest.of_tensors(tensors)
    tensors["encoder.b"] = torch.ones(3)
    save_file(tensors, path, facts)
    with pytest.raises(UserError, match="is damaged"):
        weights.read(path)
    del facts[digest.ENTRY]
    save_file(tensors, path, facts)
    assert torch.equal(weights.read(path).tensors["encoder.b"], torch.ones(3))
    tensors["encoder.b"] = torch.full((3,), math.nan)
    save_file(tensors, path, facts)
    with pytest.raises(UserError, match="not finite in 1 tensors"):
        weights.read(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder.model.conv1.0.weight", "encoder.model.bn1.running_var"])
def test_weights_and_statistics_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, name: str, value: float
) -> None:
    """D1: a model of NaN was scored as "background 100 %"."""
    payload, path = _payload(), tmp_path / "best.ckpt"
    payload["state"][name].view(-1)[0] = value
    with pytest.raises(UserError, match=r"was not written: .* not finite in 1 tensors"):
        checkpoint.save(path, payload)
    assert not list(tmp_path.iterdir())
    torch.save({"format": checkpoint.FORMAT, **payload}, path)
    _refused(path, "not finite in 1 tensors")


def _table(**more: Any) -> dict[str, Any]:
    return {**_payload()["classes"], **more}


def _classes(*entries: dict[str, Any]) -> dict[str, Any]:
    own = _payload()["classes"]["classes"]
    return {"classes": [{**a, **b} for a, b in zip(own, entries, strict=True)]}


@pytest.mark.parametrize(
    ("part", "entries", "told"),
    [
        ("preprocess", {"std": [0.0]}, "std is out of range"),
        ("preprocess", {"std": [math.nan]}, "std is no number"),
        ("preprocess", {"mean": [0.5] * 3, "std": [0.2] * 3}, "3 means and 3 deviations for 1"),
        ("preprocess", {"mean": []}, "0 means"),
        ("preprocess", {"mean": 0.5}, "mean is no list"),
        ("preprocess", {"window": "wide"}, "window is none of"),
        ("preprocess", {"crop_bottom": -3}, "crop_bottom is out of range"),
        ("preprocess", {"crop_bottom": "most"}, "crop_bottom is no whole number"),
        ("preprocess", {"pixel_size": 0.0}, "pixel_size is out of range"),
        ("preprocess", {"resize": 10**400}, "damaged"),
        ("preprocess", {"color": None}, "color is none of"),
        ("classes", {"classes": []}, "has no classes"),
        ("classes", {"classes": 3}, "has no classes"),
        ("classes", {"rest_index": 7}, "rest_index is out of range"),
        ("classes", _classes({"index": 1}, {}), "has no class 0"),
        ("classes", _classes({"name": ""}, {}), "has no name"),
        ("classes", _classes({"values": [1]}, {}), "lists a value twice"),
        ("classes", _classes({"values": ["#zzzzzz"]}, {}), "damaged"),
        ("model", {"num_classes": 10**9}, "has not the 2 classes of its table"),
        ("model", {"in_channels": 3}, "has not the 1 channels of its record"),
        ("state", {"encoder.model.conv1.0.weight": torch.zeros(1)}, "damaged"),
    ],
)
def test_a_record_that_nobody_wrote_is_refused(
    tmp_path: Path, part: str, entries: dict[str, Any], told: str
) -> None:
    """D1: a std of 0, a mean of three for one channel, a bad class table were used."""
    payload, path = _payload(), tmp_path / "best.ckpt"
    checkpoint.save(path, {**payload, part: {**payload[part], **entries}})
    _refused(path, told)


@pytest.mark.parametrize("part", ["preprocess", "classes", "model", "state"])
@pytest.mark.parametrize("value", [None, 5, "x", [1, 2]])
def test_a_part_of_a_checkpoint_that_is_none_is_refused(
    tmp_path: Path, part: str, value: object
) -> None:
    """D1, D5: AttributeError, ValueError."""
    checkpoint.save(tmp_path / "best.ckpt", {**_payload(), part: value})
    _refused(tmp_path / "best.ckpt", "holds no" if part == "state" else "damaged")
    checkpoint.save(tmp_path / "best.ckpt", {k: v for k, v in _payload().items() if k != part})
    told = "holds no" if part == "state" else f"it has no '{part}'"
    _refused(tmp_path / "best.ckpt", told)


# --- D6: a run goes on from what is whole ---------------------------------------------------------
Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, Damage] = {
    "no optimizer": lambda p: p.pop("optimizer"),
    "no state": lambda p: p.pop("state"),
    "no step": lambda p: p.pop("step"),
    "no recipe": lambda p: p.pop("recipe"),
    "no lineage": lambda p: p.pop("lineage"),
    "an empty recipe": lambda p: p.update(recipe={}),
    "a recipe that is a list": lambda p: p.update(recipe=[1]),
    "a lineage that is a word": lambda p: p.update(lineage="x"),
    "an optimizer of nothing": lambda p: p["optimizer"].update(state={}),
    "an optimizer without groups": lambda p: p["optimizer"].pop("param_groups"),
    "an optimizer of other weights": lambda p: p["optimizer"]["state"][0].update(
        {k: torch.zeros(1, 1) for k, v in p["optimizer"]["state"][0].items() if v.dim()}
    ),
    "a step of 1e9": lambda p: p.update(step=10**9),
    "a step of -3": lambda p: p.update(step=-3),
    "a step that is a word": lambda p: p.update(step="x"),
    "a state of one tensor": lambda p: p.update(state={"w": torch.zeros(1)}),
    "progress that is none": lambda p: p.update(progress={"best": "x"}),
}


@pytest.fixture(scope="module")
def broken_off(pool_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of six steps: "whole" is unbroken, of "x" four steps are done."""
    out = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch, undrawn():
        assert _pretrain(pool_folder, out, "--quiet") == 0
        (out / "ssl" / "x").rename(out / "ssl" / "whole")
        real = Run._one_step

        def killed(self: Run, batch: Any) -> dict[str, float]:
            if self.step == 5:
                raise KeyboardInterrupt
            return real(self, batch)

        patch.setattr(Run, "_one_step", killed)
        assert _pretrain(pool_folder, out, "--quiet") == 130
    return out


@pytest.fixture
def copy_of(broken_off: Path, tmp_path: Path) -> Path:
    """The folder of a run that broke off behind step 5, with checkpoints of 2 and 4."""
    import shutil

    shutil.copytree(broken_off / "ssl" / "x", tmp_path / "ssl" / "x")
    return tmp_path / "ssl" / "x"


def test_the_checkpoint_before_the_last_is_kept(copy_of: Path) -> None:
    """D6: last.prev.ckpt."""
    steps = [checkpoint.load(copy_of / name)["step"] for name in ("last.ckpt", "last.prev.ckpt")]
    assert steps == [4, 2]


@pytest.mark.parametrize("torn", ["cut", "gone", "flipped", "not a file of torch"])
def test_a_run_whose_last_checkpoint_is_torn_goes_on_from_the_one_before_to_the_same_bits(
    torn: str,
    copy_of: Path,
    broken_off: Path,
    pool_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """D6: a truncated last.ckpt left nothing."""
    last = copy_of / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 16
    content = {"cut": data[: len(data) // 2], "flipped": data, "not a file of torch": b"root:x:0:0"}
    last.unlink() if torn == "gone" else last.write_bytes(content[torn])
    assert _pretrain(pool_folder, copy_of.parent.parent, "--resume") == 0
    said = capsys.readouterr().out
    assert "the run goes on from" in said and "last.prev.ckpt, step 2" in said
    files = [run / "encoder.safetensors" for run in (copy_of, broken_off / "ssl" / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # The torn one has not taken the place of the good one.
    steps = [checkpoint.load(copy_of / name)["step"] for name in ("last.ckpt", "last.prev.ckpt")]
    assert steps == [6, 6]
    assert len((copy_of / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_garbled_checkpoint_is_not_gone_on_from(
    damage: str, copy_of: Path, pool_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D6: KeyError; a step of 1e9 or -3 was accepted."""
    for name in ("last.ckpt", "last.prev.ckpt"):
        payload = checkpoint.load(copy_of / name)
        DAMAGES[damage](payload)
        checkpoint.save(copy_of / name, payload)
    assert _pretrain(pool_folder, copy_of.parent.parent, "--resume", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and "damaged" in error
    assert "nor can the one before it be used" in error


def test_another_plan_is_no_damage(
    copy_of: Path, pool_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D6: the checkpoint before the last is not asked where the user changed the plan."""
    argv = ["--resume", "--quiet", "--lr", "0.5"]
    assert _pretrain(pool_folder, copy_of.parent.parent, *argv) == 2
    error = capsys.readouterr().err
    assert "--lr was" in error and "before it" not in error


ROWS = b"step,loss,verdict\n1,0.5,healthy\n2,0.25,healthy\n3,0.125,healthy\n"
TORN = {
    "half a line": ROWS[:-9],
    "zeros": ROWS + b"\0" * 30,
    "a quote": ROWS + b'4,"0.5\n',
    "no number": ROWS + b"x,y,z\n",
    "a number beyond all": ROWS + b"9" * 5000 + b",1,a\n",
    "no UTF-8": ROWS + b"4,\xff\xfe,b\n",
    "other digits": ROWS + "²,1,a\n".encode(),
    "a short line": ROWS + b"1\n",
    "half a header": b"ste",
    "half a header line": b"step,lo\n",
    "nothing": b"",
    "garbage": bytes(range(1, 255)),
}


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_table_is_cut_back_to_its_whole_lines(torn: str, tmp_path: Path) -> None:
    """D6: eight of fifteen torn logs ended in a traceback."""
    (tmp_path / "log.csv").write_bytes(TORN[torn])
    folder = RunFolder(tmp_path, resumed=True)
    folder.truncate_csv("log.csv", "step", 2)
    folder.append_csv("log.csv", {"step": 3, "loss": 0.125, "verdict": "healthy"})
    text = (tmp_path / "log.csv").read_bytes()
    if TORN[torn].startswith(ROWS[:20]):
        assert text == ROWS
    else:
        assert text.splitlines()[-1] == b"3,0.125,healthy" and text.count(b"step") == 1


@pytest.mark.parametrize(
    "rest",
    [b'{"step": 3, "lo', b"\0\0\0", b"[1]\n", b'{"step": "x", "loss": 1}\n', b"\xff\n", b"5\n"]
    + [b'{"loss": 1}\n', b"[" * 5000 + b"\n", b'{"step": 1e999, "loss": 1}\n', b"\n\n"],
)
def test_torn_lines_of_metrics_jsonl_are_dropped(rest: bytes, tmp_path: Path) -> None:
    """D6: JSONDecodeError, KeyError, TypeError."""
    good = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + rest)
    losses = resume.rewind(RunFolder(tmp_path, resumed=True), 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good
    np.testing.assert_equal(losses, [0.5, math.nan])


def test_every_line_of_a_log_survives_that_is_whole(tmp_path: Path) -> None:
    """D6: the opposite fault."""
    rows = [{"step": i, "loss": i / 3, "verdict": "a, 'b' \"c\""} for i in range(1, 9)]
    folder = RunFolder(tmp_path, resumed=True)
    for row in rows:
        folder.append_csv("log.csv", row)
        folder.append_jsonl("metrics.jsonl", row)
    before = (tmp_path / "log.csv").read_bytes()
    assert resume.rewind(folder, 8) == [row["loss"] for row in rows]
    assert (tmp_path / "log.csv").read_bytes() == before
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == rows[-1]


def test_a_log_whose_heading_is_damaged_is_no_reason_to_end_a_run(tmp_path: Path) -> None:
    """D6: KeyError: 'rank'; a column twice."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss,r\0nk\n1,0.5,2\n".replace("\0", "x"))
    table = training.read_table(path)
    assert "rank" not in table and np.isnan(table["rank"]).tolist() == [True]
    path.write_text("step,step,rank\n1,0.5,2\n")
    assert not training.read_table(path)


@pytest.mark.parametrize(
    "told", ["[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0", "iostream error"]
)
def test_a_write_that_torch_calls_otherwise_is_a_full_disk(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by benchmarks.full_disk: a traceback where the disk fills up within a checkpoint."""
    checkpoint.save(tmp_path / "last.ckpt", {"step": 1})

    def fails(content: object, path: Path) -> None:
        raise RuntimeError(told)

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(DiskFull, match="the disk is full: .*last.ckpt could not be written"):
        checkpoint.save(tmp_path / "last.ckpt", {"step": 2}, keep=checkpoint.PREVIOUS)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert checkpoint.load(tmp_path / "last.ckpt")["step"] == 1
