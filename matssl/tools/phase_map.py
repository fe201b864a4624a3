"""Draw the phases of unlabelled micrographs: ``python -m matssl.tools.phase_map --help``.

A run of ``train_ssl.py --model slotcon`` has learned prototypes that cells of one kind share; here
each pixel gets its prototype's colour, or that of the phase several prototypes are joined to. For a
run of another method the encoder's features are clustered. No label is read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core import config
from matssl.core.errors import guard
from matssl.stages.phase_map import phase_map
from matssl.stages.phase_map.settings import PhaseConfig

DESCRIPTION = (
    "Map the phases of a folder of micrographs with a checkpoint of train_ssl.py, without labels. "
    "Maps, panels, area fractions with intervals and a report go to experiments/phases/NAME."
)


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and draw the maps; returns 0."""
    phase_map(config.parse(PhaseConfig, argv, DESCRIPTION), argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
