"""Finds the class table of a data set from all of its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from matssl.core import wording
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.masks import conventions
from matssl.data.masks.class_file import class_file, from_file
from matssl.data.masks.conventions import Agreed, files
from matssl.data.masks.heaps import (
    FEW_VALUES,
    MOST_BETWEEN,
    NOISE,
    Heaps,
    between_levels,
    edges_are_few,
    heaps,
    is_soft,
    line_between,
)
from matssl.data.masks.instances import VOID, may_number, number_objects
from matssl.data.masks.survey import Survey, Total, counted, opens, survey, total
from matssl.data.masks.table import HALF_WAY, ClassTable, MaskClass, binary_table
from matssl.data.masks.values import BLACK, COLOR, Value, channels, show, shown

MAX_CLASSES = 64
# A class of fewer pixels, and of a smaller share of them, may be a slip of the pen.
SPECKS, SPECK_SHARE = 50, 2e-3
# --classes binary: every value but 0 is one class; binary:128 says from which value on.
BINARY = "binary"
HIGHEST = 65_535
# What helps where values are not clear. Colours are mixed at soft edges, and no file says how.
NAME_THEM = "name the classes in classes.yaml (ranges as particle: 128-255)"
NO_MIXTURES = "export them anew as PNG, without JPEG, smoothing or resizing, which mix the colours"


class OneClass(UserError):
    """Masks that hold fewer than two classes."""


def find_table(
    mask_paths: Sequence[Path],
    classes: str | None = None,
    folder: Path | None = None,
    whole: bool = False,
) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the class table of these masks, and notes in words.

    Args:
        mask_paths: every mask of the data set.
        classes: ``--classes``: a YAML file, names in order separated by commas, "binary" or
            "binary:THRESHOLD".
        folder: the data set's folder, where a classes.yaml or classes.csv may lie.
        whole: whether the masks are measured, and nothing is learned from them: numbered objects
            may fill them, as grains do, a class that is listed may be in none, and masks that
            cannot be read are left to whoever opens them.

    Raises:
        UserError: no two classes, strange values, or a class file that does not fit.
    """
    try:
        table, notes = _table(mask_paths, classes, folder, whole)
    except UserError:
        good = [path for path in mask_paths if not whole or opens(path)]
        if not good or len(good) == len(mask_paths):
            raise
        table, notes = _table(good, classes, folder, whole)
    if not any(c.pixels for c in table.classes):
        told = "measure" if whole else "learn"
        raise OneClass(f"every pixel of every mask is to be ignored; there is nothing to {told}")
    present = [c for c in table.classes if c.pixels]
    # A phase that is nowhere is a result, where something says that it was looked for.
    if len(present) < 2 and not (whole and (table.instances or len(table.classes) > 1)):
        below = [value for value in table.ignore_values if isinstance(value, int) and value < 0]
        told = f", and {shown(below)}, which is ignored" if below else ""
        raise OneClass(
            f"all masks hold one class only ({present[0].name}){told}; at least two are needed"
            + ("; name the other one in classes.yaml, if it is in none of them" if whole else "")
        )
    return table, (*notes, *_specks(table))


def _specks(table: ClassTable) -> list[str]:
    """Return a note on classes of hardly any pixel: scores count a slip of the pen as a class."""
    whole = sum(c.pixels for c in table.classes)
    few = [c for c in table.classes if 0 < c.pixels < min(SPECKS, SPECK_SHARE * whole)]
    return [
        f"{c.name} ({', '.join(map(str, c.values))}) has {wording.counted(c.pixels, 'pixel')} in "
        "all masks; if that is a slip, list its value under ignore in classes.yaml"
        for c in few
    ]


def is_binary(classes: str | None) -> bool:
    """Return whether ``--classes`` is "binary" or "binary:THRESHOLD"."""
    return classes is not None and classes.split(":")[0].strip() == BINARY


def find_binary(
    mask_paths: Sequence[Path], classes: str = BINARY
) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the table of background and foreground for these masks, and notes in words.

    Masks of one class alone are no mistake here: a model may be tried on images without particles.

    Raises:
        UserError: the threshold is none, or the masks do not show where to cut.
    """
    threshold = binary_threshold(classes)
    surveys = [survey(path) for path in mask_paths]
    agreed = conventions.one_bit_by_palette(conventions.alpha_applied(surveys))
    notes: tuple[str, ...] = (*conventions.remarks(surveys), *agreed.notes)
    kind = "index"
    if conventions.palettes_agree(agreed.surveys):
        notes = (*notes, *conventions.turned_palettes(agreed.surveys))
    else:
        # Numbers mean nothing then; black is background.
        kind = "color"
        notes = (*notes, "the palettes of the masks differ in order: their colours count")
    masks = [_bright(s, agreed.alpha, kind == "color") for s in agreed.surveys]
    numbered = number_objects([s.objects for s in agreed.surveys])
    if threshold is None and not numbered:
        scaled = [s.renumbered(_to_8_bit_scale(s)) for s in masks]
        # Masks of 0 and 1 tell nothing of the scale of the others.
        summed = total([s for s in scaled if s.top > 1])
        if len(summed.values) and is_soft(summed):
            threshold, note = _cut(scaled, summed)
            if threshold > 1:
                conventions.refuse_numbers_beside_white(scaled)
            notes = (*notes, note) if note else notes
    threshold = threshold or 1
    both = conventions.numbers_beside_white(masks) if threshold == 1 else []
    if both:
        notes = (*notes, f"{files(both)}: 1 and 255 stand side by side, both are foreground here")
    dim = [s.path for s in masks if s.top == 1] if threshold > 1 else []
    if dim:
        notes = (*notes, f"{files(dim)} of 0 and 1: 1 is foreground, whatever the threshold")
    table = replace(binary_table(threshold), kind=kind, alpha=agreed.alpha, instances=numbered)
    return counted(table, masks), notes


def _table(
    paths: Sequence[Path], classes: str | None, folder: Path | None, whole: bool
) -> tuple[ClassTable, tuple[str, ...]]:
    file = class_file(classes, folder)
    if file is None and classes is not None and is_binary(classes):
        return find_binary(paths, classes)
    surveys = [survey(path) for path in paths]
    said = conventions.remarks(surveys)
    agreed = conventions.alpha_applied(surveys)
    if file is not None:
        table, notes = from_file(file, conventions.by_color(agreed, strict=False))
    elif not _named(agreed, classes) and number_objects([s.objects for s in agreed.surveys]):
        table, notes = _of_objects(agreed, whole)
    else:
        agreed = conventions.by_color(agreed)
        table, notes = _of_colors(agreed) if agreed.color else _of_numbers(agreed, classes)
    if classes is not None and file is None:
        table = _renamed(table, classes)
    return table, (*said, *notes)


def _bright(one: Survey, alpha: str, shown: bool) -> Survey:
    """Return a mask by its grey values, or by the brightest channel of its colours.

    Args:
        one: the mask.
        alpha: as in ``ClassTable``.
        shown: whether palette numbers are looked at by their colours.
    """
    if one.color:
        return survey(one.path, alpha, bright=True)
    if shown and one.palette is not None:
        own = one.by_palette()
        return own.renumbered(channels(own.values).max(axis=1))
    return one


def binary_threshold(classes: str) -> int | None:
    """Return the first grey value of the foreground in "binary:128"; None in "binary".

    Raises:
        UserError: it is no grey value above 0.
    """
    word = classes.partition(":")[2].strip()
    if not word and ":" not in classes:
        return None
    if not word.isdecimal() or not 1 <= int(word) <= HIGHEST:
        raise UserError(
            f"--classes {classes}: the threshold is the first grey value of the foreground, "
            f"1 to {HIGHEST}, as in binary:128"
        )
    return int(word)


def _to_8_bit_scale(one: Survey) -> Array:
    deep = one.top > 255 and len(one.values) > 2
    return np.where(one.values > 0, one.values >> 8, one.values) if deep else one.values


def _cut(surveys: list[Survey], summed: Total) -> tuple[int, str]:
    """Return the first value of the foreground of soft masks, and a note.

    Raises:
        UserError: the masks do not show it.
    """
    found = heaps(summed)
    if len(summed.values) <= FEW_VALUES and not found.clear:
        # Too small to tell anything by the way it is drawn.
        return 1, ""
    if not found.clear or found.unclear or found.levels[0] > NOISE:
        raise UserError(
            f"--classes binary: the masks hold {len(summed.values)} grey values that do not show "
            "where black ends and the foreground begins; say so with --classes binary:THRESHOLD, "
            "as in binary:128"
        )
    first = (found.levels[0] + found.levels[1] + 1) // 2
    return first, _soft_note(surveys, found) + f"; foreground from {first} on"


def _of_objects(agreed: Agreed, whole: bool) -> tuple[ClassTable, tuple[str, ...]]:
    """Return background and foreground of masks that number objects.

    Args:
        agreed: the masks.
        whole: whether a mask may be objects from edge to edge.

    Raises:
        UserError: there is no background.
    """
    found = [s.objects for s in agreed.surveys if s.objects.values]
    number = sum(one.values for one in found)
    grounds = {one.background for one in found}
    if whole and grounds <= {None, 0, BLACK}:
        grounds = {0}
    if None in grounds or len(grounds) > 1:
        raise UserError(
            f"each of the {number} values of the masks is one region, so they number "
            "objects, but there is no background around them that is the same in all masks; draw "
            "one (0), or name classes in classes.yaml"
        )
    ground = grounds.pop()
    table = replace(binary_table(), instances=True)
    if ground is not None and ground not in (0, BLACK):
        kind = "color" if ground > BLACK else "index"
        around = show(ground, "color") if kind == "color" else ground
        dark = MaskClass(0, "background", (around,))
        table = replace(table, kind=kind, classes=(dark, table.classes[1]))
    ignored: tuple[int, ...] = agreed.ignored
    border = [s for s in agreed.surveys if s.objects.void]
    notes = [
        f"the masks number {number} objects, each value one region: all are one class, "
        "foreground; names for the values in classes.yaml would make classes of them"
    ]
    if border:
        ignored = (*ignored, VOID)
        notes.append(f"{files([s.path for s in border])}: 255 beside object numbers is ignored")
    if ignored:
        table = replace(table, ignore_values=ignored)
    return counted(table, agreed.surveys), (*agreed.notes, *notes)


def _named(agreed: Agreed, classes: str | None) -> bool:
    """Whether ``--classes`` gives a name to each of three or more values: they are classes."""
    values = total(list(agreed.surveys)).values
    return classes is not None and len(_words(classes)) == len(values) > 2


def _of_numbers(agreed: Agreed, names: str | None) -> tuple[ClassTable, tuple[str, ...]]:
    agreed = conventions.one_scale(agreed)
    masks = [
        s.renumbered(np.where(np.isin(s.values, agreed.ignored), -1, s.values))
        for s in agreed.surveys
    ]
    summed = total(masks)
    values = summed.values.tolist()
    notes = list(agreed.notes)
    base = ClassTable(
        "index",
        (),
        agreed.ignored,
        alpha=agreed.alpha,
        palette=agreed.palette,
        any_white=agreed.any_white,
    )
    if is_soft(summed):
        table, note = _soft(base, masks, summed)
        if table is not None:
            return counted(table, agreed.surveys), (*notes, note)
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"the masks hold {len(values)} grey values ({shown(values)}); these are no class "
            f"numbers, {NAME_THEM}; where they number objects, --classes binary"
        )
    line = line_between(summed)
    if line is not None:
        notes.append(
            f"grey value {line} lies in thin lines between others and is a class; where it is "
            "their soft edge, --classes binary"
        )
    notes += conventions.never_together(masks, "index")
    numbering = "" if names else may_number([s.objects for s in agreed.surveys])
    if numbering == "likely":
        raise UserError(
            f"each of the values {shown(values[1:] if values[0] == 0 else values)} is one region "
            "in every mask: where they number objects, --classes binary; where they are classes, "
            f"give a name to each of the {len(values)}, 0 first: --classes a,b,c"
        )
    if numbering:
        notes.append(
            "each class is one region in every mask; where the values number objects, "
            "--classes binary"
        )
    known = {0: "background", 1: "foreground"} if len(values) == 2 else {}
    table = replace(base, classes=_classes([(v,) for v in values], known))
    return counted(table, agreed.surveys), tuple(notes)


def _of_colors(agreed: Agreed) -> tuple[ClassTable, tuple[str, ...]]:
    summed = total(list(agreed.surveys))
    values = summed.values.tolist()
    base = ClassTable("color", (), agreed.ignored, alpha=agreed.alpha, any_white=agreed.any_white)
    over = _drawn_over(values)
    if over is not None:
        labels: list[tuple[Value, ...]] = [(), *((show(c, "color"),) for c in over)]
        table = replace(base, classes=_classes(labels, {0: "matrix"}), rest_index=0)
        note = "the masks are drawn over the micrograph; what shows through is class 0"
        return counted(table, agreed.surveys), (*agreed.notes, note)
    if len(values) > FEW_VALUES and is_soft(summed):
        soft, note = _soft(base, list(agreed.surveys), summed)
        if soft is not None:
            return counted(soft, agreed.surveys), (*agreed.notes, note)
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"the masks hold {len(values)} colours; these are no class colours, name the classes "
            "in classes.yaml; where they number objects, --classes binary"
        )
    notes = conventions.never_together(agreed.surveys, "color")
    table = replace(base, classes=_classes([(show(v, "color"),) for v in values], {}))
    return counted(table, agreed.surveys), (*agreed.notes, *notes)


def _drawn_over(values: list[int]) -> list[int] | None:
    """Return the pure colours that lie over a micrograph; None where the masks are no such."""
    saturated = [c for c in values if _is_pure(c)]
    others = [c for c in values if not _is_pure(c)]
    grays = [c for c in others if _is_gray(c)]
    return saturated if saturated and len(grays) > 16 and len(grays) == len(others) else None


def _soft(
    base: ClassTable, masks: Sequence[Survey], summed: Total
) -> tuple[ClassTable | None, str]:
    """Return the table of soft masks, and a note; None where nothing is drawn in them.

    Raises:
        UserError: their heaps are not clear.
    """
    found = heaps(summed)
    few = len(summed.values) <= FEW_VALUES
    if few and not found.clear:
        return None, ""
    names = {0: "background", 1: "foreground"} if len(found.levels) == 2 else {}
    values: list[tuple[Value, ...]]
    values = [(v if base.kind == "index" else show(v, "color"),) for v in found.levels]
    table = replace(base, classes=_classes(values, names), snap=HALF_WAY)
    if not found.clear or found.unclear or len(found.levels) > MAX_CLASSES:
        raise _not_clear(base.kind, summed, found)
    if len(found.levels) > 2 and (
        between_levels(summed, found.levels) > MOST_BETWEEN
        or not edges_are_few(masks, table.decode, len(found.levels), base.kind)
    ):
        what = "colours" if base.kind == "color" else "values"
        remedy = NO_MIXTURES
        if base.kind == "index":
            remedy = f"{NAME_THEM}, or save them without soft edges"
        raise UserError(
            f"the masks are soft: between {shown(list(found.levels), base.kind)} lie {what} whose "
            f"class is not clear, since the edge of two classes has the colour of a third; {remedy}"
        )
    if len(found.levels) == 2:
        conventions.refuse_numbers_beside_white(masks)
    return table, _soft_note(masks, found, base.kind)


def _not_clear(kind: str, summed: Total, found: Heaps) -> UserError:
    values = list(found.unclear) or summed.values.tolist()
    colored = kind == "color"
    what, remedy = ("colours", NO_MIXTURES) if colored else ("grey values", NAME_THEM)
    if found.unclear and found.clear:
        return UserError(
            f"the masks hold {what} far from every class: {shown(values, kind)}; {remedy}"
        )
    return UserError(
        f"the masks hold {len(summed.values)} {what} ({shown(values, kind)}), not in clear heaps; "
        f"{remedy}, or --classes binary:THRESHOLD where what is bright is one class"
    )


def _soft_note(masks: Sequence[Survey], found: Heaps, kind: str = "index") -> str:
    known = set(found.strays)
    holding = [(s, known & set(s.values.tolist())) for s in masks]
    holding = [(s, own) for s, own in holding if own]
    # A clean mask among them may have a level of its own, a step from theirs.
    soft = [(s, own) for s, own in holding if s.lossy or len(s.values) > len(found.levels)]
    soft = soft or holding
    number = len(set().union(*(own for _, own in soft)))
    what = "colour" if kind == "color" else "grey value"
    return (
        f"{files([s.path for s, _ in soft])}: {wording.counted(number, f'stray {what}')} "
        f"({100 * found.share:.2f} % of the pixels are more than {NOISE} off), as JPEG, resizing "
        "or soft edges leave them, "
        f"are cut half-way between {shown(list(found.levels), kind)}"
    )


def _classes(values: Sequence[tuple[Value, ...]], names: dict[int, str]) -> tuple[MaskClass, ...]:
    return tuple(MaskClass(i, names.get(i, f"class {i}"), v) for i, v in enumerate(values))


def _renamed(table: ClassTable, names: str) -> ClassTable:
    words = _words(names)
    if len(words) != table.num_classes or len(set(words)) != len(words):
        raise UserError(
            f"--classes names {len(words)} classes ({', '.join(words)}), the masks hold "
            f"{table.num_classes} ({', '.join(table.names)}); give one distinct name each"
        )
    classes = tuple(replace(c, name=w) for c, w in zip(table.classes, words, strict=True))
    return replace(table, classes=classes)


def _words(names: str) -> list[str]:
    return [word.strip() for word in names.split(",") if word.strip()]


def _is_pure(code: int) -> bool:
    """Whether a colour is fully saturated: only 0 and 255, not black or white."""
    return code >= COLOR and {(code >> shift) & 255 for shift in (16, 8, 0)} == {0, 255}


def _is_gray(code: int) -> bool:
    return ((code >> 16) & 255) == ((code >> 8) & 255) == (code & 255)
