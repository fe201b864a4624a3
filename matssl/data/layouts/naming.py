"""What names say: which folders hold masks, and which image the name of a mask belongs to.

Names only help. Whether a picture is a mask, ``content`` says by what it holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from matssl.data import readers

# Ends and beginnings that programs and people give to masks, in lower case.
_SUFFIXES = (
    *("_mask", "_masks", "-mask", "-masks", ".mask", "_cp_masks", "_seg", "-seg", "_segm"),
    *("_label", "_labels", "-label", "-labels", "_segmentation", "_segmented", "_gt", "-gt"),
    *("_annot", "_annotation", "_annotations", "_annotated", "_target", "_truth", "_ground_truth"),
    *("_groundtruth", "_simple segmentation", "-data_simple segmentation"),
    *("_simple_segmentation", "_labelids", "_labeltrainids", "_classes", "_binary", "_maske"),
)
_PREFIXES = ("mask_", "masks_", "mask-", "mask of ", "label_", "labels_", "seg_", "gt_", "maske_")
# The longest go first.
SUFFIXES = tuple(sorted(_SUFFIXES, key=len, reverse=True))
PREFIXES = tuple(sorted(_PREFIXES, key=len, reverse=True))
# What the names of images have that those of their masks lack: nnU-Net's number of the channel,
# the word itself.
_IMAGE_ENDS = re.compile(r"(_0000|_image|_img|-image|_im|_raw|_orig|_leftimg8bit|\.ome)$")
_IMAGE_STARTS = re.compile(r"^((image|img|im|raw|pic|picture)s?[-_ ]|(image|img|im|pic)(?=\d))")
# The same of masks, where only a number is left of the name.
_MASK_STARTS = re.compile(r"^(mask|label|seg|gt|maske)s?[-_ ]?(?=\d)")
_WORD_ENDS = re.compile(r"[-_. ]+")
# Words of folders, in lower case, in the languages of those who sent us folders.
MASK_WORDS = frozenset(
    ("mask", "masks", "annot", "annots", "annotation", "annotations", "ann", "anns", "label")
    + ("labels", "target", "targets", "gt", "gts", "groundtruth", "truth", "segmentation")
    + ("segmentations", "seg", "segs", "segmentationclass", "segmentationobject", "maske", "masken")
    + ("masque", "masques", "mascara", "mascaras", "maschera", "maschere", "etiketten", "lbl")
)
# Folders whose pictures are drawn over the images, for people to look at.
DRAWN_WORDS = frozenset(
    ("viz", "vis", "visualization", "visualizations", "visualisation", "visualisations")
    + ("visualized", "visualised", "overlay", "overlays", "segmentationclassvisualization")
    + ("segmentationobjectvisualization", "preview", "previews", "thumbnails", "thumbs")
)
# What ends the name of a picture that a program drew from another beside it.
_DRAWN_ENDS = DRAWN_WORDS | {
    *("thumb", "thumbnail", "blend", "blended", "heatmap", "prob", "probs", "probability"),
    *("probabilities", "uncertainty"),
}
# A folder an image, in which each file is called by what it is.
_IMAGE_ALONE = frozenset(
    ("image", "img", "raw", "original", "micrograph", "picture", "input", "bild", "source", "sem")
)
_MASK_ALONE = frozenset(
    ("mask", "masks", "label", "labels", "gt", "groundtruth", "ground_truth", "seg", "target")
    + ("segmentation", "annotation", "maske")
)


def stem(path: Path) -> str:
    """Return the name of a file without its ending, as it is compared.

    Capitals and the two ways in which an umlaut is stored are alike; ``a.tif.png`` is ``a``.
    """
    name = unicodedata.normalize("NFC", path.stem).lower()
    root, _, end = name.rpartition(".")
    return root if root and f".{end}" in readers.EXTENSIONS else name


def of_image(path: Path) -> list[str]:
    """Return the names under which the mask of an image may go, the image's own first."""
    own = stem(path)
    bare = _IMAGE_STARTS.sub("", _IMAGE_ENDS.sub("", own))
    # The first picture of a camera, IMG_0000, is no channel of one called IMG.
    begun = _IMAGE_STARTS.sub("", own)
    alone = f"{path.parent}/" if own in _IMAGE_ALONE else own
    return list(dict.fromkeys((own, bare or own, begun or own, alone)))


def of_mask(path: Path) -> dict[str, str]:
    """Return the names that the image of a mask may have, each with what the mask's has besides.

    The known ends and beginnings come first, then any word of letters before or after a separator.
    """
    own = stem(path)
    found = {own: ""}
    for part in known(own):
        found.setdefault(part, own.replace(part, "*", 1))
    for match in _WORD_ENDS.finditer(own):
        before, after = own[: match.start()], own[match.end() :]
        if before and re.search(r"[^\W\d]", after):
            found.setdefault(before, f"*{own[match.start() :]}")
        if after and re.search(r"[^\W\d]", before):
            found.setdefault(after, f"{own[: match.end()]}*")
    if own in _MASK_ALONE:
        found.setdefault(f"{path.parent}/", own)
    return found


def drawn_from(paths: Iterable[Path]) -> set[Path]:
    """Return pictures whose names say that they were drawn from another: a_overlay beside a."""
    stems = {path: stem(path) for path in paths}
    known_ = {(path.parent, name) for path, name in stems.items()}
    found = set()
    for path, own in stems.items():
        ends = _WORD_ENDS.split(own)
        if len(ends) > 1 and ends[-1] in _DRAWN_ENDS:
            before = own[: -len(ends[-1])].rstrip("-_. ")
            if (path.parent, before) in known_:
                found.add(path)
    return found


def number(path: Path) -> str | None:
    """Return the number that ends a name, where nothing but one word is before it."""
    match = re.fullmatch(r"[^\W\d]*[-_. ]?0*(\d+)", stem(path))
    return match[1] if match else None


def known(own: str) -> Iterable[str]:
    """Return a stem without the ends and beginnings that say mask."""
    if own.endswith(SUFFIXES):
        for end in SUFFIXES:
            if own.endswith(end) and len(own) > len(end):
                yield own.removesuffix(end)
    numbered = _MASK_STARTS.sub("", own)
    if numbered != own:
        yield numbered
    if own.startswith(PREFIXES):
        for start in PREFIXES:
            if own.startswith(start) and len(own) > len(start):
                yield own.removeprefix(start)


def words(name: str) -> set[str]:
    """Return the words of a name in lower case: ``masks_3class`` has masks, ``labelsTr`` labels."""
    plain = unicodedata.normalize("NFC", name)
    split = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", plain)
    parts = [part.lower() for text in (plain, split) for part in re.split(r"[\W\d_]+", text)]
    return {part for part in parts if part}


def says_mask(name: str) -> bool:
    """Return whether a folder of this name is said to hold masks."""
    return bool(words(name) & MASK_WORDS)


def says_drawn(name: str) -> bool:
    """Return whether a folder of this name is said to hold pictures drawn over others."""
    return bool(words(name) & DRAWN_WORDS)
