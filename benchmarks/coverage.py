"""Do 95 % intervals hold 95 %? python -m benchmarks.coverage [--worlds 2000]

Simulates specimens, each with errors of its own, fields and fractions of known truth, and counts
how often each interval holds the truth, and how wide it is. Four parts: the classifier's error in
area fractions (ours beside the t interval of the predictions, their bootstrap, and a correction by
P(true | predicted) with its bootstrap), fields alone, one field by its correlation, mean IoU. Goes
on where it stopped: OUTPUT_DIR/coverage.csv, a line a cell; table.md is written from it.

  python -m benchmarks.coverage --real RUN [RUN=FOLDS ...]

counts on labelled images how many (set x class) cells hold the truth: RUN is a folder of results of
eval_model.py, FOLDS the run of train_finetune.py --folds with the held-out truth (without it, the
folder of the model is asked; where it has none, each specimen of RUN is measured from the others).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.campaign import append, rows
from matssl.core import textfiles
from matssl.core.errors import UserError, guard
from matssl.measure import classifier, correlation, held_out, intervals, score_intervals
from matssl.measure.held_out import HeldOut, Record
from matssl.measure.intervals import Interval, Sample
from matssl.metrics import overlap
from matssl.stages import held_out as shared

Floats = NDArray[np.float64]
Rng = np.random.Generator
# Pixels of a simulated image, and draws of a bootstrap.
PIXELS, DRAWS = 1_000_000, 200
RIVALS = ("both", "naive t", "bootstrap", "posterior")


class Cell(NamedTuple):
    """How an interval did: share of worlds whose truth it holds, and its median width."""

    inside: float
    width: float


# --- rivals --------------------------------------------------------------------------------------
def posterior(confusion: NDArray[np.int64], shares: Floats) -> Floats:
    """Return P(true | predicted) applied to predicted shares, float64 (C,)."""
    columns = confusion.sum(axis=0)
    return np.asarray((confusion / np.maximum(columns, 1)) @ shares)


def difference(confusion: NDArray[np.int64], shares: Floats) -> Floats:
    """Return predicted shares less the held-out difference of predicted and true share, (C,)."""
    return np.asarray(shares + (confusion.sum(axis=1) - confusion.sum(axis=0)) / confusion.sum())


def precision_over_recall(confusion: NDArray[np.int64], share: float) -> float:
    """Return m P / R of the second of two classes."""
    hits = confusion[1, 1]
    return float(share * (hits / confusion[:, 1].sum()) / (hits / confusion[1].sum()))


# --- worlds --------------------------------------------------------------------------------------
class Scenario(NamedTuple):
    """Specimens to simulate.

    Attributes:
        errors: what the errors of a specimen follow: "specimen" rates, "borders", "area".
        share: mean area fraction of the held-out specimens.
        spread: coefficient of variation of it over specimens.
        measured: fraction of the measured specimen; None for one like the held-out ones.
        specimens: held-out ones.
        images: of each.
        fields: of the measured specimen, or measured specimens.
        several: whether specimens are measured, of three fields each, and not one.
    """

    errors: str
    share: float = 0.2
    spread: float = 0.4
    measured: float | None = None
    specimens: int = 6
    images: int = 3
    fields: int = 6
    several: bool = False


SCENARIOS = {
    "specimens": Scenario("specimen"),
    "specimens, one image each": Scenario("specimen", images=1),
    "specimens, 4 held out, 4 fields": Scenario("specimen", specimens=4, fields=4),
    "borders": Scenario("borders"),
    "by area": Scenario("area"),
    "rare": Scenario("specimen", share=0.04),
    "specimens, larger": Scenario("specimen", 0.15, 0.2, 0.45),
    "borders, larger": Scenario("borders", 0.15, 0.2, 0.45),
    "by area, larger": Scenario("area", 0.15, 0.2, 0.45),
    "specimens, smaller": Scenario("specimen", 0.4, 0.2, 0.1),
    "borders, smaller": Scenario("borders", 0.4, 0.2, 0.1),
    "several specimens": Scenario("specimen", spread=0.3, several=True),
    "many: 12 x 4 held out, 20 fields": Scenario("specimen", specimens=12, images=4, fields=20),
    "many, borders": Scenario("borders", specimens=12, images=4, fields=20),
    "many, by area": Scenario("area", specimens=12, images=4, fields=20),
}
# Mean and coefficient of variation over specimens of the two numbers that make errors.
STRENGTHS = {
    "specimen": ((0.12, 0.5), (0.03, 0.5)),
    "borders": ((0.05, 0.6), (0.09, 0.6)),
    "area": ((0.05, 0.7), (0.15, 0.5)),
}


def _beta(rng: Rng, mean: float, variation: float) -> float:
    """Return a draw of a beta distribution by its mean and coefficient of variation."""
    strength = max(mean * (1 - mean) / (variation * mean) ** 2 - 1, 0.5)
    return float(np.clip(rng.beta(mean * strength, (1 - mean) * strength), 1e-4, 1 - 1e-4))


def _image(rng: Rng, errors: str, share: float, lost: float, false: float) -> NDArray[np.int64]:
    """Return the confusion matrix of an image, whose errors scatter about its specimen's."""
    lost, false = np.minimum(0.9, np.array([lost, false]) * rng.lognormal(0, 0.25, 2))
    if errors == "borders":
        # Length of borders of a random structure.
        length = 2 * share * (1 - share)
        lost, false = min(0.95, lost * length / share), min(0.95, false * length / (1 - share))
    if errors == "area":
        false = min(0.9, false * share / (1 - share))
    phase = round(share * PIXELS)
    misses, alarms = round(lost * phase), round(false * (PIXELS - phase))
    return np.array([[PIXELS - phase - alarms, alarms], [misses, phase - misses]], np.int64)


def _specimen(rng: Rng, errors: str, share: float, images: int) -> list[NDArray[np.int64]]:
    lost, false = (_beta(rng, *strength) for strength in STRENGTHS[errors])
    return [_image(rng, errors, _beta(rng, share, 0.25), lost, false) for _ in range(images)]


class World(NamedTuple):
    """Held-out images, predicted shares of what is measured, and its true share."""

    held: list[HeldOut]
    values: list[float]
    truth: float


def world(rng: Rng, told: Scenario) -> World:
    """Return one world of a scenario."""
    held = [
        HeldOut(f"{k}.png", str(k), matrix)
        for k in range(told.specimens)
        for matrix in _specimen(rng, told.errors, _beta(rng, told.share, told.spread), told.images)
    ]
    if told.several:
        truth = told.measured or told.share
        own = [
            _specimen(rng, told.errors, _beta(rng, truth, told.spread), 3)
            for _ in range(told.fields)
        ]
        values = [float(np.mean([_predicted(m) for m in images])) for images in own]
    else:
        truth = told.measured or _beta(rng, told.share, told.spread)
        values = [_predicted(m) for m in _specimen(rng, told.errors, truth, told.fields)]
    return World(held, values, truth)


def _predicted(matrix: NDArray[np.int64]) -> float:
    return float(matrix[:, 1].sum() / matrix.sum())


# --- counted -------------------------------------------------------------------------------------
class Count:
    """Counts how often intervals hold the truth."""

    def __init__(self) -> None:
        self.inside: list[bool] = []
        self.widths: list[float] = []

    def add(self, low: float, high: float, truth: float) -> None:
        """Count one interval."""
        self.inside.append(low <= truth <= high)
        self.widths.append(high - low)

    def cell(self) -> Cell:
        """Return what was counted."""
        return Cell(float(np.mean(self.inside)), float(np.median(self.widths)))


def corrected(name: str, worlds: int, seed: int = 0) -> dict[str, Cell]:
    """Return how our interval of a corrected fraction did, and its rivals.

    Args:
        name: of the scenario.
        worlds: how many.
        seed: of the draws.
    """
    told, rng = SCENARIOS[name], np.random.default_rng([seed, list(SCENARIOS).index(name)])
    counts = {rival: Count() for rival in RIVALS}
    for _ in range(worlds):
        one = world(rng, told)
        x = intervals.sample(one.values)
        ends = classifier.correct(x, classifier.rates(one.held, 1), told.several).interval
        counts["both"].add(ends.low, ends.high, one.truth)
        half = intervals.half_width(x.variance, x.degrees)
        counts["naive t"].add(x.mean - half, x.mean + half, one.truth)
        counts["bootstrap"].add(*_bootstrap(rng, one), one.truth)
        counts["posterior"].add(*_posterior(rng, one), one.truth)
    return {rival: count.cell() for rival, count in counts.items()}


def _bootstrap(rng: Rng, one: World) -> tuple[float, float]:
    """Return the percentile interval of the mean of what is predicted."""
    values = np.array(one.values)
    means = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _posterior(rng: Rng, one: World) -> tuple[float, float]:
    """Return the percentile interval of P(true | predicted), held-out images drawn again, too."""
    values, matrices = np.array(one.values), np.array([image.confusion for image in one.held])
    drawn = matrices[rng.integers(len(matrices), size=(DRAWS, len(matrices)))].sum(axis=1)
    means = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    given = drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1)
    found = given[:, 1, 1] * means + given[:, 1, 0] * (1 - means)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


FIELDS = {
    f"{100 * share:g} %, {count} fields": (share, count)
    for share in (0.005, 0.03, 0.15, 0.5)
    for count in (4, 6, 10, 30)
}


def fields(name: str, worlds: int, seed: int = 0) -> dict[str, Cell]:
    """Return how the interval over fields did, without a classifier, and the t interval alone."""
    share, count = FIELDS[name]
    rng, ours, naive = np.random.default_rng([seed, 1]), Count(), Count()
    for _ in range(worlds):
        values = [_beta(rng, share, 0.6 if share < 0.1 else 0.3) for _ in range(count)]
        found = intervals.fraction(values)
        ours.add(found.low, found.high, share)
        naive.add(found.mean - found.half_width, found.mean + found.half_width, share)
    return {"both": ours.cell(), "naive t": naive.cell()}


# Correlation lengths (px) of Gaussian fields, and radii of Boolean discs, in a field of 256 px.
TEXTURES = {
    f"{kind}, {100 * share:g} %, {size:g} px": (kind, share, size)
    for kind, sizes in (("Gaussian", (3.6, 7.5, 13.0, 17.0)), ("discs", (4, 8, 15, 20)))
    for share in (0.15, 0.4)
    for size in sizes
}
SIDE = 256


def _texture(rng: Rng, kind: str, share: float, size: float) -> tuple[NDArray[np.bool_], float]:
    """Return a field of a random structure and the true fraction of its phase."""
    from scipy import fft, stats

    if kind == "Gaussian":
        wide = 2 * SIDE
        waves = fft.fftfreq(wide)
        kernel = np.exp(-(waves[:, None] ** 2 + waves[None] ** 2) * (math.pi * size) ** 2)
        noise = rng.standard_normal((wide, wide))
        field = fft.irfft2(fft.rfft2(noise) * kernel[:, : SIDE + 1])
        level = stats.norm.ppf(share) * math.sqrt((kernel**2).sum()) / wide
        return field[:SIDE, :SIDE] < level, share
    reach = int(size) + 1
    steps = np.arange(-reach, reach + 1)
    disc = np.hypot(steps[:, None], steps) <= size
    density = -math.log(1 - share) / disc.sum()
    wide = SIDE + 2 * reach
    seeds = np.zeros((wide, wide))
    place = rng.integers(0, wide, (2, rng.poisson(density * wide**2)))
    np.add.at(seeds, (place[0], place[1]), 1)
    shape = (fft.next_fast_len(2 * wide), fft.next_fast_len(2 * wide))
    spread = fft.irfft2(fft.rfft2(seeds, shape) * fft.rfft2(disc.astype(float), shape), shape)
    whole = spread[2 * reach : 2 * reach + SIDE, 2 * reach : 2 * reach + SIDE]
    return whole > 0.5, share


def one_field(name: str, worlds: int, seed: int = 0) -> dict[str, Cell]:
    """Return how the interval of one field did, and that of its 16 parts taken for fields."""
    kind, share, size = TEXTURES[name]
    rng, ours, parts = np.random.default_rng([seed, 2]), Count(), Count()
    shares, ratios = [], []
    for _ in range(worlds):
        phase, truth = _texture(rng, kind, share, size)
        found = correlation.of_field(phase)
        if math.isnan(found.variance):
            continue
        ends = intervals.of_share(found.share, intervals.half_width(found.variance, found.degrees))
        ours.add(ends.low, ends.high, truth)
        cut = phase.reshape(4, SIDE // 4, 4, SIDE // 4).mean(axis=(1, 3)).ravel()
        own = intervals.fraction(cut.tolist())
        parts.add(own.low, own.high, truth)
        shares.append(found.share)
        ratios.append(found.ratio)
    # The true ratio, from the spread of the fields themselves.
    true = math.sqrt(share * (1 - share) / float(np.var(shares)))
    told = Cell(true, float(np.median(ratios)))
    return {"both": ours.cell(), "16 parts": parts.cell(), "side / sqrt(A2)": told}


SCORES = {
    f"{kind}, {count} specimens": (kind, count)
    for kind in ("3 classes", "3 classes, unequal", "4 classes", "good", "with failures", "rare")
    for count in (5, 6, 8, 12, 20)
}


def matrices(rng: Rng, kind: str, worlds: int, count: int) -> NDArray[np.int64]:
    """Return confusion matrices of specimens, int64 (worlds, count, C, C)."""
    priors: dict[str, list[float]] = {"4 classes": [6, 3, 1, 1], "rare": [6, 3, 0.15]}
    prior = priors.get(kind, [6, 3, 1])
    classes = len(prior)
    areas = rng.dirichlet(prior, (worlds, count))
    right, wrong = (30.0, 0.3) if kind == "good" else (14.0, 1.0)
    errors = np.stack(
        [
            rng.dirichlet(np.where(np.arange(classes) == c, right, wrong), (worlds, count))
            for c in range(classes)
        ],
        axis=2,
    )
    if kind == "with failures":
        bad = np.where(rng.random((worlds, count, 1, 1)) < 0.15, 0.4, 0.0)
        errors = errors * (1 - bad) + bad / classes
    sizes = np.ones((worlds, count))
    if kind.endswith("unequal"):
        sizes = rng.choice([1.0, 1, 2, 3, 6], (worlds, count))
    found = PIXELS * sizes[..., None, None] * areas[..., None] * errors
    return np.rint(found).astype(np.int64)


def scores(name: str, worlds: int, seed: int = 0) -> dict[str, Cell]:
    """Return how the interval of the mean IoU did, and the percentile bootstrap of before."""
    kind, count = SCORES[name]
    rng = np.random.default_rng([seed, 3])
    truth = overlap.miou(matrices(rng, kind, 1, 200_000)[0].sum(axis=0))
    groups = [str(number) for number in range(count)]
    ours, naive = Count(), Count()
    for own in matrices(rng, kind, worlds, count):
        ends = score_intervals.mean_iou(list(own), groups).ends
        if ends is not None:
            ours.add(*ends, truth)
        drawn = own[rng.integers(count, size=(DRAWS, count))].sum(axis=1)
        hits = np.diagonal(drawn, axis1=1, axis2=2)
        union = drawn.sum(axis=1) + drawn.sum(axis=2) - hits
        with np.errstate(invalid="ignore"):
            low, high = np.percentile(np.nanmean(hits / union, axis=1), [2.5, 97.5])
        naive.add(float(low), float(high), truth)
    return {"both": ours.cell(), "bootstrap": naive.cell()}


Part = Callable[[str, int, int], dict[str, Cell]]
PARTS: dict[str, tuple[Part, Sequence[str]]] = {
    "classifier": (corrected, list(SCENARIOS)),
    "fields": (fields, list(FIELDS)),
    "one field": (one_field, list(TEXTURES)),
    "mean IoU": (scores, list(SCORES)),
}


# --- real images ---------------------------------------------------------------------------------
class RealCell(NamedTuple):
    """One class of one set: its truth, its interval as predicted and corrected."""

    name: str
    truth: float
    raw: Interval
    both: Interval | None


def real(runs: Sequence[str]) -> tuple[list[RealCell], list[RealCell]]:
    """Return cells of sets corrected from folds, and of specimens corrected from the others.

    Args:
        runs: RUN or RUN=FOLDS, each.

    Raises:
        UserError: a run without labelled images.
    """
    sets: list[RealCell] = []
    specimens: list[RealCell] = []
    for text in runs:
        run, _, folds = text.partition("=")
        place = Path(run)
        if not (place / held_out.FILE).is_file():
            raise UserError(f"{run} has no {held_out.FILE}; give results of eval_model.py")
        own = held_out.read(place / held_out.FILE)
        if folds:
            known: Record | None = shared.of_flag(folds, own.classes)
        else:
            known = _of_model(place, own)
        if known is None:
            specimens += _specimens(place.name, own)
        else:
            sets += _set(place.name, own, known)
    return sets, specimens


def _of_model(run: Path, own: Record) -> Record | None:
    model = Path(str(textfiles.read_json(run / "metrics.json")["model"]))
    return shared.beside_model(model, own.classes)


def _shares(images: Sequence[HeldOut], axis: int) -> Floats:
    """Return true (axis 1) or predicted (axis 0) shares, float64 (images, C)."""
    return np.array([one.confusion.sum(axis=axis) / one.confusion.sum() for one in images])


def _by_specimen(images: Sequence[HeldOut], values: Floats) -> Floats:
    names = list(dict.fromkeys(one.specimen for one in images))
    places = np.array([names.index(one.specimen) for one in images])
    return np.array([values[places == k].mean(axis=0) for k in range(len(names))])


def _set(name: str, own: Record, known: Record) -> Iterator[RealCell]:
    """Yield a cell a class: over specimens where there are several, else over fields."""
    images = [one for one in own.images if one.confusion.sum()]
    several = len({one.specimen for one in images}) > 1
    parts = [_shares(images, axis) for axis in (0, 1)]
    seen, true = (_by_specimen(images, part) if several else part for part in parts)
    apart = known.without(own.specimens)
    held = apart if len(apart.specimens) >= classifier.MIN_HELD_OUT else known
    yield from _cells(name, own.classes, seen, true.mean(axis=0), held.images, several)


def _specimens(name: str, own: Record) -> Iterator[RealCell]:
    """Yield a cell a specimen and class, each corrected from the others."""
    for specimen in own.specimens:
        images = [one for one in own.images if one.specimen == specimen and one.confusion.sum()]
        if len(images) >= 2:
            seen, true = _shares(images, 0), _shares(images, 1).mean(axis=0)
            held = own.without([specimen]).images
            yield from _cells(f"{name} {specimen}", own.classes, seen, true, held, False)


def _cells(
    name: str,
    classes: Sequence[str],
    seen: Floats,
    true: Floats,
    held: Sequence[HeldOut],
    several: bool,
) -> Iterator[RealCell]:
    samples: list[Sample] = [intervals.sample(column.tolist()) for column in seen.T]
    found = classifier.of_classes(samples, held, several)
    for kind, label in enumerate(classes):
        x, one = samples[kind], found.classes[kind]
        raw = intervals.of_share(x.mean, intervals.half_width(x.variance, x.degrees))
        if not math.isnan(raw.low):
            both = None if one is None else one.interval
            yield RealCell(f"{name} {label}", float(true[kind]), raw, both)


def real_text(cells: Sequence[RealCell], what: str) -> list[str]:
    """Return what was found on real images, a line a cell and one for all."""
    lines = []
    for cell in cells:
        ends = [f"{100 * cell.raw.low:.2f} to {100 * cell.raw.high:.2f}"]
        if cell.both is not None:
            ends.append(f"{100 * cell.both.low:.2f} to {100 * cell.both.high:.2f}")
        lines.append(f"  {cell.name}: true {100 * cell.truth:.2f}, {'; corrected '.join(ends)}")
    for label, known in (
        ("as predicted", [(c.raw, c.truth) for c in cells]),
        ("corrected", [(c.both, c.truth) for c in cells if c.both is not None]),
    ):
        if known:
            inside = sum(ends.low <= truth <= ends.high for ends, truth in known)
            width = float(np.median([ends.high - ends.low for ends, _ in known]))
            lines.append(
                f"{inside} of {len(known)} cells ({what}) hold the truth {label}; median width "
                f"{100 * width:.2f} per cent points"
            )
    return lines


# --- the table -----------------------------------------------------------------------------------
def table(done: Sequence[Mapping[str, str]]) -> str:
    """Return the tables of all parts as Markdown.

    Args:
        done: lines of coverage.csv.
    """
    lines = []
    for part in PARTS:
        own = [row for row in done if row["part"] == part]
        if not own:
            continue
        names = list(dict.fromkeys(row["rival"] for row in own))
        cells = list(dict.fromkeys(row["cell"] for row in own))
        heads = ["ours" if name == "both" else name for name in names]
        lines += [f"| {part} | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
        for cell in cells:
            found = {row["rival"]: row for row in own if row["cell"] == cell}
            texts = [_text(found[name], name) for name in names]
            lines.append(f"| {cell} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def _text(row: Mapping[str, str], name: str) -> str:
    inside, width = float(row["inside"]), float(row["width"])
    if "/" in name:
        return f"{inside:.1f} (stated {width:.1f})"
    return f"{100 * inside:.1f} ({100 * width:.1f})"


def main(argv: Sequence[str]) -> int:
    """Count what is missing and write the table, or count on real images; returns 0."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.coverage", formatter_class=kind
    )
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument(
        "--fields_worlds", type=int, default=500, help="of one field by correlation"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="experiments/coverage")
    parser.add_argument("--real", nargs="+", metavar="RUN", help="results of eval_model.py")
    args = parser.parse_args(argv)
    if args.real:
        sets, specimens = real(args.real)
        print("\n".join(real_text(sets, "set x class, corrected from held-out truth")))
        print("\n".join(real_text(specimens, "specimen x class, each from the others")))
        return 0
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "coverage.csv"
    have = {(row["part"], row["cell"]) for row in rows(path)}
    for part, (count, cells) in PARTS.items():
        worlds = args.fields_worlds if part == "one field" else args.worlds
        for name in cells:
            if (part, name) in have:
                continue
            for rival, cell in count(name, worlds, args.seed).items():
                line = {"part": part, "cell": name, "worlds": worlds, "rival": rival}
                append(path, line | cell._asdict())
            print(f"{part}: {name}", flush=True)
    text = table(rows(path))
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
