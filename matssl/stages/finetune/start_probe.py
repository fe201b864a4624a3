"""Which start: weights held against others at hand, by a linear read-out of frozen features.

Seconds on the labelled training images, before a fine-tuning begins: a given start that is worse
than another is said, and ``--ssl_weights_path auto`` takes the best. Nothing of the training that
follows depends on whether it was done.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_write_text
from matssl.core.runtime import Runtime
from matssl.core.tables import csv_text
from matssl.core.wording import counted
from matssl.models.encoders import build_encoder, channels_last, encoder_facts
from matssl.probe import CrossProbe
from matssl.stages import lineage
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.finetune.start_candidates import Candidate, at_hand, masks_seen, words_of
from matssl.stages.finetune.start_settings import AUTO
from matssl.trained.encoder import IMAGENET, RANDOM

# The table in a run folder.
TABLE = "start_probe.csv"
# Random weights are drawn so often: one draw may be lucky.
DRAWS = 3


@dataclass(frozen=True)
class Scored:
    """What the read-out says of a start.

    Attributes:
        candidate: the start.
        counts: confusion matrices of the units of each draw, int64 (units, C, C); one draw of
            weights that are not random.
        miou: 0 to 1, mean of the draws.
    """

    candidate: Candidate
    counts: tuple[NDArray[np.int64], ...]
    miou: float


@dataclass(frozen=True)
class Gain:
    """By how much one start is better than another, in mIoU from -1 to 1.

    Attributes:
        value: mean over draws.
        low: lower end of the 95 % interval, the lowest of all draws; NaN where there is none.
        high: upper end, the highest of all draws.
    """

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """In points of mIoU with the interval."""
        if self.value == 0 and math.isnan(self.low):
            return "no difference"
        if math.isnan(self.low):
            return f"{100 * self.value:+.1f} points, too few parts for an interval"
        ends = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.value:+.1f} points {ends}"


@dataclass(frozen=True)
class Comparison:
    """A look at starts: what is printed and kept.

    Attributes:
        text: the table for people, with what was taken or what is wrong with the given one.
        rows: of ``start_probe.csv``.
        fact: the outcome in one line, for status.json.
        warning: what speaks against the given start, "" where nothing is proven.
    """

    text: str
    rows: tuple[dict[str, object], ...] = ()
    fact: str = ""
    warning: str = ""

    def write(self, folder: RunFolder) -> None:
        """Write the table into a run folder."""
        if self.rows and folder.writer:
            atomic_write_text(folder.path(TABLE), csv_text(self.rows))


def waits(settings: FinetuneSettings) -> bool:
    """Return whether encoder or decoder are those of a start which is still to be chosen.

    Folds and stages are checked together before one begins, so that theirs is known.
    """
    alone = settings.folds is None and settings.stages is None and not settings.resume
    return (
        alone and settings.ssl_weights_path == AUTO and AUTO in (settings.encoder, settings.decoder)
    )


def compared(
    settings: FinetuneSettings, rt: Runtime, inputs: Inputs
) -> tuple[FinetuneSettings, Comparison | None]:
    """Return the settings with the start that is taken, and the look at it where there was one.

    Every process comes to the same.

    Args:
        settings: of a run that begins.
        rt: where it computes.
        inputs: its images; those that validate are not looked at.

    Raises:
        UserError: the given weights cannot be used; starts to choose among cannot be compared.
    """
    if settings.ssl_weights_path == AUTO:
        return _chosen(settings, rt, inputs)
    given = settings.ssl_weights_path or settings.weights
    if settings.check_start == "none" or settings.whole_model or given == RANDOM:
        return settings, None
    return settings, _checked(settings, given, rt, inputs)


def _checked(settings: FinetuneSettings, given: str, rt: Runtime, inputs: Inputs) -> Comparison:
    """Return how a given start does beside the others at hand."""
    name = settings.encoder
    seen = masks_seen(given, inputs.train.digests)
    if seen:
        return Comparison(f"start   not compared with others: {seen}")
    first = Candidate(given, name, f"given: {words_of(given, name)}")
    others, notes = at_hand(settings, name, inputs, but=(given,))
    try:
        probe = _probe(settings, (first, *others), inputs)
    except UserError as error:
        return Comparison(f"start   not compared with others: {error}")
    scored, told, failed = _scored((first, *others), probe, settings.seed, rt, inputs)
    if scored[0].candidate is not first:
        raise UserError(failed[0])
    own, rest = scored[0], scored[1:]
    gains = [_gain(own, other, told.probe) for other in rest]
    better = [pair for pair in zip(rest, gains, strict=True) if pair[1].low > 0]
    ordered = sorted(zip(rest, gains, strict=True), key=lambda pair: -pair[0].miou)
    lines = [f"start   {told.text}", _line(own)]
    lines += [_line(other, f"{gain.text} against the given one") for other, gain in ordered]
    lines += [f"        {note}" for note in (*notes, *(f"left out: {why}" for why in failed))]
    warning = fact = ""
    if better:
        best, gain = max(better, key=lambda pair: pair[0].miou)
        fact = f"the given start is worse than {best.candidate.words}: {gain.text} of mIoU"
        warning = f"warning {fact}. {_instead(best.candidate)}"
        lines.append(warning)
    else:
        fact = "no start at hand is proven better than the given one"
        lines.append(f"        {fact}")
    rows = _rows(scored, own, told)
    return Comparison("\n".join(lines), rows, fact, warning)


def _instead(candidate: Candidate) -> str:
    """Return what to type for another start."""
    if candidate.source == RANDOM:
        return "Leave the weights out to begin from random ones"
    if candidate.source == IMAGENET:
        return "--weights imagenet takes it"
    return f"--ssl_weights_path {candidate.source} takes it"


def _chosen(
    settings: FinetuneSettings, rt: Runtime, inputs: Inputs
) -> tuple[FinetuneSettings, Comparison]:
    """Return the settings with the best start, and how it was found."""
    known = settings.encoder != AUTO
    name = reading.named_encoder(settings, settings.encoder) if known else None
    found, notes = at_hand(settings, name, inputs, but=())
    told_notes = [f"        {note}" for note in notes]
    if len(found) == 1:
        text = "start   random weights: no pretraining run and no weights at hand fit"
        where = Path(settings.output_dir) / "ssl"
        text += f" (looked in {where} and in the model hub)"
        fact = "random weights: nothing else at hand"
        return _taking(settings, found[0]), Comparison("\n".join([text, *told_notes]), (), fact)
    try:
        probe = _probe(settings, found, inputs)
    except UserError as error:
        names = ", ".join(one.source for one in found)
        raise UserError(
            f"--ssl_weights_path auto cannot compare starts: {error}; name one of them: {names}"
        ) from error
    scored, told, failed = _scored(found, probe, settings.seed, rt, inputs)
    best = max(scored, key=lambda one: one.miou)
    ordered = sorted(scored, key=lambda one: -one.miou)
    lines = [f"start   {told.text}"]
    for one in ordered:
        gain = "" if one is best else f"{_gain(best, one, told.probe).text} against the one taken"
        lines.append(_line(one, gain or "taken"))
    lines += [*told_notes, *(f"        left out: {why}" for why in failed)]
    fact = f"{best.candidate.words}: the best of {counted(len(scored), 'start')} at hand"
    rows = _rows(scored, best, told)
    return _taking(settings, best.candidate), Comparison("\n".join(lines), rows, fact)


def _taking(settings: FinetuneSettings, candidate: Candidate) -> FinetuneSettings:
    """Return the settings as if the user had given this start."""
    encoder = candidate.encoder if settings.encoder == AUTO else settings.encoder
    plain = candidate.source in (RANDOM, IMAGENET)
    return replace(
        settings,
        encoder=encoder,
        ssl_weights_path=None if plain else candidate.source,
        weights=candidate.source if plain else RANDOM,
    )


@dataclass(frozen=True)
class _Told:
    """A probe, and in words how it scored."""

    probe: CrossProbe
    text: str
    how: str


def _probe(
    settings: FinetuneSettings, candidates: Sequence[Candidate], inputs: Inputs
) -> CrossProbe:
    """Return what scores the starts.

    Raises:
        UserError: the labels do not carry it.
    """
    channels = inputs.record.channels
    multiple = _multiple(candidates[0].encoder, channels)
    for name in dict.fromkeys(one.encoder for one in candidates[1:]):
        # An encoder that cannot be built here is left out with its reason.
        with contextlib.suppress(UserError):
            multiple = math.lcm(multiple, _multiple(name, channels))
    classes = inputs.table.num_classes
    return CrossProbe(inputs.train, classes, inputs.record.tensor, settings.seed, multiple)


def _scored(
    candidates: Sequence[Candidate], probe: CrossProbe, seed: int, rt: Runtime, inputs: Inputs
) -> tuple[list[Scored], _Told, list[str]]:
    """Return the scores of starts, how they were found, and what is wrong with the others."""
    began = time.monotonic()
    found: list[Scored] = []
    failed: list[str] = []
    for one in candidates:
        draws = DRAWS if one.source == RANDOM else 1
        try:
            counts = tuple(_counts(one, probe, inputs, rt, seed + draw) for draw in range(draws))
        except UserError as error:
            failed.append(str(error))
            continue
        found.append(Scored(one, counts, float(np.mean([probe.score(c) for c in counts]))))
    images = counted(len(inputs.train.planes), "labelled image")
    units = len(found[0].counts[0])
    how = f"cross-validation inside {images}, {units} {probe.unit}"
    seconds = time.monotonic() - began
    text = (
        f"{counted(len(found), 'start')} by a linear read-out of frozen features, mIoU ({how}; "
        f"{seconds:.0f} s)"
    )
    return found, _Told(probe, text, how), failed


def _fresh(name: str, channels: int, seed: int, device: torch.device) -> torch.nn.Module:
    """Return an encoder with random weights of a seed; no other draw of the run is touched."""
    own = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=own):
        torch.manual_seed(seed)
        return build_encoder(name, channels)


def _multiple(name: str, channels: int) -> int:
    return encoder_facts(_fresh(name, channels, 0, torch.device("cpu"))).multiple


def _counts(
    candidate: Candidate, probe: CrossProbe, inputs: Inputs, rt: Runtime, seed: int
) -> NDArray[np.int64]:
    """Return the confusion matrices of a start.

    Raises:
        UserError: its weights cannot be used.
    """
    encoder = _fresh(candidate.encoder, inputs.record.channels, seed, rt.device)
    lineage.start_weights(encoder, candidate.source, candidate.encoder, inputs.record)
    encoder = channels_last(encoder).to(rt.device).eval()
    return probe.counts(encoder, rt.device, rt.autocast)


def _gain(first: Scored, second: Scored, probe: CrossProbe) -> Gain:
    """Return by how much the second is better, with an interval that holds for every draw."""
    found = [probe.gain(a, b) for a, b in product(first.counts, second.counts)]
    low, high = (np.array([getattr(one, end) for one in found]) for end in ("low", "high"))
    return Gain(second.miou - first.miou, float(low.min()), float(high.max()))


def _line(one: Scored, after: str = "") -> str:
    """Return the line of a start."""
    draws = f" (mean of {len(one.counts)} draws)" if len(one.counts) > 1 else ""
    after = f": {after}" if after else ""
    return f"        {100 * one.miou:5.1f} %  {one.candidate.words}{draws}{after}"


def _rows(
    scored: Sequence[Scored], reference: Scored, told: _Told
) -> tuple[dict[str, object], ...]:
    """Return the rows of the table: each start beside the given one, or the one taken."""
    rows: list[dict[str, object]] = []
    for one in scored:
        own = one is reference
        gain = Gain(0.0, math.nan, math.nan) if own else _gain(reference, one, told.probe)
        ends = {"low": gain.low, "high": gain.high}
        rows.append(
            {
                "start": one.candidate.source,
                "encoder": one.candidate.encoder,
                "reference": own,
                "draws": len(one.counts),
                "miou": round(one.miou, 4),
                "gain": round(gain.value, 4),
                **{k: "" if math.isnan(v) else round(v, 4) for k, v in ends.items()},
                "units": len(one.counts[0]),
                "how": told.how,
            }
        )
    return tuple(rows)
