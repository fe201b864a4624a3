"""What ``--help`` prints: the flags one needs first, or all of them."""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from matssl.core.errors import UserError
from matssl.core.flags import Command, Known, Problem
from matssl.core.parsing import find_recipe, judge, peek


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
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
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
) -> typing.NoReturn:
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
    needed = [k for k in flags.values() if k.flag.required]
    words = [f"--{k.name} X" if not k.flag.positional else k.name.upper() for k in needed]
    parser = argparse.ArgumentParser(
        prog=command.prog,
        usage=" ".join(["%(prog)s", *words, "[--FLAG X ...]"]),
        description=command.description.replace("``", ""),
        epilog=more,
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for flag in sorted(flags.values(), key=lambda k: not k.flag.required):
        title = flag.flag.group if whole or not short else "options"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        options = {"help": _described(flag, shown.get(flag.name)).replace("%", "%%")}
        metavar = flag.name.upper() if flag.flag.positional else "X"
        allowed = command.choices.get(flag.name) or flag.flag.choices
        if allowed:
            metavar = "{" + ",".join(map(str, allowed)) + "}"
        if flag.flag.positional:
            nargs = {"nargs": "+" if flag.flag.required else "*"} if flag.many else {}
            groups[title].add_argument(flag.name, metavar=metavar, **options, **nargs)
        elif flag.kind is bool:
            action = argparse.BooleanOptionalAction if flag.default else "store_true"
            groups[title].add_argument(f"--{flag.name}", action=action, **options)
        else:
            nargs = {"nargs": "+"} if flag.many else {}
            groups[title].add_argument(f"--{flag.name}", metavar=metavar, **options, **nargs)
    print(parser.format_help(), end="")
    raise SystemExit(0)


def _described(flag: Known, recipe: str | None) -> str:
    """Return a flag's help with its range and the value a run gets without it."""
    text, spot, _ = flag.flag.help.partition(" (default: ")
    if flag.flag.range is not None:
        text += f", {flag.flag.range.text()}"
    if flag.flag.required:
        return text if flag.flag.positional else f"{text} (required)"
    if spot and recipe is None:
        return text + flag.flag.help[flag.flag.help.index(spot) :]
    value = flag.default if recipe is None else recipe
    unsaid = (
        value is None
        or value is False
        or value in ("", ())
        or (isinstance(value, float) and math.isnan(value))
    )
    return text if unsaid else f"{text} (default: {value})"
