"""A simulated annotator on a labelled set: which way to choose is worth its trouble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from matssl import selection
from matssl.core import flags, runtime
from matssl.core.errors import UserError
from matssl.core.parsing import read_settings
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.tables import csv_text
from matssl.core.textfiles import read_rows
from matssl.core.wording import counted
from matssl.data import bars, layouts, readers, specimens
from matssl.data.layouts import Dataset, Pair
from matssl.metrics import counts, overlap
from matssl.selection.candidates import Box, Candidates
from matssl.selection.choosing import choose
from matssl.stages import console, drawing, resume
from matssl.stages.select import curve_report, head
from matssl.stages.select.head import Head, Picture
from matssl.stages.select.settings import SelectSettings
from matssl.stages.select.source import Features, load_features, summary

TABLE = "curve.csv"
# All labels of a seed's pool, as a line of the table.
CEILING = "all labels"
HELD_OUT = 1 / 3
# What may differ when a curve goes on.
GROWS = ("arms", "seeds", "resume")


@dataclass(frozen=True)
class Cut:
    """The pictures of a seed.

    Attributes:
        pool: numbers of those that can be labelled.
        scored: numbers of those that score.
    """

    pool: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """All pictures and what is asked of them.

    Attributes:
        pictures: labelled ones, pool and scored together.
        pairs: the same as files.
        num_classes: C.
        background: index of the class that is no foreground.
        settings: of the command.
    """

    pictures: Sequence[Picture]
    pairs: Sequence[Pair]
    num_classes: int
    background: int
    settings: SelectSettings

    def cut(self, seed: int) -> Cut:
        """Return which pictures are the pool and which score.

        Raises:
            UserError: one specimen alone, or a split that is not there.
        """
        pairs, scored = self.pairs, self.settings.scored
        if scored != "cut":
            held = tuple(i for i, pair in enumerate(pairs) if pair.split == scored)
            pool = tuple(i for i, pair in enumerate(pairs) if pair.split == "train")
            return Cut(pool, held)
        _, val = specimens.cut_validation(pairs, HELD_OUT, seed)
        images = {pair.image for pair in val}
        held = tuple(i for i, pair in enumerate(pairs) if pair.image in images)
        return Cut(tuple(i for i in range(len(pairs)) if i not in set(held)), held)

    def score(self, model: Head, cut: Cut) -> float:
        """Return the mean IoU over the cells of all pictures that score, 0 to 1."""
        total = np.zeros((self.num_classes, self.num_classes), np.int64)
        for number in cut.scored:
            picture = self.pictures[number]
            found = model.probabilities(picture).argmax(axis=0).astype(np.uint8)
            total += counts.confusion(picture.classes, found, self.num_classes)
        return overlap.miou(total)

    def candidates(
        self, free: Sequence[int], taken: Sequence[int], model: Head | None
    ) -> Candidates:
        """Return what is known of the pictures that are not labelled yet."""
        own = [self.pictures[number] for number in free]
        known = [self.pictures[number] for number in taken]
        found = Candidates(
            tuple(picture.specimen for picture in own),
            features=np.stack([picture.summary for picture in own]),
            labelled_features=np.stack([p.summary for p in known]) if known else None,
            labelled=len(taken),
            background=self.background,
            power=self.settings.power,
        )
        if model is None:
            return found
        looks = [head.scores(model.probabilities(picture)) for picture in own]
        return replace(
            found,
            scores={name: np.array([look[0][name] for look in looks]) for name in looks[0][0]},
            class_scores=np.stack([look[1] for look in looks]),
            shares=np.stack([look[2] for look in looks]),
            labelled_pixels=np.sum([picture.pixels for picture in known], axis=0),
        )

    def rounds(self, arm: str, seed: int) -> Iterator[dict[str, object]]:
        """Yield a line of the table for each budget: labels come as the arm asks for them."""
        cut, settings = self.cut(seed), self.settings
        taken: list[int] = []
        model: Head | None = None
        for number, budget in enumerate(settings.budgets):
            while len(taken) < budget:
                free = [i for i in cut.pool if i not in taken]
                blind = model is None and "probabilities" in selection.needs(arm)
                word = settings.start if blind else arm
                # Without a model one picture gives the first, and the rest of a budget the next.
                wanted = 1 if blind else budget - len(taken)
                known = self.candidates(free, taken, model)
                # Before the first model every arm that starts alike gets the same picture.
                choice = choose(known, word, wanted, seed, number, settings.spread)
                taken += [free[place] for place in choice.chosen]
                if len(taken) < budget:
                    model = self.learned(taken, seed)
            model = self.learned(taken, seed)
            yield self.line(arm, seed, taken, self.score(model, cut))

    def learned(self, taken: Sequence[int], seed: int) -> Head:
        """Return the head of the labels so far."""
        return head.fit([self.pictures[i] for i in taken], self.num_classes, seed)

    def line(self, arm: str, seed: int, taken: Sequence[int], score: float) -> dict[str, object]:
        """Return a line of the table: score and cost."""
        pixels = np.sum([self.pictures[i].pixels for i in taken], axis=0)
        front = pixels.sum() - pixels[self.background]
        return {
            "arm": arm,
            "seed": seed,
            "pictures": len(taken),
            "foreground_px": int(front),
            "labelled_px": int(pixels.sum()),
            "miou": score,
            "labelled": " ".join(self.pictures[i].name for i in taken),
        }


def learning_curve(settings: SelectSettings, argv: Sequence[str] = ()) -> Path:
    """Compare ways to choose on a labelled set and return the folder of the results.

    Args:
        settings: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = settings.runtime()
    name = settings.name or f"{drawing.data_name(settings.pool)}-{Path(settings.model).name}"
    root = Path(settings.output_dir) / "learning_curve" / name
    if not rt.is_main:
        runtime.close()
        return root
    RunFolder.check(root, settings.resume, settings.overwrite, marks=(TABLE,))
    arms = [*selection.CHANCE, *(arm for arm in settings.arms if arm not in selection.CHANCE)]
    for arm in arms:
        if "passes" in selection.needs(arm):
            raise UserError(
                f"--arms {arm}: the head of a learning curve has one pass; leave it out"
            )
    if settings.resume:
        _same(settings, root)
    features = load_features(
        settings.model, settings.encoder, str(rt.device), rt.precision, settings.seed
    )
    dataset, pairs = _labelled(settings)
    trial, features = _trial(settings, dataset, pairs, features)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    for seed in seeds:
        _check(trial, trial.cut(seed), seed)
    said = [f"data    {counted(len(pairs), 'labelled picture')} of {settings.pool}"]
    said += [f"        {dataset.grouping.text}", f"features {features.text}"]
    said.append(f"arms    {', '.join(arms)}; {counted(len(seeds), 'seed')}")
    console.say(settings, rt, "\n".join([*said, f"folder  {root}"]))

    folder = RunFolder.at(root, settings.resume, settings.overwrite, True, marks=(TABLE,))
    folder.start(flags.to_dict(settings), argv, "matssl.tools.select_images")
    jobs = [(seed, arm) for seed in seeds for arm in [CEILING, *arms]]
    done = _whole(folder, settings)
    with disk_errors(folder):
        bar = tqdm(total=len(jobs), desc="choosing", disable=settings.quiet or None)
        for seed, arm in jobs:
            if (arm, seed) not in done:
                _append(folder, _lines(trial, arm, seed))
            bar.update()
        bar.close()
        told = curve_report.About(
            str(settings.pool),
            settings.model,
            features.text,
            tuple(settings.budgets),
            tuple(arms),
            tuple(seeds),
            dataset.table.names if dataset.table else (),
            trial.background,
            settings.scored,
            settings.start,
        )
        curve_report.write(folder, read_rows(root / TABLE), told)
    folder.status("done", arms=len(arms), seeds=len(seeds))
    curve_report.print_areas(folder, read_rows(root / TABLE), told)
    runtime.close()
    return root


def _same(settings: SelectSettings, root: Path) -> None:
    """Refuse to go on with a curve of another plan; arms and seeds may be added.

    Raises:
        UserError: a flag differs.
    """
    before = read_settings(root / "config.yaml")
    now = flags.to_dict(settings)
    now = {k: list(v) if isinstance(v, tuple) else v for k, v in now.items() if k not in GROWS}
    default = flags.defaults(SelectSettings)
    resume.refuse_other_plan(before, now, default, "choose another --name")


def _labelled(settings: SelectSettings) -> tuple[Dataset, list[Pair]]:
    """Return the data set, and the pairs that take part: test images only where they score.

    Raises:
        UserError: no masks, or no images of a split that is to score.
    """
    opened = ["train", "test"] if settings.scored == "test" else ["train", "val"]
    dataset = layouts.find(
        settings.pool,
        splits=settings.splits,
        group_regex=settings.group_regex,
        specimens=settings.specimens,
        pixel_size=settings.pixel_size,
        classes=settings.classes,
        seed=settings.seed,
        mask_folder=settings.mask_folder,
        opened=opened,
    )
    pairs = [pair for pair in dataset.pairs if pair.split in opened and pair.mask is not None]
    if settings.scored != "cut" and not any(pair.split == settings.scored for pair in pairs):
        raise UserError(f"--scored {settings.scored}: {settings.pool} has no such images")
    return dataset, pairs


def _trial(
    settings: SelectSettings, dataset: Dataset, pairs: Sequence[Pair], features: Features
) -> tuple[Trial, Features]:
    """Return the pictures as the head sees them.

    Raises:
        UserError: a picture or mask cannot be used, or --background names no class.
    """
    table = dataset.table
    assert table is not None
    record, _ = features.record.cutting(settings.crop_bottom)
    if settings.page is not None:
        record = replace(record, page=settings.page)
    record = record.told(dataset.grouping.pixel_sizes)
    judged = bars.of_pairs(
        ((pair.image, pair.mask) for pair in pairs), record.read, record.crop_bottom
    )
    judged.refuse_misfits()
    record = record.knowing(judged.rows)
    features = replace(features, record=record)
    cells, classes, pixels, summaries = [], [], [], []
    for pair in tqdm(pairs, desc="features", disable=settings.quiet or None):
        assert pair.mask is not None
        micrograph = record.read(pair.image)
        raw = table.decode(readers.read_mask(pair.mask), str(pair.mask))
        mask = record.fitted(raw, micrograph)[: record.kept_rows(micrograph)]
        own = features.cells(micrograph)
        y, x = (
            ((np.arange(count) + 0.5) * side / count).astype(np.int64)
            for count, side in zip(own.shape[:2], mask.shape, strict=True)
        )
        cells.append(own)
        classes.append(np.ascontiguousarray(mask[y[:, None], x[None]]))
        tally = np.bincount(mask.ravel(), minlength=256)[: table.num_classes]
        pixels.append(tally.astype(np.float64))
        whole = Box(0, 0, mask.shape[0], mask.shape[1])
        summaries.append(summary(own, whole, (mask.shape[0], mask.shape[1])))
    background = int(np.sum(pixels, axis=0).argmax())
    if settings.background is not None:
        if settings.background not in table.names:
            raise UserError(
                f"--background {settings.background} is no class of {settings.pool}; it has: "
                f"{', '.join(table.names)}"
            )
        background = table.names.index(settings.background)
    seen = head.standardise(cells)
    names = drawing.output_names([pair.image for pair in pairs], Path(settings.pool))
    pictures = [
        Picture(*parts)
        for parts in zip(
            seen, classes, pixels, summaries, [pair.group for pair in pairs], names, strict=True
        )
    ]
    return Trial(pictures, pairs, table.num_classes, background, settings), features


def _check(trial: Trial, cut: Cut, seed: int) -> None:
    """Refuse a set that is too small for what is asked.

    Raises:
        UserError: nothing is left to score, or the largest budget is more than there is.
    """
    most = trial.settings.budgets[-1]
    if not cut.scored:
        raise UserError(
            f"{trial.settings.pool} shows one specimen alone, and none is left to score; name "
            "specimens with --specimens, or splits with --splits and --scored val"
        )
    if most > len(cut.pool):
        raise UserError(
            f"--budgets {most}: {len(cut.pool)} pictures can be labelled with seed {seed}, since "
            f"{len(cut.scored)} of other specimens score"
        )


def _lines(trial: Trial, arm: str, seed: int) -> list[dict[str, object]]:
    if arm != CEILING:
        return list(trial.rounds(arm, seed))
    cut = trial.cut(seed)
    score = trial.score(trial.learned(cut.pool, seed), cut)
    return [trial.line(arm, seed, cut.pool, score) | {"labelled": ""}]


def _append(folder: RunFolder, lines: Sequence[dict[str, object]]) -> None:
    """Add the lines of an arm and a seed, all or none."""
    before = folder.path(TABLE)
    text = before.read_text(encoding="utf-8") if before.is_file() else ""
    folder.write_text(TABLE, text + csv_text(lines, head=not text))


def _whole(folder: RunFolder, settings: SelectSettings) -> set[tuple[str, int]]:
    """Return arms and seeds that are in the table."""
    path = folder.path(TABLE)
    rows = read_rows(path) if path.is_file() else []
    return {(row["arm"], int(row["seed"])) for row in rows}
