"""Which number a label gets in a mask, and the class file that says so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import counted, cut
from matssl.data.annotations import sources
from matssl.data.annotations.drawing import Drawing, is_background, is_ignored, label_of
from matssl.data.masks.class_file import values_by_name

BACKGROUND = "background"
SHOWN = 5


@dataclass(frozen=True)
class Classes:
    """What labels mean in masks.

    Attributes:
        numbers: value of each class, by its name, in order.
        values: value of each label that was drawn, :data:`IGNORE` among them.
        uncovered: name of the class of pixels that nothing covers.
        bare: its value.
        notes: how the numbers came about, in words.
    """

    numbers: Mapping[str, int]
    values: Mapping[str, int]
    uncovered: str
    bare: int
    notes: tuple[str, ...] = ()

    def text(self, with_uncovered: bool, head: Sequence[str] = ()) -> str:
        """Return the class file of masks with these values.

        Args:
            with_uncovered: whether some pixel is of the class that nothing covers.
            head: lines of comment.
        """
        lines = [f"# {' '.join(line.split())}" for line in head]
        lines.append("classes:")
        if self.uncovered not in self.numbers and with_uncovered:
            lines.append(f"  {_quoted(self.uncovered)}: {self.bare}")
        lines += [f"  {_quoted(name)}: {value}" for name, value in self.numbers.items()]
        return "\n".join([*lines, f"ignore: [{IGNORE}]"]) + "\n"


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def renamed(pairs: Iterable[str]) -> dict[str, str]:
    """Return what ``--rename OLD=NEW ...`` says, by old name.

    Raises:
        UserError: no pair, or a name that gets two others.
    """
    found: dict[str, str] = {}
    for said in pairs:
        old, _, new = (label_of(part) for part in said.partition("="))
        if not old or not new:
            raise UserError(f"--rename takes OLD=NEW, not {cut(repr(said), 60)}")
        sources.label(new, "--rename: the new name")
        if found.get(old, new) != new:
            raise UserError(f"--rename gives {old!r} two names: {found[old]!r} and {new!r}")
        found[old] = new
    return found


def of_drawings(
    drawings: Sequence[Drawing],
    listed: Sequence[str],
    said: str | None,
    rename: Mapping[str, str],
) -> Classes:
    """Return the numbers of the labels of some drawings.

    ``background`` in any format's spelling is 0, ``ignore`` is 255. Without ``--classes`` the
    others get 1, 2, ... in the order of the files' own list, then of the alphabet.

    Args:
        drawings: of the pictures that are there.
        listed: names in the files' own order.
        said: ``--classes``: a class file, or names in order separated by commas.
        rename: new names of labels, by old one.

    Raises:
        UserError: a label that ``--classes`` does not list, labels that differ hardly, a value that
            is none, too many labels.
    """
    drawn: Counter[str] = Counter()
    first: dict[str, Drawing] = {}
    for drawing in drawings:
        for shape in drawing.shapes:
            drawn[shape.label] += 1
            first.setdefault(shape.label, drawing)
    unknown = [old for old in rename if old not in drawn and old not in listed]
    if unknown:
        raise UserError(f"--rename: no shape is labelled {cut(unknown[0], 60)!r}; {_said(drawn)}")
    meant = {label: rename.get(label, label) for label in drawn}
    named = [name for name in dict.fromkeys(meant.values()) if not _special(name)]
    notes: list[str] = []
    if said is not None:
        numbers = given(said)
        absent = [label for label, name in meant.items() if name in named and name not in numbers]
        if absent:
            raise UserError(_unknown(absent, drawn, first, [*numbers], "--classes"))
    else:
        order = [rename.get(label, label) for label in listed]
        absent = [label for label, name in meant.items() if name in named and name not in order]
        if order and absent:
            raise UserError(_unknown(absent, drawn, first, order, "the files' own list"))
        _refuse_doubles(named, order, drawn)
        order = [name for name in dict.fromkeys(order) if not _special(name)]
        there = {name for name in order if name in named}
        rest = sorted(name for name in named if name not in there)
        numbers = {name: at for at, name in enumerate((*order, *rest), 1) if name in named}
        unused = [name for name in order if name not in named]
        if unused:
            shown = ", ".join(unused[:SHOWN]) + (", ..." if len(unused) > SHOWN else "")
            notes.append(f"listed in the files and drawn nowhere: {shown}; left out")
        if max(numbers.values(), default=0) >= IGNORE:
            raise UserError(
                f"{len(named):,} class names were drawn (first: {named[0]}), and a mask tells "
                f"{IGNORE - 1} apart; --classes and --rename OLD=NEW say which belong together"
            )
    own = [name for name in numbers if is_background(name)]
    own += [name for name, value in numbers.items() if value == 0]
    uncovered = own[0] if own else BACKGROUND
    bare = numbers.get(uncovered, 0)
    values = {
        label: numbers[name] if name in numbers else IGNORE if is_ignored(name) else bare
        for label, name in meant.items()
    }
    return Classes(numbers, values, uncovered, bare, tuple(notes))


def given(said: str) -> dict[str, int]:
    """Return the values that ``--classes`` gives to names.

    Raises:
        UserError: no such file, a value that no mask here has, a name that stands twice.
    """
    if not said.lower().endswith((".yaml", ".yml", ".csv")):
        names = [sources.label(name, "--classes: a name") for name in said.split(",")]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"--classes {cut(said, 60)} names {cut(twice, 60)} twice")
        drawn = [name for name in names if not is_background(name)]
        if len(drawn) >= IGNORE:
            raise UserError(
                f"--classes names {len(drawn)} classes; a mask tells {IGNORE - 1} apart"
            )
        return {name: drawn.index(name) + 1 if name in drawn else 0 for name in names}
    numbers: dict[str, int] = {}
    for name, values in values_by_name(Path(said)).items():
        value = values[0] if values else 0
        if not isinstance(value, int) or not 0 <= value < IGNORE:
            raise UserError(
                f"{said} gives {name} the value {value}; masks of annotations hold whole numbers "
                f"from 0 to {IGNORE - 1}"
            )
        numbers[label_of(name)] = value
    return numbers


def _special(name: str) -> bool:
    return is_background(name) or is_ignored(name)


def _said(drawn: Mapping[str, int]) -> str:
    shown = ", ".join(f"{cut(name, 60)} ({n})" for name, n in [*drawn.items()][: 2 * SHOWN])
    return f"labels are {shown or 'none'}" + (", ..." if len(drawn) > 2 * SHOWN else "")


def _unknown(
    absent: Sequence[str],
    drawn: Mapping[str, int],
    first: Mapping[str, Drawing],
    listed: Sequence[str],
    where: str,
) -> str:
    shown = ", ".join(
        f"{cut(label, 60)!r} ({counted(drawn[label], 'shape')}, first in {first[label].picture})"
        for label in absent[:SHOWN]
    )
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    old = cut(absent[0], 60)
    known = ", ".join(cut(name, 60) for name in listed[: 4 * SHOWN])
    return (
        f"{where} does not hold the label {shown}{more}, but {known}; --rename '{old}=NAME' says "
        f"what it means (NAME may be {BACKGROUND} or ignore), or list it in --classes"
    )


def _refuse_doubles(named: Sequence[str], listed: Sequence[str], drawn: Mapping[str, int]) -> None:
    """Refuse labels that differ by capitals, blanks or underscores alone, but for listed ones.

    Raises:
        UserError: there are some.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in named:
        alike["".join(c for c in name.casefold() if c not in " _-")].append(name)
    for names in alike.values():
        if len(names) > 1 and not set(names) <= set(listed):
            names = sorted(names, key=lambda name: -drawn.get(name, 0))
            said = " and ".join(
                f"{name!r} ({counted(drawn.get(name, 0), 'shape')})" for name in names
            )
            raise UserError(
                f"the labels {said} differ hardly: --rename '{names[1]}={names[0]}' makes them one "
                f"class, --classes '{','.join(names)}' keeps them apart"
            )
