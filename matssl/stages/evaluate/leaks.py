"""Whether a model was trained on what it is evaluated on: by file, by specimen and by pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matssl.data import specimens
from matssl.data.layouts import Pair
from matssl.stages.evaluate.summary import Result
from matssl.stages.evaluate.truth import mask_paths
from matssl.trained.segmenter import Segmenter, TrainedOn


def by_name(pairs: Sequence[Pair], trained_on: TrainedOn) -> list[str]:
    """Return a warning where evaluated images, or others of their specimens, were trained on."""
    known = trained_on.images
    home = Path(trained_on.dataset or "/").resolve()
    own = specimens.groups_of([Path(path) for path in sorted(known)], trained_on.group_regex)
    # In another folder the same name is another specimen.
    seen = set(own) if all(home in p.image.resolve().parents for p in pairs) else set()
    exact = [p for p in pairs if str(p.image) in known]
    # Names mean little elsewhere: the pixels are compared, where the checkpoint knows them.
    names = set() if trained_on.digests else {Path(path).name for path in known}
    same = [p for p in pairs if p in exact or p.image.name in names]
    shared = sorted({p.group for p in pairs} & seen)
    count = sum(p.group in shared for p in pairs)
    found = []
    if shared:
        some = f"{', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''}"
        found = [f"{count} of {len(pairs)} images are of specimens it was trained on ({some})"]
    if not same:
        return found
    what = "are training images of this model" if exact else "have names of its training images"
    scored = "; the scores are no test of it" if mask_paths(pairs) else ""
    return [f"{len(same)} of {len(pairs)} images {what}{scored}"]


def by_pixels(results: Sequence[Result], segmenter: Segmenter) -> list[str]:
    """Return warnings where images are known to the model, whatever their files are called."""
    paths, pixels = segmenter.trained_on.images, segmenter.trained_on.digests
    guides = segmenter.lineage.labelled_digests - pixels
    copies = [r.name for r in results if r.digest in pixels and str(r.pair.image) not in paths]
    labels = [r.name for r in results if r.digest in guides]
    scored = "; the scores are no test of it" if any(r.pair.mask for r in results) else ""
    return [
        f"{len(names)} of {len(results)} images {what} "
        f"({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}){scored}"
        for names, what in (
            (copies, "are copies of training images of this model"),
            (labels, "guided or judged the pretraining of this model with their masks"),
        )
        if names
    ]
