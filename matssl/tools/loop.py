"""The closed loop of a folder: ``python -m matssl.tools.loop FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.loop import settings

SETTINGS = settings.LoopSettings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the loop; returns 0."""
    resolved = settings.resolve(argv, here=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.loop.turn import run

    run(resolved)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
