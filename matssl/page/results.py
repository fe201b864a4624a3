"""Runs of the workspace as the page shows them: models, curves, predictions, tables."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from matssl import hub
from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.page.workspace import Refused, Workspace
from matssl.stages import predictions

KINDS = ("finetune", "eval", "measure", "select", "ssl")
# Points of a curve, and rows of a table, that are sent.
POINTS, ROWS = 400, 500
# Files of runs that a browser may have, by their ending, and as what.
SHOWN = {
    **{".csv": "text/csv; charset=utf-8", ".txt": "text/plain; charset=utf-8"},
    **{".html": "text/html; charset=utf-8", ".json": "application/json"},
    **{".png": "image/png", ".yaml": "text/plain; charset=utf-8", ".log": "text/plain"},
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
# Models by how good they are; a training that was stopped early has the last one alone.
MODELS = ("best.ckpt", "last.ckpt")
# What stands before the names of published weights; part of those that are whole models.
HUB, FINETUNED = "hub/", "-finetune-on-"
_RUN = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")


def place(workspace: Workspace, kind: str, name: str) -> Path:
    """Return the folder of a run.

    Raises:
        Refused: there is none of this name.
    """
    if kind not in KINDS:
        raise Refused(404, "there is no such run")
    path = workspace.real(workspace.experiments / kind / checked(name))
    if not path.is_dir():
        raise Refused(404, f"there is no run {name}")
    return path


def checked(name: str) -> str:
    """Return the name of a run.

    Raises:
        Refused: it cannot be one.
    """
    if not _RUN.fullmatch(name):
        raise Refused(404, "there is no such run")
    return name


def model(workspace: Workspace, name: str) -> Path:
    """Return the checkpoint of a training: its best model, of a stopped one the last.

    Raises:
        Refused: there is none.
    """
    root = place(workspace, "finetune", name)
    found = _model(root)
    if found is None:
        raise Refused(409, f"{name} has learned nothing yet")
    return workspace.real(found)


def _model(root: Path) -> Path | None:
    """Return the best model of a training, of one that was stopped early the last one.

    None where no step was taken: its last.ckpt holds the weights it began with.
    """
    best, last = (root / file for file in MODELS)
    if best.is_file():
        return best
    taken = (_json(root / "status.json") or {}).get("step")
    return last if last.is_file() and isinstance(taken, int) and taken > 0 else None


def _all(workspace: Workspace, kind: str) -> list[Path]:
    """Return the runs of a kind; those that lie elsewhere behind a link are not."""
    found = []
    for root in (workspace.experiments / kind).glob("*"):
        with contextlib.suppress(Refused):
            found.append(workspace.real(root))
    return found


def encoders(workspace: Workspace) -> list[str]:
    """Return the pretrained encoders at hand: runs by their names, published ones as hub/NAME.

    Runs of the workspace come first; of the model hub those that are fetched already.
    """
    runs = _all(workspace, "ssl")
    own = sorted(root.name for root in runs if (root / "encoder.safetensors").is_file())
    fetched = [e.name for e in hub.weights_registry().values() if e.path.is_file()]
    return [*own, *(f"{HUB}{name}" for name in fetched if FINETUNED not in name)]


def encoder(workspace: Workspace, name: str) -> str:
    """Return what ``--ssl_weights_path`` takes for an encoder by its name.

    Raises:
        Refused: it is not at hand.
    """
    if name.startswith(HUB):
        if name not in encoders(workspace):
            raise Refused(404, f"there are no published weights {name.removeprefix(HUB)} here")
        return name.removeprefix(HUB)
    file = place(workspace, "ssl", name) / "encoder.safetensors"
    if not workspace.real(file).is_file():
        raise Refused(404, f"there is no pretrained encoder {name}")
    return str(file)


def models(workspace: Workspace, folder: Path | None = None) -> list[dict[str, Any]]:
    """Return the trainings of the workspace, the youngest first.

    Args:
        workspace: with experiments/finetune.
        folder: only those taught from these pictures; all where None.
    """
    found = []
    for root in _all(workspace, "finetune"):
        recipe = _yaml(root / "config.yaml")
        if recipe is None:
            continue
        home = str(recipe.get("finetune_dataset"))
        if folder is not None and Path(home) != folder:
            continue
        status = _json(root / "status.json") or {}
        best = status.get("best_miou")
        found.append(
            {
                "name": root.name,
                "head": recipe.get("head", "network"),
                "steps": recipe.get("steps"),
                "state": status.get("state", "unknown"),
                "step": status.get("step"),
                "total": status.get("total"),
                "score": best if isinstance(best, float) and 0 <= best <= 1 else None,
                "usable": _model(root) is not None,
                "resumable": (root / "last.ckpt").is_file(),
                "classes": [
                    c.get("name") for c in (_json(root / "classes.json") or {}).get("classes", [])
                ],
                "folder": home,
                "when": (root / "config.yaml").stat().st_mtime,
            }
        )
    return sorted(found, key=lambda run: -float(str(run["when"])))


def unlearned(workspace: Workspace, prediction: str) -> list[str]:
    """Return the classes that the model of a prediction knows by name alone: none was painted."""
    root = place(workspace, "eval", prediction)
    path = (_yaml(root / "config.yaml") or {}).get("model_path")
    try:
        home = workspace.real(Path(str(path)).parent)
    except Refused:
        # A model from elsewhere, of which the page knows nothing.
        return []
    listed = (_json(home / "classes.json") or {}).get("classes", [])
    return [str(c["name"]) for c in listed if c.get("pixels") == 0]


def curve(root: Path) -> dict[str, Any]:
    """Return the course of a training: loss of its steps, scores of its validations."""
    steps = rows(root / "steps.csv", 1_000_000)
    every = max(1, -(-len(steps) // POINTS))
    loss = [(_number(r.get("step")), _number(r.get("loss"))) for r in steps[::every]]
    scores = rows(root / "log.csv")
    score = [(_number(r.get("step")), _number(r.get("val_miou"))) for r in scores]
    return {
        "loss": [p for p in loss if None not in p],
        "score": [p for p in score if None not in p],
        "status": _json(root / "status.json") or {},
    }


def of_folder(workspace: Workspace, kind: str, folder: Path) -> list[dict[str, Any]]:
    """Return the finished predictions or measurements of a folder, the youngest first."""
    found = []
    for root in _all(workspace, kind):
        recipe, status = _yaml(root / "config.yaml"), _json(root / "status.json")
        if recipe is None or status is None or status.get("state") != "done":
            continue
        own = recipe.get("dataset") if kind == "eval" else recipe.get("images")
        if kind == "measure" and own is None:
            source = _yaml(Path(str(recipe.get("input"))) / "config.yaml") or {}
            own = source.get("dataset")
        if own is not None and Path(str(own)) == folder:
            when = (root / "status.json").stat().st_mtime
            entry = {"name": root.name, "when": when}
            if kind == "eval":
                entry["model"] = Path(str(recipe.get("model_path"))).parent.name
            found.append(entry)
    return sorted(found, key=lambda run: -run["when"])


@dataclass(frozen=True)
class Prediction:
    """Predicted masks of a run of eval_model.py.

    Attributes:
        root: of the run.
        names: of the classes.
        masks: name of the files of each picture, by its path from the folder.
    """

    root: Path
    names: tuple[str, ...]
    masks: Mapping[str, str]

    @staticmethod
    def of(root: Path, folder: Path) -> Prediction:
        """Return the predictions of a run for the pictures of a folder.

        Raises:
            UserError: it has no masks, or its tables are damaged.
        """
        drawn = predictions.folder(root)
        if drawn is None:
            raise UserError(f"{root.name} has no masks")
        names, table = predictions.facts(root)
        files = [path.stem for path in sorted(drawn.glob("*.png"))]
        masks = {}
        for name, row in predictions.by_output(table, files).items():
            image = Path(os.path.abspath(row.image))
            if folder in image.parents:
                masks[image.relative_to(folder).as_posix()] = name
        return Prediction(root, names, masks)

    def classes(self, image: str) -> NDArray[np.uint8]:
        """Return the predicted class of each pixel, uint8 (H, W); 255 in an information bar.

        Raises:
            Refused: the run has no mask of this picture.
        """
        found = tifffile.imread(self.root / "masks" / "label" / f"{self._file(image)}.tif")
        return np.asarray(found, np.uint8)

    def uncertainty(self, image: str) -> NDArray[np.uint8] | None:
        """Return how unsure the model is, uint8 (rows above the bar, W); None where not kept.

        It is the entropy of the class probabilities over its largest value, log C, times 255.
        """
        path = self.root / "probabilities" / f"{self._file(image)}.tif"
        if not path.is_file():
            return None
        probable = np.asarray(tifffile.imread(path))
        total = np.zeros(probable.shape[1:], np.float32)
        for part in probable:
            level = np.clip(part.astype(np.float32), 1e-7, 1)
            total -= level * np.log(level)
        scale = 255 / max(math.log(len(probable)), 1e-6)
        return np.rint(np.clip(total * np.float32(scale), 0, 255)).astype(np.uint8)

    def _file(self, image: str) -> str:
        if image not in self.masks:
            raise Refused(404, f"{self.root.name} has no mask of {image}")
        return self.masks[image]


def chosen(root: Path) -> list[dict[str, Any]]:
    """Return the pictures that a choice ranks, the first to label first."""
    found = []
    for row in rows(root / "ranked.csv", ROWS):
        scores = {k: _number(row.get(k)) for k in ("entropy", "priority")}
        found.append({"image": row["image"], "chosen": row.get("chosen") == "yes", **scores})
    return found


def zipped(root: Path, target: Path) -> None:
    """Write the masks of a run, or of a folder of masks, as a ZIP file."""
    home = root / "masks" if (root / "masks").is_dir() else root
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(home.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                file.write(path, f"{root.name}/{path.relative_to(home).as_posix()}")


def rows(path: Path, most: int = ROWS) -> list[dict[str, str]]:
    """Return the rows of a table of a run; of one that is being written the whole lines."""
    try:
        return textfiles.read_rows(path)[:most] if path.is_file() else []
    except UserError:
        return []


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _yaml(path: Path) -> dict[str, Any] | None:
    try:
        found = textfiles.read_yaml(path) if path.is_file() else None
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def headline(listed: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return mean area fractions with their intervals, a class each, from a table of them."""
    return [
        {
            "class": row.get("class"),
            "specimens": row.get("specimens"),
            "fields": row.get("fields"),
            "fraction": _number(row.get("area fraction %")),
            "low": _number(row.get("area fraction low %")),
            "high": _number(row.get("area fraction high %")),
            "interval": row.get("area fraction interval", ""),
        }
        for row in listed
    ]


def command(root: Path) -> str:
    """Return the command of a run, as it was typed or started here."""
    try:
        text = (root / "command.txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    words = {"measure.py": "-m matssl.tools.measure"}
    for script, module in words.items():
        text = text.replace(f"python {script}", f"python {module}", 1)
    return text


def warnings(root: Path) -> list[str]:
    """Return what a prediction warns of."""
    found = (_json(root / "metrics.json") or {}).get("warnings", [])
    return [str(told) for told in found] if isinstance(found, list) else []
