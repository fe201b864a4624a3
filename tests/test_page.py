"""The page's server: folders, pictures, labels, jobs, results; without a browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import layouts, readers
from matssl.data.masks.class_file import values_by_name
from matssl.data.preprocess import Preprocess
from matssl.data.specimens.table import read_table

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from matssl.page import (
    collecting,
    commands,
    labels,
    looking,
    predictor,
    process,
    results,
    settings,
    views,
)
from matssl.page import workspace as places
from matssl.page.folders import Folder
from matssl.page.jobs import Jobs, Step
from matssl.page.workspace import Refused, Workspace
from tests.page_rooms import looked_at, program, write

SHAPE = (40, 60)
WHOLE = {"left": 0, "top": 0, "width": 60, "height": 40}


@pytest.fixture
def home(tmp_path: Path) -> Workspace:
    """A workspace with a folder of two pictures that nobody has looked at."""
    write(tmp_path / "steel", ("a.png", "b.png"))
    return Workspace.of(tmp_path)


@pytest.fixture
def steel(home: Workspace) -> Folder:
    """The same, looked at."""
    return looked_at(home, "steel")


def _draw(client: Any, image: str, mask: np.ndarray, revision: str = "new") -> Any:
    window = {"left": 0, "top": 0, "width": mask.shape[1], "height": mask.shape[0]}
    asked = {"folder": "steel", "image": image, "revision": revision, **window}
    return client.put("/api/labels", params=asked, content=mask.tobytes())


def _halves() -> np.ndarray:
    mask = np.full(SHAPE, IGNORE, np.uint8)
    mask[:, :20], mask[:, 40:] = 0, 1
    return mask


# --- folders ---
def test_folders_with_pictures_are_listed_and_those_of_ours_are_not(home: Workspace) -> None:
    write(home.root / "set" / "train", ("c.png",))
    write(home.root / "set" / "val", ("d.png",))
    write(home.root / "labels" / "steel", ("a.png",))
    write(home.root / "experiments" / "eval" / "run", ("a.png",))
    write(home.root / ".hidden", ("a.png",))
    listed = {one["folder"]: one["pictures"] for one in home.folders()}
    assert listed == {".": 4, "set": 2, "set/train": 1, "set/val": 1, "steel": 2}


def test_a_look_says_what_the_doctor_says_and_holds_until_the_folder_changes(
    steel: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    from matssl.tools import doctor

    found = steel.found()
    assert [p["image"] for p in found["pictures"]] == ["a.png", "b.png"]
    assert {(p["height"], p["width"], p["bits"]) for p in found["pictures"]} == {(40, 60, 8)}
    capsys.readouterr()
    doctor.main([str(steel.path)])
    said = capsys.readouterr().out
    # The memory that is free changes.
    lines = [line for line in found["text"].splitlines() if "memory" not in line]
    assert all(line in said for line in lines)
    assert steel.sheet.is_file() and steel.is_current()
    write(steel.path, ("c.png",))
    assert not steel.is_current()


def test_a_folder_that_nobody_looked_at_is_no_mistake(home: Workspace) -> None:
    answer = program(home).get("/api/folder", params={"folder": "steel"})
    assert answer.status_code == 200 and answer.json()["pictures"] is None
    one = {"folder": "steel", "image": "a.png"}
    assert program(home).get("/api/picture.png", params=one).status_code == 409


def test_bar_and_pixel_size_that_a_user_says_are_flags_of_every_command(steel: Folder) -> None:
    client = program(steel.workspace)
    asked = {"folder": "steel", "crop_bottom": "7", "pixel_size": "12.5nm"}
    assert client.post("/api/said", json=asked).status_code == 200
    flags = ["--crop_bottom", "7", "--pixel_size", "12.5nm"]
    assert steel.flags() == flags and not steel.is_current()
    again = looked_at(steel.workspace, "steel").found()["pictures"][0]
    assert (again["bar"], again["pixel_size"]) == (7, 12.5)
    for wrong in ({"crop_bottom": "many"}, {"pixel_size": "12 apples each"}, {"sise": "1"}):
        assert client.post("/api/said", json={"folder": "steel", **wrong}).status_code in (400, 422)
    client.post("/api/said", json={"folder": "steel", "crop_bottom": ""})
    assert steel.flags() == ["--pixel_size", "12.5nm"]


def test_specimens_are_written_where_every_command_reads_them(steel: Folder) -> None:
    table = steel.path / "specimens.csv"
    table.write_text("image,specimen,magnification\na.png,old,500x\nb.png,other,200x\n")
    client = program(steel.workspace)
    asked = {"folder": "steel", "specimens": {"a.png": "melt 7"}, "pixel_sizes_nm": {"b.png": 20}}
    assert client.post("/api/said", json=asked).status_code == 200
    rows = {row.image: row for row in read_table(table).rows}
    assert (rows["a.png"].specimen, rows["a.png"].magnification) == ("melt 7", "500x")
    assert (rows["b.png"].specimen, rows["b.png"].pixel_size) == ("other", 20)
    asked = {"folder": "steel", "specimens": {"nowhere.png": "x"}}
    assert client.post("/api/said", json=asked).status_code == 404


# --- pictures ---
def test_sixteen_bits_are_stretched_between_their_own_levels(tmp_path: Path) -> None:
    """A ramp from 1000 to 4000 becomes one from black to white, the middle the middle grey."""
    ramp = np.linspace(1000, 4000, 256).round().astype(np.uint16)
    shown = views.stretched(np.tile(ramp, (256, 1)), 256)
    assert shown[0, 0] == 0 and shown[0, -1] == 255 and abs(int(shown[0, 128]) - 128) <= 1
    # A bright bar below does not darken what lies above it.
    barred = np.vstack([np.tile(ramp, (256, 1)), np.full((20, 256), 65535, np.uint16)])
    assert np.array_equal(views.stretched(barred, 256)[:256], shown)


def test_windows_hold_the_pixels_of_the_picture(home: Workspace) -> None:
    levels = np.arange(30 * 50, dtype=np.uint16).reshape(30, 50) * 7
    (home.root / "deep").mkdir()
    tifffile.imwrite(home.root / "deep" / "a.tif", levels)
    looked_at(home, "deep")
    client = program(home)
    asked = {"folder": "deep", "image": "a.tif", "left": 10, "top": 20, "width": 99, "height": 5}
    answer = client.get("/api/pixels", params=asked)
    assert answer.headers["x-window"] == "10,20,40,5" and answer.headers["x-channels"] == "1"
    seen = np.frombuffer(answer.content, np.uint8).reshape(5, 40)
    assert np.array_equal(seen, views.stretched(levels, 30)[20:25, 10:50])
    outside = {**asked, "left": 50}
    assert client.get("/api/pixels", params=outside).status_code == 400


def test_large_pictures_come_smaller_or_in_parts(home: Workspace) -> None:
    (home.root / "large").mkdir()
    levels = np.zeros((5000, 300), np.uint8)
    levels[4000:] = 200
    tifffile.imwrite(home.root / "large" / "a.tif", levels)
    looked_at(home, "large")
    client = program(home)
    whole = {"folder": "large", "image": "a.tif", "longest": 100_000}
    png = client.get("/api/picture.png", params=whole)
    (home.root / "shown.png").write_bytes(png.content)
    assert max(readers.read(home.root / "shown.png").pixels.shape) == views.LARGEST_WHOLE
    asked = {"folder": "large", "image": "a.tif", "left": 0, "top": 0, "width": 300}
    assert client.get("/api/pixels", params={**asked, "height": 5000}).status_code == 400
    part = {**asked, "top": 3990, "height": 20}
    seen = np.frombuffer(client.get("/api/pixels", params=part).content, np.uint8).reshape(20, 300)
    assert (seen[:10] == 0).all() and (seen[10:] == 255).all()
    # Labels of the part lie at their place in the whole.
    put = {**part, "revision": "new"}
    mask = np.full((20, 300), 1, np.uint8)
    assert client.put("/api/labels", params=put, content=mask.tobytes()).status_code == 200
    kept = readers.read_mask(home.root / "labels" / "large" / "a.png")
    assert (
        kept.shape == (5000, 300)
        and (np.flatnonzero((kept == 1).any(1))[[0, -1]] == (3990, 4009)).all()
    )


def test_the_last_pictures_are_kept_within_a_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path, [f"{i}.png" for i in range(6)])
    monkeypatch.setattr(views, "KEPT", 3 * 40 * 60)
    seen = views.Views()
    for i in range(6):
        seen.whole(tmp_path / f"{i}.png", 0)
    assert sum(plane.nbytes for plane in seen._kept.values()) <= views.KEPT


# --- labels ---
def test_labels_are_masks_that_every_command_reads(steel: Folder) -> None:
    client, mask = program(steel.workspace), _halves()
    answer = _draw(client, "a.png", mask)
    assert answer.status_code == 200 and answer.json()["labelled"] == 40 * 40
    asked = {"folder": "steel", "image": "a.png", **WHOLE}
    back = client.get("/api/labels", params=asked)
    assert back.content == mask.tobytes()
    assert back.headers["x-revision"] == answer.json()["revision"]
    home = steel.labels
    found = layouts.find(steel.path, mask_folder=str(home), classes=str(home / "classes.yaml"))
    pair = next(pair for pair in found.pairs if pair.mask)
    assert found.table is not None and found.table.names == ("matrix", "second phase")
    assert np.array_equal(found.table.decode(readers.read_mask(pair.mask), ""), mask)


def test_two_pages_do_not_overwrite_each_other(steel: Folder) -> None:
    client, mask = program(steel.workspace), _halves()
    first = _draw(client, "a.png", mask).json()["revision"]
    assert _draw(client, "a.png", 0 * mask, "new").status_code == 409
    assert _draw(client, "a.png", 0 * mask, first).status_code == 200


def test_odd_labels_are_refused_and_change_nothing(steel: Folder) -> None:
    client, mask = program(steel.workspace), _halves()
    known = _draw(client, "a.png", mask).json()["revision"]
    before = (steel.labels / "a.png").read_bytes()
    assert _draw(client, "a.png", np.full(SHAPE, 9, np.uint8), known).status_code == 400
    short = {"folder": "steel", "image": "a.png", "revision": known, **WHOLE}
    assert client.put("/api/labels", params=short, content=b"12").status_code == 400
    beyond = {**short, "left": 30}
    assert client.put("/api/labels", params=beyond, content=bytes(2400)).status_code == 400
    assert (steel.labels / "a.png").read_bytes() == before


def test_pictures_whose_labels_would_share_a_name_are_refused(home: Workspace) -> None:
    write(home.root / "steel", ("a.bmp",))
    looked_at(home, "steel")
    answer = _draw(program(home), "a.png", _halves())
    assert answer.status_code == 409 and "a.bmp" in answer.json()["error"]


def test_classes_are_named_once_and_go_only_when_erased(steel: Folder) -> None:
    client = program(steel.workspace)
    listed = client.get("/api/classes", params={"folder": "steel"}).json()["classes"]
    assert [c["name"] for c in listed] == ["matrix", "second phase"]
    more = [*listed, {"value": 7, "name": "pore", "colour": "#112233"}]
    asked = {"folder": "steel", "classes": more}
    assert client.put("/api/classes", json=asked).json()["classes"] == more
    assert values_by_name(steel.labels / "classes.yaml")["pore"] == (7,)
    mask = _halves()
    mask[0, 25] = 7
    _draw(client, "a.png", mask)
    gone = client.put("/api/classes", json={"folder": "steel", "classes": listed})
    assert gone.status_code == 409 and "pore" in gone.json()["error"]
    for wrong in (
        [{**listed[0]}, {**listed[0], "value": 3}],
        [{**listed[0], "name": "a,b"}],
        [{**listed[0], "value": 255}],
        [{**listed[0], "colour": "red;x"}],
        [],
    ):
        asked = {"folder": "steel", "classes": wrong}
        assert client.put("/api/classes", json=asked).status_code == 400


def test_masks_of_a_folder_become_labels_at_the_size_of_the_picture(tmp_path: Path) -> None:
    import cv2

    write(tmp_path / "set" / "images", ("a.png",))
    (tmp_path / "set" / "masks").mkdir()
    drawn = np.zeros((36, 60), np.uint8)
    drawn[5:20] = 255
    cv2.imwrite(str(tmp_path / "set" / "masks" / "a.png"), drawn)
    home = Workspace.of(tmp_path)
    folder = looked_at(home, "set")
    picture = folder.found()["pictures"][0]
    assert picture["mask"] and picture["bar"] == 4
    looking.take_over(commands.take_over(folder).argv)
    kept = readers.read_mask(folder.labels / "images" / "a.png")
    assert kept.shape == SHAPE and (kept[5:20] == 1).all() and (kept[36:] == IGNORE).all()
    assert folder.complete() == ["images/a.png"]


# --- commands and jobs ---
def test_what_a_button_starts_is_what_a_terminal_takes(steel: Folder) -> None:
    """Every command line of the page is understood by the command it names."""
    from matssl.core.parsing import parse_one
    from matssl.stages.evaluate import settings as evaluation
    from matssl.stages.finetune import settings as training
    from matssl.stages.measure import settings as measuring
    from matssl.stages.select import settings as selecting
    from matssl.tools.doctor import SETTINGS as DOCTOR

    steel.say("5", "20nm")
    model = steel.path / "best.ckpt"
    step = commands.train(steel, "run-1", "network", 300, "")
    resolved = training.resolve(step.argv)
    assert (resolved.steps, resolved.name, resolved.crop_bottom) == (300, "run-1", "5")
    assert training.resolve(commands.train(steel, "r", "forest", 1, "").argv).head == "forest"
    encoder = steel.workspace.experiments / "ssl" / "mine" / "encoder.safetensors"
    encoder.parent.mkdir(parents=True)
    encoder.touch()
    linear = training.resolve(commands.train(steel, "r", "linear", 1, "mine").argv)
    assert (linear.head, linear.ssl_weights_path) == ("linear", str(encoder))
    seen = evaluation.resolve(commands.predict(steel, model, "r-1", True).argv)
    assert seen.split == "all" and seen.save_probabilities and not seen.baselines
    chosen = selecting.resolve(commands.choose(steel, model, "n-1", 3, True).argv)
    assert chosen.n == 3 and chosen.pool == str(steel.path)
    words = commands.measure(steel, steel.labels, True, "m-1", ["objects"], ["matrix"]).argv
    measured = measuring.resolve(words)
    assert measured.wanted == ("objects",) and measured.images == str(steel.path)
    line = commands.line("look", commands.look(steel).argv)
    assert line.startswith("python -m matssl.tools.doctor ") and "--home" not in line
    parse_one(DOCTOR, line.split()[3:], "")


def test_teaching_needs_two_classes(steel: Folder) -> None:
    client = program(steel.workspace)
    asked = {"folder": "steel", "head": "forest"}
    assert client.post("/api/teach", json=asked).status_code == 409
    _draw(client, "a.png", np.where(_halves() == 1, 1, IGNORE).astype(np.uint8))
    assert client.post("/api/plan", json=asked).status_code == 409
    _draw(client, "b.png", _halves())
    lines = [c["line"] for c in client.post("/api/plan", json=asked).json()["commands"]]
    assert [line.split()[1] for line in lines] == ["train_finetune.py", "eval_model.py"]
    odd = {**asked, "head": "network", "start": "../../x"}
    assert client.post("/api/plan", json=odd).status_code == 404


def test_a_linear_head_reads_the_weights_that_are_at_hand(
    steel: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own pretraining runs first, then published weights that are fetched; without any, none."""
    from matssl import hub

    monkeypatch.setattr(hub, "MODEL_HUB", tmp_path / "hub")
    client = program(steel.workspace)
    _draw(client, "a.png", _halves())
    asked = {"folder": "steel", "head": "linear"}
    assert "weights" in client.post("/api/plan", json=asked).json()["error"]
    run = steel.workspace.experiments / "ssl" / "mine" / "encoder.safetensors"
    here, there = (tmp_path / "hub" / name for name in ("a.pth", "b.pth"))
    for path in (run, here):
        path.parent.mkdir(parents=True)
        path.touch()
    entries = {"published": here, "gone": there, "one-finetune-on-x": here}
    known = {name: hub.Weights(name, path.name, "") for name, path in entries.items()}
    monkeypatch.setattr(hub, "weights_registry", lambda: known)
    runs = client.get("/api/runs", params={"folder": "steel"}).json()
    assert runs["encoders"] == ["mine", "hub/published"]
    for start, given in (("mine", str(run)), ("hub/published", "published")):
        line = client.post("/api/plan", json={**asked, "start": start}).json()["commands"][0]
        assert f"--head linear --ssl_weights_path {given} " in line["line"]
    for start in ("hub/gone", "other", "hub/../x"):
        assert client.post("/api/plan", json={**asked, "start": start}).status_code == 404


def test_classes_of_which_nothing_was_painted_are_not_learned(steel: Folder) -> None:
    """Zero is what a model says of them, and no measurement."""
    experiments = steel.workspace.experiments
    learned, run = experiments / "finetune" / "f-1", experiments / "eval" / "f-1-1"
    for part in (learned, run / "masks" / "index", run / "masks" / "label"):
        part.mkdir(parents=True)
    classes = [{"name": "matrix", "pixels": 5}, {"name": "pore", "pixels": 0}]
    (learned / "classes.json").write_text(json.dumps({"classes": classes}))
    (run / "config.yaml").write_text(f"model_path: {learned / 'best.ckpt'}\n")
    (run / "metrics.json").write_text('{"classes": ["matrix", "pore"]}')
    (run / "per_image.csv").write_text("image,group,pixel_size_nm\n")
    asked = {"folder": "steel", "run": run.name}
    client = program(steel.workspace)
    assert client.get("/api/prediction", params=asked).json()["unlearned"] == ["pore"]
    (run / "config.yaml").write_text("model_path: /elsewhere/best.ckpt\n")
    assert client.get("/api/prediction", params=asked).json()["unlearned"] == []


def test_pictures_whose_specimens_nothing_tells_are_counted(steel: Folder) -> None:
    assert steel.found()["unsure"] == 2
    steel.name_specimens({"a.png": "s1", "b.png": "s1"}, {})
    again = looked_at(steel.workspace, "steel").found()
    assert again["unsure"] == 0 and again["grouped"] == "as specimens.csv says"


def test_a_stopped_training_goes_on_with_its_own_command(steel: Folder) -> None:
    run = steel.workspace.experiments / "finetune" / "steel-network-1"
    run.mkdir(parents=True)
    step = commands.train(steel, run.name, "network", 300, "")
    place = steel.workspace.state / "jobs" / "one"
    place.mkdir(parents=True)
    first = {"kind": "train", "argv": list(step.argv), "told": step.told}
    facts = {"id": "one", "kind": "teach", "facts": {"run": run.name}, "steps": [first]}
    (place / "job.json").write_text(json.dumps({**facts, "begun": 0.0}))
    asked = {"folder": "steel", "head": "network", "resume": run.name}
    lines = program(steel.workspace).post("/api/plan", json=asked).json()["commands"]
    assert lines[0]["line"] == commands.line("train", (*step.argv, "--resume"))
    unknown = {**asked, "resume": "another"}
    assert program(steel.workspace).post("/api/plan", json=unknown).status_code == 404


_STUB = """
import json, os, signal, sys, time
from pathlib import Path
from matssl.core import locks
from matssl.page.jobs import state_of
place = Path(sys.argv[1])
lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR)
locks.hold(lock, wait=True)
def stop(*_):
    state_of(place, state="stopped", step=0, pid=os.getpid(), ended=time.time())
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
state_of(place, state="running", step=0, pid=os.getpid())
print("working", flush=True)
time.sleep(60)
"""


@pytest.fixture
def stub(home: Workspace) -> Jobs:
    """Jobs whose process does nothing for a minute."""
    program = home.root / "stub.py"
    program.write_text(_STUB)
    return Jobs(home, (str(program),))


def _until(jobs: Jobs, name: str, *states: str) -> dict[str, Any]:
    for _ in range(400):
        job = jobs.read(name)
        if job["state"] in states:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def test_a_job_outlives_the_server_and_is_stopped_by_the_next_one(stub: Jobs) -> None:
    name = stub.start("teach", "steel", [Step("train", ("x",), "Teaching")])
    _until(stub, name, "running")
    again = Jobs(stub.workspace)
    assert [job["id"] for job in again.running()] == [name]
    assert "working" in again.read(name)["log"]
    with pytest.raises(Refused, match="being taught already"):
        again.start("teach", "steel", [])
    again.stop(name)
    assert _until(again, name, "stopped", "died")["state"] == "stopped"
    assert not again.running()


def test_a_folder_is_looked_at_while_a_model_is_taught(stub: Jobs) -> None:
    first = stub.start("teach", "steel", [Step("train", ("x",), "Teaching")])
    second = stub.start("look", "steel", [Step("look", ("x",), "Looking")])
    _until(stub, second, "running")
    with pytest.raises(Refused, match="running already"):
        stub.start("measure", "steel", [])
    for name in (first, second):
        _until(stub, name, "running")
        stub.stop(name)
        _until(stub, name, "stopped")


def test_a_job_that_is_killed_is_said_to_be_dead(stub: Jobs) -> None:
    name = stub.start("teach", "steel", [Step("train", ("x",), "Teaching")])
    job = _until(stub, name, "running")
    os.kill(job["pid"], signal.SIGKILL)
    assert _until(stub, name, "died")["state"] == "died"
    assert Jobs(stub.workspace).read(name)["state"] == "died"


def test_a_job_that_fails_says_why(home: Workspace) -> None:
    place = home.state / "jobs" / "one"
    place.mkdir(parents=True)
    steps = [{"kind": "measure", "argv": [str(home.root / "nowhere")], "told": ""}]
    facts = {"id": "one", "kind": "measure", "steps": steps, "begun": 0.0}
    (place / "job.json").write_text(json.dumps(facts))
    done = subprocess.run(
        [sys.executable, "-m", "matssl.page.process", str(place)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "there is no folder" in done.stderr
    assert Jobs(home).read("one")["state"] == "failed"


def test_steps_of_a_job_are_those_a_process_knows() -> None:
    assert set(commands.TYPED) <= set(process.COMMANDS)


# --- results ---
def test_uncertainty_is_the_entropy_of_the_probabilities(tmp_path: Path) -> None:
    """One class for sure: 0; two alike: 255; of 0.11 and 0.89 half of it (0.4999 bit)."""
    (tmp_path / "probabilities").mkdir()
    second = np.array([[0, 0.5, 0.11]], np.float16)
    both = np.stack([1 - second, second])
    tifffile.imwrite(tmp_path / "probabilities" / "a.tif", both, photometric="minisblack")
    found = results.Prediction(tmp_path, ("x", "y"), {"a.png": "a"}).uncertainty("a.png")
    assert found is not None
    assert found[0, :2].tolist() == [0, 255] and abs(int(found[0, 2]) - 127) <= 1
    with pytest.raises(Refused):
        results.Prediction(tmp_path, ("x", "y"), {}).uncertainty("a.png")


def test_corrected_masks_stand_in_the_place_of_predicted_ones(steel: Folder) -> None:
    """Of the picture that is labelled all over the label counts, of the other the prediction."""
    run = steel.workspace.experiments / "eval" / "r-1"
    for part in ("masks/index", "masks/label"):
        (run / part).mkdir(parents=True)
    predicted = np.ones(SHAPE, np.uint8)
    for name in ("a", "b"):
        tifffile.imwrite(run / "masks" / "label" / f"{name}.tif", predicted)
        labels.write(run / "masks" / "index" / f"{name}.png", predicted, labels.Classes.named("xy"))
    (run / "metrics.json").write_text('{"classes": ["matrix", "second phase"]}')
    rows = "".join(f"{steel.path / n}.png,{n},\n" for n in "ab")
    (run / "per_image.csv").write_text("image,group,pixel_size_nm\n" + rows)
    _draw(program(steel.workspace), "a.png", np.zeros(SHAPE, np.uint8))
    target = steel.workspace.state / "masks" / "m"
    assert collecting.collect(commands.collect(steel, run, target).argv) == 0
    assert (readers.read_mask(target / "a.png") == 0).all()
    assert (readers.read_mask(target / "b.png") == 1).all()
    told = {row["image"]: row["mask"] for row in results.rows(target / "from.csv")}
    assert told == {"a.png": "drawn or corrected by you", "b.png": "predicted by r-1"}


@dataclass(frozen=True)
class _Cutting:
    """A model that says which rows it would leave out."""

    record: Preprocess

    def predict(self, picture: str) -> None:
        raise UserError(f"rows {self.record.crop_bottom}")


@pytest.mark.parametrize(("said", "rows"), [("none", "0"), ("auto", "auto"), ("12", "12")])
def test_the_bar_that_a_program_says_is_that_of_the_commands(
    said: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_model", lambda path: _Cutting(Preprocess(crop_bottom=7)))
    found = predictor.predicted("model", "picture", "target", said, "")
    assert found == {"error": f"rows {rows}"}


def test_labels_inside_the_bar_make_no_picture_complete(steel: Folder) -> None:
    facts = steel.found()
    for fact in facts["pictures"]:
        fact["bar"] = 10
    (steel.kept / looking.FACTS).write_text(json.dumps(facts))
    mask = np.zeros(SHAPE, np.uint8)
    mask[:10] = IGNORE
    client = program(steel.workspace)
    _draw(client, "a.png", mask)
    assert steel.complete() == []
    mask[:10], mask[-10:] = 1, IGNORE
    _draw(client, "b.png", mask)
    assert steel.complete() == ["b.png"]


def test_names_that_begin_as_flags_do_are_names(home: Workspace) -> None:
    write(home.root / "odd", ("--target=x.png", "-a.png"))
    odd = looked_at(home, "odd")
    client = program(home)
    for image in ("--target=x.png", "-a.png"):
        window = {"left": 0, "top": 0, "width": SHAPE[1], "height": SHAPE[0], "revision": "new"}
        asked = {"folder": "odd", "image": image, **window}
        assert client.put("/api/labels", params=asked, content=bytes(2400)).status_code == 200
    target = home.state / "masks" / "m"
    assert collecting.collect(commands.collect(odd, None, target).argv) == 0
    assert [row["image"] for row in results.rows(target / "from.csv")] == odd.complete()
    assert (target / "--target=x.png").is_file() and (target / "-a.png").is_file()
    argv = commands.measure(odd, target, True, "m", (), ("--alpha", "b")).argv
    assert "--class=--alpha,b" in argv


def test_a_training_that_was_stopped_has_its_last_model(home: Workspace) -> None:
    run = home.experiments / "finetune" / "r"
    run.mkdir(parents=True)
    with pytest.raises(Refused):
        results.model(home, "r")
    (run / "last.ckpt").touch()
    for untaught in ("", '{"state": "failed", "step": 0}'):
        (run / "status.json").write_text(untaught)
        with pytest.raises(Refused, match="learned nothing"):
            results.model(home, "r")
    (run / "status.json").write_text('{"state": "failed", "step": 40}')
    assert results.model(home, "r").name == "last.ckpt"
    (run / "best.ckpt").touch()
    assert results.model(home, "r").name == "best.ckpt"


# --- settings ---
def test_a_host_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--token"):
        settings.resolve([str(tmp_path), "--host", "0.0.0.0"])
    for weak in ("short", "with spaces in it, sixteen"):
        with pytest.raises(UserError, match="--token"):
            settings.resolve([str(tmp_path), "--token", weak])
    open_to_all = [str(tmp_path), "--host", "0.0.0.0", "--token", "0123456789abcdef"]
    assert settings.resolve(open_to_all).host == "0.0.0.0"
    assert all(settings.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost"))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, home: Workspace) -> None:
    monkeypatch.setattr("matssl.page.server.NEEDED", ("fastapi", "no_such_package"))
    with pytest.raises(UserError, match=r"needs no_such_package: pip install 'matssl\[page\]'"):
        program(home)


def test_a_workspace_is_served_once(tmp_path: Path) -> None:
    from matssl.page import server

    home = Workspace.of(tmp_path)
    handle = server._claimed(home)
    with pytest.raises(UserError, match="open in another page"):
        server._claimed(home)
    os.close(handle)
    os.close(server._claimed(home))
    assert places.STATE.startswith(".")
