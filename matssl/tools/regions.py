"""The former name of ``python -m matssl.tools.measure INPUT --what objects``, which it runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.stages.measure.settings import MeasureSettings, resolve

SETTINGS = MeasureSettings


def main(argv: Sequence[str]) -> int:
    """Print the command that replaces this one and run it; returns 0."""
    said = any(word.partition("=")[0] == "--what" for word in argv)
    new = [*argv] if said else [*argv, "--what", "objects"]
    settings = resolve(new, here=True)
    print(f"regions is now: python -m matssl.tools.measure {shlex.join(new)}")
    from matssl.stages.measure.loop import measure

    measure(settings, new)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
