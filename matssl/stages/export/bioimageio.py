"""A package of bioimage.io (format 0.5) around an ONNX file, for ImageJ, ilastik, QuPath, napari.

It holds the network with its softmax and temperature, so that it gives probabilities, and says in
rdf.yaml how micrographs are prepared. What that format cannot say stands in its README.md.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from matssl.core.arrays import Array
from matssl.core.damage import file_hash
from matssl.core.errors import UserError
from matssl.data import readers, synthetic
from matssl.data.preprocess import STANDARD_HALF_WIDTH, Preprocess
from matssl.stages.export import parity
from matssl.stages.export.targets import INPUT, OPSET, OUTPUT, write_onnx
from matssl.tiles import DEFAULT_OVERLAP
from matssl.trained import engines
from matssl.trained.exported import Recipe
from matssl.trained.member import Member

NAME = "model.zip"
FORMAT = "0.5.4"
# Least side of a tile, and what of its border is thrown away: half of what our tiles overlap by.
LEAST, HALO = 192, DEFAULT_OVERLAP // 2
# Files have no time, so that equal models are equal packages.
EPOCH = (1980, 1, 1, 0, 0, 0)
README = """# {title}

Semantic segmentation of micrographs. Classes, in the order of the output channels: {classes}.
Made by matssl.tools.export_model from {source}.

## How a picture becomes the input

rdf.yaml says it step by step. What that format has no words for:

{unsaid}

## Output

Probabilities of the classes, {temper}. The most likely class of a pixel is its label{decision}.

## Validation

The network was compared with torch: {parity}.
test_input.npy and test_output.npy are one synthetic picture and what the network says of it.
How good it is on your micrographs nobody knows before masks of yours were compared with its own:
`python eval_model.py --model_path RUN --dataset FOLDER` of matssl does, with the checkpoint or an
export `--to onnx`.

Authors, citation and licence are left out; whoever publishes the package adds them to rdf.yaml.
"""


def packed(recipe: Recipe, member: Member, folder: Path, probable: nn.Module) -> Recipe:
    """Write the package in the place of the network's file and return the recipe that names it.

    Args:
        recipe: of the one network.
        member: the model.
        folder: of the files.
        probable: images to calibrated probabilities.

    Raises:
        UserError: the ONNX file does not say what torch says.
    """
    (graph,) = recipe.graphs
    weights = folder / graph.file
    side = graph.side or -(-LEAST // graph.multiple) * graph.multiple
    raw, image = _sample(recipe.record, side)
    write_onnx(probable, torch.from_numpy(image), weights, graph.side is None)
    with torch.inference_mode():
        expected = probable(torch.from_numpy(image)).numpy()
    difference = float(np.abs(engines.opened(weights, 1)(image)[0] - expected).max())
    if not difference <= parity.LIMIT:
        raise UserError(
            f"the probabilities of the ONNX file differ from those of torch by {difference:.1e}, "
            f"more than {parity.LIMIT:g}; nothing was written"
        )
    rdf = description(recipe, file_hash(weights))
    members = {
        "rdf.yaml": yaml.safe_dump(rdf, sort_keys=False, allow_unicode=True).encode(),
        "README.md": _readme(recipe).encode(),
        "test_input.npy": _npy(raw),
        "test_output.npy": _npy(expected),
        "weights.onnx": weights.read_bytes(),
    }
    weights.unlink()
    with zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    own = replace(graph, file=NAME, digests={NAME: file_hash(folder / NAME)})
    return replace(recipe, graphs=(own,))


def _sample(record: Preprocess, side: int) -> tuple[Array, Array]:
    """Return a picture as it is and as the network gets it, float32 (1, C, side, side) each."""
    planes = record.channels if record.color == "rgb" or record.depth > 1 else 1
    levels = [synthetic.micrograph("two_phase", side, side, seed=s)[0] for s in range(planes)]
    plain = replace(record, crop_bottom=0, resize=None, target_pixel_size=None)
    if planes == 1:
        plane = plain.plane(readers.from_array(levels[0]))
    elif record.depth > 1:
        plane = plain.plane(readers.stacked([readers.from_array(one) for one in levels]))
    else:
        plane = plain.plane(readers.from_array(np.stack(levels, axis=2), color="rgb"))
    image = record.tensor(plane)
    raw = np.broadcast_to(np.stack(levels)[None], (1, *image.shape))
    return raw.astype(np.float32), image[None]


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def description(recipe: Recipe, sha256: str) -> dict[str, Any]:
    """Return rdf.yaml as plain values.

    Args:
        recipe: of the model.
        sha256: of weights.onnx.
    """
    (graph,) = recipe.graphs
    record, names = recipe.record, list(recipe.table.names)
    free: Any = {"min": -(-LEAST // graph.multiple) * graph.multiple, "step": graph.multiple}

    def space(axis: str) -> dict[str, Any]:
        return {"type": "space", "id": axis, "size": graph.side or free}

    def seen(axis: str) -> dict[str, Any]:
        size = {"tensor_id": INPUT, "axis_id": axis, "offset": 0}
        return {"type": "space", "id": axis, "size": size, "halo": HALO}

    batch: dict[str, Any] = {"type": "batch"}
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": f"{graph.decoder} on {graph.encoder} for micrographs",
        "description": f"Semantic segmentation of micrographs: {', '.join(names)}",
        "documentation": "README.md",
        "tags": ["semantic-segmentation", "micrographs", "materials-science", "2d"],
        "inputs": [
            {
                "id": INPUT,
                "axes": [
                    batch,
                    {"type": "channel", "channel_names": _channels(record)},
                    space("y"),
                    space("x"),
                ],
                "data": {"type": "float32"},
                "test_tensor": {"source": "test_input.npy"},
                "preprocessing": steps(record),
            }
        ],
        "outputs": [
            {
                "id": OUTPUT,
                "description": "probabilities of the classes",
                "axes": [
                    batch,
                    {"type": "channel", "channel_names": [_identifier(n) for n in names]},
                    seen("y"),
                    seen("x"),
                ],
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": {"source": "test_output.npy"},
            }
        ],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": sha256, "opset_version": OPSET}},
    }


def _channels(record: Preprocess) -> list[str]:
    if record.depth > 1:
        return [f"frame{number}" for number in range(1, record.depth + 1)]
    if record.color == "rgb":
        return ["red", "green", "blue"]
    return ["gray"] if record.channels == 1 else [f"gray{n}" for n in range(1, record.channels + 1)]


def _identifier(name: str) -> str:
    """Return a class name as the format takes names of channels."""
    word = "".join(char if char.isalnum() else "_" for char in name.strip())
    return word if word[:1].isalpha() else f"class_{word}"


def steps(record: Preprocess) -> list[dict[str, Any]]:
    """Return how grey levels become the input, in the steps that the format has.

    Args:
        record: of the model; only window, mean and std are told.
    """
    # Frames have a window each, colours one together.
    axes = ["y", "x"] if record.depth > 1 else ["channel", "y", "x"]
    window: list[dict[str, Any]]
    if record.window == "standard":
        width = 2 * STANDARD_HALF_WIDTH
        window = [
            {"id": "zero_mean_unit_variance", "kwargs": {"axes": axes}},
            _linear(1 / width, 0.5),
        ]
    elif record.window == "percentile":
        ends = {"min_percentile": record.low, "max_percentile": record.high}
        window = [{"id": "scale_range", "kwargs": {"axes": axes, **ends}}]
    else:
        low, high = (record.low, record.high) if record.window == "fixed" else (0.0, 255.0)
        window = [_linear(1 / (high - low), -low / (high - low))]
    # As data/levels.py:windowed: up to half the window's width beyond its ends.
    beyond = {"id": "clip", "kwargs": {"min": -0.5, "max": 1.5}}
    gain = [1 / std for std in record.std]
    offset = [-mean / std for mean, std in zip(record.mean, record.std, strict=True)]
    if len(gain) == 1:
        return [*window, beyond, _linear(gain[0], offset[0])]
    each = {"axis": "channel", "gain": gain, "offset": offset}
    return [*window, beyond, {"id": "scale_linear", "kwargs": each}]


def _linear(gain: float, offset: float) -> dict[str, Any]:
    return {"id": "scale_linear", "kwargs": {"gain": gain, "offset": offset}}


def _readme(recipe: Recipe) -> str:
    """Return the page of the package."""
    (graph,), record = recipe.graphs, recipe.record
    found = recipe.parity
    decision = ""
    if recipe.threshold is not None:
        second = recipe.table.names[1]
        decision = (
            f"; matssl itself takes {second} where its probability before the temperature is "
            f"above {recipe.threshold:g}"
        )
    if recipe.factors:
        told = ", ".join(f"{f:g}" for f in recipe.factors)
        decision = f"; matssl itself multiplies them by {told} before it decides"
    heat = graph.temperature
    return README.format(
        title=f"{graph.decoder} on {graph.encoder}",
        classes=", ".join(recipe.table.names),
        source=Path(recipe.source).name,
        unsaid="\n".join(f"- {line}" for line in unsaid(record)),
        temper="not calibrated" if heat == 1 else f"calibrated by a temperature of {heat:g}",
        decision=decision,
        parity=f"probabilities differ by {found['largest_difference_of_probabilities']:.1e} at "
        f"most, {found['labels_changed']} of {found['pixels']} labels",
    )


def unsaid(record: Preprocess) -> list[str]:
    """Return what rdf.yaml cannot say of a record, in sentences."""
    told = []
    if record.window in ("standard", "percentile"):
        told.append(
            "Grey levels are measured on the whole micrograph. A program that prepares each tile "
            "for itself gets other levels, and other labels."
        )
    if record.window == "dtype":
        told.append(
            "The levels 0 to 255 become 0 to 1. Divide pictures of 16 bits by 257 before, those of "
            "12 bits by 16.06."
        )
    if record.crop_bottom == "auto":
        told.append("An information bar is to be cut off first; its grey levels count otherwise.")
    elif record.crop_bottom:
        told.append(f"The lowest {record.crop_bottom} rows, an information bar, are to be cut off.")
    if record.target_pixel_size is not None:
        told.append(
            f"The network saw pixels of {record.target_pixel_size:g} nm: resize micrographs to "
            "that, by area averaging where they shrink."
        )
    if record.resize is not None:
        told.append(f"The network saw whole pictures resized to {record.resize} pixels a side.")
    if record.color == "gray":
        told.append("Pictures in colour become grey by their luminance.")
    if record.channels > 1 and record.depth == 1 and record.color == "gray":
        told.append(f"The grey picture is repeated in {record.channels} channels.")
    if record.depth > 1:
        told.append(
            f"The {record.depth} channels are frames that follow each other, the earliest first; "
            "the classes are those of the middle one."
        )
    return told
