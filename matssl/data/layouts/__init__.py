"""Recognises how a folder of images and masks is laid out.

A layout is a file of this folder that holds one ``Layout``, and its line in ``DATA_LAYOUTS``. The
first that knows a folder pairs its images with their masks; all of them together say which files
are no micrographs and stay out of pools and predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import masks, readers
from matssl.data.layouts import (
    beside,
    images_masks,
    index,
    inputs_targets,
    labelme,
    split_annot,
    srpu,
    written,
)
from matssl.data.layouts.lists import Lists, part
from matssl.data.layouts.pairing import Found, Layout, one_page, paged
from matssl.data.layouts.recognition import IMAGES_ONLY, Recognised, recognise
from matssl.data.layouts.splits import apply_splits
from matssl.data.layouts.survey import OTHER, LeftOut
from matssl.data.layouts.survey import survey as _survey
from matssl.data.specimens import MIN_IMAGES_TO_SPLIT, Grouping, Pair, cut_all, group

__all__ = [
    "DATA_LAYOUTS",
    "Cut",
    "Dataset",
    "LeftOut",
    "Lists",
    "Pair",
    "find",
    "sequences",
    "tests",
    "unlabelled",
]

DATA_LAYOUTS: dict[str, Layout] = {
    "split + split_annot": split_annot.LAYOUT,
    "split/inputs + split/targets": inputs_targets.LAYOUT,
    "images + masks": images_masks.LAYOUT,
    "mask beside its image": beside.LAYOUT,
    "a folder an image": labelme.LAYOUT,
    "raw_images + masks_3class": srpu.LAYOUT,
}
INDEX = "a JSON index"


@dataclass(frozen=True)
class Cut:
    """How the splits of a data set came about.

    Attributes:
        kind: "named" by folders or a file; "drawn" by group where nothing names them; "few" where
            too few images are labelled, and all of these are for training; "none" without masks.
        images: labelled images that were cut.
        groups: groups that were cut.
        seed: of the draw.
        parts: labelled images in train, val and test, where they were drawn.
    """

    kind: Literal["named", "drawn", "few", "none"]
    images: int = 0
    groups: int = 0
    seed: int = 0
    parts: tuple[int, int, int] | None = None

    @property
    def automatic(self) -> bool:
        """Whether labelled images were given a split that nobody named."""
        return self.kind in ("drawn", "few")

    @property
    def text(self) -> str:
        """The cut in words; empty where there is nothing to say."""
        if self.kind == "few":
            images = counted(self.images, "image")
            return f"no split given and only {images}: all are for training, none tests it"
        if self.kind == "drawn":
            parts = self.parts or (0, 0, 0)
            shares = "/".join(f"{100 * part / self.images:.0f}" for part in parts)
            train, val, test = parts
            return (
                f"no split given: cut by specimen ({self.groups}) with seed {self.seed} into train "
                f"{train}, val {val}, test {test} images ({shares} %, the largest specimens in "
                "training); --splits says otherwise"
            )
        return ""


@dataclass(frozen=True)
class Dataset:
    """A labelled (or unlabelled) folder.

    Attributes:
        root: the folder.
        layout: which layout was recognised.
        pairs: all images, ordered by split and name.
        table: classes of the masks; None where there are no masks.
        notes: what was noticed, in words.
        cut: how the splits came about.
        left_out: pictures that are no micrographs of this data set, and why.
        grouping: which specimen each image is of, and who says so; of all images that were found.
        made: folder of masks that were made of annotation files; None where there are none.
        said: folder whose class file says what the masks mean; None for the root.
    """

    root: Path
    layout: str
    pairs: tuple[Pair, ...]
    table: masks.ClassTable | None
    notes: tuple[str, ...] = ()
    cut: Cut = Cut("named")
    left_out: tuple[LeftOut, ...] = ()
    grouping: Grouping = field(default_factory=Grouping.empty)
    made: Path | None = None
    said: Path | None = None

    @property
    def class_folder(self) -> Path:
        """Folder whose class file says what the masks mean."""
        return self.root if self.said is None else self.said

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits in order of appearance."""
        return tuple(dict.fromkeys(pair.split for pair in self.pairs))

    def split(self, name: str) -> tuple[Pair, ...]:
        """Return the pairs of one split; empty where it does not exist."""
        return tuple(pair for pair in self.pairs if pair.split == name)

    def neighbours(
        self, depth: int, opened: Sequence[str] | None = None
    ) -> dict[Path, tuple[Path, ...]]:
        """Return each frame of a sequence with those beside it, labelled or not; none at depth 1.

        Args:
            depth: odd number of frames.
            opened: splits whose images may be read, those without a mask apart; None: all. Frames
                of others are gaps.
        """
        if depth == 1:
            return {}
        closed = {p.image for p in self.pairs if opened and p.split not in (*opened, "predict")}
        return self.grouping.sequences.neighbours(depth, closed)


def find(
    root: Path | str,
    *,
    splits: Path | str | None = None,
    group_regex: str | None = None,
    specimens: Path | str | None = None,
    pixel_size: str | None = None,
    classes: str | None = None,
    seed: int = 0,
    need_masks: bool = True,
    mask_folder: str | None = None,
    table: masks.ClassTable | None = None,
    opened: Sequence[str] | None = None,
    lists: Lists | None = None,
    whole: bool = False,
    depth: int = 1,
    page: int | None = None,
    pages: bool = False,
) -> Dataset:
    """Return the data set in a folder: pairs by split, class table, groups.

    Args:
        root: the folder; its layout is recognised. One image stands for itself, a JSON index for
            the images it lists.
        splits: json, csv or txt file, or a folder of txt files, naming the images of each split.
        group_regex: names the specimen in a path, see :func:`matssl.data.specimens.group`.
        specimens: table of the images' specimens; None takes specimens.csv of the folder.
        pixel_size: ``--pixel_size``, which beats those of the table.
        classes: ``--classes``.
        seed: of the automatic split, used where nothing else says the split.
        need_masks: whether a folder without masks is an error.
        mask_folder: ``--mask_folder``, where names do not say which folder holds the masks.
        table: use this class table instead of looking for one (evaluation of a model).
        opened: only masks of these splits are opened to find the classes; all when None.
        lists: images that are given by name or share, in place of ``splits``.
        whole: see :func:`matssl.data.masks.find_table`.
        depth: frames that are read together; above 1 names of files tell sequences, stacks are
            their pages, and images need no mask.
        page: that is read of files of several; then no stack is a sequence.
        pages: whether stacks whose masks are stacks are read page by page at any depth.

    Raises:
        UserError: nothing found, images without masks or the reverse, masks that cannot be read.
    """
    root = Path(root)
    laid = _laid_out(root, mask_folder, classes, depth > 1)
    name, left_out, told = laid.name, laid.left_out, laid.told
    root, made = laid.home or root, laid.made
    sequence = DATA_LAYOUTS[name].sequence if name in DATA_LAYOUTS else laid.sequence
    framed = depth > 1 and page is None
    found = paged(laid.found, root, specimens, framed, pages and page is None)
    found = one_page(found, page)
    if not any(item.mask for item in found):
        if need_masks:
            others = {out.path: out.files for out in left_out if out.why == OTHER}
            raise UserError(_no_masks(root, found, [*told, *readers.unread(others)]))
        name = IMAGES_ONLY
    notes = [*told]
    named = {item.split for item in found} - {""}
    grouping = group(
        [item.image for item in found],
        root,
        regex=group_regex,
        specimens=specimens,
        pixel_size=pixel_size,
        splits=sorted(named),
        sequence=sequence,
        frames=depth > 1,
    )
    notes += [*grouping.notes, *grouping.sequences.notes(depth)]
    notes += _stray([item.image for item in found]) if framed else []
    specimen = dict(zip((item.image for item in found), grouping.names, strict=True))
    unused = root / written.SPLITS
    if splits is None and unused.is_file():
        notes.append(f"{unused.name} in the folder is not used; --splits {unused} does")
    if splits is not None:
        found, remarks = apply_splits(found, Path(splits), root)
        notes += remarks
    pairs = [Pair(item.image, item.mask, specimen[item.image], item.split) for item in found]
    if lists:
        pairs, remarks = part(pairs, lists, seed, root)
        notes += remarks
    pairs, cut = _cut(pairs, seed)
    notes += [cut.text] if cut.text else []
    alone = sum(pair.mask is None for pair in pairs)
    if 0 < alone < len(pairs):
        notes.append(f"{counted(alone, 'image')} without a mask: neither learned from nor scored")
    every = [pair.mask for pair in pairs if pair.mask is not None]
    class_folder = laid.class_folder or masks.class_home(root, every)
    seen = [pair for pair in pairs if opened is None or pair.split in opened]
    mask_paths = [pair.mask for pair in seen if pair.mask is not None]
    if mask_paths and table is None:
        closed = len(pairs) - len(seen) if cut.automatic else 0
        if made is not None and not masks.is_binary(classes):
            # Names and class files have said already what labels mean.
            classes = None
        table, found_notes = _table(mask_paths, classes, class_folder, whole, closed)
        # What was made of annotation files has told of itself.
        notes += () if made is not None else found_notes
    return Dataset(
        root,
        name,
        tuple(pairs),
        table if mask_paths else None,
        tuple(notes),
        cut,
        tuple(left_out),
        grouping,
        made,
        class_folder,
    )


def _stray(images: Sequence[Path]) -> list[str]:
    """Return a note where files hold pages of other sizes than the largest, which are no frames."""
    files = dict.fromkeys(readers.file_of(image) for image in images)
    told = [(path, pages) for path in files if (pages := readers.stray(path))]
    if not told:
        return []
    path, pages = told[0]
    number = sum(pages for _, pages in told)
    whole = readers.alike(path)
    kept = f"{whole} pages of the largest size are frames" if whole > 1 else "its largest is read"
    return [
        f"{counted(number, 'page')} of {counted(len(told), 'file')} with another size than the "
        f"largest left out, as previews are (first: {path.name}, {pages}; {kept})"
    ]


def _table(
    paths: Sequence[Path], classes: str | None, root: Path, whole: bool, closed: int
) -> tuple[masks.ClassTable, tuple[str, ...]]:
    """Return the class table of masks; where it fails, say that a drawn test may hold the others.

    Raises:
        UserError: see :func:`matssl.data.masks.find_table`.
    """
    try:
        return masks.find_table(paths, classes, root, whole)
    except masks.OneClass as error:
        if not closed:
            raise
        raise UserError(
            f"{error}; splits were drawn, and {counted(closed, 'image')} for the test stay closed: "
            "--splits names the images for training"
        ) from error


def unlabelled(root: Path | str) -> tuple[list[Path], list[LeftOut]]:
    """Return the micrographs below a folder, or of a JSON index, and what is left out and why.

    Raises:
        UserError: there is no image.
    """
    if index.is_index_file(Path(root)):
        return [item.image for item in index.read_index(Path(root)).found], []
    found = _survey(Path(root), tuple(DATA_LAYOUTS.values()))
    return list(found.images), list(found.left_out)


def sequences(root: Path | str) -> tuple[Path, str | None]:
    """Return the folder that names of specimens start from, and the layout's rule for them.

    The rule is what :func:`matssl.data.specimens.group` takes as ``sequence``; None where the
    layout has none.
    """
    root = Path(root)
    if index.is_index_file(root):
        return index.read_index(root).home, index.SEQUENCE
    return root, srpu.LAYOUT.sequence if srpu.data_sets(root) else None


def tests(
    root: Path | str,
    *,
    splits: Path | str | None = None,
    group_regex: str | None = None,
    seed: int = 0,
    depth: int = 1,
    page: int | None = None,
) -> list[Path]:
    """Return the images of a folder's test splits; none where it has no such split.

    Args:
        root: the folder.
        splits: see :func:`find`.
        group_regex: see :func:`find`.
        seed: see :func:`find`.
        depth: see :func:`find`.
        page: see :func:`find`.
    """
    found = find(
        root,
        splits=splits,
        group_regex=group_regex,
        seed=seed,
        need_masks=False,
        opened=(),
        depth=depth,
        page=page,
    )
    return [pair.image for pair in found.pairs if pair.split.endswith("test")]


def _laid_out(
    root: Path, mask_folder: str | None, classes: str | None, some: bool = False
) -> Recognised:
    """Return how a folder is laid out, or what an index file lists.

    ``some``: images are frames of sequences, which need no mask.
    """
    if index.is_index_file(root):
        listed = index.read_index(root)
        told = [f"{counted(len(listed.found), 'image')} of {root.name}"]
        found = list(listed.found)
        found += [Found(path, None, "predict") for path in listed.beside] if some else []
        return Recognised(INDEX, found, [], told, home=listed.home, sequence=index.SEQUENCE)
    layouts = {
        name: replace(layout, pairs=layout.some) if some and layout.some else layout
        for name, layout in DATA_LAYOUTS.items()
    }
    return recognise(root, mask_folder, layouts, classes)


def _no_masks(root: Path, found: list[Found], told: list[str]) -> str:
    """Return what to do about a folder in which no mask was found."""
    if not root.is_dir():
        return f"{root} is one image; give the folder that holds the images and their masks"
    known = ", ".join(layout.example for layout in DATA_LAYOUTS.values())
    hint = (
        "; a mask has the name and size of its image and few values. If there are masks, say where "
        "with --mask_folder"
    )
    return "; ".join([f"{root} has images but no masks; expected one of: {known}{hint}", *told])


def _cut(pairs: list[Pair], seed: int) -> tuple[list[Pair], Cut]:
    """Return the pairs with a split each, and how it came about.

    Where nobody named the splits, labelled images are cut and the others are for prediction.
    """
    if all(pair.split for pair in pairs):
        return pairs, Cut("named")
    labelled = [pair for pair in pairs if pair.mask is not None]
    rest = [replace(pair, split="predict") for pair in pairs if pair.mask is None]
    if not labelled:
        return rest, Cut("none")
    groups = len({pair.group for pair in labelled})
    if len(labelled) < MIN_IMAGES_TO_SPLIT:
        train = [replace(pair, split="train") for pair in labelled]
        return [*train, *rest], Cut("few", len(labelled), groups)
    drawn = cut_all(labelled, seed)
    counts = Counter(pair.split for pair in drawn)
    parts = counts["train"], counts["val"], counts["test"]
    cut = Cut("drawn", len(labelled), groups, seed, parts)
    return [*drawn, *rest], cut
