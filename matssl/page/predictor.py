"""Predictions by HTTP: one process with the models that were asked for last."""

from __future__ import annotations

import signal
import threading
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.page.workspace import Refused

# Models that the process keeps, and requests that may wait for it.
KEPT, WAITING = 2, 16
_loaded: OrderedDict[tuple[str, float], Any] = OrderedDict()


def predicted(
    model: str, picture: str, target: str, crop_bottom: str, pixel_size: str
) -> dict[str, Any]:
    """Write the mask of a picture as PNG and return what it holds; runs in the process.

    Args:
        model: checkpoint.
        picture: file.
        target: PNG file to write.
        crop_bottom: rows of an information bar; "" as in training.
        pixel_size: with its unit; "" where the file tells, or unknown.
    """
    from dataclasses import replace

    from matssl.core.run_folder import atomic_write_bytes
    from matssl.data import readers
    from matssl.measure.field import areas
    from matssl.stages.drawing import indexed_png

    try:
        segmenter = _model(model)
        if crop_bottom:
            record, _ = segmenter.record.cutting(crop_bottom)
            segmenter = replace(segmenter, record=record)
        found = segmenter.predict(picture)
    except UserError as error:
        return {"error": str(error).replace(picture, "the picture")}
    size = readers.parse_pixel_size(pixel_size) if pixel_size else found.pixel_size
    pixels = areas(found.classes, found.table.num_classes)
    atomic_write_bytes(Path(target), indexed_png(found.classes, found.table.num_classes))
    counted = max(1, int(pixels.sum()))
    height, width = found.classes.shape
    sure = float(found.probabilities.max(axis=0).mean())
    return {
        "height_px": height,
        "width_px": width,
        "bar_rows": height - found.rows,
        "pixel_size_nm": size,
        "mean_highest_probability": round(sure, 4),
        "classes": [
            {"index": i, "name": name, "pixels": int(n), "fraction": round(int(n) / counted, 6)}
            for i, (name, n) in enumerate(zip(found.names, pixels.tolist(), strict=True))
        ],
    }


def _model(path: str) -> Any:
    from matssl.trained.segmenter import Segmenter

    key = (path, Path(path).stat().st_mtime)
    if key not in _loaded:
        _loaded[key] = Segmenter.load(path)
    _loaded.move_to_end(key)
    while len(_loaded) > KEPT:
        _loaded.popitem(last=False)
    return _loaded[key]


class Predictor:
    """The process, started by the first request and again after a crash."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._waiting = 0

    def predict(
        self, model: Path, picture: Path, target: Path, crop_bottom: str, pixel_size: str
    ) -> dict[str, Any]:
        """Return what :func:`predicted` says.

        Raises:
            Refused: too many wait, the picture cannot be read, or the process broke down on it.
        """
        with self._lock:
            if self._waiting >= WAITING:
                raise Refused(503, "too many pictures wait to be predicted; ask again later")
            self._waiting += 1
            if self._pool is None:
                # Ctrl-C in the terminal is for the server, which ends the process itself.
                quiet = (signal.SIGINT, signal.SIG_IGN)
                spawn = get_context("spawn")
                self._pool = ProcessPoolExecutor(1, spawn, signal.signal, quiet)
            pool = self._pool
        try:
            words = (str(model), str(picture), str(target), crop_bottom, pixel_size)
            found = pool.submit(predicted, *words).result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = None if self._pool is pool else self._pool
            raise Refused(500, "the prediction broke down (out of memory?)") from error
        finally:
            with self._lock:
                self._waiting -= 1
        if "error" in found:
            raise Refused(422, str(found["error"]))
        return found

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None
