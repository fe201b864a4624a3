"""Exported networks where they compute: onnxruntime or OpenVINO in the place of torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.blending import blended, softmax
from matssl.core.damage import Damaged
from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.trained.member import Maps, room

Pixels = NDArray[np.float32]
# Input (N, C, H, W) to the outputs of a file.
Run = Callable[[Pixels], Sequence[Pixels]]


@dataclass(frozen=True)
class Exported:
    """An exported network; an :class:`matssl.trained.member.Engine` without torch.

    Attributes:
        run: normalised tiles to logits, (N, C, h, w) to (N, K, h, w).
        multiple: sides of tiles are multiples of it.
        side: of the square tiles it takes where it takes no others; None: every multiple.
        encoder: the same tiles to the maps of the encoder; None where they were not exported.
        source: path, for messages.
    """

    run: Run
    multiple: int
    side: int | None
    encoder: Run | None
    source: str

    @property
    def whole(self) -> bool:
        """Whether it looks at filters of the whole picture: no exported network does."""
        return False

    @property
    def is_forest(self) -> bool:
        """Whether it is a forest: no exported network is."""
        return False

    @property
    def maps(self) -> Maps | None:
        """The maps of its encoder; None where they were not exported, or are of one size alone."""
        encoder = self.encoder
        if encoder is None or self.side is not None:
            return None
        return Maps(lambda image: [level[0] for level in encoder(image[None])], self.multiple)

    def probabilities(
        self,
        image: Pixels,
        num_classes: int,
        *,
        tile_size: int | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 1,
        scratch: Path | None = None,
    ) -> Pixels:
        """Return class probabilities of an image, (num_classes, H, W).

        Args:
            image: normalised, float32 (C, H, W).
            num_classes: channels of the logits.
            tile_size: see :func:`matssl.tiles.plan`.
            overlap: see :func:`matssl.tiles.plan`.
            tta: average over the eight orientations of the image; eight times the time.
            batch_size: tiles computed at once.
            scratch: folder for a file that holds the result where it would crowd the memory; None
                keeps it in memory.

        Raises:
            UserError: tiles of a size that the network does not take.
            Damaged: it does not give logits of so many classes.
        """
        if self.side is not None and tile_size not in (None, self.side):
            raise UserError(
                f"{self.source} was exported for tiles of {self.side} pixels; leave --tile_size out"
            )

        def probabilities(tiles: Pixels) -> Pixels:
            logits = np.asarray(self.run(tiles)[0], np.float32)
            wanted = (len(tiles), num_classes, *tiles.shape[2:])
            if logits.shape != wanted:
                raise Damaged(f"{self.source} gives an array {logits.shape}, not {wanted}")
            return softmax(logits if logits.flags.writeable else logits.copy())

        return blended(
            probabilities,
            image,
            tile_size=tile_size or self.side,
            overlap=overlap,
            multiple=self.multiple,
            tta=tta,
            batch=batch_size,
            out=room(scratch, (num_classes, *image.shape[1:])),
        )


def opened(path: Path, threads: int) -> Run:
    """Return what a network file computes.

    Args:
        path: an .onnx or .xml file.
        threads: CPU threads.

    Raises:
        UserError: a kind of file that nothing here computes, or whose library is not installed.
        Damaged: its library does not take it.
    """
    kind = path.suffix.lower()
    if kind not in OPENERS:
        raise UserError(
            f"{path} is no network that runs without torch; export it with --to onnx or openvino"
        )
    return OPENERS[kind](path, threads)


def later(path: Path, threads: int) -> Run:
    """Return what a network file computes; it is opened when it is asked for the first time."""
    ready: list[Run] = []

    def run(tiles: Pixels) -> Sequence[Pixels]:
        if not ready:
            ready.append(opened(path, threads))
        return ready[0](tiles)

    return run


def library(path: Path) -> str:
    """Return the name and version of what computes a network file, for people.

    Raises:
        UserError: see :func:`opened`.
    """
    name = "onnxruntime" if path.suffix.lower() == ".onnx" else "openvino"
    return f"{name} {str(_library(name, path).__version__).partition('-')[0]}"


def _onnx(path: Path, threads: int) -> Run:
    runtime = _library("onnxruntime", path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Warnings about the graph are for those who exported it.
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refused(path, error) from error
    name = session.get_inputs()[0].name

    def run(tiles: Pixels) -> Sequence[Pixels]:
        return session.run(None, {name: tiles})

    return run


def _openvino(path: Path, threads: int) -> Run:
    library = _library("openvino", path)
    # By themselves, processors that multiply in bfloat16 would, and masks would differ.
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = library.Core().compile_model(str(path), "CPU", options)
    except Exception as error:
        raise _refused(path, error) from error
    request = compiled.create_infer_request()

    def run(tiles: Pixels) -> Sequence[Pixels]:
        found = request.infer({0: tiles})
        # Its own memory, which the next tile would overwrite.
        return [np.array(found[output]) for output in compiled.outputs]

    return run


OPENERS: dict[str, Callable[[Path, int], Run]] = {".onnx": _onnx, ".xml": _openvino}


def _library(name: str, path: Path) -> ModuleType:
    """Return a library that computes.

    Raises:
        UserError: it is not installed.
    """
    try:
        found: Any = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{path} needs the package {name}: pip install matssl[runtime]") from error
    return found


def _refused(path: Path, error: Exception) -> Damaged:
    told = cut(str(error).strip().split("\n")[0])
    return Damaged(f"{path} is incomplete or damaged: {told}")
