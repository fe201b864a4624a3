"""How a loop stands: a few lines for the screen, and FOLDER/loop/loop.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matssl import report
from matssl.core.ledger import Line
from matssl.core.tables import percent
from matssl.core.wording import counted, cut
from matssl.loop.context import Context
from matssl.loop.judging import Scores
from matssl.loop.places import SHOWN

PAGE, CURVE = "loop.html", "rounds.png"
# Lines of the ledger, and entries of a list, that the page shows.
LINES, LISTED = 500, 50


def status(ctx: Context) -> str:
    """Return how a loop stands, a line a fact."""
    state = ctx.state
    lines = [f"folder    {ctx.places.root}: {counted(len(state.pictures), 'picture')}"]
    lines[0] += f", {len(state.labels)} with a mask of a person"
    for part, labels in state.frozen.items():
        opened = " (opened)" if part == "test" and state.tested else ""
        lines.append(f"frozen    {part}: {counted(len(labels), 'image')}{opened}")
    if state.best is not None:
        lines.append(f"best      model {state.best}{_scored(ctx, state.best)}")
    else:
        lines.append(f"best      none yet: {needed(ctx)}")
    if state.open_plan is not None:
        lines.append(f"training  model {state.open_plan.model} was begun and goes on")
    if state.tested is not None:
        lines.append(f"test      model {state.tested['model']}: {_ends(state.tested)}")
    if state.waiting:
        folder = ctx.places.name(ctx.places.round(len(state.rounds)))
        names = ", ".join(state.waiting[:LISTED])
        lines.append(f"waiting   for {counted(len(state.waiting), 'mask')} of {folder}: {names}")
    elif state.best is not None:
        told = needed(ctx)
        lines.append(f"waiting   {told or 'for new pictures; all that can be have a mask'}")
    trouble = _trouble(ctx)
    lines += [f"left out  {name}: {why}" for name, why in list(trouble.items())[:LISTED]]
    if ctx.ledger.repaired:
        lines.append(f"ledger    {ctx.ledger.repaired}")
    return "\n".join(lines)


def needed(ctx: Context) -> str:
    """Return what a loop waits for before it can begin or judge; "" when it has all."""
    state = ctx.state
    have = len(state.labels)
    wanted = f"masks of four pictures in {ctx.places.corrected.name} ({have} there)"
    if state.best is None:
        return f"{wanted} begin the loop, or --model, or --labelled"
    if not state.frozen.get("validation"):
        return f"nothing judges a new model yet: {wanted}, or --validation"
    return ""


def _trouble(ctx: Context) -> dict[str, str]:
    """Return the files that cannot be used, and why."""
    state = ctx.state
    failed = state.failed(state.best) if state.best is not None else {}
    return {**state.broken, **state.left_out, **failed, **state.refused}


def _scored(ctx: Context, model: str) -> str:
    facts = ctx.state.compared.get(model)
    if facts is None:
        return ", judged by nothing yet"
    mark = ", unproven" if ctx.state.decided.get(model, {}).get("unproven") else ""
    return f": validation {_ends(facts)}{mark}"


def _ends(facts: Mapping[str, Any]) -> str:
    found = Scores.read(facts)
    ends = found.ends
    more = "" if ends is None else f", 95 % interval {percent(ends[0])} to {percent(ends[1])}"
    return (
        f"mIoU {percent(found.miou)} % over {counted(len(found.specimens), 'specimen')}"
        f" ({counted(found.images, 'image')}){more}"
    )


def write(ctx: Context) -> None:
    """Write FOLDER/loop/loop.html."""
    home, state = ctx.places.home, ctx.state
    models = [row(ctx, number) for number in state.compared]
    sections: list[tuple[str, str]] = [("", _head(ctx))]
    if models:
        _draw(ctx)
        best = [i for i, number in enumerate(state.compared) if number == state.best]
        body = report.beside(
            report.picture(home / CURVE, width=460),
            report.note(
                "Scores on the frozen validation images. The gain is over the model that was the "
                "best then: the mean of the differences by specimen, with its 95 % interval where "
                "there are five specimens or more."
            ),
        )
        reasons = [
            f"{number}: {cut(str(decided['reason']), 300)}"
            for number in state.compared
            if (decided := state.decided.get(number, {})).get("reason")
        ]
        body += report.table(models, strong=best) + "".join(map(report.note, reasons))
        sections.append(("Models", body))
    if state.waiting:
        folder = ctx.places.name(ctx.places.round(len(state.rounds)))
        told = f"Masks of these are in {folder}; corrected ones go to {ctx.places.corrected.name}."
        names = [{"picture": name} for name in state.waiting]
        sections.append(("What waits for a person", report.note(told) + report.table(names)))
    measured = _measured(ctx)
    if measured:
        sections.append(("Area fractions, as predicted", measured))
    trouble = _trouble(ctx)
    if trouble:
        left = [{"file": n, "why": cut(w, 300)} for n, w in list(trouble.items())[:LISTED]]
        sections.append(("Left out", report.table(left)))
    if state.warnings:
        notes = "".join(report.note(told) for told in state.warnings[:LISTED])
        sections.append(("What the doctor noticed", notes))
    rows = [_line(line) for line in ctx.ledger.lines[-LINES:]][::-1]
    more = len(ctx.ledger.lines) - len(rows)
    told = report.note(f"The newest first; {more} older lines are in ledger.jsonl.") if more else ""
    sections.append(("Ledger", told + report.table(rows)))
    title = f"{ctx.places.root.resolve().name}: closed loop"
    report.write(home / PAGE, title, "predict, correct, train again, promote or keep", sections)


def _head(ctx: Context) -> str:
    state = ctx.state
    figures = []
    if state.best is not None and state.best in state.compared:
        found = Scores.read(state.compared[state.best])
        figures.append((f"{percent(found.miou)} %", "mean IoU of the best model, validation"))
        if found.ends is not None:
            low, high = map(percent, found.ends)
            figures.append((f"{low} – {high} %", "95 % interval over specimens"))
    figures.append((str(len(state.labels)), "pictures with a mask of a person"))
    figures.append((str(len(state.waiting)), "masks that are asked for"))
    return report.headline(figures) + report.text(status(ctx))


def row(ctx: Context, number: str) -> dict[str, object]:
    """Return what the table of models says of one."""
    state = ctx.state
    facts, plan = state.compared[number], state.models.get(number)
    found, decided = Scores.read(facts), state.decided.get(number, {})
    verdict = "" if not decided else "promoted" if decided["promoted"] else "kept the old one"
    if decided.get("unproven"):
        verdict += ", unproven"
    entry: dict[str, object] = {
        "model": number,
        "from": plan.start if plan and plan.start else "–",
        "masks learned from": len(plan.labels) if plan else None,
        "mIoU %": f"{100 * found.miou:.1f}",
        "95 %": "–" if found.ends is None else " – ".join(f"{100 * e:.1f}" for e in found.ends),
        "gain in points": _gain(facts),
        "specimens": len(found.specimens),
    }
    entry |= {f"IoU {name} %": f"{100 * value:.1f}" for name, value in found.classes.items()}
    return entry | {"verdict": verdict}


def _gain(facts: Mapping[str, Any]) -> str:
    gain, low, high = facts.get("gain"), facts.get("low"), facts.get("high")
    if gain is None:
        return "–"
    ends = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * gain:+.1f}{ends}"


def _draw(ctx: Context) -> None:
    # Late: a look at the status draws nothing.
    from matssl.pictures import rounds

    state = ctx.state
    points = []
    for number, facts in state.compared.items():
        found, plan = Scores.read(facts), state.models.get(number)
        promoted = bool(state.decided.get(number, {}).get("promoted"))
        labels = len(plan.labels) if plan else 0
        points.append(rounds.Point(number, labels, 100 * found.miou, _per_cent(found), promoted))
    rounds.draw(points, ctx.places.home / CURVE)


def _per_cent(found: Scores) -> tuple[float, float] | None:
    return None if found.ends is None else (100 * found.ends[0], 100 * found.ends[1])


def _measured(ctx: Context) -> str:
    """Return the table of the last measurement of the best model."""
    state = ctx.state
    runs = [facts for facts in state.measured.values() if facts["model"] == state.best]
    if not runs:
        return ""
    rows = runs[-1].get("fractions") or []
    table = []
    for entry in rows[:LISTED]:
        share, number = entry.get("area fraction %"), entry.get("specimens")
        low, high = entry.get("area fraction low %"), entry.get("area fraction high %")
        whose = entry.get("specimen") or (f"mean of {number} specimens" if number else "all")
        own = {"specimen": whose, "class": entry.get("class"), "fields": entry.get("fields")}
        shown = f"{share:.2f}" if isinstance(share, (int, float)) else None
        table.append(own | {"area fraction %": shown, "95 %": _between(low, high)})
    note = f"Of pictures without a mask of a person; all of it: measure/{runs[-1]['run']}."
    return report.note(note) + report.table(table)


def _between(low: object, high: object) -> str:
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return "–"
    return f"{low:.2f} – {high:.2f}"


def _line(line: Line) -> dict[str, object]:
    return {
        "line": line.number,
        "time (UTC)": line.time.replace("T", " ").removesuffix("Z"),
        "step": line.step,
        "what": cut(_facts(line), 240),
    }


def _facts(line: Line) -> str:
    """Return the facts of a line in words, lists by their number of entries."""
    told = []
    for name, value in line.facts.items():
        if isinstance(value, (list, dict)):
            if value:
                told.append(f"{name.replace('_', ' ')}: {_entries(value)}")
        elif value is not None and value is not False and value != "":
            shown = f"{value:.4g}" if isinstance(value, float) else cut(str(value), 100)
            shown = shown[:SHOWN] if name == "weights" else shown
            told.append(f"{name.replace('_', ' ')} {shown}")
    return "; ".join(told)


def _entries(value: list[Any] | dict[str, Any]) -> str:
    if isinstance(value, dict) and isinstance(value.get("classes"), list):
        # A class table.
        value = value["classes"]
    names = list(value) if isinstance(value, dict) else [_name(entry) for entry in value]
    shown = ", ".join(cut(str(name), 40) for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _name(entry: object) -> object:
    if isinstance(entry, dict):
        return entry.get("name", next(iter(entry.values()), ""))
    return entry[0] if isinstance(entry, list) and entry else entry
