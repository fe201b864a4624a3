"""The command lines behind the buttons: what the page starts is what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from matssl.page import results
from matssl.page.folders import Folder
from matssl.page.jobs import Step
from matssl.page.labels import CLASSES
from matssl.page.workspace import Refused

# Kinds of models, in words.
TAUGHT = {"forest": "a forest", "linear": "a linear head", "network": "a network"}
# How a command of a step is typed.
TYPED = {
    "train": ("python", "train_finetune.py"),
    "predict": ("python", "eval_model.py"),
    "look": ("python", "-m", "matssl.tools.doctor"),
    "next": ("python", "-m", "matssl.tools.select_images"),
    "measure": ("python", "-m", "matssl.tools.measure"),
}
# What the page tells its look beside the flags of the doctor.
OWN_FLAGS = ("--home",)


def line(kind: str, argv: Sequence[str]) -> str:
    """Return a command as it would be typed; "" for what only the page does."""
    if kind not in TYPED:
        return ""
    words = list(argv)
    for own in OWN_FLAGS:
        if own in words:
            place = words.index(own)
            del words[place : place + 2]
    return shlex.join([*TYPED[kind], *words])


def free_name(home: Path, wanted: str) -> str:
    """Return a name of a run that none has: NAME-1, NAME-2, ..."""
    base = re.sub(r"[^A-Za-z0-9_.-]+", "_", wanted).strip("_.-")[:60] or "run"
    return next(n for i in range(1, 100_000) if not (home / (n := f"{base}-{i}")).exists())


def look(folder: Folder) -> Step:
    """Return the step that says what a folder holds."""
    words = [str(folder.path), *folder.flags(), "--home", str(folder.kept)]
    return Step("look", tuple(words), "Looking at the pictures")


def take_over(folder: Folder) -> Step:
    """Return the step that makes labels of the masks that a folder has."""
    words = [str(folder.path), "--home", str(folder.kept), "--labels", str(folder.labels)]
    return Step("take_over", tuple(words), "Reading the masks")


def _labels(folder: Folder) -> list[str]:
    return ["--mask_folder", str(folder.labels), "--classes", str(folder.labels / CLASSES)]


def _out(folder: Folder) -> list[str]:
    return ["--output_dir", str(folder.workspace.experiments)]


def train(folder: Folder, name: str, head: str, steps: int, start: str) -> Step:
    """Return the step that teaches a model from the labels of a folder.

    Args:
        folder: with labels.
        name: of the run.
        head: forest, linear or network.
        steps: of a network.
        start: encoder by its name (:func:`matssl.page.results.encoders`), of which a linear head
            needs one; "" for random weights.

    Raises:
        Refused: an encoder that is not at hand, or none for a linear head.
    """
    words = ["--finetune_dataset", str(folder.path), *_labels(folder), *folder.flags()]
    if head == "network":
        words += ["--steps", str(steps), "--val_every", str(max(10, min(100, steps // 5)))]
    else:
        words += ["--head", head]
    if head == "linear" and not start:
        raise Refused(400, "a linear head reads the features of pretrained weights; choose some")
    if head != "forest" and start:
        words += ["--ssl_weights_path", results.encoder(folder.workspace, start)]
    told = f"Teaching {TAUGHT[head]}"
    return Step("train", (*words, *_out(folder), "--name", name), told)


def predict(folder: Folder, model: Path, name: str, probabilities: bool) -> Step:
    """Return the step that predicts all pictures of a folder."""
    words = ["--model_path", str(model), "--dataset", str(folder.path), "--split", "all"]
    words += ["--no-baselines", "--objects", "none", *folder.flags()]
    words += ["--save_probabilities"] if probabilities else []
    return Step("predict", (*words, *_out(folder), "--name", name), "Predicting all pictures")


def choose(folder: Folder, model: Path, name: str, n: int, labelled: bool) -> Step:
    """Return the step that says which pictures to label next."""
    words = [str(model), str(folder.path), "--n", str(n), "--again"]
    words += _labels(folder) if labelled else []
    said = {k: v for k, v in folder.said().items() if k == "pixel_size"}
    words += [word for key, value in said.items() for word in (f"--{key}", value)]
    return Step("next", (*words, *_out(folder), "--name", name), "Choosing the next picture")


def collect(folder: Folder, run: Path | None, target: Path) -> Step:
    """Return the step that puts finished labels and predictions together."""
    words = ["--folder", str(folder.path), "--labels", str(folder.labels), "--target", str(target)]
    words += ["--run", str(run)] if run is not None else []
    # A name that begins as a flag does is none with a folder before it.
    words += ["--complete", *(f"./{n}" if n.startswith("-") else n for n in folder.complete())]
    return Step("collect", tuple(words), "Putting your corrected masks in their place")


def measure(
    folder: Folder, source: Path, images: bool, name: str, what: Sequence[str], named: Sequence[str]
) -> Step:
    """Return the step that measures masks.

    Args:
        folder: of the pictures.
        source: a run with predicted masks, or a folder of masks.
        images: whether it is a folder of masks, whose pictures lie in the folder.
        name: of the results.
        what: measurements; empty for what the classes allow.
        named: classes to measure; empty for all.
    """
    words = [str(source)]
    words += ["--images", str(folder.path)] if images else []
    words += ["--what", ",".join(what)] if what else []
    classes = ",".join(named)
    flagged = classes.startswith("-")
    words += [f"--class={classes}"] if flagged else ["--class", classes] if named else []
    # A run knows its pixel sizes and bars.
    words += folder.flags() if images else []
    return Step("measure", (*words, *_out(folder), "--name", name), "Measuring")
