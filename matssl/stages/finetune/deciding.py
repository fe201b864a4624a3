"""The decision between classes that validation images choose (``--decision validation``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl import report
from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder
from matssl.core.tables import percent
from matssl.core.wording import counted
from matssl.data.crops import Labelled
from matssl.metrics import decision
from matssl.metrics.calibration import Sample
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.rare_settings import VALIDATION
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.trained.ensemble import FACTORS

# What the run folder holds of it.
FILE = "decision.json"


def choose(
    folder: RunFolder, samples: Sequence[Sample], data: Labelled, names: Sequence[str]
) -> dict[str, list[float]]:
    """Choose the factors of the classes, and write what they are worth.

    Specimens are left out one by one. Images of one specimen are not enough: what they choose for
    each other lost half a point on other specimens (benchmarks/RESULTS.md).

    Args:
        folder: of the run.
        samples: labelled pixels of each validation image.
        data: these images.
        names: of the classes.

    Returns:
        What goes into the progress of the checkpoint: nothing where the most likely class is kept.
    """
    found = decision.chosen(samples, [pair.group for pair in data.pairs])
    factors = [float(factor) for factor in np.exp(found.offsets)] if found.pays else []
    folder.write_json(
        FILE,
        {
            **found.to_dict(),
            "images": len(data.pairs),
            "factors": dict(zip(names, factors, strict=True)) if factors else {},
        },
    )
    return {FACTORS: factors} if factors else {}


def unheeded(settings: FinetuneSettings, inputs: Inputs) -> str:
    """Return a note where validation images are to choose and there are none; else nothing."""
    if settings.decision != VALIDATION or inputs.val is not None:
        return ""
    return "note    --decision validation is without effect: there are no validation images"


def told(root: Path) -> str:
    """Return in words what was decided, "" where nothing was asked for."""
    try:
        facts: Mapping[str, Any] = textfiles.read_json(root / FILE)
        images = counted(int(facts["images"]), "validation image")
        before, others = facts["miou_most_likely"], facts["miou_chosen_on_other_groups"]
        if others is None:
            return (
                f"the most likely class: {images} of one specimen cannot tell whether another "
                "decision pays on others"
            )
        gain = (
            f"on {images}, each specimen by factors that the others chose, mIoU "
            f"{percent(float(others))} % instead of {percent(float(before))} %"
        )
        if not facts["taken"]:
            return f"the most likely class: factors of the classes do not pay ({gain})"
        factors = ", ".join(f"{name} {value:.2f}" for name, value in facts["factors"].items())
        return f"probabilities are multiplied before the largest is taken: {factors} ({gain})"
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return ""


def section(root: Path) -> list[tuple[str, str]]:
    """Return the part of a report on it, nothing where nothing was asked for."""
    said = told(root)
    return [("Decision", report.note(f"--decision validation: {said}."))] if said else []
