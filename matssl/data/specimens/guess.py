"""Which images are of one specimen, as far as their names tell, all of them weighed together.

The part that names a specimen stands for several images, and changes more slowly from name to name
than places and counters do. Magnification, detector, voltage, date and time name none. Where two
parts could be meant, or only a counter changes, nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from matssl.data.specimens.names import Kind, Name, Part, parse

_NO_IDENTITY = (Kind.PLACE, Kind.SETTING, Kind.DATE, Kind.STATE)
# Longitudinal, transverse and short transverse sections may be of one specimen.
_ORIENTATIONS = {"l", "t", "s", "lt", "st"}
# Digits behind which a code that no two images share is a camera's number.
_CAMERA_DIGITS = 3
# Times of day and years, which look like numbers: 0915, 091530, t0915; 09h15; 09 and 15 apart.
# Magnifications, M500, look like codes, and so do steps of time, t0 and t10.
_CLOCK = re.compile(r"t?([01]\d|2[0-3])[0-5]\d([0-5]\d)?|(19|20)\d\d|m\d*[05]0", re.IGNORECASE)
_STEP, _FIRST_STEP = re.compile(r"t\d+"), "t0"
_CLOCK_OF_HOURS = re.compile(r"(?<!\d)([01]?\d|2[0-3])h[0-5]\d(?!\d)", re.IGNORECASE)
_HOUR_OR_YEAR, _MINUTE_OR_MONTH = re.compile(r"[01]\d|2[0-3]|(19|20)\d\d"), re.compile(r"[0-5]\d")
# X20 in front may be a magnification or the specimen; 20x and x500 are magnifications.
MAGNIFICATION_FIRST = re.compile(r"x(?!\d+[05]0$)\d+")


def guess(stems: Sequence[str]) -> list[str | None]:
    """Return the specimen each name tells, None where it tells none.

    Args:
        stems: file names without folder and ending.

    Returns:
        The part of the name, as the first image of the specimen writes it. Names that tell no
        specimen are None; so are all, where the names tell only one.
    """
    names = [parse(stem) for stem in stems]
    keys: list[tuple[Part, ...] | None] = [None] * len(names)
    for members in _alike(names).values():
        for i, key in zip(members, _keys([names[i] for i in members]), strict=True):
            keys[i] = key
    said = [None if key is None else tuple(part.key for part in key) for key in keys]
    images = Counter(key for key in said if key is not None)
    if len(images) < 2 or max(images.values()) < 2:
        return [None] * len(names)
    shown: dict[tuple[str, ...], str] = {}
    for name, parts in zip(names, keys, strict=True):
        if parts is not None:
            shown.setdefault(tuple(part.key for part in parts), name.text(parts))
    return [None if key is None else shown[key] for key in said]


def places(stems: Sequence[str]) -> list[str]:
    """Return for each name what it shares with other pictures of the same place.

    Those are tiles of one picture, and pictures that differ in the detector or another setting.
    """
    return [parse(stem).place for stem in stems]


def _alike(names: Sequence[Name]) -> dict[object, list[int]]:
    """Return the places of names of one build; those that name a specimen by what is before it."""
    builds: dict[object, list[int]] = {}
    for i, name in enumerate(names):
        rank = max((part.rank for part in name.parts), default=0)
        core = _identity(name) if rank else _without_counter(name)
        kinds = [part.kind for part in core]
        if rank:
            kinds = kinds[: _last(core, rank) + 1]
        builds.setdefault((rank, *kinds), []).append(i)
    return builds


def _keys(names: Sequence[Name]) -> Sequence[tuple[Part, ...] | None]:
    """Return what tells the specimens of names of one build, None each where nothing does."""
    rank = max((part.rank for part in names[0].parts), default=0)
    rows = [_identity(name) for name in names]
    found: Sequence[tuple[Part, ...]] | None
    if rank:
        found = _by_specimen(rows, rank)
    else:
        found = _by_codes(names, [_without_counter(name) for name in names])
    return [None] * len(names) if found is None else found


def _by_specimen(rows: Sequence[Sequence[Part]], rank: int) -> list[tuple[Part, ...]] | None:
    """Return the parts up to the one that says specimen; None where more may belong to it."""
    keys = [tuple(row[: _last(row, rank) + 1]) for row in rows]
    while len(keys) > 1 and keys[0][0].kind is Kind.NUMBER and _all_differ(keys):
        # 001_S1, 002_S1, 003_S2: a number that runs through all.
        keys = [key[1:] for key in keys]
        rows = [row[1:] for row in rows]
    columns = [column for column in zip(*keys, strict=True) if column[0].kind is not Kind.LOT]
    own = [column for column in columns if column[0].rank == rank]
    before = [column for column in columns if column[0].rank != rank]
    # steel_s1 and copper_s1 are two specimens; etched_s1 and polished_s1 are one.
    if any(_crossed(column, own[-1]) for column in before):
        return None
    later: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for key, row in zip(keys, rows, strict=True):
        treated = tuple(p.key for p in row[len(key) :] if p.kind is Kind.TREATMENT)
        later.setdefault(tuple(p.key for p in key), set()).add(treated)
    # A specimen before and after its treatment, or two of one number: the names do not say.
    return None if any(len(treated) > 1 for treated in later.values()) else keys


def _by_codes(
    names: Sequence[Name], rows: Sequence[tuple[Part, ...]]
) -> Sequence[tuple[Part, ...]] | None:
    """Return the codes, treatments and numbers that change together; None where it is unsure."""
    rows = _without_camera_number(rows)
    columns = list(zip(*rows, strict=True))
    varying = [column for column in columns if len({part.key for part in column}) > 1]
    telling = [column for column in varying if column[0].kind not in (Kind.WORD, Kind.LOT)]
    if not telling:
        return None
    if any({part.key for part in column} <= _ORIENTATIONS for column in telling):
        return None
    if any(_is_clock(names, column) or _under_several(names, column) for column in telling):
        return None
    for one, other in combinations(varying, 2):
        kinds = {one[0].kind, other[0].kind}
        if Kind.LOT not in kinds and kinds != {Kind.TREATMENT} and _crossed(one, other):
            return None
    if any(column[0].kind is Kind.NUMBER for column in telling):
        # Two numbers are a specimen and its fields where the fields are counted anew.
        if len(telling) > 1 or not _counted_anew(names, telling[0]):
            return None
    return rows


def _is_clock(names: Sequence[Name], column: Sequence[Part]) -> bool:
    """Return whether a part may be a time, a month, a year or M500, which name no specimen."""
    if all(_CLOCK.fullmatch(part.text) for part in column):
        return True
    if all(_STEP.fullmatch(p.key) for p in column) and any(p.key == _FIRST_STEP for p in column):
        return True
    if all(_CLOCK_OF_HOURS.search(name.stem) for name in names):
        return True
    if not all(p.kind is Kind.NUMBER and _MINUTE_OR_MONTH.fullmatch(p.text) for p in column):
        return False
    before = [
        next((q for q in reversed(name.parts) if q.start < part.start), None)
        for name, part in zip(names, column, strict=True)
    ]
    return all(part is not None and bool(_HOUR_OR_YEAR.fullmatch(part.text)) for part in before)


def _under_several(names: Sequence[Name], column: Sequence[Part]) -> bool:
    """Return whether a letter or a number stands behind several days, or anything behind several X.

    20240501_a_01 and 20240502_a_01 may be of one specimen a or of two, of one a day.
    """
    letters = all(len(part.text) == 1 or part.kind is Kind.NUMBER for part in column)
    fronts: dict[str, set[tuple[str, ...]]] = {}
    for name, part in zip(names, column, strict=True):
        first = name.parts[0]
        front = [first.key] if _is_magnification_first(first) else []
        if letters:
            front += [p.key for p in name.parts if p.start < part.start and p.kind is Kind.DATE]
        fronts.setdefault(part.key, set()).add(tuple(front))
    return any(len(several) > 1 for several in fronts.values())


def _is_magnification_first(first: Part) -> bool:
    return first.kind is Kind.SETTING and bool(MAGNIFICATION_FIRST.fullmatch(first.key))


def _all_differ(rows: Sequence[Sequence[Part]]) -> bool:
    return len({row[0].key for row in rows}) == len(rows)


def _counted_anew(names: Sequence[Name], column: Sequence[Part]) -> bool:
    """Return whether what follows a number has the same values for several of them."""
    rest: dict[str, set[tuple[str, ...]]] = {}
    for name, part in zip(names, column, strict=True):
        behind = tuple(p.key for p in name.parts if p.start > part.start)
        rest.setdefault(part.key, set()).add((*behind, name.stem[len(name.parent) :]))
    values = Counter(value for values in rest.values() for value in values)
    several = [values for values in rest.values() if len(values) > 1]
    return len(several) > 1 and max(values.values()) > 1


def _crossed(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Return whether neither of two columns follows from the other."""
    pairs = {(a.key, b.key) for a, b in zip(one, other, strict=True)}
    firsts, seconds = {a for a, _ in pairs}, {b for _, b in pairs}
    return len(pairs) > len(firsts) and len(pairs) > len(seconds)


def _identity(name: Name) -> tuple[Part, ...]:
    return tuple(part for part in name.parts if part.kind not in _NO_IDENTITY)


def _without_counter(name: Name) -> tuple[Part, ...]:
    """Return the parts without a number, or a letter behind others, that counts images.

    Whatever is before the letter may be the specimen: Z1_a, X20_a, 20240501_A show none called a.
    Behind codes and words a capital letter is one of their parts.
    """
    row = _identity(name)
    if not row:
        return row
    last = row[-1]
    before = [part for part in name.parts if part.start < last.start]
    letter = last.kind is Kind.CODE and len(last.text) == 1
    small = letter and last.text.islower()
    counts = small or all(part.kind in (Kind.DATE, Kind.SETTING) for part in before)
    if letter and before and counts:
        return row[:-1]
    return row[:-1] if last.kind is Kind.NUMBER else row


def _without_camera_number(rows: Sequence[tuple[Part, ...]]) -> Sequence[tuple[Part, ...]]:
    """Return the rows without a last code that no two names share, such as S0440017."""
    last = [row[-1] for row in rows if len(row) > 1 and row[-1].kind is Kind.CODE]
    codes = {part.key for part in last}
    digits = all(sum(c.isdigit() for c in part.text) >= _CAMERA_DIGITS for part in last)
    alike = len({"".join(c for c in part.key if c.isalpha()) for part in last}) == 1
    alone = len(last) == len(rows) == len(codes) and len(rows) > 1
    return [row[:-1] for row in rows] if alone and digits and alike else rows


def _last(row: Sequence[Part], rank: int) -> int:
    return max(i for i, part in enumerate(row) if part.rank == rank)
