"""Measure masks: ``python -m matssl.tools.measure INPUT``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.stages.measure.settings import MeasureSettings, resolve

SETTINGS = MeasureSettings


def main(argv: Sequence[str]) -> int:
    """Measure all fields and write what was found; returns 0."""
    settings = resolve(argv, here=True)
    if settings.algorithm is not None:
        from matssl.stages.measure.defects import detect

        detect(settings, argv)
        return 0
    from matssl.stages.measure.loop import measure

    measure(settings, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
