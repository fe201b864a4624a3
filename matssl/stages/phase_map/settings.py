"""Settings of ``python -m matssl.tools.phase_map``; nothing here imports torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.errors import UserError
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted, cut
from matssl.stages.settings import RunSettings, SpecimenSettings, TileSettings, ToolSettings

DESCRIPTION = (
    "Map the phases of a folder of micrographs with a checkpoint of train_ssl.py, without labels. "
    "Maps, panels, area fractions with intervals and a report go to experiments/phases/NAME."
)
RENAME = (
    "Give the phases of a phase map their names, after you have looked at it. Tables, pictures and "
    "report of the run are written anew, its maps stay as they are."
)
MAX_PHASES = 64
# Other columns of phase_fractions.csv, the letters of a name, and what no table shows as it is:
# control characters, halves of others, ends of lines.
COLUMNS = ("image", "group", "sequence", "frame", "pixel_size_nm")
MOST_LETTERS, UNSHOWN = 200, ("Cc", "Cs", "Zl", "Zp")


def names_problem(names: Sequence[str]) -> str:
    """Return what is wrong with names of phases one by one, "" where nothing is."""
    for name in names:
        shown = cut(ascii(name) if name else "an empty name", 60)
        if not name:
            return f"--names has {shown}; each phase needs one"
        if name in COLUMNS:
            return f"--names: {shown} is a column of the tables and cannot name a phase"
        if len(name) > MOST_LETTERS:
            return f"--names: {shown} has {len(name)} letters of at most {MOST_LETTERS}"
        if any(unicodedata.category(letter) in UNSHOWN for letter in name):
            return f"--names: {shown} holds a character that no table shows"
    return ""


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
        None,
        "phases",
        "names of the phases (a,b,c), that with most pixels first",
        first=True,
        commas=True,
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
        told = names_problem(names)
        return [*wrong, Problem(told, ("names",))] if told else wrong


@dataclass(frozen=True, repr=False, eq=False)
class RenameSettings(ToolSettings):
    """Flags of ``python -m matssl.tools.rename_phases``."""

    run: str = flag(
        "",
        "data",
        "results of python -m matssl.tools.phase_map",
        required=True,
        positional=True,
        leads=paths.folder,
    )
    names: str = flag(
        "",
        "phases",
        "names of all phases in the order of the map (a,b,c), or of some, each behind the name it "
        'has: "phase 1=ferrite,phase 3=pore"',
        required=True,
        commas=True,
    )


def new_names(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the phases after a ``--names`` of rename_phases.

    Args:
        text: names in order, or pairs OLD=NEW; an = anywhere makes all of them pairs.
        names: that the phases have.

    Raises:
        UserError: it does not fit, or names that cannot be meant.
    """
    words = [word.strip() for word in text.split(",")]
    have = cut(", ".join(names), 300)
    if "=" in text:
        found = list(names)
        given: set[int] = set()
        for word in words:
            # A name may hold an = itself.
            places = [i for i, letter in enumerate(word) if letter == "="]
            split = [(word[:i].strip(), word[i + 1 :].strip()) for i in places]
            fits = [pair for pair in split if pair[0] in names]
            if not fits:
                told = cut(repr(word), 60)
                raise UserError(f"--names: {told} is no OLD=NEW of these phases: {have}")
            number = names.index(fits[0][0])
            if number in given:
                raise UserError(f"--names gives {cut(repr(names[number]), 60)} two names")
            given.add(number)
            found[number] = fits[0][1]
    else:
        found = words
        if len(found) != len(names):
            raise UserError(
                f"--names has {counted(len(found), 'name')} for {len(names)} phases: {have}; give "
                "one each, or OLD=NEW for some"
            )
    told = names_problem(found)
    if told:
        raise UserError(told)
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise UserError(f"--names: two phases would be called {cut(repr(twice[0]), 60)}")
    return tuple(found)


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
