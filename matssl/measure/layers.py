"""Thickness of a layer along its normal, and the roughness of its two edges.

A layer is a band that crosses the field. Its form is a straight line, or a curve where the band
bends more than it is rough; thickness is the distance of both edges along the normal of that form,
taken at every pixel of its length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

# Steps along a normal, in pixels; edges between two of them are interpolated.
STEP = 0.5
# Share of the normals of a band that must meet both edges, and of the gradient in one direction.
LEAST_MEASURED, LEAST_ALIGNED = 0.5, 0.3
# Fewer normals have no mean.
LEAST_NORMALS = 16
# A form is curved where it bends by more than this many times the waviness left about the curve.
BEND, LEAST_BEND = 2.0, 3.0
# Smoothing of the mask before its gradients tell the direction, in pixels.
SMOOTH = 2.0

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Roughness:
    """Of an edge about its own mean line (ISO 21920-2; no filter, so that waviness is in it).

    Attributes:
        ra: mean of the absolute heights, px.
        rq: root mean square of the heights, px.
    """

    ra: float
    rq: float


@dataclass(frozen=True)
class Layer:
    """A band that crosses a field; lengths in pixels.

    Attributes:
        angle: of the layer against the x axis, degrees counter-clockwise, above -90 up to 90.
        curved: whether its form is a curve.
        length: of the form, as far as it is measured.
        place: of each normal, along the form from the first one of the field, (N,).
        thickness: at each normal, (N,).
        first: ends of the normals on the upper edge (the left one of an upright layer), (N, 2)
            as x, y.
        second: on the other edge.
        roughness: of both edges, in this order.
        outside: normals at which the layer leaves the field, or meets pixels that count nowhere.
        broken: normals at which there is no layer.
    """

    angle: float
    curved: bool
    length: float
    place: Floats
    thickness: Floats
    first: Floats
    second: Floats
    roughness: tuple[Roughness, Roughness]
    outside: int
    broken: int

    @property
    def mean(self) -> float:
        """Mean thickness."""
        return float(self.thickness.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the thickness along the layer, with n - 1."""
        return float(self.thickness.std(ddof=1))

    @property
    def upright(self) -> bool:
        """Whether it stands rather than lies, so that its edges are left and right."""
        return abs(self.angle) > 45


def with_cracks(band: Mask, cracks: Mask) -> Mask:
    """Return the band with those pixels of cracks that lie inside it or cut it.

    Inside is what a closing of the band with a disc as wide as the widest crack fills.

    Args:
        band: pixels of the layer (H, W).
        cracks: pixels of cracks (H, W).
    """
    inside = cracks & _closed(band, cracks)
    return band | inside


def find_layers(band: Mask, known: Mask | None = None) -> list[tuple[Layer, Mask]]:
    """Return the layers among the connected parts of a mask, from the top (or left) on.

    Args:
        band: pixels of the class (H, W).
        known: pixels that count; None where all do.

    Returns:
        Each with the pixels it is made of, holes filled. Parts that do not cross the field, and
        those without an edge on both sides, are none.
    """
    known = np.ones(band.shape, bool) if known is None else known
    count, labels, facts, _ = cv2.connectedComponentsWithStats(band.astype(np.uint8))
    found = []
    for number in range(1, count):
        width, height = facts[number, cv2.CC_STAT_WIDTH], facts[number, cv2.CC_STAT_HEIGHT]
        # What crosses a field is at least half as long as its shorter side.
        if math.hypot(width, height) < min(band.shape) / 2:
            continue
        part = _filled(labels == number)
        layer = measure(part, known)
        if layer is not None:
            found.append((layer, part))
    return sorted(found, key=lambda one: float(one[0].first[:, 0 if one[0].upright else 1].mean()))


def measure(band: Mask, known: Mask) -> Layer | None:
    """Return a connected band as a layer, None where it is none.

    Args:
        band: its pixels, without holes (H, W).
        known: pixels that count.
    """
    direction = _direction(band, known)
    if direction is None:
        return None
    rows, columns = np.nonzero(band)
    origin = np.array([columns.mean(), rows.mean()])
    frame = _Frame(origin, direction, np.zeros(1))
    # Coarse first: the band's own mean line gives direction and place.
    for step in (4.0, 4.0, 2.0):
        lines = _cut(band, known, frame, step)
        if np.count_nonzero(lines.good) * step < LEAST_NORMALS:
            return None
        frame = frame.straightened(lines)
    frame = frame.bent(_cut(band, known, frame, 2.0))
    lines = _cut(band, known, frame, 1.0)
    good = lines.good
    crossing = (lines.met | lines.outside) & lines.counts
    if np.count_nonzero(good) < max(LEAST_NORMALS, LEAST_MEASURED * np.count_nonzero(crossing)):
        return None
    if not _crosses(lines):
        return None
    degree = len(frame.form) - 1 if len(frame.form) > 1 else 1
    place = lines.along[good]
    heights = [lines.low[good], lines.high[good]]
    if frame.turned:
        heights.reverse()
    ends = [lines.base[good] + lines.normal[good] * t[:, None] for t in heights]
    rough = [_roughness(place, height, degree) for height in heights]
    return Layer(
        angle=frame.angle,
        curved=len(frame.form) > 2,
        length=float(np.count_nonzero(good)) * lines.step,
        place=np.flatnonzero(good).astype(np.float64) * lines.step,
        thickness=np.abs(heights[1] - heights[0]),
        first=ends[0],
        second=ends[1],
        roughness=(rough[0], rough[1]),
        outside=int(np.count_nonzero(lines.outside | ~lines.counts)),
        broken=int(np.count_nonzero(~lines.met & ~lines.outside & lines.counts)),
    )


@dataclass(frozen=True)
class _Lines:
    """Normals of a form, cut with a band.

    Attributes:
        along: place of each on the axis of the frame.
        base: foot of each on the form (N, 2).
        normal: unit vectors (N, 2).
        low: where the band begins along the normal, NaN where it does not.
        high: where it ends.
        met: whether it meets the band.
        outside: whether the field or the known pixels end before the band does.
        counts: whether the foot lies on a pixel that counts.
        step: distance of two feet on the form.
    """

    along: Floats
    base: Floats
    normal: Floats
    low: Floats
    high: Floats
    met: Mask
    outside: Mask
    counts: Mask
    step: float

    @property
    def good(self) -> Mask:
        """Which normals have both edges."""
        return self.met & ~self.outside & self.counts


@dataclass(frozen=True)
class _Frame:
    """A straight axis, and the form of a layer as a polynomial over it.

    Attributes:
        origin: of the axis, x and y.
        direction: unit vector of the axis.
        form: coefficients, the highest power first, of the distance of the form from the axis.
    """

    origin: Floats
    direction: Floats
    form: Floats

    @property
    def across(self) -> Floats:
        """Unit vector that the distance is counted along."""
        return np.array([-self.direction[1], self.direction[0]])

    @property
    def angle(self) -> float:
        """Degrees counter-clockwise from x, y pointing up; above -90 up to 90."""
        angle = math.degrees(math.atan2(-self.direction[1], self.direction[0]))
        angle = (angle + 90) % 180 - 90
        return 90.0 if angle == -90 else angle

    @property
    def turned(self) -> bool:
        """Whether the distance grows towards the top, or the left of an upright layer."""
        across = self.across
        upright = abs(self.angle) > 45
        return bool((across[0] if upright else across[1]) < 0)

    def straightened(self, lines: _Lines) -> _Frame:
        """Return the frame whose axis is the mean line of what was cut."""
        good = lines.good
        middle = (lines.low[good] + lines.high[good]) / 2
        slope, level = np.polyfit(lines.along[good], middle, 1)
        direction = self.direction + slope * self.across
        return _Frame(
            self.origin + level * self.across, direction / np.hypot(*direction), np.zeros(1)
        )

    def bent(self, lines: _Lines) -> _Frame:
        """Return the frame with a curve for its form where the band bends more than it waves."""
        good = lines.good
        place, middle = lines.along[good], (lines.low[good] + lines.high[good]) / 2
        half = np.ptp(place) / 2 or 1.0
        best = None
        for degree in (2, 4):
            form = np.polyfit(place, middle, degree) if len(place) > LEAST_NORMALS else np.zeros(1)
            left = float(np.sqrt(np.mean((middle - np.polyval(form, place)) ** 2)))
            if best is None:
                bend = abs(form[0]) * half**2 if len(form) == 3 else 0.0
                if bend <= max(LEAST_BEND, BEND * left):
                    return self
                best = (left, form)
            elif left < best[0] / 2:
                best = (left, form)
        assert best is not None
        return _Frame(self.origin, self.direction, best[1])


def _direction(band: Mask, known: Mask) -> Floats | None:
    """Return the direction along which the edges of a band run; None where there is no such one."""
    smooth = cv2.GaussianBlur(band.astype(np.float32), (0, 0), SMOOTH)
    right, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    margin = int(4 * SMOOTH)
    inner = np.zeros(band.shape, bool)
    inner[margin:-margin, margin:-margin] = True
    if not known.all():
        size = 2 * margin + 1
        inner &= cv2.erode(known.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    right, down = right[inner].astype(np.float64), down[inner].astype(np.float64)
    doubled = np.array([np.sum(right**2 - down**2), np.sum(2 * right * down)])
    total = float(np.sum(right**2 + down**2))
    if total == 0 or np.hypot(*doubled) < LEAST_ALIGNED * total:
        return None
    normal = math.atan2(doubled[1], doubled[0]) / 2
    # The edges run across the mean gradient.
    return np.array([-math.sin(normal), math.cos(normal)])


def _cut(band: Mask, known: Mask, frame: _Frame, step: float) -> _Lines:
    """Return the normals of a form, so many pixels apart, and where they cut the band."""
    height, width = band.shape
    reach = math.hypot(height, width)
    along = _evenly(frame, reach, step)
    slope = np.polyval(np.polyder(frame.form), along) if len(frame.form) > 1 else 0 * along
    level = np.polyval(frame.form, along)
    base = frame.origin + along[:, None] * frame.direction + level[:, None] * frame.across
    normal = frame.across - slope[:, None] * frame.direction
    normal /= np.hypot(normal[:, 0], normal[:, 1])[:, None]
    inside = _nearest_run(_within(base, height, width), int(np.argmin(np.abs(along))))
    along, base, normal = along[inside], base[inside], normal[inside]
    rows, columns = np.nonzero(band)
    places = np.column_stack([columns, rows]) - frame.origin
    away = places @ frame.across - np.polyval(frame.form, places @ frame.direction)
    # One step beyond the band on either side; never beyond the centre of a curve.
    low, high = float(away.min()) - 2, float(away.max()) + 2
    bend = _curvature(frame, along)
    if bend > 0:
        low, high = max(low, -0.95 / bend), min(high, 0.95 / bend)
    t = np.arange(low, high + STEP, STEP)
    points = base[:, None, :] + t[None, :, None] * normal[:, None, :]
    x, y = points[..., 0].astype(np.float32), points[..., 1].astype(np.float32)
    values = cv2.remap(
        band.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    here = _within(points, height, width)
    if not known.all():
        seen = cv2.remap(known.astype(np.uint8), x, y, cv2.INTER_NEAREST, borderValue=0)
        here &= seen > 0
    row = np.clip(np.rint(base[:, 1]).astype(int), 0, height - 1)
    column = np.clip(np.rint(base[:, 0]).astype(int), 0, width - 1)
    return _edges((along, base, normal, known[row, column]), t, values, here, step)


def _edges(
    feet: tuple[Floats, Floats, Floats, Mask],
    t: Floats,
    values: NDArray[np.float32],
    here: Mask,
    step: float,
) -> _Lines:
    """Return where the band begins and ends on each line: half-way between two samples."""
    filled = (values >= 0.5) & here
    met: Mask = np.any(filled, axis=1)
    lines, count = np.arange(len(values)), len(t)
    start = np.argmax(filled, axis=1)
    stop = count - 1 - np.argmax(filled[:, ::-1], axis=1)
    before, after = np.maximum(start - 1, 0), np.minimum(stop + 1, count - 1)
    outside = (start == 0) | (stop == count - 1)
    outside |= ~here[lines, before] | ~here[lines, after]
    # Pixels that count nowhere between both edges hide what lies there.
    gaps = np.cumsum(~here, axis=1)
    outside |= gaps[lines, stop] != gaps[lines, start]

    def crossing(outer: NDArray[np.int64], inner: NDArray[np.int64]) -> Floats:
        low, high = values[lines, outer].astype(float), values[lines, inner].astype(float)
        share = np.where(high > low, (0.5 - low) / np.where(high > low, high - low, 1.0), 0.5)
        return np.asarray(t[outer] + share * (t[inner] - t[outer]))

    begin = np.where(met, crossing(before, start), np.nan)
    end = np.where(met, crossing(after, stop), np.nan)
    along, base, normal, counts = feet
    return _Lines(along, base, normal, begin, end, met, outside & met, counts, step)


def _evenly(frame: _Frame, reach: float, step: float) -> Floats:
    """Return places on the axis whose points on the form are so many pixels apart."""
    half = math.floor(reach / step) * step
    # The feet of a level layer stand on the centres of pixels.
    main = int(np.argmax(np.abs(frame.direction)))
    shift = (round(frame.origin[main]) - frame.origin[main]) / frame.direction[main]
    along = np.arange(-half, half + step / 2, step) + shift
    if len(frame.form) < 3:
        return along
    level = np.polyval(frame.form, along)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(along), np.diff(level)))])
    return np.interp(np.arange(0.0, arc[-1], step), arc, along)


def _curvature(frame: _Frame, along: Floats) -> float:
    """Return the largest curvature of the form, 1/px."""
    if len(frame.form) < 3 or not len(along):
        return 0.0
    first = np.polyval(np.polyder(frame.form), along)
    second = np.polyval(np.polyder(frame.form, 2), along)
    return float(np.max(np.abs(second) / (1 + first**2) ** 1.5))


def _within(points: Floats, height: int, width: int) -> Mask:
    """Return which points (..., 2) lie in the field; pixels reach half past their centres."""
    x, y = points[..., 0], points[..., 1]
    return np.asarray((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5))


def _nearest_run(inside: Mask, middle: int) -> Mask:
    """Return the run of True that is nearest to a place: a curve that comes back is another."""
    places = np.flatnonzero(inside)
    if not len(places):
        return inside
    runs = np.cumsum(np.diff(places, prepend=places[0]) > 1)
    own = runs[np.argmin(np.abs(places - middle))]
    result = np.zeros(len(inside), bool)
    result[places[runs == own]] = True
    return result


def _crosses(lines: _Lines) -> bool:
    """Return whether the band is there at both ends of its form in the field."""
    there = lines.met[lines.counts]
    end = max(1, len(there) // 20)
    return bool(there[:end].any() and there[-end:].any())


def _roughness(place: Floats, height: Floats, degree: int) -> Roughness:
    """Return the roughness of heights about their least-squares line, or curve of this degree."""
    left = height - np.polyval(np.polyfit(place, height, max(1, degree)), place)
    return Roughness(float(np.mean(np.abs(left))), float(np.sqrt(np.mean(left**2))))


def _filled(part: Mask) -> Mask:
    """Return a part with its holes filled."""
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes(part))


def _closed(band: Mask, cracks: Mask) -> Mask:
    """Return the band closed with a disc wider than the widest crack."""
    if not cracks.any():
        return band
    widest = float(cv2.distanceTransform(cracks.astype(np.uint8), cv2.DIST_L2, 5).max())
    reach = math.ceil(widest) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    # Beyond the field the band goes on as it ends there.
    wide = cv2.copyMakeBorder(
        band.astype(np.uint8), reach, reach, reach, reach, cv2.BORDER_REPLICATE
    )
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, disc)
    return closed[reach:-reach, reach:-reach] > 0
