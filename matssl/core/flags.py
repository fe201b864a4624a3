"""Flags of a command as fields of frozen dataclasses: defaults, types, ranges, help.

A dataclass declares its flags with :func:`flag` and holds their only defaults; ``core.parsing``
makes objects of it from a command line, ``core.usage`` shows it. Nothing in these three knows a
stage or a method, or imports more than the standard library before a file has to be read.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple, TypeVar

from matssl.core.errors import UserError
from matssl.core.wording import cut

Section = TypeVar("Section")
# Bounds where a field names none: what a 32-bit integer holds, and what float32 carries with room.
LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 1e12
# Ends of the names of files of settings.
FILES = (".yaml", ".yml", ".json")
_WORDS: dict[str, type] = {kind.__name__: kind for kind in (str, int, float, bool)}


class Range(NamedTuple):
    """Numbers that a flag takes; an end of None is open up to what the type carries."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def text(self) -> str:
        """Return the range in words: at least 1 and at most 8."""
        ends = {
            "at least": self.low,
            "above": self.above,
            "at most": self.high,
            "below": self.below,
        }
        return " and ".join(f"{word} {end}" for word, end in ends.items() if end is not None)

    def problem(self, value: float) -> str:
        """Return what is wrong with a number, nothing where it lies inside; NaN never does."""
        largest = LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT
        inside = (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )
        if inside and abs(value) <= max(largest, self.high or 0):
            return ""
        told = self.text() if not inside else f"at most {largest}"
        return f"must be {told or 'a finite number'}, not {value}"


class Flag(NamedTuple):
    """What a field says of itself as a flag; see :func:`flag`."""

    group: str
    help: str
    choices: tuple[str | int, ...] = ()
    range: Range | None = None
    required: bool = False
    first: bool = False
    positional: bool = False
    excludes: str = ""
    check: Callable[[str], str] | None = None
    auto: str = ""
    leads: Callable[[str], str] | None = None
    commas: bool = False


def flag(
    default: Any,
    group: str,
    help: str,
    *,
    choices: Sequence[str | int] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    required: bool = False,
    first: bool = False,
    positional: bool = False,
    excludes: str = "",
    check: Callable[[str], str] | None = None,
    auto: str = "",
    leads: Callable[[str], str] | None = None,
    commas: bool = False,
) -> Any:
    """Return a dataclass field that is a flag of the command line.

    Args:
        default: its only default.
        group: heading it stands under in ``--help all``.
        help: one sentence.
        choices: the values it takes.
        low: smallest number. Every number has a low end; the high one may be that of its type.
        high: largest number.
        above: open low end.
        below: open high end.
        required: whether there is no command without it.
        first: whether ``--help`` shows it, not only ``--help all``.
        positional: a word without ``--NAME`` before it; a tuple takes all that are left.
        excludes: a flag that says the same thing otherwise, such as steps and epochs.
        check: returns what is wrong with a text, or with a number in its range, "" where nothing
            is.
        auto: in words, what stands for a default of None.
        leads: of a path: returns what is wrong with what it leads to (:mod:`matssl.core.paths`);
            asked where the command is to run, not where its words are only understood.
        commas: whether several values stand in one word, between commas.
    """
    span = Range(low, high, above, below) if (low, high, above, below) != (None,) * 4 else None
    told = Flag(
        group,
        help,
        tuple(choices),
        span,
        required,
        first,
        positional,
        excludes,
        check,
        auto,
        leads,
        commas,
    )
    return field(default=default, metadata={"flag": told})


class Problem(NamedTuple):
    """What is wrong with a command line, in a sentence, and the names of the flags it is about.

    A sentence about several flags is left out where one of them is wrong by itself.
    """

    text: str
    about: tuple[str, ...] = ()


class Command(NamedTuple):
    """A command line: the dataclasses its flags are fields of, and where its recipes lie.

    Attributes:
        description: first paragraph of ``--help``.
        sections: dataclasses; no name occurs twice in them.
        others: dataclasses whose flags are understood and have no effect in this command.
        recipes: folder of the files NAME.yaml that ``--recipe NAME`` means.
        owner: whose recipes they are, for messages.
        choices: values of fields whose tables lie in other rooms.
        prog: name of the program in ``--help``.
    """

    description: str
    sections: tuple[type, ...]
    others: tuple[type, ...] = ()
    recipes: str | None = None
    owner: str = ""
    choices: Mapping[str, Sequence[str | int]] = {}
    prog: str | None = None


class Parsed(NamedTuple):
    """A command line that was understood.

    Attributes:
        sections: an object of each of the command's dataclasses.
        unused: names of given flags that are those of other sections.
    """

    sections: tuple[object, ...]
    unused: tuple[str, ...] = ()

    def section(self, kind: type[Section]) -> Section:
        """Return the object of one of the command's dataclasses."""
        return next(part for part in self.sections if isinstance(part, kind))


class Known(NamedTuple):
    """A flag with its name, its default and its type.

    ``field`` is the name in the dataclass: words that Python keeps for itself end in ``_`` there.
    """

    name: str
    field: str
    default: object
    kind: type
    many: bool
    optional: bool
    flag: Flag

    @property
    def word(self) -> str:
        """The flag as it is typed."""
        return self.name.upper() if self.flag.positional else f"--{self.name}"


@functools.cache
def declared(section: type) -> dict[str, Known]:
    """Return the flags among the fields of a dataclass, by name.

    Annotations are read as they are written, str, int, float or bool, ``X | None`` or
    ``tuple[X, ...]``: evaluating those of all fields would be half of the time of ``--help``.
    """
    found = {}
    for f in dataclasses.fields(section):
        if "flag" not in f.metadata:
            continue
        written = f.type if isinstance(f.type, str) else f.type.__name__
        optional = written.endswith(" | None")
        word = written.removesuffix(" | None")
        many = word.startswith("tuple[")
        kind = _WORDS[word.removeprefix("tuple[").removesuffix(", ...]")]
        name = f.name.rstrip("_")
        found[name] = Known(name, f.name, f.default, kind, many, optional, f.metadata["flag"])
    return found


def to_dict(*sections: object) -> dict[str, object]:
    """Return the flags of dataclass objects as plain values, in the order of their fields."""
    return {
        f.name.rstrip("_"): getattr(section, f.name)
        for section in sections
        for f in dataclasses.fields(section)  # type: ignore[arg-type]
        if "flag" in f.metadata
    }


def defaults(*kinds: type) -> dict[str, object]:
    """Return the default of each flag of dataclasses, in the order of their fields."""
    return {name: known.default for kind in kinds for name, known in declared(kind).items()}


def regex_problem(name: str, expression: str, what: str = "") -> str:
    """Return what is wrong with a regular expression, "" where nothing is.

    Args:
        name: of the flag.
        expression: what it was given.
        what: what the first group does, in words; nothing where it needs none.
    """
    try:
        groups = re.compile(expression).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"--{name} {expression!r} is not valid: {error}"
    if groups or not what:
        return ""
    return f"--{name} {expression!r} has no group: put what {what} into ( )"


def peek(argv: Sequence[str], name: str) -> str | None:
    """Return what a flag is given on a command line, None without it; nothing is checked."""
    found = None
    for place, word in enumerate(argv):
        if word.startswith(f"--{name}="):
            found = word.partition("=")[2]
        elif word == f"--{name}" and place + 1 < len(argv):
            found = argv[place + 1]
    return found


def find_recipe(folder: str, name: str, owner: str) -> str:
    """Return the file of a recipe in a folder; the path of a file is taken as it is.

    Raises:
        UserError: there is none; the sentence lists those there are.
    """
    if name.endswith(FILES):
        return name
    path = os.path.join(folder, f"{name}.yaml")
    if not os.path.isfile(path) or os.path.basename(name) != name:
        names = sorted(f.removesuffix(".yaml") for f in os.listdir(folder) if f.endswith(".yaml"))
        raise UserError(f"no recipe {name!r} for {owner}; there are: {', '.join(names)}")
    return path


def judge(
    flag: Known, value: object, choices: Sequence[str | int] | None, wrong: list[Problem]
) -> None:
    """Note what is wrong with a typed value: its choices, its range, its form."""
    if value == flag.default:
        return
    allowed = tuple(choices or flag.flag.choices)
    for part in value if isinstance(value, tuple) else (value,):
        told = "" if part is None else _told(flag, part, allowed)
        if told:
            wrong.append(Problem(told, (flag.name,)))


def _told(flag: Known, value: object, allowed: Sequence[str | int]) -> str:
    """Return what is wrong with one value, "" where nothing is."""
    if allowed:
        if str(value) in map(str, allowed):
            return ""
        return (
            f"{flag.word} must be one of {', '.join(map(str, allowed))}, not {cut(str(value), 60)}"
        )
    if flag.kind in (int, float) and isinstance(value, (int, float)):
        told = (flag.flag.range or Range()).problem(value)
        if told or flag.flag.check is None:
            return told and f"{flag.word} {told}"
    if value == "" and not flag.flag.required:
        return f"{flag.word} is empty"
    return flag.flag.check(str(value)) if flag.flag.check is not None else ""
