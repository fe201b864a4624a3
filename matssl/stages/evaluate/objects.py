"""Objects of the masks against predicted ones: which classes are objects, and what they come to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data import readers
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable
from matssl.metrics import matching, shapes, surface
from matssl.metrics.matching import LEAST_PIXELS, Matched

NONE = "none"
# What the report shows of a class, and what it is called there.
SHOWN = {
    "true": "true objects",
    "predicted": "predicted",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "pq": "panoptic quality",
    "count_error": "count error",
    "size_error": "size error",
    "ks": "KS distance of sizes",
    "hausdorff_95_mean": "Hausdorff 95",
    "union_iou_mean": "union IoU",
}
NOTE = (
    "An object is an 8-connected part of a class. A true and a predicted one are the same where "
    "their IoU is at least 0.5, the best pairs first, each object once. F1 = 2 matches / (true + "
    "predicted); panoptic quality = sum of the matches' IoU over the same mean. Count error and "
    "size error (mean diameter of the circle of equal area) are relative to the truth; sizes leave "
    "out objects cut by the field's edge. KS: largest distance between the two cumulative size "
    "distributions. Hausdorff 95: 95th percentile of the distances between the borders, mean over "
    "images. Union IoU: unet-compare's IOU mean, image by image; it cannot see merged objects. Not "
    "in these numbers: an interval, and objects that touch in the mask, which are one there."
)


@dataclass(frozen=True)
class OneField:
    """What was compared of one class in one image.

    Attributes:
        matched: objects, and which of them are the same.
        hausdorff: 95th percentile of the distances between borders in pixels; NaN without borders.
    """

    matched: Matched
    hausdorff: float


class Seen:
    """What the parts of each class are like, mask by mask."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.found: list[tuple[shapes.Shape, ...]] = []

    def look(self, mask: NDArray[np.uint8]) -> None:
        """Take a mask into account, class indices (H, W)."""
        self.found.append(shapes.shapes(mask, len(self.names)))

    def chosen(self, objects: str | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the classes that are objects, and what is to be said of them.

        Args:
            objects: ``--objects``: names between commas, "none", or None: as the masks show.

        Raises:
            UserError: a name that the model does not know.
        """
        if objects is not None:
            words = [word.strip() for word in objects.split(",") if word.strip()]
            if words == [NONE]:
                return (), ()
            if not words or not set(words) <= set(self.names):
                raise UserError(
                    f"--objects {objects}: the model knows {', '.join(self.names)}; name some of "
                    "them, or none"
                )
            return tuple(sorted({self.names.index(word) for word in words})), ()
        if not self.found:
            return (), ()
        every = shapes.together(self.found)
        kinds = tuple(i for i, shape in enumerate(every) if shape.objects)
        if not kinds:
            return (), ()
        parts = ", ".join(f"{self.names[i]} ({every[i].parts:,} parts)" for i in kinds)
        return kinds, (f"objects matched one by one: {parts}, as the masks show",)


def of_masks(pairs: Sequence[Pair], table: ClassTable) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the classes that are objects in the masks of a folder, and what is to be said of them.

    Masks that cannot be read are left to those who work on them one by one.

    Args:
        pairs: images with their masks.
        table: what the masks mean.
    """
    seen = Seen(table.names)
    for pair in pairs:
        if pair.mask is not None:
            with contextlib.suppress(UserError):
                seen.look(table.decode(readers.read_mask(pair.mask), str(pair.mask)))
    return seen.chosen(None)


def compared(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], kinds: Sequence[int]
) -> dict[int, OneField]:
    """Return the comparison of each class that is objects, in one image.

    Args:
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        prediction: class indices, same shape.
        kinds: the classes.
    """
    return {
        kind: OneField(
            matching.match(truth, prediction, kind),
            surface.hausdorff_95(truth, prediction, kind),
        )
        for kind in kinds
    }


def numbers(fields: Sequence[OneField], pixel_sizes: Sequence[float | None]) -> dict[str, Any]:
    """Return what one class comes to over several images, as plain values.

    Lengths are nm where every image has a pixel size, else pixels; ``unit`` says which.

    Args:
        fields: of the class.
        pixel_sizes: nm, None where unknown.
    """
    known = [size for size in pixel_sizes if size is not None]
    scales = known if len(known) == len(fields) else [1.0] * len(fields)
    matched = [one.matched for one in fields]
    far = np.array([one.hausdorff * s for one, s in zip(fields, scales, strict=True)])
    far = np.sort(far[np.isfinite(far)])
    union, undefined = matching.union_iou(matched)
    return {
        "fields": len(fields),
        **matching.scores(matched),
        **matching.sizes(matched, [scale**2 for scale in scales]),
        "unit": "nm" if scales is known else "px",
        "hausdorff_95_mean": float(far.mean()) if len(far) else float("nan"),
        "hausdorff_95_undefined": len(fields) - len(far),
        "union_iou_mean": union,
        "union_iou_undefined": undefined,
    }


def summary(
    images: Sequence[Mapping[int, OneField]],
    pixel_sizes: Sequence[float | None],
    names: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Return the numbers of every class that is objects, by its name.

    Args:
        images: of each scored image.
        pixel_sizes: nm, None where unknown.
        names: of the classes.
    """
    return {names[kind]: numbers([one[kind] for one in images], pixel_sizes) for kind in images[0]}


def cells(
    one: Mapping[int, OneField], pixel_size: float | None, names: Sequence[str]
) -> dict[str, object]:
    """Return what one image gives to its line of per_image.csv."""
    row: dict[str, object] = {}
    for kind, field in one.items():
        found = numbers([field], [pixel_size])
        unit = found["unit"]
        kept = {
            "objects true": found["true"],
            "objects predicted": found["predicted"],
            "objects matched": found["matched"],
            "object precision": found["precision"],
            "object recall": found["recall"],
            "object F1": found["f1"],
            "panoptic quality": found["pq"],
            "count error": found["count_error"],
            f"mean diameter true {unit}": found["true_mean_diameter"],
            f"mean diameter predicted {unit}": found["predicted_mean_diameter"],
            "size KS distance": found["ks"],
            f"Hausdorff 95 {unit}": found["hausdorff_95_mean"],
            "union IoU": found["union_iou_mean"],
        }
        row |= {f"{name} {names[kind]}": value for name, value in kept.items()}
    return row


def rows(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return the table of the report, one row a class."""
    table = []
    for name, found in summary.items():
        row: dict[str, object] = {"class": name}
        for key, title in SHOWN.items():
            value = found[key]
            if key == "hausdorff_95_mean":
                title = f"{title} in {found['unit']}"
                value = "" if np.isnan(value) else f"{value:.1f}"
            elif key.endswith("_error"):
                value = "" if np.isnan(value) else f"{100 * value:+.1f} %"
            row[title] = value
        table.append(row)
    return table


def notes(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is to be known of the table: the rule, and what was left out."""
    said = [NOTE]
    for name, found in summary.items():
        dropped = found["dropped_true"], found["dropped_predicted"]
        if any(dropped):
            said.append(
                f"{name}: {dropped[0]} true and {dropped[1]} predicted parts below "
                f"{LEAST_PIXELS} px are no objects here."
            )
        if found["union_iou_undefined"]:
            said.append(
                f"{name}: in neither mask nor prediction of {found['union_iou_undefined']} of "
                f"{found['fields']} images; its union IoU is undefined there and left out."
            )
    return " ".join(said)
