"""A pretraining run and a folder to phase maps, area fractions and a report; no labels."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from matssl import phases, preflight
from matssl.core import flags, machine, runtime
from matssl.core.arrays import roomy, strips
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.data import layouts, readers, specimens
from matssl.data.facts import Facts
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.data.specimens import Grouping
from matssl.measure import field, tables
from matssl.measure.field import Field
from matssl.stages import console, drawing, stacks
from matssl.stages.failures import Failures, attempt
from matssl.stages.phase_map import clustering
from matssl.stages.phase_map.clustering import Source
from matssl.stages.phase_map.record import Made, Phases
from matssl.stages.phase_map.report import draw_panel, write_report, write_tables
from matssl.stages.phase_map.settings import PhaseMapSettings
from matssl.trained.encoder import MARGIN, mirrored
from matssl.trained.network import Network

# A phase that nowhere takes this share of an image is none.
NO_PHASE = 0.001
# A folder with more unreadable files than this share is looked at before anything is done.
MAX_BROKEN = 0.1


@dataclass(frozen=True)
class Inputs:
    """What is mapped with what, checked.

    Attributes:
        source: what tells phases apart.
        record: how the images are read.
        paths: of the images that can be read.
        broken: what is known of the others.
        grouping: which specimen each of ``paths`` is of.
        facts: of all of them, in words.
    """

    source: Source
    record: Preprocess
    paths: list[Path]
    broken: tuple[Facts, ...]
    grouping: Grouping
    facts: str


def phase_map(settings: PhaseMapSettings, argv: Sequence[str] = ()) -> Path:
    """Map the phases of a folder and return the folder of the results.

    Args:
        settings: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = settings.runtime()
    root = _root(settings)
    if not rt.is_main:
        # Under torchrun one process draws; the maps would be the same.
        runtime.close()
        return root
    source = clustering.load(settings.model_path, str(rt.device), rt.precision)
    RunFolder.check(root, False, settings.overwrite, resumable=False)
    inputs = _inputs(settings, source)
    paths, record = inputs.paths, inputs.record
    console.say(settings, rt, inputs.facts)
    wanted = settings.phases or len(settings.given_names) or None
    with machine.memory_errors("--tile_size"):
        model, origin = clustering.find(source, record, paths, wanted)
    network = replace(source.network, model=model)
    names = settings.given_names or [f"phase {i + 1}" for i in range(len(origin))]
    described = source.described(origin)
    console.say(settings, rt, f"phases  {described}")
    console.say(settings, rt, f"device  {rt.describe()}\nfolder  {root}")

    folder = _start(settings, root, inputs, argv)
    fields: list[Field] = []
    failed = Failures(folder)
    groups = inputs.grouping.names
    files = drawing.output_names(paths, Path(settings.data))
    with machine.memory_errors("--tile_size"), disk_errors(folder):
        bar = tqdm(total=len(paths), desc="mapping", disable=settings.quiet or None)
        # One thread reads ahead: more would only hold more images.
        read = prefetched(attempt(record.read, paths), range(len(paths)), min(1, rt.workers))
        for path, name, group, micrograph in zip(paths, files, groups, read, strict=True):
            with failed.of(path):
                if isinstance(micrograph, Exception):
                    raise micrograph
                shown = drawing.shown(micrograph, record)
                place = folder.root
                labels = _labels(settings, place, network, record, micrograph, shown, len(names))
                _write_map(folder, name, labels, names, micrograph)
                areas = field.areas(labels, len(names))
                frame = inputs.grouping.sequences.frames.get(path)
                sequence, number = (frame.sequence, frame.number) if frame else ("", None)
                one = Field(path, name, group, areas, micrograph.pixel_size, sequence, number)
                fields.append(one)
                draw_panel(folder.path(f"panels/{name}.png"), shown, labels, names, micrograph)
            bar.update()
        bar.close()
        if not fields:
            failed.end(len(paths), 0)
        sizes = {one.image: one.pixel_size for one in fields}
        stacks.write(folder, "maps", paths, files, sizes)
        against, maps = source.lineage.doubt(), tuple(one.name for one in fields)
        joined, lineage = source.temperature is not None, source.lineage.text()
        made = Made(described, joined, lineage, against, maps, record)
        kept = Phases(tuple(names), origin, made)
        summary = write_tables(folder, fields, kept)
        write_report(folder, fields, kept, summary, inputs.facts)
    folder.status("done", images=len(fields), failed=len(failed.images))

    for name, entry in summary.items():
        print(f"  area fraction {name}: {tables.fraction_text(entry.fraction)} %")
    found = len({one.specimen for one in fields})
    print(console.specimens_text(found, len(fields), inputs.grouping.source), end="")
    empty = [n for i, n in enumerate(names) if max(f.fractions[i] for f in fields) < NO_PHASE]
    if empty:
        print(f"warning {', '.join(empty)}: in no image as much as {NO_PHASE:.1%}; train longer")
    if against:
        print(f"warning {against}")
    if not settings.given_names:
        words = shlex.join(["python", "-m", "matssl.tools.rename_phases", str(root)])
        print(f"to name them: {words} --names NAME,NAME,...")
    print(f"report: {root / 'report.html'}", flush=True)
    runtime.close()
    failed.end(len(paths), len(fields))
    return root


def _root(settings: PhaseMapSettings) -> Path:
    model = Path(settings.model_path).resolve()
    trained = model.parent.name if model.suffix else model.name
    data = drawing.data_name(settings.data)
    return Path(settings.output_dir) / "phases" / (settings.name or f"{trained}-on-{data}")


def _inputs(settings: PhaseMapSettings, source: Source) -> Inputs:
    """Return the images that can be read, and how.

    Raises:
        UserError: more than a tenth cannot, or their pixel size is needed and not known.
    """
    record = source.record
    pixel_size = readers.parse_pixel_size(settings.pixel_size)
    if pixel_size is not None:
        record = replace(record, pixel_size=pixel_size)
    record, beaten = record.cutting(settings.crop_bottom)
    if settings.page is not None:
        record = replace(record, page=settings.page)
    paths, left_out = layouts.unlabelled(settings.data)
    sequenced = record.depth > 1
    pages = sequenced and record.page is None
    found_in = specimens.pictures(paths, settings.data, settings.specimens, pages)
    paths = [picture for pictures in found_in.values() for picture in pictures]
    grouping = specimens.group(
        paths,
        settings.data,
        regex=settings.group_regex,
        specimens=settings.specimens,
        pixel_size=settings.pixel_size,
        frames=sequenced,
    )
    record = record.told(grouping.pixel_sizes)
    record = record.among(grouping.sequences.neighbours(record.depth) if sequenced else {})
    found = preflight.examine(
        str(settings.data), {"images": paths}, record, left_out=left_out, grouping=grouping
    )
    good = [fact.path for fact in found.facts if not fact.error]
    broken = found.broken
    if len(broken) > MAX_BROKEN * len(found.facts):
        raise UserError(
            f"{len(broken)} of {len(found.facts)} images in {settings.data} cannot be read "
            f"(first: {broken[0].error})"
        )
    unknown = [f.path for f in found.facts if not f.error and f.pixel_size is None]
    if record.target_pixel_size is not None and unknown:
        raise UserError(
            f"the run rescales images to {record.target_pixel_size:g} nm a pixel, and the pixel "
            f"size of {len(unknown)} images is not known (first: {unknown[0]}); give --pixel_size"
        )
    known = dict(zip(paths, grouping.names, strict=True))
    grouping = replace(grouping, names=tuple(known[path] for path in good))
    told = [f"note    {beaten}"] if beaten else []
    notes = [f"  note         {note}" for note in grouping.sequences.notes(record.depth)]
    facts = "\n".join([*told, found.text(), *notes])
    return Inputs(source, found.record, good, broken, grouping, facts)


def _start(
    settings: PhaseMapSettings, root: Path, inputs: Inputs, argv: Sequence[str]
) -> RunFolder:
    """Return the folder of the results with what is known before the first map."""
    folder = RunFolder.at(root, False, settings.overwrite, True)
    folder.start(flags.to_dict(settings), argv, "matssl.tools.phase_map")
    folder.write_text("preflight.txt", inputs.facts + "\n")
    for fact in inputs.broken:
        folder.append_csv("bad_images.csv", {"image": str(fact.path), "reason": fact.error})
    return folder


def _labels(
    settings: PhaseMapSettings,
    place: Path,
    network: Network,
    record: Preprocess,
    micrograph: Micrograph,
    shown: NDArray[np.uint8],
    count: int,
) -> NDArray[np.uint8]:
    """Return the phase of each pixel above the information bar, uint8 (h, W)."""
    with tempfile.TemporaryDirectory(prefix=".tiles", dir=place) as scratch:
        probabilities = network.probabilities(
            mirrored(record.tensor(record.plane(micrograph))),
            count,
            tile_size=settings.tile_size,
            overlap=settings.overlap,
            tta=settings.tta,
            scratch=Path(scratch),
        )[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        if probabilities.shape[1:] != shown.shape[:2]:
            native = roomy((count, *shown.shape[:2]), np.float32)
            for plane, own in zip(probabilities, native, strict=True):
                cv2.resize(plane, shown.shape[1::-1], dst=own)
            probabilities = native
        guide = roomy(shown.shape[:2], np.float32)
        for rows in strips(len(shown)):
            guide[rows] = shown[rows] if shown.ndim == 2 else shown[rows].mean(axis=2)
        return phases.label(probabilities, guide, settings.smooth)


def _write_map(
    folder: RunFolder,
    name: str,
    labels: NDArray[np.uint8],
    names: Sequence[str],
    micrograph: Micrograph,
) -> None:
    """Write the map as index and colour PNG of the image's size."""
    full = roomy(micrograph.pixels.shape[:2], np.uint8)
    full[: len(labels)] = labels
    full[len(labels) :] = IGNORE
    drawing.write_masks(folder, "maps", name, full, len(names))
