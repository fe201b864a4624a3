"""How a micrograph becomes what the network sees: one record, applied in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import (
    STRIP,
    Array,
    percentiles,
    roomy,
    strips,
    variance,
)
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import cut
from matssl.data import readers, stored
from matssl.data.bars import upper_part
from matssl.data.levels import rescaled, summed, windowed
from matssl.data.readers import Micrograph
from matssl.data.readers.orientation import UPRIGHT
from matssl.data.readers.planes import FLOAT_BITS
from matssl.data.specimens import sequences

# A window of mean -/+ 3 standard deviations shows nearly all grey levels of an image.
STANDARD_HALF_WIDTH = 3.0
# Defaults of --low and --high.
LEVELS = (0.5, 99.5)
# Fields of the files and the command at hand.
UNSTORED = ("sizes", "bars", "neighbours", "given")
WINDOWS = ("percentile", "dtype", "standard", "fixed")


@dataclass(frozen=True)
class Preprocess:
    """The record that every checkpoint carries; it alone decides what evaluation does.

    Attributes:
        color: "gray" or "rgb".
        window: grey levels sent to 0 and 1: "percentile" (low, high in percent, of each image),
            "dtype" (full range of the significant bits), "standard" (mean -/+ 3 standard
            deviations of each image) or "fixed" (low, high are grey values).
        low: see window.
        high: see window.
        crop_bottom: rows of an information bar to leave out, or "auto".
        resize: side in pixels of a square resize, None for native resolution.
        target_pixel_size: nm; images of known pixel size are rescaled to it.
        pixel_size: nm; what the user said the pixels are, for all images.
        mean: of the planes, one value per channel of the plane.
        std: of the planes, one value per channel of the plane.
        channels: input channels of the network, 1 or 3; those of ``depth`` where that is above 1.
        depth: frames of a sequence that are read as channels, the picture itself in the middle; 1
            for single pictures. Each has a window of its own, and one mean and std serve all.
        page: of TIFF files that have several, counted from 1; None for the largest, of equal ones
            the deepest, of those the first.
        sizes: nm, of single images, as a table says; beats ``pixel_size``. Of the files at hand and
            not of how they are read: it is neither compared nor stored.
        bars: rows of the information bars of single images, judged together with the others of
            their size (:func:`matssl.data.bars.judge`); acts with "auto". As ``sizes``, it is
            neither compared nor stored.
        neighbours: of single frames, themselves in the middle; as ``sizes``, neither compared nor
            stored. The folder tells those of others (:func:`sequences.around`).
        given: mean and std that a file says, which nothing measured replaces; of the command and
            not of the record, which has them as ``mean`` and ``std``.
    """

    color: str = "gray"
    window: str = "standard"
    low: float = 0.5
    high: float = 99.5
    crop_bottom: int | str = 0
    resize: int | None = None
    target_pixel_size: float | None = None
    pixel_size: float | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    channels: int = 1
    page: int | None = None
    depth: int = 1
    sizes: Mapping[Path, float] = field(default_factory=dict, compare=False, repr=False)
    bars: Mapping[Path, int] = field(default_factory=dict, compare=False, repr=False)
    neighbours: Mapping[Path, tuple[Path, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )
    given: tuple[tuple[float, ...], tuple[float, ...]] | None = field(
        default=None, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.window not in WINDOWS:
            raise ValueError(f"its window is none of {', '.join(WINDOWS)}: {self.window!r:.40}")
        if self.crop_bottom != "auto" and int(self.crop_bottom) < 0:
            raise UserError(f"--crop_bottom must be 0 or more, not {self.crop_bottom}")
        if self.window in ("percentile", "fixed") and not self.low < self.high:
            raise UserError(f"--low {self.low} must be below --high {self.high}")
        if self.window == "percentile" and not (0 <= self.low and self.high <= 100):
            raise UserError("--low and --high are percentiles and lie between 0 and 100")
        if self.channels == 1 and self.color == "rgb":
            raise UserError("--color rgb needs --in_channels 3")

    def read(self, path: Path | str) -> Micrograph:
        """Return the micrograph in a file, with its neighbours where the record has a depth.

        Raises:
            UserError: one of them cannot be read, or has another size or type.
        """
        if self.depth == 1:
            return self.frame(path)
        near = self.near(path)
        opened = {one: self.frame(one) for one in dict.fromkeys(near)}
        return readers.stacked([opened[one] for one in near])

    def near(self, path: Path | str) -> tuple[Path, ...]:
        """Return a picture with its neighbours, the earliest first."""
        return self.neighbours.get(Path(path)) or sequences.around(Path(path), self.depth)

    def frame(self, path: Path | str) -> Micrograph:
        """Return the micrograph in a file with the record's page, colour rule and pixel size."""
        page = None if self.page is None else self.page - 1
        micrograph = readers.read(path, page=page, color=self.color)
        size = self.sizes.get(Path(path))
        if size is None:
            return readers.with_pixel_size(micrograph, self.pixel_size)
        return readers.with_pixel_size(micrograph, size, "specimens.csv")

    def told(self, sizes: Mapping[Path, float]) -> Preprocess:
        """Return the record that knows the pixel sizes of these images, nm, as well."""
        return replace(self, sizes={**self.sizes, **sizes}) if sizes else self

    def knowing(self, bars: Mapping[Path, int]) -> Preprocess:
        """Return the record that knows the bars of these images, judged together, as well.

        Their neighbours have the same where they were not judged themselves.
        """
        near = {n: bars[c] for c, these in self.neighbours.items() if c in bars for n in these}
        return replace(self, bars={**near, **self.bars, **bars}) if bars else self

    def among(self, neighbours: Mapping[Path, tuple[Path, ...]]) -> Preprocess:
        """Return the record that knows the neighbours of these frames as well."""
        return replace(self, neighbours={**self.neighbours, **neighbours}) if neighbours else self

    def cutting(self, crop_bottom: str | None) -> tuple[Preprocess, str]:
        """Return the record with a command's own ``--crop_bottom``, and what that beats, in words.

        Args:
            crop_bottom: rows, "auto", "none", or None to leave the record as it is.
        """
        if crop_bottom is None:
            return self, ""
        rows = bar_rows(crop_bottom)
        if rows == self.crop_bottom:
            return self, ""
        before = "none" if self.crop_bottom == 0 else self.crop_bottom
        told = f"--crop_bottom {crop_bottom} beats the {before} that the weights were trained with"
        return replace(self, crop_bottom=rows), told

    def kept_rows(self, micrograph: Micrograph) -> int:
        """Return how many rows from the top remain when the information bar is cut off."""
        rows = micrograph.pixels.shape[0]
        if self.crop_bottom == "auto":
            known = self.bars.get(Path(micrograph.source), micrograph.bar_height)
            bar = readers.bar_height(micrograph.middle.pixels) if known is None else known
        else:
            bar = int(self.crop_bottom)
        if bar >= rows:
            raise UserError(f"--crop_bottom {bar} leaves nothing of {micrograph.source} ({rows})")
        return rows - bar

    def plane(self, micrograph: Micrograph) -> Array:
        """Return float32 (H, W) or (H, W, 3), nominally 0 to 1: cut, windowed, resized.

        Of several frames, (H, W, frames), each is windowed as if it were alone. Grey levels beyond
        the window go beyond 0 and 1, up to half its width; no level is lost.
        """
        if micrograph.frames > 1:
            cut_off = micrograph.pixels.shape[0] - self.kept_rows(micrograph)
            alone = replace(self, crop_bottom=cut_off)
            return np.stack([alone.plane(one) for one in micrograph.single], axis=2)
        pixels = micrograph.pixels[: self.kept_rows(micrograph)]
        window = self._levels(pixels, micrograph.bits)
        shape = self._shape(pixels.shape, micrograph)
        if len(pixels) <= STRIP:
            return rescaled(windowed(pixels, window), shape)
        plane = roomy(pixels.shape, np.float32)
        for rows in strips(len(pixels)):
            plane[rows] = windowed(pixels[rows], window)
        return rescaled(plane, shape)

    def plane_u8(self, micrograph: Micrograph) -> NDArray[np.uint8]:
        """Return the plane in 256 levels, for the pool of pretraining."""
        pixels = micrograph.pixels[: self.kept_rows(micrograph)]
        if micrograph.frames > 1 or self._shape(pixels.shape, micrograph) != pixels.shape[:2]:
            return quantise(self.plane(micrograph))
        window = self._levels(pixels, micrograph.bits)
        result = roomy(pixels.shape, np.uint8)
        for rows in strips(len(pixels)):
            result[rows] = quantise(windowed(pixels[rows], window))
        return result

    def mask(self, mask: Array, micrograph: Micrograph) -> Array:
        """Return a mask of the micrograph with the same cut and the nearest-neighbour resize.

        Raises:
            UserError: see :meth:`fitted`.
        """
        cut = self.fitted(mask, micrograph)
        shape = self._shape(cut.shape, micrograph)
        if cut.shape[:2] == shape:
            return cut
        return cv2.resize(cut, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def fitted(self, mask: Array, micrograph: Micrograph) -> Array:
        """Return the rows of a mask that belong to the micrograph above its bar, at native size.

        A mask may be as high as the image, as the image without its bar, or the upper part of it:
        of its width, with up to a fifth fewer rows. Rows that it lacks are ignored pixels.

        Raises:
            UserError: mask and image differ otherwise.
        """
        rows, columns = micrograph.pixels.shape[:2]
        kept = self.kept_rows(micrograph)
        fits = mask.shape[:2] in ((rows, columns), (kept, columns))
        if not fits and not upper_part(mask.shape, (rows, columns)):
            raise UserError(
                f"{micrograph.source} is {columns} x {rows} pixels and its mask "
                f"{mask.shape[1]} x {mask.shape[0]}; they must be equal{_turned(mask, micrograph)}"
            )
        if len(mask) >= kept:
            return mask[:kept]
        whole = np.full((kept, *mask.shape[1:]), IGNORE, mask.dtype)
        whole[: len(mask)] = mask
        return whole

    def shown(self, plane: Array) -> Array:
        """Return of a plane what people look at: of several frames the middle one."""
        return plane if self.depth == 1 or plane.ndim == 2 else plane[..., plane.shape[2] // 2]

    def tensor(self, plane: Array) -> NDArray[np.float32]:
        """Return the normalised input of the network, float32 (channels, H, W), contiguous.

        Args:
            plane: (H, W), (H, W, 3) or (H, W, frames), float from :meth:`plane` or uint8 from
                :meth:`plane_u8`.
        """
        if len(plane) > STRIP:
            whole = roomy((self.channels, *plane.shape[:2]), np.float32)
            for rows in strips(len(plane)):
                whole[:, rows] = self.tensor(plane[rows])
            return whole
        if plane.dtype == np.uint8:
            plane = plane.astype(np.float32) * np.float32(1 / 255)
        stack = plane[None] if plane.ndim == 2 else np.moveaxis(plane, 2, 0)
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        result = (stack - mean) * (1 / std)
        if len(result) != self.channels:
            result = np.repeat(result[:1], self.channels, axis=0)
        return np.ascontiguousarray(result, dtype=np.float32)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for a checkpoint."""
        values = asdict(replace(self, sizes={}, bars={}, neighbours={}))
        # Records that name no page or no depth stay what they were before there were any.
        plain = {"page": None, "depth": 1}
        for name in [*UNSTORED, *(name for name in plain if values[name] == plain[name])]:
            del values[name]
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Preprocess:
        """Return the record that :meth:`to_dict` wrote.

        Raises:
            UserError: a newer version wrote it.
            KeyError, TypeError, ValueError: nobody wrote it.
        """
        if not isinstance(values, Mapping):
            raise TypeError("its record of the preprocessing is no table")
        known = {f.name for f in fields(Preprocess)} - set(UNSTORED)
        unknown = set(values) - known
        if unknown:
            told = cut(", ".join(sorted(map(str, unknown))), 80)
            raise UserError(
                f"the preprocessing record has unknown entries {told}; it comes from a newer "
                "version, update matssl"
            )
        defaults = {f.name: f.default for f in fields(Preprocess) if f.name in known}
        whole = defaults | dict(values)
        stored.check_preprocessing(whole)
        return Preprocess(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @staticmethod
    def chosen(
        *,
        channels: int,
        color: str = "gray",
        window: str = "standard",
        low: float = LEVELS[0],
        high: float = LEVELS[1],
        crop_bottom: str = "auto",
        target_pixel_size: str | None = None,
        pixel_size: str | None = None,
        resize: int | None = None,
        page: int | None = None,
        depth: int = 1,
    ) -> Preprocess:
        """Return the record that flags of these names ask for, before mean and std are measured.

        Args:
            channels: see the record.
            color: see the record.
            window: see the record.
            low: acts with the windows "percentile" and "fixed" only.
            high: as ``low``.
            crop_bottom: a number of rows, "auto" or "none".
            target_pixel_size: with its unit, such as "50nm".
            pixel_size: of all images, with its unit.
            resize: see the record.
            page: see the record.
            depth: see the record.

        Raises:
            UserError: a value that is none, or that has no effect.
        """
        if window in ("standard", "dtype") and (low, high) != LEVELS:
            raise UserError("--low and --high act with --window percentile or fixed")
        return Preprocess(
            color=color,
            window=window,
            low=low,
            high=high,
            crop_bottom=bar_rows(crop_bottom),
            resize=resize,
            target_pixel_size=readers.parse_pixel_size(target_pixel_size),
            pixel_size=readers.parse_pixel_size(pixel_size),
            channels=channels,
            page=page,
            depth=depth,
        )

    def _levels(self, pixels: Array, bits: int) -> tuple[float, float]:
        """Return the grey values that become 0 and 1; never equal."""
        if self.window == "fixed":
            return self.low, self.high
        if self.window == "dtype":
            # Whole numbers may be kept as float32 too, where uint16 cannot hold them.
            floating = pixels.dtype == np.float32 and bits == FLOAT_BITS
            return (0.0, 1.0) if floating else (0.0, float((1 << bits) - 1))
        if self.window == "standard":
            mean, std = float(pixels.mean(dtype=np.float64)), float(np.sqrt(variance(pixels)))
            low, high = mean - STANDARD_HALF_WIDTH * std, mean + STANDARD_HALF_WIDTH * std
        else:
            low, high = percentiles(pixels, (self.low, self.high))
        # A constant image has no contrast to show; any width keeps it finite. Levels of floats may
        # be so large that half a level is none.
        half = max(0.5, 1e-6 * abs(low))
        return (low, high) if high > low else (low - half, low + half)

    def _shape(self, shape: tuple[int, ...], micrograph: Micrograph) -> tuple[int, int]:
        if self.resize is not None:
            return self.resize, self.resize
        if self.target_pixel_size is None:
            return shape[0], shape[1]
        if micrograph.pixel_size is None:
            raise UserError(
                f"--target_pixel_size needs the pixel size of {micrograph.source}, which its "
                "metadata does not tell; give --pixel_size"
            )
        scale = micrograph.pixel_size / self.target_pixel_size
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def bar_rows(crop_bottom: str) -> int | str:
    """Return what a ``--crop_bottom`` means: a number of rows, or "auto".

    Raises:
        UserError: it is neither, nor "none".
    """
    if crop_bottom == "auto":
        return crop_bottom
    if crop_bottom == "none":
        return 0
    if not (crop_bottom.isascii() and crop_bottom.isdigit()):
        raise UserError(
            f"--crop_bottom must be a number of rows, auto or none, not {crop_bottom!r}"
        )
    return int(crop_bottom)


def quantise(plane: Array) -> NDArray[np.uint8]:
    """Return a float plane, clipped to 0 and 1, in 256 levels."""
    if len(plane) <= STRIP:
        return np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8)
    result = roomy(plane.shape, np.uint8)
    for rows in strips(len(plane)):
        result[rows] = quantise(plane[rows])
    return result


def measure(record: Preprocess, planes: Iterable[Array]) -> Preprocess:
    """Return the record with mean and standard deviation over all pixels of the planes.

    Args:
        record: its own mean and std are ignored; those it was given count, and nothing is measured.
        planes: float 0..1 or uint8, (H, W) or (H, W, 3).
    """
    if record.given is not None:
        # One pair of numbers serves all frames.
        means, stds = (x * (record.depth if len(x) == 1 else 1) for x in record.given)
        return replace(record, mean=means, std=stds)
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for plane in planes:
        # Frames are pictures of one kind, colours are not.
        each = plane.shape[2] if plane.ndim == 3 and record.depth == 1 else 1
        flat = np.ascontiguousarray(plane).reshape(-1, each)
        count += len(flat)
        total = total + summed(flat, 1)
        squares = squares + summed(flat, 2)
    if count == 0:
        raise ValueError("no planes to measure")
    mean = total / count
    # A set of constant images has no spread; 1e-3 keeps the division finite.
    std = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), 1e-3)
    means, stds = (tuple(values.tolist()) * record.depth for values in (mean, std))
    return replace(record, mean=means, std=stds)


def _turned(mask: Array, micrograph: Micrograph) -> str:
    """Return the end of a sentence on a mask that lies as a turned picture is stored."""
    rows, columns = micrograph.pixels.shape[:2]
    if micrograph.turned == UPRIGHT or mask.shape[:2] != (columns, rows):
        return ""
    return (
        f" (the file's EXIF orientation {micrograph.turned} turns the picture upright, the mask is "
        "drawn on the picture as it is stored: turn the mask)"
    )
