"""A checkpoint and a folder to scores, masks, pictures and a report."""

from __future__ import annotations

import re
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

from matssl import baselines, hub, metrics, preflight, tiling, weights
from matssl.core import checkpoint, run_folder, runtime
from matssl.core.config import EvaluateConfig, to_dict
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder, atomic_path
from matssl.core.runtime import Runtime
from matssl.data import layouts, masks, readers, specimens
from matssl.data.layouts import Dataset, Pair
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.prefetch import prefetched
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.decoders import DECODERS
from matssl.measure.field import Field, areas
from matssl.metrics.counts import confusion
from matssl.models.encoders import channels_last
from matssl.models.segmentation import SegmentationModel, build_model, check_input_size
from matssl.pictures import segmentation as pictures
from matssl.stages import console, drawing
from matssl.stages.evaluate.published import name_panels
from matssl.stages.evaluate.report import (
    draw_panels,
    print_summary,
    worst_and_best,
    write_report,
    write_tables,
)
from matssl.stages.evaluate.summary import Result, excluded_classes, summarise
from matssl.weights.folding import IMAGENET_MEAN, IMAGENET_STD
from matssl.weights.layouts import Content

# Side of the square that the published code resizes images to.
PUBLISHED_SIZE = 256
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


def evaluate(config: EvaluateConfig, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return the folder of the results.

    Args:
        config: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    rt = config.runtime()
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
    names = loaded.table.names
    excluded = excluded_classes(config.exclude_classes, names)
    dataset = _dataset(config, loaded)
    pairs = _chosen(config, dataset, loaded)
    truth = _check_masks(pairs, _truth_table(config, dataset, loaded), loaded.table, record)
    shown = replace(dataset, pairs=tuple(pairs), table=truth if _masks(pairs) else None)
    facts = preflight.examine_dataset(shown, record).text()
    if loaded.note:
        facts = f"{loaded.note}\n{facts}"
    console.say(config, rt, facts)
    console.say(config, rt, f"device  {rt.describe()}\nfolder  {root}")
    warnings = _leaks(pairs, loaded)
    for warning in warnings:
        console.say(config, rt, f"warning {warning}")

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
        console.say(config, rt, f"warning {warning}")
    summary = summarise(results, names, excluded, config.bootstrap, config.seed)
    summary |= {
        "model": str(config.model_path),
        "dataset": config.dataset_name or dataset.root.name,
        "split": config.split or (pairs[0].split if pairs else ""),
        "lineage": loaded.payload.get("lineage", []),
        "warnings": [*warnings, *copies],
        "baselines_wanted": config.baselines,
    }
    write_tables(folder, results, summary, names, excluded)
    with tempfile.TemporaryDirectory(prefix=".panels", dir=root) as scratch:
        place = Path(scratch)
        if config.save_visualizations:
            place = root / "visualizations"
            place.mkdir()
        drawn = results if config.save_visualizations else worst_and_best(results)
        draw_panels(folder, place, drawn, truth, record)
        if config.save_visualizations:
            name_panels(place, results)
        write_report(folder, results, summary, names, facts, place)
    folder.status("done", images=len(results))
    print_summary(folder, summary, config.group_regex)
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
        check_input_size(model, input_size)
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
    check_input_size(model, input_size)
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
    mean, std = IMAGENET_MEAN, IMAGENET_STD
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
    unsaid = DECODERS[description["decoder"]].unsaid
    note += f", {unsaid}" if unsaid else ""
    return Loaded(model, record, table, {"model": description, "raw": True}, note)


def _root(config: EvaluateConfig) -> Path:
    if config.output_dir is not None:
        return run_folder.given_folder(config.output_dir, config.name)
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
    trained = _trained_images(loaded)
    if dataset.cut.automatic and not any(str(pair.image) in trained for pair in dataset.pairs):
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
    predicted, truth_areas, gathered = areas(prediction, count), None, None
    rival_counts = {}
    if pair.mask is not None:
        mask = truth.decode(readers.read_mask(pair.mask), str(pair.mask))[: shape[0]]
        gathered = metrics.gather(mask, prediction, count)
        counts = gathered[confusion]
        for rival in rivals:
            guess = rival.predict(plane)
            if guess.shape != shape:
                guess = cv2.resize(guess, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            rival_counts[rival.name] = confusion(mask, guess, count)
        if counts.sum() == 0:
            gathered, rival_counts = None, {}
        else:
            predicted, truth_areas = counts.sum(axis=0), counts.sum(axis=1)
    field = Field(pair.image, name, pair.group, predicted, micrograph.pixel_size)
    true = None if truth_areas is None else replace(field, areas=truth_areas)
    pixels = readers.digest(micrograph.pixels)
    return Result(pair, field, true, gathered, rival_counts, pixels)


def _most_likely(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the class of each pixel, in strips so that the index array stays small."""
    result = np.empty(probabilities.shape[1:], np.uint8)
    for top in range(0, len(result), 1024):
        result[top : top + 1024] = probabilities[:, top : top + 1024].argmax(axis=0)
    return result


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
