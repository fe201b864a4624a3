"""The measurement, from masks to tables, pictures and a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from matssl.core import flags
from matssl.core.errors import UserError
from matssl.core.processes import Processes
from matssl.core.run_folder import RunFolder
from matssl.measure.field import Masked
from matssl.stages.failures import Failures
from matssl.stages.measure import compare, export, inputs, kinds, report, roi
from matssl.stages.measure.fields import Fields, Looked
from matssl.stages.measure.inputs import Source
from matssl.stages.measure.kind import Kind
from matssl.stages.measure.settings import MeasureSettings


def measure(settings: MeasureSettings, argv: Sequence[str] = ()) -> Path:
    """Measure every field and return the folder of the results.

    Args:
        settings: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    name = settings.name or Path(settings.input).resolve().name.replace(" ", "_")
    root = Path(settings.output_dir) / "measure" / name
    processes = Processes.joined()
    processes.first(lambda: RunFolder.check(root, False, settings.overwrite, resumable=False))
    source, asked = processes.together(lambda: _asked(settings))
    facts = report.facts(source, asked, bool(settings.compare))

    def begun() -> RunFolder:
        if not settings.quiet:
            print(facts, flush=True)
        folder = RunFolder.at(root, False, settings.overwrite)
        folder.start(flags.to_dict(settings), argv)
        return folder

    folder = processes.first(begun)
    failed, done = Failures(folder), 0
    fields = Fields(source, asked, root / "fields")
    hidden = (settings.quiet or not processes.is_main) or None

    def work(numbers: Sequence[int]) -> Iterator[Looked]:
        return map(fields.look, tqdm(numbers, desc="measuring", disable=hidden))

    for number, looked in enumerate(processes.shared(source.count, work, root)):
        with failed.of(source.files[number]):
            fields.take(number, looked)
            done += looked.failure is None
        if looked.failure is not None:
            failed.note(source.files[number], looked.failure)
    if not processes.is_main:
        # What it found is with the first one.
        return root
    if not done:
        failed.end(source.count, 0)
    if source.left:
        facts += f"\nnote    {roi.text(source.left)}"
        if not settings.quiet:
            print(facts.splitlines()[-1])
    found = {kind.name: kind.result() for kind in asked}
    drawn = {name: one.draw(root) for name, one in found.items()}
    export.write(folder, found, source, settings)
    report.write(folder, found, drawn, facts)
    folder.status("done", fields=done, failed=len(failed.images))
    report.show(root, found)
    failed.end(source.count, done)
    return root


def _asked(settings: MeasureSettings) -> tuple[Source, list[Kind]]:
    """Return the masks and the measurements that a command names, held against the first field.

    Raises:
        UserError: they do not go together.
    """
    source = inputs.find(settings)
    chosen = inputs.chosen(settings, source)
    compare.check(settings.compare, source)
    asked = kinds.made(settings, source.names, chosen, source.labelled, source.predicted)
    first = _first(source)
    for kind in asked:
        kind.check(first)
    return source, asked


def _first(source: Source) -> Masked:
    """Return the first field that can be read.

    Raises:
        UserError: none can; nothing is written then.
    """
    refused: list[str] = []
    for number in range(source.count):
        try:
            return source.open(number)
        except UserError as error:
            refused.append(f"{source.files[number].name}: {error}")
    if not refused:
        raise UserError(f"there are no masks in {source.root}")
    raise UserError(f"none of {source.count} masks can be read; the first: {refused[0]}")
