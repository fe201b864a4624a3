"""What a pretraining learns from: the pool, labelled images that guide or judge it, the views."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from matssl import monitor, preflight
from matssl.core.errors import UserError
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data import cache, device_views, layouts, preprocess, specimens
from matssl.data.cache import Pool
from matssl.data.crops import Labelled
from matssl.data.datasets import ViewLoader, check_batch
from matssl.data.layouts import LeftOut
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import Grouping, Sequences, sequences
from matssl.data.views import ViewAugmentation
from matssl.decoders import named
from matssl.methods import distinct, settings_class
from matssl.methods.settings import GuidedSettings, MethodSettings, PoolFacts
from matssl.models import vit
from matssl.probe import DenseProbe
from matssl.stages import console
from matssl.stages.pretrain import guides
from matssl.stages.pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class Inputs:
    """What a pretraining learns from, read and checked.

    Attributes:
        preflight: what was found, for console and report.
        record: how images are read, with the pool's grey levels.
        pool: the unlabelled images.
        loader: of the method's batches.
        watched: of pairs of views for the monitor, also where the method learns from one.
        grouping: which specimen each image of the pool's folder is of, and who says so.
        probe: scores the encoder on labelled images, None without any.
        labelled: images with masks that the run opened, by what they are for.
    """

    preflight: str
    record: Preprocess
    pool: Pool
    loader: ViewLoader
    watched: ViewLoader
    grouping: Grouping
    probe: DenseProbe | None
    labelled: Mapping[str, Labelled]

    def facts(self, batch_size: int) -> PoolFacts:
        """Return what a method may want to know before it is built.

        Args:
            batch_size: samples a step.
        """
        area = np.zeros(len(self.pool.group_names))
        sizes = [float(np.prod(shape[:2])) for shape in self.pool.shapes]
        np.add.at(area, self.pool.groups, sizes)
        shares = (area / area.sum()).tolist()
        guiding = self.loader.guides
        return PoolFacts(
            batch_size,
            len(self.loader.tiles),
            dict(zip(self.pool.group_names, shares, strict=True)),
            self.grouping.told,
            len(guiding.names) if guiding else None,
        )


def gather(
    settings: PretrainSettings,
    method: MethodSettings,
    views: int,
    rt: Runtime,
    record: Preprocess,
    multiple: int,
) -> Inputs:
    """Read what a run learns from, and say what was found.

    Args:
        settings: flags.
        method: the method's own.
        views: how many views of a sample it learns from.
        rt: where it computes.
        record: how images are read.
        multiple: of the sides of what the encoder sees.

    Raises:
        UserError: images or masks that cannot be meant.
    """
    paths, left_out = _image_paths(settings)
    apart = settings.frame_positives if method.paired else 0
    sequenced = settings.input_depth > 1 or apart > 0
    pages = sequenced and settings.page is None
    files = specimens.pictures(paths, settings.data_path, settings.specimens, pages)
    paths = [picture for pictures in files.values() for picture in pictures]
    grouping = _grouping(settings, paths, sequenced)
    _check_sequences(settings, grouping, sequenced)
    record = record.told(grouping.pixel_sizes)
    # Every process looks: how pictures are cut is judged from all of them.
    found, record = _preflight(settings, method, paths, left_out, record, grouping)
    console.say(settings, rt, found)
    # Masks that cannot be meant are told before the pool is read.
    guiding, guided_by = guides.guides(settings, method, rt, record)
    tile_size = settings.tile_size or 2 * settings.view_size
    drawn = settings.batch_size - (guiding is not None and guiding.beside)
    pool = _pool(settings, rt, paths, record, grouping, drawn, tile_size)
    near = grouping.sequences.among(map(Path, pool.sources))
    if settings.input_depth > 1:
        pool.stack(near.neighbours(settings.input_depth), settings.input_depth)
    record = preprocess.measure(record, (pool.plane(i) for i in range(len(pool))))
    probe = guides.dense_probe(settings, record, multiple)
    labelled = {} if guided_by is None else {"guide": guided_by}
    labelled |= {} if probe is None else probe.opened
    augmentations = (_first_views(settings), _second_views(settings))
    loader = ViewLoader(
        pool,
        list(augmentations)[:views],
        settings.batch_size,
        tile_size,
        settings.seed,
        rt.workers,
        rt.rank,
        rt.world_size,
        pin=rt.device.type == "cuda",
        guides=guiding,
        lots=guides.lots(settings, method, rt, pool.sources, "images of the pool"),
        beside=_beside(pool, near, apart),
        device=_device_of_views(settings, rt, pool),
    )
    guides.compare_lots(settings, method, rt, loader)
    watched = copy.copy(loader)
    watched.augmentations = augmentations
    return Inputs(found, record, pool, loader, watched, grouping, probe, labelled)


def _device_of_views(settings: PretrainSettings, rt: Runtime, pool: Pool) -> torch.device | None:
    """Return where views are made all at once, None for one by one on the CPU.

    Raises:
        UserError: a pool that the memory of the GPU does not hold, where that was asked for.
    """
    if settings.views_on == "cpu":
        return None
    size = sum(math.prod(shape[:2]) * pool.channels for shape in pool.shapes)
    if rt.device.type == "cuda" and not device_views.fits(size, rt.device):
        raise UserError(
            f"the pool has {size / 1e9:.1f} GB of pixels, over a quarter of the GPU's free memory; "
            "--views_on cpu makes the views on the CPU"
        )
    return rt.device


def _image_paths(settings: PretrainSettings) -> tuple[list[Path], list[LeftOut]]:
    """Return the images of the pool, and what is left out of it."""
    paths, left_out = layouts.unlabelled(settings.data_path)
    if settings.file_list is not None:
        lists = Path(settings.file_list)
        if not lists.is_file():
            raise UserError(f"there is no file list {lists}")
        root = Path(settings.list_root) if settings.list_root else lists.parent
        lines = lists.read_text(encoding="utf-8").splitlines()
        more = [root / line.strip() for line in lines if line.strip() and line[0] != "#"]
        absent = [path for path in more if not path.is_file()]
        if absent:
            raise UserError(f"{lists} names {len(absent)} absent files (first: {absent[0]})")
        paths += more
    return paths, left_out


def _check_sequences(settings: PretrainSettings, grouping: Grouping, sequenced: bool) -> None:
    """Refuse flags of sequences where there are none.

    Raises:
        UserError: it names the flag.
    """
    if sequenced and not grouping.sequences.frames:
        depth = settings.input_depth
        flag = f"--input_depth {depth}" if depth > 1 else "--frame_positives"
        raise UserError(sequences.none(flag, settings.data_path))


def _beside(pool: Pool, near: Sequences, apart: int) -> list[tuple[int, ...]] | None:
    """Return of each image of the pool the frames that are up to so many away; None for none.

    Raises:
        UserError: one differs from its image in size, so that no place is the same in both.
    """
    if not apart:
        return None
    numbers = {Path(source): i for i, source in enumerate(pool.sources)}
    others = near.beside(apart)
    found = [tuple(numbers[other] for other in others.get(path, ())) for path in numbers]
    pool.refuse_misfits(found)
    return found


def _grouping(settings: PretrainSettings, paths: Sequence[Path], sequenced: bool) -> Grouping:
    """Return which specimen each image of the pool is of.

    Raises:
        UserError: what says it does not fit.
    """
    root, sequence = layouts.sequences(settings.data_path)
    return specimens.group(
        paths,
        root,
        regex=settings.group_regex,
        specimens=settings.specimens,
        pixel_size=settings.pixel_size,
        sequence=sequence,
        frames=sequenced,
    )


def _tests(settings: PretrainSettings, method: MethodSettings) -> list[Path]:
    """Return the test images of all labelled folders that the run knows.

    Splits that nobody named are cut as the fine-tuning cuts them: by seed, and by specimen.
    """
    guide = method.labeled_path if isinstance(method, GuidedSettings) else None
    tests = []
    if settings.test_folder is not None:
        # A folder without splits is a test as a whole.
        depth, page = settings.input_depth, settings.page
        tests += layouts.tests(settings.test_folder, depth=depth, page=page)
        tests = tests or layouts.unlabelled(settings.test_folder)[0]
    for folder in dict.fromkeys((settings.probe_path, guide)):
        if folder is not None:
            tests += layouts.tests(
                folder,
                splits=settings.splits,
                group_regex=settings.group_regex,
                seed=settings.seed,
                depth=settings.input_depth,
                page=settings.page,
            )
    return list(dict.fromkeys(tests))


def _preflight(
    settings: PretrainSettings,
    method: MethodSettings,
    paths: Sequence[Path],
    left_out: Sequence[LeftOut],
    record: Preprocess,
    grouping: Grouping,
) -> tuple[str, Preprocess]:
    """Return what was found in words, and the record that knows the bars."""
    found = {"pool": list(paths)}
    tests = _tests(settings, method)
    if tests:
        found["test"] = tests
    seen = preflight.examine(
        settings.data_path, found, record, left_out=left_out, grouping=grouping
    )
    notes = grouping.sequences.notes(settings.input_depth)
    text = "\n".join([seen.text(), *(f"  note         {note}" for note in notes)])
    named = [p for p in paths if any(part.endswith("test") for part in p.parent.parts[-2:])]
    if named:
        number = counted(len(named), "test image")
        text += f"\n  warning      {number} learned from, by their folders' names"
    return text, seen.record


def _pool(
    settings: PretrainSettings,
    rt: Runtime,
    paths: Sequence[Path],
    record: Preprocess,
    grouping: Grouping,
    drawn: int,
    tile_size: int,
) -> Pool:
    folder = None
    if settings.cache_dir != "none":
        folder = Path(settings.cache_dir or Path(settings.output_dir) / "cache")
    return cache.build(
        paths,
        record,
        groups=grouping.names,
        cache_dir=folder,
        workers=rt.threads,
        on_bad=settings.on_bad_image,
        quiet=settings.quiet or not rt.is_main,
        approve=lambda shapes: check_batch(shapes, tile_size, drawn),
    )


def _first_views(settings: PretrainSettings) -> ViewAugmentation:
    """Return what the first view may be: upright whole tiles where that is asked for (PSCL)."""
    augmentation = _views(settings)
    if settings.first_view == "whole":
        augmentation = replace(augmentation, sides=(1.0, 1.0), d4="none")
    return augmentation


def _second_views(settings: PretrainSettings) -> ViewAugmentation:
    """Return the augmentation of the second view, where it differs from the first (BYOL, PSCL)."""
    augmentation = _views(settings)
    if settings.first_view == "whole":
        # Beside a whole tile the second view is most of each side of it, whatever the tile's shape.
        sides = (math.sqrt(settings.scale_min), math.sqrt(settings.scale_max))
        augmentation = replace(augmentation, sides=sides)
    if settings.second_blur_p is not None:
        augmentation = replace(augmentation, blur_p=settings.second_blur_p)
    if settings.second_solarise_p is not None:
        augmentation = replace(augmentation, solarise_p=settings.second_solarise_p)
    return augmentation


def _views(settings: PretrainSettings) -> ViewAugmentation:
    return ViewAugmentation(
        size=settings.view_size,
        scale=(settings.scale_min, settings.scale_max),
        d4=settings.d4,
        brightness=settings.brightness,
        contrast=settings.contrast,
        gamma=settings.gamma,
        photometry_p=settings.photometry_p,
        solarise_p=settings.solarise_p,
        blur_p=settings.blur_p,
        blur_sigma=(0.1, max(0.1, settings.blur_sigma)),
        noise_p=settings.noise_p,
        noise_sigma=settings.noise_sigma,
    )


def blank_share(pool: Pool, loader: ViewLoader) -> float:
    """Return the share of tiles without contrast, of a few hundred spread over the pool."""
    count = min(256, len(loader.tiles))
    tiles = loader.tiles[np.linspace(0, len(loader.tiles) - 1, count).astype(int)]
    spread = [
        float(pool.plane(image)[top : top + height, left : left + width].std())
        for image, top, left, height, width in tiles
    ]
    return float(np.mean(np.array(spread) < monitor.BLANK))


def check_encoder(method: str, own: MethodSettings, encoder: str) -> None:
    """Refuse vision transformers in methods that train a decoder along.

    These compare or fill in maps of falling size, and all maps of a vision transformer have one.

    Raises:
        UserError: the methods that work are named.
    """
    if hasattr(own, "decoder") and vit.is_vit(encoder):
        able = [n for n in distinct() if not hasattr(settings_class(n), "decoder")]
        raise UserError(
            f"--model {method} needs maps at strides 4 to 32, which --encoder {encoder} has not; "
            f"with vision transformers take --model {named(able)}"
        )
