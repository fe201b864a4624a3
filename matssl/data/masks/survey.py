"""What one mask file holds: its values, how each of them is drawn, and what the file says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data import readers
from matssl.data.masks import edges
from matssl.data.masks.instances import Objects, objects
from matssl.data.masks.table import MOST_CLASSES, ClassTable, by_palette, plain
from matssl.data.masks.values import COLOR, strips, tally, to_8_bit


@dataclass(frozen=True)
class Survey:
    """A mask file in numbers.

    Attributes:
        path: of the file.
        values: its codes in ascending order, int64 (N,).
        sizes: pixels of each.
        drawn: pixels of each whose eight neighbours have the same value.
        flat: pixels of each whose neighbours differ by noise at most.
        between: pixels of each with a lower and a higher neighbour; 0 for colours.
        objects: what the values are as regions.
        palette: colours of its values, (N, 3) uint8, or None.
        remark: of the reader, in words.
        lossy: whether it is a JPEG.
        one_bit: whether it holds black and white alone by its format.
        has_alpha: whether it has an alpha channel.
        alpha: what that holds, as in ``ClassTable``.
    """

    path: Path
    values: Array
    sizes: Array
    drawn: Array
    flat: Array
    between: Array
    objects: Objects
    palette: Array | None = None
    remark: str = ""
    lossy: bool = False
    one_bit: bool = False
    has_alpha: bool = False
    alpha: str = ""

    @property
    def color(self) -> bool:
        """Whether its values are colours."""
        return len(self.values) > 0 and int(self.values[-1]) >= COLOR

    @property
    def top(self) -> int:
        """Largest value; 0 where none is above."""
        return max(0, int(self.values[-1])) if len(self.values) else 0

    @property
    def lit(self) -> frozenset[int]:
        """Values above 0."""
        return frozenset(v for v in self.values.tolist() if v > 0)

    def of(self, value: int, what: Array) -> int:
        """Return the entry of an array beside ``values`` for one value; 0 where there is none."""
        place = int(np.searchsorted(self.values, value))
        found = place < len(self.values) and self.values[place] == value
        return int(what[place]) if found else 0

    def renumbered(self, codes: Array) -> Survey:
        """Return it with other codes for its values; equal codes become one value."""
        values, places = np.unique(codes, return_inverse=True)

        def summed(what: Array) -> Array:
            return np.bincount(places.ravel(), what, len(values)).astype(np.int64)

        return replace(
            self,
            values=values.astype(np.int64),
            sizes=summed(self.sizes),
            drawn=summed(self.drawn),
            flat=summed(self.flat),
            between=summed(self.between),
        )

    def by_palette(self) -> Survey:
        """Return it with the colours of its palette for its numbers."""
        if self.palette is None:
            return self
        return self.renumbered(by_palette(self.values, self.palette))


@dataclass(frozen=True)
class Total:
    """Sums over the masks of a set, beside the values in ascending order, int64 (N,)."""

    values: Array
    sizes: Array
    drawn: Array
    flat: Array
    between: Array

    @property
    def pixels(self) -> int:
        """Pixels of all values."""
        return int(self.sizes.sum())


def survey(path: Path, alpha: str = "", bright: bool = False) -> Survey:
    """Return what a mask file holds.

    Args:
        path: of the file.
        alpha: what the alpha channel is taken for, as in ``ClassTable``.
        bright: whether colours are looked at by their brightest channel, for black and the rest.

    Raises:
        UserError: the file cannot be read as a mask.
    """
    raw = readers.read_mask(path)
    assert isinstance(raw, readers.RawMask)
    has_alpha = raw.ndim == 3 and raw.shape[2] in (2, 4)
    found = alpha or (_alpha(np.asarray(raw)) if has_alpha else "")
    mask = plain(raw, alpha)
    if bright and mask.ndim == 3:
        mask = mask.max(axis=2)
    values, sizes = tally(mask)
    nothing = np.zeros(len(values), np.int64)
    drawn, flat, between = sizes, sizes, nothing
    if len(values) > 2:
        drawn, flat, between = _drawn(mask, values)
    return Survey(
        path,
        values,
        sizes,
        drawn,
        flat,
        between,
        objects(mask, values, sizes),
        raw.palette,
        raw.remark,
        raw.lossy,
        raw.one_bit,
        has_alpha,
        found,
    )


def opens(path: Path) -> bool:
    """Return whether a mask file can be read."""
    try:
        readers.read_mask(path)
    except UserError:
        return False
    return True


def total(surveys: list[Survey]) -> Total:
    """Return the sums over masks; negative values are left out."""
    values = np.unique(np.concatenate([s.values for s in surveys])) if surveys else np.zeros(0)
    values = values[values >= 0].astype(np.int64)
    sums = {name: np.zeros(len(values), np.int64) for name in ("sizes", "drawn", "flat", "between")}
    for one in surveys:
        kept = one.values >= 0
        places = np.searchsorted(values, one.values[kept])
        for name, found in sums.items():
            found[places] += getattr(one, name)[kept]
    return Total(values, **sums)


def counted(table: ClassTable, surveys: Iterable[Survey]) -> ClassTable:
    """Return the table with the pixels of its classes, as it decodes them."""
    pixels = np.zeros(256, np.int64)
    for one in surveys:
        classes, _ = table.lookup(one.values, str(one.path))
        np.add.at(pixels, classes, one.sizes)
    own = pixels[: table.num_classes]
    whole = max(1, int(own.sum()))
    classes_ = tuple(
        replace(c, pixels=n, share=n / whole)
        for c, n in zip(table.classes, own.tolist(), strict=True)
    )
    return replace(table, classes=classes_)


def _drawn(mask: Array, values: Array) -> tuple[Array, Array, Array]:
    """Return how many pixels of each value lie in what is drawn, in what is flat, and between."""
    sums = np.zeros((3, len(values)), np.int64)
    for rows in strips(mask):
        # A row above and one below: neighbours of those that are counted.
        above = min(rows.start, 1)
        wide = mask[rows.start - above : rows.stop + 1]
        own = slice(above, above + len(mask[rows]))
        for which, fits in enumerate(edges.drawn_as(wide)):
            found, sizes = tally(mask[rows], fits[own])
            sums[which, np.searchsorted(values, found)] += sizes
    return sums[0], sums[1], sums[2]


def _alpha(raw: Array) -> str:
    """Return what the alpha channel of a mask holds, as in ``ClassTable``."""
    cover = raw[..., -1]
    if int(cover.min()) == int(cover.max()):
        return ""
    colors = plain(raw[..., :-1])
    seen = tally(colors)[0]
    if len(seen) == 1 or len(seen) > MOST_CLASSES:
        # Nothing is drawn in the colours, or the micrograph itself lies there.
        return "label"
    covered = to_8_bit(cover) >= 128
    twice = set(tally(colors, covered)[0].tolist()) & set(tally(colors, ~covered)[0].tolist())
    return "cover" if twice else ""
