"""A checkpoint and a folder to scores, masks, pictures and a report."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from matssl import baselines, hub, preflight, report, tiling, weights
from matssl.core import checkpoint, runtime
from matssl.core.config import EvaluateConfig, to_dict
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.core.runtime import Runtime
from matssl.core.wording import counted, lineage_text
from matssl.data import layouts, masks, readers, specimens
from matssl.data.layouts import Dataset, Pair
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.metrics import SCORES, overlap, sampling
from matssl.metrics import counts as counting
from matssl.models.encoders import channels_last
from matssl.models.segmentation import SegmentationModel, build_model
from matssl.pictures import segmentation as pictures
from matssl.stages import drawing, progress
from matssl.weights.layouts import Content

# Images a "batch" of the published result file stands for.
PUBLISHED_BATCH = 128
# Side of the square that the published code resizes images to.
PUBLISHED_SIZE = 256
# Panels shown in the report: the worst and the best of many.
SHOWN_PANELS = 6
# Masks repeat from row to row: the difference to the row above in runs is smaller and several times
# faster than the writer's own choice.
MASK_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)
# Names that a class table gives to classes nobody has named.
UNNAMED = re.compile(r"class \d+|background|foreground|matrix")


@dataclass(frozen=True)
class Loaded:
    """A fine-tuned model and all it needs to be used; ``note`` says what had to be assumed."""

    model: SegmentationModel
    record: Preprocess
    table: ClassTable
    payload: dict[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What one image gave.

    Attributes:
        pair: image, mask and group.
        name: of its output files.
        counts: int64 (C, C), None without a mask.
        fractions: predicted area fraction of each class, over the labelled pixels where there is
            a mask (what the true fraction is taken over), else over all.
        pixel_size: nm, None where unknown.
        baseline_counts: confusion matrix of each baseline by name.
        digest: SHA-256 of the image's pixels as they lie in its file.
    """

    pair: Pair
    name: str
    counts: NDArray[np.int64] | None
    fractions: NDArray[np.float64]
    pixel_size: float | None
    baseline_counts: dict[str, NDArray[np.int64]]
    digest: str


def evaluate(config: EvaluateConfig, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return the folder of the results.

    Args:
        config: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = runtime.setup(config)
    root = _root(config)
    if not rt.is_main:
        # Under torchrun one process evaluates; the result would be the same.
        runtime.close()
        return root
    RunFolder.check(root, False, config.overwrite, resumable=False)
    loaded = load_model(config.model_path, config.input_size)
    if config.n_classes is not None and config.n_classes != loaded.table.num_classes:
        raise UserError(
            f"--n_classes {config.n_classes}, but the model has {loaded.table.num_classes} "
            f"({', '.join(loaded.table.names)})"
        )
    pixel_size = readers.parse_pixel_size(config.pixel_size)
    record = loaded.record
    if pixel_size is not None:
        record = replace(record, pixel_size=pixel_size)
    _excluded(config, loaded.table)
    dataset = _dataset(config, loaded)
    pairs = _chosen(config, dataset, loaded)
    truth = _check_masks(pairs, _truth_table(config, dataset, loaded), loaded.table, record)
    shown = replace(dataset, pairs=tuple(pairs), table=truth if _masks(pairs) else None)
    facts = preflight.examine_dataset(shown, record).text()
    if loaded.note:
        facts = f"{loaded.note}\n{facts}"
    progress.say(config, rt, facts)
    progress.say(config, rt, f"device  {rt.describe()}\nfolder  {root}")
    warnings = _leaks(pairs, loaded)
    for warning in warnings:
        progress.say(config, rt, f"warning {warning}")

    channels_last(loaded.model).to(rt.device).eval()
    folder = RunFolder.at(root, False, config.overwrite, rt.is_main)
    folder.start(to_dict(config), argv)
    folder.write_text("preflight.txt", facts + "\n")
    rivals = _baselines(config, rt, dataset, pairs, loaded, truth, record)
    results = []
    with runtime.memory_errors("--tile_size or --batch_size"):
        named = list(
            zip(
                pairs,
                drawing.output_names([pair.image for pair in pairs], dataset.root),
                strict=True,
            )
        )
        bar = tqdm(total=len(named), desc="predicting", disable=config.quiet or None)
        # One thread reads ahead: more would only hold more images.
        read = prefetched(
            lambda i: record.read(pairs[i].image), range(len(pairs)), min(1, rt.workers)
        )
        for (pair, name), micrograph in zip(named, read, strict=True):
            results.append(
                _one_image(
                    config, rt, folder, pair, micrograph, name, loaded, truth, record, rivals
                )
            )
            bar.update()
        bar.close()
    copies = _copies(results, loaded)
    for warning in copies:
        progress.say(config, rt, f"warning {warning}")
    metrics = summarise(results, loaded.table, config)
    metrics |= {
        "model": str(config.model_path),
        "dataset": config.dataset_name or dataset.root.name,
        "split": config.split or (pairs[0].split if pairs else ""),
        "lineage": loaded.payload.get("lineage", []),
        "warnings": [*warnings, *copies],
        "baselines_wanted": config.baselines,
    }
    _write(folder, results, metrics, loaded.table, config)
    with tempfile.TemporaryDirectory(prefix=".panels", dir=root) as scratch:
        place = Path(scratch)
        if config.save_visualizations:
            place = root / "visualizations"
            place.mkdir()
        drawn = results if config.save_visualizations else _worst_and_best(results)
        _panels(folder, place, drawn, truth, record)
        if config.save_visualizations:
            _published_names(place, results)
        _report(folder, results, metrics, loaded.table, facts, place)
    folder.status("done", images=len(results))
    _print(folder, metrics, config)
    runtime.close()
    return root


def load_model(path: str | Path, input_size: int | None = None) -> Loaded:
    """Return the model in a checkpoint of fine-tuning, with its record and class table.

    Args:
        path: a checkpoint, or a raw state dict of segmentation-models-pytorch.
        input_size: square resize; None keeps that of the checkpoint.

    Raises:
        UserError: no such checkpoint, or one that is incomplete.
    """
    if input_size is not None and input_size < 32:
        raise UserError(f"--input_size must be at least 32, not {input_size}")
    path = hub.locate(path)
    content = weights.read(path)
    if not content.facts.get("format"):
        return _published_model(content, input_size or PUBLISHED_SIZE)
    payload = checkpoint.checked(content.payload, path, stage="finetune")
    try:
        model = build_model(**payload["model"])
        state = payload["state"]
        if any(key.startswith("ema.") for key in state):
            # last.ckpt holds both; the averaged weights are the ones that were validated.
            state = {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
        model.load_state_dict(state)
        record = Preprocess.from_dict(payload["preprocess"])
        if input_size is not None:
            record = replace(record, resize=input_size)
        table = ClassTable.from_dict(payload["classes"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is incomplete or damaged: {str(error).splitlines()[0]}") from error
    return Loaded(model, record, table, payload)


def _published_model(content: Content, input_size: int) -> Loaded:
    """Return the model of a raw state dict, as the MatSSL code publishes its fine-tuned ones.

    Such a file holds tensors alone. What they do not say is taken as published: images resized to
    a square and normalised like ImageNet's; of two classes, the second is every mask value above 0.
    """
    description = weights.segmentation_description(content)
    model = build_model(**description)
    wanted = model.state_dict()
    fitting = {k: v for k, v in content.tensors.items() if k in wanted}
    absent = [k for k in wanted if k not in fitting and not k.endswith(weights.HARMLESS)]
    misfits = [k for k, v in fitting.items() if v.shape != wanted[k].shape]
    if absent or misfits:
        raise UserError(
            f"{content.path} is no complete {description['decoder']} on {description['encoder']}: "
            f"{len(absent)} tensors are missing, {len(misfits)} have another shape (first: "
            f"{(absent + misfits)[0]})"
        )
    model.load_state_dict(fitting, strict=False)
    count = description["num_classes"]
    channels = description["in_channels"]
    mean, std = weights.IMAGENET_MEAN, weights.IMAGENET_STD
    if channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)  # type: ignore[assignment]
    record = Preprocess(
        window="dtype", resize=input_size, mean=mean, std=std, channels=channels, crop_bottom="auto"
    )
    two = count == 2
    numbered = ClassTable("index", tuple(MaskClass(i, f"class {i}", (i,)) for i in range(count)))
    table = masks.binary_table() if two else numbered
    meaning = "0 is background, every other value foreground" if two else f"0 to {count - 1}"
    note = (
        f"model   raw state dict: {description['decoder']} on {description['encoder']}, {count} "
        f"classes, {channels} channels, read off its tensors\n"
        f"note    it does not say how to use it; assumed as published: images resized to "
        f"{input_size} x {input_size} (--input_size), ImageNet normalisation, mask values: "
        f"{meaning}"
    )
    return Loaded(model, record, table, {"model": description, "raw": True}, note)


def summarise(
    results: Sequence[Result], table: ClassTable, config: EvaluateConfig
) -> dict[str, Any]:
    """Return all scores as plain values; every one a function of the confusion matrices."""
    scored = [r for r in results if r.counts is not None]
    summary: dict[str, Any] = {
        "images": len(results),
        "images_with_truth": len(scored),
        "classes": list(table.names),
        "phase_fractions": _fractions(results, table),
    }
    if not scored:
        return summary
    matrices = [r.counts for r in scored if r.counts is not None]
    pooled = np.sum(matrices, axis=0)
    groups = [r.pair.group for r in scored]
    by_group = len(set(groups)) < len(groups)
    interval = sampling.bootstrap(matrices, groups, overlap.miou, config.bootstrap, config.seed)
    per_image = np.array([overlap.miou(c) for c in matrices])
    summary["pooled"] = {
        "classes": _by_class(pooled, table),
        "means": overlap.means(pooled, _excluded(config, table)),
        "miou_interval_95": interval,
        "interval_resamples": "groups" if by_group else "images",
        "groups": len(set(groups)),
    }
    summary["per_image"] = {
        "miou_mean": float(np.nanmean(per_image)),
        "miou_std": float(np.nanstd(per_image, ddof=1)) if len(per_image) > 1 else None,
        "miou_min": float(np.nanmin(per_image)),
        "miou_max": float(np.nanmax(per_image)),
    }
    summary["confusion"] = pooled.tolist()
    if scored[0].baseline_counts:
        summary["baselines"] = {}
        for name in scored[0].baseline_counts:
            total = np.sum([r.baseline_counts[name] for r in scored], axis=0)
            iou = dict(zip(table.names, overlap.iou(total).tolist(), strict=True))
            entry = {"miou": overlap.miou(total), "iou": iou, "accuracy": overlap.accuracy(total)}
            summary["baselines"][name] = entry
    return summary


def _excluded(config: EvaluateConfig, table: ClassTable) -> tuple[int, ...]:
    """Return the indices of ``--exclude_classes``.

    Raises:
        UserError: a name that the model does not know, or all of them.
    """
    names = [word.strip() for word in (config.exclude_classes or "").split(",") if word.strip()]
    unknown = [name for name in names if name not in table.names]
    if unknown or len(set(names)) == table.num_classes:
        raise UserError(
            f"--exclude_classes {config.exclude_classes}: the model knows "
            f"{', '.join(table.names)}, and at least one must be left"
        )
    return tuple(sorted({table.names.index(name) for name in names}))


def published_results(
    matrices: Sequence[NDArray[np.int64]], num_classes: int, excluded: Sequence[int] = ()
) -> dict[str, Any]:
    """Return ``evaluation_results.json`` with the keys of the MatSSL code.

    Absent classes count 0, as published. ``mean_IOU_no_minority``, which the published code never
    computes, is the mean without the excluded classes, without class 3 where none are named.
    """
    batches = [
        np.sum(matrices[i : i + PUBLISHED_BATCH], axis=0)
        for i in range(0, len(matrices), PUBLISHED_BATCH)
    ]
    entries = []
    for number, counts in enumerate(batches):
        scores = np.nan_to_num(overlap.iou(counts))
        iou = {f"IOU_{i}": float(s) for i, s in enumerate(scores)}
        entries.append({"batch_idx": number, "iou": {**iou, "mean_IOU": float(scores.mean())}})
    mean = np.mean([np.nan_to_num(overlap.iou(c)) for c in batches], axis=0)
    kept = [i for i in range(num_classes) if i not in (excluded or (3,))]
    result: dict[str, Any] = {
        "avg_class_ious": {
            **{str(i): float(s) for i, s in enumerate(mean)},
            "mean_IOU_no_minority": float(mean[kept].mean()),
            "mean_IOU": float(mean.mean()),
        },
        "batch_results": entries,
    }
    if num_classes == 2:
        pooled = np.sum(matrices, axis=0)
        (tn, fp), (fn, tp) = pooled.tolist()
        result["pixel_metrics"] = {
            "precision": float(np.nan_to_num(overlap.precision(pooled)[1])),
            "recall": float(np.nan_to_num(overlap.recall(pooled)[1])),
            "f1_score": float(np.nan_to_num(overlap.dice(pooled)[1])),
            "accuracy": overlap.accuracy(pooled),
            "true_positives": tp,
            "false_positives": fp,
            "false_negatives": fn,
            "true_negatives": tn,
        }
    return result


def _root(config: EvaluateConfig) -> Path:
    if config.output_dir is not None:
        return progress.given_folder(config.output_dir, config.name)
    model = hub.locate(config.model_path).resolve()
    data = (config.dataset_name or Path(config.dataset).resolve().name).replace(" ", "_")
    split = f"-{config.split}" if config.split else ""
    if any(sign in f"{config.dataset_name or ''}{config.name or ''}" for sign in ("/", "\\", "..")):
        raise UserError(
            "--name and --dataset_name are words without slashes; --output_dir is a path"
        )
    trained = model.parent.name if model.stem in ("best", "last") else model.stem
    name = config.name or f"{trained}-on-{data}{split}"
    return Path("experiments") / "eval" / name


def _dataset(config: EvaluateConfig, loaded: Loaded) -> Dataset:
    """Return the data set in the folder; splits are cut as they were for training."""
    table = loaded.table
    if config.classes and config.classes != masks.BINARY and not _is_file_name(config.classes):
        names = tuple(word.strip() for word in config.classes.split(","))
        if names != table.names:
            raise UserError(
                f"--classes names {', '.join(names)}; the model knows {', '.join(table.names)}"
            )
    recipe = loaded.payload.get("recipe", {})
    trained_on = recipe.get("finetune_dataset")
    at_home = trained_on and Path(trained_on).resolve() == Path(config.dataset).resolve()
    dataset = layouts.find(
        config.dataset,
        splits=config.splits or (recipe.get("splits") if at_home else None),
        group_regex=config.group_regex or (recipe.get("group_regex") if at_home else None),
        seed=int(recipe.get("seed", 0)),
        need_masks=False,
        table=table,
    )
    specimens.check_regex([pair.image for pair in dataset.pairs], config.group_regex)
    return dataset


def _chosen(config: EvaluateConfig, dataset: Dataset, loaded: Loaded) -> list[Pair]:
    """Return the images to evaluate: the split asked for, else test, else all."""
    if config.split is not None:
        pairs = list(dataset.split(config.split))
        if not pairs:
            raise UserError(
                f"{dataset.root} has no split {config.split!r}; there are: "
                f"{', '.join(dataset.splits)}"
            )
        return pairs
    automatic = any(note.startswith("no split given") for note in dataset.notes)
    trained = _trained_images(loaded)
    if automatic and not any(str(pair.image) in trained for pair in dataset.pairs):
        # Nobody cut this folder and the model has not seen it: every image is a test.
        return list(dataset.pairs)
    return list(dataset.split("test") or dataset.pairs)


def _trained_images(loaded: Loaded) -> set[str]:
    return set(loaded.payload.get("progress", {}).get("train_images", []))


def _masks(pairs: Sequence[Pair]) -> list[Path]:
    return [pair.mask for pair in pairs if pair.mask is not None]


def _is_file_name(classes: str) -> bool:
    return classes.lower().endswith((".yaml", ".yml", ".csv"))


def _truth_table(config: EvaluateConfig, dataset: Dataset, loaded: Loaded) -> ClassTable:
    """Return the table that makes the model's class numbers of the folder's masks.

    It is the model's own, unless a class file (``--classes`` or in the folder) says what the
    values mean here: then classes are matched by name, whatever their values.

    Raises:
        UserError: the classes of the folder are not those of the model; both are named.
    """
    paths = _masks(dataset.pairs)
    table = loaded.table
    given = config.classes if config.classes and _is_file_name(config.classes) else None
    if config.classes == masks.BINARY or (table.binary and not given):
        return _binary(table)
    if loaded.payload.get("raw") and not config.classes:
        return table
    if not paths:
        return table
    if given or any((dataset.root / name).is_file() for name in masks.CLASS_FILES):
        own, _ = masks.find_table(paths, given, dataset.root)
        present = {c.name for c in own.classes if c.pixels}
        if present <= set(table.names):
            return _matched(own, table)
        values = [c.values for c in own.classes] == [c.values for c in table.classes]
        if not values or not all(UNNAMED.fullmatch(name) for name in table.names):
            raise _other_classes(dataset.root, own, table)
    elif table.rest_index is not None:
        # Every value decodes where the rest is a class; a colour of its own must not vanish there.
        try:
            own, _ = masks.find_table(paths)
        except UserError:
            return table
        if not {v for c in own.classes for v in c.values} <= {
            v for c in table.classes for v in c.values
        }:
            raise _other_classes(dataset.root, own, table)
    return table


def _binary(table: ClassTable) -> ClassTable:
    """Return the table of a model of two classes for masks with any number of values above 0."""
    if table.num_classes != 2:
        raise UserError(
            f"--classes binary is for a model of two classes; it knows {', '.join(table.names)}"
        )
    own = masks.binary_table()
    return replace(
        own,
        classes=tuple(replace(c, name=n) for c, n in zip(own.classes, table.names, strict=True)),
    )


def _matched(own: ClassTable, table: ClassTable) -> ClassTable:
    """Return the model's classes with the values that mean them in the masks of ``own``."""
    by_name = {c.name: c for c in own.classes}
    classes = tuple(
        replace(c, values=by_name[c.name].values if c.name in by_name else ())
        for c in table.classes
    )
    rest = None if own.rest_index is None else table.names.index(own.names[own.rest_index])
    return replace(own, classes=classes, rest_index=rest)


def _other_classes(root: Path, own: ClassTable, table: ClassTable) -> UserError:
    return UserError(
        f"the classes of {root} ({_listed(own)}) and of the model ({_listed(table)}) differ; "
        "a file with the model's names for these values (--classes FILE.yaml) would match them"
    )


def _listed(table: ClassTable) -> str:
    return "; ".join(f"{c.name} = {', '.join(map(str, c.values)) or 'rest'}" for c in table.classes)


def _check_masks(
    pairs: Sequence[Pair], truth: ClassTable, table: ClassTable, record: Preprocess
) -> ClassTable:
    """Read every mask once before anything is written; return the table with its pixels counted.

    Raises:
        UserError: another kind of mask or values that the model does not know; both are named.
    """
    pixels = np.zeros(truth.num_classes, np.int64)
    explained = 0
    rest = IGNORE if truth.rest_index is None else truth.rest_index
    for pair in pairs:
        if pair.mask is None:
            continue
        raw = readers.read_mask(pair.mask)
        try:
            decoded = truth.decode(raw, str(pair.mask))
        except UserError as error:
            raise UserError(
                f"the masks and the model differ: {error}. The model has "
                f"{table.num_classes} classes ({_listed(table)})"
            ) from error
        record.mask(decoded, record.read(pair.image))
        sizes = np.bincount(decoded.ravel(), minlength=256)
        pixels += sizes[: truth.num_classes]
        explained += int(sizes[:IGNORE].sum() - (sizes[rest] if rest != IGNORE else 0))
    paths = _masks(pairs)
    if paths and pixels.sum() == 0:
        raise UserError(f"every pixel of every mask in {paths[0].parent} is to be ignored")
    if paths and explained == 0:
        raise UserError(
            f"no mask of {paths[0].parent} holds a colour of the model's classes "
            f"({', '.join(table.names)}); the data set has other classes"
        )
    share = pixels / max(1, pixels.sum())
    counted = zip(truth.classes, pixels.tolist(), share.tolist(), strict=True)
    return replace(truth, classes=tuple(replace(c, pixels=n, share=f) for c, n, f in counted))


def _leaks(pairs: Sequence[Pair], loaded: Loaded) -> list[str]:
    """Return a warning where evaluated images, or others of their specimens, were trained on."""
    known = _trained_images(loaded)
    recipe = loaded.payload.get("recipe", {})
    home = Path(recipe.get("finetune_dataset") or "/").resolve()
    own = specimens.groups_of([Path(path) for path in sorted(known)], recipe.get("group_regex"))
    # In another folder the same name is another specimen.
    seen = set(own) if all(home in p.image.resolve().parents for p in pairs) else set()
    exact = [p for p in pairs if str(p.image) in known]
    # Names mean little elsewhere: the pixels are compared, where the checkpoint knows them.
    names = set() if _trained_pixels(loaded) else {Path(path).name for path in known}
    same = [p for p in pairs if p in exact or p.image.name in names]
    shared = sorted({p.group for p in pairs} & seen)
    count = sum(p.group in shared for p in pairs)
    found = []
    if shared:
        some = f"{', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''}"
        found = [f"{count} of {len(pairs)} images are of specimens it was trained on ({some})"]
    if not same:
        return found
    what = "are training images of this model" if exact else "have names of its training images"
    scored = "; the scores are no test of it" if _masks(pairs) else ""
    return [f"{len(same)} of {len(pairs)} images {what}{scored}"]


def _trained_pixels(loaded: Loaded) -> set[str]:
    return set(loaded.payload.get("progress", {}).get("train_digests", []))


def _copies(results: Sequence[Result], loaded: Loaded) -> list[str]:
    """Return warnings where images are known to the model, whatever their files are called."""
    paths, pixels = _trained_images(loaded), _trained_pixels(loaded)
    lineage = loaded.payload.get("lineage", [])
    guides = {digest for entry in lineage for digest in entry.get("labelled_digests", [])} - pixels
    copies = [r.name for r in results if r.digest in pixels and str(r.pair.image) not in paths]
    labels = [r.name for r in results if r.digest in guides]
    scored = "; the scores are no test of it" if any(r.pair.mask for r in results) else ""
    return [
        f"{len(names)} of {len(results)} images {what} "
        f"({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}){scored}"
        for names, what in (
            (copies, "are copies of training images of this model"),
            (labels, "guided or judged the pretraining of this model with their masks"),
        )
        if names
    ]


def _baselines(
    config: EvaluateConfig,
    rt: Runtime,
    dataset: Dataset,
    pairs: Sequence[Pair],
    loaded: Loaded,
    truth: ClassTable,
    record: Preprocess,
) -> list[baselines.Baseline]:
    """Return the baselines fitted on the images that the model learned from.

    None where no evaluated image has a mask, or where the training images are not in the folder.
    """
    if not config.baselines or not any(pair.mask for pair in pairs):
        return []
    used = {Path(path).name for path in _trained_images(loaded)}
    train = [p for p in dataset.split("train") if p.mask and (not used or p.image.name in used)]
    train = [p for p in train if p not in pairs]
    if not train:
        return []
    from matssl.data import crops

    data = crops.load(train, record, truth)
    classes = loaded.table.num_classes
    return [
        baselines.majority(data.masks, classes),
        baselines.grey_levels(data.planes, data.masks, classes),
        baselines.pixel_classifier(
            loaded.model.encoder, record.tensor, data.planes, data.masks, classes, rt.device
        ),
    ]


def _one_image(
    config: EvaluateConfig,
    rt: Runtime,
    folder: RunFolder,
    pair: Pair,
    micrograph: Micrograph,
    name: str,
    loaded: Loaded,
    truth: ClassTable,
    record: Preprocess,
    rivals: Sequence[baselines.Baseline],
) -> Result:
    """Predict one image, write its files, return its counts."""
    count = loaded.table.num_classes
    plane = record.plane(micrograph)
    shape = (record.kept_rows(micrograph), micrograph.pixels.shape[1])
    with tempfile.TemporaryDirectory(prefix=".tiles", dir=folder.root) as scratch:
        probabilities = tiling.predict(
            loaded.model,
            record.tensor(plane),
            tile_size=config.tile_size,
            overlap=config.overlap,
            tta=config.tta,
            batch=config.batch_size,
            device=rt.device,
            autocast=rt.autocast,
            out=drawing.large((count, *plane.shape[:2]), Path(scratch)),
        )
        probabilities = _native(probabilities, shape)
        prediction = _most_likely(probabilities)
        if config.save_probabilities:
            with atomic_path(folder.path(f"probabilities/{name}.tif")) as temporary:
                half = probabilities.astype(np.float16)
                tifffile.imwrite(temporary, half, compression="zlib", photometric="minisblack")
    _write_masks(folder, name, prediction, micrograph, count)
    fractions = np.bincount(prediction.ravel(), minlength=count) / prediction.size
    counts = None
    rival_counts = {}
    if pair.mask is not None:
        mask = truth.decode(readers.read_mask(pair.mask), str(pair.mask))[: shape[0]]
        counts = counting.confusion(mask, prediction, count)
        for rival in rivals:
            guess = rival.predict(plane)
            if guess.shape != shape:
                guess = cv2.resize(guess, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            rival_counts[rival.name] = counting.confusion(mask, guess, count)
        if counts.sum() == 0:
            counts, rival_counts = None, {}
        else:
            fractions = counts.sum(axis=0) / counts.sum()
    pixels = readers.digest(micrograph.pixels)
    return Result(pair, name, counts, fractions, micrograph.pixel_size, rival_counts, pixels)


def _most_likely(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the class of each pixel, in strips so that the index array stays small."""
    result = np.empty(probabilities.shape[1:], np.uint8)
    for top in range(0, len(result), 1024):
        result[top : top + 1024] = probabilities[:, top : top + 1024].argmax(axis=0)
    return result


def _worst_and_best(results: Sequence[Result]) -> list[Result]:
    """Return all of a few images, worst first; of many the worst and the best."""
    ordered = sorted(results, key=lambda r: overlap.miou(r.counts) if r.counts is not None else 0.0)
    if len(ordered) <= SHOWN_PANELS:
        return ordered
    half = SHOWN_PANELS // 2
    return [*ordered[:half], *ordered[-half:]]


def _panels(
    folder: RunFolder,
    place: Path,
    results: Sequence[Result],
    truth: ClassTable,
    record: Preprocess,
) -> None:
    """Write one panel per image to ``place``, of the masks as they lie in the run folder."""
    for result in results:
        micrograph = record.read(result.pair.image)
        image = drawing.shown(micrograph, record)
        title = result.pair.image.name
        mask = None
        if result.counts is not None and result.pair.mask is not None:
            title += f": mIoU {100 * overlap.miou(result.counts):.1f} %"
            raw = readers.read_mask(result.pair.mask)
            mask = truth.decode(raw, str(result.pair.mask))[: len(image)]
        drawn = readers.read_mask(folder.path(f"masks/index/{result.name}.png"))
        pictures.panel(
            image,
            mask,
            drawn[: len(image)].astype(np.uint8),
            truth.names,
            place / f"{result.name}.png",
            title,
            micrograph.pixel_size,
        )


def _published_names(place: Path, results: Sequence[Result]) -> None:
    """Give the panels the names of the MatSSL code too, which scripts may look for."""
    for number, result in enumerate(results):
        batch, index = divmod(number, PUBLISHED_BATCH)
        shutil.copyfile(place / f"{result.name}.png", place / f"vis_batch{batch}_img{index}.png")


def _native(probabilities: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return probabilities at the micrograph's own size; scores are never of a resized image."""
    if probabilities.shape[1:] == shape:
        return probabilities
    return np.stack(
        [cv2.resize(p, shape[::-1], interpolation=cv2.INTER_LINEAR) for p in probabilities]
    )


def _write_masks(
    folder: RunFolder,
    name: str,
    prediction: NDArray[np.uint8],
    micrograph: Micrograph,
    num_classes: int,
) -> None:
    """Write the prediction as index PNG, colour PNG and label TIFF, all of the image's size.

    Rows of a cut-off information bar hold 255.
    """
    full = np.full(micrograph.pixels.shape[:2], IGNORE, np.uint8)
    full[: prediction.shape[0]] = prediction
    colour = pictures.colour_mask(full, num_classes)[..., ::-1]
    for kind, content in (("index", full), ("colour", colour)):
        with atomic_path(folder.path(f"masks/{kind}/{name}.png")) as temporary:
            data = cv2.imencode(".png", np.ascontiguousarray(content), MASK_PNG)[1]
            temporary.write_bytes(data.tobytes())
    with atomic_path(folder.path(f"masks/label/{name}.tif")) as temporary:
        tifffile.imwrite(temporary, full, compression="zlib")


def _by_class(counts: NDArray[np.int64], table: ClassTable) -> dict[str, dict[str, float]]:
    scores = {name: score(counts) for name, score in SCORES.items()}
    truth = counts.sum(axis=1)
    return {
        name: {
            **{kind: float(values[i]) for kind, values in scores.items()},
            "true_pixels": int(truth[i]),
        }
        for i, name in enumerate(table.names)
    }


def _fractions(results: Sequence[Result], table: ClassTable) -> dict[str, Any]:
    """Return predicted and true phase fractions over specimens, with ASTM E562 intervals."""
    scored = [r for r in results if r.counts is not None]
    summary: dict[str, Any] = {}
    for i, name in enumerate(table.names):
        everywhere = _by_specimen(results, [float(r.fractions[i]) for r in results])
        entry: dict[str, Any] = {"predicted": vars(sampling.phase_fraction(everywhere))}
        if scored:
            true = [_true_fractions(r)[i] for r in scored]
            predicted = [float(r.fractions[i]) for r in scored]
            difference = np.array(predicted) - np.array(true)
            entry["truth"] = vars(sampling.phase_fraction(_by_specimen(scored, true)))
            entry["mean_error"] = float(np.nanmean(difference))
            entry["mean_absolute_error"] = float(np.nanmean(np.abs(difference)))
        summary[name] = entry
    return summary


def _by_specimen(results: Sequence[Result], values: Sequence[float]) -> list[float]:
    """Return the mean of each group: images of one specimen are no independent fields."""
    groups: dict[str, list[float]] = {}
    for result, value in zip(results, values, strict=True):
        groups.setdefault(result.pair.group, []).append(value)
    return [float(np.mean(fields)) for fields in groups.values()]


def _true_fractions(result: Result) -> list[float]:
    assert result.counts is not None
    truth = result.counts.sum(axis=1)
    total = truth.sum()
    return [float(t / total) if total else float("nan") for t in truth]


def _write(
    folder: RunFolder,
    results: Sequence[Result],
    metrics: dict[str, Any],
    table: ClassTable,
    config: EvaluateConfig,
) -> None:
    """Write metrics.json, evaluation_results.json, per_image.csv, and the plots."""
    folder.write_json("metrics.json", metrics)
    rows = []
    for result in results:
        row: dict[str, Any] = {
            "image": str(result.pair.image),
            "split": result.pair.split,
            "group": result.pair.group,
        }
        if result.counts is not None:
            row |= {"miou": overlap.miou(result.counts)}
            row |= {"accuracy": overlap.accuracy(result.counts)}
            for kind, score in SCORES.items():
                values = score(result.counts).tolist()
                row |= {f"{kind} {n}": v for n, v in zip(table.names, values, strict=True)}
            true = _true_fractions(result)
            row |= {f"true fraction {n}": v for n, v in zip(table.names, true, strict=True)}
        row |= {
            f"predicted fraction {n}": v
            for n, v in zip(table.names, result.fractions.tolist(), strict=True)
        }
        row |= {"pixel_size_nm": result.pixel_size}
        rows.append(row)
    for row in _filled(rows):
        folder.append_csv("per_image.csv", row)
    scored = [r for r in results if r.counts is not None]
    if scored:
        matrices = [r.counts for r in scored if r.counts is not None]
        left_out = _excluded(config, table)
        published = published_results(matrices, table.num_classes, left_out)
        folder.write_json("evaluation_results.json", published)
        pooled = np.sum(matrices, axis=0)
        pictures.confusion_plot(pooled, table.names, folder.path("confusion.png"))
        truth = np.array([_true_fractions(r) for r in scored])
        predicted = np.array([r.fractions for r in scored])
        pictures.fraction_plot(truth, predicted, table.names, folder.path("fractions.png"))


def _report(
    folder: RunFolder,
    results: Sequence[Result],
    metrics: dict[str, Any],
    table: ClassTable,
    facts: str,
    panels: Path,
) -> None:
    root = folder.root
    colours = pictures.colour_names(table.names)
    sections: list[tuple[str, str]] = []
    if "pooled" in metrics:
        sections += _score_sections(root, metrics, colours)
    else:
        images = (str(len(results)), "images predicted")
        sections.append(("", report.headline([images])))
    sections.append(("Phase fractions", _fraction_section(root, metrics, colours)))
    sections.append(("Images", _panel_section(panels, results)))
    sections.append(("All images", report.table(_filled([_image_row(r, table) for r in results]))))
    sections.append(("Where the model comes from", report.text(lineage_text(metrics["lineage"]))))
    sections.append(("Data", report.text(facts)))
    sections.append(("Command", report.text(progress.read_text(root / "command.txt"))))
    title = f"{metrics['dataset']}: segmentation into {', '.join(table.names)}"
    subtitle = f"{metrics['split']} images, model {metrics['model']}"
    report.write(root / "report.html", title, subtitle, sections)


def _score_sections(
    root: Path, metrics: dict[str, Any], colours: dict[str, str]
) -> list[tuple[str, str]]:
    pooled = metrics["pooled"]
    means = pooled["means"]
    figures = [(f"{100 * means['miou']:.1f} %", "mean IoU, all pixels pooled")]
    if pooled["miou_interval_95"]:
        low, high = pooled["miou_interval_95"]
        unit = pooled["interval_resamples"]
        figures.append((f"{100 * low:.1f} – {100 * high:.1f} %", f"95 % interval over {unit}"))
    figures.append((f"{100 * means['mdice']:.1f} %", "mean Dice"))
    figures.append((f"{100 * means['accuracy']:.1f} %", "right pixels"))
    figures.append((str(metrics["images_with_truth"]), "images"))
    head = report.headline(figures)
    if not pooled["miou_interval_95"]:
        head += report.note(
            f"No interval: {pooled['groups']} independent specimens or fields are too few for one."
        )
    for warning in metrics["warnings"]:
        head += report.note(f"Warning: {warning}.")
    if means["absent_classes"]:
        names = ", ".join(metrics["classes"][i] for i in means["absent_classes"])
        head += report.note(f"In neither truth nor prediction, left out of the means: {names}.")
    each = metrics["per_image"]
    if metrics["images_with_truth"] > 1:
        head += report.note(
            f"Image by image the mean IoU is {100 * each['miou_mean']:.1f} % with a standard "
            f"deviation of {100 * each['miou_std']:.1f}, from {100 * each['miou_min']:.1f} to "
            f"{100 * each['miou_max']:.1f} %."
        )
    by_class = [
        {"class": name, **{kind.replace("_", " "): value for kind, value in scores.items()}}
        for name, scores in pooled["classes"].items()
    ]
    body = report.beside(
        report.table(by_class, swatches=colours),
        report.picture(root / "confusion.png", width=400),
    )
    sections = [("", head), ("Scores by class", body)]
    if "baselines" in metrics:
        rows = [{"method": "this model", "mean IoU": means["miou"], "accuracy": means["accuracy"]}]
        rows[0] |= {f"IoU {n}": s["IoU"] for n, s in pooled["classes"].items()}
        for name, entry in metrics["baselines"].items():
            row = {"method": name, "mean IoU": entry["miou"], "accuracy": entry["accuracy"]}
            rows.append(row | {f"IoU {n}": v for n, v in entry["iou"].items()})
        note = (
            "Fitted on the training images of this folder. The pixel classifier is a linear one on "
            "this model's own encoder, as interactive tools fit it to painted pixels."
        )
        body = report.table(rows, strong=[0]) + report.note(note)
    else:
        why = "they need the model's training images in the same folder"
        off = not metrics["baselines_wanted"]
        body = report.note(f"None: {'--no-baselines switched them off' if off else why}.")
    sections.append(("Beside simpler methods", body))
    return sections


def _fraction_section(root: Path, metrics: dict[str, Any], colours: dict[str, str]) -> str:
    rows = []
    for name, entry in metrics["phase_fractions"].items():
        row = {"class": name, "predicted %": _percent(entry["predicted"])}
        if "truth" in entry:
            row["true %"] = _percent(entry["truth"])
            row["mean error"] = f"{100 * entry['mean_error']:+.2f}"
            row["mean absolute error"] = f"{100 * entry['mean_absolute_error']:.2f}"
        rows.append(row)
    note = (
        "Mean over specimens (images, where each is one) and half width of its 95 % interval (ASTM "
        f"E562); no interval below {sampling.MIN_FIELDS} of them. Errors are means over images."
    )
    left = report.table(rows, swatches=colours) + report.note(note)
    return report.beside(left, report.picture(root / "fractions.png", width=400))


def _percent(fraction: dict[str, float]) -> str:
    text = f"{100 * fraction['mean']:.2f}"
    half = fraction["half_width"]
    return text if half != half else f"{text} ± {100 * half:.2f}"


def _panel_section(panels: Path, results: Sequence[Result]) -> str:
    shown = _worst_and_best(results)
    if any(r.counts is not None for r in results):
        order = "the worst first" if len(shown) == len(results) else "the worst and the best"
    else:
        order = "in the order of the folder"
    note = report.note(f"{len(shown)} of {len(results)} images, {order}.")
    return note + "".join(report.picture(panels / f"{r.name}.png") for r in shown)


def _filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of equal columns; images without truth have nothing in those of the scores."""
    columns = max(rows, key=len, default={})
    return [{name: row.get(name) for name in columns} for row in rows]


def _image_row(result: Result, table: ClassTable) -> dict[str, Any]:
    row: dict[str, Any] = {"image": result.pair.image.name, "group": result.pair.group}
    if result.counts is not None:
        row["mean IoU"] = overlap.miou(result.counts)
        values = overlap.iou(result.counts).tolist()
        row |= {f"IoU {n}": v for n, v in zip(table.names, values, strict=True)}
    return row | {
        f"{n} %": f"{100 * v:.1f}" for n, v in zip(table.names, result.fractions, strict=True)
    }


def _print(folder: RunFolder, metrics: dict[str, Any], config: EvaluateConfig) -> None:
    if "pooled" in metrics:
        pooled = metrics["pooled"]
        interval = pooled["miou_interval_95"]
        text = f"mIoU {100 * pooled['means']['miou']:.1f} %"
        if interval:
            text += f" (95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
        print(f"{text}, {counted(metrics['images_with_truth'], 'image')}")
        if "miou_without_excluded" in pooled["means"]:
            left = 100 * pooled["means"]["miou_without_excluded"]
            print(f"  mIoU without the excluded classes {left:.1f} %")
        for name, scores in pooled["classes"].items():
            print(f"  {name:<24} IoU {100 * scores['IoU']:5.1f}  Dice {100 * scores['Dice']:5.1f}")
        for name, entry in metrics.get("baselines", {}).items():
            print(f"  baseline {name}: mIoU {100 * entry['miou']:.1f}")
    fields = metrics["images"]
    for name, entry in metrics["phase_fractions"].items():
        print(f"  area fraction {name}: {_percent(entry['predicted'])} %")
        fields = entry["predicted"]["fields"]
    print(progress.specimens_text(fields, metrics["images"], config.group_regex), end="")
    print(f"report: {folder.root / 'report.html'}", flush=True)
