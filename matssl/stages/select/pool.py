"""Which pictures may be chosen, and why the others are not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from matssl import preflight
from matssl.core.errors import UserError
from matssl.core.ledger import FREEZE, PARTS, Ledger
from matssl.core.wording import counted
from matssl.data import layouts, readers
from matssl.data.layouts import DATA_LAYOUTS, Dataset
from matssl.data.layouts.pairing import Found
from matssl.data.layouts.splits import apply_splits
from matssl.data.preprocess import Preprocess
from matssl.stages.select.settings import SelectSettings

# Splits of a data set and the part of a ledger they are frozen as.
FROZEN = {"val": "validation", "test": "test"}
SELECT = "select"
# A folder with more unreadable files than this share is looked at before anything is done.
MAX_BROKEN = 0.1


@dataclass(frozen=True)
class Kept:
    """A picture that is not chosen.

    Attributes:
        path: of it.
        why: in words.
    """

    path: Path
    why: str


@dataclass(frozen=True)
class Pool:
    """What there is to choose from.

    Attributes:
        root: the folder.
        paths: pictures that may be chosen.
        specimens: of each of them.
        kept: pictures that may not.
        labelled: pictures with a label that are learned from, for what is far from them.
        frozen: validation and test pictures, for copies of them.
        parts: names of the pictures to freeze by part, as paths from their folder.
        home: folder of these.
        digests: of pixels that are never chosen, and why.
        record: how pictures are read, with what is known of all bars.
        facts: of the pool in words.
        notes: what else was noticed.
    """

    root: Path
    paths: tuple[Path, ...]
    specimens: tuple[str, ...]
    kept: tuple[Kept, ...]
    labelled: tuple[Path, ...]
    frozen: tuple[Path, ...]
    parts: Mapping[str, tuple[str, ...]]
    home: Path
    digests: Mapping[str, str]
    record: Preprocess
    facts: str
    notes: tuple[str, ...] = ()

    def name(self, path: Path) -> str:
        """Return the name of a picture in tables and in the ledger: its path from the folder."""
        return relative(path, self.root)

    @property
    def tally(self) -> str:
        """In words, how many pictures may not be chosen, and why."""
        counts = Counter(item.why.split(":")[0] for item in self.kept)
        return ", ".join(f"{number} {why}" for why, number in counts.most_common())


@dataclass
class _Known:
    """What is known before the pool is looked at."""

    labelled: list[Path] = field(default_factory=list)
    frozen: dict[Path, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def relative(path: Path, root: Path) -> str:
    """Return a path from a folder, with /; of one elsewhere the whole path.

    Links are not followed: a picture is called as it is in the folder.
    """
    own, home = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return (own.relative_to(home) if own.is_relative_to(home) else own).as_posix()


def _refuse_stacks(images: Sequence[Path]) -> None:
    """Refuse stacks, of which one page alone would be looked at.

    Raises:
        UserError: it names the first.
    """
    for path in images:
        if (pages := readers.alike(path)) > 1:
            raise UserError(
                f"{path} has {pages} pages, and pictures are chosen; save each page as a file "
                "(ImageJ: File > Save As > Image Sequence), or --page N takes page N of every stack"
            )


def gather(
    settings: SelectSettings,
    record: Preprocess,
    ledger: Ledger,
    trained: Mapping[str, frozenset[str]],
) -> Pool:
    """Return the pictures of the pool that may be chosen.

    Args:
        settings: of the command.
        record: how the model reads pictures.
        ledger: with what earlier rounds froze and proposed.
        trained: paths ("images") and digests of pixels ("digests") that the model learned from.

    Raises:
        UserError: nothing is left, or more than a tenth cannot be read.
    """
    root = Path(settings.pool)
    pool = _found(settings, root)
    if settings.page is None:
        _refuse_stacks([pair.image for pair in pool.pairs])
    known = _Known()
    home = root
    if settings.labelled is not None:
        home = Path(settings.labelled)
        _take(known, layouts.find(home, splits=settings.splits, opened=()), home, record)
    elif settings.splits is not None:
        # A list of splits names some pictures; the others are what may be chosen.
        parts = apply_splits(
            [Found(pair.image, pair.mask, "") for pair in pool.pairs], Path(settings.splits), root
        )[0]
        _freeze(known, [(item.image, item.split) for item in parts], root)
    elif pool.cut.kind == "named":
        _freeze(known, [(pair.image, pair.split) for pair in pool.pairs], root)
    _remembered(known, ledger, home)
    known.labelled += [Path(path) for path in sorted(trained["images"]) if Path(path).is_file()]
    learned = {Path(path).resolve() for path in known.labelled}
    held = {path.resolve(): why for path, why in known.frozen.items()}
    proposed = {} if settings.again else _proposed(ledger)
    good: list[Path] = []
    kept: list[Kept] = []
    own: list[Path] = []
    for pair in pool.pairs:
        path, name = pair.image, relative(pair.image, root)
        why = held.get(path.resolve()) or known.names.get(name, "")
        if not why and (pair.mask is not None or path.resolve() in learned):
            why = "labelled already"
            own.append(path)
        why = why or proposed.get(name, "")
        if why:
            kept.append(Kept(path, why))
        else:
            good.append(path)
    known.digests |= dict.fromkeys(
        trained["digests"], "labelled already: the model learned from it"
    )
    if not good:
        told = Pool(root, (), (), tuple(kept), (), (), {}, home, {}, record, "").tally
        raise UserError(
            f"no picture of {root} is left to choose from ({told}); --again takes what was proposed"
        )
    grouping = dict(zip((p.image for p in pool.pairs), pool.grouping.names, strict=True))
    own_grouping = replace(pool.grouping, names=tuple(grouping[path] for path in good))
    record = record.told(pool.grouping.pixel_sizes)
    examined = preflight.examine(
        str(root), {"images": good}, record, left_out=pool.left_out, grouping=own_grouping
    )
    broken = {fact.path: fact.error for fact in examined.facts if fact.error}
    if len(broken) > MAX_BROKEN * len(good):
        first = next(iter(broken.values()))
        raise UserError(
            f"{len(broken)} of {len(good)} images in {root} cannot be read (first: {first})"
        )
    kept += [Kept(path, f"unreadable: {error}") for path, error in broken.items()]
    good = [path for path in good if path not in broken]
    labelled = dict.fromkeys(path.resolve() for path in [*known.labelled, *own])
    return Pool(
        root,
        tuple(good),
        tuple(grouping[path] for path in good),
        tuple(kept),
        tuple(labelled),
        tuple(known.frozen),
        known.parts,
        home,
        known.digests,
        examined.record,
        examined.text(),
        tuple(known.notes),
    )


def _found(settings: SelectSettings, root: Path) -> Dataset:
    """Return the pictures of the pool with the masks that some of them have.

    A training set whose folder of masks is half full is refused; a pool is just that.
    """
    holding = {place for one in DATA_LAYOUTS.values() for place in one.no_micrographs(root)}
    try:
        return _read(settings, root, settings.mask_folder)
    except UserError:
        if settings.mask_folder is not None or len(holding) != 1:
            raise
        return _read(settings, root, relative(holding.pop(), root))


def _read(settings: SelectSettings, root: Path, mask_folder: str | None) -> Dataset:
    return layouts.find(
        root,
        group_regex=settings.group_regex,
        specimens=settings.specimens,
        pixel_size=settings.pixel_size,
        seed=settings.seed,
        need_masks=False,
        mask_folder=mask_folder,
        opened=(),
    )


def _take(known: _Known, labelled: Dataset, home: Path, record: Preprocess) -> None:
    """Take the images of a labelled data set: those learned from, and those to freeze."""
    if labelled.cut.automatic:
        known.notes.append(
            f"nothing names the splits of {home}: none of its images is frozen; splits.csv or "
            "--splits names validation and test images"
        )
    for pair in labelled.pairs:
        part = FROZEN.get(pair.split) if labelled.cut.kind == "named" else None
        digest = readers.digest(record.frame(pair.image).pixels)
        if part is None and pair.mask is not None:
            known.labelled.append(pair.image)
            known.digests[digest] = f"labelled already: as {relative(pair.image, home)}"
        elif part is not None:
            known.digests[digest] = f"frozen {part} image: as {relative(pair.image, home)}"
    if labelled.cut.kind == "named":
        _freeze(known, [(pair.image, pair.split) for pair in labelled.pairs], home)


def _freeze(known: _Known, images: Sequence[tuple[Path, str]], home: Path) -> None:
    """Take the images of validation and test: of each its path and its split."""
    for split, part in FROZEN.items():
        paths = [path for path, own in images if own == split]
        known.frozen |= {path: f"frozen {part} image" for path in paths}
        if paths:
            known.parts[part] = tuple(relative(path, home) for path in paths)


def _remembered(known: _Known, ledger: Ledger, home: Path) -> None:
    """Take what a ledger froze: its list stands, whatever the splits say today."""
    for part in PARTS:
        held = ledger.frozen(part)
        if held is None:
            continue
        known.names |= {name: f"frozen {part} image" for name in held}
        new = sorted(set(known.parts.get(part, ())) - set(held))
        if new:
            known.notes.append(
                f"{counted(len(new), f'{part} image')} of {home} came after the {part} set was "
                f"frozen (first: {new[0]}): not chosen, and not in the frozen set"
            )
        known.parts.pop(part, None)
        known.frozen |= {
            home / name: f"frozen {part} image" for name in held if (home / name).is_file()
        }
    for line in ledger.of(FREEZE):
        digests = line.facts.get("digests")
        if isinstance(digests, list):
            told = f"frozen {line.facts.get('part')} image: a file of the same pixels"
            known.digests |= {str(digest): told for digest in digests}


def _proposed(ledger: Ledger) -> dict[str, str]:
    """Return the names of whole pictures that earlier rounds proposed."""
    found = {}
    for line in ledger.of(SELECT):
        number = line.facts.get("round")
        for image in _images(line.facts.get("images")):
            # Of regions the others of the picture may still be chosen.
            if not image.get("box"):
                found[str(image.get("image"))] = f"proposed before: round {number}"
    return found


def proposed_regions(ledger: Ledger) -> set[tuple[str, tuple[int, ...]]]:
    """Return pictures and boxes (top, left, height, width) that earlier rounds proposed."""
    found = set()
    for line in ledger.of(SELECT):
        for image in _images(line.facts.get("images")):
            box = image.get("box")
            if isinstance(box, list):
                found.add((str(image.get("image")), tuple(map(int, box))))
    return found


def _images(value: object) -> Sequence[Mapping[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
