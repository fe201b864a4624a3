"""The kinds of cases: which file is spoiled, which command meets it, and what would be absurd."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch

from matssl import hub, weights
from matssl.core import checkpoint
from matssl.core.errors import UserError, guard
from matssl.core.flags import declared
from matssl.core.parsing import read_settings
from matssl.data import annotations, cache, crops, layouts, readers
from matssl.data.preprocess import Preprocess
from matssl.models.encoders import build_encoder
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.finetune import settings as finetune_settings
from matssl.stages.phase_map import settings as map_settings
from matssl.stages.pretrain import settings as pretrain_settings
from matssl.study import plan
from tests.fuzz import material
from tests.fuzz.material import Material
from tests.fuzz.mutations import (
    NUMBERS,
    WORDS,
    Rng,
    spoiled_bytes,
    spoiled_pixels,
    spoiled_text,
    spoiled_values,
)

PIXEL = (1e-4, 1e9)


@dataclass(frozen=True)
class Case:
    """What is run, in the folder of the case.

    Attributes:
        told: in words, for the table.
        run: returns an exit code; what it raises is a fault.
        absurd: after exit code 0 or 1, what is absurd in the result, "" where nothing is.
        allowed: exit codes beside 0 and 2.
    """

    told: str
    run: Callable[[], int]
    absurd: Callable[[], str] = lambda: ""
    allowed: tuple[int, ...] = ()


def _main(module: str, *argv: object) -> Callable[[], int]:
    return lambda: guard(importlib.import_module(module).main, [str(a) for a in argv])


def _guarded(act: Callable[[], object]) -> Callable[[], int]:
    def main(argv: Sequence[str]) -> int:
        act()
        return 0

    return lambda: guard(main, [])


def _result(out: Path, name: str) -> Path:
    """Return the file of this name below the folder of the results."""
    return next(out.rglob(name))


def _pick(rng: Rng, table: Mapping[str, Any], ends: tuple[str, ...] = ("",)) -> str:
    names = [name for name in table if name.endswith(ends)]
    return names[int(rng.integers(len(names)))]


# --- pictures and what lies beside them -----------------------------------------------------------
def picture(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled picture beside a sound one: doctor, and the pool of a pretraining."""
    name, other = _pick(rng, m.pictures), _pick(rng, m.pictures)
    data = place / "data"
    data.mkdir()
    (data / "img_a.png").write_bytes(m.pictures["a.png"])
    path = data / f"img_b.{name.split('.', 1)[1]}"
    if rng.random() < 0.2:
        name, content = _other_pixels(rng, material.picture(1))
        path = path.with_suffix(Path(name).suffix)
        path.write_bytes(content)
    else:
        path.write_bytes(spoiled_bytes(rng, m.pictures[name], m.pictures[other]))
    if rng.random() < 0.7:
        run = _main("matssl.tools.doctor", data)
        return Case(f"{name}, doctor", run, lambda: _absurd_picture(path), (1,))

    def pool() -> None:
        record = Preprocess(crop_bottom="auto")
        made = cache.build([data / "img_a.png", path], record, cache_dir=None, quiet=True)
        for i in range(len(made)):
            made.plane(i)

    return Case(f"{name}, pool", _guarded(pool), lambda: _absurd_picture(path))


def _other_pixels(rng: Rng, pixels: np.ndarray) -> tuple[str, bytes]:
    """Return a name and a sound file of pixels that are odd."""
    odd = spoiled_pixels(rng, pixels)
    if odd.dtype in (np.uint8, np.uint16) and odd.shape[2:] in ((), (3,), (4,)):
        if rng.random() < 0.5:
            return "odd.png", bytes(cv2.imencode(".png", odd)[1].tobytes())
    stream = io.BytesIO()
    tifffile.imwrite(stream, odd, photometric="minisblack" if odd.ndim == 2 else None)
    return "odd.tif", stream.getvalue()


def _absurd_picture(path: Path) -> str:
    try:
        found = readers.read(path)
        plane = Preprocess(crop_bottom="auto").plane(found)
    except UserError:
        return ""
    size = found.pixel_size
    if size is not None and not PIXEL[0] <= size <= PIXEL[1]:
        return f"pixel size {size}"
    if not 1 <= found.bits <= 64:
        return f"{found.bits} bits"
    if not plane.size or not bool(np.isfinite(plane).all()):
        return "a plane that is empty or not finite"
    if found.bar_height is not None and not 0 <= found.bar_height < found.pixels.shape[0]:
        return f"a bar of {found.bar_height} rows"
    return ""


def sidecar(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled text beside a picture."""
    data = place / "data"
    data.mkdir()
    path = data / "img_a.tif"
    path.write_bytes(m.pictures["plain.tif"])
    kind = ("jeol.txt", "hitachi.txt", "tescan.hdr")[rng.integers(3)]
    name = "img_a-tif.hdr" if kind == "tescan.hdr" else "img_a.txt"
    (data / name).write_bytes(spoiled_text(rng, m.texts[kind]))
    return Case(
        f"{kind}, doctor", _main("matssl.tools.doctor", data), lambda: _absurd_picture(path), (1,)
    )


def _labelled(m: Material, place: Path) -> Path:
    data = place / "data"
    for part in ("train", "test"):
        for kind in (part, f"{part}_annot"):
            (data / kind).mkdir(parents=True)
    for part, letters in (("train", "ab"), ("test", "c")):
        for letter in letters:
            (data / part / f"img_{letter}.png").write_bytes(m.pictures["a.png"])
            (data / f"{part}_annot" / f"img_{letter}.png").write_bytes(m.masks["a.png"])
    return data


def mask(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled mask among sound ones: doctor, and what fine-tuning loads."""
    data = _labelled(m, place)
    name = _pick(rng, m.masks)
    part = ("train", "test")[rng.integers(2)]
    target = data / f"{part}_annot" / f"img_{'b' if part == 'train' else 'c'}.png"
    target.unlink()
    path = target.with_suffix(Path(name).suffix)
    if rng.random() < 0.5:
        name, content = _other_pixels(rng, material.mask(1))
        path = path.with_suffix(Path(name).suffix)
        path.write_bytes(content)
    else:
        path.write_bytes(spoiled_bytes(rng, m.masks[name], m.masks["a.png"]))
    if rng.random() < 0.6:
        return Case(f"{name}, doctor", _main("matssl.tools.doctor", data), allowed=(1,))

    def load() -> None:
        found = layouts.find(str(data))
        assert found.table is not None
        loaded = crops.load(list(found.pairs), Preprocess(crop_bottom="auto"), found.table)
        for one in loaded.masks:
            known = one[one != 255]
            assert not known.size or known.max() < found.table.num_classes

    return Case(f"{name}, loaded", _guarded(load))


# --- weights and checkpoints ----------------------------------------------------------------------
def weights_file(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled weights file: looked at, and loaded."""
    name, other = _pick(rng, m.weights), _pick(rng, m.weights)
    path = place / name
    path.write_bytes(spoiled_bytes(rng, m.weights[name], m.weights[other]))
    if rng.random() < 0.05:
        path.write_bytes(spoiled_text(rng, m.texts["c.yaml"]))
    if rng.random() < 0.5:
        run = _main("matssl.tools.inspect_weights", path)
        return Case(f"{name}, inspected", run, allowed=(1,))
    encoder = build_encoder("tu-test_resnet", 1)

    def absurd() -> str:
        whole = all(bool(torch.isfinite(t).all()) for t in encoder.state_dict().values())
        return "" if whole else "weights that are not finite"

    def load() -> None:
        weights.load(encoder, path, in_channels=1)

    return Case(f"{name}, loaded", _guarded(load), absurd)


def trained_model(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled checkpoint of fine-tuning that predicts an image."""
    path = place / "best.ckpt"
    if rng.random() < 0.4:
        path.write_bytes(spoiled_bytes(rng, m.weights["best.ckpt"], m.weights["plain.pth"]))
        told = "best.ckpt, bytes"
    else:
        payload = spoiled_values(rng, {"format": checkpoint.FORMAT, **m.payload})
        torch.save(payload, path)
        told = "best.ckpt, values"
    data = place / "data"
    data.mkdir()
    (data / "img_a.png").write_bytes(m.pictures["a.png"])
    out = place / "out"
    argv = ["--model_path", path, "--dataset", data, "--output_dir", out, "--device", "cpu"]
    run = _main("eval_model", *argv, "--threads", 1, "--quiet")

    def absurd() -> str:
        entries = json.loads(_result(out, "metrics.json").read_text())["phase_fractions"].values()
        shares = [entry["predicted"]["mean"] for entry in entries]
        if not shares or not all(map(math.isfinite, shares)) or abs(sum(shares) - 1) > 1e-6:
            return f"fractions {shares}"
        state = torch.load(path, weights_only=True)["state"]
        tensors = [t for t in state.values() if t.is_floating_point()]
        return "" if all(bool(t.isfinite().all()) for t in tensors) else "a model of NaN scored"

    return Case(told, run, absurd)


def run_folder(rng: Rng, m: Material, place: Path) -> Case:
    """A run whose files are spoiled goes on, from the checkpoint before where it must."""
    sound = m.folder / "runs" / "ssl" / "x"
    run = place / "runs" / "ssl" / "x"
    shutil.copytree(sound, run)
    names = ["last.ckpt", "last.ckpt", "last.ckpt", "steps.csv", "log.csv", "metrics.jsonl"]
    names += ["status.json", "config.yaml", "command.txt"]
    name = names[int(rng.integers(len(names)))]
    path = run / name
    values = name == "last.ckpt" and rng.random() < 0.5
    if values:
        payload = torch.load(path, weights_only=True)
        stated = payload.pop("digest")
        payload = spoiled_values(rng, payload)
        if rng.random() < 0.5:
            payload["digest"] = stated
        torch.save(payload, path)
    else:
        path.write_bytes(spoiled_bytes(rng, path.read_bytes()))
    argv = ["--data_path", m.folder / "pool", "--output_dir", place / "runs", "--name", "x"]
    argv += [*material.TINY, "--quiet", "--resume", "--cache_dir", "none"]

    def absurd() -> str:
        files = [folder / "encoder.safetensors" for folder in (sound, run)]
        same = files[0].read_bytes() == files[1].read_bytes()
        return "" if same or values else "other weights than those of the sound run"

    return Case(f"{name}, resumed", _main("train_ssl", *argv), absurd)


# --- texts ----------------------------------------------------------------------------------------
RESOLVERS: dict[str, Callable[[Sequence[str]], object]] = {
    "train_ssl": pretrain_settings.resolve,
    "train_finetune": finetune_settings.resolve,
    "eval_model": evaluate_settings.resolve,
    "phase_map": map_settings.resolve,
}


def _needed(command: str, m: Material) -> list[str]:
    pool, model = str(m.folder / "pool"), str(m.folder / "best.ckpt")
    return {
        "train_ssl": ["--data_path", pool],
        "train_finetune": ["--finetune_dataset", str(m.folder / "labelled")],
        "eval_model": ["--model_path", model, "--dataset", pool],
        "phase_map": ["--model_path", model, "--data", pool],
    }[command]


def settings_file(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled --config or study."""
    name = ("c.yaml", "c.json", "f.yaml", "u.json", "p.json", "study.yaml")[rng.integers(6)]
    path = place / name
    path.write_bytes(spoiled_text(rng, m.texts[name]))
    if name == "study.yaml":
        return Case(name, _guarded(lambda: plan.read(read_settings(path), "study")))
    commands = {"c": "train_ssl", "f": "train_finetune", "u": "train_finetune", "p": "eval_model"}
    command = commands[name[0]]
    argv = [*_needed(command, m), "--config", str(path)]
    return Case(f"{name}, {command}", _guarded(lambda: RESOLVERS[command](argv)))


def command_line(rng: Rng, m: Material, place: Path) -> Case:
    """Flags with values that cannot be meant."""
    command = _pick(rng, RESOLVERS)
    kinds = {
        "train_ssl": pretrain_settings.PretrainSettings,
        "train_finetune": finetune_settings.FinetuneSettings,
        "eval_model": evaluate_settings.EvaluateSettings,
        "phase_map": map_settings.PhaseMapSettings,
    }
    flags = [k for k in declared(kinds[command]).values() if k.kind is not bool]
    argv = _needed(command, m)
    for _ in range(rng.integers(1, 4)):
        flag = flags[int(rng.integers(len(flags)))]
        pool = NUMBERS if rng.random() < 0.6 else WORDS
        argv += [f"--{flag.name}={pool[rng.integers(len(pool))]}"]
    return Case(command, _guarded(lambda: RESOLVERS[command](argv)))


def list_file(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled list of splits, classes or specimens in a labelled folder: doctor."""
    data = place / "data"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
    for letter in "ab":
        (data / "images" / f"img_{letter}.png").write_bytes(m.pictures["a.png"])
        (data / "masks" / f"img_{letter}.png").write_bytes(m.masks["a.png"])
    names = ["splits.json", "splits.csv", "splits.txt", "classes.yaml", "classes.csv"]
    name = [*names, "specimens.csv"][rng.integers(6)]
    path = place / name
    path.write_bytes(spoiled_text(rng, m.texts[name]))
    flag = {"sp": "--splits", "cl": "--classes"}[name[:2]] if name[:3] != "spe" else "--specimens"
    return Case(f"{name}, doctor", _main("matssl.tools.doctor", data, flag, path), allowed=(1,))


def results(rng: Rng, m: Material, place: Path) -> Case:
    """A folder of results whose tables or maps are spoiled: objects."""
    run = place / "run"
    (run / "masks" / "index").mkdir(parents=True)
    files: dict[str, bytes] = {
        "masks/index/img_a.png": m.masks["a.png"],
        "per_image.csv": m.texts["per_image.csv"].encode(),
        "metrics.json": m.texts["metrics.json"].encode(),
        "status.json": b'{"state": "done"}',
    }
    name = _pick(rng, files)
    text = name.endswith(("csv", "json"))
    files[name] = (
        spoiled_text(rng, files[name].decode()) if text else spoiled_bytes(rng, files[name])
    )
    for file, content in files.items():
        (run / file).write_bytes(content)
    out = place / "out"

    def absurd() -> str:
        with open(_result(out, "objects.csv"), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for key, value in row.items():
                if key.startswith("ECD") and value and not 0 < float(value) < math.inf:
                    return f"{key} {value}"
        return ""

    command = _main("matssl.tools.measure", run, "--what", "objects", "--output_dir", out)
    return Case(f"{name}, objects", command, absurd)


def measured(rng: Rng, m: Material, place: Path) -> Case:
    """Masks with an odd one among them, or held-out truth that is spoiled: every measurement."""
    what = ("fractions", "objects", "grains", "layers")[rng.integers(4)]
    masks, folds, out = place / "masks", place / "folds", place / "out"
    for folder in (masks, folds):
        folder.mkdir()
    for letter in "abc":
        (masks / f"img_{letter}.png").write_bytes(m.masks["a.png"])
    truth: bytes = json.dumps(
        {
            "classes": ["class 0", "class 1"],
            "images": [
                {"image": f"i{i}", "specimen": f"s{i}", "confusion": [[900, 40 + i], [30, 500]]}
                for i in range(4)
            ],
        }
    ).encode()
    argv: list[object] = [masks, "--what", what, "--output_dir", out, "--quiet"]
    if what == "fractions" and rng.random() < 0.7:
        truth = spoiled_text(rng, truth.decode())
        argv += ["--folds_from", folds]
        told = "confusion.json"
    else:
        name, content = _other_pixels(rng, material.mask(1))
        (masks / "img_c.png").unlink()
        (masks / f"img_c{Path(name).suffix}").write_bytes(content)
        told = name
    (folds / "confusion.json").write_bytes(truth)
    if rng.random() < 0.3:
        argv += ["--pixel_size", str(NUMBERS[rng.integers(len(NUMBERS))])]

    def absurd() -> str:
        with open(_result(out, "specimens.csv"), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for key, value in row.items():
                if value and value.strip("-") in ("inf", "nan"):
                    return f"{key} {value}"
                part = key in ("area fraction %", "corrected %", "corrected low %")
                if part and value and not 0 <= float(value) <= 100:
                    return f"{key} {value}"
        return ""

    return Case(f"{told}, {what}", _main("matssl.tools.measure", *argv), absurd, (1,))


def archive(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled zip archive of a data set."""
    path, folder = place / "set.zip", place / "out"
    path.write_bytes(spoiled_bytes(rng, material.archive()))
    entry = hub.DataSet("set", "here", "MIT", "some", take={"data": ""})

    def fetch() -> None:
        path.rename(folder.with_name("out.zip"))
        hub.fetch_data(entry, folder, quiet=True)

    def run() -> int:
        code = _guarded(fetch)()
        # A refused archive is removed by the command itself.
        shutil.copy(__file__, path)
        return code

    def absurd() -> str:
        with zipfile.ZipFile(io.BytesIO(material.archive())) as sound:
            known = {sound.read(name) for name in sound.namelist()}
        found = {file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return "" if found <= known else "other bytes than were packed"

    return Case("set.zip", run, absurd)


def pool_cache(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled cache of a pool: the same planes, whatever lies in it."""
    paths = readers.find_images(m.folder / "pool")
    record = Preprocess(crop_bottom="auto")
    out = place / "out"
    cache.build(paths, record, cache_dir=out, quiet=True)
    file = sorted(out.iterdir())[int(rng.integers(2))]
    file.write_bytes(spoiled_bytes(rng, file.read_bytes()))

    def planes(folder: Path | None) -> list[np.ndarray]:
        made = cache.build(paths, record, cache_dir=folder, quiet=True)
        return [made.plane(i) for i in range(len(made))]

    def compare() -> None:
        for a, b in zip(planes(out), planes(None), strict=True):
            assert np.array_equal(a, b)

    return Case(file.suffix, _guarded(compare))


Kind = Callable[[Rng, Material, Path], Case]


# Shares of the campaign in per cent.
def annotation_file(rng: Rng, m: Material, place: Path) -> Case:
    """A spoiled file of a labelling program: import."""
    data, drawn, out = place / "data", place / "drawn", place / "out"
    data.mkdir()
    (data / "img_a.png").write_bytes(m.pictures["a.png"])
    size = readers.read(data / "img_a.png").pixels.shape[:2]
    mask = np.kron(rng.integers(0, 4, (8, 8)), np.ones((size[0] // 8 + 1, size[1] // 8 + 1)))
    marked = annotations.Marked("img_a.png", mask[: size[0], : size[1]].astype(np.uint8))
    written = [n for n in annotations.FORMATS if hasattr(annotations.module_of(n), "write")]
    name = written[int(rng.integers(len(written)))]
    module: Any = annotations.module_of(name)
    module.write(drawn, [marked], {1: "a", 2: "b", 3: "c"})
    files = sorted(path for path in drawn.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    content = path.read_bytes()
    if path.suffix in (".json", ".geojson", ".xml", ".csv", ".zattrs", ".zarray"):
        path.write_bytes(spoiled_text(rng, content.decode()))
    else:
        path.write_bytes(spoiled_bytes(rng, content))
    words = ("import", drawn, "--format", name, "--images", data, "--output_dir", out)

    def absurd() -> str:
        found = readers.read_mask(out / "img_a.png").shape if out.is_dir() else size
        return "" if found == size else f"a mask of {found} for a picture of {size}"

    return Case(f"{name}, import", _main("matssl.tools.annotations", *words), absurd)


KINDS: dict[str, tuple[int, Kind]] = {
    "pictures": (18, picture),
    "side-cars": (7, sidecar),
    "masks": (12, mask),
    "weights": (10, weights_file),
    "models": (8, trained_model),
    "settings": (8, settings_file),
    "flags": (5, command_line),
    "lists": (10, list_file),
    "results": (3, results),
    "measured": (4, measured),
    "archives": (2, archive),
    "caches": (2, pool_cache),
    "runs": (3, run_folder),
    "annotations": (8, annotation_file),
}
