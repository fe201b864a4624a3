"""Name the phases of a phase map: ``python -m matssl.tools.rename_phases RUN --names a,b,c``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.core.parsing import parse_one
from matssl.stages.phase_map.settings import RENAME, RenameSettings

SETTINGS = RenameSettings


def main(argv: Sequence[str]) -> int:
    """Rename the phases and say what was not renamed; returns 0."""
    settings = parse_one(SETTINGS, argv, RENAME, prog="python -m matssl.tools.rename_phases")
    from matssl.stages.phase_map.rename import rename

    rename(settings, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
