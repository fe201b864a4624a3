"""The command that says which pictures to label next: what it chooses, keeps out and remembers."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from matssl import Segmenter, selection
from matssl.core import checkpoint, run_folder
from matssl.core.errors import guard
from matssl.core.ledger import Ledger
from matssl.core.textfiles import read_rows
from matssl.data import synthetic
from matssl.data.annotations import Choices, module_of
from matssl.data.annotations.raster import paint
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.measure import intervals
from matssl.models.segmentation import build_model
from matssl.selection.candidates import Box
from matssl.selection.curve import area
from matssl.stages.select import curve_report, head, loop
from matssl.stages.select.head import Picture
from matssl.stages.select.source import summary
from matssl.tools import select_images as tool
from matssl.trained import passes
from matssl.trained.network import Network

NAMES = ("matrix", "particle", "pore")


def _segmenter(network: nn.Module) -> Segmenter:
    classes = tuple(MaskClass(i, name, (i,)) for i, name in enumerate(NAMES))
    record = Preprocess(crop_bottom=0)
    placed = Network.on(network, "cpu", "fp32")
    return Segmenter(placed, record, ClassTable("index", classes), "here")


class _Pointwise(nn.Module):
    """Classes by grey level alone, the same in every orientation; with or without dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.own = nn.Conv2d(1, 8, 1)
        self.drop = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, len(NAMES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.own(x))))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a network with random weights."""
    run = tmp_path_factory.mktemp("models") / "steel"
    run.mkdir()
    torch.manual_seed(0)
    made = build_model("small_unet", "small_unet", len(NAMES))
    classes = tuple(MaskClass(i, name, (i,)) for i, name in enumerate(NAMES))
    payload = {"stage": "finetune", "model": made.description, "state": made.state_dict()}
    payload |= {"step": 1, "recipe": {}, "lineage": []}
    payload |= {"preprocess": Preprocess(crop_bottom="auto").to_dict()}
    payload |= {"classes": ClassTable("index", classes).to_dict()}
    checkpoint.save(run / "best.ckpt", payload)
    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that sees grey levels alone, in no time; the name it goes by."""
    monkeypatch.setattr(loop, "segments", lambda _: True)
    monkeypatch.setattr(run_folder, "environment", dict)
    made = _segmenter(_Pointwise())
    monkeypatch.setattr(loop.Segmenter, "load", staticmethod(lambda *_, **__: made))
    return "imagenet"


def _write(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Eight pictures of four specimens."""
    for number in range(8):
        image, _ = synthetic.micrograph("particles", 96, 96, seed=number)
        _write(tmp_path / "pool" / f"S{number // 2}_{number % 2}.png", image)
    return tmp_path / "pool"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two training pictures, one for validation and one for the test."""
    for number, split in enumerate(("train", "train", "val", "test")):
        image, mask = synthetic.micrograph("particles", 256, 256, seed=50 + number)
        _write(tmp_path / "labelled" / split / f"L{number}.png", image)
        _write(tmp_path / "labelled" / f"{split}_annot" / f"L{number}.png", mask)
    return tmp_path / "labelled"


def _run(tmp_path: Path, *words: object, code: int = 0) -> Path:
    argv = [*map(str, words), "--output_dir", str(tmp_path / "out"), "--quiet", "--device", "cpu"]
    assert guard(tool.main, argv) == code
    return tmp_path / "out" / "select" / "pool"


def _chosen(run: Path) -> list[str]:
    return (run / "chosen.txt").read_text().split()


# --- a round ---
def test_a_round_ranks_every_picture_and_writes_the_masks_to_correct(
    model: Path, pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    for number in (2, 3):
        for path in pool.glob(f"S{number}_*.png"):
            path.unlink()
    run = _run(tmp_path, model, pool, "--n", 2, "--precision", "fp32") / "round-1"
    rows = read_rows(run / "ranked.csv")
    assert [int(row["rank"]) for row in rows] == list(range(1, 5))
    assert {row["image"] for row in rows} == {path.name for path in pool.iterdir()}
    assert [row["chosen"] for row in rows] == ["yes"] * 2 + ["no"] * 2
    for name in ("entropy", "margin", "least_confidence", "boundary_entropy", "boundary_margin"):
        assert all(0 <= float(row[name]) <= 1 for row in rows)
    shares = [sum(float(row[f"share {name}"]) for name in NAMES) for row in rows]
    assert shares == pytest.approx([1.0] * 4, abs=1e-4)
    # Specimens take turns: two places, two specimens.
    assert len({row["specimen"] for row in rows[:2]}) == 2
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    for name in _chosen(run):
        own = np.array(Image.open(run / "masks/index" / name))
        assert (own == segmenter.predict(pool / name).classes).all()
        assert (run / "uncertainty" / name).is_file()
    assert (run / "report.html").is_file() and (run / "chosen.png").is_file()


def test_the_ledger_remembers_and_the_next_round_proposes_others(
    quick: str, pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    words = (quick, pool, "--n", 3, "--method", "entropy")
    home = _run(tmp_path, *words)
    _run(tmp_path, *words)
    first, second = _chosen(home / "round-1"), _chosen(home / "round-2")
    assert not set(first) & set(second) and len(second) == 3
    ledger = Ledger.open(home / "ledger.jsonl")
    lines = ledger.of("select")
    assert [line.facts["round"] for line in lines] == [1, 2]
    assert [image["image"] for image in lines[0].facts["images"]] == first
    assert lines[0].facts["method"] == "entropy" and lines[0].facts["seed"] == 0
    kept = {row["image"]: row["why"] for row in read_rows(home / "round-2" / "kept_out.csv")}
    assert kept == {name: "proposed before: round 1" for name in first}
    # Two are left; after them none is, and the line says what to do.
    _run(tmp_path, *words)
    assert len(_chosen(home / "round-3")) == 2
    _run(tmp_path, *words, code=2)
    _run(tmp_path, *words, "--again")
    assert _chosen(home / "round-4") == first


def test_the_same_seed_chooses_the_same_and_another_draws_anew(
    quick: str, pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    tables = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        ledger = tmp_path / name / "ledger.jsonl"
        words = (quick, pool, "--method", "random", "--seed", seed, "--ledger", ledger)
        run = _run(tmp_path, *words, "--name", name) / name
        tables.append((run / "ranked.csv").read_text())
    assert tables[0] == tables[1] != tables[2]


# --- what is never chosen ---
def test_frozen_images_stay_out_however_the_splits_are_drawn_later(
    quick: str, pool: Path, labelled: Path, tmp_path: Path, no_drawing: None
) -> None:
    """F-S7: the split was drawn anew whenever the list grew, and validation was trained on."""
    for split in ("train", "val", "test"):
        for path in (labelled / split).iterdir():
            shutil.copy(path, pool / f"again_{path.name}")
    home = _run(tmp_path, quick, pool, "--n", 20, "--labelled", labelled)
    ledger = Ledger.open(home / "ledger.jsonl")
    assert ledger.frozen("validation") == ("val/L2.png",)
    assert ledger.frozen("test") == ("test/L3.png",)
    # Somebody moves the frozen pictures into training.
    for split, name in (("val", "L2.png"), ("test", "L3.png")):
        (labelled / split / name).rename(labelled / "train" / name)
        (labelled / f"{split}_annot" / name).rename(labelled / "train_annot" / name)
    _run(tmp_path, quick, pool, "--n", 20, "--labelled", labelled, "--again")
    for number in (1, 2):
        run = home / f"round-{number}"
        assert sorted(_chosen(run)) == sorted(f"S{i // 2}_{i % 2}.png" for i in range(8))
        kept = {row["image"]: row["why"] for row in read_rows(run / "kept_out.csv")}
        assert kept["again_L0.png"].startswith("labelled already")
        if number == 1:
            assert kept["again_L2.png"].startswith("frozen validation image")
            assert kept["again_L3.png"].startswith("frozen test image")
        assert set(kept) == {f"again_L{i}.png" for i in range(4)}
    again = Ledger.open(home / "ledger.jsonl")
    assert again.frozen("test") == ("test/L3.png",) and len(again.of("freeze")) == 2


def test_a_turned_part_of_a_test_image_is_kept_out(
    quick: str, pool: Path, labelled: Path, tmp_path: Path, no_drawing: None
) -> None:
    image = cv2.imread(str(labelled / "test" / "L3.png"), cv2.IMREAD_UNCHANGED)
    _write(pool / "turned.png", np.ascontiguousarray(np.rot90(image)[:180, 30:230]))
    run = _run(tmp_path, quick, pool, "--n", 9, "--labelled", labelled) / "round-1"
    assert "turned.png" not in _chosen(run) and len(_chosen(run)) == 8
    kept = {row["image"]: row["why"] for row in read_rows(run / "kept_out.csv")}
    assert "test/L3.png" in kept["turned.png"] and "frozen" in kept["turned.png"]


def test_of_two_pictures_of_one_place_one_is_chosen(
    quick: str, pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    image, _ = synthetic.micrograph("particles", 256, 256, seed=80)
    _write(pool / "A.png", image)
    _write(pool / "B.png", np.ascontiguousarray(image[:, ::-1]))
    shutil.copy(pool / "S0_0.png", pool / "Z.png")
    run = _run(tmp_path, quick, pool, "--n", 11) / "round-1"
    chosen = _chosen(run)
    assert len({"A.png", "B.png"} & set(chosen)) == 1 and "Z.png" not in chosen
    assert len(chosen) == 9
    kept = {row["image"]: row["why"] for row in read_rows(run / "kept_out.csv")}
    assert kept["Z.png"] == "copy: the same pixels as S0_0.png"
    assert "chosen before it" in kept.get("A.png", kept.get("B.png", ""))


def test_pictures_with_a_mask_in_the_pool_are_labelled_and_its_named_splits_frozen(
    quick: str, tmp_path: Path, no_drawing: None
) -> None:
    pool = tmp_path / "pool"
    for number in range(6):
        image, mask = synthetic.micrograph("particles", 128, 128, seed=number)
        _write(pool / "images" / f"P{number}.png", image)
        if number < 3:
            _write(pool / "masks" / f"P{number}.png", mask)
    names = {"train": ["P0.png", "P1.png"], "val": ["P2.png"], "test": ["P5.png"]}
    (tmp_path / "splits.json").write_text(json.dumps(names))
    words = (quick, pool, "--n", 9, "--splits", tmp_path / "splits.json")
    run = _run(tmp_path, *words) / "round-1"
    assert sorted(_chosen(run)) == ["images/P3.png", "images/P4.png"]
    whys = {row["image"]: row["why"] for row in read_rows(run / "kept_out.csv")}
    assert whys == {
        "images/P0.png": "labelled already",
        "images/P1.png": "labelled already",
        "images/P2.png": "frozen validation image",
        "images/P5.png": "frozen test image",
    }
    assert Ledger.open(run.parent / "ledger.jsonl").frozen("test") == ("images/P5.png",)


def test_pictures_behind_links_are_called_as_they_are_in_the_pool(
    quick: str, pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    elsewhere = tmp_path / "elsewhere"
    pool.rename(elsewhere)
    pool.mkdir()
    for path in elsewhere.iterdir():
        (pool / f"link_{path.name}").symlink_to(path)
    run = _run(tmp_path, quick, pool, "--n", 3) / "round-1"
    assert all((pool / name).is_symlink() for name in _chosen(run)) and len(_chosen(run)) == 3


# --- regions ---
def test_regions_are_chosen_and_what_lies_outside_is_not_labelled(
    quick: str, tmp_path: Path, no_drawing: None
) -> None:
    pool = tmp_path / "pool"
    for number in range(2):
        image, _ = synthetic.micrograph("particles", 128, 128, seed=number)
        _write(pool / f"P{number}.png", image)
    words = (quick, pool, "--n", 3, "--region", 64, "--method", "margin")
    home = _run(tmp_path, *words)
    rows = read_rows(home / "round-1" / "ranked.csv")
    assert len(rows) == 8 and {row["height_px"] for row in rows} == {"64"}
    covered = {(row["image"], row["top_px"], row["left_px"]) for row in rows}
    assert len(covered) == 8
    for name in dict.fromkeys(row["image"] for row in rows[:3]):
        mask = np.array(Image.open(home / "round-1" / "masks/index" / name))
        own = [row for row in rows[:3] if row["image"] == name]
        inside = np.zeros((128, 128), bool)
        for row in own:
            top, left = int(row["top_px"]), int(row["left_px"])
            inside[top : top + 64, left : left + 64] = True
        assert (mask[~inside] == 255).all() and (mask[inside] < 3).all()
    _run(tmp_path, *words)
    second = read_rows(home / "round-2" / "ranked.csv")
    first = {(r["image"], r["top_px"], r["left_px"]) for r in rows[:3]}
    assert first.isdisjoint((r["image"], r["top_px"], r["left_px"]) for r in second[:3])


def test_masks_to_correct_are_written_as_annotations_and_read_back_as_they_are(
    quick: str, pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    words = (quick, pool, "--n", 2, "--region", 48, "--method", "entropy", "--export", "labelme")
    run = _run(tmp_path, *words) / "round-1"
    names = list(dict.fromkeys(_chosen(run)))
    found = module_of("labelme").read(run / "annotations", Choices())
    drawings = {Path(drawing.picture).name: drawing for drawing in found.drawings}
    assert set(drawings) == set(names)
    values = {name: number for number, name in enumerate(NAMES)} | {"__ignore__": 255}
    for name in names:
        own = np.array(Image.open(run / "masks/index" / name))
        labels = {shape.label: values[shape.label] for shape in drawings[name].shapes}
        assert (paint(drawings[name], own.shape, labels, None, 0).mask == own).all()
        assert (own == 255).any() and (own != 255).any()
    assert (run / "annotations" / "classes.yaml").is_file()


def test_a_stack_in_the_pool_is_refused_unless_a_page_is_named(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (3, 96, 96), np.uint8)
    tifffile.imwrite(pool / "film.tif", pages, photometric="minisblack")
    _run(tmp_path, "filters", pool, "--n", 2, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "film.tif has 3 pages, and pictures are chosen; save each page" in line
    assert not (tmp_path / "out").exists()
    for path in pool.glob("*.png"):
        path.unlink()
    for number in range(2):
        pages = np.random.default_rng(1 + number).integers(0, 255, (3, 96, 96), np.uint8)
        tifffile.imwrite(pool / f"film {number}.tif", pages, photometric="minisblack")
    run = _run(tmp_path, "filters", pool, "--n", 2, "--page", 2)
    assert len(read_rows(run / "round-1/ranked.csv")) == 3


# --- without a model ---
def test_filters_have_no_precision_and_the_command_is_written_once(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    argv = ["filters", str(pool), "--n", "2", "--device", "cpu"]
    argv += ["--output_dir", str(tmp_path / "o")]
    assert guard(tool.main, argv) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("device")]
    assert line.startswith("device  CPU, ") and "fp32" not in line and "bf16" not in line
    written = (tmp_path / "o/select/pool/round-1/command.txt").read_text()
    assert written == f"python -m matssl.tools.select_images {shlex.join(argv)}\n"


def test_features_alone_choose_the_first_pictures(
    pool: Path, tmp_path: Path, no_drawing: None
) -> None:
    run = _run(tmp_path, "filters", pool, "--n", 4) / "round-1"
    rows = read_rows(run / "ranked.csv")
    assert len(rows) == 8 and "entropy" not in rows[0]
    assert json.loads((run / "status.json").read_text())["chosen"] == 4
    assert not (run / "masks").exists()
    assert len({row["specimen"] for row in rows[:4]}) == 4


def test_filters_see_a_region_and_not_what_lies_beside_it() -> None:
    cells = np.zeros((4, 6, 2), np.float32)
    cells[:2, 3:] = 5.0
    found = summary(cells, Box(0, 24, 16, 24), (32, 48))
    assert found == pytest.approx([5, 5, 0, 0])
    whole = summary(cells, Box(0, 0, 32, 48), (32, 48))
    assert whole[:2] == pytest.approx([1.25, 1.25])


# --- mistakes ---
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["filters", "--method", "entropy"], "needs a model that segments"),
        (["MODEL", "--power", "3", "--method", "entropy"], "--power has no effect"),
        (
            ["MODEL", "--features", "filters"],
            "--features has no effect with --method entropy",
        ),
        (["filters", "--export", "coco"], "--export needs predictions"),
        (["MODEL", "--export", "word"], "no format that is written"),
        (["MODEL", "--method", "margins"], "there is no method 'margins'"),
        (["MODEL", "--method", "foreground_random", "--background", "sky"], "no class of"),
        (["MODEL", "--method", "bald", "--passes_by", "ensemble"], "is one model"),
        (["MODEL", "--method", "bald", "--passes_by", "dropout"], "has no dropout"),
        (["MODEL", "--seeds", "3"], "--seeds acts with --learning_curve alone"),
        (["MODEL", "--learning_curve", "--n", "3"], "--n acts not with --learning_curve"),
        (["MODEL", "--budgets", "4", "2"], "must be two or more that rise"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    words: list[str],
    told: str,
    model: Path,
    pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, *rest = words
    start = str(model) if first == "MODEL" else first
    argv = [start, str(pool), *rest, "--output_dir", str(tmp_path / "out"), "--quiet"]
    assert guard(tool.main, argv) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- passes ---
def test_orientations_are_turned_back_before_they_are_compared() -> None:
    segmenter = _segmenter(_Pointwise())
    image = np.random.default_rng(0).integers(0, 255, (40, 64), dtype=np.uint8)
    assert passes.kind(segmenter) == "orientations"
    found = list(passes.probabilities(segmenter, image, "orientations", 8, 0))
    assert len(found) == 8
    for one in found:
        assert one == pytest.approx(found[0], abs=1e-5)
    apart = selection.uncertainty.Disagreement()
    for one in found:
        apart.add(one)
    assert apart.map().max() < 1e-5


def test_dropout_differs_from_pass_to_pass_and_leaves_the_model_as_it_was() -> None:
    segmenter = _segmenter(_Pointwise(0.5))
    image = np.random.default_rng(0).integers(0, 255, (40, 64), dtype=np.uint8)
    assert passes.kind(segmenter) == "dropout"
    before = segmenter.predict(image).probabilities
    first, again = (list(passes.probabilities(segmenter, image, "dropout", 3, 7)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert np.abs(first[0] - first[1]).max() > 1e-3
    assert (segmenter.predict(image).probabilities == before).all()


# --- the head and the curve ---
def _picture(g: np.random.Generator, kinds: int, name: str, specimen: str) -> Picture:
    """A picture whose cells tell their class, with noise."""
    classes = g.integers(kinds, size=(12, 12)).astype(np.uint8)
    cells = np.eye(4, dtype=np.float32)[classes] + g.normal(0, 0.2, (12, 12, 4)).astype(np.float32)
    pixels = np.bincount(classes.ravel(), minlength=4).astype(np.float64) * 64
    return Picture(cells, classes, pixels, g.random(6), specimen, name)


def test_the_head_learns_what_cells_tell_and_never_says_a_class_it_has_not_seen() -> None:
    g = np.random.default_rng(0)
    learned = head.fit([_picture(g, 3, "a", "A")], 4, 0)
    other = _picture(g, 3, "b", "B")
    found = learned.probabilities(other)
    assert found.sum(axis=0) == pytest.approx(np.ones((12, 12)), abs=1e-5)
    assert (found.argmax(axis=0) == other.classes).mean() > 0.98
    assert found[3].max() == 0


def test_the_head_of_one_class_says_that_class() -> None:
    g = np.random.default_rng(0)
    assert (
        head.fit([_picture(g, 1, "a", "A")], 4, 0).probabilities(_picture(g, 3, "b", "B"))[0] == 1
    ).all()


def test_features_of_all_pictures_are_brought_to_the_same_columns() -> None:
    g = np.random.default_rng(0)
    raw = [g.normal(3, 7, (9, 11, 5)).astype(np.float32) for _ in range(3)]
    found = head.standardise(raw)
    assert found[0].shape == (9, 11, 15)
    every = np.concatenate([one[..., :5].reshape(-1, 5) for one in found])
    assert every.mean(axis=0) == pytest.approx(np.zeros(5), abs=0.3)
    assert every.std(axis=0) == pytest.approx(np.ones(5), abs=0.3)
    many = head.standardise([g.normal(size=(16, 16, 100)).astype(np.float32) for _ in range(2)])
    assert many[0].shape[-1] == 3 * head.COLUMNS


@pytest.fixture(scope="module")
def curve_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve") / "steel"
    for number in range(9):
        image, mask = synthetic.micrograph("particles", 96, 96, seed=number)
        split = "test" if number == 8 else "train"
        _write(folder / split / f"S{number}_x.png", image)
        _write(folder / f"{split}_annot" / f"S{number}_x.png", mask)
    return folder


def _curve(tmp_path: Path, data: Path, name: str, *words: object, code: int = 0) -> Path:
    argv = ["filters", data, "--learning_curve", "--name", name, "--budgets", 1, 2, 4, *words]
    argv += ["--output_dir", tmp_path / "out", "--quiet", "--device", "cpu"]
    assert guard(tool.main, [*map(str, argv)]) == code
    return tmp_path / "out" / "learning_curve" / name


def test_a_learning_curve_always_has_chance_and_equal_budgets_and_pairs_by_seed(
    curve_data: Path, tmp_path: Path, no_drawing: None
) -> None:
    run = _curve(tmp_path, curve_data, "c", "--arms", "entropy", "--seeds", 5)
    rows = [row for row in read_rows(run / "curve.csv") if row["arm"] != "all labels"]
    assert {row["arm"] for row in rows} == {"random", "foreground_random", "entropy"}
    under: dict[str, list[float]] = {}
    for arm in ("random", "foreground_random", "entropy"):
        for seed in range(5):
            own = [r for r in rows if r["arm"] == arm and int(r["seed"]) == seed]
            assert [int(r["pictures"]) for r in own] == [1, 2, 4]
            names = [r["labelled"].split() for r in own]
            # Labels stay, and no test image is ever among them.
            assert names[1][:1] == names[0] and names[2][:2] == names[1]
            assert len(set(names[2])) == 4 and "S8_x" not in names[2]
            under.setdefault(arm, []).append(area([1, 2, 4], [float(r["miou"]) for r in own]))
    # Arms that need a model begin with the picture that chance begins with.
    firsts = [
        {r["labelled"] for r in rows if r["seed"] == str(s) and r["pictures"] == "1"}
        for s in range(5)
    ]
    assert all(len(one) == 1 for one in firsts) and len(set.union(*firsts)) > 1
    made = {row["method"]: row for row in read_rows(run / "areas.csv")}
    gain, half = intervals.paired(under["random"], under["entropy"])
    assert float(made["entropy"]["beyond_random"]) == pytest.approx(gain, abs=1e-5)
    assert float(made["entropy"]["beyond_random_half_width"]) == pytest.approx(half, rel=1e-4)
    assert made["random"]["beyond_random"] == ""


def test_a_curve_goes_on_where_it_stopped_and_takes_more_arms_and_seeds(
    curve_data: Path, tmp_path: Path, no_drawing: None
) -> None:
    whole = _curve(tmp_path, curve_data, "whole", "--arms", "clasp", "typiclust", "--seeds", 2)
    part = _curve(tmp_path, curve_data, "part", "--arms", "clasp", "--seeds", 1)
    words = ("--arms", "clasp", "typiclust", "--seeds", 2, "--resume")
    assert _curve(tmp_path, curve_data, "part", *words) == part
    lines = [sorted((run / "curve.csv").read_text().splitlines()) for run in (whole, part)]
    assert lines[0] == lines[1]
    assert (whole / "areas.csv").read_text() == (part / "areas.csv").read_text()
    _curve(tmp_path, curve_data, "part", *words, "--start", "typiclust", code=2)


def test_a_curve_that_cannot_be_drawn_is_refused(
    curve_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--budgets", "1", "7"], "pictures can be labelled with seed 0"),
        (["--arms", "bald"], "has one pass"),
        (["--scored", "val"], "has no such images"),
        (["--background", "sky"], "no class of"),
    ):
        _curve(tmp_path, curve_data, "no", *words, code=2)
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_best_method_is_named_with_its_interval() -> None:
    row: dict[str, object] = {"method": "clasp", "area": 0.6, "beyond_random": 0.05}
    row |= {"beyond_random_half_width": 0.02, "beyond_foreground_random": 0.01}
    row |= {"beyond_foreground_random_half_width": 0.03}
    other = row | {"method": "entropy", "area": 0.5}
    told = curve_report.best([other, row])
    assert told.startswith("clasp has the largest area: +5.0 ± 2.0 points beyond random;")
    assert told.endswith("+1.0 ± 3.0 points beyond foreground_random (no clear difference)")
