"""Tables, plots, panels and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl import baselines, metrics, report
from matssl.core import run_folder
from matssl.core.lineage import Lineage
from matssl.core.run_folder import RunFolder
from matssl.core.tables import filled, percent
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.measure import tables
from matssl.metrics import overlap
from matssl.metrics.calibration import together
from matssl.pictures import reliability
from matssl.pictures import segmentation as pictures
from matssl.stages import console, drawing, held_out
from matssl.stages.evaluate import classifier_error, objects
from matssl.stages.evaluate.published import published_results
from matssl.stages.evaluate.summary import Result
from matssl.stages.failures import Failures

# Panels shown in the report: the worst and the best of many.
SHOWN_PANELS = 6


def worst_and_best(results: Sequence[Result]) -> list[Result]:
    """Return all of a few images, worst first; of many the worst and the best."""
    ordered = sorted(results, key=lambda r: overlap.miou(r.counts) if r.counts is not None else 0.0)
    if len(ordered) <= SHOWN_PANELS:
        return ordered
    half = SHOWN_PANELS // 2
    return [*ordered[:half], *ordered[-half:]]


def draw_panels(
    folder: RunFolder,
    place: Path,
    results: Sequence[Result],
    truth: ClassTable,
    record: Preprocess,
    failed: Failures,
) -> None:
    """Write one panel per image to ``place``, of the masks as they lie in the run folder."""
    for result in results:
        with failed.of(result.pair.image):
            _draw_panel(folder, place, result, truth, record)


def _draw_panel(
    folder: RunFolder, place: Path, result: Result, truth: ClassTable, record: Preprocess
) -> None:
    micrograph = record.frame(result.pair.image)
    image = drawing.shown(micrograph, record)
    title = result.pair.image.name
    mask = None
    if result.counts is not None and result.pair.mask is not None:
        title += f": mIoU {percent(overlap.miou(result.counts))} %"
        raw = readers.read_mask(result.pair.mask)
        mask = record.fitted(truth.decode(raw, str(result.pair.mask)), micrograph)
    drawn = readers.read_mask(folder.path(f"masks/index/{result.name}.png"))
    pictures.panel(
        image,
        mask,
        drawn[: len(image)].astype(np.uint8, copy=False),
        truth.names,
        place / f"{result.name}.png",
        title,
        micrograph.pixel_size,
    )


def write_tables(
    folder: RunFolder,
    results: Sequence[Result],
    summary: Mapping[str, Any],
    names: Sequence[str],
    excluded: Sequence[int] = (),
) -> None:
    """Write metrics.json, confusion.json, evaluation_results.json, per_image.csv, and the plots.

    Args:
        folder: of the run.
        results: of all images.
        summary: their scores together.
        names: of the classes.
        excluded: classes that the published mean leaves out.
    """
    folder.write_json("metrics.json", summary)
    classifier_error.write(folder, results, names, summary)
    for row in filled(_rows(results, names)):
        folder.append_csv("per_image.csv", row)
    scored = [r for r in results if r.truth is not None]
    if scored:
        matrices = [r.counts for r in scored if r.counts is not None]
        published = published_results(matrices, len(names), excluded, str(summary["dataset"]))
        folder.write_json("evaluation_results.json", published)
        pictures.confusion_plot(np.sum(matrices, axis=0), names, folder.path("confusion.png"))
        truth = np.array([r.truth.fractions for r in scored if r.truth is not None])
        predicted = np.array([r.field.fractions for r in scored])
        pictures.fraction_plot(truth, predicted, names, folder.path("fractions.png"))
        _draw_reliability(folder, scored)


def _draw_reliability(folder: RunFolder, scored: Sequence[Result]) -> None:
    """Draw how often pixels are right that are said to be, before and after calibration."""
    parts = [r.reliability for r in scored if r.reliability is not None]
    before, after = (together([part[i] for part in parts]) for i in (0, 1))
    if before is None or after is None:
        return
    curves = {"before calibration": before.points, "after": after.points}
    if before.error == after.error:
        curves = {"": after.points}
    reliability.plot(curves, folder.path("reliability.png"))


def _rows(results: Sequence[Result], names: Sequence[str]) -> list[dict[str, object]]:
    """Return the lines of per_image.csv; where any image is a frame, each has columns for it."""
    placed = any(result.field.sequence for result in results)
    return [_row(result, names, placed) for result in results]


def _row(result: Result, names: Sequence[str], placed: bool) -> dict[str, object]:
    """Return the line of an image in per_image.csv."""
    pair = result.pair
    row: dict[str, object] = {"image": str(pair.image), "split": pair.split, "group": pair.group}
    if placed:
        row |= {"sequence": result.field.sequence, "frame": result.field.frame}
    if result.gathered is not None and result.counts is not None and result.truth is not None:
        row["miou"] = overlap.miou(result.counts)
        row["accuracy"] = overlap.accuracy(result.counts)
        for kind, values in metrics.by_name([result.gathered]).items():
            row |= {f"{kind} {n}": v for n, v in zip(names, values.tolist(), strict=True)}
        row |= objects.cells(result.objects, result.field.pixel_size, names)
        row |= tables.fraction_cells(result.truth, names, "true fraction")
    row |= tables.fraction_cells(result.field, names, "predicted fraction")
    return row | {"pixel_size_nm": result.field.pixel_size}


def write_report(
    folder: RunFolder,
    results: Sequence[Result],
    summary: Mapping[str, Any],
    names: Sequence[str],
    facts: str,
    panels: Path,
    beside: Sequence[tuple[str, str]] = (),
) -> None:
    """Write report.html.

    Args:
        folder: of the run.
        results: of all images.
        summary: their scores together.
        names: of the classes.
        facts: what was found of the images, in words.
        panels: folder of the pictures of images.
        beside: further parts, each heading and HTML, behind the scores.
    """
    root = folder.root
    colours = pictures.colour_names(names)
    sections: list[tuple[str, str]] = []
    if "pooled" in summary:
        sections += _score_sections(root, summary, colours)
    else:
        images = (str(len(results)), "images predicted")
        sections.append(("", report.headline([images]) + _warnings(summary)))
    sections += beside
    sections.append(("Phase fractions", _fraction_section(root, summary, colours)))
    sections.append(("Images", _panel_section(panels, results)))
    sections.append(("All images", report.table(filled([_image_row(r, names) for r in results]))))
    sections.append(
        ("Where the model comes from", report.text(Lineage.read(summary["lineage"]).text()))
    )
    sections.append(("Data", report.text(facts)))
    sections.append(("Command", report.text(run_folder.read_text(root / "command.txt"))))
    title = f"{summary['dataset']}: segmentation into {', '.join(names)}"
    subtitle = f"{summary['split']} images, model {summary['model']}"
    report.write(root / "report.html", title, subtitle, sections)


def _score_sections(
    root: Path, summary: Mapping[str, Any], colours: dict[str, str]
) -> list[tuple[str, str]]:
    by_class = [
        {"class": name, **{kind.replace("_", " "): value for kind, value in scores.items()}}
        for name, scores in summary["pooled"]["classes"].items()
    ]
    body = report.beside(
        report.table(by_class, swatches=colours),
        report.picture(root / "confusion.png", width=400),
    )
    return [
        ("", _headline(summary)),
        ("Scores by class", body),
        *_object_section(summary, colours),
        ("Beside simpler methods", _rivals(summary)),
        *_calibration(root, summary),
    ]


def _object_section(summary: Mapping[str, Any], colours: dict[str, str]) -> list[tuple[str, str]]:
    if "objects" not in summary:
        return []
    table = report.table(objects.rows(summary["objects"]), swatches=colours)
    return [("Objects", table + report.note(objects.notes(summary["objects"])))]


def _headline(summary: Mapping[str, Any]) -> str:
    """Return the scores in large figures, and what is to be known about them."""
    pooled = summary["pooled"]
    means = pooled["means"]
    figures = [(f"{percent(means['miou'])} %", "mean IoU, all pixels pooled")]
    if pooled["miou_interval_95"]:
        low, high = map(percent, pooled["miou_interval_95"])
        unit = pooled["interval_over"]
        figures.append((f"{low} – {high} %", f"95 % interval over {unit}"))
    figures.append((f"{percent(means['mdice'])} %", "mean Dice"))
    figures.append((f"{percent(means['accuracy'])} %", "right pixels"))
    figures.append((str(summary["images_with_truth"]), "images"))
    head = report.headline(figures)
    if not pooled["miou_interval_95"]:
        head += report.note(_no_interval(pooled))
    head += _warnings(summary)
    if means["absent_classes"]:
        names = ", ".join(summary["classes"][i] for i in means["absent_classes"])
        head += report.note(f"In neither truth nor prediction, left out of the means: {names}.")
    each = summary["per_image"]
    if summary["images_with_truth"] > 1:
        head += report.note(
            f"Image by image the mean IoU is {percent(each['miou_mean'])} % with a standard "
            f"deviation of {percent(each['miou_std'])}, from {percent(each['miou_min'])} to "
            f"{percent(each['miou_max'])} %."
        )
    return head


def _no_interval(pooled: Mapping[str, Any]) -> str:
    """Return why the mean IoU has no interval, and what it would take."""
    groups, lonely = pooled["groups"], pooled["interval_lonely"]
    if lonely is not None:
        return (
            f"No interval: of {groups} independent specimens or fields a single one has {lonely} "
            "in truth or prediction; more with this class are needed."
        )
    return (
        f"No interval: {groups} independent specimens or fields are too few for one, "
        f"{pooled['interval_needs']} carry it."
    )


def _warnings(summary: Mapping[str, Any]) -> str:
    """Return what is to be known before any number is believed."""
    return "".join(report.note(f"Warning: {warning}.") for warning in summary["warnings"])


def _rivals(summary: Mapping[str, Any]) -> str:
    """Return the scores of the baselines below those of the model."""
    if "baselines" not in summary:
        why = "they need the model's training images in the same folder"
        off = not summary["baselines_wanted"]
        return report.note(f"None: {'--no-baselines switched them off' if off else why}.")
    pooled = summary["pooled"]
    means = pooled["means"]
    rows = [{"method": "this model", "mean IoU": means["miou"], "accuracy": means["accuracy"]}]
    rows[0] |= {f"IoU {n}": s["IoU"] for n, s in pooled["classes"].items()}
    for name, entry in summary["baselines"].items():
        row = {"method": name, "mean IoU": entry["miou"], "accuracy": entry["accuracy"]}
        rows.append(row | {f"IoU {n}": v for n, v in entry["iou"].items()})
    note = (
        "Fitted on the training images of this folder. The random forest looks at filters of the "
        f"picture alone, as ilastik and Weka do, with {baselines.TREES} trees from "
        f"{baselines.SAMPLES:,} pixels (train_finetune.py --head forest takes more), and is asked "
        f"for {baselines.ASKED:,} pixels of an image at most, on a grid; the pixel classifier is a "
        "linear one on this model's own encoder."
    )
    return report.table(rows, strong=[0]) + report.note(note)


def _calibration(root: Path, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return whether pixels are right as often as the model says."""
    if "calibration" not in summary:
        return []
    entry = summary["calibration"]
    after = f"{percent(entry['ece_after'])} % (15 bins, all labelled pixels)"
    surplus = entry["confidence_minus_accuracy"]
    lean = f"on the whole {percent(abs(surplus))} points too {'sure' if surplus > 0 else 'unsure'}"
    said = f"Expected calibration error {after}; {lean}."
    if entry["ece_before"] != entry["ece_after"]:
        said += (
            f" It was {percent(entry['ece_before'])} % before the temperature that training fitted "
            "on its validation images; masks do not change by it."
        )
    body = report.picture(root / "reliability.png", width=400) + report.note(said)
    return [("Calibration of the probabilities", body)]


def _fraction_section(root: Path, summary: Mapping[str, Any], colours: dict[str, str]) -> str:
    rows, known = [], summary["classifier_error"]
    for name, entry in summary["phase_fractions"].items():
        row = {"class": name, "predicted %": _fraction(entry["predicted"])}
        if "truth" in entry:
            row["true %"] = _fraction(entry["truth"])
            row["mean error"] = f"{100 * entry['mean_error']:+.2f}"
            row["mean absolute error"] = percent(entry["mean_absolute_error"], digits=2)
        if known["corrected"]:
            row["corrected %"] = held_out.ends_text(known["corrected"].get(name))
        rows.append(row)
    note = tables.FRACTION_NOTE
    if any("truth" in entry for entry in summary["phase_fractions"].values()):
        note += " Errors are means over images."
    left = report.table(rows, swatches=colours)
    left += "".join(report.note(text) for text in (note, *known["notes"]))
    return report.beside(left, report.picture(root / "fractions.png", width=400))


def _fraction(entry: Mapping[str, Any]) -> str:
    if entry["scale"] in ("none", "t"):
        return percent(entry["mean"], entry["half_width"], 2)
    return held_out.ends_text(entry)


def _panel_section(panels: Path, results: Sequence[Result]) -> str:
    shown = worst_and_best(results)
    if any(r.counts is not None for r in results):
        order = "the worst first" if len(shown) == len(results) else "the worst and the best"
    else:
        order = "in the order of the folder"
    note = report.note(f"{len(shown)} of {len(results)} images, {order}.")
    return note + "".join(report.picture(panels / f"{r.name}.png") for r in shown)


def _image_row(result: Result, names: Sequence[str]) -> dict[str, object]:
    """Return the line of an image in the report."""
    row: dict[str, object] = {"image": result.pair.image.name, "group": result.pair.group}
    if result.counts is not None:
        row["mean IoU"] = overlap.miou(result.counts)
        values = overlap.iou(result.counts).tolist()
        row |= {f"IoU {n}": v for n, v in zip(names, values, strict=True)}
    return row | tables.percent_cells(result.field, names)


def print_summary(folder: RunFolder, summary: Mapping[str, Any], source: str = "") -> None:
    """Print the scores and area fractions, and where the report lies.

    Args:
        folder: of the run.
        summary: all scores.
        source: what says which images are of one specimen, in words.
    """
    if "pooled" in summary:
        pooled = summary["pooled"]
        interval = pooled["miou_interval_95"]
        text = f"mIoU {percent(pooled['means']['miou'])} %"
        if interval:
            low, high = map(percent, interval)
            text += f" (95 % interval {low} to {high})"
        print(f"{text}, {counted(summary['images_with_truth'], 'image')}")
        if "miou_without_excluded" in pooled["means"]:
            left = percent(pooled["means"]["miou_without_excluded"])
            print(f"  mIoU without the excluded classes {left} %")
        for name, scores in pooled["classes"].items():
            print(f"  {name:<24} IoU {100 * scores['IoU']:5.1f}  Dice {100 * scores['Dice']:5.1f}")
        for name, found in summary.get("objects", {}).items():
            print(
                f"  objects {name}: {found['predicted']} predicted, {found['true']} true, "
                f"{found['matched']} matched (F1 {percent(found['f1'])}, panoptic quality "
                f"{percent(found['pq'])})"
            )
        for name, entry in summary.get("baselines", {}).items():
            print(f"  baseline {name}: mIoU {percent(entry['miou'])}")
    fields = summary["images"]
    for name, entry in summary["phase_fractions"].items():
        print(f"  area fraction {name}: {_fraction(entry['predicted'])} %")
        fields = entry["predicted"]["specimens"]
    for name, entry in summary["classifier_error"]["corrected"].items():
        print(f"  corrected for the model's error, {name}: {held_out.ends_text(entry)} %")
    print(console.specimens_text(fields, summary["images"], source), end="")
    print(f"report: {folder.root / 'report.html'}", flush=True)
