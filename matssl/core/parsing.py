"""A command line to settings: recipe, environment, ``--config`` and flags, one over the other.

All mistakes of a command line are told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from matssl.core.errors import UserError
from matssl.core.flags import (
    Command,
    Known,
    Parsed,
    Problem,
    Section,
    declared,
    find_recipe,
    judge,
)
from matssl.core.wording import cut

if TYPE_CHECKING:
    from pathlib import Path

# Letters of a sentence, and how many of them are told at once.
SENTENCE, MOST_TOLD = 500, 12
_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false"}
_KINDS[str] = "text"


def parse_one(
    kind: type[Section],
    argv: Sequence[str],
    description: str,
    *,
    choices: Mapping[str, Sequence[str | int]] | None = None,
    recipes: str | None = None,
    owner: str = "",
    problems: Callable[[Section], list[Problem]] | None = None,
    prog: str | None = None,
    here: bool = True,
) -> Section:
    """Return the settings of a command of one dataclass; see :func:`parse`."""

    def crossed(parsed: Parsed) -> list[Problem]:
        return problems(parsed.section(kind)) if problems else []

    command = Command(description, (kind,), (), recipes, owner, choices or {}, prog)
    return parse(command, argv, problems=crossed, here=here).section(kind)


def parse(
    command: Command,
    argv: Sequence[str],
    *,
    environment: Mapping[str, object] | None = None,
    read: Callable[[str], Mapping[str, object]] | None = None,
    problems: Callable[[Parsed], list[Problem]] | None = None,
    here: bool = False,
) -> Parsed:
    """Return what a command line says: recipe, environment, ``--config``, then flags.

    Args:
        command: what it may say.
        argv: arguments without the program's name.
        environment: settings that the recipe does not beat and everything else does.
        read: of the ``--config`` file; :func:`read_settings` where None.
        problems: what is wrong between settings that are right one by one; told together.
        here: whether it is to run here and now, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong, in one sentence.
        SystemExit: after ``--help``.
    """
    known = {name: k for part in command.sections for name, k in declared(part).items()}
    own = set(known)
    for part in command.others:
        known = {**declared(part), **known}
    if {"-h", "--help"} & set(argv):
        from matssl.core import usage

        usage.show(command, argv, known, own)
    wrong: list[Problem] = []
    flags = _scan(argv, known, wrong)
    said: dict[str, object] = {}
    if flags.get("config") and "config" in known:
        source = str(flags["config"])
        said = _settings_of(source, read or _read_file, known, wrong)
    recipe = _recipe(command, flags.get("recipe") or said.get("recipe"), known, wrong)
    layers = [recipe, dict(environment or {}), said, flags]
    values: dict[str, object] = {}
    for layer in layers:
        values = _over(values, layer, known, wrong)
    typed = {name: _typed(known[name], value, wrong) for name, value in values.items()}
    for name, value in typed.items():
        judge(known[name], value, command.choices.get(name), wrong)
    told_of = {name for problem in wrong for name in problem.about}
    missing = [
        name
        for name, k in known.items()
        if k.flag.required and not typed.get(name) and name not in told_of
    ]
    if missing:
        told = f"missing {', '.join(known[name].word for name in missing)}"
        wrong.append(Problem(told, tuple(missing)))
    bad = {name for problem in wrong for name in problem.about}
    made = tuple(
        kind(
            **{k.field: typed[n] for n, k in declared(kind).items() if n in typed and n not in bad}
        )
        for kind in command.sections
    )
    unused = [n for n, v in typed.items() if n not in own and v != known[n].default]
    parsed = Parsed(made, tuple(unused))
    crossed = problems(parsed) if problems else []
    wrong += [problem for problem in crossed if not bad & set(problem.about)]
    if here:
        wrong += _astray({name: known[name] for name in own}, typed, bad)
    if wrong:
        sentences = list(dict.fromkeys(cut(problem.text, SENTENCE) for problem in wrong))
        if len(sentences) > MOST_TOLD:
            sentences[MOST_TOLD:] = [f"and {len(sentences) - MOST_TOLD} more of the kind"]
        raise UserError("; ".join([*sentences, "see --help"] if bad else sentences))
    return parsed


def _settings_of(
    source: str,
    read: Callable[[str], Mapping[str, object]],
    known: Mapping[str, Known],
    wrong: list[Problem],
) -> dict[str, object]:
    """Return the settings of a ``--config`` file; what is wrong with it is one mistake of many."""
    try:
        return _named(read(source), known, source, wrong)
    except UserError as error:
        wrong.append(Problem(str(error), ("config",)))
        return {}


def _astray(
    known: Mapping[str, Known], typed: Mapping[str, object], bad: set[str]
) -> list[Problem]:
    """Return what is wrong with what the paths of a command line lead to.

    A run that goes on has its weights in its checkpoint; those it began with may be gone.
    """
    wrong = []
    for name, flag in known.items():
        value, leads = typed.get(name, flag.default), flag.flag.leads
        if leads is None or name in bad or value == flag.default:
            continue
        if typed.get("resume") and flag.flag.group != "data":
            continue
        for part in value if isinstance(value, tuple) else (value,):
            told = "" if part is None else leads(str(part))
            if told:
                wrong.append(Problem(f"{told} ({flag.word})", (name,)))
    return wrong


def _scan(
    argv: Sequence[str], known: Mapping[str, Known], wrong: list[Problem]
) -> dict[str, object]:
    """Return the words behind each flag; what is no flag and has no place is wrong."""
    given: dict[str, object] = {}
    words: list[str] = []
    rest = list(argv)
    # A flag whose values stand between commas, and those that other words follow.
    last, followed = "", ""
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            followed = followed or last
            continue
        last = ""
        name, sign, value = word.removeprefix("--").partition("=")
        flag = known.get(name)
        if flag is not None and not flag.flag.positional and flag.kind is not bool:
            values = [value] if sign else []
            while rest and not sign and not rest[0].startswith("--"):
                values.append(rest.pop(0))
                if not flag.many:
                    break
            last = name if flag.flag.commas else ""
            if values:
                given[name] = tuple(values) if flag.many else values[0]
            else:
                wrong.append(Problem(f"--{name} needs a value", (name,)))
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
        near = _near(f"--{name}", [k.word for k in known.values()])
        wrong.append(Problem(told + near, (name,)))
    _place(words, known, given, wrong, followed)
    return given


def _place(
    words: list[str],
    known: Mapping[str, Known],
    given: dict[str, object],
    wrong: list[Problem],
    followed: str,
) -> None:
    """Give words without a flag to the positional fields, in their order.

    Args:
        words: without a flag.
        known: the flags.
        given: takes the values.
        wrong: takes what is left over.
        followed: flag of values between commas that some of the words follow, "" for none.
    """
    for name, flag in known.items():
        if flag.flag.positional and words:
            given[name] = tuple(words) if flag.many else words[0]
            words = [] if flag.many else words[1:]
    if words:
        told = f"unrecognized {cut(' '.join(words))}"
        if followed:
            first = cut(str(given[followed]), 40)
            told += f"; several values of --{followed} stand between commas, without spaces: "
            told += f"--{followed} {first.strip(',')},..."
        wrong.append(Problem(told, ("",)))


def _near(word: str, known: Iterable[str]) -> str:
    import difflib

    # Flags of another command are not to be taken for the nearest of this one.
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _recipe(
    command: Command, name: object, known: Mapping[str, Known], wrong: list[Problem]
) -> dict[str, object]:
    """Return the settings of the recipe of a name, of the default one where it is None."""
    if "recipe" not in known or command.recipes is None:
        return {}
    try:
        path = find_recipe(command.recipes, str(name or known["recipe"].default), command.owner)
        return _named(_read_file(path), known, path, wrong)
    except UserError as error:
        wrong.append(Problem(str(error), ("recipe",)))
        return {}


def _named(
    values: Mapping[str, object], known: Mapping[str, Known], source: str, wrong: list[Problem]
) -> dict[str, object]:
    """Return the settings of a file; names that are none are wrong."""
    for key in values:
        if key not in known or known[key].flag.positional:
            told = f"{source} has an unknown setting {cut(repr(key), 60)}{_near(str(key), known)}"
            wrong.append(Problem(told, (str(key),)))
    return {k: v for k, v in values.items() if k in known}


def _over(
    weaker: Mapping[str, object],
    stronger: Mapping[str, object],
    known: Mapping[str, Known],
    wrong: list[Problem],
) -> dict[str, object]:
    """Return both layers; of two flags that exclude each other the stronger layer's is left."""
    order = list(known)
    said = {name: known[name].flag.excludes for name in stronger if name in known}
    for name, other in said.items():
        if other in said and order.index(name) < order.index(other):
            told = f"--{name} and --{other} are two plans; give one of them"
            wrong.append(Problem(told, (name, other)))
    kept = {k: v for k, v in weaker.items() if k not in said.values() or k in stronger}
    return {**kept, **stronger}


def _typed(flag: Known, value: object, wrong: list[Problem]) -> object:
    """Return a value as the field's type; YAML's ``1e-4``, which is a string, becomes a float."""
    if value is None and flag.optional:
        return None
    if flag.many:
        values = value if isinstance(value, (tuple, list)) else (value,)
        before = len(wrong)
        parts = tuple(_plain(flag, part, wrong) for part in values)
        return parts if len(wrong) == before else flag.default
    return _plain(flag, value, wrong)


def _plain(flag: Known, value: object, wrong: list[Problem]) -> object:
    try:
        if flag.kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if flag.kind is str:
            if not isinstance(value, (str, int, float)):
                raise ValueError
            return str(value)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError
        if flag.kind is int:
            # A whole number may be written 1e3; beyond 2^53 a float would not be the number typed.
            return int(value) if not isinstance(value, float) and _digits(value) else _whole(value)
        return float(value)
    except (TypeError, ValueError, OverflowError):
        told = f"{flag.word} must be {_KINDS[flag.kind]}, not {cut(repr(value), 60)}"
        wrong.append(Problem(told, (flag.name,)))
        return flag.default


def _digits(value: str | int) -> bool:
    return isinstance(value, int) or value.strip().lstrip("+-").isdecimal()


def _whole(value: str | float) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _read_file(path: str) -> dict[str, object]:
    from pathlib import Path

    return read_settings(Path(path))


def read_settings(path: Path) -> dict[str, object]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        UserError: no file, not readable as what its name says, or no mapping.
    """
    from matssl.core import textfiles

    is_json = path.suffix.lower() == ".json"
    read = textfiles.read_json if is_json else textfiles.read_yaml
    content = read(path, "the configuration")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form name: value")
    return content
