"""Several passes of a trained model over one micrograph, which may contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matssl import blending
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.geometry import apply_d4
from matssl.metrics import calibration
from matssl.trained.member import Member
from matssl.trained.network import Network
from matssl.trained.segmenter import Picture, Segmenter, native, opened

Kind = Literal["ensemble", "dropout", "orientations"]
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def kind(segmenter: Segmenter, wanted: str = "auto") -> Kind:
    """Return what makes the passes of a model differ.

    Args:
        segmenter: the model.
        wanted: ensemble, dropout, orientations, or auto: the first of them that it has.

    Raises:
        UserError: it does not have what is wanted, or nothing that makes a difference.
    """
    has: dict[Kind, bool] = {
        "ensemble": len(segmenter.members) > 1,
        "dropout": bool(_dropout(segmenter)),
        # Filters see the same in every orientation.
        "orientations": not segmenter.network.whole,
    }
    for name, there in has.items():
        if wanted == name and not there:
            lacks = {
                "ensemble": "is one model; train_finetune.py --folds makes an ensemble",
                "dropout": "has no dropout",
                "orientations": "looks at filters, which see the same in every orientation",
            }[name]
            raise UserError(f"--passes_by {name}: {segmenter.source} {lacks}")
    found = next((name for name, there in has.items() if there and wanted in ("auto", name)), None)
    if found is None:
        raise UserError(
            f"bald: {segmenter.source} is one classifier on filters, whose passes cannot differ; "
            "take entropy, or the ensemble of --folds"
        )
    return found


def probabilities(
    segmenter: Segmenter,
    micrograph: Picture,
    by: Kind,
    count: int,
    seed: int,
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    scratch: Path | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield the class probabilities of each pass, float32 (C, rows above the bar, W), calibrated.

    Args:
        segmenter: the model.
        micrograph: see :meth:`matssl.trained.segmenter.Segmenter.predict`.
        by: see :func:`kind`.
        count: passes with dropout; an ensemble has as many as models, orientations are eight.
        seed: of the dropout.
        tile_size: see :meth:`matssl.trained.segmenter.Segmenter.predict`.
        overlap: see there.
        scratch: see there.
    """
    picture = opened(micrograph, segmenter.record)
    plane = segmenter.record.plane(picture)
    shape = (segmenter.record.kept_rows(picture), picture.pixels.shape[1])
    alone = Member(segmenter.network, segmenter.record, segmenter.temperature)
    members = segmenter.members if by == "ensemble" else (alone,)

    def of(member: Member, plane: Array) -> Array:
        found = member.probabilities(
            plane,
            segmenter.table.num_classes,
            tile_size=tile_size,
            overlap=overlap,
            scratch=scratch,
        )
        calibration.temper(found, member.temperature)
        return found

    if by == "orientations":
        for flip, turns in blending.D4:
            found = of(alone, np.ascontiguousarray(apply_d4(plane, flip, turns)))
            upright = np.empty((len(found), *plane.shape[:2]), found.dtype)
            blending.oriented(upright, flip, turns)[:] = found
            yield native(upright, shape)
    elif by == "dropout":
        for number in range(count):
            with torch.random.fork_rng(), _dropping(segmenter):
                torch.manual_seed(seed + number)
                found = of(alone, plane)
            yield native(found, shape)
    else:
        for member in members:
            yield native(of(member, plane), shape)


def shares(segmenter: Segmenter, by: Kind) -> Iterator[float]:
    """Yield the share of each pass beside the first: models of an ensemble may have their own.

    Args:
        segmenter: the model.
        by: see :func:`kind`.
    """
    if by == "ensemble":
        first = segmenter.members[0].of
        yield from (first / member.of for member in segmenter.members)
    while by != "ensemble":
        yield 1.0


def _dropout(segmenter: Segmenter) -> list[nn.Module]:
    """Return the units that can drop out; an exported network has none any more."""
    network = segmenter.network
    modules = network.model.modules() if isinstance(network, Network) else ()
    return [m for m in modules if isinstance(m, DROPOUT) and m.p > 0]


@contextmanager
def _dropping(segmenter: Segmenter) -> Iterator[None]:
    """Let the units of a model in evaluation drop out, and nothing else learn."""
    units = _dropout(segmenter)
    for unit in units:
        unit.train()
    try:
        yield
    finally:
        for unit in units:
            unit.eval()
