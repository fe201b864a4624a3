"""Networks in whole numbers of 8 bits (NNCF for OpenVINO), and what that costs on real pictures."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from matssl.core.arrays import Array
from matssl.core.damage import file_hash
from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import layouts, readers
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess
from matssl.measure.field import areas
from matssl.metrics import overlap
from matssl.metrics.counts import confusion
from matssl.models import vit
from matssl.stages.export.targets import files
from matssl.tiles import plan
from matssl.trained import exported
from matssl.trained.exported import RECIPE, Graph, Recipe
from matssl.trained.segmenter import Segmenter

# Tiles by which scales are chosen, and the side of those of networks that take any.
TILES, SIDE = 128, 384
# Of the file names before the exact ones are replaced.
LOW = "-int8"


def lowered(
    recipe: Recipe, segmenter: Segmenter, folder: Path, data: str, say: Callable[[str], None]
) -> Recipe:
    """Replace the networks of an export by networks in 8 bits and return the recipe with its loss.

    Args:
        recipe: of OpenVINO files in single precision.
        segmenter: the model they were made of.
        folder: of the files.
        data: folder of micrographs, with or without masks.
        say: takes lines for the console.

    Raises:
        UserError: there is no micrograph, or masks that are not of the model's classes.
    """
    record = segmenter.record
    dataset = layouts.find(
        data, need_masks=False, table=segmenter.table, depth=record.depth, page=record.page
    )
    record = record.told(dataset.grouping.pixel_sizes).among(dataset.neighbours(record.depth))
    pairs = list(dataset.pairs)
    if not pairs:
        raise UserError(f"--calibrate {data} holds no micrograph")
    for pair in pairs:
        # Minutes later would be late for a mask of other classes.
        _truth(segmenter, pair)
    low = [_low(graph, record, pairs, folder) for graph in recipe.graphs]
    before, after = (
        _opened(replace(recipe, graphs=tuple(graphs), record=record), folder)
        for graphs in (recipe.graphs, low)
    )
    found = {"pictures": str(data), **loss(before, after, pairs)}
    for line in lines(found):
        say(line)
    graphs = tuple(
        _replaced(own, graph, folder) for own, graph in zip(low, recipe.graphs, strict=True)
    )
    return replace(recipe, graphs=graphs, precision="int8", parity={**recipe.parity, "int8": found})


def _opened(recipe: Recipe, folder: Path) -> Segmenter:
    """Return the files of a recipe as a model.

    Its record is that of the recipe, with the pixel sizes and neighbours it knows.
    """
    recipe.write(folder / RECIPE)
    loaded = exported.load(folder / RECIPE, "cpu", "fp32", None, None, None)
    sizes, near = recipe.record.sizes, recipe.record.neighbours
    members = tuple(
        replace(one, record=one.record.told(sizes).among(near)) for one in loaded.members
    )
    record = loaded.record.told(sizes).among(near)
    return replace(loaded, record=record, members=members)


def _low(graph: Graph, record: Preprocess, pairs: Sequence[Pair], folder: Path) -> Graph:
    """Write one network in 8 bits beside the exact one and return its facts."""
    own = replace(record, mean=graph.mean, std=graph.std)
    tiles = list(_tiles(own, pairs, graph))
    path = folder / graph.file
    beside = path.with_name(f"{path.stem}{LOW}{path.suffix}")
    quantised(path, tiles, beside, vit.is_vit(graph.encoder))
    digests = {one.name: file_hash(one) for one in files(beside)}
    return replace(graph, file=beside.name, digests=digests, maps="")


def _replaced(low: Graph, exact: Graph, folder: Path) -> Graph:
    """Put a network in 8 bits in the place of the exact one."""
    digests = dict(exact.digests)
    for old, new in zip(files(folder / exact.file), files(folder / low.file), strict=True):
        new.replace(old)
        digests[old.name] = file_hash(old)
    return replace(exact, digests=digests)


def quantised(path: Path, tiles: Sequence[Array], target: Path, tokens: bool) -> None:
    """Write a network of OpenVINO in 8 bits.

    Args:
        path: of the exact one, .xml.
        tiles: normalised, (1, C, h, w) each, by which scales are chosen.
        target: to write, .xml.
        tokens: whether it is a transformer, some parts of which stay exact.
    """
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        low = nncf.quantize(
            openvino.Core().read_model(path),
            nncf.Dataset(tiles),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(tiles),
            model_type=nncf.ModelType.TRANSFORMER if tokens else None,
        )
    openvino.save_model(low, target, compress_to_fp16=False)


def _tiles(record: Preprocess, pairs: Sequence[Pair], graph: Graph) -> Iterator[Array]:
    """Yield tiles spread evenly over the pictures, (1, C, h, w) each."""
    step = -(-len(pairs) // TILES)
    chosen = pairs[::step]
    each = -(-TILES // len(chosen))
    for pair in chosen:
        image = record.tensor(record.plane(record.read(pair.image)))
        height, width = image.shape[1:]
        side = graph.side or min(SIDE, height, width)
        placed = plan(height, width, side, None, graph.multiple)
        corners = [(top, left) for top in placed.tops for left in placed.lefts]
        for top, left in corners[:: -(-len(corners) // each)]:
            tile = image[:, top : top + placed.tile[0], left : left + placed.tile[1]]
            more = [(0, side - n) for side, n in zip(placed.tile, tile.shape[1:], strict=True)]
            yield np.pad(tile, ((0, 0), *more), mode="symmetric")[None]


def loss(exact: Segmenter, low: Segmenter, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what two models say of pictures: labels that differ, area fractions, mean IoU.

    Args:
        exact: the model in single precision.
        low: the same in 8 bits.
        pairs: pictures, with masks or without.
    """
    count, names = exact.table.num_classes, exact.table.names
    sums = np.zeros((2, count), np.int64)
    counts = np.zeros((2, count, count), np.int64)
    changed = pixels = masks = 0
    for pair in tqdm(pairs, desc="exact against 8 bits", disable=None):
        micrograph = exact.record.read(pair.image)
        found = [one.predict(micrograph).classes for one in (exact, low)]
        changed += int(np.count_nonzero(found[0] != found[1]))
        pixels += found[0].size
        for number, classes in enumerate(found):
            sums[number] += areas(classes, count)
        raw = _truth(exact, pair)
        if raw is None:
            continue
        masks += 1
        truth = exact.record.fitted(raw, micrograph)
        for number, classes in enumerate(found):
            counts[number] += confusion(truth, classes[: len(truth)], count)
    fractions = sums / sums.sum(axis=1, keepdims=True)
    told: dict[str, Any] = {
        "count": len(pairs),
        "masks": masks,
        "share_of_labels_changed": changed / pixels,
        "area_fractions": {
            name: {"fp32": float(one), "int8": float(other), "change": float(other - one)}
            for name, one, other in zip(names, *fractions, strict=True)
        },
    }
    if masks:
        before, after = (overlap.miou(matrix) for matrix in counts)
        told["miou"] = {"fp32": before, "int8": after, "change": after - before}
    return told


def _truth(segmenter: Segmenter, pair: Pair) -> Array | None:
    """Return the classes of a mask as it lies in its file, None where there is none.

    Raises:
        UserError: it holds values that are none of the model's classes.
    """
    if pair.mask is None:
        return None
    return segmenter.table.decode(readers.read_mask(pair.mask), str(pair.mask))


def lines(found: dict[str, Any]) -> list[str]:
    """Return :func:`loss` in words."""
    said = [
        f"int8    {100 * found['share_of_labels_changed']:.3f} % of the labels of "
        f"{counted(found['count'], 'picture')} differ from single precision"
    ]
    for name, one in found["area_fractions"].items():
        said.append(
            f"        {name}: {100 * one['fp32']:.3f} % of the area become {100 * one['int8']:.3f} "
            f"% ({100 * one['change']:+.3f} points)"
        )
    if "miou" in found:
        one = found["miou"]
        said.append(
            f"        mIoU {100 * one['fp32']:.2f} becomes {100 * one['int8']:.2f} "
            f"({100 * one['change']:+.2f} points), {counted(found['masks'], 'mask')}"
        )
    else:
        said.append("        no masks there: what it does to scores is not known")
    return said
