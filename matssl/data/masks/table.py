"""The class table of a data set: what the values in its mask files mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import stored

# JPEG and resampling shift colours by less than this.
SNAP_DISTANCE = 32
SNAP_SHARE = 0.01
Value = int | str


@dataclass(frozen=True)
class MaskClass:
    """One class.

    Attributes:
        index: number in predictions, from 0.
        name: what it is called in tables and pictures.
        values: the grey values (int) or colours ("#rrggbb") that mean it in mask files.
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
            None where such a value is an error.
        snap: whether colours near a listed one are taken for it.
    """

    kind: str
    classes: tuple[MaskClass, ...]
    ignore_values: tuple[Value, ...] = ()
    rest_index: int | None = None
    snap: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def binary(self) -> bool:
        """Whether black is one class and every other value the other, as in ``binary_table``."""
        values = [c.values for c in self.classes]
        return (
            values in ([(0,), ()], [("#000000",), ()])
            and self.rest_index == 1
            and not self.ignore_values
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the indices."""
        return tuple(c.name for c in self.classes)

    def decode(self, raw: Array, source: str = "mask") -> NDArray[np.uint8]:
        """Return uint8 (H, W): class index, or 255 where the pixel is to be ignored.

        Args:
            raw: (H, W) integers or (H, W, 3 | 4) colours, as ``readers.read_mask`` gives them.
            source: named in errors.

        Raises:
            UserError: a value or colour that no class lists.
        """
        raw = flatten(raw)
        if self.binary:
            # The same for numbers and colours, so no other mask has to be looked at.
            return (raw if raw.ndim == 2 else raw.any(axis=2)).astype(bool).astype(np.uint8)
        if raw.ndim == 3 and self.kind == "index":
            raise UserError(f"{source} is a colour mask; the other masks hold class numbers")
        if raw.ndim == 2 and self.kind == "color":
            raw = np.repeat(to_8_bit(raw)[..., None], 3, axis=2)
        codes = pack(raw)
        values, places = np.unique(codes, return_inverse=True)
        table = self._lookup(values, source)
        return table[places].reshape(codes.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        values = asdict(self)
        values["classes"] = [{**c, "values": list(c["values"])} for c in values["classes"]]
        values["ignore_values"] = list(self.ignore_values)
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ClassTable:
        """Return the table that :meth:`to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: nobody wrote it.
        """
        stored.check_classes(values)
        classes = tuple(MaskClass(**{**c, "values": tuple(c["values"])}) for c in values["classes"])
        listed = [code_of(value) for c in classes for value in c.values]
        listed += [code_of(value) for value in values["ignore_values"]]
        if len(set(listed)) < len(listed):
            raise ValueError("its class table lists a value twice")
        return ClassTable(
            kind=values["kind"],
            classes=classes,
            ignore_values=tuple(values["ignore_values"]),
            rest_index=values["rest_index"],
            snap=values.get("snap", False),
        )

    def describe(self) -> str:
        """Return the table as text: class, name, value or colour, pixels, share."""
        width = max([len(c.name) for c in self.classes] + [4])
        lines = [f"  {'class':>5}  {'name':<{width}}  {'value':<16} {'pixels':>12}  {'share':>7}"]
        for c in self.classes:
            shown = ", ".join(str(v) for v in c.values)
            if c.index == self.rest_index:
                shown = "all others" if not shown else f"{shown}, all others"
            lines.append(
                f"  {c.index:>5}  {c.name:<{width}}  {shown:<16} {c.pixels:>12,}"
                f"  {100 * c.share:6.2f}%"
            )
        if self.ignore_values:
            lines.append(f"  ignored: {', '.join(str(v) for v in self.ignore_values)}")
        return "\n".join(lines)

    def _lookup(self, codes: Array, source: str) -> NDArray[np.uint8]:
        known: dict[int, int] = {}
        for c in self.classes:
            known.update({code_of(value): c.index for value in c.values})
        known.update({code_of(value): IGNORE for value in self.ignore_values})
        result = np.full(len(codes), IGNORE, np.uint8)
        strays = []
        for place, code in enumerate(codes.tolist()):
            if code in known:
                result[place] = known[code]
            elif self.rest_index is not None:
                result[place] = self.rest_index
            else:
                near = nearest(code, known) if self.snap else None
                if near is None:
                    strays.append(show(code, self.kind))
                else:
                    result[place] = known[near]
        if strays:
            raise UserError(
                f"{source} holds values that no class lists: {', '.join(strays[:8])}"
                f"{' ...' if len(strays) > 8 else ''}; name them in classes.yaml or --classes"
            )
        return result


def binary_table() -> ClassTable:
    """Return the table of two classes: black is background, every other value foreground."""
    classes = (MaskClass(0, "background", (0,)), MaskClass(1, "foreground", ()))
    return ClassTable("index", classes, rest_index=1)


def flatten(raw: Array) -> Array:
    """Return (H, W) or (H, W, 3): full alpha dropped, equal channels merged.

    16-bit colours that use the full range become 8-bit ones; a micrograph may show through.
    """
    if raw.ndim == 3 and raw.shape[2] == 4:
        raw = raw[..., :3]
    if raw.ndim == 3:
        if raw.dtype != np.uint8:
            raw = to_8_bit(raw)
        if (raw == raw[..., :1]).all():
            raw = raw[..., 0]
    return raw


def to_8_bit(raw: Array) -> NDArray[np.uint8]:
    """Return 16-bit grey or colour values as 8-bit ones; full stays full, zero stays zero."""
    if raw.dtype == np.uint8:
        return raw
    if raw.dtype == np.uint16:
        return (raw >> 8).astype(np.uint8)
    return np.clip(raw, 0, 255).astype(np.uint8)


def pack(raw: Array) -> NDArray[np.int64]:
    """Return one number per pixel: the value itself, or 0x1rrggbb for a colour."""
    if raw.ndim == 2:
        return raw.astype(np.int64)
    r, g, b = (raw[..., i].astype(np.int64) for i in range(3))
    return (1 << 24) | (r << 16) | (g << 8) | b


def show(code: int, kind: str = "index") -> str:
    """Return a packed value as people write it."""
    return f"#{code & 0xFFFFFF:06x}" if code >= 1 << 24 and kind == "color" else str(code)


def code_of(value: Value) -> int:
    """Return a value as :func:`pack` numbers it."""
    return (1 << 24) | int(value[1:], 16) if isinstance(value, str) else int(value)


def distance(a: int, b: int) -> int:
    """Return the largest difference of two grey values, or of two colours in any channel."""
    if a < 1 << 24 or b < 1 << 24:
        return abs(a - b)
    return max(abs(((a >> s) & 255) - ((b >> s) & 255)) for s in (16, 8, 0))


def nearest(code: int, known: Mapping[int, int]) -> int | None:
    """Return the known number a packed value is taken for; None where all are too far."""
    best = min(known, key=lambda k: distance(code, k))
    return best if distance(code, best) <= SNAP_DISTANCE else None
