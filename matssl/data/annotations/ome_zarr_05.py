"""OME-Zarr of NGFF 0.5 (Zarr 3): read as :mod:`matssl.data.annotations.ome_zarr` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from matssl.data.annotations import ome_zarr
from matssl.data.annotations.drawing import Marked
from matssl.data.annotations.ome_zarr import read, recognise

__all__ = ["read", "recognise", "write"]


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as label images of NGFF 0.5; see :func:`ome_zarr.write`."""
    ome_zarr.write_version(folder, pictures, names, "0.5")
