"""Mean and spread of grey levels as a JSON file, for trainings that are to see images alike.

The keys are those of SRPU-Model (``mean``, ``std``), whose own file is read too. Ours are of all
pixels together, and say with which window of grey levels they were taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl.core import textfiles
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import cut
from matssl.data import bars, preprocess
from matssl.data.preprocess import Preprocess

# What numbers without a window are of: grey levels divided by the end of their scale.
WHOLE_RANGE = "dtype"
# More numbers than a plane has channels are no channels.
MOST_CHANNELS = 3
# Levels of a plane lie between -0.5 and 1.5.
LEVEL, LEAST = 1.5, 1e-6
# Copies of one channel, as a stack of one frame has them.
ALIKE = 1e-6


@dataclass(frozen=True)
class Statistics:
    """What a file says.

    Attributes:
        mean: of the planes, one number or one a channel.
        std: the same.
        window: with which they were taken; None where the file does not say.
        low: of that window, where it has ends.
        high: the same.
        source: the file.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: str | None
    low: float | None
    high: float | None
    source: Path

    def given(self, record: Preprocess) -> Preprocess:
        """Return a record that has these numbers in place of measured ones.

        Raises:
            UserError: they were taken with another window, or of other channels.
        """
        window = self.window or WHOLE_RANGE
        unsaid = "" if self.window else ", since it does not say its window"
        if window != record.window:
            raise UserError(
                f"{self.source} holds mean and std of --window {window}{unsaid}; with --window "
                f"{record.window} they mean nothing: add --window {window}"
            )
        ends = {"--low": (self.low, record.low), "--high": (self.high, record.high)}
        for name, (own, asked) in ends.items():
            if window in ("percentile", "fixed") and own is not None and own != asked:
                raise UserError(f"{self.source} was taken with {name} {own:g}, not {asked:g}")
        channels = 1 if record.color == "gray" else 3
        mean, std = (self._of(values, channels) for values in (self.mean, self.std))
        return replace(record, given=(mean, std))

    def _of(self, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
        if len(values) == channels:
            return values
        if channels == 1 and max(values) - min(values) <= ALIKE:
            # One grey frame three times.
            return values[:1]
        if channels == 3 and len(values) == 1:
            return values * 3
        raise UserError(
            f"{self.source} has numbers of {len(values)} channels; images are read in "
            f"{channels} (--color)"
        )


def read_statistics(path: Path) -> Statistics:
    """Return mean and spread that a JSON file says.

    Raises:
        UserError: no such file, or numbers that no images have.
    """
    content = textfiles.read_json(path, "--statistics")
    if not isinstance(content, Mapping) or not {"mean", "std"} <= set(content):
        raise UserError(
            f"{path} says no mean and std; python -m matssl.tools.statistics writes such a file"
        )
    mean, std = (_numbers(content[name], name, path) for name in ("mean", "std"))
    if len(mean) != len(std):
        raise UserError(f"{path} has {len(mean)} means and {len(std)} deviations; write it anew")
    window = content.get("window")
    if window is not None and window not in preprocess.WINDOWS:
        raise UserError(f"{path}: its window is none of {', '.join(preprocess.WINDOWS)}")
    ends = [content.get(name) for name in ("low", "high")]
    low, high = (float(v) if isinstance(v, (int, float)) else None for v in ends)
    return Statistics(mean, std, window, low, high, path)


def _numbers(value: object, name: str, path: Path) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) > MOST_CHANNELS:
        raise UserError(
            f"{path} has {len(values)} numbers as {name}, one a row of the images and not one a "
            "channel; python -m matssl.tools.statistics measures them anew"
        )
    low = -LEVEL if name == "mean" else LEAST
    for one in values:
        number = math.nan
        if isinstance(one, (int, float)) and not isinstance(one, bool):
            number = float(one)
        # NaN lies nowhere.
        if not low <= number <= LEVEL:
            raise UserError(
                f"{path}: {cut(repr(one), 40)} is no {name} of grey levels between 0 and 1"
            )
    if not values:
        raise UserError(f"{path} has no number as {name}")
    return tuple(map(float, values))


def measured(
    record: Preprocess, pairs: Sequence[tuple[Path, Path | None]]
) -> tuple[Preprocess, dict[str, object]]:
    """Return the record with mean and spread of all pixels of images, and what a file says of them.

    Args:
        record: how they are read.
        pairs: images with their masks, which say where an information bar begins.

    Raises:
        UserError: an image cannot be read; none stands for an absent one.
    """
    judged = bars.of_pairs(pairs, record.read, record.crop_bottom)
    record = record.knowing(judged.rows)
    pixels = 0

    def planes() -> Iterator[Array]:
        nonlocal pixels
        for image, _ in pairs:
            plane = record.plane(record.read(image))
            pixels += plane.shape[0] * plane.shape[1]
            yield plane

    found = preprocess.measure(record, planes())
    content: dict[str, object] = {"mean": list(found.mean), "std": list(found.std)}
    content |= {"window": record.window, "color": record.color}
    if record.window in ("percentile", "fixed"):
        content |= {"low": record.low, "high": record.high}
    return found, {**content, "images": len(pairs), "pixels": pixels}


def write(content: Mapping[str, object], path: Path) -> None:
    """Write such a file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
