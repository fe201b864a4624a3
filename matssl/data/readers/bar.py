"""The information bar drawn at the bottom of a micrograph, found from its pixels.

A bar is drawn, not imaged. Below one straight edge across the whole width each row has the bar's
paper (one grey level) on much of its width or is a rule from side to side, and on the paper stands
writing: letters on a base line, a scale bar, a block. JPEG smears all of it by some grey levels,
so every comparison has a tolerance. What belongs to the specimen misses one of these: a flat mount
carries no writing, debris in it is in no line, an interface is not sharp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array

# A bar takes at most this share of a picture's rows, and at least so many rows.
LARGEST_SHARE = 1 / 3
SMALLEST = 8
NARROWEST = 64
# Columns that are looked at; of wider pictures every second, third, ... one.
COLUMNS = 2048
# Grey levels of 255 within which JPEG leaves one drawn level, and without JPEG.
SMEARED, EXACT = 10, 3
# Share of a row that is paper, on the average and at least; of a rule or of the first row.
PAPER, LEAST_PAPER, RULE, FIRST = 0.5, 0.3, 0.85, 0.6
# Grey levels between paper and ink.
INK = 40
# Most rows of a rule; fewest letters that are a line.
THICKEST, FEWEST_LETTERS = 4, 4
# Largest share of neighbours on the paper that differ; of paper whose noise is bounded, as that of
# a converted picture is, and never that of a detector: so much lies within so few grey levels.
NOISE, BOUNDED_NOISE = 0.3, 0.55
BOUND, WITHIN = 2, 0.985
# How much the share of drawn pixels rises over the edge of a bar.
EDGE = 0.3
# Most rows of a bar that may be neither paper nor rule.
BROKEN = 0.06


@dataclass(frozen=True)
class Candidate:
    """A bar that may be there.

    Attributes:
        rows: its height.
        edge: rise of the share of drawn pixels over its upper edge, 0 to 1.
        sharp: how much of the step between specimen and paper one row makes, 0 to 1.
        written: whether there is writing on it.
    """

    rows: int
    edge: float
    sharp: float
    written: bool

    @property
    def sure(self) -> bool:
        """Whether it is a bar whatever other pictures show."""
        return self.written and self.sharp >= 0.5 and self.edge >= EDGE


def candidates(pixels: Array) -> tuple[Candidate, ...]:
    """Return the bars that a picture may have, the likeliest first; empty for none.

    Args:
        pixels: (H, W) or (H, W, 3) of any type.
    """
    height, width = pixels.shape[:2]
    limit = int(LARGEST_SHARE * height)
    if limit < SMALLEST or width < NARROWEST:
        return ()
    # Some rows above the highest bar there may be tell its edge.
    strip = levels(pixels, min(height, limit + 8))
    found: dict[int, Candidate] = {}
    for paper in _papers(strip):
        for rows, edge in _edges(strip, paper, limit):
            one = _looked_at(strip, paper, rows, edge)
            known = found.get(rows)
            if known is None or _rank(one) > _rank(known):
                found[rows] = one
    return tuple(sorted(found.values(), key=_rank, reverse=True))


def bar_height(pixels: Array) -> int:
    """Return the rows of an information bar drawn at the bottom of an image; 0 for none.

    Args:
        pixels: (H, W) or (H, W, 3) of any type.
    """
    return next((one.rows for one in candidates(pixels) if one.sure), 0)


def _rank(one: Candidate) -> tuple[bool, bool, float]:
    return one.sure, one.written, one.edge + one.sharp


def levels(pixels: Array, rows: int, step: int | None = None) -> NDArray[np.uint8]:
    """Return the lowest rows in 256 levels, uint8 (rows, columns).

    Args:
        pixels: (H, W) or (H, W, 3) of any type.
        rows: how many.
        step: of the columns; None looks at ``COLUMNS`` of them at most.
    """
    step = step or -(-pixels.shape[1] // COLUMNS)
    part = pixels[-rows:, ::step]
    if part.ndim == 3:
        part = part.astype(np.float32).mean(axis=2)
        if pixels.dtype == np.uint8:
            return np.rint(part).astype(np.uint8)
    if part.dtype == np.uint8:
        return part
    # Paper and ink may lie far outside the specimen's levels, which may take a small part of the
    # type's: the arcsinh keeps both apart.
    above = pixels[: -rows or None : max(1, len(pixels) // 256), ::step].astype(np.float64)
    above = above if above.size else part
    low, middle, high = np.percentile(above, [2, 50, 98])
    spread = max(float(high - low), 1e-6 * max(1.0, abs(float(middle))), 1e-12) / 2
    scaled = np.arcsinh((part.astype(np.float64) - middle) / spread)
    lowest, highest = float(scaled.min()), float(scaled.max())
    scaled = (scaled - lowest) / max(highest - lowest, 1e-12)
    return np.rint(255 * scaled).astype(np.uint8)


def _papers(strip: NDArray[np.uint8]) -> list[int]:
    """Return the grey levels that may be a bar's paper: the commonest of the lowest rows."""
    found: list[int] = []
    for share in (0.06, 0.12, 0.25, 0.5, 1.0):
        rows = max(SMALLEST, round(share * len(strip)))
        # The last rows may be a frame.
        counts = np.bincount(strip[-rows:-2].ravel(), minlength=256).astype(np.float64)
        smooth = np.convolve(counts, np.ones(2 * EXACT + 1), "same")
        # Of several levels under one window the commonest itself.
        window = slice(max(0, int(smooth.argmax()) - EXACT), int(smooth.argmax()) + EXACT + 1)
        level = window.start + int(counts[window].argmax())
        if all(abs(level - known) > EXACT for known in found):
            found.append(level)
    return found


def _edges(strip: NDArray[np.uint8], paper: int, limit: int) -> list[tuple[int, float]]:
    """Return heights at which a bar of this paper may begin, each with the rise at its edge."""
    away = np.abs(strip.astype(np.int16) - paper)
    median = np.median(strip, axis=1)
    spread = np.abs(strip - median[:, None])
    share, exact = (away <= SMEARED).mean(axis=1), (away <= EXACT).mean(axis=1)
    level = np.where(np.abs(median - paper) <= SMEARED, -1.0, median)
    rule = _thin((spread <= SMEARED).mean(axis=1), level)
    flat = _thin((spread <= EXACT).mean(axis=1), level)
    count = np.arange(1, len(strip) + 1)[::-1]
    drawn = (share >= LEAST_PAPER) | (rule > 0)
    broken = np.cumsum(~drawn[::-1])[::-1] / count
    papered = np.cumsum(share[::-1])[::-1] / count
    rise = np.zeros(len(strip))
    for full in (np.maximum(share, rule), np.maximum(exact, flat)):
        here = (full[2:-1] + full[3:]) / 2 - (full[:-3] + full[1:-2]) / 2
        rise[2:-1] = np.maximum(rise[2:-1], np.where(full[2:-1] >= FIRST, here, 0.0))
    # Under a rule at the edge paper comes at once.
    soon = np.max([np.roll(share, -row) for row in range(THICKEST + 1)], axis=0) >= FIRST
    fits = (broken <= BROKEN) & (papered >= PAPER) & (rise >= EDGE / 2) & soon
    fits[: len(strip) - limit] = False
    fits[len(strip) - SMALLEST + 1 :] = False
    peak = fits & (rise >= np.roll(rise, 1)) & (rise >= np.roll(rise, -1))
    tops = sorted(np.flatnonzero(peak).tolist(), key=lambda top: -rise[top])[:4]
    return [(len(strip) - top + _smeared_frame(spread, top), float(rise[top])) for top in tops]


def _smeared_frame(spread: NDArray[np.float64], top: int) -> int:
    """Return how many rows of a frame lie above the edge that was seen, smeared by JPEG.

    They are flat, and the specimen above them is not.

    Args:
        spread: distance of each pixel from the median of its row, (rows, columns).
        top: first row below the edge.
    """
    above = spread[max(0, top - 2 * THICKEST) : top][::-1]
    if len(above) < 2 * THICKEST:
        return 0
    flat = (above <= 2 * SMEARED).mean(axis=1)
    run = int((flat < RULE).argmax()) if (flat < RULE).any() else len(flat)
    rough = float(np.median(above[run:].mean(axis=1))) if run < len(flat) else 0.0
    # More of them are a flat specimen.
    return run if 0 < run <= THICKEST and above[:run].mean() <= rough / 3 else 0


def _thin(share: NDArray[np.float64], level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each row that is a rule from side to side.

    Many such rows of one grey are no rule: a flat specimen, or paper.

    Args:
        share: of each row that has the row's own grey.
        level: that grey, -1 for paper.
    """
    result = np.where((share >= RULE) & (level >= 0), share, 0.0)
    same = (np.abs(np.diff(level)) <= SMEARED) & (result[1:] > 0) & (result[:-1] > 0)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    for start, end in zip(starts, [*starts[1:], len(level)], strict=True):
        if end - start > THICKEST:
            result[start:end] = 0
    return result


def _looked_at(strip: NDArray[np.uint8], paper: int, rows: int, edge: float) -> Candidate:
    top = len(strip) - rows
    return Candidate(rows, edge, _sharpness(strip, paper, top), _written(strip[top:], paper))


def _sharpness(strip: NDArray[np.uint8], paper: int, top: int) -> float:
    """Return which part of the step over an edge one row makes; an imaged edge takes several."""
    rows = strip[max(0, top - 4) : top + 3].astype(np.float32)
    before, after = rows[:2].mean(axis=0), rows[-1]
    step = after - before
    if abs(float(step.mean())) >= max(INK / 2, float(step.std())):
        clear = np.abs(step) >= INK / 2
        # JPEG moves some of the step into the neighbouring rows.
        made = np.diff(rows[:, clear], axis=0) / step[clear]
        return min(1.0, float(np.median(made, axis=1).max()))
    # Paper of the specimen's own grey: how much of the row above shines through.
    above, here = strip[top - 1].astype(np.float32) - paper, strip[top].astype(np.float32)
    here -= np.median(here)
    return 1.0 - min(1.0, abs(float((above * here).sum())) / max(float((above**2).sum()), 1e-9))


def _grain(away: NDArray[np.int16], bar: NDArray[np.uint8]) -> float:
    """Return the share of neighbours on the paper that differ: what is drawn has no noise."""
    step = np.abs(np.diff(bar.astype(np.int16), axis=1))
    near = (away[:, 1:] <= SMEARED) & (away[:, :-1] <= SMEARED)
    return float((step[near] > 1).mean()) if near.any() else 1.0


def _is_paper(away: NDArray[np.int16], bar: NDArray[np.uint8]) -> bool:
    """Return whether what is near the paper's grey is as even as drawn paper is.

    A detector's noise of the same strength has tails: 92 % of it lie within two grey levels where
    all of a noise of up to two do.
    """
    grain = _grain(away, bar)
    if grain <= NOISE:
        return True
    if grain > BOUNDED_NOISE:
        return False
    near = bar[away <= SMEARED].astype(np.int16)
    return bool((np.abs(near - np.median(near)) <= BOUND).mean() >= WITHIN)


def _written(bar: NDArray[np.uint8], paper: int) -> bool:
    """Return whether a bar carries what is drawn: lines, blocks, letters on a base line."""
    import cv2

    away = np.abs(bar.astype(np.int16) - paper)
    # Rules from side to side are the frame; writing is within them.
    inner = away[:, 3:-3].copy()
    if not _is_paper(inner, bar[:, 3:-3]):
        return False
    median = np.median(bar, axis=1)[:, None]
    rules = (np.abs(bar - median) <= SMEARED).mean(axis=1) >= RULE
    inner[rules & (np.abs(median[:, 0] - paper) > SMEARED)] = 0
    strongest = float(np.percentile(inner, 99.9))
    if strongest < INK:
        return False
    ink = (inner >= max(INK * 0.75, 0.4 * strongest)).astype(np.uint8)
    count, _, boxes, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    boxes = boxes[1:count]
    left, top, wide, high, area = boxes.T
    filled = area >= 0.85 * wide * high
    long = (wide >= 12) & (wide >= 4 * high) | (high >= 8) & (high >= 4 * wide) & (wide <= 4)
    block = (wide >= 24) & (high >= 8)
    if bool((filled & (long | block)).any()):
        return True
    letters = (high >= 4) & (wide >= 2) & (high <= 0.9 * len(bar)) & (wide <= 3 * high)
    bottom, high = (top + high)[letters], high[letters]
    if len(high) < FEWEST_LETTERS:
        return False
    # Capitals and digits: one base line, one height.
    alike = (np.abs(bottom[:, None] - bottom) <= 1) & (np.abs(high[:, None] - high) <= 1)
    return bool(alike.sum(axis=1).max() >= max(FEWEST_LETTERS, 0.25 * len(high)))
