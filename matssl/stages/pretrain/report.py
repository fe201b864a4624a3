"""What a pretraining says and shows: console, tables of its data, pictures, report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from matssl import monitor, report
from matssl.core import run_folder
from matssl.core.arrays import Array
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data.datasets import ViewLoader
from matssl.methods.base import SSLMethod
from matssl.models.encoders import encoder_facts, pyramid
from matssl.pictures import training as pictures
from matssl.stages import published
from matssl.stages.pretrain.inputs import Inputs
from matssl.stages.pretrain.plan import Plan
from matssl.stages.pretrain.settings import PretrainSettings
from matssl.stages.pretrain.watch import Watch
from matssl.weights import encoder_file

PANEL_SAMPLES = 5


class Shown(Protocol):
    """What is shown of a run: all of it is the run's own, and read only."""

    settings: PretrainSettings
    rt: Runtime
    folder: RunFolder
    plan: Plan
    inputs: Inputs
    method: SSLMethod
    watch: Watch
    step: int
    losses: list[float]

    def recent(self) -> list[float]:
        """Return the losses since the last look."""


def describe_data(run: Shown) -> None:
    """Write data.csv, the list of bad images, and the sheet of views."""
    numbers = run.inputs.pool.groups
    for i, source in enumerate(run.inputs.pool.sources):
        height, width = run.inputs.pool.shapes[i][:2]
        row = {
            "image": source,
            "split": "pool",
            "group": run.inputs.pool.group_names[numbers[i]],
            "height": height,
            "width": width,
            "bits": run.inputs.pool.bits[i],
            "hash": run.inputs.pool.digests[i][:16],
        }
        run.folder.append_csv("data.csv", row)
    for split, part in run.inputs.labelled.items():
        facts = zip(part.pairs, part.masks, part.facts, part.digests, strict=True)
        for pair, mask, (bits, _), digest in facts:
            row = {"image": str(pair.image), "split": split, "group": pair.group}
            row |= dict(zip(("height", "width"), mask.shape, strict=True))
            run.folder.append_csv("data.csv", {**row, "bits": bits, "hash": digest[:16]})
    for path, why in run.inputs.pool.rejected:
        run.folder.append_csv("bad_images.csv", {"image": path, "reason": why})
    if run.folder.writer:
        batch = next(iter(_with_threads(run.inputs.loader, 0).epoch(0)))
        views = [run.method.shown(view).cpu().numpy() for view in batch.views]
        pictures.views_sheet(views, run.folder.path("views.png"))


def description(run: Shown) -> str:
    """Return what is about to happen, for the console."""
    tiles = len(run.inputs.loader.tiles)
    skipped = (
        f", {len(run.inputs.pool.rejected)} unreadable left out" if run.inputs.pool.rejected else ""
    )
    resumed = f", resumed at step {run.step}" if run.step else ""
    views = counted(run.method.views, "view")
    return (
        f"pool    {counted(len(run.inputs.pool), 'image')} in "
        f"{counted(len(run.inputs.pool.group_names), 'group')}, {counted(tiles, 'tile')}"
        f"{skipped}\n"
        f"method  {run.settings.model} ({run.settings.recipe}), {run.settings.encoder}, "
        f"{counted(run.plan.total_steps, 'step')} of {run.settings.batch_size} x {views}{resumed}\n"
        f"device  {run.rt.describe()}\n"
        f"folder  {run.folder.root}"
    )


def finish(run: Shown) -> None:
    """Write the last pictures and the report."""
    # A run that is resumed after its last step has not been measured yet.
    health = run.watch.health or run.watch.look(run.step, run.recent())
    if not run.rt.is_main:
        return
    root, verdict = run.folder.root, health.verdict()
    # The name that the MatSSL code gives its last file, for scripts that look for it.
    epochs = -(-run.step // run.plan.steps_per_epoch)
    loss = float(np.mean(run.losses[-run.plan.steps_per_epoch :] or [np.nan]))
    name = f"{run.settings.model}_loss_{loss:.4f}_epoch{epochs - 1}.pth"
    run.folder.alias("last.ckpt", name, f"{run.settings.model}_loss_*.pth")
    write_report(run, health, verdict)
    run.folder.status("done", step=run.step, total=run.plan.total_steps, verdict=verdict.text)
    lines = [f"done: {root / 'encoder.safetensors'}", f"verdict: {verdict.text}"]
    lines += [_best_by_probe(run)] if run.inputs.probe is not None else []
    lines += _trunks(run)
    lines.append(f"report: {root / 'report.html'}")
    print("\n      ".join(lines), flush=True)


def _trunks(run: Shown) -> list[str]:
    """Write the trunk where the SimCLR study looks for it; return what became of it, in words."""
    told = []
    for path in published.study_backbones(run.settings.config):
        trunk = run.folder.path(path.name)
        before = trunk.read_bytes() if trunk.is_file() else None
        encoder_file.write_trunk(trunk, run.method.weights()["encoder"], run.inputs.record)
        told.append(encoder_file.publish(trunk, path, before, run.settings.overwrite))
    return told


def _best_by_probe(run: Shown) -> str:
    """Return in words which of the two encoders the dense probe prefers."""
    last, best = 100 * run.watch.scores.last, 100 * run.watch.scores.best
    step = int(run.watch.scores.step)
    if step == run.step:
        return f"best by the probe: the last one ({last:.1f} %)"
    if step == 0:
        return (
            f"best by the probe: none beat the start ({best:.1f} %; the last one {last:.1f} %); "
            "train longer, or on more images"
        )
    return (
        f"best by the probe: {_chosen(run)} ({best:.1f} % at step {step}; the last one "
        f"{last:.1f} %)"
    )


def _chosen(run: Shown) -> Path:
    """Return the weights to go on with: the last, or earlier ones that the probe prefers."""
    # What a run began with is no result of it, however it scores.
    earlier = run.inputs.probe is not None and 0 < run.watch.scores.step < run.step
    return run.folder.path("encoder_best.safetensors" if earlier else "encoder.safetensors")


def write_report(run: Shown, health: monitor.Health, verdict: monitor.Verdict) -> None:
    """Write features.png and report.html."""
    _features(run)
    root = run.folder.root
    figures = [(str(run.step), "steps"), (str(len(run.inputs.pool)), "micrographs")]
    if run.inputs.probe is not None:
        scores = run.watch.scores
        shown, which = (scores.best, "best") if scores.step > 0 else (scores.last, "last")
        text = f"{100 * scores.first:.1f} → {100 * shown:.1f} %"
        figures.append((text, f"probe mIoU, start → {which}"))
    if run.inputs.loader.guides is not None:
        figures.append((str(len(run.inputs.loader.guides.planes)), "labelled images guided it"))
    rank, dimensions = health.rank, health.dimensions
    if not run.method.pooled:
        rank, dimensions = health.feature_rank, health.feature_dimensions
    figures.append((f"{rank:.0f} / {dimensions}", "dimensions in use"))
    following = report.text(
        f"python train_finetune.py --finetune_dataset FOLDER --ssl_weights_path {_chosen(run)}"
    )
    if run.inputs.probe is not None:
        following += report.note(_best_by_probe(run) + ".")
    sections = [
        ("", report.headline(figures) + report.note(f"Verdict: {verdict.text}.")),
        ("What the encoder sees", report.picture(root / "features.png")),
        ("What the method does", _shown(run, "panel.png")),
        ("Next: fine-tune from these weights", "" if verdict.failing else following),
        ("Course of the training", report.picture(root / "curves.png")),
        ("What it was trained on", report.picture(root / "views.png")),
        ("Data", report.text(run_folder.read_text(root / "preflight.txt"))),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
        ("Settings", report.text(run_folder.read_text(root / "config.yaml"))),
    ]
    sections = [(title, content) for title, content in sections if content]
    title = f"Pretraining with {run.settings.model}: {root.name}"
    report.write(root / "report.html", title, f"{run.settings.encoder}, {verdict.text}", sections)


def _shown(run: Shown, name: str) -> str:
    """Return a picture of the run folder for the report, nothing where there is none."""
    path = run.folder.path(name)
    return report.picture(path) if path.is_file() else ""


def draw_panel(run: Shown) -> None:
    """Write panel.png, where the method has a picture of what it does.

    Every process takes part: statistics of the batch are shared between them.
    """
    batch = run.inputs.watched.guided_sample(PANEL_SAMPLES).to(run.rt.device)
    run.method.eval()
    with torch.inference_mode(), run.rt.autocast():
        panel = run.method.panel(batch)
    if panel is not None and run.rt.is_main:
        names = run.inputs.loader.guides.names if run.inputs.loader.guides else ()
        pictures.panel_sheet(panel, run.folder.path("panel.png"), names)


def _features(run: Shown) -> None:
    """Write features.png: a few images and the encoder's features of them."""
    count = min(6, len(run.inputs.pool))
    numbers = np.unique(np.linspace(0, len(run.inputs.pool) - 1, count).astype(int))
    images, features = [], []
    multiple = encoder_facts(run.method.encoder).multiple
    run.method.eval()
    for number in numbers:
        plane = _centre(run.inputs.pool.plane(int(number)), 384, multiple)
        x = torch.from_numpy(run.inputs.record.tensor(plane))[None].to(run.rt.device)
        with torch.inference_mode(), run.rt.autocast():
            maps = pyramid(run.method.encoder, x)
        # Strides 8 and 16: fine enough to see, deep enough to mean something.
        finer = maps[1].shape[-2:]
        deep = nn.functional.interpolate(maps[2].float(), size=finer, mode="bilinear")
        both = [nn.functional.normalize(m.float(), dim=1) for m in (maps[1], deep)]
        images.append(run.inputs.record.shown(plane))
        features.append(torch.cat(both, dim=1)[0].cpu().numpy())
    pictures.features_sheet(images, features, run.folder.path("features.png"))


def draw_curves(run: Shown) -> None:
    """Write curves.png, once there is something to show."""
    steps, log = run.folder.path("steps.csv"), run.folder.path("log.csv")
    if log.exists():
        scores = run.folder.path("probe.csv")
        pictures.pretraining_curves(steps, log, scores, run.folder.path("curves.png"))


def _centre(plane: Array, side: int, multiple: int) -> Array:
    """Return the middle of a plane, sides multiples of a number and at most ``side``."""
    height, width = (min(side, length) // multiple * multiple for length in plane.shape[:2])
    height, width = max(height, multiple), max(width, multiple)
    if plane.shape[0] < multiple or plane.shape[1] < multiple:
        import cv2

        return cv2.resize(plane, (width, height))
    top, left = (plane.shape[0] - height) // 2, (plane.shape[1] - width) // 2
    return np.ascontiguousarray(plane[top : top + height, left : left + width])


def _with_threads(loader: ViewLoader, threads: int) -> ViewLoader:
    """Return a loader of the same batches with another number of threads."""
    other = copy.copy(loader)
    other.threads = threads
    return other
