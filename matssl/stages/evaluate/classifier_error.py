"""The model's own error in area fractions: known of it from elsewhere, and kept for elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matssl import hub
from matssl.core.run_folder import RunFolder
from matssl.measure import classifier, fractions, held_out
from matssl.measure.classifier import Corrected
from matssl.measure.held_out import HeldOut, Record
from matssl.stages import held_out as shared
from matssl.stages.evaluate.summary import Result

VALIDATION = "val"


def write(
    folder: RunFolder,
    results: Sequence[Result],
    names: Sequence[str],
    warnings: Sequence[str],
    at_home: bool,
) -> None:
    """Write confusion.json: the truth of these images is held-out truth for other folders.

    Args:
        folder: of the run.
        results: of all images; nothing is written where none has a mask.
        names: of the classes.
        warnings: that the model has seen images.
        at_home: whether the model was trained on this folder.
    """
    images = tuple(
        HeldOut(str(r.pair.image), r.pair.group, r.counts) for r in results if r.counts is not None
    )
    doubts = list(warnings)
    if at_home and any(r.pair.split == VALIDATION for r in results):
        doubts.append("images of the validation split chose the step at which training ended")
    if images:
        record = Record(tuple(names), images, tuple(doubts))
        folder.write_json(held_out.FILE, record.stored())


def known(results: Sequence[Result], names: Sequence[str], model: str) -> dict[str, Any]:
    """Return the corrected area fractions as plain values, and what is to be said of them.

    Args:
        results: of all images.
        names: of the classes.
        model: checkpoint, in whose run folder the held-out truth of folds lies.
    """
    record = shared.beside_model(hub.locate(model).resolve(), names)
    if record is None:
        return {"corrected": {}, "notes": [shared.MISSING]}
    found = _corrected(results, record)
    kept = zip(names, found.classes, strict=True)
    shares = {name: shared.stored(one) for name, one in kept if one is not None}
    return {"corrected": shares, "notes": shared.told(record, [found], names)}


def _corrected(results: Sequence[Result], record: Record) -> Corrected:
    """Return the area fractions over specimens, or of the only one, without the model's error."""
    estimates = fractions.over_specimens([r.field for r in results])
    own = list(dict.fromkeys(r.field.specimen for r in results))
    several = len(own) > 1
    # A single specimen is corrected from the others.
    others = record if several else record.without(own)
    return classifier.of_classes([one.sample for one in estimates], others.images, several)
