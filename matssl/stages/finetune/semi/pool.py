"""The pictures without labels of a fine-tuning, and which must not be among them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl import preflight
from matssl.core.errors import UserError
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data import cache, layouts, readers, specimens
from matssl.data.cache import Pool
from matssl.data.facts import POOL
from matssl.data.layouts import Dataset, Pair
from matssl.data.preprocess import Preprocess
from matssl.stages import console
from matssl.stages.finetune.semi_settings import NONE
from matssl.stages.finetune.settings import FinetuneSettings

HELD = "held out"
# Splits whose labels nothing is chosen or scored by.
OPEN = ("train", "predict")
SHOWN = 3


@dataclass(frozen=True)
class Unlabelled:
    """What is learned from without labels.

    Attributes:
        pool: the pictures, decoded.
        digests: SHA-256 of the pixels of each as they lie in its file.
        transductive: names of validation and test pictures among them, or of copies of those.
        left_out: the same where they are not among them.
        facts: what was found of the pictures, for preflight.txt.
    """

    pool: Pool
    digests: tuple[str, ...]
    transductive: tuple[str, ...]
    left_out: tuple[str, ...]
    facts: str

    @property
    def text(self) -> str:
        """In a line, what is learned from without labels, and what is not."""
        groups = len(self.pool.group_names)
        lines = [f"{counted(len(self.pool), 'picture')} without labels ({groups} in groups)"]
        if groups == len(self.pool):
            lines = [f"{counted(len(self.pool), 'picture')} without labels"]
        if self.left_out:
            number = counted(len(self.left_out), "validation or test picture")
            lines.append(f"{number} left out, or copies of them ({_some(self.left_out)})")
        if self.transductive:
            number = counted(len(self.transductive), "validation or test picture")
            lines.append(
                f"transductive: {number} among them, or copies ({_some(self.transductive)}), so "
                "that their scores are of pictures that were learned from without labels"
            )
        return "; ".join(lines)

    def stored(self) -> dict[str, object]:
        """Return what a checkpoint tells evaluations of it, as plain values."""
        return {
            "images": list(self.pool.sources),
            "transductive": list(self.transductive),
            "hash": self.pool.hash,
        }


def gathered(
    settings: FinetuneSettings,
    rt: Runtime,
    dataset: Dataset,
    val: Sequence[Pair],
    record: Preprocess,
) -> Unlabelled | None:
    """Return the pictures without labels of a run; None where it learns from labels alone.

    Args:
        settings: of the run.
        rt: one process shows its progress.
        dataset: the labelled folder; its test pictures are looked at to find copies of them.
        val: what validates.
        record: how the labelled pictures are read.

    Raises:
        UserError: no picture is left, or more than a tenth cannot be read.
    """
    if settings.semi == NONE or settings.unlabeled_path is None:
        return None
    root = Path(settings.unlabeled_path)
    paths, left_out = layouts.unlabelled(root)
    own = os.path.realpath(root) == os.path.realpath(settings.finetune_dataset)
    home, sequence = layouts.sequences(root)
    grouping = specimens.group(
        paths,
        home,
        # What the user says of the labelled folder need not fit another one.
        regex=settings.group_regex if own else None,
        specimens=settings.specimens if own else None,
        pixel_size=settings.pixel_size,
        sequence=sequence,
    )
    record = record.told(grouping.pixel_sizes)
    held = held_out(dataset, val)
    looked = {POOL: paths, **({HELD: held} if held else {})}
    found = preflight.examine(str(root), looked, record, left_out=left_out, grouping=grouping)
    same = {path.resolve() for path in held}
    copied = {one.path for pair in found.duplicates for one in pair[:2] if one.split == POOL}
    known = [path for path in paths if path.resolve() in same or path in copied]
    kept = paths if settings.transductive else [path for path in paths if path not in known]
    names = tuple(path.name for path in known)
    if not kept:
        raise UserError(
            f"all {len(paths)} pictures in {root} are validation or test pictures of "
            f"{dataset.root}, or copies of them; give other ones in --unlabeled_path, or "
            "--transductive"
        )
    groups = dict(zip(paths, grouping.names, strict=True))
    pool = cache.build(
        kept,
        found.record,
        groups=[groups[path] for path in kept],
        cache_dir=Path(settings.output_dir) / "cache",
        workers=rt.threads,
        quiet=settings.quiet or not rt.is_main,
    )
    digests = tuple(readers.digest(found.record.frame(path).pixels) for path in pool.sources)
    inside, outside = (names, ()) if settings.transductive else ((), names)
    if not settings.transductive:
        # The report speaks of the pictures that are learned from: the others spoil no test.
        taken = set(kept)
        facts = tuple(f for f in found.facts if f.split == POOL and f.path in taken)
        found = replace(found, facts=facts, duplicates=())
    result = Unlabelled(pool, digests, inside, outside, found.text())
    console.say(settings, rt, f"pool    {result.text}")
    return result


def held_out(dataset: Dataset, val: Sequence[Pair]) -> list[Path]:
    """Return the pictures that choose or will be scored: validation, tests of any name."""
    chosen = [pair.image for pair in val]
    scored = [pair.image for pair in dataset.pairs if pair.split not in OPEN]
    return list(dict.fromkeys([*chosen, *scored]))


def refuse_other(unlabelled: Unlabelled, before: Mapping[str, object], instead: str) -> None:
    """Refuse to go on with other pictures than a run began with, wherever they lie.

    Args:
        unlabelled: the pictures of this command.
        before: what :meth:`Unlabelled.stored` gave for the checkpoint.
        instead: what to do for another plan.

    Raises:
        UserError: they changed.
    """
    if before.get("hash") != unlabelled.pool.hash:
        raise UserError(f"the pictures without labels changed since this run began; {instead}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
