"""unet-compare's post-processor: its flags and files, its three algorithms, repaired."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from matssl import report
from matssl.core import flags, run_folder
from matssl.core.arrays import Array
from matssl.core.processes import Processes
from matssl.core.run_folder import RunFolder
from matssl.core.tables import Row, csv_text
from matssl.core.wording import counted
from matssl.data import readers
from matssl.measure.defects import boxes, bubbles, chac, found
from matssl.measure.defects.found import Defects, Histogram, Matched
from matssl.measure.field import Field, Masked, areas
from matssl.measure.objects import tables
from matssl.measure.objects.found import Found, Rules, Size, find
from matssl.measure.units import Unit
from matssl.stages import failures
from matssl.stages.failures import Failure, Failures
from matssl.stages.measure import export, levels, pairs
from matssl.stages.measure.settings import MeasureSettings

NM = Unit("nm", 1.0)
# Pixels of a line, as wide as there.
THICK = {"CHAC": 3, "BubbleFinder": 2, "BBox": 2}
CALLED = {"CHAC": "grain", "BubbleFinder": "bubble", "BBox": "defect"}
WHAT = {
    "CHAC": "diameter of the circle of equal area, of grains with a convex outline that lie whole "
    "in the field: a selection",
    "BubbleFinder": "diameter of round bubbles, touching ones apart",
    "BBox": "diagonal of the upright box around each part",
}
DRAWN, COMPARED = "detected_defects", "GT_comparison"


@dataclass
class Series:
    """Sizes of all defects of one kind of masks, in nm, with the image of each."""

    images: list[str] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(stem: str, defects: Defects, scale: float) -> Series:
        """Return the defects of an image."""
        sizes = (defects.size * scale).tolist()
        return Series([stem] * defects.count, sizes, dict(defects.steps))

    def add(self, other: Series) -> None:
        """Take up the defects of another image."""
        self.images += other.images
        self.sizes += other.sizes
        for name, number in other.steps.items():
            self.steps[name] = self.steps.get(name, 0) + number

    @property
    def mean(self) -> float:
        """Mean size; NaN without a defect."""
        return float(np.mean(self.sizes)) if self.sizes else math.nan

    @property
    def std(self) -> float:
        """Standard deviation, of the defects themselves (n); NaN without one."""
        return float(np.std(self.sizes)) if self.sizes else math.nan

    @property
    def rows(self) -> list[Row]:
        """Image and size of each, under the heads that unet-compare gives them."""
        return [{"0": i, "1": s} for i, s in zip(self.images, self.sizes, strict=True)]


@dataclass
class Result:
    """What is known of all images."""

    predicted: Series = field(default_factory=Series)
    true: Series = field(default_factory=Series)
    ious: dict[str, float] = field(default_factory=dict)
    matches: list[Matched] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    tables: list[Found] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Take up what is known of another image."""
        self.predicted.add(other.predicted)
        self.true.add(other.true)
        self.ious |= other.ious
        self.matches += other.matches
        self.differences += other.differences
        self.tables += other.tables


@dataclass(frozen=True)
class Sources:
    """The files of an image by its stem, and how the levels of a folder are read."""

    masks: dict[str, Path]
    pictures: dict[str, Path]
    truth: dict[str, Path]
    mask_scale: levels.Scale
    truth_scale: levels.Scale | None


def detect(settings: MeasureSettings, argv: Sequence[str] = ()) -> Path:
    """Find the defects of all masks, write them, and return the folder.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    assert settings.seg_dir is not None and settings.img_scale is not None
    name = settings.name or Path(settings.seg_dir).resolve().name.replace(" ", "_")
    root = Path(settings.output_dir) / "measure" / name
    if settings.results_dir is not None:
        root = Path(settings.results_dir)
    processes = Processes.joined()

    def begun() -> tuple[Sources, RunFolder]:
        RunFolder.check(root, False, settings.overwrite, resumable=False)
        sources = _sources(settings)
        folder = RunFolder.at(root, False, settings.overwrite)
        folder.start(flags.to_dict(settings), argv)
        return sources, folder

    sources, folder = processes.first(begun)
    failed, result, done = Failures(folder), Result(), 0
    hidden = (settings.quiet or not processes.is_main) or None
    stems = list(sources.masks)

    def work(numbers: Sequence[int]) -> Iterator[Result | Failure]:
        for number in tqdm(numbers, desc="measuring", disable=hidden):
            one = functools.partial(_one, settings, sources, stems[number], root)
            yield failures.tried(one)

    for number, one in enumerate(processes.shared(len(stems), work, root)):
        if isinstance(one, Failure):
            failed.note(sources.masks[stems[number]], one)
        else:
            result.add(one)
            done += 1
    if not processes.is_main:
        # What it found is with the first one.
        return root
    if not done:
        failed.end(len(sources.masks), 0)
    _write(folder, settings, sources, result)
    folder.status("done", fields=done, failed=len(failed.images))
    failed.end(len(sources.masks), done)
    return root


def _sources(settings: MeasureSettings) -> Sources:
    """Return the files of every image; all that is missing is told at once.

    Raises:
        UserError: two files of one name, files without a partner, masks of other sizes.
    """
    assert settings.seg_dir is not None
    masks = pairs.by_stem(Path(settings.seg_dir), "--seg_dir")
    pictures = pairs.partners(settings.tem_dir, "--tem_dir", masks)
    truth = pairs.partners(settings.ann_dir, "--ann_dir", masks)
    every = {"--seg_dir": masks, "--tem_dir": pictures, "--ann_dir": truth}
    for flag, files in every.items():
        pairs.refuse_stacks(files.values(), flag, "save each as a file, {name}-0001.png and so on")
    pairs.check_sizes(masks, {"--tem_dir": pictures, "--ann_dir": truth})
    scale = levels.scale(list(masks.values()), "--seg_dir")
    truth_scale = levels.scale(list(truth.values()), "--ann_dir") if truth else None
    return Sources(masks, pictures, truth, scale, truth_scale)


def _one(settings: MeasureSettings, sources: Sources, stem: str, root: Path) -> Result:
    """Find, draw and compare the defects of one image."""
    from matssl.pictures import defects as pictures

    assert settings.img_scale is not None
    algorithm = settings.chosen_algorithm or ""
    values = levels.read(sources.masks[stem])
    inside = sources.mask_scale.foreground(values)
    grey = readers.read(sources.pictures[stem]).pixels if stem in sources.pictures else None
    if grey is not None and grey.ndim == 3:
        grey = readers.from_array(grey).pixels
    if settings.bubble_source == "grey":
        own = bubbles.detected(values / levels.FULL_8, _radii(settings))
    else:
        own = _found(algorithm, inside, settings)
    thick = THICK[algorithm]
    height, width = inside.shape
    canvas = pictures.ground(grey, (height, width))
    for shape in own.shapes:
        shape.draw(canvas, found.OUTLINE, thick)
    compared, result = None, Result()
    if stem in sources.truth:
        assert sources.truth_scale is not None
        truth = sources.truth_scale.foreground(levels.read(sources.truth[stem]))
        true = _found(algorithm, truth, settings)
        compared = pictures.ground(None, (height, width))
        for shape in true.shapes:
            shape.fill(compared, found.TRUTH)
        for shape in own.shapes:
            shape.draw(compared, found.OUTLINE, thick)
        result.true = Series.of(stem, true, settings.img_scale)
        result.ious[stem] = found.union_iou(own.covered(), true.covered())
        match = found.matched(true, own)
        result.matches.append(match)
        for first, second in match.pairs.tolist():
            off = own.size[second] - true.size[first]
            result.differences.append(float(off) * settings.img_scale)
    pictures.write(canvas, root / DRAWN / f"{stem}.png")
    if compared is not None:
        pictures.write(compared, root / COMPARED / f"{stem}.png")
    result.predicted = Series.of(stem, own, settings.img_scale)
    result.tables.append(_table(own, sources.masks[stem], grey, settings.img_scale))
    return result


def _found(algorithm: str, inside: NDArray[np.bool_], settings: MeasureSettings) -> Defects:
    if algorithm == "CHAC":
        return chac.chac(inside)
    if algorithm == "BBox":
        return boxes.boxes(inside)
    return bubbles.bubbles(inside, _radii(settings))


def _radii(settings: MeasureSettings) -> tuple[float, float] | None:
    """Return the smallest and the largest radius in px, None where none are asked for."""
    if not settings.bubble_radius or settings.img_scale is None:
        return None
    low, high = settings.bubble_radius
    return low / settings.img_scale, high / settings.img_scale


def _table(own: Defects, mask: Path, grey: Array | None, scale: float) -> Found:
    """Return what is measured of the defects' pixels."""
    inside = (own.labels > 0).astype(np.uint8)
    one = Field(mask, mask.stem, mask.stem, areas(inside, 2), scale)
    picture = None if grey is None else (lambda: grey)
    masked = Masked(one, inside, own.labels, picture)
    whole = Rules(least=Size(0, power=2))
    return next(f for f, _ in find(masked, (1,), 2, whole))


def _write(folder: RunFolder, settings: MeasureSettings, sources: Sources, result: Result) -> None:
    """Write all files, the page, and what stands on the screen."""
    from matssl.pictures import defects as pictures

    start, stop, bins = settings.histogram_bins
    truth = bool(sources.truth)
    own = found.histogram(result.predicted.sizes, start, stop, int(bins))
    true = found.histogram(result.true.sizes, start, stop, int(bins)) if truth else None
    _tab(folder, "defect_sizes.csv", result.predicted.rows)
    series = [("prediction", own.counts)]
    if true is not None:
        _tab(folder, "GT_defect_sizes.csv", result.true.rows)
        _tab(folder, "iou.csv", [{"0": stem, "1": iou} for stem, iou in result.ious.items()])
        series.insert(0, ("truth", true.counts))
    picture = folder.path("defect_size_histogram.png")
    pictures.histogram(own.edges, series, _beyond(own), picture)
    text = _info(settings, result, own, true)
    folder.write_text("info.out", text)
    names = ("", CALLED[settings.chosen_algorithm or ""])
    rows = [
        {**row, "defect size (nm)": size}
        for row, size in zip(
            tables.ObjectRows(result.tables, names, NM), result.predicted.sizes, strict=True
        )
    ]
    table = csv_text(rows, export.columns(rows))
    folder.write_text("objects.csv", export.MARK + table)
    _page(folder, settings, result, text, picture)
    if not settings.quiet:
        print(text, end="")
    print(f"results {folder.root}")


def _tab(folder: RunFolder, name: str, rows: Sequence[Row]) -> None:
    """Write a table as unet-compare does: tabs, columns 0 and 1; an undefined number is empty."""
    lines = ["0\t1"]
    for row in rows:
        value = row["1"]
        assert isinstance(value, float)
        lines.append(f"{row['0']}\t{'' if math.isnan(value) else repr(value)}")
    folder.write_text(name, "\n".join(lines) + "\n")


def _info(settings: MeasureSettings, result: Result, own: Histogram, true: Histogram | None) -> str:
    """Return the lines of info.out: those of unet-compare, then ours."""
    lines = [f"Selected algorithm: {settings.chosen_algorithm}", ""]
    lines += [f"Segmentation directory path: {settings.seg_dir}"]
    lines += [f"TEM directory path: {settings.tem_dir}"]
    lines += [f"Annotation directory path: {settings.ann_dir}", ""]
    lines += _sizes("", result.predicted)
    if true is not None:
        known = [iou for iou in result.ious.values() if not math.isnan(iou)]
        lines += ["", *_sizes("GT ", result.true), ""]
        lines += [f"IOU mean: {_number(float(np.mean(known or [math.nan])))}"]
        lines += [f"IOU standard deviation: {_number(float(np.std(known or [math.nan])))}", ""]
        lines += [f"Defect size histogram L1-distance: {own.distance(true)}"]
    lines += ["", f"Size: {WHAT[settings.chosen_algorithm or '']}"]
    steps = ", ".join(f"{name} {number}" for name, number in result.predicted.steps.items())
    lines += [f"Parts: {steps}"]
    start, stop, bins = settings.histogram_bins
    lines += [
        f"Histogram: {int(bins)} bins from {start:g} to {stop:g} nm; below {own.below}, above "
        f"{own.above}"
    ]
    if true is not None:
        lines += [f"GT histogram: below {true.below}, above {true.above}"]
        lines += _matches(result)
    return "\n".join(lines) + "\n"


def _sizes(what: str, series: Series) -> list[str]:
    first = f"{what}number" if what else "Number"
    size = f"{what}defect size" if what else "Defect size"
    return [
        f"{first} of detected defects: {len(series.sizes)}",
        f"{size} mean (nm): {_number(series.mean)}",
        f"{size} standard deviation (nm): {_number(series.std)}",
    ]


def _matches(result: Result) -> list[str]:
    """Return what the union's IoU hides: which defects are the same."""
    true = sum(one.true for one in result.matches)
    predicted = sum(one.predicted for one in result.matches)
    same = sum(len(one.pairs) for one in result.matches)
    empty = sum(math.isnan(iou) for iou in result.ious.values())
    lines = []
    if empty:
        lines.append(f"IOU undefined, neither has a defect: {counted(empty, 'image')}, left out")
    precision = same / predicted if predicted else math.nan
    recall = same / true if true else math.nan
    f1 = 2 * same / (true + predicted) if true + predicted else math.nan
    lines.append(
        f"Same defects (IOU of their pixels at least 0.5): {same}; precision {_number(precision)}, "
        f"recall {_number(recall)}, F1 {_number(f1)}"
    )
    off = float(np.mean(result.differences)) if result.differences else math.nan
    lines.append(f"Size error of these, mean (nm): {_number(off)}")
    return lines


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.6g}"


def _beyond(own: Histogram) -> str:
    told = [f"{n} {where}" for n, where in ((own.below, "below"), (own.above, "above")) if n]
    return ", ".join(told)


def _page(
    folder: RunFolder, settings: MeasureSettings, result: Result, text: str, picture: Path
) -> None:
    algorithm, own = settings.chosen_algorithm or "", result.predicted
    figures = [(str(len(own.sizes)), "defects")]
    if own.sizes:
        figures.append((f"{own.mean:.4g} nm", "mean size"))
    first = [folder.root / DRAWN / f"{stem}.png" for stem in dict.fromkeys(own.images)][:2]
    shown = "".join(report.picture(path, path.stem, 512) for path in first)
    command = report.text(run_folder.read_text(folder.root / "command.txt"))
    sections = [
        ("", report.headline(figures) + report.note(f"Size: {WHAT[algorithm]}.")),
        ("Sizes", report.picture(picture, "A bar a bin; what lies beyond is in the title.")),
        ("Where they are", shown),
        ("All numbers", report.text(text)),
        ("Command", command),
    ]
    report.write(folder.root / "report.html", folder.root.name, f"defects by {algorithm}", sections)
