"""Images scored by models that have not seen them: the held-out parts of a cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from matssl.core import machine
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.runtime import Runtime
from matssl.data.layouts import Dataset, Pair
from matssl.metrics.score import Gathered
from matssl.preflight import Preflight
from matssl.stages import console, drawing
from matssl.stages.evaluate import classifier_error, leaks
from matssl.stages.evaluate.inputs import Inputs
from matssl.stages.evaluate.objects import of_masks
from matssl.stages.evaluate.predict import concluded, predicted
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.evaluate.summary import Result
from matssl.stages.failures import TABLE, TRACES, Failures
from matssl.trained.segmenter import Segmenter

# What metrics.json and the report call such images and their models.
SPLIT, MODEL = "out-of-fold", "of the fold that has not seen the image"
# Tables that are written line by line.
APPENDED = ("per_image.csv", TABLE, TRACES)


def score(
    folder: RunFolder,
    parts: Sequence[tuple[Path, Dataset, Sequence[Pair]]],
    found: Preflight,
    rt: Runtime,
    *,
    seed: int,
    quiet: bool,
    beside: Callable[[Sequence[tuple[Pair, Gathered]]], Sequence[tuple[str, str]]],
) -> None:
    """Predict each part by its own model and write what an evaluation writes, over all of them.

    Args:
        folder: of the results; those of an earlier call are replaced.
        parts: of each model its checkpoint, the folder with the splits it was trained by, and the
            images that are scored.
        found: what the images hold, and how their bars were judged.
        rt: where it computes.
        seed: of resamples.
        quiet: whether only the result is printed.
        beside: is given every scored image and returns further parts of the report.

    Raises:
        UserError: a checkpoint that cannot be read, or no image could be predicted.
        Incomplete: some could not.
    """
    for name in APPENDED:
        folder.path(name).unlink(missing_ok=True)
    root = parts[0][1].root
    pairs = sorted((pair for _, _, own in parts for pair in own), key=lambda pair: pair.image)
    names = drawing.output_names([pair.image for pair in pairs], root)
    name_of = dict(zip([pair.image for pair in pairs], names, strict=True))
    failed = Failures(folder)
    table = parts[0][1].table
    assert table is not None
    objects, told_of = of_masks(pairs, table)
    for line in told_of:
        console.say(EvaluateSettings(quiet=quiet), rt, f"note    {line}")
    results: list[Result] = []
    warnings: list[str] = []
    with disk_errors(folder), machine.memory_errors("--device cpu"):
        for path, dataset, own in parts:
            settings = EvaluateSettings(
                model_path=str(path), dataset=str(root), seed=seed, quiet=quiet
            )
            inputs = replace(_inputs(path, dataset, own, found, rt), objects=objects)
            here = [name_of[pair.image] for pair in own]
            told = predicted(settings, rt, folder, inputs, here, failed)
            warnings += leaks.by_pixels(told, inputs.segmenter)
            results += told
    if not results:
        failed.end(len(pairs), 0)
    for warning in warnings:
        console.say(settings, rt, f"warning {warning}")
    results.sort(key=lambda result: result.pair.image)
    scored = [(r.pair, r.gathered) for r in results if r.gathered is not None]
    about = {
        "model": MODEL,
        "dataset": root.name,
        "split": SPLIT,
        "lineage": inputs.segmenter.lineage.stored(),
        "warnings": warnings,
        "baselines_wanted": settings.baselines,
        "classifier_error": classifier_error.OUT_OF_FOLD,
    }
    extra = beside(scored)
    concluded(settings, folder, inputs, results, about, failed, found.text(), extra)
    failed.end(len(pairs), len(results))


def _inputs(
    path: Path, dataset: Dataset, pairs: Sequence[Pair], found: Preflight, rt: Runtime
) -> Inputs:
    """Return a model of a fold with the images it has not seen; masks mean what they did to it."""
    segmenter = Segmenter.load(path, device=str(rt.device), precision=rt.precision)
    record = segmenter.record.told(found.record.sizes).knowing(found.record.bars)
    record = record.among(found.record.neighbours)
    segmenter = replace(segmenter, record=record)
    table = dataset.table
    assert table is not None
    return Inputs(segmenter, dataset, list(pairs), table, (), found, "", ())
