"""Writes the JSON index files of SRPU-Model for folders of ``raw_images`` and masks.

Neighbours of a frame are those of the next numbers, labelled or not; splits are of whole sequences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.layouts import srpu
from matssl.data.layouts.index import is_index, read_index, sequence_of
from matssl.data.layouts.pairing import SPLITS, Found
from matssl.data.specimens.sequences import interval, nearest
from matssl.data.specimens.splitting import Pair, cut_validation

MASTER, MASTER_SSL = "master_labeled_dataset", "master_ssl_dataset"
SUMMARY = "dataset_split_summary.json"
# Two sequences at least: one to learn from and one that is held against it.
FEWEST = 2


@dataclass(frozen=True)
class Frame:
    """One image of a data set.

    Attributes:
        found: the image, and its mask.
        folder: of its data set.
        sequence: folders below ``raw_images`` and what stands before its number.
        number: of the frame.
    """

    found: Found
    folder: Path
    sequence: str
    number: int

    @property
    def specimen(self) -> str:
        """What is never parted: the sequence, or the data set of frames without a name."""
        return "/".join(part for part in (self.folder.name, self.sequence) if part)


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: each with its number of samples.
        notes: what was noticed, in words.
    """

    files: dict[Path, int]
    notes: tuple[str, ...]


def scan(root: Path) -> list[Frame]:
    """Return all frames of the data sets in a folder, by data set, sequence and number.

    Raises:
        UserError: no folder of raw_images, two frames of one number, or masks without images.
    """
    folders = srpu.data_sets(root)
    if not folders:
        raise UserError(
            f"{root} holds no data set: neither {srpu.RAW} nor folders with {srpu.RAW} in them "
            "(NAME/raw_images beside NAME/masks_3class)"
        )
    frames: list[Frame] = []
    for folder in folders:
        own = [_frame(item, folder) for item in srpu.images_of(folder)]
        seen: dict[tuple[str, int], Path] = {}
        for frame in own:
            place = frame.sequence, frame.number
            if place in seen and sequence_of(frame.found.image.stem)[0] != frame.found.image.stem:
                raise UserError(
                    f"{seen[place]} and {frame.found.image} are both frame {frame.number} of "
                    f"{frame.specimen}; rename one of them"
                )
            seen[place] = frame.found.image
        own.sort(key=lambda f: (readers.natural(f.sequence), f.number, f.found.image.name))
        frames += own
    if not frames:
        raise UserError(f"{root} holds no image in {srpu.RAW}")
    return frames


def _frame(item: Found, folder: Path) -> Frame:
    raw = srpu.raw_folder(folder)
    assert raw is not None
    name, number = sequence_of(item.image.stem)
    inside = item.image.parent.relative_to(raw).as_posix()
    parts = [part for part in (inside, name) if part not in ("", ".")]
    return Frame(item, folder, "/".join(parts), number)


def samples(frames: Sequence[Frame], depth: int) -> tuple[list[dict[str, object]], int]:
    """Return a sample for each frame, and how many neighbours had to be stood in for.

    Neighbours are those that :mod:`matssl.data.specimens.sequences` finds, whether they have masks
    or not; gaps inside a sequence are counted.

    Args:
        frames: from :func:`scan`.
        depth: odd number of frames of a sample.
    """
    sequences: dict[tuple[Path, str], dict[int, Path]] = {}
    for f in sorted(frames, key=lambda f: f.number):
        sequences.setdefault((f.folder, f.sequence), {})[f.number] = f.found.image
    made, gaps = [], 0
    for f in frames:
        raw, masks = srpu.raw_folder(f.folder), srpu.mask_folders(f.folder)
        assert raw is not None
        known = sequences[f.folder, f.sequence]
        numbers = list(known)
        apart = interval(numbers)
        stack = []
        for offset in range(-(depth // 2), depth // 2 + 1):
            wanted = f.number + apart * offset
            gaps += numbers[0] <= wanted <= numbers[-1] and wanted not in known
            near = known[nearest(numbers, f.number, wanted)] if wanted != f.number else None
            stack.append((near or f.found.image).relative_to(raw).as_posix())
        stem = f.found.image.stem
        name = f.sequence.replace("/", "_") or stem
        sample: dict[str, object] = {
            "sample_id": f"{name}_{stem}_centerFrameIdx{f.number:04d}",
            "dataset": f.folder.name,
            "frames": stack,
        }
        if f.found.mask is not None:
            sample["mask_file"] = f.found.mask.relative_to(masks[0]).as_posix()
        made.append(sample)
    return made, gaps


def write_all(root: Path, target: Path, depth: int) -> Written:
    """Write NAME.json and NAME_ssl.json of each data set, and both master files.

    Args:
        root: folder of the data sets.
        target: folder of the index files.
        depth: odd number of frames of a sample.

    Raises:
        UserError: see :func:`scan`; or the folder cannot be written.
    """
    frames = scan(root)
    made, gaps = samples(frames, depth)
    info = _info(frames, target)
    files: dict[Path, int] = {}
    for folder in dict.fromkeys(f.folder for f in frames):
        own = [s for s in made if s["dataset"] == folder.name]
        one = {folder.name: info[folder.name]}
        _write(files, target / f"{folder.name}.json", _labelled(own), one, depth)
        _write(files, target / f"{folder.name}_ssl.json", _bare(own), one, depth)
    _write(files, target / f"{MASTER}.json", _labelled(made), info, depth)
    _write(files, target / f"{MASTER_SSL}.json", _bare(made), info, depth)
    notes = [f"{counted(gaps, 'neighbour')} in gaps of sequences: the nearest frame stands in"]
    return Written(files, tuple(notes if gaps else ()))


def split(source: Path, target: Path, val: float, test: float, seed: int) -> Written:
    """Write the train, val and test files of a labelled index, by whole sequences, and a summary.

    Args:
        source: index of labelled samples.
        target: folder of the new files.
        val: share of the samples that validates.
        test: share that tests.
        seed: of the draw.

    Raises:
        UserError: no index, no labelled sample, or one sequence only.
    """
    listed = read_index(source)
    content = textfiles.read_json(source)
    assert is_index(content)
    if any(item.mask is None for item in listed.found):
        raise UserError(f"{source} lists images without masks; split an index of labelled ones")
    paired = list(zip(content["samples"], _specimens(content["samples"]), strict=True))
    pairs = [Pair(Path(str(n)), None, group, "train") for n, (_, group) in enumerate(paired)]
    groups = {pair.group for pair in pairs}
    if len(groups) < FEWEST:
        raise UserError(
            f"{source} has one sequence ({groups.pop()}), and frames of one sequence are never "
            "parted: label a second one, or train with train_finetune.py, which then validates "
            "inside it and says so"
        )
    rest, tested = cut_validation(pairs, test, seed)
    # The share of what is left, so that both are shares of the whole.
    train, validated = cut_validation(rest, min(val * len(pairs) / max(1, len(rest)), 1), seed + 1)
    parts = dict(zip(SPLITS, (train, validated, tested), strict=True))
    files: dict[Path, int] = {}
    for name, own in parts.items():
        chosen = {int(str(pair.image)) for pair in own}
        kept = [sample for n, (sample, _) in enumerate(paired) if n in chosen]
        whole = {**content, "samples": kept, "num_samples": len(kept)}
        whole["split_info"] = {"split": name, "ratio": len(kept) / len(pairs), "seed": seed}
        path = target / f"{source.stem}_{name}.json"
        _dump(path, _moved(whole, source, path))
        files[path] = len(kept)
    named = {name: sorted({pair.group for pair in own}) for name, own in parts.items()}
    _dump(
        target / SUMMARY,
        {
            "original_file": source.name,
            "total_samples": len(pairs),
            "split_counts": {name: len(own) for name, own in parts.items()},
            "sequences": named,
            "random_seed": seed,
            "output_files": {name: f"{source.stem}_{name}.json" for name in parts},
        },
    )
    files[target / SUMMARY] = len(pairs)
    empty = [name for name, own in parts.items() if not own]
    told = f"no sequence is left for {' and '.join(empty)}: there are {len(groups)}"
    return Written(files, (told,) if empty else ())


def _specimens(listed: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the sequence of each sample of an index, with its data set."""
    found = []
    for sample in listed:
        frames = sample.get("frames") or [sample.get("image", "")]
        assert isinstance(frames, list)
        middle = Path(str(frames[len(frames) // 2]).replace("\\", "/"))
        parts = (str(sample.get("dataset", "")), middle.parent.as_posix().strip("."))
        found.append("/".join(p for p in (*parts, sequence_of(middle.stem)[0]) if p))
    return found


def _info(frames: Sequence[Frame], target: Path) -> dict[str, dict[str, str]]:
    """Return the roots of each data set, from the folder above the index, as the program has it."""
    info: dict[str, dict[str, str]] = {}
    for folder in dict.fromkeys(f.folder for f in frames):
        raw, masks = srpu.raw_folder(folder), srpu.mask_folders(folder)
        assert raw is not None
        info[folder.name] = {"raw_image_root": _from(target, raw)}
        if masks:
            info[folder.name]["mask_root"] = _from(target, masks[0])
    return info


def _from(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), target.resolve().parent)).as_posix()


def _moved(content: dict[str, object], source: Path, path: Path) -> dict[str, object]:
    """Return an index for another folder than it lay in: its roots start from there."""
    info = content.get("datasets_info")
    if path.resolve().parent == source.resolve().parent or not isinstance(info, Mapping):
        return content
    base = source.resolve().parent.parent
    moved = {
        name: {key: _from(path.parent, base / str(value)) for key, value in roots.items()}
        for name, roots in info.items()
    }
    return {**content, "datasets_info": moved}


def _labelled(made: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    return [sample for sample in made if "mask_file" in sample]


def _bare(made: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Return all samples without what learning without labels does not open."""
    return [{key: v for key, v in sample.items() if key != "mask_file"} for sample in made]


def _write(
    files: dict[Path, int],
    path: Path,
    listed: Sequence[Mapping[str, object]],
    info: Mapping[str, object],
    depth: int,
) -> None:
    if not listed:
        return
    content = {
        "dataset_name": path.stem,
        "input_depth": depth,
        "num_samples": len(listed),
        "datasets_info": info,
        "samples": listed,
    }
    _dump(path, content)
    files[path] = len(listed)


def _dump(path: Path, content: Mapping[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
