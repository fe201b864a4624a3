"""The temperature of the kept model's probabilities, fitted on the validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from matssl.metrics.calibration import MOST_PIXELS, Sample, together
from matssl.pictures import reliability as pictures
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import Averaged, Learner

# What the run folder holds of it.
FILE, PLOT = "calibration.json", "reliability.png"


def kept(folder: RunFolder, inputs: Inputs, learner: Learner) -> None:
    """Fit the temperature of best.ckpt and write it there; nothing without validation images.

    Args:
        folder: of the run.
        inputs: its images.
        learner: predicts with the kept weights.
    """
    path = folder.root / "best.ckpt"
    if inputs.val is None or not path.is_file():
        return
    payload = checkpoint.load(path, stage="finetune")
    with Averaged(learner.model, payload["state"]):
        learner.model.eval()
        fit(folder, payload, inputs.val, learner.probabilities)


def fit(
    folder: RunFolder,
    payload: Mapping[str, Any],
    data: Labelled,
    probabilities: Callable[[Array], Array],
) -> None:
    """Fit the temperature of a model on labelled images, and write it into best.ckpt.

    Args:
        folder: of the run.
        payload: of its best.ckpt.
        data: the images.
        probabilities: plane to (C, H, W), an array that may be changed.
    """
    labelled = sum(int(np.count_nonzero(mask != IGNORE)) for mask in data.masks)
    if not labelled:
        return
    every = max(1, -(-labelled // MOST_PIXELS))
    samples: list[Sample] = []
    # Predicted twice instead of kept: the images may be large.
    for plane, mask in zip(data.planes, data.masks, strict=True):
        samples.append(calibration.sample(probabilities(plane), mask, every))
    temperature = calibration.fitted(samples)
    before, after = [], []
    for plane, mask in zip(data.planes, data.masks, strict=True):
        found: Array = probabilities(plane)
        before.append(calibration.reliability(found, mask))
        calibration.temper(found, temperature)
        after.append(calibration.reliability(found, mask))
    # A resumed run that found no better model leaves the file as it is.
    if payload["progress"].get("temperature") != temperature:
        progress = {**payload["progress"], "temperature": temperature}
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
