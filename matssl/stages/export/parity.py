"""Whether an exported network says what torch says: probabilities and labels side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.data import readers, synthetic
from matssl.data.preprocess import Preprocess
from matssl.trained.segmenter import opened

# Largest difference of a probability, and largest share of labels that differ.
LIMIT = 1e-4
# Heights and widths of the synthetic pictures: one in a single tile, one in a row of two, both of
# sides that no example of an export has.
SIZES = ((288, 416), (320, 704))
Predicting = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        largest: difference of a probability.
        changed: pixels whose most likely class is another.
        pixels: all that were compared.
        pictures: names of the pictures.
    """

    largest: float
    changed: int
    pixels: int
    pictures: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the labels that differ."""
        return self.changed / self.pixels

    @property
    def holds(self) -> bool:
        """Whether both differences are within :data:`LIMIT`."""
        return self.largest <= LIMIT and self.share <= LIMIT

    def text(self) -> str:
        """Return the measurement in words."""
        return (
            f"probabilities differ by {self.largest:.1e} at most, {self.changed} of {self.pixels} "
            f"labels differ ({', '.join(self.pictures)})"
        )

    def stored(self) -> dict[str, object]:
        """Return plain values for the recipe."""
        return {
            "largest_difference_of_probabilities": self.largest,
            "labels_changed": self.changed,
            "share_of_labels_changed": self.share,
            "pixels": self.pixels,
            "pictures": list(self.pictures),
            "limit": LIMIT,
        }


def compared(
    torch_says: Predicting, file_says: Predicting, images: Iterable[tuple[str, Array]]
) -> Parity:
    """Return how far two predictors differ.

    Args:
        torch_says: normalised image, float32 (C, H, W), to probabilities (K, H, W).
        file_says: the same by the exported file.
        images: names and normalised images.
    """
    largest, changed, pixels, names = 0.0, 0, 0, []
    for name, image in images:
        expected, found = torch_says(image), file_says(image)
        difference = np.abs(expected - found).max()
        # Of a network that gives NaN nothing is alike.
        largest = max(largest, float(difference) if np.isfinite(difference) else np.inf)
        changed += int(np.count_nonzero(expected.argmax(0) != found.argmax(0)))
        pixels += expected[0].size
        names.append(name)
    return Parity(largest, changed, pixels, tuple(names))


def made(record: Preprocess) -> list[tuple[str, Array]]:
    """Return synthetic pictures as a network gets them, with their names.

    They are windowed and normalised as the record says, and neither cut nor resized: what is
    compared is the network.

    Args:
        record: of the model.
    """
    # Of a record only the window is left: of one plane, neither cut nor resized.
    alone = replace(
        record, window="standard", crop_bottom=0, resize=None, target_pixel_size=None, depth=1
    )
    planes = len(record.mean) if record.color == "rgb" else record.depth
    found = []
    for number, (height, width) in enumerate(SIZES):
        seen = [
            alone.plane(readers.from_array(picture))
            for picture in (
                synthetic.micrograph("two_phase", height, width, seed=3 * number + of)[0]
                for of in range(planes)
            )
        ]
        plane = seen[0] if planes == 1 else np.stack(seen, axis=2)
        found.append((f"synthetic {width} x {height}", record.tensor(plane)))
    return found


def read(record: Preprocess, pictures: Sequence[Path]) -> Iterator[tuple[str, Array]]:
    """Yield micrographs as a network gets them, with their names.

    Args:
        record: of the model.
        pictures: their files.
    """
    for path in pictures:
        yield path.name, record.tensor(record.plane(opened(path, record)))
