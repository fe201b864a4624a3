"""Annotations in and out: ``python -m matssl.tools.annotations import FOLDER --format F ...``.

Each sub-command has its flags and its help: ``annotations import --help``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matssl.core.errors import UserError, guard
from matssl.core.flags import Problem
from matssl.core.parsing import parse_one
from matssl.stages.annotations import export_settings, settings
from matssl.stages.settings import ToolSettings


class SubCommand(NamedTuple):
    """Flags of a sub-command, and the module whose ``run(settings, argv)`` it is."""

    settings: type[ToolSettings]
    about: str
    module: str
    problems: Callable[[Any], list[Problem]] | None = None


COMMANDS = {
    "import": SubCommand(
        settings.ImportSettings,
        settings.IMPORT,
        "matssl.stages.annotations.importing",
        settings.import_problems,
    ),
    "export": SubCommand(
        export_settings.ExportSettings,
        export_settings.EXPORT,
        "matssl.stages.annotations.exporting",
    ),
    "compare": SubCommand(
        export_settings.CompareSettings,
        export_settings.COMPARE,
        "matssl.stages.annotations.comparing",
    ),
}
PROG = "python -m matssl.tools.annotations"


def main(argv: Sequence[str]) -> int:
    """Run a sub-command; returns 0."""
    word = argv[0] if argv else ""
    if word in ("-h", "--help"):
        print(f"usage: {PROG} {{{','.join(COMMANDS)}}} ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<9}{command.about.partition(':')[0]}; {name} --help says more")
        return 0
    if word not in COMMANDS:
        said = f"not {word!r}" if word else "and nothing was given"
        raise UserError(f"the first word says what to do: {' or '.join(COMMANDS)}, {said}")
    command = COMMANDS[word]
    args = parse_one(
        command.settings,
        argv[1:],
        command.about,
        problems=command.problems,
        prog=f"{PROG} {word}",
        here=True,
    )
    importlib.import_module(command.module).run(args, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
