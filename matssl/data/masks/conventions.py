"""Masks of one set that follow different conventions: decided for each file, and said.

One annotator saves 0 and 1, another 0 and 255; one program 8 bits, another 16; one palette counts
red as 1, another as 2. What a file says of itself goes first, what is shown second, and what
neither tells is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data.masks.heaps import heaps, is_soft
from matssl.data.masks.survey import Survey, survey, total
from matssl.data.masks.table import BLACK_AND_WHITE, FULL_SCALE, MOST_CLASSES, by_palette
from matssl.data.masks.values import BLACK, COLOR, gray_color, show, shown

WHITE = 255
WAY_OUT = "say what the values mean in classes.yaml (matrix: 0, particle: [1, 255])"


@dataclass(frozen=True)
class Agreed:
    """Masks of a set on one scale.

    Attributes:
        surveys: of the masks, with values that mean the same in all of them.
        ignored: values that count for nothing.
        palette: colours of the values, as in ``ClassTable``.
        alpha: as in ``ClassTable``.
        any_white: as in ``ClassTable``.
        notes: what was taken for what, in words.
    """

    surveys: tuple[Survey, ...]
    ignored: tuple[int, ...] = ()
    palette: tuple[tuple[int, str], ...] = ()
    alpha: str = ""
    any_white: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Negative values are always ignored."""
        below = {int(v) for s in self.surveys for v in s.values if v < 0}
        object.__setattr__(self, "ignored", tuple(sorted({*self.ignored, *below})))

    @property
    def color(self) -> bool:
        """Whether the masks are coloured."""
        return any(s.color for s in self.surveys)


def files(paths: Sequence[Path]) -> str:
    """Return masks for a sentence: their number, and the first of them."""
    if len(paths) == 1:
        return f"mask {paths[0].name}"
    return f"{counted(len(paths), 'mask')} ({paths[0].name} ...)"


def remarks(surveys: Sequence[Survey]) -> tuple[str, ...]:
    """Return what the reader said of the masks, each sentence once."""
    said: dict[str, list[Path]] = {}
    for one in surveys:
        if one.remark:
            said.setdefault(one.remark, []).append(one.path)
    return tuple(f"{files(paths)}: {remark}" for remark, paths in said.items())


def alpha_applied(surveys: Sequence[Survey]) -> Agreed:
    """Return the masks with their alpha channel where it holds labels."""
    found = {s.alpha for s in surveys} - {""}
    if not found:
        return Agreed(tuple(surveys))
    single = {int(s.values[0]) for s in surveys if s.alpha == "label" and len(s.values) == 1}
    alpha = "label" if found == {"label"} and len(single) <= 1 else "cover"
    mine = tuple(survey(s.path, alpha) if s.has_alpha else s for s in surveys)
    lit = [s.path for s in surveys if s.alpha]
    what = (
        "the alpha channel is the label; in the colours nothing is drawn"
        if alpha == "label"
        else "colours count where the alpha channel covers them; the rest is black"
    )
    return Agreed(mine, alpha=alpha, notes=(f"{files(lit)}: {what}",))


def by_color(found: Agreed, strict: bool = True) -> Agreed:
    """Return masks whose numbers or colours mean the same, whatever order their palettes have.

    Args:
        found: the masks.
        strict: whether class numbers among colours are refused; a class file may list them.

    Raises:
        UserError: class numbers without a palette beside coloured masks.
    """
    found = one_bit_by_palette(found)
    mapped = [s for s in found.surveys if s.palette is not None]
    if not mapped and not (found.color and any(not s.color for s in found.surveys)):
        return found
    own = {s.path: s.by_palette() for s in mapped}
    meanings = _meanings(mapped)
    agree = palettes_agree(mapped)
    others = [s for s in found.surveys if s.palette is None]
    if not found.color and agree and not _shown_alike(others, meanings):
        palette = tuple((n, show(c.copy().pop(), "color")) for n, c in sorted(meanings.items()))
        notes = (*found.notes, *turned_palettes(mapped))
        return replace(found, palette=() if others else palette, notes=notes)
    notes = found.notes
    if mapped:
        why = "differ in order" if not agree else "stand beside masks of grey values or colours"
        notes = (*notes, f"{files([s.path for s in mapped])}: palettes {why}; colours count")
    colored = tuple(own.get(s.path, s) for s in found.surveys)
    lit = {c for s in colored if s.color for c in s.values.tolist()}
    if all(_is_gray(c) for c in lit):
        grays = tuple((c & 255, show(c, "color")) for c in sorted(lit))
        gray = tuple(s.renumbered(s.values & 255) if s.color else s for s in colored)
        return replace(found, surveys=gray, palette=grays, notes=notes)
    binary = [s.path for s in colored if not s.color and s.top == 1]
    single = lit - {BLACK}
    if strict and binary and len(single) == 1:
        color = show(single.pop(), "color")
        notes = (*notes, f"{files(binary)}: 1 is {color} of the coloured masks")
    colored = tuple(_colored(s, lit, strict) for s in colored)
    return replace(found, surveys=colored, any_white=bool(binary) and strict, notes=notes)


def one_bit_by_palette(found: Agreed) -> Agreed:
    """Return 1-bit masks with black and white as their palette where palettes turn these around."""
    palettes = [s.palette[:2].tolist() for s in found.surveys if s.palette is not None]
    if BLACK_AND_WHITE[::-1].tolist() not in palettes:
        return found
    mine = tuple(
        replace(s, palette=BLACK_AND_WHITE) if s.one_bit and s.palette is None else s
        for s in found.surveys
    )
    return replace(found, surveys=mine)


def turned_palettes(surveys: Sequence[Survey]) -> tuple[str, ...]:
    """Return a note where palettes that agree show 0 white and 1 black."""
    turned = [
        one.path
        for one in surveys
        if one.palette is not None
        and one.values.tolist() == [0, 1]
        and by_palette(one.values, one.palette).tolist() == [gray_color(WHITE), BLACK]
    ]
    if not turned:
        return ()
    return (f"{files(turned)}: the palette shows 0 white and 1 black; 1 is foreground",)


def palettes_agree(surveys: Sequence[Survey]) -> bool:
    """Return whether every number has the same colour in the palettes of all masks with one."""
    return all(len(colors) == 1 for colors in _meanings(surveys).values())


def _meanings(surveys: Sequence[Survey]) -> dict[int, set[int]]:
    """Return the colours that each number has in the palettes of masks that use it."""
    found: dict[int, set[int]] = {}
    for one in surveys:
        if one.palette is not None:
            for number, color in zip(
                one.values.tolist(), by_palette(one.values, one.palette).tolist(), strict=True
            ):
                found.setdefault(number, set()).add(color)
    return found


def _shown_alike(others: Sequence[Survey], meanings: dict[int, set[int]]) -> bool:
    """Whether grey masks without a palette hold the greys that palettes show, not their numbers."""
    seen = {v for s in others for v in s.lit}
    if not seen or seen <= set(meanings):
        return False
    colors = {c for found in meanings.values() for c in found}
    return seen <= {c & 255 for c in colors if _is_gray(c)}


def _colored(one: Survey, lit: set[int], strict: bool) -> Survey:
    """Return a grey mask among coloured ones by the colours its values are shown in."""
    if one.color:
        return one
    single = lit - {BLACK}
    if not strict and 0 < one.top < MOST_CLASSES:
        return one.renumbered(np.where(one.values == 0, BLACK, one.values))
    if one.top == 1 and len(single) == 1:
        return one.renumbered(np.where(one.values > 0, single.copy().pop(), BLACK))
    if 0 < one.top < MOST_CLASSES:
        raise UserError(
            f"{one.path} holds the numbers {shown(sorted(one.lit))}, the other masks the colours "
            f"{shown(sorted(lit), 'color')}; name both in classes.yaml (particle: ['#ff0000', 1])"
        )
    shift = 8 if one.top > WHITE else 0
    return one.renumbered(
        np.array([gray_color(v >> shift) if v >= 0 else v for v in one.values.tolist()])
    )


def one_scale(found: Agreed) -> Agreed:
    """Return grey masks on one scale, and 255 ignored where a mask shows that it means nothing.

    Raises:
        UserError: masks that follow two conventions of which neither tells the other.
    """
    agreed = _one_depth(found)
    surveys = agreed.surveys
    _refuse_lossy_numbers(surveys)
    small = [s for s in surveys if 0 < s.top < MOST_CLASSES]
    marked = [s for s in surveys if WHITE in s.lit and _others_are_numbers(s) and len(s.lit) > 1]
    white = [s for s in surveys if s.lit == {WHITE}]
    full = [s for s in surveys if s.top >= MOST_CLASSES and s not in marked and s not in white]
    numbers = {v for s in (*small, *marked) for v in s.lit if v != WHITE}
    if marked and not full and any(_is_drawn(s) for s in marked):
        return _ignoring(agreed, numbers, small, marked, white)
    if not small or not (white or full):
        return agreed
    if numbers == {1}:
        return _white_is_one(agreed, small, [*white, *marked, *full])
    _refuse_two_conventions(small, white, full)
    return agreed


def _one_depth(found: Agreed) -> Agreed:
    """Return masks of 16 bits on the scale of those of 8 beside them."""
    deep = [s for s in found.surveys if s.top > WHITE]
    flat_ = [s for s in found.surveys if MOST_CLASSES <= s.top <= WHITE]
    binary = all(s.lit == {65_535} for s in deep)
    soft = any(s.top >= FULL_SCALE and len(s.values) > 256 for s in deep)
    small = any(0 < s.top < MOST_CLASSES for s in found.surveys)
    if not deep or not (flat_ or soft or (binary and small)):
        return found
    known = {v for s in flat_ for v in s.lit}
    fitting = [s for s in deep if s.top >= FULL_SCALE or {v >> 8 for v in s.lit} <= known]
    if not fitting:
        return found
    if len(fitting) < len(deep):
        odd = next(s for s in deep if s not in fitting)
        raise UserError(
            f"{odd.path} holds 16-bit values up to {odd.top}, {flat_[0].path.name} 8-bit ones; "
            f"{WAY_OUT}"
        )
    paths = {s.path for s in deep}
    mine = tuple(
        s.renumbered(np.where(s.values > 0, s.values >> 8, s.values)) if s.path in paths else s
        for s in found.surveys
    )
    note = f"{files([s.path for s in deep])}: 16 bits are read on the scale of 8, full is full"
    notes = (*found.notes, note) if flat_ or small else found.notes
    return replace(found, surveys=mine, notes=notes)


def _others_are_numbers(one: Survey) -> bool:
    return all(v < MOST_CLASSES for v in one.lit if v != WHITE)


def _is_drawn(one: Survey) -> bool:
    """Whether the numbers beside 255 are drawn and no stray pixels of its edge."""
    sizes = {v: one.of(v, one.sizes) for v in one.lit}
    beside = sum(size for v, size in sizes.items() if v != WHITE)
    drawn = any(one.of(v, one.drawn) for v in one.lit if v != WHITE)
    # Labels of single points, 0 among them, on all that is not labelled.
    zero = one.of(0, one.sizes)
    points = zero > 0 and not one.of(0, one.drawn) and one.of(WHITE, one.drawn) > 0
    return drawn or points or beside >= 0.01 * sizes[WHITE]


def numbers_beside_white(surveys: Sequence[Survey]) -> list[Path]:
    """Return the masks, no JPEG files, that hold 1 and 255 and at most 0 beside them."""
    return [
        s.path
        for s in surveys
        if not s.color and not s.lossy and s.lit == {1, WHITE} and _is_drawn(s)
    ]


def refuse_numbers_beside_white(surveys: Sequence[Survey]) -> None:
    """Refuse masks of 1 and 255 among soft ones of black and white, where 1 would become black.

    Raises:
        UserError: there are such masks; the first is named.
    """
    both = numbers_beside_white(surveys)
    if both:
        raise UserError(
            f"{both[0]} holds 1 and 255 side by side, and in other masks 255 is the foreground: "
            "where 255 means not labelled, save all masks as 0 and 1, then it is ignored; where "
            "both are the foreground, save them as one value"
        )


def _ignoring(
    found: Agreed,
    numbers: set[int],
    small: Sequence[Survey],
    marked: Sequence[Survey],
    white: Sequence[Survey],
) -> Agreed:
    """Return the masks with 255 beside class numbers ignored: the common mark for that."""
    zero = any(0 in s.values for s in found.surveys)
    counting = numbers == set(range(1, len(numbers) + 1)) and (zero or len(numbers) > 1)
    literal = [s for s in marked if {0, 1} <= set(s.values.tolist())]
    if not counting and not literal:
        note = (
            f"{files([s.path for s in marked])}: 255 beside {shown(sorted(numbers))} is a class of "
            "its own; where it means nothing, list it under ignore in classes.yaml"
        )
        return replace(found, notes=(*found.notes, note))
    # A mask of 255 alone has no labelled pixel; it is none of 0 and 255.
    blank = [s for s in white if 0 not in s.values]
    white = [s for s in white if 0 in s.values]
    if numbers == {1} and len(white) > len(marked) + len(small):
        raise UserError(
            f"{marked[0].path} holds 0, 1 and 255, {white[0].path.name} and "
            f"{counted(len(white) - 1, 'other')} 0 and 255 alone: 255 is either the foreground or "
            f"to be ignored; {WAY_OUT}, or ignore: 255"
        )
    notes = [f"grey value 255 beside class numbers is ignored ({files(_paths(marked))})"]
    if blank:
        notes.append(f"{files(_paths(blank))}: 255 alone, so no pixel is labelled")
    if white:
        notes.append(
            f"{files(_paths(white))}: 255 is ignored here too, although no class number but 0 "
            "stands beside it; classes.yaml says otherwise"
        )
    return replace(found, ignored=(*found.ignored, WHITE), notes=(*found.notes, *notes))


def _white_is_one(found: Agreed, small: Sequence[Survey], full: Sequence[Survey]) -> Agreed:
    """Return masks of 0 and 1 on the scale of those of 0 and 255.

    Raises:
        UserError: the others have more classes, of which 1 may be any.
    """
    if any(s.of(1, s.drawn) for s in full) or max(s.top for s in full) < WHITE - 5:
        return found
    summed = total(list(full))
    levels = heaps(summed).levels if is_soft(summed) else tuple(summed.values.tolist())
    if len(levels) > 2:
        raise UserError(
            f"{small[0].path} holds 0 and 1, {full[0].path.name} the values "
            f"{shown(list(levels))}; {WAY_OUT}"
        )
    paths = {s.path for s in small}
    mine = tuple(
        s.renumbered(np.where(s.values > 0, WHITE, s.values)) if s.path in paths else s
        for s in found.surveys
    )
    note = (
        f"{files(_paths(small))} of 0 and 1, {files(_paths(full))} of 0 and 255: 1 and 255 are "
        "the same class, decided for each file"
    )
    return replace(found, surveys=mine, any_white=True, notes=(*found.notes, note))


def _refuse_two_conventions(
    small: Sequence[Survey], white: Sequence[Survey], full: Sequence[Survey]
) -> None:
    """Refuse class numbers beside grey values.

    Raises:
        UserError: naming one file of each kind.
    """
    numbers = {v for s in small for v in s.lit}
    counting = numbers == set(range(1, len(numbers) + 1))
    others = [*white, *full]
    both = any(s.of(v, s.drawn) for s in full for v in s.lit if v < MOST_CLASSES)
    if not counting or both or max(s.top for s in others) < WHITE - 5:
        return
    raise UserError(
        f"{small[0].path} holds the class numbers {shown(sorted(small[0].lit))}, "
        f"{others[0].path.name} {shown(sorted(others[0].lit))}: what one means in the other no "
        f"mask tells; {WAY_OUT}"
    )


def _refuse_lossy_numbers(surveys: Sequence[Survey]) -> None:
    """Refuse JPEG files with class numbers, which differ by less than JPEG changes.

    Raises:
        UserError: naming the first.
    """
    for one in surveys:
        if one.lossy and 0 < one.top < MOST_CLASSES:
            raise UserError(
                f"{one.path} is a JPEG file with the class numbers {shown(sorted(one.lit))}; JPEG "
                "changes such numbers: save masks as PNG, or give --classes binary:1"
            )


def never_together(surveys: Sequence[Survey], kind: str) -> tuple[str, ...]:
    """Return a note where classes but the first never stand in one mask: one class in two colours.

    Class numbers are left out: 1 in one mask and 2 in another are two classes.
    """
    dark = {0, BLACK}
    lit = [s.lit - dark for s in surveys if s.lit - dark]
    classes = sorted(set().union(*lit)) if lit else []
    if len(classes) < 2 or any(len(one) > 1 for one in lit):
        return ()
    if classes[0] < COLOR and classes[-1] < MOST_CLASSES:
        return ()
    return (
        f"no mask holds two of {shown(classes, kind)}: where they are one class, --classes binary "
        "or classes.yaml says so",
    )


def _paths(surveys: Sequence[Survey]) -> list[Path]:
    return [s.path for s in surveys]


def _is_gray(code: int) -> bool:
    return ((code >> 16) & 255) == ((code >> 8) & 255) == (code & 255)
