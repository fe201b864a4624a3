"""Settings of ``python -m matssl.tools.phase_map``; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import RunSettings, SpecimenSettings, TileSettings

DESCRIPTION = (
    "Map the phases of a folder of micrographs with a checkpoint of train_ssl.py, without labels. "
    "Maps, panels, area fractions with intervals and a report go to experiments/phases/NAME."
)
MAX_PHASES = 64


@dataclass(frozen=True)
class PhaseMapSettings(RunSettings, SpecimenSettings, TileSettings):
    """Flags of the phase map."""

    model_path: str = flag(
        "", "model", "run folder of train_ssl.py, or its last.ckpt", required=True, leads=paths.run
    )
    data: str = flag(
        "",
        "data",
        "folder of micrographs; masks are not opened",
        required=True,
        leads=paths.images,
    )
    phases: int | None = flag(
        None,
        "phases",
        "join the prototypes to so many phases",
        auto=(
            "only those that win less than 1 % of the cells; 4 clusters for a run of another "
            "method than slotcon"
        ),
        low=2,
        high=MAX_PHASES,
        first=True,
    )
    names: str | None = flag(
        None, "phases", "names of the phases (a,b,c), that with most pixels first", first=True
    )
    smooth: int = flag(
        8,
        "phases",
        "pixels within which the map follows the micrograph's edges; 0: not at all",
        low=0,
        high=1024,
        first=True,
    )

    @property
    def given_names(self) -> list[str]:
        """Names of the phases, empty where none are given."""
        return [word.strip() for word in (self.names or "").split(",") if word.strip()]

    def problems(self) -> list[Problem]:
        """Return what does not go together."""
        wrong = []
        names = self.given_names
        if self.names is not None and (len(set(names)) < len(names) or len(names) < 2):
            told = f"--names {self.names} must be two or more different names"
            wrong.append(Problem(told, ("names",)))
        if names and self.phases is not None and len(names) != self.phases:
            told = f"--names has {len(names)} names for --phases {self.phases}"
            wrong.append(Problem(told, ("names", "phases")))
        return wrong


def resolve(argv: Sequence[str], here: bool = False) -> PhaseMapSettings:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """
    return parse_one(
        PhaseMapSettings,
        argv,
        DESCRIPTION,
        problems=PhaseMapSettings.problems,
        prog="python -m matssl.tools.phase_map",
        here=here,
    )
