"""The class table of a data set: what the values in its mask files mean."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import stored
from matssl.data.masks import edges
from matssl.data.masks.values import (
    BLACK,
    COLOR,
    Value,
    channels,
    code_of,
    distance,
    gray_color,
    shown,
    span,
    tally,
    to_8_bit,
    translate,
)

# JPEG and resampling shift colours by less than this.
SNAP_DISTANCE = 32
# Every value is taken for the nearest listed one: two neighbours are cut half-way.
HALF_WAY = 65_535
# The white of binary masks: 1, or the end of the scale of 8 and of 16 bits.
FULL = (1, 255, 65_535)
# What a 1-bit mask is shown as.
BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
# Numbers below are class numbers and no shades of grey.
MOST_CLASSES = 64
# A 16-bit mask that reaches this uses its whole scale.
FULL_SCALE = 0xFF00


@dataclass(frozen=True)
class MaskClass:
    """One class.

    Attributes:
        index: number in predictions, from 0.
        name: what it is called in tables and pictures.
        values: the grey values (int), ranges of them ("128-255") or colours ("#rrggbb") that mean
            it in mask files.
        pixels: how many pixels of it the masks hold.
        share: of all labelled pixels, 0 to 1.
    """

    index: int
    name: str
    values: tuple[Value, ...]
    pixels: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class ClassTable:
    """What the values in mask files mean.

    Attributes:
        kind: "index" (grey values or palette indices) or "color".
        classes: ordered by index.
        ignore_values: values whose pixels count for nothing.
        rest_index: class of all values that no class lists (a mask drawn over the micrograph);
            255 where they are ignored, None where such a value is an error.
        snap: how far from a listed value another one may lie to be taken for it: 0 where every
            value must be listed, ``HALF_WAY`` where all are taken for the nearest.
        instances: whether the values number objects, which are one class.
        alpha: what the alpha channel holds: "" nothing, "label" the label itself, "cover" where
            the colours count (elsewhere is black).
        palette: colours of the values, where all masks have palettes that agree.
        any_white: whether 1, 255 and 65535 are all white, decided for each file: two annotators.
    """

    kind: str
    classes: tuple[MaskClass, ...]
    ignore_values: tuple[Value, ...] = ()
    rest_index: int | None = None
    snap: int = 0
    instances: bool = False
    alpha: str = ""
    palette: tuple[tuple[int, str], ...] = ()
    any_white: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def threshold(self) -> int | None:
        """First value of the foreground, as in ``binary_table``; None in other tables."""
        if self.rest_index != 1 or self.num_classes != 2 or self.ignore_values:
            return None
        dark, bright = (c.values for c in self.classes)
        if bright or len(dark) != 1:
            return None
        first, last = span(dark[0])
        if first not in (0, BLACK) or (first == BLACK and last != BLACK):
            return None
        return 1 if first == BLACK else last + 1

    @property
    def binary(self) -> bool:
        """Whether what is dark is one class and every other value the other."""
        return self.threshold is not None

    @property
    def is_black_and_white(self) -> bool:
        """Whether the classes are 0 and the white of 1, 8 or 16 bits."""
        values = [c.values for c in self.classes]
        return self.kind == "index" and values in [[(0,), (white,)] for white in FULL]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the indices."""
        return tuple(c.name for c in self.classes)

    def decode(self, raw: Array, source: str = "mask") -> NDArray[np.uint8]:
        """Return uint8 (H, W): class index, or 255 where the pixel is to be ignored.

        What a file alone can tell is decided for each file: whether 1 or 255 is white, how deep
        its scale is, what its palette means.

        Args:
            raw: (H, W) integers or (H, W, 2 to 4) colours, as ``readers.read_mask`` gives them.
            source: named in errors.

        Raises:
            UserError: a value or colour that no class lists.
        """
        palette = getattr(raw, "palette", None)
        if getattr(raw, "one_bit", False) and any(color == "#ffffff" for _, color in self.palette):
            palette = BLACK_AND_WHITE
        raw = plain(raw, self.alpha)
        threshold = self.threshold
        if threshold is not None:
            if self.kind == "color" and palette is not None and raw.ndim == 2:
                raw = palette[np.minimum(raw, len(palette) - 1)]
            return _halved(raw, threshold)
        values, _ = tally(raw)
        classes, far = self.lookup(values, source, palette)
        if far.any() or self._are_numbers(values):
            self._check_soft(raw, values, far, source)
        return translate(raw, values, classes)

    def lookup(
        self, values: Array, source: str = "mask", palette: Array | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the class of each value of a file, uint8 (N,), and which are far from listed ones.

        Args:
            values: all codes of one file in ascending order, int64 (N,).
            source: named in errors.
            palette: of the file.

        Raises:
            UserError: a value or colour that no class lists.
        """
        threshold = self.threshold
        far = np.zeros(len(values), bool)
        if threshold is not None:
            gray = channels(values).max(axis=1) if len(values) else values
            return _halved(gray, threshold), far
        codes = self.codes(values, source, palette)
        result, known = self._listed(codes)
        open_ = ~known & (codes >= 0)
        if self.rest_index is not None:
            result[open_] = self.rest_index
            return result, far
        if self.snap and open_.any():
            near, distances = self._nearest(codes[open_])
            fits = distances <= self.snap
            places = np.flatnonzero(open_)
            result[places[fits]] = near[fits]
            far[places[fits]] = distances[fits] > SNAP_DISTANCE
            open_[places[fits]] = False
        if open_.any():
            raise UserError(
                f"{source} holds values that no class lists: "
                f"{shown(codes[open_].tolist(), self.kind)}; name them in classes.yaml or --classes"
            )
        return result, far

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        values = asdict(self)
        values["classes"] = [{**c, "values": list(c["values"])} for c in values["classes"]]
        values["ignore_values"] = list(self.ignore_values)
        values["palette"] = [list(entry) for entry in self.palette]
        # Facts that most sets lack are left out.
        return {
            key: value
            for key, value in values.items()
            if value or key not in ("instances", "alpha", "palette", "any_white")
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ClassTable:
        """Return the table that :meth:`to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: nobody wrote it.
        """
        stored.check_classes(values)
        classes = tuple(MaskClass(**{**c, "values": tuple(c["values"])}) for c in values["classes"])
        spans = [span(v) for c in classes for v in c.values]
        spans = sorted([*spans, *(span(v) for v in values["ignore_values"])])
        if any(first[1] >= second[0] for first, second in itertools.pairwise(spans)):
            raise ValueError("its class table lists a value twice")
        snap = values.get("snap", 0)
        return ClassTable(
            kind=values["kind"],
            classes=classes,
            ignore_values=tuple(values["ignore_values"]),
            rest_index=values["rest_index"],
            # Checkpoints of before say whether, not how far.
            snap=(SNAP_DISTANCE if snap else 0) if isinstance(snap, bool) else int(snap),
            instances=bool(values.get("instances", False)),
            alpha=str(values.get("alpha", "")),
            palette=tuple((int(i), str(c)) for i, c in values.get("palette", ())),
            any_white=bool(values.get("any_white", False)),
        )

    def describe(self) -> str:
        """Return the table as text: class, name, value or colour, pixels, share."""
        width = max([len(c.name) for c in self.classes] + [4])
        lines = [f"  {'class':>5}  {'name':<{width}}  {'value':<16} {'pixels':>12}  {'share':>7}"]
        for c in self.classes:
            listed = ", ".join(str(v) for v in c.values)
            if c.index == self.rest_index:
                listed = "all others" if not listed else f"{listed}, all others"
            lines.append(
                f"  {c.index:>5}  {c.name:<{width}}  {listed:<16} {c.pixels:>12,}"
                f"  {100 * c.share:6.2f}%"
            )
        ignored = [str(v) for v in self.ignore_values]
        ignored += ["all others"] if self.rest_index == IGNORE else []
        if ignored:
            lines.append(f"  ignored: {', '.join(ignored)}")
        return "\n".join(lines)

    def lists(self, codes: Array) -> NDArray[np.bool_]:
        """Return which codes a class lists, or are to be ignored, bool (N,)."""
        return self._listed(codes)[1]

    def distances(self, codes: Array) -> Array:
        """Return how far each code is from the nearest listed one, int64 (N,)."""
        return self._nearest(codes)[1]

    def gap(self) -> int:
        """Return how near two listed values of different meaning come."""
        spans = sorted(span(v) for c in self.classes for v in c.values)
        spans = sorted([*spans, *(span(v) for v in self.ignore_values if code_of(v) >= 0)])
        pairs = [(a[1], b[0]) for i, a in enumerate(spans) for b in spans[i + 1 :]]
        return min((distance(a, b) for a, b in pairs), default=HALF_WAY)

    def codes(self, values: Array, source: str, palette: Array | None = None) -> Array:
        """Return the values of one file as this table numbers them, int64 (N,).

        Raises:
            UserError: a colour mask among masks of class numbers.
        """
        if not len(values):
            return values
        colored = int(values[-1]) >= COLOR
        if self.kind == "color":
            if colored:
                return values
            return self._colors_of(values) if palette is None else by_palette(values, palette)
        if not colored and (palette is None or not self.palette):
            return self._scaled(values)
        if not self.palette:
            raise UserError(f"{source} is a colour mask; the other masks hold class numbers")
        numbers = {code_of(color): number for number, color in self.palette}
        if not colored and palette is not None:
            own = by_palette(values, palette)
            if all(
                numbers.get(c, v) == v for c, v in zip(own.tolist(), values.tolist(), strict=True)
            ):
                return values
            values = own
        return np.array([numbers.get(code, code) for code in values.tolist()], np.int64)

    def _scaled(self, values: Array) -> Array:
        """Return grey values on the scale of the listed ones.

        Binary masks are white at 1, 255 or 65535, as the program that wrote them has it; and an
        8-bit scale may stand beside one of 16 bits.
        """
        top = int(values[-1])
        listed = [span(v) for c in self.classes for v in c.values]
        listed += [span(v) for v in self.ignore_values]
        full = max((last for _, last in listed), default=0)
        white = (top, top) in listed
        if top < 1 or white or self.kind != "index":
            return values
        if self.any_white and self.num_classes == 2 and full in FULL and top in FULL:
            if not (values[values > 0] < top).any():
                return np.where(values > 0, full, values)
        if top > 255 >= full:
            short = np.where(values > 0, values >> 8, values)
            return short if top >= FULL_SCALE or self._listed(short)[1].all() else values
        if top <= 255 and full >= FULL_SCALE and self.rest_index is None:
            return np.where(values > 0, values * 257, values)
        return values

    def _colors_of(self, values: Array) -> Array:
        """Return the colours that grey values stand for among coloured masks."""
        top = int(values[-1])
        lit = [code_of(v) for c in self.classes for v in c.values if code_of(v) != BLACK]
        if self.any_white and top == 1 and self.num_classes == 2 and len(lit) == 1:
            # A binary mask beside masks of one colour on black.
            return np.where(values > 0, lit[0], np.where(values == 0, BLACK, values))
        if top < MOST_CLASSES:
            # Class numbers are no colours; what they mean only the user can say.
            return np.where(values == 0, BLACK, values)
        shift = 8 if top > 255 else 0
        return np.array([gray_color(v >> shift) if v >= 0 else v for v in values.tolist()])

    def _listed(self, codes: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        result = np.full(len(codes), IGNORE, np.uint8)
        known = np.zeros(len(codes), bool)
        for index, values in [(c.index, c.values) for c in self.classes] + [
            (IGNORE, self.ignore_values)
        ]:
            for value in values:
                first, last = span(value)
                here = (codes >= first) & (codes <= last)
                result[here], known[here] = index, True
        return result, known

    def _nearest(self, codes: Array) -> tuple[NDArray[np.uint8], Array]:
        """Return the class of the nearest listed value of each code, and how far it is."""
        listed = sorted(
            [(end, c.index) for c in self.classes for v in c.values for end in span(v)]
            + [(end, IGNORE) for v in self.ignore_values for end in span(v) if end >= 0]
        )
        known = channels(np.array([code for code, _ in listed], np.int64))
        own = channels(codes)
        if own.shape[1] != known.shape[1]:
            return np.full(len(codes), IGNORE, np.uint8), np.full(len(codes), HALF_WAY + 1)
        distances = np.abs(own[:, None] - known[None]).max(axis=2)
        best = distances.argmin(axis=1)
        classes = np.array([index for _, index in listed], np.uint8)[best]
        return classes, distances[np.arange(len(codes)), best]

    def _are_numbers(self, values: Array) -> bool:
        """Whether a file holds class numbers, where this table takes all for grey values."""
        top = int(values[-1]) if len(values) else 0
        if not self.snap or self.kind != "index" or not 0 < top < MOST_CLASSES:
            return False
        return self.gap() >= MOST_CLASSES and not self.any_white and not self.lists(values).all()

    def _check_soft(self, raw: Array, values: Array, far: NDArray[np.bool_], source: str) -> None:
        """Refuse values that are drawn as regions and are no soft edges of listed ones.

        Raises:
            UserError: naming them.
        """
        drawn, _ = tally(raw, edges.drawn_as(raw)[0])
        odd = values[far]
        if self._are_numbers(values) and set(values.tolist()) <= set(drawn.tolist()):
            odd = values[values > 0]
        found = sorted(set(drawn.tolist()) & set(odd.tolist()))
        if found:
            raise UserError(
                f"{source} holds regions of values that no class lists: "
                f"{shown(found, self.kind)}; name them in classes.yaml or --classes"
            )


def binary_table(threshold: int = 1) -> ClassTable:
    """Return the table of two classes: what is dark is background, every other value foreground.

    Args:
        threshold: first value of the foreground. Above 1 it is one of the 8-bit scale; masks that
            hold 0 and 1 alone, and masks of 16 bits, are brought to that scale.
    """
    dark: Value = 0 if threshold == 1 else f"0-{threshold - 1}"
    classes = (MaskClass(0, "background", (dark,)), MaskClass(1, "foreground", ()))
    return ClassTable("index", classes, rest_index=1)


def _halved(raw: Array, threshold: int) -> NDArray[np.uint8]:
    """Return 0 below the threshold, 1 from it on, 255 for what is negative."""
    gray = raw if raw.ndim < 3 else raw.max(axis=2)
    if threshold > 1 and gray.size:
        top = int(gray.max())
        if top == 1:
            threshold = 1
        elif top >= FULL_SCALE and threshold <= 255:
            threshold <<= 8
    result = (gray >= threshold).astype(np.uint8)
    if gray.dtype.kind == "i":
        result[gray < 0] = IGNORE
    return result


def by_palette(values: Array, palette: Array) -> Array:
    """Return the colours of palette numbers; a number beyond the palette stays one."""
    colors = [COLOR | (int(r) << 16) | (int(g) << 8) | int(b) for r, g, b in palette]
    return np.array(
        [colors[v] if 0 <= v < len(colors) else v for v in values.tolist()], dtype=np.int64
    )


def plain(raw: Array, alpha: str = "") -> Array:
    """Return (H, W) or (H, W, 3): alpha applied or dropped, equal channels merged.

    16-bit colours that use the full range become 8-bit ones; a micrograph may show through.

    Args:
        raw: (H, W), (H, W, 2), (H, W, 3) or (H, W, 4).
        alpha: as of :class:`ClassTable`.
    """
    raw = np.asarray(raw)
    if raw.ndim == 3 and raw.shape[2] in (2, 4):
        cover, raw = raw[..., -1], raw[..., :-1]
        if alpha == "label":
            return cover
        if alpha == "cover":
            raw = np.where((to_8_bit(cover) >= 128)[..., None], raw, np.zeros((), raw.dtype))
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim == 3:
        if raw.dtype != np.uint8:
            raw = to_8_bit(raw)
        if (raw == raw[..., :1]).all():
            raw = raw[..., 0]
    return raw
