"""What a folder holds and what is wrong with it, on one screen, before a run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.machine import free_memory
from matssl.core.wording import counted
from matssl.data import bars, copies, quality, readers
from matssl.data.bars import Judged
from matssl.data.copies import Copy, Finder, Sketch
from matssl.data.facts import POOL, Duplicate, Facts, copies_told, leaking, table
from matssl.data.layouts import Dataset, LeftOut, content, survey
from matssl.data.layouts.content import Holds, Size
from matssl.data.layouts.survey import CLOSED, MASKS_ELSEWHERE
from matssl.data.levels import shrunk
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.data.quality import Outlier, Quality
from matssl.data.specimens import Grouping, one_left

# Larger pictures are looked at smaller, so that a look needs no copy of them.
LARGEST_LOOKED_AT = 8192
LISTED = 4


@dataclass(frozen=True)
class Preflight:
    """Facts of all files and what follows from them.

    ``record`` reads them as they were judged together; ``as_training``: every mask was read as
    training will.
    """

    title: str
    facts: tuple[Facts, ...]
    duplicates: tuple[Duplicate, ...]
    dataset: Dataset | None
    groups_across: tuple[str, ...]
    unopened: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    grouping: Grouping | None = None
    judged: Judged = Judged({})
    record: Preprocess = Preprocess()
    as_training: bool = False

    @property
    def broken(self) -> tuple[Facts, ...]:
        """Files that cannot be read."""
        return tuple(f for f in self.facts if f.error)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why training would refuse the labelled images, where that was asked (``as_training``)."""
        if not self.as_training or self.dataset is None or self.dataset.table is None:
            return ()
        labelled = [f for f in self.facts if f.mask is not None]
        told = [f.error or f.misread for f in labelled if f.error or f.misread]
        if not any(pair.split == "train" and pair.mask for pair in self.dataset.pairs):
            splits = ", ".join(self.dataset.splits)
            told.append(f"no image is for training (splits: {splits}); name them with --splits")
        return tuple(told)

    @property
    def may_be_masks(self) -> tuple[str, ...]:
        """Pictures that are taken for micrographs and look like masks of the others, in words."""
        flat = [f for f in self.facts if f.flat]
        others = {f.shape for f in self.facts if not f.error and not f.flat}
        if others:
            flat = [f for f in flat if any(Size(*f.shape).fits(Size(*size)) for size in others)]
        if not flat:
            return ()
        number = counted(len(flat), "micrograph holds", "micrographs hold")
        return (
            f"{number} few flat values, as masks do (first: {flat[0].path.name}): if masks are "
            "meant, take them out, call their folder masks, or name it with --mask_folder",
        )

    @property
    def qualities(self) -> tuple[dict[Path, Quality], dict[Path, str]]:
        """Measures of the pictures, and the group in which each is compared.

        The pictures of a data set are one group; those of a pool are compared folder by folder.
        """
        known = {f.path: f.quality for f in self.facts if f.quality is not None}
        loose = (POOL, "predict", "images")
        group = {f.path: str(f.path.parent) if f.split in loose else "" for f in self.facts}
        return known, {path: group[path] for path in known}

    @cached_property
    def outliers(self) -> dict[Path, tuple[Outlier, ...]]:
        """Pictures that are less sharp, noisier or of other contrast than their like."""
        return quality.standing_out(*self.qualities)

    @property
    def exit_code(self) -> int:
        """What the doctor answers: 2 where training would refuse, 1 where a look is needed."""
        if self.refusals:
            return 2
        closed = any(part.why in (CLOSED, MASKS_ELSEWHERE) for part in self.left_out)
        look = self.broken or self.leaks or self.groups_across or self.judged.warnings
        return int(bool(look or closed or self.may_be_masks))

    def files(self, root: Path, most: int | None = None) -> str:
        """Return a table with a line for each file; see :func:`matssl.data.facts.table`."""
        return table(self.facts, root, most, None if self.dataset is None else self.dataset.made)

    def text(self) -> str:
        """Return the screen."""
        good = [f for f in self.facts if not f.error]
        lines = [self.title]
        counts = Counter(f.split for f in self.facts)
        parts = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"  images       {len(self.facts)} ({parts})")
        if self.unopened:
            left = ", ".join(f"{name} {count}" for name, count in self.unopened.items())
            lines.append(f"  not opened   {left}")
        if good:
            shapes = Counter(f.shape for f in good)
            lines.append(
                f"  sizes        {_tally({f'{w} x {h}': n for (h, w), n in shapes.items()})}"
            )
            bits = Counter(f"{f.bits} bit" for f in good)
            lines.append(f"  depth        {_tally(bits)}")
            bars = Counter(f.bar for f in good if f.bar)
            bar = _tally({f"{rows} rows": n for rows, n in bars.items()}) if bars else "none found"
            lines.append(f"  bar cut off  {bar}")
            lines += [f"  warning      {told}" for told in self.judged.warnings]
            lines += [f"  warning      {told}" for told in self.may_be_masks]
            sizes = Counter(f.calibrated for f in good)
            lines.append(f"  pixel size   {_tally(sizes)}")
        lines += quality.told(*self.qualities)
        lines += [f"  note         {note}" for note in _summarised(good)]
        if self.grouping is not None:
            lines.append(f"  specimens    {self.grouping.text}")
            notes = self.grouping.notes if self.dataset is None else ()
            lines += [f"  note         {note}" for note in notes]
        if self.grouping is not None and (self.record.depth > 1 or self.grouping.sequences.frames):
            lines.append(f"  sequences    {self.grouping.sequences.text(self.record.depth)}")
        if self.dataset is not None:
            lines += self._labels(self.dataset)
        lines += [f"  note         {told}" for told in self.judged.notes]
        if self.judged.misfits:
            number = counted(len(self.judged.misfits), "mask does", "masks do")
            lines.append(f"  misfit       {number} not fit the picture; training refuses this")
            lines += [f"               {told}" for told in self.judged.misfits.values()]
        if self.broken:
            lines.append(f"  unreadable   {len(self.broken)}")
            lines += [f"               {f.error}" for f in self.broken[:LISTED]]
        lines += copies_told(self.duplicates)
        free = free_memory()
        pixels = sum(f.shape[0] * f.shape[1] for f in good)
        if free is not None:
            lines.append(
                f"  memory       {pixels / 1e6:,.1f} Mpx of images; {free / 1e9:.1f} GB free"
            )
        lines += [f"  left out     {what}" for what in survey.told(self.left_out)]
        refused = self.refusals
        lines += [f"  refused      {told}" for told in refused[:LISTED]]
        if len(refused) > LISTED:
            lines.append(f"               and {len(refused) - LISTED} more")
        return "\n".join(lines)

    def _labels(self, dataset: Dataset) -> list[str]:
        lines = [f"  layout       {dataset.layout}"]
        lines += [f"  note         {note}" for note in dataset.notes]
        alone = one_left(dataset.pairs) if self.as_training else ""
        lines += [f"  note         {alone}"] if alone else []
        if dataset.table is not None:
            lines += ["  classes"] + ["  " + line for line in dataset.table.describe().splitlines()]
        if self.groups_across:
            shown = ", ".join(self.groups_across[:LISTED])
            more = " ..." if len(self.groups_across) > LISTED else ""
            lines.append(f"  warning      groups on both sides of a split: {shown}{more}")
        return lines

    @property
    def leaks(self) -> tuple[Duplicate, ...]:
        """Copies across splits that a test would suffer from."""
        return leaking(self.duplicates)


def examine(
    title: str,
    paths: Mapping[str, Sequence[Path]],
    record: Preprocess,
    dataset: Dataset | None = None,
    left_out: Sequence[LeftOut] = (),
    grouping: Grouping | None = None,
    masks: bool = False,
    looks: bool = False,
) -> Preflight:
    """Return what these files hold.

    Args:
        title: first line of the screen.
        paths: image files by split; "pool" for unlabelled ones.
        record: how bars are cut and pixel sizes given.
        dataset: for labels and groups, where there are masks.
        left_out: what lies beside them and is no micrograph.
        grouping: which specimen each image is of, where there is no ``dataset`` to say it.
        masks: whether every mask is read, too.
        looks: whether sharpness, noise and contrast are measured.
    """
    told = grouping if dataset is None else dataset.grouping
    of = _Others.of(paths, dataset, grouping)
    of = replace(of, table=of.table if masks else None, looks=looks)
    jobs = [(split, path) for split, files in paths.items() for path in files]
    facts, pairs = _read(jobs, of, record)
    judged = bars.judge((f.look for f in facts if f.look), record.crop_bottom)
    record = record.knowing(judged.rows)
    for number, fact in enumerate(facts):
        if fact.look and judged.rows.get(fact.path, fact.bar) != fact.bar:
            # What was not known when it was read alone.
            facts[number] = _facts(fact.path, fact.split, record, of)
    across: tuple[str, ...] = ()
    if dataset is not None:
        sides: dict[str, set[str]] = {}
        for pair in dataset.pairs:
            if pair.split != "predict":
                sides.setdefault(pair.group, set()).add(pair.split)
        across = tuple(sorted(name for name, splits in sides.items() if len(splits) > 1))
    duplicates = tuple((facts[i], facts[j], copy) for i, j, copy in pairs)
    return Preflight(
        title,
        tuple(facts),
        duplicates,
        dataset,
        across,
        left_out=tuple(left_out),
        grouping=told,
        judged=judged,
        record=record,
        as_training=masks,
    )


def examine_dataset(
    dataset: Dataset,
    record: Preprocess,
    pool: Sequence[Path] = (),
    opened: Sequence[str] | None = None,
    left_out: Sequence[LeftOut] = (),
    masks: bool = False,
    looks: bool = False,
) -> Preflight:
    """Return the preflight of a labelled folder, and of a pretraining pool beside it.

    Args:
        dataset: the folder.
        record: see :func:`examine`.
        pool: unlabelled images.
        opened: images of other splits are counted and not opened; all are when None.
        left_out: what lies beside the images of the pool and is no micrograph.
        masks: whether every mask is read too, as training will; stages that read them anyway say
            what is wrong with them themselves.
        looks: see :func:`examine`.
    """
    paths: dict[str, list[Path]] = {}
    for pair in dataset.pairs:
        paths.setdefault(pair.split, []).append(pair.image)
    unopened = {
        split: len(paths.pop(split)) for split in list(paths) if opened and split not in opened
    }
    if pool:
        paths[POOL] = list(pool)
    found = examine(
        str(dataset.root),
        paths,
        record,
        dataset,
        (*dataset.left_out, *left_out),
        None,
        masks,
        looks,
    )
    return replace(found, unopened=unopened)


def _read(
    jobs: Sequence[tuple[str, Path]], of: _Others, record: Preprocess
) -> tuple[list[Facts], list[tuple[int, int, Copy]]]:
    """Return the facts of all files, and the pairs of them in two splits that show one place.

    Pictures of the pool, or of the first split, are many: they are sought among the others one by
    one, and nothing is kept of them.
    """
    splits = list(dict.fromkeys(split for split, _ in jobs))
    many = POOL if POOL in splits else next(iter(splits), "")
    few = [i for i, (split, _) in enumerate(jobs) if split != many]
    sketches: dict[int, Sketch] = {}
    found: dict[int, list[Copy]] = {}

    def read(i: int) -> Facts:
        split, path = jobs[i]

        def look(pixels: Array) -> None:
            picture = copies.sketch(shrunk(pixels, LARGEST_LOOKED_AT))
            if finder is None:
                sketches[i] = picture
            else:
                found[i] = finder.look(picture)

        return _facts(path, split, record, of, look if few else None)

    finder: Finder | None = None
    facts: dict[int, Facts] = {}
    with ThreadPoolExecutor(2) as threads:
        facts |= zip(few, threads.map(read, few), strict=True)
        known = sorted(sketches)
        finder = Finder([sketches[i] for i in known])
        found |= {i: finder.look(sketches[i]) for i in known}
        sketches.clear()
        rest = [i for i, (split, _) in enumerate(jobs) if split == many]
        facts |= zip(rest, threads.map(read, rest), strict=True)
    pairs = [
        (i, known[copy.second], copy)
        for i, copied in found.items()
        for copy in copied
        if jobs[i][0] != jobs[known[copy.second]][0]
        and (jobs[i][0] == many or i < known[copy.second])
    ]
    pairs.sort(key=lambda pair: (-pair[2].correlation, pair[0], pair[1]))
    return [facts[i] for i in range(len(jobs))], pairs


@dataclass(frozen=True)
class _Others:
    """What is known of images before they are opened: masks, specimens, classes."""

    masks: Mapping[Path, Path]
    specimens: Mapping[Path, str]
    table: ClassTable | None
    looks: bool = False

    @staticmethod
    def of(
        paths: Mapping[str, Sequence[Path]], dataset: Dataset | None, grouping: Grouping | None
    ) -> _Others:
        """Return what the pairs of a data set say, or the grouping of a pool."""
        if dataset is not None:
            masks = {pair.image: pair.mask for pair in dataset.pairs if pair.mask is not None}
            groups = {pair.image: pair.group for pair in dataset.pairs}
            return _Others(masks, groups, dataset.table)
        images = [path for files in paths.values() for path in files]
        names = grouping.names if grouping is not None else ()
        return _Others({}, dict(zip(images, names, strict=False)), None)


def _misread(mask: Path | None, table: ClassTable | None) -> str:
    """Return why the values of a mask cannot be used, "" where they can."""
    if mask is None or table is None:
        return ""
    try:
        table.decode(readers.read_mask(mask), str(mask))
    except UserError as error:
        return str(error)
    return ""


def _facts(
    path: Path,
    split: str,
    record: Preprocess,
    of: _Others,
    look: Callable[[Array], None] | None = None,
) -> Facts:
    mask, specimen = of.masks.get(path), of.specimens.get(path, "")
    try:
        micrograph = record.frame(path)
        seen = bars.look(micrograph, path, mask, record.crop_bottom)
        if record.crop_bottom == bars.AUTO:
            record = record.knowing({path: record.bars.get(path, seen.alone)})
        kept = record.kept_rows(micrograph)
    except UserError as error:
        return Facts(path, split, specimen=specimen, mask=mask, error=str(error))
    rows, columns = micrograph.pixels.shape[:2]
    if look is not None:
        look(micrograph.pixels[:kept])
    return Facts(
        path=path,
        split=split,
        shape=(rows, columns),
        bits=micrograph.bits,
        pixel_size=micrograph.pixel_size,
        bar=rows - kept,
        notes=micrograph.notes,
        calibration=micrograph.calibration,
        specimen=specimen,
        mask=mask,
        misread=_misread(mask, of.table),
        look=seen,
        flat=content.of_pixels(micrograph.pixels[:kept]) == Holds.FEW,
        quality=quality.measured(micrograph.pixels[:kept]) if of.looks else None,
    )


def _summarised(facts: Sequence[Facts]) -> list[str]:
    """Return one line for each distinct note with the number of files it concerns."""
    files: dict[str, list[Path]] = {}
    for fact in facts:
        for note in fact.notes:
            files.setdefault(note, []).append(fact.path)
    return [
        f"{note}: {counted(len(paths), 'file')} (first: {paths[0].name})"
        for note, paths in files.items()
    ]


def _tally(counts: Mapping[str, int]) -> str:
    """Return the most frequent entries with their numbers."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{name} ({count})" for name, count in ordered[:LISTED]]
    if len(ordered) > LISTED:
        shown.append(f"and {len(ordered) - LISTED} more kinds")
    return ", ".join(shown)
