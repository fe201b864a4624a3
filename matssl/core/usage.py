"""What ``--help`` prints: the flags one needs first, or all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from matssl.core.errors import UserError
from matssl.core.flags import Command, Known, Problem, find_recipe, judge, peek

# Where the explanations begin.
INDENT = 24


def _shown(command: Command, argv: Sequence[str], known: Mapping[str, Known]) -> dict[str, str]:
    """Return what a run with these words gets from its recipe, for ``--help``.

    Recipes are lines ``name: value``, which are read here without a YAML reader: help is quick.
    """
    if "recipe" not in known or command.recipes is None:
        return {}
    path = find_recipe(
        command.recipes, peek(argv, "recipe") or str(known["recipe"].default), command.owner
    )
    shown = {}
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    for line in lines:
        name, sign, value = line.partition("#")[0].partition(":")
        if sign and name in known:
            text = value.strip()
            try:
                shown[name] = str(float(text)) if known[name].kind is float else text
            except ValueError:
                shown[name] = text
    return shown


def show(
    command: Command, argv: Sequence[str], known: Mapping[str, Known], own: set[str]
) -> NoReturn:
    """Print the flags one needs first, or all of them after ``--help all``, and leave."""
    place = next(i for i, word in enumerate(argv) if word in ("-h", "--help"))
    whole = argv[place + 1 : place + 2] == ["all"]
    wrong: list[Problem] = []
    for name in ("model", "recipe"):
        said = peek(argv, name)
        if name in known and said is not None:
            judge(known[name], said, command.choices.get(name), wrong)
    if wrong:
        raise UserError("; ".join(problem.text for problem in wrong))
    shown = _shown(command, argv, known)
    flags = {n: k for n, k in known.items() if n in own}
    few = {n: k for n, k in flags.items() if k.flag.first or k.flag.required or k.flag.positional}
    short = bool(few) and len(few) < len(flags) and any(k.flag.first for k in few.values())
    more = ""
    if short and not whole:
        more = f"--help all shows all {len(flags)} flags and what they take."
        flags = few
    needed = [
        (k.word if k.flag.required else f"[{k.word}]") if k.flag.positional else f"{k.word} X"
        for k in flags.values()
        if k.flag.required or k.flag.positional
    ]
    prog = command.prog or os.path.basename(sys.argv[0])
    width = _columns()
    lines = [f"usage: {' '.join([prog, *needed, '[--FLAG X ...]'])}", ""]
    lines += _wrapped(command.description.replace("``", ""), width)
    groups: dict[str, list[str]] = {}
    for flag in sorted(flags.values(), key=lambda k: not (k.flag.required or k.flag.positional)):
        title = flag.flag.group if whole or not short else "options"
        allowed = command.choices.get(flag.name) or flag.flag.choices
        text = _described(flag, shown.get(flag.name))
        groups.setdefault(title, []).extend(_entry(_typed_as(flag, allowed), text, width))
    for title, entries in groups.items():
        lines += ["", f"{title}:", *entries]
    lines += ["", more] if more else []
    print("\n".join(lines))
    raise SystemExit(0)


def _typed_as(flag: Known, allowed: Sequence[str | int]) -> str:
    """Return a flag as one types it: --name X, --switch, --[no-]switch, WORD ..."""
    if flag.kind is bool:
        return f"--[no-]{flag.name}" if flag.default else flag.word
    value = "{" + ",".join(map(str, allowed)) + "}" if allowed else "X"
    many = " ..." if flag.many else ""
    return f"{flag.word}{many}" if flag.flag.positional else f"{flag.word} {value}{many}"


def _entry(typed: str, text: str, width: int) -> list[str]:
    """Return the lines of one flag: what is typed, and what it does beside or below it."""
    told = [" " * INDENT + line for line in _wrapped(text, width - INDENT)]
    if len(typed) + 4 > INDENT:
        return [f"  {typed}", *told]
    return [f"  {typed}".ljust(INDENT) + told[0][INDENT:], *told[1:]]


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines of at most ``width`` signs, longer words alone on theirs."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _columns() -> int:
    """Return how many signs a line of the terminal has."""
    try:
        return max(40, int(os.environ.get("COLUMNS") or os.get_terminal_size().columns) - 2)
    except (OSError, ValueError):
        return 78


def _described(flag: Known, recipe: str | None) -> str:
    """Return a flag's help with its range and the value a run gets without it."""
    text = flag.flag.help
    if flag.flag.range is not None:
        text += f", {flag.flag.range.text()}"
    if flag.flag.required:
        return text if flag.flag.positional else f"{text} (required)"
    if flag.flag.auto and recipe is None:
        return f"{text} (default: {flag.flag.auto})"
    value = flag.default if recipe is None else recipe
    unsaid = value is None or value is False or value in ("", ())
    return text if unsaid else f"{text} (default: {value})"
