"""What is known of one picture before a run starts, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.wording import counted
from matssl.data.bars import Look
from matssl.data.copies import Copy
from matssl.data.quality import Quality

POOL = "pool"
# What may be in a pool, and what it is for.
_SEEN = {"train": "training", "val": "validation", "predict": "prediction"}
LISTED = 4
# Letters of a name in the table of files.
WIDEST = 60
HEAD = ("image", "mask", "split", "specimen", "size", "bits", "pixel", "from", "bar")


@dataclass(frozen=True)
class Facts:
    """What one file is.

    Attributes:
        path: of the file.
        split: which part of the data it belongs to.
        shape: (height, width).
        bits: significant bits.
        pixel_size: nm, None where unknown.
        bar: rows of an information bar that are cut off.
        notes: of the reader.
        calibration: who says the pixel size.
        specimen: it is of.
        mask: of the image, None where there is none.
        misread: why the values of its mask cannot be used, "" where they can or were not read.
        error: why it could not be read; then nothing else holds.
        look: what it shows of its bar.
        flat: whether it holds few values in flat areas, as masks do.
        quality: how sharp, noisy and contrasty it is, None where that was not asked.
    """

    path: Path
    split: str
    shape: tuple[int, int] = (0, 0)
    bits: int = 0
    pixel_size: float | None = None
    bar: int = 0
    notes: tuple[str, ...] = ()
    calibration: str = ""
    specimen: str = ""
    mask: Path | None = None
    misread: str = ""
    error: str | None = None
    look: Look | None = None
    flat: bool = False
    quality: Quality | None = None

    @property
    def calibrated(self) -> str:
        """The pixel size and who says it, in words."""
        if self.pixel_size is None:
            return "unknown"
        return f"{self.pixel_size:.4g} nm {self.calibration}".rstrip()


def table(
    facts: Sequence[Facts], root: Path, most: int | None = None, made: Path | None = None
) -> str:
    """Return a line for each file: what is taken for what, and who says so.

    Args:
        facts: of the files.
        root: paths are shown from there.
        most: files; of more the first ones are shown, and the number of the others. None: all.
        made: folder of masks that were made of annotation files; their names mean nothing to a
            user.
    """
    shown = facts if most is None or len(facts) <= most else facts[: most // 2]
    rows = [HEAD, *(_cells(fact, root, made) for fact in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if len(shown) < len(facts):
        lines.append(f"  ... and {len(facts) - len(shown)} more; --list shows all")
    return "\n".join(lines)


def _cells(fact: Facts, root: Path, made: Path | None) -> tuple[str, ...]:
    mask = "-" if fact.mask is None else _in_line(_below(fact.mask, root))
    if fact.mask is not None and made is not None and made in fact.mask.parents:
        mask = "from annotations"
    start = (_in_line(_below(fact.path, root)), mask, fact.split, _in_line(fact.specimen or "-"))
    if fact.error:
        return (*start, "unreadable", *[""] * 4)
    size = "unknown" if fact.pixel_size is None else f"{fact.pixel_size:.4g} nm"
    height, width = fact.shape
    return (
        *(*start, f"{width} x {height}", str(fact.bits), size),
        *(fact.calibration or "-", str(fact.bar or "-")),
    )


def _in_line(name: str) -> str:
    """Return a name as a table can show it: no sign that moves others, and the middle left out."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    half = (WIDEST - 3) // 2
    return plain if len(plain) <= WIDEST else f"{plain[:half]}...{plain[-half:]}"


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if root in path.parents else str(path)


# Two files of different splits that show the same, and how.
Duplicate = tuple[Facts, Facts, Copy]


def leaking(duplicates: Sequence[Duplicate]) -> tuple[Duplicate, ...]:
    """Return those copies that a test would suffer from.

    A pretraining may see what is trained or validated on: it sees no mask. Images without a mask
    beside labelled ones (frames of a film, mostly) are neither learned from nor scored.
    """
    return tuple(d for d in duplicates if not _may_be_seen(d) and not _is_unlabelled(d))


def copies_told(duplicates: Sequence[Duplicate]) -> list[str]:
    """Return the lines of a screen on copies across splits."""
    leaks = leaking(duplicates)
    harmless = [d for d in duplicates if _may_be_seen(d)]
    lines = ["  duplicates   none across splits"]
    if leaks:
        spoilt = any(POOL in (first.split, second.split) for first, second, _ in leaks)
        more = "; copies of test images in the pool spoil the test" if spoilt else ""
        lines = [f"  warning      {len(leaks)} near-duplicates across splits{more}", *_pairs(leaks)]
    if harmless:
        pool = {fact.path for d in harmless for fact in d[:2] if fact.split == POOL}
        number, verb = counted(len(pool), "picture"), "shows" if len(pool) == 1 else "show"
        kinds = " and ".join(sorted({_SEEN[_beside_pool(d).split] for d in harmless}))
        lines.append(
            f"  note         {number} of the pool {verb} images for {kinds}: pretraining may see "
            "them, since it sees no masks"
        )
        lines += _pairs(harmless)
    return lines


def _beside_pool(copy: Duplicate) -> Facts:
    return copy[1] if copy[0].split == POOL else copy[0]


def _may_be_seen(copy: Duplicate) -> bool:
    """Return whether one of two copies lies in the pool and the other is no test."""
    return POOL in (copy[0].split, copy[1].split) and _beside_pool(copy).split in _SEEN


def _is_unlabelled(copy: Duplicate) -> bool:
    """Return whether one of two copies has no label, and none lies in the pool."""
    splits = (copy[0].split, copy[1].split)
    return "predict" in splits and POOL not in splits


def _pairs(duplicates: Sequence[Duplicate]) -> list[str]:
    lines = [
        f"               {first.split}/{first.path.name} = {second.split}/{second.path.name} "
        f"({copy.text}; correlation {copy.correlation:.2f})"
        for first, second, copy in duplicates[:LISTED]
    ]
    more = len(duplicates) - LISTED
    return lines + ([f"               and {more} more"] if more > 0 else [])
