"""A pretraining run and a folder to phase maps, area fractions and a report; no labels."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from matssl import phases, preflight, report, tiles, tiling
from matssl.core import checkpoint, run_folder, runtime
from matssl.core.config import to_dict
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.phase_config import PhaseConfig
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.core.runtime import Runtime
from matssl.core.wording import counted, doubt, lineage_text
from matssl.data import layouts, readers, specimens
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.measure import intervals
from matssl.methods import method_class
from matssl.methods.slotcon.method import SlotCon
from matssl.models.encoders import build_encoder, channels_last, encoder_facts, pyramid
from matssl.pictures import segmentation as pictures
from matssl.stages import console, drawing, resume

# Mirrored pixels about an image: a network knows its border by the zeros it pads with.
MARGIN = 64
# What the phases are found on: cells of so many images, of windows of this side in large ones.
SAMPLED_IMAGES, WINDOW = 64, 512
# Cells that an image gives to the clustering of features.
CELLS_PER_IMAGE = 1024
# Prototypes that win less of the cells are no phase of their own.
LEAST_SHARE = 0.01
# A phase that nowhere takes this share of an image is none.
NO_PHASE = 0.001
ONE_PHASE = (
    "the prototypes of this run all win the same places, so there is one phase: they have not "
    "parted yet, or the images are of one phase; train longer, or lower --teacher_temperature"
)
DEFAULT_CLUSTERS = 4
MAX_PHASES = 64
SHOWN_PANELS = 6
# Longest side of an image in a panel.
PANEL_SIDE = 1200
# A folder with more unreadable files than this share is looked at before anything is done.
MAX_BROKEN = 0.1


@dataclass(frozen=True)
class Source:
    """What a checkpoint gives.

    Attributes:
        scores: input (B, C, H, W) to cosines with prototypes, or to features; (B, D, h, w).
        temperature: of the prototypes' softmax; None where there are features to cluster.
        network: moved to the device before use.
        record: how images are read.
        payload: of the checkpoint.
        multiple: of the sides of images.
    """

    scores: Callable[[Tensor], Tensor]
    temperature: float | None
    network: nn.Module
    record: Preprocess
    payload: dict[str, Any]
    multiple: int


@dataclass(frozen=True)
class Result:
    """What one image gave; fractions sum to 1."""

    image: Path
    name: str
    group: str
    fractions: NDArray[np.float64]
    pixel_size: float | None


def phase_map(config: PhaseConfig, argv: Sequence[str] = ()) -> Path:
    """Map the phases of a folder and return the folder of the results.

    Args:
        config: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = config.runtime()
    root = _root(config)
    if not rt.is_main:
        # Under torchrun one process draws; the maps would be the same.
        runtime.close()
        return root
    _check(config)
    source = load(config.model_path)
    RunFolder.check(root, False, config.overwrite, resumable=False)
    record = source.record
    pixel_size = readers.parse_pixel_size(config.pixel_size)
    if pixel_size is not None:
        record = replace(record, pixel_size=pixel_size)
    paths, left_out = layouts.unlabelled(config.data)
    found = preflight.examine(str(config.data), {"images": paths}, record, left_out=left_out)
    paths, broken = _readable(config, found)
    specimens.check_regex(paths, config.group_regex)
    _check_sizes(found, record)
    facts = found.text()
    console.say(config, rt, facts)

    channels_last(source.network).to(rt.device).eval()
    with runtime.memory_errors("--tile_size"):
        model, origin = _phases(config, rt, source, record, paths)
    names = _names(config, len(origin))
    console.say(config, rt, f"phases  {_described(origin, source)}")
    against = doubt(source.payload.get("lineage", []))
    console.say(config, rt, f"device  {rt.describe()}\nfolder  {root}")
    folder = RunFolder.at(root, False, config.overwrite, rt.is_main)
    folder.start(to_dict(config), argv)
    command = shlex.join(["python", "-m", "matssl.tools.phase_map", *argv])
    folder.write_text("command.txt", command + "\n")
    folder.write_text("preflight.txt", facts + "\n")
    for fact in broken:
        folder.append_csv("bad_images.csv", {"image": str(fact.path), "reason": fact.error})
    results = []
    groups = specimens.groups_of(list(paths), config.group_regex)
    files = drawing.output_names(paths, Path(config.data))
    with runtime.memory_errors("--tile_size"), resume.disk_errors(folder):
        bar = tqdm(total=len(paths), desc="mapping", disable=config.quiet or None)
        # One thread reads ahead: more would only hold more images.
        read = prefetched(lambda i: record.read(paths[i]), range(len(paths)), min(1, rt.workers))
        for path, name, group, micrograph in zip(paths, files, groups, read, strict=True):
            fractions = _one_image(config, rt, folder, model, record, micrograph, name, names)
            results.append(Result(path, name, group, fractions, micrograph.pixel_size))
            bar.update()
        bar.close()
        summary = _write(folder, results, names, origin)
        _report(folder, results, names, origin, summary, source, facts, against)
    folder.status("done", images=len(results))
    for name, entry in summary.items():
        print(f"  area fraction {name}: {_percent(entry)} %")
    fields = len(set(groups))
    print(console.specimens_text(fields, len(results), config.group_regex), end="")
    empty = [n for i, n in enumerate(names) if max(r.fractions[i] for r in results) < NO_PHASE]
    if empty:
        print(f"warning {', '.join(empty)}: in no image as much as {NO_PHASE:.1%}; train longer")
    if against:
        print(f"warning {against}")
    print(f"report: {root / 'report.html'}", flush=True)
    runtime.close()
    return root


def load(path: Path | str) -> Source:
    """Return what maps phases in a checkpoint of pretraining.

    Args:
        path: run folder, or its last.ckpt.

    Raises:
        UserError: no such checkpoint, one of another stage, or one that is incomplete.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "last.ckpt").is_file():
            raise UserError(f"{path} holds no last.ckpt; give the run folder of train_ssl.py")
        path = path / "last.ckpt"
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds an encoder alone; a phase map needs the last.ckpt of its run, which "
            "also says how images are read"
        )
    payload = checkpoint.load(path)
    if payload.get("stage") == "finetune":
        raise UserError(
            f"{path} is a segmentation model with classes of its own; "
            f"eval_model.py --model_path {path} --dataset FOLDER draws them"
        )
    payload = checkpoint.checked(payload, path, stage="ssl")
    try:
        record = Preprocess.from_dict(payload["preprocess"])
        recipe, state = payload["recipe"], payload["state"]
        encoder = build_encoder(recipe["encoder"], recipe["in_channels"])
        if payload["method"] == "slotcon":
            kind = method_class("slotcon")
            method = kind.from_settings(
                encoder, recipe["in_channels"], record.mean, record.std, recipe
            )
            method.load_state_dict(state)
            assert isinstance(method, SlotCon)
            temperature = method.settings.teacher_temperature
            scores = method.prototype_scores
            return Source(
                scores, temperature, method, record, payload, encoder_facts(encoder).multiple
            )
        prefix = "encoder."
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        encoder.load_state_dict(inner)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is incomplete or damaged: {str(error).splitlines()[0]}") from error
    return Source(
        _features(encoder), None, encoder, record, payload, encoder_facts(encoder).multiple
    )


def _features(encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the features that are clustered: strides 8 and 16, each of unit length."""

    def features(x: Tensor) -> Tensor:
        maps = [level.float() for level in pyramid(encoder, x)[1:3]]
        maps[1] = F.interpolate(maps[1], size=maps[0].shape[-2:], mode="bilinear")
        # Fine enough to follow a phase, deep enough to know its texture.
        return torch.cat([F.normalize(level, dim=1) for level in maps], dim=1)

    return features


def _check(config: PhaseConfig) -> None:
    wrong = []
    if config.phases is not None and not 2 <= config.phases <= MAX_PHASES:
        wrong.append(f"--phases must lie between 2 and {MAX_PHASES}, not {config.phases}")
    if config.smooth < 0:
        wrong.append(f"--smooth must be 0 or more, not {config.smooth}")
    names = _given_names(config)
    if config.names is not None and (len(set(names)) < len(names) or len(names) < 2):
        wrong.append(f"--names {config.names} must be two or more different names")
    if names and config.phases is not None and len(names) != config.phases:
        wrong.append(f"--names has {len(names)} names for --phases {config.phases}")
    tiles.check(config.tile_size, config.overlap)
    if wrong:
        raise UserError("; ".join(wrong))


def _given_names(config: PhaseConfig) -> list[str]:
    return [word.strip() for word in (config.names or "").split(",") if word.strip()]


def _names(config: PhaseConfig, count: int) -> list[str]:
    return _given_names(config) or [f"phase {i + 1}" for i in range(count)]


def _root(config: PhaseConfig) -> Path:
    if config.output_dir is not None:
        return run_folder.given_folder(config.output_dir, config.name)
    model = Path(config.model_path).resolve()
    trained = model.parent.name if model.suffix else model.name
    data = Path(config.data).resolve().name.replace(" ", "_")
    name = config.name or f"{trained}-on-{data}"
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError("--name is a word without slashes; --output_dir is a path")
    return Path("experiments") / "phases" / name


def _readable(
    config: PhaseConfig, found: preflight.Preflight
) -> tuple[list[Path], tuple[preflight.Facts, ...]]:
    """Return the images that can be read, and the facts of the others.

    Raises:
        UserError: more than a tenth cannot.
    """
    good = [fact.path for fact in found.facts if not fact.error]
    broken = found.broken
    if len(broken) > MAX_BROKEN * len(found.facts):
        raise UserError(
            f"{len(broken)} of {len(found.facts)} images in {config.data} cannot be read "
            f"(first: {broken[0].error})"
        )
    return good, broken


def _check_sizes(found: preflight.Preflight, record: Preprocess) -> None:
    unknown = [f.path for f in found.facts if not f.error and f.pixel_size is None]
    if record.target_pixel_size is not None and unknown:
        raise UserError(
            f"the run rescales images to {record.target_pixel_size:g} nm a pixel, and the pixel "
            f"size of {len(unknown)} images is not known (first: {unknown[0]}); give --pixel_size"
        )


def _phases(
    config: PhaseConfig, rt: Runtime, source: Source, record: Preprocess, paths: Sequence[Path]
) -> tuple[nn.Module, list[list[int]]]:
    """Return the model of the phases' logits, and which prototypes each phase is made of.

    Raises:
        UserError: fewer phases than were asked for, or only one.
    """
    wanted = config.phases or len(_given_names(config)) or None
    places = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLED_IMAGES, len(paths))).astype(int))
    sampled = [paths[int(place)] for place in places]
    cells = (_cells(rt, source, record, path) for path in sampled)
    if source.temperature is None:
        count = wanted or DEFAULT_CLUSTERS
        rows = np.concatenate([_spread(part, CELLS_PER_IMAGE) for part in cells])
        if len(np.unique(rows, axis=0)) < count:
            raise UserError(f"these images have fewer than {count} kinds of cells")
        centres, variance = phases.cluster(rows, count)
        nearest = phases.NearestCentre(source.scores, centres, variance)
        return nearest, [[i] for i in range(count)]
    won, alike = np.zeros(1), np.zeros((1, 1))
    for part in cells:
        assignment = torch.from_numpy(part).double().div(source.temperature).softmax(1).numpy()
        won = won + np.bincount(part.argmax(1), minlength=part.shape[1])
        alike = alike + assignment.T @ assignment
    try:
        phase = phases.join(alike, won / won.sum(), LEAST_SHARE, wanted)
    except ValueError:
        used = len(set(phases.join(alike, won / won.sum(), LEAST_SHARE, None)))
        if used > 1:
            raise UserError(
                f"the prototypes of this run tell {used} phases apart in these images; "
                f"ask for --phases {used} or fewer"
            ) from None
        raise UserError(ONE_PHASE) from None
    count = int(phase.max()) + 1
    if count == 1:
        raise UserError(ONE_PHASE)
    model = phases.JoinedPrototypes(source.scores, phase, source.temperature)
    return model, [np.flatnonzero(phase == i).tolist() for i in range(count)]


def _spread(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return at most ``count`` rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def _cells(rt: Runtime, source: Source, record: Preprocess, path: Path) -> NDArray[np.float32]:
    """Return what the network says of the cells of an image, float32 (R, D)."""
    plane = record.plane(record.read(path))
    rows = []
    for top, left in _windows(plane.shape[0], plane.shape[1]):
        window = plane[top : top + WINDOW, left : left + WINDOW]
        height, width = window.shape[:2]
        more = (-side % source.multiple for side in (height, width))
        wide = _mirrored(record.tensor(window), *more)
        x = torch.from_numpy(wide)[None].to(rt.device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), rt.autocast():
            values = source.scores(x).float()
        stride = x.shape[-1] // values.shape[-1]
        first = MARGIN // stride
        inside = values[0, :, first:, first:][:, : -(-height // stride), : -(-width // stride)]
        rows.append(inside.flatten(1).T.cpu().numpy())
    return np.concatenate(rows)


def _windows(height: int, width: int) -> list[tuple[int, int]]:
    """Return where the windows of an image begin: one, or two along each longer side."""
    tops, lefts = (
        [min(max(0, place - WINDOW // 2), side - WINDOW) for place in (side // 4, 3 * side // 4)]
        if side > WINDOW
        else [0]
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]


def _mirrored(image: NDArray[np.float32], more_down: int = 0, more_right: int = 0) -> Any:
    """Return (C, H, W) with a mirrored margin on all sides."""
    down, right = (MARGIN, MARGIN + more_down), (MARGIN, MARGIN + more_right)
    return np.pad(image, ((0, 0), down, right), mode="symmetric")


def _one_image(
    config: PhaseConfig,
    rt: Runtime,
    folder: RunFolder,
    model: nn.Module,
    record: Preprocess,
    micrograph: Micrograph,
    name: str,
    names: Sequence[str],
) -> NDArray[np.float64]:
    """Map one image, write its files, return the area fraction of each phase."""
    shown = drawing.shown(micrograph, record)
    with tempfile.TemporaryDirectory(prefix=".tiles", dir=folder.root) as scratch:
        wide = _mirrored(record.tensor(record.plane(micrograph)))
        shape = (len(names), *wide.shape[1:])
        probabilities = tiling.predict(
            model,
            wide,
            tile_size=config.tile_size,
            overlap=config.overlap,
            tta=config.tta,
            device=rt.device,
            autocast=rt.autocast,
            out=drawing.large(shape, Path(scratch)),
        )[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        if probabilities.shape[1:] != shown.shape[:2]:
            size = shown.shape[1::-1]
            probabilities = np.stack([cv2.resize(p, size) for p in probabilities])
        guide = np.asarray(shown if shown.ndim == 2 else shown.mean(axis=2), np.float32)
        labels = phases.label(probabilities, guide, config.smooth)
    full = np.full(micrograph.pixels.shape[:2], IGNORE, np.uint8)
    full[: len(labels)] = labels
    colour = pictures.colour_mask(full, len(names))[..., ::-1]
    for kind, content in (("index", full), ("colour", colour)):
        with atomic_path(folder.path(f"maps/{kind}/{name}.png")) as temporary:
            temporary.write_bytes(cv2.imencode(".png", np.ascontiguousarray(content))[1].tobytes())
    _panel(folder.path(f"panels/{name}.png"), shown, labels, names, micrograph)
    return np.bincount(labels.ravel(), minlength=len(names)) / labels.size


def _panel(
    path: Path,
    shown: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    names: Sequence[str],
    micrograph: Micrograph,
) -> None:
    """Draw micrograph, map and overlay; large images are shrunk to what a page can show."""
    pixel_size = micrograph.pixel_size
    factor = max(labels.shape) / PANEL_SIDE
    if factor > 1:
        size = (max(1, round(labels.shape[1] / factor)), max(1, round(labels.shape[0] / factor)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        pixel_size = None if pixel_size is None else pixel_size * factor
    title = Path(micrograph.source).name
    pictures.panel(shown, None, labels, names, path, title, pixel_size, predicted="phase map")


def _write(
    folder: RunFolder, results: Sequence[Result], names: Sequence[str], origin: list[list[int]]
) -> dict[str, intervals.Fraction]:
    """Write the tables and return the fraction of each phase over the specimens."""
    for result in results:
        shares = dict(zip(names, result.fractions.tolist(), strict=True))
        row = {"image": str(result.image), "group": result.group, **shares}
        folder.append_csv("phase_fractions.csv", row | {"pixel_size_nm": result.pixel_size})
    groups = list(dict.fromkeys(result.group for result in results))
    # Images of one specimen are no independent fields.
    fields = np.stack(
        [np.mean([r.fractions for r in results if r.group == g], axis=0) for g in groups]
    )
    summary = {n: intervals.phase_fraction(fields[:, i].tolist()) for i, n in enumerate(names)}
    for name, entry in summary.items():
        folder.append_csv("phase_summary.csv", {"phase": name, **vars(entry)})
    colours = pictures.colour_names(names)
    entries = {
        name: {"index": i, "colour": colours[name], "prototypes": origin[i], **vars(summary[name])}
        for i, name in enumerate(names)
    }
    folder.write_json("phases.json", {"outside": IGNORE, "phases": entries})
    bars = np.array([r.fractions for r in results])
    pictures.fraction_bars(bars, [r.name for r in results], names, folder.path("fractions.png"))
    return summary


def _described(origin: list[list[int]], source: Source) -> str:
    """Return in words what the phases are made of."""
    if source.temperature is None:
        return f"{len(origin)} clusters of the features of a {source.payload['method']} encoder"
    count = sum(map(len, origin))
    return f"{len(origin)}, of {counted(count, 'prototype')}"


def _report(
    folder: RunFolder,
    results: Sequence[Result],
    names: Sequence[str],
    origin: list[list[int]],
    summary: dict[str, intervals.Fraction],
    source: Source,
    facts: str,
    against: str,
) -> None:
    root = folder.root
    colours = pictures.colour_names(names)
    fields = len({result.group for result in results})
    figures = [(str(len(names)), "phases"), (str(len(results)), "micrographs")]
    figures.append((str(fields), "specimens or fields"))
    note = report.note(
        f"Found without labels: {_described(origin, source)}. A phase here is what looks alike to "
        "the network; whether it is one in the sense of the material is for the reader to say, who "
        "gives it a name with --names and joins what belongs together with --phases."
    )
    if against:
        note += report.note(f"Warning: {against}.")
    rows = []
    for number, (name, entry) in enumerate(summary.items()):
        row: dict[str, Any] = {"phase": name, "area %": _percent(entry)}
        values = [result.fractions[number] for result in results]
        row["from %"], row["to %"] = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
        if source.temperature is not None:
            row["prototypes"] = len(origin[number])
        rows.append(row)
    about = report.note(
        "Mean over specimens (images, where each is one) and half width of its 95 % interval (ASTM "
        f"E562); no interval below {intervals.MIN_FIELDS} of them. From and to are single images."
    )
    table = report.table(rows, swatches=colours) + about
    shown = [results[i] for i in _chosen(len(results))]
    panels = "".join(report.picture(root / "panels" / f"{r.name}.png") for r in shown)
    which = f"{len(shown)} of {len(results)} images; all lie in panels/." if panels else ""
    every = [
        {"image": r.image.name, "group": r.group}
        | {f"{n} %": f"{100 * v:.1f}" for n, v in zip(names, r.fractions, strict=True)}
        for r in results
    ]
    lineage = lineage_text(source.payload.get("lineage", []))
    sections = [
        ("", report.headline(figures) + note),
        (
            "Phase fractions",
            report.beside(table, report.picture(root / "fractions.png", width=430)),
        ),
        ("Maps", report.note(which) + panels),
        ("All images", report.table(every)),
        (
            "Where the model comes from",
            report.text(lineage),
        ),
        ("Data", report.text(facts)),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
    ]
    title = f"Phases of {root.name}" if len(names) > 6 else f"Phase map: {', '.join(names)}"
    subtitle = f"{len(results)} micrographs, no labels used"
    report.write(root / "report.html", title, subtitle, sections)


def _chosen(count: int) -> list[int]:
    """Return the numbers of the images whose panels the report shows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(SHOWN_PANELS, count)).astype(int)).tolist()


def _percent(fraction: intervals.Fraction) -> str:
    text = f"{100 * fraction.mean:.1f}"
    half = fraction.half_width
    return text if half != half else f"{text} ± {100 * half:.1f}"
