"""How a loop begins: which classes there are, the first masks, and the images that are frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted
from matssl.data import layouts, masks, readers, specimens
from matssl.data.layouts import Dataset, Pair, naming
from matssl.data.masks import ClassTable
from matssl.data.specimens import MIN_IMAGES_TO_SPLIT
from matssl.loop import corrected, models
from matssl.loop.classes import Classes, agreed
from matssl.loop.context import Context, said
from matssl.loop.pictures import key_for
from matssl.loop.settings import NONE
from matssl.loop.state import Label, Picture

VALIDATION, TEST = "validation", "test"
# What --labelled calls its splits.
SPLITS = {VALIDATION: "val", TEST: "test"}


def settle_classes(ctx: Context) -> bool:
    """Settle the classes where they can be; return whether they were.

    Raises:
        UserError: the first masks do not tell them, or they are not the model's.
    """
    if ctx.state.classes is not None:
        return False
    known = models.table_of(ctx.settings.model) if ctx.settings.model else None
    found, told = _found(ctx, known is None)
    if known is None and found is None:
        return False
    table = known or found
    where = "of the model"
    if found is not None:
        table = found if known is None else agreed(known, found)
        where = told
    assert table is not None
    classes = Classes.settled(table)
    atomic_write_text(ctx.places.home / "classes.yaml", classes.text)
    ctx.write("classes", **classes.stored(), said=where)
    listed = ", ".join(f"{c.name} = {c.values[0]}" for c in classes.table.classes)
    ctx.say(f"classes   {listed}, not labelled = {classes.table.ignore_values[0]} ({where})")
    return True


def _found(ctx: Context, alone: bool) -> tuple[ClassTable | None, str]:
    """Return the table of the first masks, and which these are; None without enough of them.

    Args:
        ctx: of the loop.
        alone: whether nothing else tells the classes.
    """
    if ctx.settings.labelled:
        return _labelled(ctx).table, "found from the masks of --labelled"
    usable = [one for one in corrected.new_files(ctx)[0] if one.picture and not one.reason]
    came = [one.path for one in usable if one.drawing is None]
    if alone and usable and not came:
        raise UserError(
            f"{usable[0].file} is an annotation file, and the first masks tell what the classes "
            "are: python -m matssl.tools.annotations import makes masks of it, for --labelled"
        )
    if len(came) < MIN_IMAGES_TO_SPLIT or not alone:
        return None, ""
    table, _ = masks.find_table(came, ctx.settings.classes, ctx.places.corrected)
    return table, f"found from {counted(len(came), 'mask')} in corrected"


def _labelled(ctx: Context) -> Dataset:
    given = ctx.settings
    return layouts.find(
        str(given.labelled),
        classes=given.classes,
        group_regex=given.group_regex,
        specimens=given.specimens,
        pixel_size=given.pixel_size,
        seed=given.seed,
    )


def take_labelled(ctx: Context) -> bool:
    """Take in the masks of ``--labelled``, once; return whether it was done now."""
    state = ctx.state
    if not ctx.settings.labelled or state.classes is None or state.splits is not None:
        return False
    dataset = _labelled(ctx)
    pairs = [pair for pair in dataset.pairs if pair.mask is not None]
    taken, refused = _stored(ctx, pairs, ctx.classes)
    named = dataset.cut.kind == "named"
    names = {pair.image: ctx.places.name(pair.image) for pair in pairs}
    splits = {names[p.image]: p.split for p in pairs} if named else {}
    rows = [{**label.stored(), "changed": None} for label in taken]
    ctx.write("labels", taken=rows, files={}, refused=refused, splits=splits)
    ctx.say(f"labelled  {counted(len(taken), 'first mask')} of --labelled")
    for file, why in refused.items():
        ctx.warn(f"{file} is not used: {why}")
    return True


def _stored(
    ctx: Context, pairs: Sequence[Pair], classes: Classes
) -> tuple[list[Label], dict[str, str]]:
    """Return pairs of a labelled folder as labels, and those that cannot be used."""
    taken: list[Label] = []
    refused = {}
    keys = {p.key for p in ctx.state.pictures.values()}
    keys |= {label.key for label in ctx.state.versions.values()}
    for pair in pairs:
        assert pair.mask is not None
        name = ctx.places.name(pair.image)
        key = ctx.state.key_of(name) or key_for(name, keys)
        keys.add(key)
        inside = not name.startswith("../")
        try:
            decoded = classes.decode(readers.read_mask(pair.mask), str(pair.mask))
            picture = Picture(name, key, "")
            file, group = ctx.places.name(pair.mask), None if inside else pair.group
            taken.append(corrected.stored(ctx, picture, pair.image, decoded, file, group))
        except UserError as error:
            refused[ctx.places.name(pair.mask)] = ctx.places.plain(said(error))
    return taken, refused


def freeze(ctx: Context) -> bool:
    """Freeze validation and test images where that can be done; return whether it was done now.

    Raises:
        UserError: what is given does not fit, or nothing is left to validate on.
    """
    ledger, before = ctx.ledger, len(ctx.ledger.lines)
    if ledger.frozen(VALIDATION) is None:
        given = ctx.settings
        test: list[str] | None = None
        if given.validation:
            chosen, inside, told = _given(ctx, str(given.validation), "--validation")
        elif ctx.state.splits and SPLITS[VALIDATION] in ctx.state.splits.values():
            chosen, inside, told = _of_split(ctx, VALIDATION), False, "of --labelled"
        else:
            found = _cut(ctx, wanted=given.test is None)
            if found is None:
                return False
            chosen, tests, inside, told = found
            test = [label.name for label in tests]
        _check_judges(ctx, chosen)
        ledger.freeze(
            VALIDATION,
            [label.name for label in chosen],
            labels=[label.stored() for label in chosen],
            inside=inside,
            said=told,
            test=test,
        )
        ctx.took(before)
        _tell(ctx, VALIDATION, chosen, told)
    if ledger.frozen(TEST) is None:
        before = len(ledger.lines)
        tested, told = _tested(ctx)
        ledger.freeze(
            TEST,
            [label.name for label in tested],
            labels=[label.stored() for label in tested],
            said=told,
        )
        ctx.took(before)
        _tell(ctx, TEST, tested, told)
    return len(ledger.lines) > before


def _check_judges(ctx: Context, labels: Sequence[Label]) -> None:
    """Refuse validation images that could not judge a model.

    Raises:
        UserError: there are none, or they hold one class alone.
    """
    found: set[int] = set()
    for label in labels:
        path = ctx.places.store / label.mask
        found |= set(np.unique(ctx.classes.decode(readers.read_mask(path), str(path))).tolist())
    found.discard(IGNORE)
    if len(found) < 2:
        held = f"hold {ctx.classes.names[found.pop()]} alone" if found else "are none"
        raise UserError(
            f"the {counted(len(labels), 'validation image')} {held} and cannot judge a model; give "
            "others with --validation"
        )


def _tell(ctx: Context, part: str, labels: Sequence[Label], told: str) -> None:
    groups = set(ctx.specimens_of(labels).values())
    ctx.say(
        f"frozen    {part}: {counted(len(labels), 'image')} of {counted(len(groups), 'specimen')}"
        f", {told}"
    )


def _tested(ctx: Context) -> tuple[list[Label], str]:
    """Return the test images, and in words where they come from."""
    given = ctx.settings.test
    if given and given != NONE:
        chosen, _, told = _given(ctx, given, "--test")
        return chosen, told
    line = next(line for line in ctx.ledger.lines if line.facts.get("part") == VALIDATION)
    if given == NONE:
        return [], "as --test says"
    if line.facts.get("test") is not None:
        return [ctx.state.labels[name] for name in line.facts["test"]], str(line.facts["said"])
    if ctx.state.splits and SPLITS[TEST] in ctx.state.splits.values():
        return _of_split(ctx, TEST), "of --labelled"
    return [], "since nothing names any (--test)"


def _of_split(ctx: Context, part: str) -> list[Label]:
    splits: Mapping[str, str] = ctx.state.splits or {}
    return [x for x in ctx.state.labels.values() if splits.get(x.name) == SPLITS[part]]


def _given(ctx: Context, path: str, flag: str) -> tuple[list[Label], bool, str]:
    """Return the images of a labelled folder, or those that a list names.

    Raises:
        UserError: the folder has other classes, or no labelled picture has a name of the list.
    """
    if not Path(path).is_dir():
        return _listed(ctx, Path(path), flag), False, f"as {flag} lists them"
    own = ctx.settings
    dataset = layouts.find(path, classes=own.classes, group_regex=own.group_regex, seed=own.seed)
    assert dataset.table is not None
    try:
        table = agreed(ctx.classes.table, dataset.table)
    except UserError:
        table = agreed(ctx.classes.found, dataset.table)
    pairs = [pair for pair in dataset.pairs if pair.mask is not None]
    taken, refused = _stored(ctx, pairs, replace(ctx.classes, found=table))
    if refused:
        file, why = next(iter(refused.items()))
        raise UserError(f"{flag} {path}: {file}: {why}")
    return taken, False, f"of {flag}"


def _listed(ctx: Context, path: Path, flag: str) -> list[Label]:
    by_name: dict[str, Label] = {}
    for label in ctx.state.labels.values():
        file = Path(label.name)
        for name in (label.name, file.name, naming.stem(file)):
            by_name.setdefault(name, label)
    chosen = []
    for line in textfiles.read_lines(path):
        if line not in by_name:
            raise UserError(
                f"{flag} {path} names {line}, which is no labelled picture yet; give its mask, or "
                "take the line out"
            )
        chosen.append(by_name[line])
    if not chosen:
        raise UserError(f"{flag} {path} names no picture")
    return list(dict.fromkeys(chosen))


def _cut(ctx: Context, wanted: bool) -> tuple[list[Label], list[Label], bool, str] | None:
    """Return validation and test images cut by specimen; None while too few are labelled.

    Args:
        ctx: of the loop.
        wanted: whether test images are cut, too.

    Raises:
        UserError: the model has seen them all.
    """
    labels = list(ctx.state.labels.values())
    if len(labels) < MIN_IMAGES_TO_SPLIT:
        return None
    seen = models.digests_of(ctx.settings.model) if ctx.settings.model else frozenset()
    unseen = [label for label in labels if label.pixels not in seen]
    if len(unseen) < 2:
        raise UserError(
            f"--model was trained on {len(labels) - len(unseen)} of the {len(labels)} first "
            "labelled pictures, which cannot judge it; give others with --validation"
        )
    groups = ctx.specimens_of(labels)
    inside = len({groups[label.name] for label in unseen}) < 2
    by_path = {Path(label.name): label for label in unseen}
    pairs = [
        Pair(path, path, label.name if inside else groups[label.name], "")
        for path, label in by_path.items()
    ]
    seed = ctx.settings.seed
    drawn = specimens.cut_all(pairs, seed) if wanted else []
    if not any(pair.split == SPLITS[VALIDATION] for pair in drawn):
        # Of two specimens one trains and one validates.
        train, val = specimens.cut_validation(pairs, 0.2, seed)
        drawn = [*train, *val]
    parts = {
        split: [by_path[pair.image] for pair in drawn if pair.split == split]
        for split in SPLITS.values()
    }
    told = f"cut by specimen with seed {seed} from {counted(len(labels), 'labelled picture')}"
    if inside:
        told += " of one specimen: too good for others"
    return parts["val"], parts["test"], inside, told


def trainable(ctx: Context) -> list[Label]:
    """Return the labels that models may learn from: no frozen image, copy or specimen of one."""
    frozen = [label for part in ctx.state.frozen.values() for label in part]
    pixels = {label.pixels for label in frozen}
    held = ctx.held_out()
    kept: set[str] = set()
    groups = ctx.specimens_of([*ctx.state.labels.values(), *frozen])
    if not ctx.state.inside:
        kept = {groups[label.name] for label in frozen}
    return [
        label
        for label in ctx.state.labels.values()
        if label.name not in held and label.pixels not in pixels and groups[label.name] not in kept
    ]
