"""Phase maps without labels: how prototypes join, where borders lie, what the command writes."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from matssl import phases
from matssl.core import checkpoint, palette
from matssl.core.errors import guard
from matssl.core.labels import IGNORE
from matssl.data import synthetic
from matssl.data.preprocess import Preprocess
from matssl.methods.slotcon.method import SlotCon, SlotConSettings
from matssl.models.encoders import build_encoder
from matssl.stages.phase_map import clustering, rename
from matssl.stages.phase_map.settings import new_names
from matssl.tools import measure, rename_phases
from matssl.tools import phase_map as tool
from matssl.trained import member

PROTOTYPES = 6
RECIPE = {"encoder": "resnet18", "in_channels": 1, "prototypes": PROTOTYPES, "dense_stage": 2}
RECIPE |= {"hidden_dim": 16, "global_output_dim": 8}


# --- joining prototypes ---
def test_prototypes_that_compete_for_the_same_cells_are_joined_first() -> None:
    # Assignments of four cells: the first two prototypes share theirs, the third has its own.
    cells = np.array([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.1, 0.0, 0.9], [0.0, 0.1, 0.9]])
    alike, won = cells.T @ cells, np.array([0.25, 0.25, 0.5])
    # By the number of cells: the third wins 2, the joined ones 2; ties keep their order.
    assert phases.join(alike, won, 0.0, 2).tolist() == [0, 0, 1]
    assert phases.join(alike, won, 0.0, None).tolist() == [1, 2, 0]
    assert phases.join(alike, won, 0.0, 1).tolist() == [0, 0, 0]


def test_a_rare_prototype_joins_its_likest_and_a_rare_phase_of_its_own_stays() -> None:
    alike = np.diag([9.0, 5.0, 0.5, 0.2])
    alike[0, 2] = alike[2, 0] = 0.3
    won = np.array([0.6, 0.35, 0.005, 0.045])
    assert phases.join(alike, won, 0.01, None).tolist() == [0, 1, 0, 2]
    # The frequent two are more alike: joined before the last, which is like none and wins enough.
    alike[0, 1] = alike[1, 0] = 2.0
    won = np.array([0.6, 0.34, 0.005, 0.055])
    assert phases.join(alike, won, 0.01, 2).tolist() == [0, 0, 0, 1]
    # With 4 % it takes less than a tenth of an even share of two, so that the frequent two stay.
    won = np.array([0.6, 0.355, 0.005, 0.04])
    assert phases.join(alike, won, 0.01, 2).tolist() == [0, 1, 0, 0]
    assert phases.join(alike, won, 0.01, 3).tolist() == [0, 1, 0, 2]


def test_prototypes_without_cells_belong_to_some_phase() -> None:
    phase = phases.join(np.diag([3.0, 2.0, 0.0]), np.array([0.6, 0.4, 0.0]), 0.01, None)
    assert sorted(set(phase.tolist())) == [0, 1]


def test_more_phases_than_prototypes_in_use_are_refused() -> None:
    with pytest.raises(ValueError, match="4 phases of 2"):
        phases.join(np.eye(3), np.array([0.6, 0.4, 0.0]), 0.01, 4)


def test_the_share_of_a_phase_is_that_of_its_prototypes() -> None:
    scores = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    model = phases.JoinedPrototypes(lambda x: scores, np.array([1, 0, 1, 2, 0]), 0.1, 32)
    logits = model(torch.zeros(2, 1, 3, 4))
    shares = (scores / 0.1).softmax(1)
    expected = torch.stack([shares[:, [1, 4]].sum(1), shares[:, [0, 2]].sum(1), shares[:, 3]], 1)
    torch.testing.assert_close(logits.softmax(1), expected)
    assert model(torch.zeros(2, 1, 24, 32)).shape == (2, 3, 24, 32)


# --- clusters of features ---
def test_clusters_are_found_in_the_order_of_their_size() -> None:
    generator = np.random.default_rng(0)
    blobs = [generator.normal(c, 0.1, (n, 2)) for c, n in ((0, 30), (5, 90), (-4, 60))]
    rows = np.concatenate(blobs).astype(np.float32)
    centres, variance = phases.cluster(rows, 3)
    np.testing.assert_allclose(centres[:, 0], [5, -4, 0], atol=0.1)
    assert variance == pytest.approx(2 * 0.1**2, rel=0.3)
    again, _ = phases.cluster(rows, 3)
    assert np.array_equal(centres, again)


def test_logits_of_clusters_are_their_log_densities() -> None:
    features = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    centres = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    model = phases.NearestCentre(lambda x: features, centres, 0.7, 32)
    distance = (features[:, None] - torch.from_numpy(centres)[None, :, :, None, None]).square()
    expected = (-distance.sum(2) / (2 * 0.7)).softmax(1)
    torch.testing.assert_close(model(torch.zeros(1, 1, 2, 3)).softmax(1), expected)


# --- borders ---
def _two(height: int = 40, width: int = 60, edge: int = 30, seen: int = 30) -> tuple[Any, Any]:
    """Probabilities that step at one column and a micrograph that steps at another."""
    x = np.arange(width)
    right = 1 / (1 + np.exp(-(x - edge + 0.5) / 3))
    planes = np.broadcast_to(np.stack([1 - right, right])[:, None], (2, height, width))
    guide = np.where(x < seen, 80.0, 160.0) + np.zeros((height, 1))
    return planes.astype(np.float32).copy(), guide.astype(np.float32)


def test_without_smoothing_the_most_likely_phase_is_taken() -> None:
    probabilities, guide = _two()
    expected = np.broadcast_to(np.arange(60) >= 30, (40, 60))
    assert np.array_equal(phases.label(probabilities, guide, 0), expected)


def test_a_border_settles_on_the_edge_of_the_micrograph() -> None:
    probabilities, guide = _two(edge=34, seen=30)
    found = phases.label(probabilities, guide, 8)
    assert np.all((found == 0).sum(1) == 31)
    # The nearer the two are, the better: a network is never wrong by more than its cells.
    assert np.all((phases.label(_two(edge=32, seen=30)[0], guide, 12) == 0).sum(1) == 30)
    # On a flat micrograph there is nothing to settle on.
    flat = phases.label(probabilities, np.zeros_like(guide), 8)
    assert abs(int((flat == 0).sum(1)[20]) - 34) <= 1


def test_specks_vanish_and_the_probabilities_are_left_alone() -> None:
    probabilities, guide = _two()
    probabilities[:, 10:12, 10:12] = [[[0.0]], [[1.0]]]
    before = probabilities.copy()
    assert phases.label(probabilities, guide, 0)[10, 10] == 1
    assert phases.label(probabilities, guide, 6)[10, 10] == 0
    assert np.array_equal(probabilities, before)


def test_strips_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    noise = generator.random((3, 150, 40)).astype(np.float32)
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), 3) for plane in noise])
    guide = generator.random((150, 40)).astype(np.float32)
    whole = phases.label(planes, guide, 5)
    monkeypatch.setattr(phases, "STRIP", 32)
    assert np.array_equal(phases.label(planes, guide, 5), whole)


def test_thirty_two_colours_are_told_apart_by_all_eyes() -> None:
    colours = palette.distinct(32).astype(float) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    # Deuteranopia and protanopia after Machado et al. 2009.
    losses = [
        np.eye(3),
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    ]
    to_xyz = np.array([[0.434, 0.376, 0.190], [0.213, 0.715, 0.072], [0.018, 0.109, 0.873]])
    for loss in losses:
        xyz = np.cbrt(np.clip(linear @ np.transpose(loss), 0, 1) @ to_xyz.T)
        x, y, z = xyz.T
        lab = np.stack([116 * y, 500 * (x - y), 200 * (y - z)], 1)
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 100 * np.eye(32)
        assert distance.min() > 10 and distance[:8, :8].min() > 12
    assert len(np.unique(palette.distinct(50), axis=0)) == 50


# --- the command ---
def _save(folder: Path, method: str, state: dict[str, Any], record: Preprocess) -> Path:
    folder.mkdir(parents=True)
    lineage = [{"stage": "ssl", "method": method, "steps": 0}]
    payload = {"stage": "ssl", "method": method, "state": state, "recipe": dict(RECIPE)}
    payload |= {"step": 0, "preprocess": record.to_dict(), "lineage": lineage}
    checkpoint.save(folder / "last.ckpt", payload)
    return folder


@pytest.fixture(scope="module")
def micrographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Micrographs of odd size, two of one specimen, one of 16 bit, one in a folder of its own."""
    folder = tmp_path_factory.mktemp("data") / "my steel #1"
    (folder / "more").mkdir(parents=True)
    for number, (height, width) in enumerate(((90, 131), (64, 64), (150, 100))):
        image, _ = synthetic.micrograph("two_phase", height, width, number, bar=number == 2)
        tifffile.imwrite(folder / f"specimen{number // 2}_{number}.tif", image)
    image, _ = synthetic.micrograph("particles", 40, 50, 9)
    tifffile.imwrite(folder / "more" / "deep.tif", image.astype(np.uint16) * 257)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of slotcon whose prototypes are cells of a micrograph, far from each other."""
    torch.manual_seed(0)
    settings = SlotConSettings(**{k: v for k, v in RECIPE.items() if k not in _NOT_SETTINGS})  # type: ignore[arg-type]
    method = SlotCon(build_encoder("resnet18", 1), 1, (0.5,), (0.25,), settings).eval()
    record = Preprocess(crop_bottom="auto")
    cells = []
    with torch.no_grad():
        for seed in range(3):
            image, _ = synthetic.micrograph("two_phase", 96, 96, seed)
            x = record.tensor(image.astype(np.float32) / 255)
            cells.append(method.teach(torch.from_numpy(x)[None])[0].flatten(1).T)
    unit = nn.functional.normalize(torch.cat(cells), dim=1)
    chosen = [0]
    for _ in range(PROTOTYPES - 1):
        chosen.append(int((unit @ unit[chosen].T).amax(1).argmin()))
    method.teacher_grouping.prototypes.data = unit[chosen]
    folder = tmp_path_factory.mktemp("runs") / "slots"
    return _save(folder, "slotcon", method.state_dict(), record)


_NOT_SETTINGS = ("encoder", "in_channels")


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another method."""
    torch.manual_seed(0)
    state = {f"encoder.{k}": v for k, v in build_encoder("resnet18", 1).state_dict().items()}
    state["projector.0.weight"] = torch.zeros(2, 2)
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    return _save(folder, "simclr", state, Preprocess())


def _map(model: Path, data: Path, out: Path, *more: str) -> int:
    """Map a folder; the results, which the command puts into phases/NAME, are moved to ``out``."""
    argv = ["--model_path", str(model), "--data", str(data), "--output_dir", str(out.parent)]
    argv += ["--name", out.name, "--threads", "1", "--precision", "fp32", "--quiet", *more]
    made = out.parent / "phases" / out.name
    made.parent.mkdir(exist_ok=True)
    if out.exists():
        out.rename(made)
    code = guard(tool.main, argv)
    if made.exists():
        made.rename(out)
    return code


def _table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_maps_tables_and_a_report(
    run: Path, micrographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _map(run, micrographs, out, "--phases", "3", "--names", "ferrite, pearlite, rest") == 0
    assert "area fraction ferrite" in capsys.readouterr().out
    rows = _table(out / "phase_fractions.csv")
    names = ["ferrite", "pearlite", "rest"]
    assert [Path(row["image"]).name for row in rows] == [
        "deep.tif",
        "specimen0_0.tif",
        "specimen0_1.tif",
        "specimen1_2.tif",
    ]
    for row in rows:
        image = tifffile.imread(row["image"])
        index = np.array(Image.open(out / f"maps/index/{Path(row['image']).stem}.png"))
        colour = cv2.imread(str(out / f"maps/colour/{Path(row['image']).stem}.png"))
        assert index.shape == image.shape and colour.shape[:2] == image.shape
        inside = index[index != IGNORE]
        assert set(np.unique(inside)) <= {0, 1, 2}
        shares = np.bincount(inside, minlength=3) / inside.size
        assert [float(row[name]) for name in names] == pytest.approx(shares, abs=1e-5)
        for value in np.unique(inside):
            assert np.all(colour[index == value][:, ::-1] == palette.COLOURS[value])
        assert (out / f"panels/{Path(row['image']).stem}.png").is_file()
    # The information bar belongs to no phase.
    barred = np.array(Image.open(out / "maps/index/specimen1_2.png"))
    assert np.all(barred[-5:] == IGNORE) and np.all(barred[:140] != IGNORE)
    summary = {row["phase"]: row for row in _table(out / "phase_summary.csv")}
    assert list(summary) == names and sum(float(r["mean"]) for r in summary.values()) == (
        pytest.approx(1, abs=1e-4)
    )
    # C10: three specimens, of whose four images two are of the first.
    assert (summary["rest"]["specimens"], summary["rest"]["fields"]) == ("3", "4")
    assert summary["rest"]["over"] == "specimens" and summary["rest"]["half_width"] == ""
    record = json.loads((out / "phases.json").read_text())["phases"]
    joined = sorted(number for entry in record.values() for number in entry["prototypes"])
    assert joined == list(range(PROTOTYPES))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "ASTM E1245" in page and "error of the map itself is not in these intervals" in page
    assert "pearlite" in page and "src='http" not in page and page.count("data:image/png") >= 5
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    command = (out / "command.txt").read_text()
    assert command.startswith("python -m matssl.tools.phase_map --model_path ")


@pytest.mark.usefixtures("no_drawing")
def test_two_calls_give_the_same_maps_and_orientation_averaging_others(
    run: Path, micrographs: Path, tmp_path: Path
) -> None:
    for name, more in (("a", []), ("b", []), ("turned", ["--tta"])):
        assert _map(run, micrographs, tmp_path / name, "--phases", "3", *more) == 0
    others = 0
    for path in sorted((tmp_path / "a/maps/index").iterdir()):
        first, second, turned = (
            (tmp_path / name / "maps/index" / path.name).read_bytes()
            for name in ("a", "b", "turned")
        )
        assert first == second
        others += first != turned
    assert others > 0


def test_an_image_too_large_for_memory_gives_the_same_map(
    run: Path, micrographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _map(run, micrographs, tmp_path / "a", "--phases", "3") == 0
    monkeypatch.setattr(member, "IN_MEMORY_BYTES", 1000)
    assert _map(run, micrographs, tmp_path / "b", "--phases", "3") == 0
    for path in (tmp_path / "a/maps/index").iterdir():
        assert path.read_bytes() == (tmp_path / "b/maps/index" / path.name).read_bytes()
    assert not list((tmp_path / "b").glob(".*"))


@pytest.mark.usefixtures("no_drawing")
def test_without_a_number_every_prototype_in_use_is_a_phase(
    run: Path, micrographs: Path, tmp_path: Path
) -> None:
    assert _map(run / "last.ckpt", micrographs, tmp_path / "out", "--smooth", "0") == 0
    count = len(json.loads((tmp_path / "out/phases.json").read_text())["phases"])
    assert 2 < count <= PROTOTYPES


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A dark smooth half beside a bright chequered one."""
    folder = tmp_path / "halves"
    folder.mkdir()
    y, x = np.mgrid[:128, :192]
    chequers = np.where((y // 4 + x // 4) % 2, 230, 120)
    noise = np.random.default_rng(0).normal(0, 4, y.shape)
    image = np.where(x < 96, 60, chequers) + noise
    cv2.imwrite(str(folder / "halves.png"), np.clip(image, 0, 255).astype(np.uint8))
    return folder


def test_a_run_of_another_method_has_its_features_clustered(
    other_run: Path, halves: Path, tmp_path: Path
) -> None:
    assert _map(other_run, halves, tmp_path / "two", "--phases", "2") == 0
    index = np.array(Image.open(tmp_path / "two/maps/index/halves.png"))
    truth = np.broadcast_to(np.arange(192) >= 96, index.shape)
    right = float((index == truth).mean())
    assert max(right, 1 - right) > 0.9
    assert _map(other_run, halves, tmp_path / "four") == 0
    assert len(json.loads((tmp_path / "four/phases.json").read_text())["phases"]) == 4


@pytest.mark.usefixtures("no_drawing")
def test_one_image_is_mapped(run: Path, micrographs: Path, tmp_path: Path) -> None:
    """C12: the path of a single image was refused."""
    image = sorted(path for path in micrographs.rglob("*") if path.is_file())[0]
    assert _map(run, image, tmp_path / "out", "--phases", "3", "--smooth", "0") == 0
    assert [row["image"] for row in _table(tmp_path / "out" / "phase_fractions.csv")] == [
        str(image)
    ]


def test_masks_are_not_taken_for_micrographs(
    other_run: Path, synthetic_folder: Path, tmp_path: Path
) -> None:
    assert _map(other_run, synthetic_folder, tmp_path / "out", "--phases", "2") == 0
    rows = _table(tmp_path / "out" / "phase_fractions.csv")
    assert len(rows) == 8 and not any("annot" in row["image"] for row in rows)


def test_large_images_are_looked_at_in_windows_and_small_ones_whole() -> None:
    assert clustering.windows(100, 512) == [(0, 0)]
    assert clustering.windows(600, 2000) == [(0, 244), (0, 1244), (88, 244), (88, 1244)]
    side = clustering.WINDOW
    for height, width in ((513, 513), (4000, 700)):
        for top, left in clustering.windows(height, width):
            assert 0 <= top <= height - side and 0 <= left <= width - side


@pytest.mark.usefixtures("no_drawing")
def test_a_few_broken_files_are_left_out_and_listed(
    other_run: Path, tmp_path: Path, pool_folder: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in pool_folder.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    assert _map(other_run, data, tmp_path / "out", "--phases", "2") == 0
    assert [Path(r["image"]).name for r in _table(tmp_path / "out/bad_images.csv")] == [
        "broken.png"
    ]
    assert len(_table(tmp_path / "out/phase_fractions.csv")) == 12
    # Twelve fields are enough for an interval.
    assert _table(tmp_path / "out/phase_summary.csv")[0]["half_width"] != ""


@pytest.mark.usefixtures("no_drawing")
def test_what_a_user_can_get_wrong_ends_in_one_line_and_writes_nothing(
    run: Path,
    other_run: Path,
    micrographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty, taken, broken = tmp_path / "empty", tmp_path / "taken", tmp_path / "broken"
    for folder in (empty, taken, broken):
        folder.mkdir()
    (taken / "mine.txt").write_text("kept")
    (broken / "a.png").write_bytes(b"no picture")
    tuned = tmp_path / "best.ckpt"
    checkpoint.save(tuned, {"stage": "finetune", "model": {}, "state": {}})
    damaged = tmp_path / "damaged.ckpt"
    payload = checkpoint.load(run / "last.ckpt")
    checkpoint.save(damaged, {k: v for k, v in payload.items() if k not in ("format", "recipe")})
    scaled = tmp_path / "scaled.ckpt"
    record = {**payload["preprocess"], "target_pixel_size": 20.0}
    checkpoint.save(scaled, {**payload, "preprocess": record})
    cases: list[tuple[Path, Path, list[str], str]] = [
        (run, tmp_path / "absent", [], "there is no folder"),
        (run, empty, [], "there is no image in"),
        (run, broken, [], "1 of 1 images in"),
        (empty, micrographs, [], "holds no last.ckpt; give the run folder of train_ssl.py"),
        (tmp_path / "absent.ckpt", micrographs, [], "there is no file"),
        (run / "encoder.safetensors", micrographs, [], "holds an encoder alone"),
        (tuned, micrographs, [], "eval_model.py --model_path"),
        (damaged, micrographs, [], "incomplete or damaged"),
        (scaled, micrographs, [], "give --pixel_size"),
        (run, micrographs, ["--phases", "1"], "--phases must be at least 2 and"),
        (run, micrographs, ["--phases", "9"], "tell 6 phases apart"),
        (run, micrographs, ["--phases", "3", "--names", "a,b"], "2 names for --phases 3"),
        (run, micrographs, ["--names", "a,a"], "two or more different names"),
        (run, micrographs, ["--smooth", "-1"], "--smooth must be at least 0"),
        (run, micrographs, ["--pixel_size", "5"], "is no pixel size"),
        (run, micrographs, ["--group_regex", "("], "is not valid"),
        (run, micrographs, ["--group_regex", "absent"], "fits none of the 4 file names"),
        (run, micrographs, ["--tile_size", "0"], "--tile_size must be at least 1"),
    ]
    for model, data, more, sentence in cases:
        out = tmp_path / "out"
        assert _map(model, data, out, *more) == 2, sentence
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error
        assert not out.exists()
    assert _map(run, micrographs, taken) == 2
    assert "exists already" in capsys.readouterr().err
    # Not a result of ours, so that it is not replaced either.
    assert _map(run, micrographs, taken, "--overwrite") == 2
    assert (taken / "mine.txt").read_text() == "kept"


@pytest.mark.usefixtures("no_drawing")
def test_a_result_is_replaced_only_when_asked(run: Path, micrographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _map(run, micrographs, out, "--phases", "3") == 0
    before = (out / "report.html").read_bytes()
    assert _map(run, micrographs, out, "--phases", "2") == 2
    assert (out / "report.html").read_bytes() == before
    assert _map(run, micrographs, out, "--phases", "2", "--overwrite") == 0
    assert len(json.loads((out / "phases.json").read_text())["phases"]) == 2


def test_a_collapsed_run_is_said_to_be_one(
    run: Path, micrographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = checkpoint.load(run / "last.ckpt")
    name = "teacher_grouping.prototypes"
    payload["state"][name] = payload["state"][name][:1].expand(PROTOTYPES, -1).clone()
    checkpoint.save(tmp_path / "last.ckpt", {k: v for k, v in payload.items() if k != "format"})
    assert _map(tmp_path / "last.ckpt", micrographs, tmp_path / "out") == 2
    assert "all win the same places" in capsys.readouterr().err


def test_a_map_of_weights_that_the_monitor_doubted_says_so(
    other_run: Path, micrographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = checkpoint.load(other_run / "last.ckpt")
    payload["lineage"][-1]["verdict"] = "blank"
    checkpoint.save(tmp_path / "last.ckpt", {k: v for k, v in payload.items() if k != "format"})
    assert _map(tmp_path / "last.ckpt", micrographs, tmp_path / "out") == 0
    sentence = "the monitor called the pretraining &#x27;blank&#x27;"
    assert sentence in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "warning the monitor called the pretraining 'blank'" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from matssl.tools import phase_map; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


# --- names after the map was seen ---
@pytest.fixture(scope="module")
def mapped(run: Path, micrographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of three phases without names of their own."""
    out = tmp_path_factory.mktemp("mapped") / "out"
    assert _map(run, micrographs, out, "--phases", "3") == 0
    return out


@pytest.fixture
def seen(mapped: Path, tmp_path: Path) -> Path:
    """A copy of it, to be renamed."""
    return Path(shutil.copytree(mapped, tmp_path / "out"))


def _rename(folder: Path, names: str) -> int:
    return guard(rename_phases.main, [str(folder), "--names", names])


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _old(folder: Path) -> None:
    """Make a run one of a version that kept nothing beside the fractions."""
    content = json.loads((folder / "phases.json").read_text())
    del content["made"]
    (folder / "phases.json").write_text(json.dumps(content))


def test_names_given_afterwards_leave_what_names_given_before_do(
    run: Path, micrographs: Path, seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C10: phases could not be named after the map was seen."""
    names = 'ferrite, a<b&"c", =rest'
    unnamed = _files(seen)
    named = tmp_path / "named"
    assert _map(run, micrographs, named, "--phases", "3", "--names", names) == 0
    assert _rename(seen, f"phase 2={names.split(',')[1]}, phase 1=ferrite, phase 3==rest") == 0
    assert "phase 1 -> ferrite" in capsys.readouterr().out
    before, after = _files(named), _files(seen)
    # Byte by byte, the panels and the bars with their legends too.
    for name in before:
        if name.startswith(("panels", "maps", "fractions.png", "phase_")):
            assert after[name] == before[name], name
        if name.startswith("maps"):
            assert after[name] == unnamed[name]
    assert set(after) == set(unnamed)
    content, other = (json.loads(files["phases.json"]) for files in (after, before))
    assert content.pop("renamed from") == [["phase 1", "phase 2", "phase 3"]]
    assert content == other
    lines = after["command.txt"].decode().splitlines()
    assert len(lines) == 2 and lines[1].startswith("python -m matssl.tools.rename_phases ")
    page = after["report.html"].decode()
    assert "a&lt;b&amp;&quot;c&quot;" in page and "a<b" not in page
    assert "The map was made with the names phase 1, phase 2, phase 3." in page
    # What the page says of the making is as it was.
    for told in ("3, of 6 prototypes", "method slotcon, steps 0", "4 images"):
        assert told in page and told in unnamed["report.html"].decode(), told


@pytest.mark.usefixtures("no_drawing")
def test_measurements_and_further_names_go_on_from_the_new_ones(seen: Path, tmp_path: Path) -> None:
    assert _rename(seen, "ferrite,pearlite,pore") == 0
    assert _rename(seen, "pore=graphite") == 0
    # Two phases may change their names.
    assert _rename(seen, "ferrite=pearlite,pearlite=ferrite") == 0
    content = json.loads((seen / "phases.json").read_text())
    assert list(content["phases"]) == ["pearlite", "ferrite", "graphite"]
    assert [names[0] for names in content["renamed from"]] == ["phase 1", "ferrite", "ferrite"]
    argv = [str(seen), "--what", "fractions", "--output_dir", str(tmp_path), "--name", "m"]
    assert guard(measure.main, argv) == 0
    rows = (tmp_path / "measure" / "m" / "fractions.csv").read_text(encoding="utf-8")
    assert "graphite" in rows and "phase 1" not in rows


@pytest.mark.usefixtures("no_drawing")
def test_panels_of_absent_or_other_micrographs_keep_their_names_and_that_is_said(
    mapped: Path, seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = seen / "phase_fractions.csv"
    other = tmp_path / "specimen0_0.tif"
    tifffile.imwrite(other, np.zeros((20, 30), np.uint8))
    rows = _table(table)
    text = table.read_text(encoding="utf-8")
    text = text.replace(rows[0]["image"], str(tmp_path / "gone.tif"))
    table.write_text(text.replace(rows[1]["image"], str(other)), encoding="utf-8")
    assert _rename(seen, "a,b,c") == 0
    said = "2 panels of 4 keep the names they had (first: gone.tif: there is no "
    assert said in capsys.readouterr().out
    assert said in (seen / "report.html").read_text(encoding="utf-8")
    for name, same in (("deep", True), ("specimen0_0", True), ("specimen1_2", False)):
        panel = f"panels/{name}.png"
        assert ((seen / panel).read_bytes() == (mapped / panel).read_bytes()) == same


@pytest.mark.usefixtures("no_drawing")
def test_a_run_of_before_is_renamed_and_what_it_did_not_keep_is_said(
    seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _old(seen)
    before = (seen / "report.html").read_bytes()
    summary = (seen / "phase_summary.csv").read_text()
    (seen / "phase_summary.csv").write_text(summary.replace("specimens", "others"))
    assert _rename(seen, "a,b,c") == 0 and _rename(seen, "d,e,f") == 0
    said = capsys.readouterr().out
    assert "4 panels of 4 keep the names they had" in said
    assert said.count("was written by another version of matssl") == 1
    assert (seen / "phase_summary.csv").read_text().startswith(summary.split("\n")[0])
    assert (seen / "report_before.html").read_bytes() == before
    page = (seen / "report.html").read_text(encoding="utf-8")
    assert "did not keep what its phases were found" in page and "4 images" in page
    assert list(json.loads((seen / "phases.json").read_text())["phases"]) == ["d", "e", "f"]


def test_what_cannot_be_renamed_ends_in_one_line_and_changes_nothing(
    seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, names: str, sentence: str) -> None:
        before = _files(folder)
        assert _rename(folder, names) == 2, sentence
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error
        assert _files(folder) == before and not list(folder.glob(".re*"))

    handle = os.open(seen, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    refused(seen, "a,b,c", "another process is writing to")
    os.close(handle)
    refused(seen, "a,b", "--names has 2 names for 3 phases: phase 1, phase 2, phase 3")
    refused(seen, "a,b,a", "two phases would be called 'a'")
    refused(seen, "phase 1=phase 2", "two phases would be called 'phase 2'")
    refused(seen, "phase 1=a,phase 1=b", "gives 'phase 1' two names")
    refused(seen, "a,,c", "an empty name; each phase needs one")
    refused(seen, "phase 2=", "an empty name; each phase needs one")
    refused(seen, "phase 4=pore", "'phase 4=pore' is no OLD=NEW of these phases: phase 1,")
    refused(seen, "phase 1=a,b,c", "'b' is no OLD=NEW")
    refused(seen, "image,b,c", "'image' is a column of the tables")
    refused(seen, "a\nb,b,c", "holds a character that no table shows")
    refused(seen, "a" * 201 + ",b,c", "has 201 letters of at most 200")
    other = tmp_path / "other"
    other.mkdir()
    refused(other, "a,b,c", "is no phase map:")
    for name, content, sentence in (
        ("phases.json", '{"phases": {"a": {"index": 1}}}', "phases.json is damaged (ValueError"),
        ("phases.json", "[]", "phases.json is damaged"),
        ("phase_fractions.csv", "image,group\n", "phase_fractions.csv is damaged"),
        ("status.json", '{"state": "failed"}', "was broken off before its end"),
        ("status.json", "[]", "status.json is damaged"),
        ("status.json", None, "was broken off before its end"),
        ("phases.json", None, "was broken off before its end"),
        ("maps/index/deep.png", None, "deep.png is missing"),
    ):
        own = (seen / name).read_bytes()
        (seen / name).unlink()
        if content is not None:
            (seen / name).write_text(content)
        refused(seen, "a,b,c", sentence)
        (seen / name).write_bytes(own)
    content = json.loads((seen / "phases.json").read_text())
    content["made"]["maps"][0] = "../../deep"
    (seen / "phases.json").write_text(json.dumps(content))
    refused(seen, "a,b,c", "phases.json is damaged")
    content["made"]["maps"][0] = "specimen0_0"
    (seen / "phases.json").write_text(json.dumps(content))
    refused(seen, "a,b,c", "is not the map that phase_fractions.csv tells of")


@pytest.mark.usefixtures("no_drawing")
def test_a_failure_on_the_way_leaves_all_as_it_was_and_a_kill_at_the_end_is_made_good(
    seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _files(seen)

    def fails(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device", "report.html")

    with monkeypatch.context() as patched:
        patched.setattr(rename, "write_report", fails)
        assert _rename(seen, "a,b,c") == 2
    assert _files(seen) == before and not list(seen.glob(".re*"))
    # Killed where the new files are complete and none has its place yet.
    put, calls = rename._put, []

    def killed(root: Path) -> None:
        calls.append(root)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(root)

    with monkeypatch.context() as patched:
        patched.setattr(rename, "_put", killed)
        assert _rename(seen, "a,b,c") == 130
    assert _rename(seen, "b=d") == 0
    assert list(json.loads((seen / "phases.json").read_text())["phases"]) == ["a", "d", "c"]
    assert not list(seen.glob(".re*"))


def test_names_are_given_in_order_or_by_the_old_ones() -> None:
    old = ["phase 1", "x=y", "z"]
    assert new_names(" a, b ,c", old) == ("a", "b", "c")
    assert new_names("x=y=pore", old) == ("phase 1", "pore", "z")
    assert new_names("z = a=b", old) == ("phase 1", "x=y", "a=b")
    assert new_names("phase 1=z,z=phase 1", old) == ("z", "x=y", "phase 1")
