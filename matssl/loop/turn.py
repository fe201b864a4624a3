"""The order of the steps: what was begun is finished first, then what is new is taken in.

A pass does each step that has something to do. Each writes its line of the ledger when its files
are on the disk, so that a loop that is killed anywhere and started again comes to the same ledger,
but for the times, as one that was not.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from matssl.core import flags
from matssl.core.errors import DiskFull, UserError
from matssl.core.ledger import Ledger
from matssl.loop import corrected, first, models, page, pictures, proposing
from matssl.loop.arrivals import Arrivals
from matssl.loop.context import Context, said
from matssl.loop.places import Places, alone, swept
from matssl.loop.settings import BEGINNING, PLAN, LoopSettings

# A pass that finds something new each time would be a fault; no folder has so much to do.
MOST_PASSES = 10_000


def run(settings: LoopSettings) -> None:
    """Do what the command asks for.

    Raises:
        UserError: anything the user can mend.
    """
    places = Places(Path(settings.folder))
    if settings.status:
        ledger = Ledger.open(places.ledger, repair=False)
        print(page.status(Context(settings, ledger, Arrivals(places, settings.settle))))
        return
    proposing.check(settings)
    if settings.open_test and not places.ledger.is_file():
        raise UserError(f"no loop has begun in {places.root}; run it without --open_test first")
    with alone(places):
        ctx = _begun(settings, places)
        if settings.open_test:
            models.open_test(ctx)
            page.write(ctx)
            return
        if settings.once:
            once(ctx)
            print(page.status(ctx))
            return
        _watch(ctx)


def _begun(settings: LoopSettings, places: Places) -> Context:
    """Return the loop as its ledger tells it; a change of the settings is a line."""
    swept(places)
    places.corrected.mkdir(exist_ok=True)
    ledger = Ledger.open(places.ledger)
    ctx = Context(settings, ledger, Arrivals(places, settings.settle))
    if ledger.repaired:
        ctx.warn(ledger.repaired)
    given, before = flags.to_dict(settings), ctx.state.settings
    plan = {name: given[name] for name in PLAN}
    for name in BEGINNING:
        plan[name] = before.get(name) if given[name] is None else given[name]
        if plan[name] != before.get(name) and _settled(ctx, name):
            raise UserError(
                f"--{name} acts where a loop begins, and this one has begun "
                f"({'without it' if before.get(name) is None else f'with {before.get(name)}'}); "
                "leave it out, or begin in another folder"
            )
    if plan != dict(before):
        ctx.write("settings", **plan)
    # What it was begun with stays in force where a later command leaves it out.
    begun: dict[str, Any] = {name: plan[name] for name in BEGINNING}
    ctx.settings = replace(settings, **begun)
    return ctx


def _settled(ctx: Context, name: str) -> bool:
    """Return whether a flag that says how a loop begins would come too late."""
    state = ctx.state
    if name == "labelled":
        return state.splits is not None or state.best is not None
    if name == "model":
        return state.best is not None or state.open_plan is not None
    return state.classes is not None if name == "classes" else name in state.frozen


def _watch(ctx: Context) -> None:
    """Look again and again, until somebody stops it; a mistake that can be mended is said once."""
    told = ""
    ctx.say(f"watching  {ctx.places.root}, every {ctx.settings.every:g} s; Ctrl-C stops")
    while True:
        try:
            once(ctx, patient=False)
            told = ""
        except UserError as error:
            if str(error) != told:
                told = str(error)
                ctx.warn(told)
        time.sleep(ctx.settings.every)


def once(ctx: Context, patient: bool = True) -> None:
    """Do what there is to do, and write the page.

    Args:
        ctx: of the loop.
        patient: whether files that may still be copied are looked at once more.
    """
    looked_again = not patient
    for _ in range(MOST_PASSES):
        before = len(ctx.ledger.lines)
        waiting = turn(ctx)
        if len(ctx.ledger.lines) > before:
            continue
        if not waiting or looked_again:
            break
        looked_again = True
        time.sleep(ctx.settings.settle)
    page.write(ctx)


def turn(ctx: Context) -> list[Path]:
    """Do each step that has something to do, in order; return the files that may still change.

    Raises:
        UserError: a training cannot be done; all else is.
    """
    trouble: UserError | None = None
    try:
        _finish(ctx)
    except DiskFull:
        raise
    except UserError as error:
        trouble = error
    coming = pictures.take_in(ctx)
    pictures.look(ctx)
    if ctx.state.pictures or ctx.settings.labelled:
        first.settle_classes(ctx)
        first.take_labelled(ctx)
    if ctx.state.classes is not None:
        coming += corrected.take_in(ctx)
        if trouble is not None and ctx.state.fresh:
            # With these masks it may be done.
            models.drop(ctx, said(trouble))
            trouble = None
        first.freeze(ctx)
        pictures.look(ctx)
        if trouble is None and (models.take_given(ctx) or _due(ctx)):
            _finish(ctx)
    proposing.predict(ctx)
    proposing.measure(ctx)
    proposing.select(ctx)
    proposing.lay_out(ctx)
    if trouble is not None:
        raise trouble
    return coming


def _finish(ctx: Context) -> None:
    """Finish a training that was begun, and judge models that were not judged."""
    if ctx.state.open_plan is not None:
        models.train(ctx, ctx.state.open_plan)
    pending = ctx.state.pending
    # A given model that nothing can judge yet is the best there is.
    if pending is not None and ctx.state.best is None and not ctx.state.frozen.get("validation"):
        models.decide(ctx, pending)
        pending = None
    if pending is not None:
        if pending not in ctx.state.compared:
            models.compare(ctx, pending)
        models.decide(ctx, pending)
    best = ctx.state.best
    if best is not None and best not in ctx.state.compared and ctx.state.frozen.get("validation"):
        # Frozen since it came.
        models.compare(ctx, best)
    models.point_to_best(ctx)


def _due(ctx: Context) -> bool:
    """Decide on a training where there is something new to learn; return whether there is."""
    state, given = ctx.state, ctx.settings
    if not state.frozen.get("validation") or state.open_plan is not None:
        return False
    _finish(ctx)
    labels = first.trainable(ctx)
    names = {label.name for label in labels}
    fresh = [name for name in dict.fromkeys(state.fresh) if name in names]
    enough = given.retrain_after or max(1, len(state.asked))
    if not fresh or (state.waiting and len(fresh) < enough):
        return False
    models.plan(ctx, labels)
    return True
