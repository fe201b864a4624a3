"""A pretraining run and a folder to phase maps, area fractions and a report; no labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matssl.stages.phase_map.settings import PhaseConfig


def phase_map(settings: PhaseConfig, argv: Sequence[str] = ()) -> Path:
    """Run the stage, see :func:`matssl.stages.phase_map.loop.phase_map`."""
    # Imported here, so that settings of the stage can be had without torch.
    from matssl.stages.phase_map import loop

    return loop.phase_map(settings, argv)
