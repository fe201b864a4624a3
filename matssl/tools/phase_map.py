"""Draw the phases of unlabelled micrographs: ``python -m matssl.tools.phase_map --help``.

A run of ``train_ssl.py --model slotcon`` has learned prototypes that cells of one kind share; here
each pixel gets its prototype's colour, or that of the phase several prototypes are joined to. For a
run of another method the encoder's features are clustered. No label is read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.stages.phase_map import settings

SETTINGS = settings.PhaseMapSettings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and draw the maps; returns 0."""
    resolved = settings.resolve(argv, here=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.stages.phase_map.loop import phase_map

    phase_map(resolved, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
