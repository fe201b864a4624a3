"""A model and a folder to the pictures that are labelled next, what it is unsure of, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl import selection
from matssl.core import flags, ledger, machine, runtime
from matssl.core.errors import UserError
from matssl.core.ledger import Ledger
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.runtime import Runtime
from matssl.data import copies, readers
from matssl.data.copies import Finder, Sketch
from matssl.data.levels import shrunk
from matssl.selection.candidates import Candidates
from matssl.selection.choosing import Choice, choose
from matssl.stages import console, drawing
from matssl.stages.failures import Failures
from matssl.stages.select import export, measured, report
from matssl.stages.select.measured import Eye, Unit
from matssl.stages.select.pool import SELECT, Kept, Pool, gather, proposed_regions, relative
from matssl.stages.select.settings import DEFAULT, FIRST, SelectSettings
from matssl.stages.select.source import Source, load_features, of_segmenter, segments
from matssl.trained import passes
from matssl.trained.segmenter import Segmenter

# A picture is left out for one chosen before it that shows so much of it.
ALIKE = 0.5
# Longest side of a picture when copies are looked for.
LOOKED_AT = 8192


@dataclass(frozen=True)
class Plan:
    """What is to be done, checked.

    Attributes:
        method: how pictures are chosen.
        source: model and features.
        by: what makes passes of the model differ; None where no method asks.
        number: of the round, from 1.
        root: folder of the results.
        export: format of annotations, "" for none.
    """

    method: str
    source: Source
    by: passes.Kind | None
    number: int
    root: Path
    export: str


def select(settings: SelectSettings, argv: Sequence[str] = ()) -> Path:
    """Choose pictures and return the folder of the results.

    Args:
        settings: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = settings.runtime()
    home = Path(settings.output_dir) / "select" / drawing.data_name(settings.pool)
    if not rt.is_main:
        # Under torchrun one process chooses; the others would choose the same.
        runtime.close()
        return home
    book = Ledger.open(Path(settings.ledger or home / ledger.NAME), repair=False)
    plan = _plan(settings, rt, book, home)
    RunFolder.check(plan.root, False, settings.overwrite, resumable=False)
    segmenter = plan.source.segmenter
    trained = {
        "images": segmenter.trained_on.images if segmenter else frozenset[str](),
        "digests": segmenter.trained_on.digests if segmenter else frozenset[str](),
    }
    record, beaten = plan.source.record.cutting(settings.crop_bottom)
    if settings.page is not None:
        record = replace(record, page=settings.page)
    pool = gather(settings, record, book, trained)
    plan = _informed(plan, pool)
    said = [*([f"note    {beaten}"] if beaten else []), pool.facts]
    said += [f"note    {note}" for note in pool.notes]
    said += [f"kept    {pool.tally}"] if pool.kept else []
    said += [f"note    {book.repaired}"] if book.repaired else []
    said.append(f"method  {plan.method}: {described(plan.method)}")
    console.say(settings, rt, "\n".join(said))
    console.say(settings, rt, f"device  {rt.describe(_network(plan.source))}\nfolder  {plan.root}")

    folder = RunFolder.at(plan.root, False, settings.overwrite, True)
    folder.start(flags.to_dict(settings), argv, "matssl.tools.select_images")
    folder.write_text("preflight.txt", pool.facts + "\n")
    failed = Failures(folder)
    eye = Eye(plan.source, settings, plan.by, folder.root)
    with machine.memory_errors("--tile_size"), disk_errors(folder):
        units, kept = measured.measure(eye, pool, failed, settings.quiet)
        if not units:
            failed.end(len(pool.paths), 0)
            raise UserError(f"no picture of {pool.root} is left to choose from: all are copies")
        labelled = measured.labelled_features(eye, pool.labelled, failed)
        count = max(len(pool.labelled), len(trained["images"]))
        candidates = measured.joined(units, labelled, count, settings, plan.source)
        choice, copied = _chosen(plan, pool, units, candidates, book, settings)
        made = report.Made(plan.method, plan.number, pool, units, candidates, choice)
        made = replace(
            made,
            kept=(*pool.kept, *kept, *copied),
            names=_names(plan.source),
            export=plan.export,
        )
        report.write_tables(folder, made)
        drawn = report.draw(folder, made, eye)
        _remember(book, plan, made, settings)
        about = report.About(
            described(plan.method),
            plan.source.segmenter.source if plan.source.segmenter else settings.model,
            plan.source.features.text if plan.source.features else "",
            plan.by or "",
            settings,
            str(book.path),
        )
        report.write_report(folder, made, about, drawn)
    folder.status("done", chosen=choice.n, candidates=len(units), failed=len(failed.images))
    report.print_choice(folder, made, settings.n)
    runtime.close()
    failed.end(len(pool.paths), len({unit.path for unit in units}))
    return plan.root


def described(method: str) -> str:
    """Return what a method does in words."""
    if "+" in method:
        return f"mean rank of {', '.join(method.split('+'))}"
    return selection.METHODS[method].title


def _network(source: Source) -> bool:
    """Return whether a network runs: the forest's filters are none."""
    return source.segmenter is not None or (
        source.features is not None and source.features.encoder is not None
    )


def _plan(settings: SelectSettings, rt: Runtime, book: Ledger, home: Path) -> Plan:
    """Return what is to be done.

    Raises:
        UserError: the method needs what the model does not have, or a flag would do nothing.
    """
    able = segments(settings.model)
    method = settings.method or (DEFAULT if able else FIRST)
    probable, several, featured = measured.needed(method)
    if probable and not able:
        raise UserError(
            f"--method {method} needs a model that segments, and {settings.model} gives features "
            f"alone; take {FIRST} or coreset for the first pictures"
        )
    if settings.export and not able:
        raise UserError(
            f"--export needs predictions, and {settings.model} gives features alone; leave it out"
        )
    _effects(settings, method)
    device, precision = str(rt.device), rt.precision
    segmenter = None
    if able:
        segmenter = Segmenter.load(
            settings.model, device=device, precision=precision, encoder=_encoder(settings)
        )
    measured.background(segmenter, settings.background)
    features = None
    if featured and segmenter is not None and settings.features is None:
        features = of_segmenter(segmenter, settings.encoder, device, precision, settings.seed)
    elif featured or segmenter is None:
        weights = settings.features or settings.model
        features = load_features(weights, settings.encoder, device, precision, settings.seed)
    by = passes.kind(segmenter, settings.passes_by) if several and segmenter else None
    number = 1 + max((int(line.facts.get("round", 0)) for line in book.of(SELECT)), default=0)
    model = Path(settings.model)
    name = model.parent.name if model.suffix else model.name
    source = Source(segmenter, features, name)
    root = home / (settings.name or f"round-{number}")
    return Plan(method, source, by, number, root, export.check(settings.export or ""))


def _encoder(settings: SelectSettings) -> str | None:
    """Return --encoder for a raw state dict, None where it was not given."""
    default = flags.declared(SelectSettings)["encoder"].default
    return None if settings.encoder == default else settings.encoder


def _effects(settings: SelectSettings, method: str) -> None:
    """Refuse flags that a method makes no use of.

    Raises:
        UserError: it makes none of one that was given.
    """
    _, several, featured = measured.needed(method)
    used = {
        "power": method == "clasp",
        "background": method == "foreground_random",
        "passes": several,
        "passes_by": several,
        "features": featured,
    }
    known = flags.declared(SelectSettings)
    for name, acts in used.items():
        if not acts and getattr(settings, name) != known[name].default:
            raise UserError(f"--{name} has no effect with --method {method}; leave it out")


def _informed(plan: Plan, pool: Pool) -> Plan:
    """Return the plan with what the pool told of information bars."""
    source = plan.source
    if source.segmenter is not None:
        source = replace(source, segmenter=replace(source.segmenter, record=pool.record))
    if source.features is not None:
        # Cut as the model's own, so that regions mean the same rows to both.
        cut = pool.record.crop_bottom
        record = replace(source.features.record, crop_bottom=cut, page=pool.record.page)
        record = record.knowing(pool.record.bars).told(pool.record.sizes)
        if source.segmenter is None:
            record = pool.record
        source = replace(source, features=replace(source.features, record=record))
    return replace(plan, source=source)


def _chosen(
    plan: Plan,
    pool: Pool,
    units: Sequence[Unit],
    candidates: Candidates,
    book: Ledger,
    settings: SelectSettings,
) -> tuple[Choice, list[Kept]]:
    """Return the choice without pictures that show what is labelled, frozen or chosen already."""
    proposed = set() if settings.again else proposed_regions(book)
    blocked: dict[int, str] = {}
    for number, unit in enumerate(units):
        box = (unit.box.top, unit.box.left, unit.box.height, unit.box.width)
        if (pool.name(unit.path), box) in proposed:
            blocked[number] = "proposed before: a region"
    if len(blocked) == len(units):
        raise UserError("all regions were proposed before; --again takes them")
    others = [(path, "labelled already") for path in pool.labelled]
    others += [(path, "frozen image") for path in pool.frozen]
    sketches = {path: _sketch(path, plan.source) for path, _ in others}
    known = Finder([sketches[path] for path, _ in others])
    checked: dict[Path, str] = {}
    while True:
        choice = choose(
            candidates,
            plan.method,
            settings.n,
            settings.seed,
            plan.number,
            settings.spread,
            blocked,
        )
        paths = list(dict.fromkeys(units[number].path for number in choice.chosen))
        for path in paths:
            sketches.setdefault(path, _sketch(path, plan.source))
        among = Finder([sketches[path] for path in paths])
        again = False
        for place, path in enumerate(paths):
            if path not in checked:
                checked[path] = _shown_by(sketches[path], known, others, pool)
            why = checked[path] or _shown_before(sketches[path], among, paths, place, pool)
            if why:
                blocked |= {i: why for i, unit in enumerate(units) if unit.path == path}
                again = True
        if not again or len(blocked) == len(units):
            break
    if not choice.n:
        raise UserError(f"no picture of {pool.root} is left to choose from: all are copies")
    told = {units[number].path: why for number, why in blocked.items() if "proposed" not in why}
    return choice, [Kept(path, why) for path, why in told.items()]


def _sketch(path: Path, source: Source) -> Sketch:
    micrograph = source.record.frame(path)
    rows = source.record.kept_rows(micrograph)
    return copies.sketch(shrunk(micrograph.pixels[:rows], LOOKED_AT))


def _shown_by(sketch: Sketch, known: Finder, others: Sequence[tuple[Path, str]], pool: Pool) -> str:
    """Return why a picture is left out for one that is labelled or frozen, "" where it is not."""
    for copy in known.look(sketch):
        path, what = others[copy.second]
        # Of a test image no part may be learned from.
        if copy.share >= ALIKE or what.startswith("frozen"):
            return f"copy: shows {relative(path, pool.home)} ({what}): {copy.text}"
    return ""


def _shown_before(
    sketch: Sketch, among: Finder, paths: Sequence[Path], place: int, pool: Pool
) -> str:
    """Return why a picture is left out for one that is chosen before it, "" where it is not."""
    for copy in among.look(sketch):
        if copy.second < place and copy.share >= ALIKE:
            return f"copy: shows {pool.name(paths[copy.second])} (chosen before it): {copy.text}"
    return ""


def _names(source: Source) -> tuple[str, ...]:
    return source.segmenter.table.names if source.segmenter else ()


def _remember(book: Ledger, plan: Plan, made: report.Made, settings: SelectSettings) -> None:
    """Freeze what is to be frozen, and add the choice to the ledger."""
    pool = made.pool
    for part, names in pool.parts.items():
        digests = []
        for name in names:
            digests.append(readers.digest(plan.source.record.frame(pool.home / name).pixels))
        book.freeze(part, names, folder=pool.home, digests=sorted(digests))
    images = []
    for number in made.choice.chosen:
        unit = made.units[number]
        box = [unit.box.top, unit.box.left, unit.box.height, unit.box.width]
        entry: dict[str, object] = {"image": pool.name(unit.path), "digest": unit.digest}
        images.append(entry | ({} if unit.whole else {"box": box}))
    book.append(
        SELECT,
        round=plan.number,
        pool=pool.root,
        model=settings.model,
        method=plan.method,
        seed=settings.seed,
        candidates=len(made.units),
        images=images,
        folder=plan.root,
    )
