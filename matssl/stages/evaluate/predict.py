"""A checkpoint and a folder to scores, masks, pictures and a report."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from matssl import metrics
from matssl.core import flags, machine
from matssl.core.machine import Machine, Processor
from matssl.core.processes import ALONE, Processes
from matssl.core.run_folder import RunFolder, atomic_path, disk_errors
from matssl.data import readers
from matssl.data.layouts import Pair
from matssl.data.prefetch import prefetched
from matssl.data.readers import Micrograph
from matssl.measure.field import Field, areas
from matssl.metrics import calibration
from matssl.metrics.counts import confusion
from matssl.stages import console, drawing, failures, stacks
from matssl.stages.evaluate import classifier_error, colours, leaks, objects, published, rivals
from matssl.stages.evaluate import inputs as reading
from matssl.stages.evaluate.inputs import Inputs
from matssl.stages.evaluate.objects import OneField
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.evaluate.summary import Result, summarise
from matssl.stages.failures import Failure, Failures
from matssl.trained import exported
from matssl.trained.segmenter import Segmenter

if TYPE_CHECKING:
    from matssl.baselines import Baseline
    from matssl.core.runtime import Runtime


def evaluate(settings: EvaluateSettings, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return the folder of the results.

    Args:
        settings: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = _machine(settings)
    processes = Processes.joined()
    segmenter = processes.together(lambda: _segmenter(settings, rt))

    def found() -> tuple[Path, Inputs]:
        root = published.results_root(settings, segmenter.raw)
        RunFolder.check(root, False, settings.overwrite, resumable=False)
        return root, reading.read(settings, segmenter)

    # What is big, or lies on a GPU, every process has loaded itself.
    root, inputs = processes.first(found, (segmenter.network, *segmenter.members))
    segmenter = inputs.segmenter

    def begun() -> tuple[RunFolder, str, list[str]]:
        facts, warnings = _told(settings, rt, inputs, root)
        folder = RunFolder.at(root, False, settings.overwrite)
        folder.start(flags.to_dict(settings), argv)
        folder.write_text("preflight.txt", facts + "\n")
        published.write_config(folder, settings)
        return folder, facts, warnings

    folder, facts, warnings = processes.first(begun)
    failed = Failures(folder)
    with disk_errors(folder), machine.memory_errors("--tile_size or --batch_size"):
        names = drawing.output_names([p.image for p in inputs.pairs], inputs.dataset.root)
        results = predicted(settings, rt, folder, inputs, names, failed, processes)
        if not processes.is_main:
            rt.close()
            return root
        if not results:
            failed.end(len(inputs.pairs), 0)
        sizes = {result.pair.image: result.field.pixel_size for result in results}
        stacks.write(folder, "masks", [pair.image for pair in inputs.pairs], names, sizes)

    copies, home = leaks.by_pixels(results, segmenter), reading.at_home(settings, segmenter)
    for warning in copies:
        console.say(settings, rt, f"warning {warning}")
    about = {
        "model": str(settings.model_path),
        "dataset": settings.dataset_name or inputs.dataset.root.name,
        "split": settings.split or (inputs.pairs[0].split if inputs.pairs else ""),
        "temperature": segmenter.temperature,
        "lineage": segmenter.lineage.stored(),
        "warnings": [*warnings, *copies],
        "baselines_wanted": settings.baselines,
        "classifier_error": classifier_error.known(results, segmenter, settings.model_path, home),
    }
    concluded(settings, folder, inputs, results, about, failed, facts)
    rt.close()
    failed.end(len(inputs.pairs), len(results))
    return root


def _told(
    settings: EvaluateSettings, rt: Machine, inputs: Inputs, root: Path
) -> tuple[str, list[str]]:
    """Print what was found; return it in words, and the warnings."""
    segmenter = inputs.segmenter
    facts = reading.facts(settings, inputs)
    console.say(settings, rt, facts)
    console.say(settings, rt, f"device  {rt.describe()}\nfolder  {root}")
    regex, table = reading.said_of_specimens(settings, segmenter)
    warnings = leaks.by_name(inputs.pairs, inputs.dataset, segmenter.trained_on, regex, table)
    for warning in warnings:
        console.say(settings, rt, f"warning {warning}")
    return facts, warnings


def concluded(
    settings: EvaluateSettings,
    folder: RunFolder,
    inputs: Inputs,
    results: Sequence[Result],
    about: Mapping[str, Any],
    failed: Failures,
    facts: str,
    beside: Sequence[tuple[str, str]] = (),
) -> None:
    """Write tables, pictures and the report of all results, and print the scores.

    Args:
        settings: of the command.
        folder: of the results.
        inputs: the images and their truth.
        results: of every image.
        about: facts of metrics.json beside the scores.
        failed: images without a result.
        facts: what was found, in words.
        beside: further parts of the report, each heading and HTML.
    """
    # Late: what draws takes longer to load than the first image to predict.
    from matssl.stages.evaluate import report

    root, names = folder.root, inputs.segmenter.table.names
    summary = summarise(results, names, inputs.excluded)
    summary |= dict(about)
    summary["failed"] = {str(image): reason for image, reason in failed.images.items()}
    report.write_tables(folder, results, summary, names, inputs.excluded)
    with tempfile.TemporaryDirectory(prefix=".panels", dir=root) as scratch:
        place = Path(scratch)
        if settings.save_visualizations:
            place = root / "visualizations"
            place.mkdir()
        drawn = results if settings.save_visualizations else report.worst_and_best(results)
        report.draw_panels(folder, place, drawn, inputs.truth, inputs.segmenter.record, failed)
        if settings.save_visualizations:
            published.name_panels(place, results)
        report.write_report(folder, results, summary, names, facts, place, beside)
    folder.status("done", images=len(results), failed=len(failed.images))
    report.print_summary(folder, summary, inputs.dataset.grouping.source)


def predicted(
    settings: EvaluateSettings,
    rt: Machine,
    folder: RunFolder,
    inputs: Inputs,
    names: Sequence[str],
    failed: Failures,
    processes: Processes = ALONE,
) -> list[Result]:
    """Predict and count image by image; what fails on one is noted and costs no other.

    Returns:
        What every image gave, on the first process; nothing on the others.

    Args:
        settings: of the command.
        rt: where it computes.
        folder: of the results.
        inputs: the model and its images.
        names: of the files of each image.
        failed: where failures are noted.
        processes: that share the images.
    """
    against: list[Baseline] = []
    if settings.baselines:
        against = rivals.fitted(
            inputs.segmenter,
            inputs.dataset,
            inputs.pairs,
            inputs.truth,
            rt,
            lambda line: console.say(settings, rt, line),
        )

    def work(numbers: Sequence[int]) -> Iterator[Result | Failure]:
        own = [inputs.pairs[number] for number in numbers]
        hidden = (settings.quiet or not processes.is_main) or None
        bar = tqdm(total=len(own), desc="predicting", disable=hidden)
        read = failures.attempt(inputs.segmenter.record.read, [pair.image for pair in own])
        # One thread reads ahead at most: more would only hold more images.
        pixels = prefetched(read, range(len(own)), min(1, rt.workers))
        for number, pair, micrograph in zip(numbers, own, pixels, strict=True):
            args = (settings, folder, inputs, pair, names[number], micrograph, against)
            yield failures.tried(functools.partial(_one_image, *args))
            bar.update()
        bar.close()

    results = []
    for number, found in enumerate(processes.shared(len(inputs.pairs), work, folder.root)):
        if isinstance(found, Failure):
            failed.note(inputs.pairs[number].image, found)
        else:
            results.append(found)
    return results


def _machine(settings: EvaluateSettings) -> Processor | Runtime:
    """Return where the model computes: an exported one on the processor, without torch.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if exported.leads_to_one(settings.model_path):
        return Processor.setup(settings.threads, settings.num_workers)
    return settings.runtime()


def _segmenter(settings: EvaluateSettings, rt: Processor | Runtime) -> Segmenter:
    """Return the model.

    Raises:
        UserError: there is none in the file.
    """
    if isinstance(rt, Processor):
        where, precision, threads = settings.device, settings.precision, rt.threads
    else:
        where, precision, threads = str(rt.device), rt.precision, None
    segmenter = Segmenter.load(
        settings.model_path,
        device=where,
        precision=precision,
        threads=threads,
        input_size=settings.input_size,
        encoder=settings.encoder,
    )
    return published.as_asked(segmenter, settings)


def _one_image(
    settings: EvaluateSettings,
    folder: RunFolder,
    inputs: Inputs,
    pair: Pair,
    name: str,
    micrograph: Micrograph | Exception,
    against: Sequence[Baseline],
) -> Result:
    """Predict one image, write its files, return its counts; raises why it could not be read."""
    if isinstance(micrograph, Exception):
        raise micrograph
    segmenter = inputs.segmenter
    count = segmenter.table.num_classes
    with tempfile.TemporaryDirectory(prefix=".tiles", dir=folder.root) as scratch:
        found = segmenter.predict(
            micrograph,
            tile_size=settings.tile_size,
            overlap=settings.overlap,
            tta=settings.tta,
            batch_size=settings.batch_size,
            scratch=Path(scratch),
        )
        if settings.save_probabilities:
            with atomic_path(folder.path(f"probabilities/{name}.tif")) as temporary:
                half = found.probabilities.astype(np.float16)
                tags = drawing.scale_tags(micrograph.pixel_size)
                tifffile.imwrite(
                    temporary, half, compression="zlib", photometric="minisblack", **tags
                )
    published.write_preds(folder, settings, name, found)
    drawing.write_masks(folder, "masks", name, found.classes, count)
    drawing.write_label(folder, name, found.classes, micrograph.pixel_size)
    if inputs.colours is not None:
        colours.write(folder, name, found.classes, inputs.colours)
    predicted, truth_areas, gathered = areas(found.classes, count), None, None
    probable = None
    rival_counts: dict[str, NDArray[np.int64]] = {}
    matched: dict[int, OneField] = {}
    if pair.mask is not None:
        raw = inputs.truth.decode(readers.read_mask(pair.mask), str(pair.mask))
        mask = segmenter.record.fitted(raw, micrograph)
        gathered = metrics.gather(mask, found.classes[: found.rows], count)
        counts = gathered[confusion]
        if counts.sum() == 0:
            gathered = None
        else:
            predicted, truth_areas = counts.sum(axis=0), counts.sum(axis=1)
            rival_counts = rivals.counts(against, segmenter.record, micrograph, mask, count)
            matched = objects.compared(mask, found.classes[: found.rows], inputs.objects)
            probable = calibration.before_and_after(found.probabilities, mask, found.temperature)
    frame = inputs.dataset.grouping.sequences.frames.get(pair.image)
    sequence, number = (frame.sequence, frame.number) if frame else ("", None)
    field = Field(pair.image, name, pair.group, predicted, micrograph.pixel_size, sequence, number)
    true = None if truth_areas is None else replace(field, areas=truth_areas)
    pixels = readers.digest(micrograph.middle.pixels)
    return Result(pair, field, true, gathered, rival_counts, pixels, probable, matched)
