"""Flags of ``python -m matssl.tools.phase_map``; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matssl.core.config import RunConfig


def _flag(default: Any, group: str, help: str, **extra: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": help, **extra})


@dataclass(frozen=True)
class PhaseConfig(RunConfig):
    """Flags of the phase map."""

    model_path: str = _flag(
        "", "model", "run folder of train_ssl.py, or its last.ckpt", required=True
    )
    data: str = _flag("", "data", "folder of micrographs; masks are not opened", required=True)
    output_dir: str | None = _flag(
        None, "run", "folder the results go to (default: experiments/phases/NAME)"
    )
    group_regex: str | None = _flag(
        None, "data", "regular expression whose first group names the specimen in a file name"
    )
    pixel_size: str | None = _flag(
        None, "data", "pixel size of all images, for example 12.5nm; beats metadata"
    )
    phases: int | None = _flag(
        None,
        "phases",
        "join the prototypes to so many phases (default: only those that win less than 1 % of the "
        "cells; 4 clusters for a run of another method than slotcon)",
    )
    names: str | None = _flag(
        None, "phases", "names of the phases (a,b,c), that with most pixels first"
    )
    smooth: int = _flag(
        8, "phases", "pixels within which the map follows the micrograph's edges; 0: not at all"
    )
    tile_size: int | None = _flag(None, "prediction", "tile side in pixels (default: fitted)")
    overlap: int | None = _flag(None, "prediction", "overlap of tiles in pixels (default: fitted)")
    tta: bool = _flag(False, "prediction", "average over the eight orientations of each image")
