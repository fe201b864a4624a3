"""Flags of a command from the fields of frozen dataclasses: types, ranges, files, help.

A dataclass declares its flags with :func:`flag` and holds their only defaults. What the user says
comes on top in this order: recipe, environment, ``--config FILE``, flags. All mistakes of a command
line are told at once. Nothing here knows a stage or a method, and nothing here imports more than
the standard library before a file has to be read.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from matssl.core.errors import UserError

Section = TypeVar("Section")
# Bounds where a field names none: what a 32-bit integer holds, and what float32 carries with room.
LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 1e12
_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false"}
_KINDS[str] = "text"


@dataclass(frozen=True)
class Range:
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


@dataclass(frozen=True)
class Flag:
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
) -> Any:
    """Return a dataclass field that is a flag of the command line.

    Args:
        default: its only default.
        group: heading it stands under in ``--help all``.
        help: one sentence; ``(default: ...)`` in it stands for a default of None.
        choices: the values it takes.
        low: smallest number. Every number has a low end; the high one may be that of its type.
        high: largest number.
        above: open low end.
        below: open high end.
        required: whether there is no command without it.
        first: whether ``--help`` shows it, not only ``--help all``.
        positional: a word without ``--NAME`` before it; a tuple takes all that are left.
        excludes: a flag that says the same thing otherwise, such as steps and epochs.
        check: returns what is wrong with a text, "" where nothing is.
    """
    span = Range(low, high, above, below) if (low, high, above, below) != (None,) * 4 else None
    told = Flag(group, help, tuple(choices), span, required, first, positional, excludes, check)
    return field(default=default, metadata={"flag": told})


@dataclass(frozen=True)
class Command:
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
    recipes: Path | None = None
    owner: str = ""
    choices: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    prog: str | None = None


@dataclass(frozen=True)
class Parsed:
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


@dataclass(frozen=True)
class _Known:
    """A flag with its name, its default and its type."""

    name: str
    default: Any
    kind: type
    many: bool
    optional: bool
    flag: Flag

    @property
    def word(self) -> str:
        return self.name if self.flag.positional else f"--{self.name}"


def declared(section: type) -> dict[str, _Known]:
    """Return the flags among the fields of a dataclass, by name."""
    hints = typing.get_type_hints(section)
    found = {}
    for f in dataclasses.fields(section):
        if "flag" not in f.metadata:
            continue
        hint, optional = hints[f.name], False
        if isinstance(hint, types.UnionType):
            optional = True
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        many = typing.get_origin(hint) is tuple
        kind = typing.get_args(hint)[0] if many else hint
        found[f.name] = _Known(f.name, f.default, kind, many, optional, f.metadata["flag"])
    return found


def to_dict(*sections: object) -> dict[str, Any]:
    """Return the flags of dataclass objects as plain values, in the order of their fields."""
    return {
        f.name: getattr(section, f.name)
        for section in sections
        for f in dataclasses.fields(section)  # type: ignore[arg-type]
        if "flag" in f.metadata
    }


def peek(argv: Sequence[str], name: str) -> str | None:
    """Return what a flag is given on a command line, None without it; nothing is checked."""
    found = None
    for place, word in enumerate(argv):
        if word.startswith(f"--{name}="):
            found = word.partition("=")[2]
        elif word == f"--{name}" and place + 1 < len(argv):
            found = argv[place + 1]
    return found


def parse_one(
    kind: type[Section],
    argv: Sequence[str],
    description: str,
    *,
    choices: Mapping[str, Sequence[str | int]] | None = None,
    recipes: Path | None = None,
    owner: str = "",
    problems: Callable[[Section], list[str]] | None = None,
    prog: str | None = None,
) -> Section:
    """Return the settings of a command of one dataclass; see :func:`parse`."""

    def crossed(parsed: Parsed) -> list[str]:
        return problems(parsed.section(kind)) if problems else []

    command = Command(description, (kind,), (), recipes, owner, choices or {}, prog)
    return parse(command, argv, problems=crossed).section(kind)


def parse(
    command: Command,
    argv: Sequence[str],
    *,
    environment: Mapping[str, Any] | None = None,
    read: Callable[[Path], Mapping[str, Any]] | None = None,
    problems: Callable[[Parsed], list[str]] | None = None,
) -> Parsed:
    """Return what a command line says: recipe, environment, ``--config``, then flags.

    Args:
        command: what it may say.
        argv: arguments without the program's name.
        environment: settings that the recipe does not beat and everything else does.
        read: of the ``--config`` file; :func:`read_settings` where None.
        problems: what is wrong between settings that are right one by one; told together.

    Raises:
        UserError: all that is wrong, in one sentence.
        SystemExit: after ``--help``.
    """
    known = {name: k for part in command.sections for name, k in declared(part).items()}
    own = set(known)
    for part in command.others:
        known = {**declared(part), **known}
    if {"-h", "--help"} & set(argv):
        _help(command, argv, known, own)
    wrong: list[str] = []
    flags = _scan(argv, known, wrong)
    layers = [_recipe(command, flags, known, wrong, read), dict(environment or {})]
    if flags.get("config") and "config" in known:
        source = str(flags["config"])
        layers.append(_named((read or read_settings)(Path(source)), known, source, wrong))
    layers.append(flags)
    values: dict[str, Any] = {}
    for layer in layers:
        values = _over(values, layer, known, wrong)
    typed = {name: _typed(known[name], value, wrong) for name, value in values.items()}
    for name, value in typed.items():
        _judge(known[name], value, command.choices.get(name), wrong)
    missing = [k.word for name, k in known.items() if k.flag.required and not typed.get(name)]
    if missing:
        wrong.append(f"missing {', '.join(missing)}")
    if not wrong:
        made = tuple(
            kind(**{name: typed[name] for name in declared(kind) if name in typed})
            for kind in command.sections
        )
        unused = [n for n, v in typed.items() if n not in own and v != known[n].default]
        parsed = Parsed(made, tuple(unused))
        wrong = problems(parsed) if problems else []
        if not wrong:
            return parsed
        raise UserError("; ".join(dict.fromkeys(wrong)))
    raise UserError("; ".join([*dict.fromkeys(wrong), "see --help"]))


def _scan(argv: Sequence[str], known: Mapping[str, _Known], wrong: list[str]) -> dict[str, Any]:
    """Return the words behind each flag; what is no flag and has no place is wrong."""
    given: dict[str, Any] = {}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, sign, value = word.removeprefix("--").partition("=")
        flag = known.get(name)
        if flag is not None and not flag.flag.positional and flag.kind is not bool:
            values = [value] if sign else []
            while rest and not sign and not rest[0].startswith("--"):
                values.append(rest.pop(0))
                if not flag.many:
                    break
            if values:
                given[name] = tuple(values) if flag.many else values[0]
            else:
                wrong.append(f"--{name} needs a value")
            continue
        switch = known.get(name.removeprefix("no-"))
        off = name.startswith("no-")
        if switch is not None and switch.kind is bool and not sign and off <= bool(switch.default):
            given[switch.name] = not off
            continue
        told = f"{word} takes no value" if flag is not None and sign else f"unrecognized {word}"
        if not sign and rest and not rest[0].startswith("--") and flag is None:
            # What stands behind an unknown flag is its value.
            rest.pop(0)
        wrong.append(told + _near(f"--{name}", [k.word for k in known.values()]))
    _place(words, known, given, wrong)
    return given


def _place(
    words: list[str], known: Mapping[str, _Known], given: dict[str, Any], wrong: list[str]
) -> None:
    """Give words without a flag to the positional fields, in their order."""
    for name, flag in known.items():
        if flag.flag.positional and words:
            given[name] = tuple(words) if flag.many else words[0]
            words = [] if flag.many else words[1:]
    if words:
        wrong.append(f"unrecognized {' '.join(words)}")


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _recipe(
    command: Command,
    flags: Mapping[str, Any],
    known: Mapping[str, _Known],
    wrong: list[str],
    read: Callable[[Path], Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Return the settings of the recipe that flags, the file or the default name."""
    if "recipe" not in known or command.recipes is None:
        return {}
    name = flags.get("recipe")
    if name is None and flags.get("config"):
        name = (read or read_settings)(Path(str(flags["config"]))).get("recipe")
    try:
        path = find_recipe(command.recipes, str(name or known["recipe"].default), command.owner)
        return _named(read_settings(path), known, str(path), wrong)
    except UserError as error:
        wrong.append(str(error))
        return {}


def find_recipe(folder: Path, name: str, owner: str) -> Path:
    """Return the file of a recipe in a folder; the path of a file is taken as it is.

    Raises:
        UserError: there is none; the sentence lists those there are.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        return Path(name)
    path = folder / f"{name}.yaml"
    if not path.is_file() or Path(name).name != name:
        names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"no recipe {name!r} for {owner}; there are: {names}")
    return path


def _named(
    values: Mapping[str, Any], known: Mapping[str, _Known], source: str, wrong: list[str]
) -> dict[str, Any]:
    """Return the settings of a file; names that are none are wrong."""
    for key in values:
        if key not in known or known[key].flag.positional:
            wrong.append(f"{source} has an unknown setting {key!r}{_near(str(key), known)}")
    return {k: v for k, v in values.items() if k in known}


def _over(
    weaker: Mapping[str, Any],
    stronger: Mapping[str, Any],
    known: Mapping[str, _Known],
    wrong: list[str],
) -> dict[str, Any]:
    """Return both layers; of two flags that exclude each other the stronger layer's is left."""
    said = {name: known[name].flag.excludes for name in stronger if name in known}
    for name, other in said.items():
        if other in said and name < other:
            wrong.append(f"--{name} and --{other} are two plans; give one of them")
    kept = {k: v for k, v in weaker.items() if k not in said.values() or k in stronger}
    return {**kept, **stronger}


def _typed(flag: _Known, value: Any, wrong: list[str]) -> Any:
    """Return a value as the field's type; YAML's ``1e-4``, which is a string, becomes a float."""
    if value is None and flag.optional:
        return None
    if flag.many:
        values = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(_plain(flag, part, wrong) for part in values)
    return _plain(flag, value, wrong)


def _plain(flag: _Known, value: Any, wrong: list[str]) -> Any:
    try:
        if flag.kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if flag.kind is str:
            if not isinstance(value, (str, int, float)):
                raise ValueError
            return str(value)
        if isinstance(value, bool):
            raise ValueError
        if flag.kind is int:
            # A whole number may be written 1e3; beyond 2^53 a float would not be the number typed.
            return int(value) if isinstance(value, (str, int)) and _digits(value) else _whole(value)
        return float(value)
    except (TypeError, ValueError, OverflowError):
        wrong.append(f"{flag.word} must be {_KINDS[flag.kind]}, not {value!r}")
        return flag.default


def _digits(value: str | int) -> bool:
    return isinstance(value, int) or value.strip().lstrip("+-").isdecimal()


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _judge(flag: _Known, value: Any, choices: Sequence[str | int] | None, wrong: list[str]) -> None:
    """Note what is wrong with a typed value: its choices, its range, its form."""
    if value == flag.default:
        return
    allowed = tuple(choices or flag.flag.choices)
    for part in value if flag.many else (value,):
        if part is None:
            continue
        if allowed and str(part) not in map(str, allowed):
            known = ", ".join(map(str, allowed))
            wrong.append(f"{flag.word} must be one of {known}, not {part}")
        elif flag.kind in (int, float):
            told = (flag.flag.range or Range()).problem(part)
            if told:
                wrong.append(f"{flag.word} {told}")
        elif part == "" and not flag.flag.required:
            wrong.append(f"{flag.word} is empty")
        elif flag.flag.check is not None and (told := flag.flag.check(part)):
            wrong.append(told)


def regex_problem(name: str, expression: str, what: str) -> str:
    """Return what is wrong with a regular expression, "" where it has a group.

    Args:
        name: of the flag.
        expression: what it was given.
        what: what the first group does, in words.
    """
    try:
        groups = re.compile(expression).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"--{name} {expression!r} is not valid: {error}"
    return "" if groups else f"--{name} {expression!r} has no group: put what {what} into ( )"


def read_settings(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        UserError: no file, not readable as what its name says, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    if path.suffix.lower() == ".json":
        import json

        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
    else:
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form name: value")
    return content


def _shown(command: Command, argv: Sequence[str], known: Mapping[str, _Known]) -> dict[str, str]:
    """Return what a run with these words gets from its recipe, for ``--help``.

    Recipes are lines ``name: value``, which are read here without a YAML reader: help is quick.
    """
    if "recipe" not in known or command.recipes is None:
        return {}
    path = find_recipe(
        command.recipes, peek(argv, "recipe") or str(known["recipe"].default), command.owner
    )
    shown = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        name, sign, value = line.partition("#")[0].partition(":")
        if sign and name in known:
            text = value.strip()
            try:
                shown[name] = str(float(text)) if known[name].kind is float else text
            except ValueError:
                shown[name] = text
    return shown


def _help(
    command: Command, argv: Sequence[str], known: Mapping[str, _Known], own: set[str]
) -> typing.NoReturn:
    """Print the flags one needs first, or all of them after ``--help all``, and leave."""
    import argparse

    place = next(i for i, word in enumerate(argv) if word in ("-h", "--help"))
    whole = argv[place + 1 : place + 2] == ["all"]
    wrong: list[str] = []
    for name in ("model", "recipe"):
        said = peek(argv, name)
        if name in known and said is not None:
            _judge(known[name], said, command.choices.get(name), wrong)
    if wrong:
        raise UserError("; ".join(wrong))
    shown = _shown(command, argv, known)
    flags = {n: k for n, k in known.items() if n in own}
    few = {n: k for n, k in flags.items() if k.flag.first or k.flag.required or k.flag.positional}
    short = bool(few) and len(few) < len(flags) and any(k.flag.first for k in few.values())
    more = ""
    if short and not whole:
        more = f"--help all shows all {len(flags)} flags and what they take."
        flags = few
    parser = argparse.ArgumentParser(
        prog=command.prog, description=command.description, epilog=more, add_help=False
    )
    groups: dict[str, Any] = {}
    for flag in sorted(flags.values(), key=lambda k: not k.flag.required):
        title = flag.flag.group if whole or not short else "options"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        options = {"help": _described(flag, shown.get(flag.name)).replace("%", "%%")}
        metavar = flag.name.upper() if flag.flag.positional else "X"
        allowed = command.choices.get(flag.name) or flag.flag.choices
        if allowed:
            metavar = "{" + ",".join(map(str, allowed)) + "}"
        if flag.flag.positional:
            nargs = {"nargs": "+" if flag.flag.required else "*"} if flag.many else {}
            groups[title].add_argument(flag.name, metavar=metavar, **options, **nargs)
        elif flag.kind is bool:
            action = argparse.BooleanOptionalAction if flag.default else "store_true"
            groups[title].add_argument(f"--{flag.name}", action=action, **options)
        else:
            nargs = {"nargs": "+"} if flag.many else {}
            groups[title].add_argument(f"--{flag.name}", metavar=metavar, **options, **nargs)
    print(parser.format_help(), end="")
    raise SystemExit(0)


def _described(flag: _Known, recipe: str | None) -> str:
    """Return a flag's help with its range and the value a run gets without it."""
    text, spot, _ = flag.flag.help.partition(" (default: ")
    if flag.flag.range is not None:
        text += f", {flag.flag.range.text()}"
    if flag.flag.required:
        return text if flag.flag.positional else f"{text} (required)"
    if spot and recipe is None:
        return text + flag.flag.help[flag.flag.help.index(spot) :]
    value = flag.default if recipe is None else recipe
    unsaid = (
        value is None
        or value in ("", False, ())
        or (isinstance(value, float) and math.isnan(value))
    )
    return text if unsaid else f"{text} (default: {value})"
