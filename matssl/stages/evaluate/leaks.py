"""Whether a model was trained on what it is evaluated on: by file, by specimen and by pixels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from matssl.core.errors import UserError
from matssl.data import layouts, readers, specimens
from matssl.data.layouts import Dataset, Pair
from matssl.stages.evaluate.summary import Result
from matssl.stages.evaluate.truth import mask_paths
from matssl.trained.segmenter import Segmenter, TrainedOn


def by_name(
    pairs: Sequence[Pair],
    dataset: Dataset,
    trained_on: TrainedOn,
    regex: str | None = None,
    table: str | None = None,
) -> list[str]:
    """Return a warning where evaluated images, or others of their specimens, were trained on.

    Args:
        pairs: what is evaluated.
        dataset: the folder of it.
        trained_on: what the model learned from.
        regex: ``--group_regex`` in force.
        table: ``--specimens`` in force.
    """
    known = trained_on.images
    shared, count = _shared_specimens(pairs, dataset, trained_on, regex, table)
    exact = [p for p in pairs if str(p.image) in known]
    # Names mean little elsewhere: the pixels are compared, where the checkpoint knows them.
    names = set() if trained_on.digests else {Path(path).name for path in known}
    same = [p for p in pairs if p in exact or p.image.name in names]
    found = []
    if shared:
        some = f"{', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''}"
        found = [f"{count} of {len(pairs)} images are of specimens it was trained on ({some})"]
    if not same:
        return found
    what = "are training images of this model" if exact else "have names of its training images"
    scored = "; the scores are no test of it" if mask_paths(pairs) else ""
    return [f"{len(same)} of {len(pairs)} images {what}{scored}"]


def _shared_specimens(
    pairs: Sequence[Pair],
    dataset: Dataset,
    trained_on: TrainedOn,
    regex: str | None,
    table: str | None,
) -> tuple[list[str], int]:
    """Return the specimens that were trained on, and how many evaluated images are of them.

    Evaluated and trained images are grouped together: apart, the same names may say another thing.
    """
    learned, root = _learned_here(dataset.root, trained_on)
    if not learned:
        return [], 0
    own = {pair.image.resolve(): pair.group for pair in (*dataset.pairs, *pairs)}
    if not learned <= set(own):
        paths = sorted({*own, *learned})
        # A table need not speak of images that have left the folder.
        with contextlib.suppress(UserError):
            names = layouts.sequences(root)[1]
            frames = bool(dataset.grouping.sequences.frames)
            found = specimens.group(
                paths, root, regex=regex, specimens=table, sequence=names, frames=frames
            )
            own = dict(zip(paths, found.names, strict=True))
    seen = {own[path] for path in learned if path in own}
    groups = [own[pair.image.resolve()] for pair in pairs]
    return sorted(seen & set(groups)), sum(name in seen for name in groups)


def _learned_here(root: Path, trained_on: TrainedOn) -> tuple[set[Path], Path]:
    """Return the training images as far as they belong to this folder, and the folder of both.

    The folder may have moved since, or be a part of the one that was trained on, or hold it. In
    any other folder the same name is another specimen.
    """
    home, here = Path(trained_on.dataset or "/").resolve(), root.resolve()
    known = {Path(path).resolve() for path in trained_on.images}
    if home.suffix.lower() == ".json" and known:
        # An index: what it lists lies in folders.
        home = Path(os.path.commonpath([path.parent for path in known]))
    if trained_on.dataset is None:
        return set(), here
    if here == home or here in home.parents or home in here.parents:
        return known, here if here in home.parents else home
    moved = {here / path.relative_to(home) for path in known if home in path.parents}
    present = {path for path in moved if readers.file_of(path).is_file()}
    if not home.exists() and len(present) * 2 > len(known):
        return present, here
    return set(), here


def by_pixels(results: Sequence[Result], segmenter: Segmenter) -> list[str]:
    """Return warnings where images are known to the model, whatever their files are called."""
    paths, pixels = segmenter.trained_on.images, segmenter.trained_on.digests
    guides = segmenter.lineage.labelled_digests - pixels
    copies = [r.name for r in results if r.digest in pixels and str(r.pair.image) not in paths]
    labels = [r.name for r in results if r.digest in guides]
    unlabelled = segmenter.lineage.unlabelled_digests - pixels
    pool = [r.name for r in results if r.digest in unlabelled]
    scored = "; the scores are no test of it" if any(r.pair.mask for r in results) else ""
    return [
        f"{len(names)} of {len(results)} images {what} "
        f"({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}){scored}"
        for names, what in (
            (copies, "are copies of training images of this model"),
            (labels, "guided or judged the pretraining of this model with their masks"),
            (pool, "were learned from without their labels (--semi, transductive)"),
        )
        if names
    ]
