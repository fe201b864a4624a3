"""Names and images that break a run: names are shown as they can be, a failure costs no other."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from matssl import pictures
from matssl.core import checkpoint
from matssl.core.errors import Incomplete, UserError, guard
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.data import layouts, readers
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.models.segmentation import build_model
from matssl.pictures import segmentation
from matssl.stages import drawing
from matssl.stages.evaluate import predict
from matssl.stages.failures import Failures, attempt

# Mathtext, bytes of Latin-1, as long as a file system allows, HTML, a formula, another script.
NAMES = [
    b"a$x^{$b.png",
    b"Gef\xfcge 1.png",
    b"n" * 251 + b".png",
    "ü".encode() * 120 + b".png",
    b"<b>x<img src=a>.png",
    b"=1+1.png",
    "試料 🔬.png".encode(),
    b"two\nlines.png",
]


def _image(seed: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8)).astype(np.uint8)
    return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)


def _png(image: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two classes whose names are no easier than those of the images."""
    torch.manual_seed(3)
    built = build_model("tu-test_resnet", "unet", 2)
    names = ("$\\alpha$ <b>", "_%s{}")
    table = ClassTable("index", tuple(MaskClass(i, n, (i,)) for i, n in enumerate(names)))
    path = tmp_path_factory.mktemp("model") / "best.ckpt"
    payload = {
        "stage": "finetune",
        "model": built.description,
        "state": built.state_dict(),
        "step": 1,
        "recipe": {},
        "preprocess": Preprocess().to_dict(),
        "classes": table.to_dict(),
        "lineage": [],
        "progress": {},
    }
    checkpoint.save(path, payload)
    return path


def _evaluate(model: Path, data: Path, out: Path, *more: object) -> int:
    argv = ["--model_path", model, "--dataset", data, "--output_dir", out, "--threads", 1]
    argv += ["--device", "cpu", "--quiet", *more]
    return guard(importlib.import_module("eval_model").main, [str(a) for a in argv])


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_images_of_any_name_are_predicted_and_drawn(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2: a$x^{$b.png killed the panels, Latin-1 bytes and 250 characters died while writing."""
    data = tmp_path / "data"
    data.mkdir()
    for number, name in enumerate(NAMES):
        Path(os.fsdecode(os.fsencode(data) + b"/" + name)).write_bytes(_png(_image(number)))
    assert _evaluate(model, data, tmp_path / "out", "--save_visualizations") == 0
    for kind in ("masks/index", "masks/colour", "masks/label", "visualizations"):
        files = [f for f in (tmp_path / "out" / kind).iterdir() if "vis_batch" not in f.name]
        assert len(files) == len(NAMES), kind
    assert len(_rows(tmp_path / "out" / "per_image.csv")) == len(NAMES)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<img src=a>" not in page and "&lt;b&gt;x&lt;img" in page
    json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "Warning" not in captured.err
    captured.out.encode("utf-8")


def test_long_names_stay_apart_and_short_ones_stay_as_they_are(tmp_path: Path) -> None:
    """D2: cut names end in a check sum of the whole."""
    long = [tmp_path / f"{'x' * 240}{i}.png" for i in range(3)]
    names = drawing.output_names([*long, tmp_path / "a.png", tmp_path / "ä b.tif"], tmp_path)
    assert names[3:] == ["a", "ä b"] and len(set(names)) == 5
    assert max(len(os.fsencode(name)) for name in names) <= drawing.LONGEST
    with atomic_path(tmp_path / f"{'ü' * 120}.png") as temporary:
        temporary.write_bytes(b"x")
    assert [p.name for p in tmp_path.iterdir()] == [f"{'ü' * 120}.png"]


def test_names_in_pictures_are_one_line_of_letters() -> None:
    """D2: no mathtext, no stray bytes, no label that a legend drops."""
    assert pictures.legible("a\nb\0c\udcfc") == "a b c\\udcfc"
    assert pictures.legible("_a") == " _a" and len(pictures.legible("x" * 500)) == 100
    assert not matplotlib.rcParams["text.parse_math"]


def test_one_image_that_fails_costs_no_other_and_the_run_ends_with_1(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2: a broken file, a fault of ours and a panel that cannot be drawn, one each."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(5):
        (data / f"field{chr(65 + number)}.png").write_bytes(_png(_image(number)))
    (data / "fieldB.png").write_bytes(_png(_image(1))[:-40])
    real, draw = predict._one_image, segmentation.panel

    def fails(*args: Any) -> Any:
        if args[3].image.name == "fieldC.png":
            raise ZeroDivisionError("a fault of ours")
        return real(*args)

    def fails_to_draw(*args: Any, **kwargs: Any) -> None:
        if args[5] == "fieldD.png":
            raise ValueError("cannot be drawn")
        draw(*args, **kwargs)

    monkeypatch.setattr(predict, "_one_image", fails)
    monkeypatch.setattr(segmentation, "panel", fails_to_draw)
    out = tmp_path / "out"
    assert _evaluate(model, data, out) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "3 of 5 images failed" in error and "fieldB.png" in error
    bad = {Path(row["image"]).name: row["reason"] for row in _rows(out / "bad_images.csv")}
    assert list(bad) == ["fieldB.png", "fieldC.png", "fieldD.png"]
    assert bad["fieldC.png"] == "ZeroDivisionError: a fault of ours"
    assert "Traceback" in (out / "errors.txt").read_text()
    done = [Path(row["image"]).name for row in _rows(out / "per_image.csv")]
    assert done == ["fieldA.png", "fieldD.png", "fieldE.png"]
    assert (out / "report.html").is_file()
    assert len(json.loads((out / "metrics.json").read_text())["failed"]) == 2
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["images"], status["failed"]) == ("done", 3, 3)


@pytest.mark.parametrize("broken", ["test", "test_annot"])
def test_a_broken_image_or_mask_costs_no_other_its_score(
    broken: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2: of four labelled images one cannot be read."""
    for part in ("test", "test_annot"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for number in range(4):
        image = _image(number)
        for part, content in (("test", image), ("test_annot", (image > 127).astype(np.uint8))):
            (tmp_path / "data" / part / f"f{chr(65 + number)}.png").write_bytes(_png(content))
    path = tmp_path / "data" / broken / "fB.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert _evaluate(model, tmp_path / "data", tmp_path / "out") == 1
    assert f"{broken}/fB.png is broken" in capsys.readouterr().err
    rows = _rows(tmp_path / "out" / "per_image.csv")
    assert [Path(row["image"]).stem for row in rows] == ["fA", "fC", "fD"]
    assert all(row["miou"] for row in rows)


def test_where_all_images_fail_there_is_no_result_and_the_exit_code_is_2(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2: nothing is no result."""
    data = tmp_path / "data"
    data.mkdir()
    for name in "ab":
        (data / f"{name}.png").write_bytes(_png(_image(1))[:-40])
    assert _evaluate(model, data, tmp_path / "out") == 2
    assert "all 2 images failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(28, "No space left"), RuntimeError("can't allocate memory")]
)
def test_what_concerns_all_images_is_no_failure_of_one(error: Exception, tmp_path: Path) -> None:
    """D2: a full disk or memory ends the run."""
    failed = Failures(RunFolder(tmp_path, resumed=False))
    with pytest.raises(type(error)), failed.of(tmp_path / "a.png"):
        raise error

    def read(path: Path) -> str:
        raise error if path.name == "a" else UserError("broken")

    with pytest.raises(type(error)):
        attempt(read, [Path("a")])(0)
    assert isinstance(attempt(read, [Path("b")])(0), UserError)
    failed.end(3, 2)
    failed.note(Path("b"), UserError("broken"))
    with pytest.raises(Incomplete, match="1 of 3 images failed"):
        failed.end(3, 2)


def test_what_the_file_system_refuses_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D7: an unreadable folder was a traceback; other faults keep theirs."""

    def main(argv: Sequence[str]) -> int:
        raise OSError(getattr(errno, argv[0]), os.strerror(getattr(errno, argv[0])), "a/b")

    for name in ("EACCES", "EROFS", "ENOSPC", "ENAMETOOLONG", "EIO"):
        assert guard(main, [name]) == 2
        assert capsys.readouterr().err == f"error: a/b: {os.strerror(getattr(errno, name))}\n"
    with pytest.raises(OSError):
        guard(main, ["EBADF"])


def test_a_folder_that_cannot_be_looked_into_is_said_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: the images in it were missed in silence."""
    (tmp_path / "a.png").write_bytes(_png(_image(0)))
    (tmp_path / "sub").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images, left_out = layouts.unlabelled(tmp_path)
    assert [path.name for path in images] == ["a.png"]
    assert [(item.path.name, item.why) for item in left_out] == [("sub", "may not be read")]


def test_names_are_sorted_whatever_digits_they_hold() -> None:
    """D7: "²" is a digit, but no number."""
    assert sorted(["b10", "²1", "b2", "²"], key=readers.natural)[:2] == ["b2", "b10"]
