"""The temperature of the kept model's probabilities, fitted on the validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl import report
from matssl.core import checkpoint, textfiles
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.core.tables import percent
from matssl.core.wording import counted
from matssl.data.crops import Labelled
from matssl.metrics import calibration
from matssl.metrics.calibration import Sample, together
from matssl.pictures import reliability as pictures
from matssl.stages.finetune import deciding
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import Averaged, Learner
from matssl.stages.finetune.rare_settings import VALIDATION
from matssl.trained.ensemble import FACTORS

# What the run folder holds of it.
FILE, PLOT = "calibration.json", "reliability.png"


def kept(folder: RunFolder, inputs: Inputs, learner: Learner, decision: str) -> None:
    """Fit the temperature of best.ckpt and write it there; nothing without validation images.

    Args:
        folder: of the run.
        inputs: its images.
        learner: predicts with the kept weights, and decides from then on as they do.
        decision: "validation": factors of the classes are chosen, too.
    """
    path = folder.root / "best.ckpt"
    if inputs.val is None or not path.is_file():
        return
    payload = checkpoint.load(path, stage="finetune")
    with Averaged(learner.model, payload["state"]):
        learner.model.eval()
        names = inputs.table.names if decision == VALIDATION else ()
        found = fit(folder, payload, inputs.val, learner.probabilities, names)
    learner.factors = tuple(found.get(FACTORS, ()))


def fit(
    folder: RunFolder,
    payload: Mapping[str, Any],
    data: Labelled,
    probabilities: Callable[[Array], Array],
    names: Sequence[str] = (),
) -> dict[str, list[float]]:
    """Fit the temperature of a model on labelled images, and write it into best.ckpt.

    Args:
        folder: of the run.
        payload: of its best.ckpt.
        data: the images.
        probabilities: plane to (C, H, W), an array that may be changed.
        names: of the classes where their factors are chosen too, see :mod:`deciding`.

    Returns:
        The factors, as they go into the checkpoint; nothing without.
    """
    labelled = sum(int(np.count_nonzero(mask != IGNORE)) for mask in data.masks)
    if not labelled:
        return {}
    every = calibration.thinned(data.masks)
    samples: list[Sample] = []
    # Predicted twice instead of kept: the images may be large.
    for plane, mask in zip(data.planes, data.masks, strict=True):
        samples.append(calibration.sample(probabilities(plane), mask, every))
    temperature = calibration.fitted(samples)
    factors = deciding.choose(folder, samples, data, names) if names else {}
    before, after = [], []
    for plane, mask in zip(data.planes, data.masks, strict=True):
        found: Array = probabilities(plane)
        before.append(calibration.reliability(found, mask))
        calibration.temper(found, temperature)
        after.append(calibration.reliability(found, mask))
    # A resumed run that found no better model leaves the file as it is.
    known = {"temperature": payload["progress"].get("temperature")}
    known |= {FACTORS: payload["progress"][FACTORS]} if FACTORS in payload["progress"] else {}
    if known != {"temperature": temperature, **factors}:
        rest = {name: fact for name, fact in payload["progress"].items() if name not in known}
        progress = {**rest, "temperature": temperature, **factors}
        checkpoint.save(folder.root / "best.ckpt", {**payload, "progress": progress})
    first, second = together(before), together(after)
    assert first is not None and second is not None
    folder.write_json(
        FILE,
        {
            "temperature": temperature,
            "images": len(data.planes),
            "pixels": labelled,
            "ece_before": first.error,
            "ece_after": second.error,
            "bins_before": first.rows(),
            "bins_after": second.rows(),
        },
    )
    pictures.plot({"before": first.points, "after": second.points}, folder.path(PLOT))
    return factors


def section(root: Path) -> list[tuple[str, str]]:
    """Return the part of a report on it, nothing where no temperature was fitted."""
    try:
        facts = textfiles.read_json(root / FILE)
        images = counted(int(facts["images"]), "validation image")
        before, after = (percent(float(facts[f"ece_{when}"])) for when in ("before", "after"))
        said = (
            f"Temperature {float(facts['temperature']):.3f}, fitted on {images}. Expected "
            f"calibration error on the same images: {before} % before, {after} % after (15 bins). "
            "Saved probabilities are those after; masks do not change."
        )
    except (UserError, KeyError, TypeError, ValueError):
        return []
    return [("Calibration", report.picture(root / PLOT, width=400) + report.note(said))]
