"""The model's own error in area fractions: known of it from elsewhere, and kept for elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matssl import hub
from matssl.core.run_folder import RunFolder
from matssl.measure import classifier, fractions, held_out
from matssl.measure.classifier import Corrected
from matssl.measure.held_out import HeldOut, Record
from matssl.stages import held_out as shared
from matssl.stages.evaluate.summary import Result
from matssl.trained.segmenter import Segmenter

VALIDATION = "val"
# Of images that are held-out truth themselves.
OUT_OF_FOLD: Mapping[str, Any] = {
    "corrected": {},
    "doubts": [],
    "notes": [
        "These images are held-out truth themselves: matssl.tools.measure --folds_from takes them "
        "to correct the fractions of further specimens, and to add the model's own error."
    ],
}


def write(
    folder: RunFolder, results: Sequence[Result], names: Sequence[str], summary: Mapping[str, Any]
) -> None:
    """Write confusion.json: the truth of these images is held-out truth for other folders.

    Args:
        folder: of the run.
        results: of all images; nothing is written where none has a mask.
        names: of the classes.
        summary: its warnings that the model has seen images are doubts.
    """
    images = tuple(HeldOut(r.name, r.pair.group, r.counts) for r in results if r.counts is not None)
    doubts = (*summary["warnings"], *summary["classifier_error"]["doubts"])
    if images:
        record = Record(tuple(names), images, doubts)
        folder.write_json(held_out.FILE, record.stored())


def known(
    results: Sequence[Result], segmenter: Segmenter, model: str, at_home: bool
) -> dict[str, Any]:
    """Return the corrected area fractions as plain values, and what is to be said of them.

    Args:
        results: of all images.
        segmenter: the model.
        model: checkpoint, in whose run folder the held-out truth of folds lies.
        at_home: whether the model was trained on this folder.
    """
    names, doubts = segmenter.table.names, []
    if at_home and any(r.pair.split == VALIDATION for r in results):
        doubts.append("images of the validation split chose the step at which training ended")
    record = shared.beside_model(hub.locate(model).resolve(), names)
    if record is None:
        return {"corrected": {}, "doubts": doubts, "notes": [shared.MISSING]}
    found = _corrected(results, record)
    kept = zip(names, found.classes, strict=True)
    shares = {name: shared.stored(one) for name, one in kept if one is not None}
    notes = shared.told(record, [found], names)
    return {"corrected": shares, "doubts": doubts, "notes": notes}


def _corrected(results: Sequence[Result], record: Record) -> Corrected:
    """Return the area fractions over specimens, or of the only one, without the model's error."""
    estimates = fractions.over_specimens([r.field for r in results])
    own = list(dict.fromkeys(r.field.specimen for r in results))
    several = len(own) > 1
    # A single specimen is corrected from the others.
    others = record if several else record.without(own)
    return classifier.of_classes([one.sample for one in estimates], others.images, several)
