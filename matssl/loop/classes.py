"""Which values mean which class in the masks of a loop, whatever the first masks looked like.

The classes are settled once, from the model or from the first masks. From then on each class has
one value of its own, in the masks that are laid out to be corrected and in those that models learn
from: the first that the masks list for it. What comes back is read as these values first, then as
the colours in which our masks are shown (an editor may save those), then as the first masks were
read: soft edges, 0 and 1 for black and white, numbered objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core import palette
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.layouts.written import class_text
from matssl.data.masks import ClassTable, MaskClass, Value
from matssl.pictures.segmentation import class_colours
from matssl.stages import drawing

WHITE = 255


@dataclass(frozen=True)
class Classes:
    """The classes of a loop.

    Attributes:
        table: one value a class, and one for pixels that count for nothing.
        found: how the first masks were read, or those the model was trained on.
    """

    table: ClassTable
    found: ClassTable

    @staticmethod
    def settled(found: ClassTable) -> Classes:
        """Return classes with a value each, from a table that may list several or all others."""
        own = _colours if found.kind == "color" else _numbers
        values = own([c.values for c in found.classes], found.ignore_values)
        classes = tuple(
            MaskClass(i, c.name, (value,))
            for i, (c, value) in enumerate(zip(found.classes, values, strict=False))
        )
        white = found.num_classes == 2 and found.kind == "index"
        return Classes(ClassTable(found.kind, classes, values[-1:], any_white=white), found)

    @staticmethod
    def read(facts: Mapping[str, Any]) -> Classes:
        """Return the classes of a line of the ledger."""
        return Classes(ClassTable.from_dict(facts["table"]), ClassTable.from_dict(facts["found"]))

    def stored(self) -> dict[str, object]:
        """Return plain values for a line."""
        return {"table": self.table.to_dict(), "found": self.found.to_dict()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.table.names

    @property
    def text(self) -> str:
        """The class file that says the values."""
        return class_text(self.table)

    def decode(self, raw: Array, source: str) -> NDArray[np.uint8]:
        """Return the classes of a mask that came back, uint8 (H, W), 255 for none.

        Args:
            raw: as :func:`matssl.data.readers.read_mask` gives it.
            source: named in errors.

        Raises:
            UserError: values that mean no class.
        """
        for table in (self.table, self._shown()):
            try:
                return table.decode(raw, source)
            except UserError:
                continue
        return self.found.decode(raw, source)

    def encode(self, classes: NDArray[np.uint8], shown: bool) -> bytes:
        """Return a mask as PNG.

        Args:
            classes: uint8 (H, W), 255 for none.
            shown: whether viewers are to show it in colours.
        """
        values = [c.values[0] for c in self.table.classes] + [self.table.ignore_values[0]]
        places = np.full(256, self.table.num_classes, np.uint8)
        places[: self.table.num_classes] = np.arange(self.table.num_classes)
        if self.table.kind == "color":
            rgb = np.array([_rgb(str(value)) for value in values], np.uint8)
            return drawing.mask_png(rgb[places[classes]][..., ::-1])
        numbers = np.array(values, np.uint8)
        drawn = numbers[places[classes]]
        if not shown:
            return drawing.mask_png(drawn)
        colours = np.full((256, 3), palette.IGNORED, np.uint8)
        colours[numbers[:-1]] = class_colours(self.table.num_classes)
        return drawing.palette_png(drawn, colours)

    def _shown(self) -> ClassTable:
        """Return the table of the colours in which our masks are shown."""
        colours = [_hex(c) for c in class_colours(self.table.num_classes)]
        classes = tuple(
            MaskClass(c.index, c.name, (colour,))
            for c, colour in zip(self.table.classes, colours, strict=True)
        )
        return ClassTable("color", classes, (_hex(palette.IGNORED),))


def agreed(model: ClassTable, masks: ClassTable) -> ClassTable:
    """Return the classes of a model with the values that mean them in masks.

    Args:
        model: table of the model.
        masks: as they were found; their classes have the model's names, or its values.

    Raises:
        UserError: neither is so.
    """
    if [c.values for c in masks.classes] == [c.values for c in model.classes]:
        named = [replace(c, name=m.name) for c, m in zip(masks.classes, model.classes, strict=True)]
        return replace(masks, classes=tuple(named))
    if set(masks.names) == set(model.names):
        by_name = {c.name: c for c in masks.classes}
        ordered = [replace(by_name[m.name], index=m.index) for m in model.classes]
        rest = None
        if masks.rest_index is not None:
            rest = model.names.index(masks.names[masks.rest_index])
        return replace(masks, classes=tuple(ordered), rest_index=rest)
    raise UserError(
        f"--model knows the classes {', '.join(model.names)}, the first masks hold "
        f"{', '.join(masks.names)}; name those of the masks with --classes"
    )


def _numbers(
    values: Sequence[tuple[Value, ...]], ignored: tuple[Value, ...]
) -> tuple[int | str, ...]:
    """Return a grey value for each class, and one for none: the first listed that fits a byte."""
    chosen: list[int | None] = []
    for listed in (*values, ignored):
        ends = [v if isinstance(v, int) else _start(v) for v in listed]
        chosen.append(next((v for v in ends if 0 <= v <= WHITE and v not in chosen), None))
    spare = [WHITE, *range(WHITE)] if len(values) == 2 else [*range(WHITE), WHITE]
    for place, value in enumerate(chosen[:-1]):
        if value is None:
            chosen[place] = next(v for v in spare if v not in chosen)
    if chosen[-1] is None:
        chosen[-1] = next(v for v in (WHITE, *range(WHITE - 1, -1, -1)) if v not in chosen)
    return tuple(v for v in chosen if v is not None)


def _start(value: str) -> int:
    """Return the first value of a range; -1 of a colour."""
    first = value.partition("-")[0]
    return int(first) if first.isdigit() else -1


def _colours(
    values: Sequence[tuple[Value, ...]], ignored: tuple[Value, ...]
) -> tuple[int | str, ...]:
    """Return a colour for each class, and one for none."""
    chosen: list[str | None] = []
    for listed in (*values, ignored):
        greys = [_hex((v, v, v)) for v in listed if isinstance(v, int) and 0 <= v <= WHITE]
        own = [v for v in listed if isinstance(v, str) and v.startswith("#")]
        chosen.append(next((v for v in (*own, *greys) if v not in chosen), None))
    free = ["#000000", "#ffffff", *map(_hex, class_colours(64)), _hex(palette.IGNORED)]
    for place, colour in enumerate(chosen):
        if colour is None:
            last = place == len(values)
            spare = reversed(free) if last else free
            chosen[place] = next(v for v in spare if v not in chosen)
    return tuple(v for v in chosen if v is not None)


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
