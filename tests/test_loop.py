"""The closed loop: its rule, its classes, what it takes in; a loop that is killed everywhere."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from matssl.core import checkpoint
from matssl.core.digest import of_tensors
from matssl.core.errors import UserError, guard
from matssl.core.labels import IGNORE
from matssl.core.ledger import Ledger, Line
from matssl.data import readers, synthetic
from matssl.data.annotations import Drawing
from matssl.data.masks import ClassTable, MaskClass, binary_table
from matssl.loop import corrected, first, judging, models, pictures, settings, turn
from matssl.loop.arrivals import Arrivals
from matssl.loop.classes import Classes, agreed
from matssl.loop.context import Context
from matssl.loop.judging import Scores
from matssl.loop.places import Places, alone
from matssl.loop.settings import CLEAR, RISING
from matssl.loop.state import Label, Picture
from matssl.pictures import undrawn
from matssl.tools import loop

TRAINING = {
    **{"encoder": "tu-test_resnet", "crop_size": 32, "batch_size": 2, "checkpoint_every": 2},
    **{"lr": 0.003, "ema": 0.5},
}
COMMON = ["--once", "--settle", "0", "--n", "2", "--steps", "4", "--device", "cpu"]
COMMON += ["--precision", "fp32", "--threads", "1", "--method", "entropy", "--quiet"]


# --- the rule ---
def _scores(*values: float, **classes: float) -> Scores:
    specimens = {f"S{i}": value for i, value in enumerate(values)}
    return Scores(specimens, classes, float(np.mean(values)), None, len(values))


def test_five_specimens_promote_where_the_interval_of_the_gain_lies_above_zero() -> None:
    """By hand: differences .02 .04 .06 .08 .10, mean .06, s .0316, t(4) 2.776, half .0393."""
    best = _scores(0.5, 0.5, 0.5, 0.5, 0.5)
    new = _scores(0.52, 0.54, 0.56, 0.58, 0.60)
    found = judging.verdict(new, best, CLEAR)
    assert found.promoted and not found.unproven and found.specimens == 5
    assert found.gain == pytest.approx(0.06) and found.half_width == pytest.approx(0.0393, abs=1e-4)
    assert (
        "+6.0 points over 5 specimens, 95 % interval +2.1 to +9.9: clearly better" in found.reason
    )
    turned = judging.verdict(best, new, CLEAR)
    assert not turned.promoted and "clearly worse" in turned.reason


def test_a_gain_that_is_not_clear_keeps_the_old_model_unless_the_rule_says_rising() -> None:
    best = _scores(0.5, 0.5, 0.5, 0.5, 0.5, a=0.5, b=0.5)
    new = _scores(0.40, 0.54, 0.56, 0.58, 0.60, a=0.6, b=0.495)
    assert not judging.verdict(new, best, CLEAR).promoted
    found = judging.verdict(new, best, RISING)
    assert found.promoted and found.unproven and "not proven" in found.reason


@pytest.mark.parametrize(
    ("values", "b", "promoted", "told"),
    [
        ((0.6, 0.55), 0.495, True, "2 specimens cannot prove it"),
        ((0.6, 0.55), 0.489, False, "b falls by 1.1 points"),
        ((0.5, 0.5), 0.5, False, "no gain"),
        ((0.6, 0.3), 0.5, False, "no gain"),
    ],
)
def test_below_five_the_mean_must_rise_and_no_class_fall_by_more_than_a_point(
    values: Sequence[float], b: float, promoted: bool, told: str
) -> None:
    found = judging.verdict(_scores(*values, a=0.9, b=b), _scores(0.5, 0.5, a=0.5, b=0.5), CLEAR)
    assert found.promoted == found.unproven == promoted and told in found.reason
    assert np.isnan(found.half_width) and found.stored()["compared"] == 2


def test_a_class_that_only_the_old_model_saw_by_mistake_is_no_loss() -> None:
    old, new = _scores(0.4, a=0.5, b=0.0), _scores(0.5, a=0.5, b=np.nan)
    assert judging.verdict(new, old, CLEAR).promoted


def test_scores_go_through_a_line_of_the_ledger_as_they_are(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "l.jsonl")
    scores = replace(_scores(0.25, 0.75, a=0.5, b=np.nan), ends=(0.1, 0.9))
    read = Scores.read(ledger.append("compare", **scores.stored()).facts)
    assert read.specimens == scores.specimens and read.ends == (0.1, 0.9) and read.miou == 0.5
    assert np.isnan(read.classes["b"]) and read.classes["a"] == 0.5


# --- classes ---
def _table(*values: Any, kind: str = "index", **more: Any) -> ClassTable:
    classes = tuple(
        MaskClass(i, name, value if isinstance(value, tuple) else (value,))
        for i, (name, value) in enumerate(zip("abcdef", values, strict=False))
    )
    return ClassTable(kind, classes, **more)


@pytest.mark.parametrize(
    ("found", "values", "ignored"),
    [
        (_table(0, 255), [0, 255], 254),
        (_table(0, 1, 2), [0, 1, 2], 255),
        (_table((3, 4), "128-200", ignore_values=(9,)), [3, 128], 9),
        (binary_table(), [0, 255], 254),
        (_table(0, (), instances=True, rest_index=1), [0, 255], 254),
        (_table(0, 65535), [0, 255], 254),
        (_table("#ff0000", "#00ff00", kind="color"), ["#ff0000", "#00ff00"], "#c8c8c8"),
        (_table("#000000", (), kind="color", rest_index=1), ["#000000", "#ffffff"], "#c8c8c8"),
    ],
)
def test_masks_are_read_as_they_were_laid_out_whatever_the_first_ones_listed(
    found: ClassTable, values: list[Any], ignored: Any, tmp_path: Path
) -> None:
    classes = Classes.settled(found)
    assert [c.values[0] for c in classes.table.classes] == values
    assert classes.table.ignore_values == (ignored,)
    assert Classes.read(json.loads(json.dumps(classes.stored()))) == classes
    mask = np.random.default_rng(0).integers(len(values), size=(9, 7)).astype(np.uint8)
    mask[0, :3] = IGNORE
    for shown in (True, False):
        path = tmp_path / f"{shown}.png"
        path.write_bytes(classes.encode(mask, shown))
        assert np.array_equal(classes.decode(readers.read_mask(path), "x"), mask)
    # An editor may save the colours in which a mask is shown.
    picture = cv2.imread(str(tmp_path / "True.png"), cv2.IMREAD_COLOR)
    assert picture is not None
    cv2.imwrite(str(tmp_path / "colours.png"), picture)
    assert np.array_equal(classes.decode(readers.read_mask(tmp_path / "colours.png"), "x"), mask)


def test_black_and_white_come_back_as_any_program_saves_them() -> None:
    classes = Classes.settled(binary_table())
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    for white in (1, 255, 7):
        assert np.array_equal(classes.decode(mask * np.uint8(white), "x"), mask)
    three = Classes.settled(_table(0, 1, 2))
    with pytest.raises(UserError, match="no class lists"):
        three.decode(np.full((2, 2), 7, np.uint8), "x")


def test_classes_of_a_model_and_of_masks_are_brought_together_by_values_or_by_names() -> None:
    model = _table(0, 1)
    assert agreed(model, replace(model, classes=_renamed(model, "x", "y"))).names == ("a", "b")
    turned = ClassTable("index", (MaskClass(0, "b", (9,)), MaskClass(1, "a", (5,))))
    assert [(c.name, c.values) for c in agreed(model, turned).classes] == [("a", (5,)), ("b", (9,))]
    with pytest.raises(UserError, match="--model knows the classes a, b, the first masks hold x"):
        agreed(model, ClassTable("index", _renamed(turned, "x", "y")))


def _renamed(table: ClassTable, *names: str) -> tuple[MaskClass, ...]:
    return tuple(replace(c, name=n) for c, n in zip(table.classes, names, strict=True))


# --- what comes ---
def test_keys_of_pictures_are_their_stems_until_two_clash() -> None:
    taken: set[str] = set()
    keys = []
    for name in ("a.tif", "S1/a.tif", "S1/A.png", "s1_a.png", "4.2V-001.png", "../x/a.tif"):
        keys.append(pictures.key_for(name, taken))
        taken.add(keys[-1])
    assert keys[:2] == ["a", "S1_a"] and keys[4] == "4.2V-001"
    assert len({key.lower() for key in keys}) == len(keys)


def test_a_file_that_still_changes_waits(tmp_path: Path) -> None:
    arrivals = Arrivals(Places(tmp_path), settle=0.05)
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    assert arrivals.whole([path]) == ([], [path])
    path.write_bytes(b"12")
    assert arrivals.whole([path]) == ([], [path])
    os.utime(path, (1, 1))
    assert arrivals.whole([path]) == ([path], [])
    # A clock that goes before ours: it is whole when it stays as it is.
    os.utime(path, (4e9, 4e9))
    assert arrivals.whole([path]) == ([], [path])
    import time

    time.sleep(0.06)
    assert arrivals.whole([path]) == ([path], [])
    path.unlink()
    assert arrivals.whole([path]) == ([], [])


def test_our_own_folders_hidden_files_and_runs_are_no_pictures(tmp_path: Path) -> None:
    for name in (
        "a.png",
        "S1/b.png",
        "loop/c.png",
        "corrected/d.png",
        "to_correct/e.png",
        ".f.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    for name in ("config.yaml", "command.txt", "environment.json", "g.png"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"x")
    arrivals = Arrivals(Places(tmp_path), 0)
    assert [p.relative_to(tmp_path).as_posix() for p in arrivals.pictures()] == [
        "S1/b.png",
        "a.png",
    ]


def test_a_second_loop_on_a_folder_is_refused(tmp_path: Path) -> None:
    places = Places(tmp_path)
    with alone(places):
        with pytest.raises(UserError, match="another loop works on"):
            with alone(places):
                raise AssertionError
    with alone(places):
        pass


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--open_test"], "no loop has begun"),
        (["--status", "--open_test"], "give one of them"),
        (["--format", "doodle"], "--format must be one of labelme"),
        (["--method", "guess"], "--method"),
        (["--validation", "nowhere.txt"], "nowhere.txt"),
        (["--n", "0"], "--n must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(loop.main, [str(tmp_path), "--once", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and told in said and not list(tmp_path.iterdir())


# --- a whole loop ---
class World:
    """A folder with pictures, their truth elsewhere, and an annotator who copies it."""

    def __init__(self, root: Path) -> None:
        self.root, self.truth = root / "pictures", root / "truth"
        for folder in (self.root, self.truth):
            folder.mkdir(parents=True)
        self.training = root / "training.json"
        self.training.write_text(json.dumps(TRAINING), encoding="utf-8")

    def add(self, *numbers: int) -> None:
        for number in numbers:
            image, mask = synthetic.micrograph("two_phase", 64, 64, number)
            name = f"specimen{chr(65 + number)}_1.png"
            cv2.imwrite(str(self.root / name), image)
            cv2.imwrite(str(self.truth / name), mask)

    def correct(self, names: Sequence[str]) -> None:
        (self.root / "corrected").mkdir(exist_ok=True)
        for name in names:
            shutil.copy(self.truth / name, self.root / "corrected" / name)

    def run(self, *more: str) -> int:
        words = [str(self.root), *COMMON, "--training", str(self.training), *more]
        return guard(loop.main, words)

    @property
    def lines(self) -> list[Line]:
        return Ledger.open(self.root / "loop" / "ledger.jsonl", repair=False).lines

    @property
    def story(self) -> list[tuple[str, Any]]:
        """Steps and facts of the ledger, without times and without where the settings lie."""
        return [(x.step, {k: v for k, v in x.facts.items() if k != "training"}) for x in self.lines]

    def waiting(self) -> list[str]:
        rounds = [line for line in self.lines if line.step == "select"]
        return [entry["name"] for entry in rounds[-1].facts["pictures"]] if rounds else []


def _rounds(world: World, number: int) -> None:
    """The first masks, then what is asked for comes back; a picture is broken, a mask too small."""
    world.add(*range(10))
    (world.root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and that is all")
    names = [f"specimen{letter}_1.png" for letter in "ABCDEF"]
    world.correct(names)
    (world.root / "corrected" / "specimenJ_1.png").write_bytes(
        cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes()
    )
    assert world.run() == 0
    for _ in range(number):
        world.correct(world.waiting())
        assert world.run() == 0


@pytest.fixture(scope="module")
def blank() -> Iterator[None]:
    """Pictures of one white pixel: drawing takes longer than all else here."""
    with undrawn():
        yield


@pytest.fixture(scope="module")
def unbroken(blank: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("loop"))
    _rounds(world, 2)
    return world


def test_every_step_is_a_line_in_order(unbroken: World) -> None:
    steps = [line.step for line in unbroken.lines]
    begun = ["settings", "pictures", "doctor", "classes", "labels", "freeze", "freeze", "doctor"]
    assert [x for x in steps if x != "doctor"][:6] == [x for x in begun if x != "doctor"][:6]
    rest = [step for step in steps if step not in begun or step == "labels"][1:]
    begin, later = rest[:7], rest[7:]
    assert begin == ["retrain", "train", "compare", "promote", "predict", "measure", "select"]
    assert later.count("retrain") == later.count("compare") == 2
    assert later.count("promote") + later.count("keep") == 2
    assert later[0] == "labels" and "select" not in steps[-1:]


def test_frozen_images_are_cut_by_specimen_and_never_learned_from(unbroken: World) -> None:
    ledger = Ledger.open(unbroken.root / "loop" / "ledger.jsonl")
    validation, test = ledger.frozen("validation"), ledger.frozen("test")
    assert validation and test and not set(validation) & set(test)
    for line in ledger.of("retrain"):
        learned = {name for name, _ in line.facts["labels"]}
        assert learned and not learned & ledger.kept_out()
    asked = {e["name"] for line in ledger.of("select") for e in line.facts["pictures"]}
    assert asked and not asked & ledger.kept_out()


def test_every_model_is_kept_and_the_best_is_named(unbroken: World) -> None:
    home = unbroken.root / "loop"
    trained = {x.facts["model"]: x.facts for x in unbroken.lines if x.step == "train"}
    assert sorted(trained) == ["000", "001", "002"]
    best = [x.facts["model"] for x in unbroken.lines if x.step == "promote"][-1]
    for number, facts in trained.items():
        payload = checkpoint.load(home / "finetune" / number / "best.ckpt")
        assert payload["step"] == facts["steps"] == 4
        assert not (home / "finetune" / number / "last.ckpt").exists()
    assert (home / "best.ckpt").resolve() == (home / "finetune" / best / "best.ckpt").resolve()


def test_a_new_model_starts_from_all_of_the_best_and_learns_from_all_masks(unbroken: World) -> None:
    plans = [x.facts for x in unbroken.lines if x.step == "retrain"]
    assert plans[0]["start"] is None and plans[1]["start"] == "000"
    sizes = [len(plan["labels"]) for plan in plans]
    assert sizes[1] == sizes[0] + 2 and sizes[2] > sizes[1]
    text = (unbroken.root / "loop/finetune/001/command.txt").read_text(encoding="utf-8")
    assert "--whole_model" in text and "--val_fraction 0" in text


def test_what_cannot_be_used_is_listed_and_costs_no_other(
    unbroken: World, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = next(line for line in unbroken.lines if line.step == "doctor").facts
    assert list(looked["broken"]) == ["broken.png"] and len(looked["looked"]) == 11
    refused = next(line for line in unbroken.lines if line.step == "labels").facts["refused"]
    assert "9 x 9 pixels, the picture 64 x 64" in refused["corrected/specimenJ_1.png"]
    assert guard(loop.main, [str(unbroken.root), "--status"]) == 0
    said = capsys.readouterr().out
    assert "left out  broken.png: " in said and "best      model 0" in said
    page = (unbroken.root / "loop" / "loop.html").read_text(encoding="utf-8")
    assert "broken.png" in page and "promoted" in page and str(unbroken.root) not in page


def test_masks_to_correct_lie_beside_their_pictures_with_their_values(unbroken: World) -> None:
    asked = next(line for line in unbroken.lines if line.step == "select").facts
    folder = unbroken.root / "to_correct" / "round_001"
    assert len(asked["pictures"]) == 2
    classes = Classes.read(next(x for x in unbroken.lines if x.step == "classes").facts)
    for entry in asked["pictures"]:
        mask = folder / "masks" / entry["name"]
        drawn = classes.decode(readers.read_mask(mask), "x")
        run = unbroken.root / "loop" / "eval" / entry["run"] / "masks" / "index" / entry["name"]
        assert np.array_equal(drawn, readers.read_mask(run))
        assert (folder / "images" / entry["name"]).is_file()
    text = (folder / "README.txt").read_text(encoding="utf-8")
    assert "corrected" in text and "not labelled" in text and (folder / "classes.yaml").is_file()


def test_a_loop_without_anything_new_adds_no_line(unbroken: World) -> None:
    before = len(unbroken.lines)
    assert unbroken.run() == 0
    assert len(unbroken.lines) == before


def test_a_training_that_cannot_be_done_is_given_up_when_new_masks_come(
    unbroken: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    shutil.rmtree(world.root)
    shutil.copytree(unbroken.root, world.root, symlinks=True)
    world.training = unbroken.training

    def failing(ctx: Context, begun: Any) -> None:
        raise UserError("all masks hold one class only")

    monkeypatch.setattr(models, "train", failing)
    learned = [x.facts["labels"] for x in world.lines if x.step == "retrain"][-1]
    before = len(world.lines)

    def improve(name: str) -> None:
        path = world.root / "corrected" / name
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        cv2.imwrite(str(path), mask[::-1])

    improve(learned[0][0])
    assert world.run() == 2 and world.run() == 2
    assert [x.step for x in world.lines[before:]] == ["labels", "retrain"]
    improve(learned[1][0])
    assert world.run() == 2
    assert [x.step for x in world.lines[before + 2 :]] == ["labels", "drop", "retrain"]
    old, new = [dict(x.facts["labels"]) for x in world.lines if x.step == "retrain"][-2:]
    assert {name for name in new if new[name] != old[name]} == {learned[1][0]}


def test_a_labelled_folder_gives_the_first_masks_and_its_splits_are_frozen(
    synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(ctx: Context, begun: Any) -> None:
        raise UserError("not today")

    monkeypatch.setattr(models, "train", failing)
    world = World(tmp_path)
    world.add(20)
    assert world.run("--labelled", str(synthetic_folder)) == 2
    ledger = Ledger.open(world.root / "loop" / "ledger.jsonl")
    for part, split in (("validation", "val"), ("test", "test")):
        found = ledger.frozen(part)
        assert found and len(found) == 2
        assert all(name.startswith("../") and f"/{split}/" in name for name in found)
    learned = ledger.of("retrain")[0].facts["labels"]
    assert len(learned) == 4 and all("/train/" in name for name, _ in learned)
    # What it was begun with stays in force; the training is tried again.
    before = len(ledger.lines)
    assert world.run() == 2 and len(world.lines) == before


def _context(root: Path, names: Sequence[str], *more: str) -> Context:
    """A loop that knows pictures, each with a mask, and has done nothing else."""
    words = [str(root), "--group_regex", r"^(S\d)", *more]
    places = Places(root)
    ctx = Context(settings.resolve(words), Ledger.open(places.ledger), Arrivals(places, 0))
    stems = [Path(name).stem for name in names]
    rows = [{"name": n, "key": k, "digest": k} for n, k in zip(names, stems, strict=True)]
    ctx.write("pictures", pictures=rows, left_out={})
    pairs = zip(names, stems, strict=True)
    labels = [Label(name, key, f"{key}.png", f"{key}.mask.png", key) for name, key in pairs]
    ctx.write("labels", taken=[x.stored() for x in labels], files={}, refused={})
    return ctx


def test_pictures_of_a_frozen_specimen_and_copies_of_its_images_are_never_learned_from(
    tmp_path: Path,
) -> None:
    names = ["S1_1.png", "S1_2.png", "S2_1.png", "S3_1.png", "S3_2.png"]
    ctx = _context(tmp_path, names)
    frozen = ctx.state.labels["S1_1.png"]
    ctx.ledger.freeze("validation", [frozen.name], labels=[frozen.stored()], inside=False)
    ctx.took(2)
    assert ctx.held_out()["S1_2.png"] == "of the frozen specimen S1"
    assert [x.name for x in first.trainable(ctx)] == ["S2_1.png", "S3_1.png", "S3_2.png"]
    looked: dict[str, Any] = {"looked": {}, "broken": {}, "pixel_sizes": {}, "warnings": []}
    ctx.write("doctor", copies={"S2_1.png": "S1_1.png"}, **looked)
    assert [x.name for x in first.trainable(ctx)] == ["S3_1.png", "S3_2.png"]
    # A file that holds the same pixels under another name.
    twin = replace(ctx.state.labels["S3_1.png"], pixels=frozen.pixels, mask="new")
    ctx.write("labels", taken=[twin.stored()], files={}, refused={})
    assert [x.name for x in first.trainable(ctx)] == ["S3_2.png"]


@pytest.mark.parametrize(
    ("names", "val", "test", "inside"),
    [
        (["S1_1", "S1_2", "S2_1"], None, None, None),
        (["S1_1", "S1_2", "S1_3", "S2_1"], ["S2_1"], [], False),
        (["S1_1", "S1_2", "S1_3", "S1_4"], 1, 1, True),
        ([f"S{i}_{k}" for i in range(5) for k in range(2)], 2, 2, False),
    ],
)
def test_frozen_images_are_whole_specimens_and_of_two_one_trains(
    names: list[str], val: Any, test: Any, inside: bool | None, tmp_path: Path
) -> None:
    ctx = _context(tmp_path, [f"{name}.png" for name in names])
    found = first._cut(ctx, wanted=True)
    if val is None:
        assert found is None
        return
    assert found is not None
    parts = [[label.key for label in part] for part in found[:2]]
    assert found[2] is inside and not set(parts[0]) & set(parts[1])
    for part, expected in zip(parts, (val, test), strict=True):
        assert part == expected if isinstance(expected, list) else len(part) == expected
        if not inside:
            whole = [name for name in names if name[:2] in {key[:2] for key in part}]
            assert sorted(part) == sorted(whole)


@pytest.mark.parametrize(
    ("more", "back", "due"),
    [
        ((), [], False),
        ((), ["S1_1.png"], False),
        ((), ["S1_1.png", "S2_1.png"], True),
        (("--retrain_after", "1"), ["S1_1.png"], True),
        # One that nobody asked for does not count as those that were.
        ((), ["S3_1.png"], False),
    ],
)
def test_a_model_is_trained_again_when_all_that_was_asked_for_has_come_back(
    more: tuple[str, ...], back: list[str], due: bool, tmp_path: Path
) -> None:
    ctx = _context(tmp_path, ["S7_1.png", "S8_1.png"], *more)
    frozen = ctx.state.labels["S7_1.png"]
    ctx.ledger.freeze("validation", [frozen.name], labels=[frozen.stored()], inside=False)
    ctx.took(2)
    ctx.state.fresh = []
    asked = [{"name": name, "run": "r"} for name in ("S1_1.png", "S2_1.png")]
    ctx.write("select", round=1, model="000", pictures=asked)
    labels = [Label(name, name[:4], "p", f"m{name}", name) for name in back]
    ctx.write("labels", taken=[x.stored() for x in labels], files={}, refused={})
    assert turn._due(ctx) is due
    assert (ctx.state.open_plan is not None) is due


class Killed(BaseException):
    """What a SIGKILL is here: nothing behind it is done."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Iterator[itertools.count[int]]:
    """The first attempt at every line dies before it is written; every second line is cut, too."""
    append, count, done = Ledger.append, itertools.count(), set[int]()

    def dying(self: Ledger, step: str, **facts: object) -> Line:
        number = len(self.lines) + 1
        if number not in done:
            done.add(number)
            next(count)
            if number % 2:
                with open(self.path, "ab") as file:
                    file.write(b'{"number": 1')
            raise Killed
        return append(self, step, **facts)

    monkeypatch.setattr(Ledger, "append", dying)
    yield count


@pytest.mark.slow
def test_a_loop_that_is_killed_at_every_step_comes_to_the_same_ledger_and_models(
    unbroken: World,
    tmp_path: Path,
    deadly: itertools.count[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, run = World(tmp_path), World.run

    def again(self: World, *more: str) -> int:
        while True:
            try:
                return run(self, *more)
            except Killed:
                continue

    monkeypatch.setattr(World, "run", again)
    _rounds(world, 1)
    assert world.story == unbroken.story[: len(world.lines)]
    assert [line.step for line in world.lines].count("train") == 2
    assert next(deadly) == len(world.lines)
    for path in (unbroken.root / "loop" / "finetune").glob("*/best.ckpt"):
        other = world.root / "loop" / "finetune" / path.parent.name / "best.ckpt"
        if other.is_file():
            one, two = (checkpoint.load(p)["state"] for p in (path, other))
            assert of_tensors(one) == of_tensors(two)
    assert not list((world.root / "to_correct").rglob(".*"))


def test_the_test_images_are_opened_once(
    unbroken: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    shutil.rmtree(world.root)
    shutil.copytree(unbroken.root, world.root, symlinks=True)
    assert world.run("--open_test") == 0
    assert "opened once and for all" in capsys.readouterr().out
    assert [line.step for line in world.lines][-1] == "test"
    assert world.run("--open_test") == 2
    assert "were opened before, with model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loop_begins_with_a_model_and_takes_annotation_files_back(
    unbroken: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    world.add(20, 21, 22)
    other = tmp_path / "validation"
    for kind in ("images", "masks"):
        (other / kind).mkdir(parents=True)
    for number in range(40, 43):
        image, mask = synthetic.micrograph("two_phase", 64, 64, number)
        cv2.imwrite(str(other / "images" / f"v{number}_1.png"), image)
        cv2.imwrite(str(other / "masks" / f"v{number}_1.png"), mask)
    model = str(unbroken.root / "loop" / "finetune" / "000")
    begin = ["--model", model, "--validation", str(other), "--format", "labelme", "--n", "3"]
    assert world.run(*begin) == 0
    steps = [line.step for line in world.lines]
    assert steps[-4:] == ["promote", "predict", "measure", "select"] and "retrain" not in steps
    frozen = next(line for line in world.lines if line.step == "freeze").facts
    assert frozen["images"] == [f"../validation/images/v{n}_1.png" for n in (40, 41, 42)]
    assert len(world.waiting()) == 3
    # Two come back as LabelMe drew them, of which one is as it was predicted; one is drawn twice.
    drawn = world.root / "to_correct" / "round_001" / "labelme"
    back = world.root / "corrected"
    names = [Path(name).stem for name in sorted(world.waiting())]
    for name in names[:2]:
        shutil.copy(drawn / f"{name}.json", back)
    content = json.loads((back / f"{names[1]}.json").read_text(encoding="utf-8"))
    content["shapes"][0]["label"] = "rust"
    (back / f"{names[1]}.json").write_text(json.dumps(content), encoding="utf-8")
    world.correct([f"{names[2]}.png"])
    assert world.run("--format", "labelme", "--n", "3") == 0
    came = next(x for x in world.lines if x.step == "labels").facts
    assert [label["file"] for label in came["taken"]] == [
        *(f"corrected/{names[0]}.json", f"corrected/{names[2]}.png")
    ]
    assert came["taken"][0]["changed"] == 0
    assert "draws 'rust'" in came["refused"][f"corrected/{names[1]}.json"]
    # One is asked for still; a second file for a picture is refused until one is gone.
    shutil.copy(world.truth / f"{names[1]}.png", back)
    assert world.run("--format", "labelme", "--n", "3") == 0
    assert "remove all but one" in world.lines[-1].facts["refused"][f"corrected/{names[1]}.png"]
    (back / f"{names[1]}.json").unlink()
    assert world.run("--format", "labelme", "--n", "3") == 0
    trained = [line.facts for line in world.lines if line.step in ("retrain", "train")]
    assert trained[0]["start"] == "000" and trained[1]["images"] == 3
    capsys.readouterr()
    assert world.run("--test", str(other)) == 2
    assert "--test acts where a loop begins" in capsys.readouterr().err


# --- what a file that came back says ---
def _came(tmp_path: Path, name: str) -> tuple[Any, list[corrected.Came]]:
    state = SimpleNamespace(broken={}, rounds=[])
    ctx: Any = SimpleNamespace(places=Places(tmp_path), state=state)
    ctx.classes = SimpleNamespace(names=("matrix", "pore", "rust"))
    return ctx, corrected._opened(ctx, tmp_path / "corrected" / name)


def test_pictures_that_nobody_drew_on_yet_are_no_masks(tmp_path: Path) -> None:
    """A COCO file of three pictures, one drawn on; a LabelMe file without a shape."""
    back = tmp_path / "corrected"
    back.mkdir()
    images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("abc")]
    ring = {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]}
    content: dict[str, Any] = {"images": images, "annotations": [ring]}
    content["categories"] = [{"id": 1, "name": "pore"}]
    (back / "all.json").write_text(json.dumps(content), encoding="utf-8")
    assert [one.names[0] for one in _came(tmp_path, "all.json")[1]] == ["b"]
    content = {"version": "5", "shapes": [], "imagePath": "a.png"}
    (back / "a.json").write_text(json.dumps(content), encoding="utf-8")
    ctx, (empty,) = _came(tmp_path, "a.json")
    empty = replace(empty, picture=Picture("a.png", "a", "0"))
    with pytest.raises(UserError, match="nothing with an area is drawn on it"):
        corrected._label(ctx, empty, {})


def test_a_file_without_a_shape_confirms_a_picture_that_was_asked_for(tmp_path: Path) -> None:
    """All of it is of the first class; one on which only a line was drawn stays a question."""
    back = tmp_path / "corrected"
    back.mkdir()
    line = {"label": "pore", "shape_type": "line", "points": [[0, 0], [3, 3]]}
    picture = Picture("a.png", "a", "0")
    for shapes, confirmed in (([], True), ([line], False)):
        content = {"version": "5", "shapes": shapes, "imagePath": "a.png"}
        (back / "a.json").write_text(json.dumps(content), encoding="utf-8")
        ctx, (one,) = _came(tmp_path, "a.json")
        ctx.state.rounds = [SimpleNamespace(names=("a.png",))]
        assert corrected._confirms(ctx, one, picture) == confirmed
        assert not corrected._confirms(ctx, one, Picture("b.png", "b", "0"))
        if not confirmed:
            with pytest.raises(UserError, match=r"with an area is drawn on it \(1 line of pore\)"):
                corrected._label(ctx, replace(one, picture=picture), {})
            continue
        ctx.record = SimpleNamespace(read=lambda _: SimpleNamespace(pixels=np.zeros((4, 5))))
        assert one.drawing is not None
        painted = corrected._painted(ctx, one, picture, one.drawing)
        assert painted.shape == (4, 5) and not painted.any()


def test_the_screen_names_a_picture_that_was_confirmed_without_a_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(tmp_path, ["S1_1.png"])
    named = property(lambda _: SimpleNamespace(names=("matrix", "pore")))
    monkeypatch.setattr(type(ctx), "classes", named)
    told: list[str] = []
    drawing = Drawing("S1_1.png", None, (), tmp_path / "a.json")
    came = [corrected.Came(tmp_path / "a.json", "corrected/a.json", drawing=drawing)]
    label = Label("S1_1.png", "S1_1", "p", "m", "0")
    monkeypatch.setattr(corrected, "new_files", lambda _: (came, []))
    monkeypatch.setattr(corrected, "_label", lambda *_: (label, None))
    monkeypatch.setattr(ctx, "write", lambda *_, **__: None)
    monkeypatch.setattr(ctx, "say", told.append)
    corrected.take_in(ctx)
    assert told[1:] == ["confirmed without a shape, all of it is matrix: S1_1.png"]


def test_shapes_without_area_are_told_by_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(tmp_path, ["S1_1.png"])
    told: list[str] = []
    no_area = Counter({("line", "pore"): 2, ("point", ""): 1})
    drawing = Drawing("S1_1.png", None, (), tmp_path / "a.json", no_area)
    came = [corrected.Came(tmp_path / "a.json", "corrected/a.json", drawing=drawing)]
    monkeypatch.setattr(corrected, "new_files", lambda _: (came, []))
    monkeypatch.setattr(corrected, "_label", lambda *_: (None, None))
    monkeypatch.setattr(ctx, "warn", told.append)
    corrected.take_in(ctx)
    assert told == ["corrected/a.json: left out, without area: 2 line of pore, 1 point"]


def test_a_stack_is_left_out_of_the_loop_with_what_to_do(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (3, 32, 32), np.uint8)
    tifffile.imwrite(tmp_path / "film.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "one.tif", pages[0])
    for words, taken in (((), ["one.tif"]), (("--page", "2"), ["film.tif", "one.tif"])):
        places = Places(tmp_path)
        ctx = Context(
            settings.resolve([str(tmp_path), *words]),
            Ledger.open(places.ledger),
            Arrivals(places, 0),
        )
        new = [tmp_path / "film.tif", tmp_path / "one.tif"]
        images, left = pictures._told_apart(ctx, new, new)
        assert [path.name for path in images] == taken
        assert all("has 3 pages" in why and "Image Sequence" in why for why in left.values())
        assert list(left) == (["film.tif"] if not words else [])


def test_label_pictures_come_back_by_the_names_of_their_numbers(tmp_path: Path) -> None:
    """Of ilastik 0 is not labelled; its numbers are not the values of the loop's masks."""
    back = tmp_path / "corrected"
    back.mkdir()
    numbers = np.array([[0, 1], [2, 0]], np.uint8)
    tifffile.imwrite(back / "a_Labels.tif", numbers)
    ctx, (one,) = _came(tmp_path, "a_Labels.tif")
    assert one.uncovered and one.names[:2] == ("a_Labels", "a")
    assert one.drawing is not None and [s.label for s in one.drawing.shapes] == ["1", "2"]
    ctx.record = SimpleNamespace(read=lambda _: SimpleNamespace(pixels=numbers))
    with pytest.raises(UserError, match="draws '1'.*label_names.csv"):
        corrected._painted(ctx, one, Picture("a.png", "a", "0"), one.drawing)
    (back / "label_names.csv").write_text("number,name\n1,rust\n2,pore\n", encoding="utf-8")
    ctx, (one,) = _came(tmp_path, "a_Labels.tif")
    ctx.record = SimpleNamespace(read=lambda _: SimpleNamespace(pixels=numbers))
    assert one.drawing is not None
    painted = corrected._painted(ctx, one, Picture("a.png", "a", "0"), one.drawing)
    assert painted.tolist() == [[IGNORE, 2], [1, IGNORE]]
