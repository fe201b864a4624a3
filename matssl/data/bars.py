"""Which rows of a picture are specimen: its information bar, and a mask that ends above the bar.

A bar is judged in all pictures of one size together: one microscope draws one bar. A mask of its
picture's width with up to a fifth fewer rows was drawn on the picture without its bar, so it is
the upper part, and says how high the bar is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.readers import Micrograph
from matssl.data.readers.bar import Candidate, candidates

# Heights of one bar that differ by so many rows are the same one.
NEAR = 1
# A mask lacks at most this share of its picture's rows.
UPPER_PART = 0.2
# Names that a sentence lists.
LISTED = 12
AUTO = "auto"


@dataclass(frozen=True)
class Look:
    """What one picture shows of its bar.

    Attributes:
        path: of the picture.
        shape: (height, width).
        told: rows of the bar as the metadata say; None where they say nothing.
        candidates: bars that its pixels may show, the likeliest first.
        mask: path of its mask, None for none.
        mask_shape: (height, width) of the mask.
    """

    path: Path
    shape: tuple[int, int]
    told: int | None = None
    candidates: tuple[Candidate, ...] = ()
    mask: Path | None = None
    mask_shape: tuple[int, int] | None = None

    @property
    def missing(self) -> int:
        """Rows by which the mask is the upper part of its picture; 0 for none."""
        return upper_part(self.mask_shape, self.shape) if self.mask_shape else 0

    @property
    def alone(self) -> int:
        """Rows of the bar by this picture alone, 0 for none: neither bar nor without a label."""
        seen = self.told
        if seen is None:
            seen = next((one.rows for one in self.candidates if one.sure), 0)
        return max(seen, self.missing)


@dataclass(frozen=True)
class Judged:
    """The bars of some pictures, judged together.

    Attributes:
        rows: of the bar of each picture.
        notes: what was taken for what, in words.
        warnings: what needs a look, in words.
        doubtful: the fewer of those of one size that have a bar and those that have none.
        misfits: how the mask does not fit, in words, of pictures where it does not.
    """

    rows: Mapping[Path, int]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    doubtful: frozenset[Path] = frozenset()
    misfits: Mapping[Path, str] = field(default_factory=dict)

    def refuse_misfits(self) -> None:
        """Refuse masks that do not fit their pictures.

        Raises:
            UserError: there are some; it names all of them, the first twelve with their sizes.
        """
        if self.misfits:
            raise UserError(_misfits_text(list(self.misfits.values())))


def _misfits_text(misfits: Sequence[str]) -> str:
    """Return one sentence on masks that do not fit their pictures."""
    more = f" and {len(misfits) - LISTED} more" if len(misfits) > LISTED else ""
    number = counted(len(misfits), "mask does", "masks do")
    return (
        f"{number} not fit the picture: {'; '.join(misfits[:LISTED])}{more}; a mask has its "
        "picture's size, or its width and up to a fifth fewer rows (the bar's)"
    )


def upper_part(mask: tuple[int, ...], picture: tuple[int, ...]) -> int:
    """Return by how many rows a mask is the upper part of a picture; 0 where it is not."""
    missing = picture[0] - mask[0]
    fits = mask[1] == picture[1] and 0 < missing <= UPPER_PART * picture[0]
    return missing if fits else 0


def look(micrograph: Micrograph, path: Path, mask: Path | None, crop_bottom: int | str) -> Look:
    """Return what a picture shows of its bar.

    Args:
        micrograph: of the picture.
        path: of its file.
        mask: its mask, which is not decoded.
        crop_bottom: of the record; pixels are looked at for "auto" alone.
    """
    shape = (micrograph.pixels.shape[0], micrograph.pixels.shape[1])
    told = micrograph.bar_height
    found: tuple[Candidate, ...] = ()
    if crop_bottom == AUTO and told is None:
        found = candidates(micrograph.pixels)
    return Look(path, shape, told, found, mask, _shape_of(mask, shape))


def of_pairs(
    pairs: Iterable[tuple[Path, Path | None]],
    read: Callable[[Path], Micrograph],
    crop_bottom: int | str,
) -> Judged:
    """Return the bars of pictures with their masks; every picture is read once.

    Args:
        pairs: picture and mask.
        read: from a file to its micrograph.
        crop_bottom: of the record that reads them.

    Raises:
        UserError: a picture cannot be read.
    """
    looks = (look(read(image), image, mask, crop_bottom) for image, mask in pairs)
    return judge(looks, crop_bottom)


def judge(looks: Iterable[Look], crop_bottom: int | str = AUTO) -> Judged:
    """Return the bars of pictures, those of one size judged together.

    Args:
        looks: at each of them.
        crop_bottom: of the record; a number beats what is seen.
    """
    by_shape: dict[tuple[int, int], list[Look]] = {}
    for one in looks:
        by_shape.setdefault(one.shape, []).append(one)
    rows: dict[Path, int] = {}
    notes: list[str] = []
    warnings: list[str] = []
    doubtful: set[Path] = set()
    for shape, these in by_shape.items():
        if crop_bottom == AUTO:
            found = _of_one_size(these)
            few, told = _doubts(shape, these, found)
            doubtful |= few
            warnings += told
        else:
            found = {one.path: int(crop_bottom) for one in these}
        rows |= found
        notes += _short_masks(shape, these)
    every = sorted((one for these in by_shape.values() for one in these), key=lambda o: o.path)
    misfits = {one.path: _misfit(one, rows[one.path]) for one in every}
    misfits = {path: told for path, told in misfits.items() if told}
    return Judged(rows, tuple(notes), tuple(warnings), frozenset(doubtful), misfits)


def _of_one_size(looks: Sequence[Look]) -> dict[Path, int]:
    """Return the bar of each of some pictures of one size.

    Where a picture alone does not tell, it has the bar of the others if its pixels may show that.
    """
    rows = {one.path: one.alone for one in looks}
    heights = Counter(height for height in rows.values() if height)
    for one in looks:
        if rows[one.path] or one.told is not None:
            continue
        for height, _ in heights.most_common():
            near = [c.rows for c in one.candidates if abs(c.rows - height) <= NEAR]
            if near:
                rows[one.path] = near[0]
                break
    return rows


def _doubts(
    shape: tuple[int, int], looks: Sequence[Look], rows: Mapping[Path, int]
) -> tuple[set[Path], list[str]]:
    """Return what is fewer and a warning, where only some of the pictures of one size have a bar.

    Metadata that name no bar are no doubt.
    """
    having = [one.path for one in looks if rows[one.path]]
    without = [one.path for one in looks if not rows[one.path] and one.told is None]
    if not having or not without:
        return set(), []
    height = Counter(rows[path] for path in having).most_common(1)[0][0]
    few = len(having) < len(without)
    named = having if few else without
    what = "found in" if few else "none was found in"
    size = f"{shape[1]} x {shape[0]}"
    text = (
        f"{len(having)} of {counted(len(looks), 'picture')} of {size} "
        f"{'has' if len(having) == 1 else 'have'} an information bar ({height} rows); {what} "
        f"{_listed([path.name for path in named])}: --crop_bottom says otherwise, "
        "matssl.tools.doctor --pictures FILE.png shows the cuts"
    )
    return set(named), [text]


def _short_masks(shape: tuple[int, int], looks: Sequence[Look]) -> list[str]:
    """Return in words how many masks are the upper part of their pictures, by how many rows."""
    number = sum(one.mask_shape is not None for one in looks)
    missing = Counter(one.missing for one in looks if one.missing)
    size = f"{shape[1]} x {shape[0]}"
    return [
        f"{count} of {counted(number, 'mask')} of pictures of {size} "
        f"{'is' if count == 1 else 'are'} {counted(rows, 'row')} shorter: the upper part"
        for rows, count in sorted(missing.items())
    ]


def _misfit(one: Look, bar: int) -> str:
    """Return in words how a mask does not fit its picture; empty where it does.

    Args:
        one: the picture and its mask.
        bar: rows that are cut off the picture.
    """
    (rows, columns), mask = one.shape, one.mask_shape
    if (
        one.mask is None
        or mask is None
        or one.missing
        or mask[1] == columns
        and mask[0]
        in (
            rows,
            rows - bar,
        )
    ):
        return ""
    return f"{one.path.name} is {columns} x {rows}, {one.mask.name} {mask[1]} x {mask[0]}"


def _shape_of(mask: Path | None, shape: tuple[int, int]) -> tuple[int, int] | None:
    """Return (height, width) of a mask; None for none, and for one that cannot be read.

    Args:
        mask: the file.
        shape: of its picture; a header that tells another is not believed alone.
    """
    if mask is None:
        return None
    try:
        head = readers.header(mask)
        if (head.height, head.width) == shape:
            return shape
        values = readers.read_mask(mask)
    except UserError:
        # Why it cannot be read is told where masks are understood.
        return None
    return values.shape[0], values.shape[1]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
