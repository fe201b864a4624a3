"""Pictures that show the same place again: copies, crops, turned, mirrored, inverted, rescaled.

Corners are described by ORB (Rublee et al. 2011, doi:10.1109/ICCV.2011.6126544); descriptions that
agree in some of their bits (locality-sensitive hashing, Indyk and Motwani 1998,
doi:10.1145/276698.276876) vote for pairs of pictures; a pair must be mapped onto each other by one
similarity, and its grey levels must agree there. Two fields of one specimen have like corners, but
no such map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array

# Pictures are looked at with this longest side; smaller ones as they are.
SIDE = 512
COUNTS, STEP, LEVELS, CONTRAST = (600, 300, 120), 1.25, 7, 15
COARSEST = LEVELS - 1 + 3 * (len(COUNTS) - 1)
ZOOMS = 2 * COARSEST + 1
# Parts of a picture, along its longer side, that get their share of corners each.
CELLS = 8
# Octaves of corners at half the size count from here: 1.25 to the third is about two, and fine
# corners have less than ten.
HALVED = 10
# Side in pixels within which contrast is made even.
AROUND = 49
# Hashes of a description. Those of one corner in two copies differ in about an eighth of their
# bits; a hash has as many as keep chance agreements few among all corners.
HASHES, SPARE_BITS, MOST_HASH_BITS = 20, 5, 24
# Pairs of pictures that are looked at closely, for each picture.
CANDIDATES = 12
LEAST_VOTES, LEAST_INLIERS = 3, 4
# Sectors of the turn between two pictures; hashes that more corners share tell nothing, nor do
# corners like more others than this.
TURNS, CROWD, ALIKE = 24, 20, 8
# Bits in which two descriptions of one corner may differ, of 256.
MOST_BITS = 68
# Distance in pixels within which the map brings one corner to the other.
TOLERANCE = 4.0
# Scale of one picture in the other, both at ``SIDE``.
SCALES = (0.2, 5.0)
# Share above which a picture is called whole; a map is exact to a pixel or two.
WHOLE = 0.94
# Correlation of the grey levels under the map, above which they are those of one place.
LEAST_CORRELATION = 0.55
LEAST_OVERLAP, LEAST_PIXELS = 0.1, 600


@dataclass(frozen=True)
class Corners:
    """Corners of a picture.

    Attributes:
        points: float32 (n, 2), x and y.
        angles: float32 (n,), degrees.
        octaves: int64 (n,), level of the pyramid, each 1.25 times coarser, and ``HALVED`` more
            each time the picture was halved before.
        bits: uint8 (n, 32), descriptions.
    """

    points: NDArray[np.float32]
    angles: NDArray[np.float32]
    octaves: NDArray[np.int64]
    bits: NDArray[np.uint8]

    @property
    def coarse(self) -> NDArray[np.int64]:
        """How coarse each corner is, in steps of 1.25: three steps are about two."""
        return self.octaves % HALVED + 3 * (self.octaves // HALVED)


@dataclass(frozen=True)
class Sketch:
    """What is kept of a picture to find it again.

    Attributes:
        plane: uint8 (h, w), at most ``SIDE`` long, contrast made even.
        small: the same at half its size.
        shrunk: pixels of the picture for one of ``plane``.
        corners: of ``plane``.
    """

    plane: NDArray[np.uint8]
    small: NDArray[np.uint8]
    shrunk: float
    corners: Corners


@dataclass(frozen=True)
class Copy:
    """Two pictures that show one place.

    Attributes:
        first: place of the picture among the first ones.
        second: place among the second ones.
        scale: pixels of the first for one of the second, as the files have them.
        degrees: by which the second is turned, -180 to 180.
        mirrored: whether it is mirrored.
        inverted: whether bright is dark in it.
        share: of the first picture that the second shows, 0 to 1.
        part: of the second picture that the first shows, 0 to 1.
        correlation: of the grey levels where both show the same, 0 to 1.
    """

    first: int
    second: int
    scale: float
    degrees: float
    mirrored: bool
    inverted: bool
    share: float
    part: float
    correlation: float

    @property
    def text(self) -> str:
        """In words, what the first shows of the second."""
        words = ["the same" if self.part > WHOLE else f"{100 * self.part:.0f} % of it"]
        if self.share < WHOLE:
            words.append(f"beside {100 * (1 - self.share):.0f} % of other things")
        if self.mirrored:
            words.append("mirrored")
        if abs(self.degrees) > 1:
            words.append(f"turned by {abs(self.degrees):.0f} degrees")
        if self.inverted:
            words.append("bright and dark exchanged")
        if abs(np.log(self.scale)) > 0.03:
            words.append(f"{self.scale:.2g} times as large")
        return ", ".join(words)


def sketch(plane: Array) -> Sketch:
    """Return what is kept of a picture.

    Args:
        plane: (H, W) or (H, W, 3) of any range.
    """
    even = _even(plane)
    shrunk = max(plane.shape[:2]) / max(even.shape)
    return Sketch(even, _smaller(even, 1), shrunk, _found(even))


def find(first: Sequence[Sketch], second: Sequence[Sketch]) -> list[Copy]:
    """Return the pairs of pictures, one of each side, that show one place; the surest first."""
    finder = Finder(second)
    found = [replace(copy, first=i) for i, one in enumerate(first) for copy in finder.look(one)]
    return sorted(found, key=lambda copy: -copy.correlation)


# --- corners --------------------------------------------------------------------------------------
def _even(plane: Array) -> NDArray[np.uint8]:
    """Return a picture in grey, at most ``SIDE`` long, its contrast the same everywhere."""
    small = plane if plane.dtype in (np.uint8, np.uint16) else plane.astype(np.float32)
    height, width = plane.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    if shrink < 1:
        size = max(8, round(width * shrink)), max(8, round(height * shrink))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    gray = small.astype(np.float32)
    if gray.ndim == 3:
        gray = gray.mean(axis=2)
    low, high = float(gray.min()), float(gray.max())
    gray = (gray - low) * (255 / max(high - low, 1e-6))
    around = cv2.blur(gray, (AROUND, AROUND))
    spread = np.sqrt(np.maximum(cv2.blur(gray * gray, (AROUND, AROUND)) - around**2, 0))
    level = (gray - around) / (spread + 4.0)
    return cv2.GaussianBlur(np.clip(128 + 42 * level, 0, 255).astype(np.uint8), (0, 0), 1.0)


def _orb(corners: int) -> cv2.ORB:
    kind = cv2.ORB_FAST_SCORE
    return cv2.ORB.create(corners, STEP, LEVELS, 15, 0, 2, kind, 31, CONTRAST)


def _found(even: NDArray[np.uint8]) -> Corners:
    """Return corners spread over the picture, and coarser ones of it at half and quarter size.

    A crop at twice the scale shows only what is coarse in the picture.
    """
    parts = []
    for size, count in enumerate(COUNTS):
        found = _spread(_smaller(even, size), count)
        points = (found.points + 0.5) * 2**size - 0.5
        parts.append(replace(found, points=points, octaves=found.octaves + size * HALVED))
    return _joined(parts)


def _smaller(even: NDArray[np.uint8], halvings: int) -> NDArray[np.uint8]:
    if halvings == 0:
        return even
    size = max(1, even.shape[1] >> halvings), max(1, even.shape[0] >> halvings)
    return cv2.resize(even, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _joined(parts: Sequence[Corners]) -> Corners:
    names = ("points", "angles", "octaves", "bits")
    return Corners(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _spread(even: NDArray[np.uint8], count: int) -> Corners:
    """Return the best corners of each part of a picture in turn, up to ``count``."""
    orb = _orb(3 * count)
    points = orb.detect(even, None)
    if not points:
        return _corners((), None)
    places = cv2.KeyPoint.convert(points)
    cell = (places / max(even.shape) * CELLS).astype(np.int64)
    cells = cell[:, 1] * CELLS + cell[:, 0]
    order = np.lexsort((-np.array([p.response for p in points]), cells))
    starts = np.searchsorted(cells[order], cells[order], "left")
    rank = np.arange(len(order)) - starts
    chosen = order[np.argsort(rank, kind="stable")[:count]]
    found, bits = orb.compute(even, [points[i] for i in chosen])
    return _corners(found, bits)


def _corners(points: Sequence[cv2.KeyPoint], bits: NDArray[np.uint8] | None) -> Corners:
    if bits is None:
        bits = np.zeros((0, 32), np.uint8)
    return Corners(
        np.array([p.pt for p in points], np.float32).reshape(-1, 2),
        np.array([p.angle for p in points], np.float32),
        np.array([p.octave for p in points], np.int64),
        bits,
    )


def _variants(picture: Sketch) -> list[Corners]:
    """Return the corners of a picture as it is, inverted, mirrored, and both."""
    own = picture.corners
    width = picture.plane.shape[1]
    mirror = np.ascontiguousarray(picture.plane[:, ::-1])
    flipped = replace(
        own,
        points=np.stack([width - 1 - own.points[:, 0], own.points[:, 1]], axis=1),
        angles=(180 - own.angles) % 360,
    )
    return [
        own,
        _again(picture.plane, own, turn=180),
        _again(mirror, flipped),
        _again(mirror, flipped, turn=180),
    ]


def _again(even: NDArray[np.uint8], corners: Corners, turn: float = 0) -> Corners:
    """Return the corners described anew; a turn of 180 describes the inverted picture.

    The centre of brightness of an inverted patch lies opposite, and each comparison is reversed.
    """
    parts = []
    for size in range(len(COUNTS)):
        chosen = corners.octaves // HALVED == size
        places = (corners.points[chosen] + 0.5) / 2**size - 0.5
        levels = corners.octaves[chosen] % HALVED
        angles = (corners.angles[chosen] + turn) % 360
        points = [
            cv2.KeyPoint(x, y, 31 * STEP**level, angle, 0, level)
            for (x, y), angle, level in zip(
                places.tolist(), angles.tolist(), levels.tolist(), strict=True
            )
        ]
        plane = _smaller(even, size)
        found = _corners(*_orb(COUNTS[0]).compute(plane, points)) if points else _corners((), None)
        again = (found.points + 0.5) * 2**size - 0.5
        bits = ~found.bits if turn else found.bits
        octaves = found.octaves + size * HALVED
        parts.append(Corners(again.astype(np.float32), found.angles, octaves, bits))
    return _joined(parts)


# --- votes ----------------------------------------------------------------------------------------
class Finder:
    """Finds pictures of one side again: all their corners, as they are, inverted and mirrored."""

    def __init__(self, pictures: Sequence[Sketch]) -> None:
        """Make hashes of the descriptions of all corners.

        Args:
            pictures: 0.6 MB are kept of each.
        """
        self.pictures = [(picture.small, picture.shrunk) for picture in pictures]
        self.equal: dict[bytes, list[int]] = {}
        for number, picture in enumerate(pictures):
            if picture.small.min() < picture.small.max():
                self.equal.setdefault(picture.small.tobytes(), []).append(number)
        self.variants = [corners for picture in pictures for corners in _variants(picture)]
        counts = [len(corners.bits) for corners in self.variants]
        self.variant = np.repeat(np.arange(len(counts)), counts)
        self.place = np.concatenate([np.arange(0), *(np.arange(count) for count in counts)])
        if not len(self.variant):
            return
        self.angle = np.concatenate([corners.angles for corners in self.variants])
        self.coarse = np.concatenate([corners.coarse for corners in self.variants])
        # Sums of powers of two up to this are exact in float32.
        length = min(MOST_HASH_BITS, SPARE_BITS + int(np.log2(len(self.variant))))
        draw = np.random.default_rng(0)
        self.weights = np.zeros((256, HASHES), np.float32)
        for h in range(HASHES):
            self.weights[draw.permutation(256)[:length], h] = 2.0 ** np.arange(length)
        bits = np.concatenate([corners.bits for corners in self.variants])
        keys = self._keys(bits)
        self.bits = bits.view(np.uint64)
        self.order = np.argsort(keys, axis=1, kind="stable").astype(np.int32)
        self.sorted = np.take_along_axis(keys, self.order.astype(np.int64), axis=1)

    def look(self, picture: Sketch) -> list[Copy]:
        """Return the pictures that show what this one shows; it counts as the first."""
        found: dict[int, Copy] = {}
        for variant, pairs in self.candidates(picture.corners):
            copy = self._verified(picture, variant, pairs)
            if copy is not None:
                known = found.get(copy.second)
                if known is None or known.correlation < copy.correlation:
                    found[copy.second] = copy
        for number in self.equal.get(picture.small.tobytes(), []):
            # Too small or too smooth for corners.
            same = Copy(0, number, 1.0, 0.0, False, False, 1.0, 1.0, 1.0)
            found.setdefault(number, same)
        return list(found.values())

    def _keys(self, bits: NDArray[np.uint8]) -> NDArray[np.int32]:
        values: NDArray[np.float32] = np.unpackbits(bits, axis=1).astype(np.float32) @ self.weights
        return np.ascontiguousarray(values.T.astype(np.int32))

    def candidates(self, corners: Corners) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the variants that most corners vote for, with the pairs of corners (n, 2).

        Votes count that agree in the turn and the scale they mean.
        """
        if not len(corners.bits) or not len(self.variant):
            return []
        own, other = self._pairs(self._keys(corners.bits))
        unlike = np.bitwise_count(corners.bits.view(np.uint64)[own] ^ self.bits[other]).sum(axis=1)
        own, other = own[unlike <= MOST_BITS], other[unlike <= MOST_BITS]
        # Corners of noise and of scan lines are like many others.
        plain = np.bincount(own, minlength=len(corners.bits))[own] <= ALIKE
        own, other = own[plain], other[plain]
        turn = (corners.angles[own] - self.angle[other]) % 360
        zoom = corners.coarse[own] - self.coarse[other] + COARSEST
        variant = self.variant[other]
        bins = (turn / (360 / TURNS)).astype(np.int64) % TURNS
        flat = (variant * TURNS + bins) * ZOOMS + zoom
        votes = np.bincount(flat, minlength=len(self.variants) * TURNS * ZOOMS)
        votes = votes.reshape(len(self.variants), TURNS, ZOOMS)
        wide = votes + np.roll(votes, 1, axis=1)
        wide[:, :, 1:] += wide[:, :, :-1].copy()
        peak = wide.reshape(len(wide), -1).argmax(axis=1)
        best = wide.reshape(len(wide), -1).max(axis=1)
        result = []
        for v in np.argsort(-best, kind="stable")[:CANDIDATES]:
            if best[v] < LEAST_VOTES:
                break
            at, scale = divmod(int(peak[v]), ZOOMS)
            near = (variant == v) & ((bins - at + 2) % TURNS < 4) & (abs(zoom - scale + 0.5) < 2)
            result.append((int(v), np.stack([own[near], self.place[other[near]]], axis=1)))
        return result

    def _pairs(self, keys: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pairs of corners whose hashes agree, each once."""
        own, other = [], []
        for h in range(HASHES):
            # In order, the search stays near in memory.
            turn = np.argsort(keys[h])
            asked = keys[h][turn]
            low = np.searchsorted(self.sorted[h], asked, "left")
            count = np.searchsorted(self.sorted[h], asked, "right") - low
            # What is everywhere tells nothing.
            count[count > CROWD] = 0
            mine = np.repeat(turn, count)
            step = np.arange(len(mine)) - np.repeat(np.cumsum(count) - count, count)
            own.append(mine)
            other.append(self.order[h, np.repeat(low, count) + step])
        pairs = np.unique(np.concatenate(own) * len(self.variant) + np.concatenate(other))
        return pairs // len(self.variant), pairs % len(self.variant)

    def _verified(self, one: Sketch, variant: int, pairs: NDArray[np.int64]) -> Copy | None:
        """Return the copy that a similarity proves, None where there is none."""
        if len(pairs) < LEAST_INLIERS:
            return None
        other = self.variants[variant]
        source, target = other.points[pairs[:, 1]], one.corners.points[pairs[:, 0]]
        cv2.setRNGSeed(0)
        matrix, inside = cv2.estimateAffinePartial2D(
            source, target, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE, maxIters=1000
        )
        if matrix is None or len(np.unique(target[inside[:, 0] > 0], axis=0)) < LEAST_INLIERS:
            return None
        scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
        if not SCALES[0] <= scale <= SCALES[1]:
            return None
        number, kind = divmod(variant, 4)
        small, shrunk = self.pictures[number]
        correlation, share = _agreement(one.small, small, matrix, kind >= 2)
        inverted = kind % 2 == 1
        correlation = -correlation if inverted else correlation
        part = share * one.small.size / (small.size * scale**2)
        if correlation < LEAST_CORRELATION or max(share, part) < LEAST_OVERLAP:
            return None
        turn = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        zoom = scale * one.shrunk / shrunk
        return Copy(0, number, zoom, turn, kind >= 2, inverted, share, min(part, 1.0), correlation)


# --- proof ----------------------------------------------------------------------------------------
def _agreement(
    one: NDArray[np.uint8], other: NDArray[np.uint8], matrix: NDArray[np.float64], mirrored: bool
) -> tuple[float, float]:
    """Return the correlation of two planes under a map, and the share of ``one`` that both show.

    Args:
        one: at half the size the map is of.
        other: likewise.
        matrix: (2, 3), from ``other`` to ``one``.
        mirrored: whether ``other`` is mirrored before.
    """
    height, width = one.shape
    matrix = matrix * [[1, 1, 0.5], [1, 1, 0.5]]
    moved = np.ascontiguousarray(other[:, ::-1]) if mirrored else other
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.7:
        moved = cv2.GaussianBlur(moved, (0, 0), 0.5 / scale)
    warped = cv2.warpAffine(moved, matrix, (width, height))
    there = cv2.warpAffine(np.full_like(moved, 255), matrix, (width, height)) == 255
    share = float(there.mean())
    if there.sum() < LEAST_PIXELS:
        return 0.0, share
    a, b = one[there].astype(np.float32), warped[there].astype(np.float32)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-6)), share
