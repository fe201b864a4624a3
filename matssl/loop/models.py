"""Models of a loop: the first, those that are trained, what they score, which is the best."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from matssl import hub
from matssl.core import checkpoint, flags, textfiles
from matssl.core.damage import damage_told
from matssl.core.digest import of_tensors
from matssl.core.errors import DiskFull, Incomplete, UserError
from matssl.core.run_folder import atomic_path
from matssl.core.tables import percent
from matssl.core.wording import counted
from matssl.data.masks import ClassTable
from matssl.loop import judging
from matssl.loop.context import Context
from matssl.loop.judging import Scores
from matssl.loop.state import Plan
from matssl.measure import held_out
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.evaluate.predict import evaluate
from matssl.stages.finetune import settings as finetune_settings
from matssl.stages.finetune.loop import finetune
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.trained import ensemble

VALIDATION, TEST = "validation", "test"
BEST = "best.ckpt"
# Settings of a network's shape and of how it reads pictures: those of the model it starts from.
SHAPE = (
    *("encoder", "decoder", "in_channels", "decoder_filters", "batchnorm", "head", "color"),
    *("window", "low", "high", "crop_bottom", "page", "target_pixel_size", "input_size"),
)


def _file(path: str) -> Path:
    """Return the file of a model that was given as its run folder or by its name."""
    place = Path(path)
    return place / BEST if place.is_dir() else hub.locate(path)


def _payload(path: str) -> dict[str, Any]:
    """Return the checkpoint of a given model.

    Raises:
        UserError: it is none of train_finetune.py, or several models in one.
    """
    payload = checkpoint.load(_file(path), stage="finetune")
    if ensemble.count(payload) > 1:
        raise UserError(f"--model {path} is an ensemble; give best.ckpt of one of its models")
    return payload


def table_of(path: str) -> ClassTable:
    """Return the classes of a given model."""
    with damage_told(path):
        return ClassTable.from_dict(_payload(path)["classes"])


def digests_of(path: str) -> frozenset[str]:
    """Return the digests of the images that a given model was trained on."""
    progress = _payload(path).get("progress")
    found = progress.get("train_digests", ()) if isinstance(progress, dict) else ()
    return frozenset(map(str, found))


def take_given(ctx: Context) -> bool:
    """Take in the model of ``--model`` as the first; return whether it was done now."""
    given = ctx.settings.model
    if given is None or ctx.state.models or ctx.state.open_plan is not None:
        return False
    payload, place = _payload(given), ctx.places.model("000")
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(place) as temporary:
        shutil.copyfile(_file(given), temporary)
    ctx.write("model", model="000", file=Path(given).name, weights=of_tensors(payload["state"]))
    ctx.say(f"model     000, from {given}")
    return True


def plan(ctx: Context, labels: list[Any]) -> None:
    """Decide on a training: from the best model so far, with these labels."""
    number = f"{len(ctx.state.models):03d}"
    start = ctx.state.best
    ctx.write("retrain", model=number, start=start, labels=[[x.name, x.mask] for x in labels])


def drop(ctx: Context, reason: str) -> None:
    """Give up a training that cannot be done; its masks are learned from with those that came."""
    begun = ctx.state.open_plan
    if begun is None:
        return
    shutil.rmtree(ctx.places.model(begun.model).parent, ignore_errors=True)
    shutil.rmtree(ctx.places.home / "data" / _data(begun), ignore_errors=True)
    ctx.write("drop", model=begun.model, reason=ctx.places.plain(reason))
    ctx.warn(f"the training of model {begun.model} is given up: {reason}")


def _data(begun: Plan) -> str:
    return f"train_{begun.model}"


def train(ctx: Context, begun: Plan) -> None:
    """Train a model that was decided on, or go on with its training."""
    run = ctx.places.model(begun.model).parent
    data = ctx.data_set(_data(begun), {"train": begun.labels})
    words = _training_words(ctx, begun, data)
    start = f"from model {begun.start}" if begun.start else "the first model"
    ctx.say(f"train     model {begun.model}: {start}, {counted(len(begun.labels), 'picture')}")
    if _state(run) != "done":
        _trained(ctx, run, words)
    payload = checkpoint.load(run / BEST, stage="finetune")
    ctx.write(
        "train",
        model=begun.model,
        start=begun.start,
        images=len(begun.labels),
        seed=ctx.settings.seed,
        steps=int(payload["step"]),
        weights=of_tensors(payload["state"]),
    )


def _trained(ctx: Context, run: Path, words: list[str]) -> None:
    """Run the training, from where it was killed; a plan that differs begins anew."""
    begun = any((run / name).is_file() for name in ("last.ckpt", "last.prev.ckpt"))
    if begun:
        try:
            ctx.run(lambda: finetune(_resolved([*words, "--resume"]), words))
            return
        except DiskFull:
            raise
        except UserError as error:
            ctx.warn(f"the training begins anew: {error}")
    shutil.rmtree(run, ignore_errors=True)
    ctx.run(lambda: finetune(_resolved(words), words))


def _resolved(words: list[str]) -> FinetuneSettings:
    return finetune_settings.resolve(words, here=True)


def _training_words(ctx: Context, begun: Plan, data: Path) -> list[str]:
    """Return the command line of a training.

    The frozen images have no part in it: they neither choose its step nor calibrate it.

    Raises:
        UserError: the file of --training asks for something else than one model.
    """
    given = ctx.settings
    words = ["--finetune_dataset", str(data), "--classes", str(data / "classes.yaml")]
    words += ["--name", begun.model, "--output_dir", str(ctx.places.home), "--quiet"]
    words += ["--seed", str(given.seed), *ctx.image_words(), *ctx.device_words()]
    file: Any = {}
    if given.training:
        words += ["--config", given.training]
        reader = textfiles.read_json if given.training.endswith(".json") else textfiles.read_yaml
        file = reader(Path(given.training)) or {}
    if "val_fraction" not in file:
        words += ["--val_fraction", "0"]
    if begun.start is not None:
        words += _shape_words(ctx, begun.start, [*file, *ctx.image_words()])
    if given.steps is not None:
        words += ["--steps", str(given.steps)]
    resolved = finetune_settings.resolve(words)
    several = resolved.folds is not None or resolved.ensemble > 1
    if several or resolved.results_dir or resolved.listed or resolved.splits:
        raise UserError(
            f"--training {given.training} says which images are trained on, or trains several "
            "models; the loop says that itself: take folds, ensemble, splits, lists and "
            "results_dir out"
        )
    if begun.start is not None and resolved.head == "network":
        words += ["--weights", str(ctx.places.model(begun.start)), "--whole_model"]
    return words


def _shape_words(ctx: Context, start: str, said_of: list[str]) -> list[str]:
    """Return the flags that give the new network the shape and the eyes of the one it starts from.

    Args:
        ctx: of the loop.
        start: number of the model it starts from.
        said_of: settings that are given already, as names or as flags.
    """
    recipe = checkpoint.load(ctx.places.model(start), stage="finetune")["recipe"]
    own = flags.defaults(FinetuneSettings)
    words: list[str] = []
    for name in SHAPE:
        value = recipe.get(name, own[name])
        if value == own[name] or not {name, f"--{name}"}.isdisjoint(said_of):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)] if value else []
        else:
            words += [f"--{name}", str(value)]
    return words


def _state(run: Path) -> str:
    try:
        return str(textfiles.read_json(run / "status.json")["state"])
    except (UserError, KeyError, TypeError):
        return ""


def evaluated(ctx: Context, name: str, model: str, data: Path, *more: str) -> Path:
    """Predict a folder with a model, anew where it was begun before; return the results.

    Raises:
        UserError: no image could be predicted.
    """
    root = ctx.places.evaluation(name)
    shutil.rmtree(root, ignore_errors=True)
    words = ["--model_path", str(ctx.places.model(model)), "--dataset", str(data)]
    words += ["--name", name, "--output_dir", str(ctx.places.home), "--quiet", "--no-baselines"]
    words += [*ctx.image_words(), *ctx.device_words(), *more]
    settings = evaluate_settings.resolve(words, here=True)
    try:
        ctx.run(lambda: evaluate(settings, words))
    except Incomplete:
        # The images that failed are in its results.
        pass
    return root


def scores(ctx: Context, part: str, model: str) -> Scores:
    """Return what a model scores on frozen images."""
    split = "val" if part == VALIDATION else "test"
    data = ctx.data_set(part, {split: ctx.state.frozen[part]})
    classes = ["--classes", str(data / "classes.yaml"), "--split", "all", "--objects", "none"]
    root = evaluated(ctx, f"{part}_{model}", model, data, *classes)
    return Scores.of(held_out.read(root / held_out.FILE))


def compare(ctx: Context, model: str) -> None:
    """Score a new model on the frozen validation images, beside the best."""
    found = scores(ctx, VALIDATION, model)
    # A given model may have been the best before anything could judge it.
    best = ctx.state.best if ctx.state.best != model else None
    facts: dict[str, object] = {"model": model, "beside": best, **found.stored()}
    if best is not None:
        before = Scores.read(ctx.state.compared[best])
        facts |= judging.verdict(found, before, ctx.settings.promote).stored()
    ctx.write("compare", **facts)
    ends = "" if found.ends is None else f" ({percent(found.ends[0])} to {percent(found.ends[1])})"
    ctx.say(f"compare   model {model}: validation mIoU {percent(found.miou)} %{ends}")


def decide(ctx: Context, model: str) -> None:
    """Promote a model that was compared, or keep the best."""
    best = ctx.state.best
    if best is None:
        ctx.write("promote", model=model, unproven=False, reason="the first model")
        ctx.say(f"promote   model {model}: the first")
        return
    new, old = (Scores.read(ctx.state.compared[number]) for number in (model, best))
    found = judging.verdict(new, old, ctx.settings.promote)
    if found.promoted:
        ctx.write("promote", model=model, unproven=found.unproven, reason=found.reason)
        ctx.say(f"promote   model {model}{' (unproven)' if found.unproven else ''}: {found.reason}")
    else:
        ctx.write("keep", model=best, tried=model, reason=found.reason)
        ctx.say(f"keep      model {best}, not {model}: {found.reason}")


def point_to_best(ctx: Context) -> None:
    """Let FOLDER/loop/best.ckpt be the best model; drop what finished trainings need no more."""
    for number in ctx.state.models:
        for name in ("last.ckpt", "last.prev.ckpt"):
            (ctx.places.model(number).parent / name).unlink(missing_ok=True)
    if ctx.state.best is None:
        return
    link = ctx.places.home / BEST
    target = os.path.relpath(ctx.places.model(ctx.state.best), ctx.places.home)
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = ctx.places.home / f".{BEST}"
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(target, temporary)
    except OSError:
        shutil.copyfile(ctx.places.model(ctx.state.best), temporary)
    os.replace(temporary, link)


def open_test(ctx: Context) -> None:
    """Score the best model on the frozen test images, once.

    Raises:
        UserError: they were opened before, there are none, or there is no model.
    """
    told, state = ctx.state.tested, ctx.state
    if told is not None:
        raise UserError(
            f"the test images were opened before, with model {told['model']} (mIoU "
            f"{percent(float(told['miou'] or 0))} %); a second look would choose by them"
        )
    if not state.frozen.get(TEST):
        raise UserError("there are no frozen test images; --test names some where a loop begins")
    if state.best is None:
        raise UserError("there is no model yet; run the loop first")
    found = scores(ctx, TEST, state.best)
    ctx.write("test", model=state.best, **found.stored())
    ends = "" if found.ends is None else f" ({percent(found.ends[0])} to {percent(found.ends[1])})"
    print(
        f"test      model {state.best}: mIoU {percent(found.miou)} %{ends}, "
        f"{counted(found.images, 'image')}; opened once and for all"
    )
