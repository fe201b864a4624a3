"""Pipelines of albumentations on crops and their masks, read from what ``A.save`` wrote.

albumentations (Buslaev et al. 2020, Information 11, 125; here the last release under the MIT
licence, 2.0.8) changes the crops; where they are cut, and what is drawn, stays ours: a crop's
changes follow from its own generator alone, so that any number of workers gives the same bits.
"""

from __future__ import annotations

import copy
import math
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import textfiles
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import cut

CLASS = "__class_fullname__"
# Transforms that hold others, and what their entries may say beside them.
COMPOSITIONS: dict[str, tuple[str, ...]] = {
    "Compose": ("p",),
    "Sequential": ("p",),
    "OneOf": ("p",),
    "OneOrOther": ("p",),
    "SomeOf": ("p", "n", "replace"),
    "RandomOrder": ("p", "n", "replace"),
}
# Of a Compose: what would bring in something that a crop does not have.
TARGETS = ("bbox_params", "keypoint_params", "additional_targets")
# Of a Compose: how albumentations checks or draws, which is settled here.
SETTLED = ("is_check_shapes", "strict", "mask_interpolation", "seed", "save_applied_params")
_BOXES = "needs boxes, which a crop does not have"
_OTHERS = "needs other pictures"
_VALUES = (
    "changes the type or the scale of the grey levels, which --window and the network's "
    "normalisation settle"
)
# Transforms that cannot act on a crop and its mask, and why.
REFUSED = {
    "Lambda": "holds a function of Python, which no file can carry",
    "TextImage": "needs text and a font",
    "OverlayElements": _OTHERS,
    "Mosaic": _OTHERS,
    "FDA": _OTHERS,
    "HistogramMatching": _OTHERS,
    "PixelDistributionAdaptation": _OTHERS,
    "TemplateTransform": _OTHERS,
    "BBoxSafeRandomCrop": _BOXES,
    "RandomSizedBBoxSafeCrop": _BOXES,
    "AtLeastOneBBoxRandomCrop": _BOXES,
    "RandomCropNearBBox": _BOXES,
    "Normalize": _VALUES,
    "ToFloat": _VALUES,
    "FromFloat": _VALUES,
    "ToRGB": _VALUES,
    "ToTensorV2": _VALUES,
    "ToTensor3D": _VALUES,
    "Morphological": "grows and shrinks classes by their numbers",
    "ReplayCompose": "records what it drew; save it as Compose",
    "SelectiveChannelTransform": "acts on some channels of a picture",
}
# Draws of each transform that are tried before a run; a single one of crops beyond so many pixels.
TRIALS, LARGE = 3, 512


class Pipeline:
    """A pipeline that acts on a crop and its mask alike.

    Geometry takes the nearest label for the mask; what comes from outside the crop is ``IGNORE``,
    by whatever rule the picture is filled up. Threads may share one.

    Attributes:
        name: what the user called it, for messages.
        record: plain values, as ``albumentations.to_dict`` gives them.
    """

    def __init__(self, name: str, record: Mapping[str, Any]) -> None:
        """Build the pipeline of a record.

        Raises:
            UserError: the record is none of albumentations, or holds what cannot act on a crop.
        """
        self.name, self.record = name, dict(record)
        self._said = f"--augmentation {name}"
        root = self.record.get("transform")
        if not isinstance(root, Mapping):
            raise UserError(
                f"{self._said} is no pipeline of albumentations: it has no entry transform; write "
                "it with albumentations.save"
            )
        albumentations = _albumentations()
        built = self._built(root)
        single = not isinstance(built, albumentations.Compose)
        self._pipeline = albumentations.Compose([built]) if single else built
        if not any(True for _ in _leaves(self._pipeline)):
            raise UserError(f"{self._said} holds no transform")
        self._own = threading.local()

    def __call__(
        self,
        plane: Array,
        mask: NDArray[np.uint8],
        generator: np.random.Generator,
        levels: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[Array, NDArray[np.uint8]]:
        """Return the changed crop and its mask.

        Args:
            plane: float32 (S, S) or (S, S, C).
            mask: uint8 (S, S), class index or ``IGNORE``.
            generator: everything is drawn from it.
            levels: what the transforms take for black and white; the result stays between them.

        Raises:
            UserError: a transform fails.
        """
        low, high = levels
        image = np.ascontiguousarray(plane, np.float32)
        if levels != (0.0, 1.0):
            image = (image - np.float32(low)) * np.float32(1 / (high - low))
        pipeline = self._of_this_thread()
        pipeline.set_random_state(generator, random.Random(int(generator.integers(1 << 62))))
        try:
            result = pipeline(image=image, mask=np.ascontiguousarray(mask))
        except Exception as error:
            raise UserError(f"{self._said} fails on a crop: {_reason(error)}") from error
        image, mask = np.clip(result["image"], 0, 1), result["mask"]
        if levels != (0.0, 1.0):
            image = image * np.float32(high - low) + np.float32(low)
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask)

    @property
    def text(self) -> str:
        """The names of its transforms, in their order."""
        return ", ".join(type(leaf).__name__ for leaf in _leaves(self._pipeline))

    def check(self, side: int, channels: int) -> None:
        """Try each transform alone on a made-up crop.

        Args:
            side: of the run's crops, in pixels.
            channels: of its planes.

        Raises:
            UserError: the sentence names the transform that fails, or changes size or type.
        """
        ramp = np.linspace(0, 1, side, dtype=np.float32)
        image = (ramp[:, None] + 3 * ramp[None] ** 2 + (ramp[None] > 0.4)) / 5
        # Without class 0, which a transform that forgets its mask fills up with.
        mask = 1 + (image > 0.3).astype(np.uint8)
        mask[: side // 4, : side // 4] = IGNORE
        image = image if channels == 1 else np.repeat(image[..., None], channels, axis=2)
        for leaf in _leaves(self._pipeline):
            one = _prepared(_albumentations().Compose([copy.deepcopy(leaf)]))
            for number in range(TRIALS if side <= LARGE else 1):
                self._try(one, image, mask, np.random.default_rng(number))

    def _try(self, one: Any, image: Array, mask: Array, generator: np.random.Generator) -> None:
        leaf = one.transforms[0]
        word = type(leaf).__name__
        shape = "x".join(map(str, image.shape[1::-1]))
        channels = 1 if image.ndim == 2 else image.shape[2]
        leaf.p = 1.0
        one.set_random_state(generator, random.Random(int(generator.integers(1 << 62))))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = one(image=image.copy(), mask=mask.copy())
        except Exception as error:
            raise UserError(
                f"{self._said}: {word} cannot act on a crop of {shape} pixels and "
                f"{channels} channel{'s' if channels > 1 else ''}: {_reason(error)}"
            ) from error
        new, labels = result["image"], result["mask"]
        if new.shape[:2] != image.shape[:2] or labels.shape != mask.shape:
            raise UserError(
                f"{self._said}: {word} makes {new.shape[1]}x{new.shape[0]} pixels of a crop of "
                f"{shape}; take it out (--crop_size says how large crops are) or give it that size"
            )
        if new.shape != image.shape or new.dtype != image.dtype or labels.dtype != mask.dtype:
            raise UserError(f"{self._said}: {word} changes the type or the channels of a crop")
        if not set(np.unique(labels).tolist()) <= {*np.unique(mask).tolist(), IGNORE}:
            raise UserError(f"{self._said}: {word} makes labels that were not there")

    def _of_this_thread(self) -> Any:
        """Return the pipeline, one for each thread: it keeps what it draws in itself."""
        made = getattr(self._own, "made", None)
        if made is None:
            made = self._own.made = _prepared(copy.deepcopy(self._pipeline))
        return made

    def _built(self, node: object) -> Any:
        """Return the transform of an entry, with all it holds."""
        kind = self._kind(node)
        assert isinstance(node, Mapping)
        name = kind.__name__
        if name not in COMPOSITIONS:
            return self._leaf(name, node)
        known = (*COMPOSITIONS[name], CLASS, "transforms", *TARGETS, *SETTLED)
        for key, value in node.items():
            if key in TARGETS and value:
                raise UserError(
                    f"{self._said}: {name} has {key}; a crop has a picture and a mask, nothing else"
                )
            if key not in known:
                raise UserError(f"{self._said}: {name} has no setting {cut(str(key), 60)}")
        inner = node.get("transforms")
        if not isinstance(inner, Sequence) or isinstance(inner, str):
            raise UserError(f"{self._said}: {name} has no list transforms")
        settings = {key: node[key] for key in COMPOSITIONS[name] if key in node}
        held = [self._built(each) for each in inner]
        try:
            return kind(transforms=held, **settings)
        except Exception as error:
            raise UserError(f"{self._said}: {name}: {_reason(error)}") from error

    def _kind(self, node: object) -> type:
        """Return the class of an entry: one of albumentations' own, by its name alone."""
        word = node.get(CLASS) if isinstance(node, Mapping) else None
        if not isinstance(word, str):
            raise UserError(
                f"{self._said} is no pipeline of albumentations: an entry has no {CLASS}; write it "
                "with albumentations.save"
            )
        name = word.removeprefix("albumentations.").rpartition(".")[2]
        own = word in (name, f"albumentations.{name}") or word.startswith("albumentations.")
        if own and name in REFUSED:
            raise UserError(f"{self._said}: {name} {REFUSED[name]}; take it out")
        albumentations = _albumentations()
        registry = albumentations.core.serialization.SERIALIZABLE_REGISTRY
        kind = registry.get(name) if own else None
        if not isinstance(kind, type) or not kind.__module__.startswith("albumentations."):
            raise UserError(
                f"{self._said}: {cut(word, 80)} is no transform of albumentations "
                f"{albumentations.__version__}{self._written_by()}"
            )
        if issubclass(kind, albumentations.Transform3D):
            raise UserError(f"{self._said}: {name} is for volumes; take it out")
        if not issubclass(kind, albumentations.BasicTransform) and name not in COMPOSITIONS:
            raise UserError(f"{self._said}: {name} is no transform")
        return kind

    def _leaf(self, name: str, node: Mapping[str, Any]) -> Any:
        albumentations = _albumentations()
        try:
            with warnings.catch_warnings():
                # What it warns of is asked for below.
                warnings.simplefilter("ignore")
                made = albumentations.from_dict({"transform": {**node, CLASS: name}})
        except Exception as error:
            raise UserError(f"{self._said}: {name}: {_reason(error)}") from error
        if made.invalid_args:
            # Left out without a word, another pipeline would run than the one that was written.
            raise UserError(
                f"{self._said}: {name} has no setting {', '.join(map(str, made.invalid_args))} in "
                f"albumentations {albumentations.__version__}{self._written_by()}"
            )
        needs = set(made.targets_as_params) - {"image", "mask"}
        if needs:
            raise UserError(
                f"{self._said}: {name} needs {', '.join(sorted(needs))}, which a crop does not have"
            )
        return made

    def _written_by(self) -> str:
        version = self.record.get("__version__")
        return f" (the file says {cut(str(version), 20)})" if version else ""


def read(path: Path, name: str) -> Pipeline:
    """Return the pipeline of a YAML or JSON file of albumentations.

    Only what albumentations itself registers is built, by its name; nothing of the file runs.

    Args:
        path: of the file; .json is JSON, anything else YAML.
        name: for messages.

    Raises:
        UserError: no such file, or see :class:`Pipeline`.
    """
    what = "--augmentation"
    reader = textfiles.read_json if path.suffix.lower() == ".json" else textfiles.read_yaml
    content = reader(path, what)
    if not isinstance(content, Mapping):
        raise UserError(f"{what} {name} is no pipeline of albumentations: it is no table")
    _finite(content, f"{what} {name}")
    return Pipeline(name, content)


def _finite(value: object, where: str) -> None:
    """Refuse infinity and NaN: some transforms take them, and make every crop black.

    Raises:
        UserError: a number is one of them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} holds a number that is infinite or none ({value})")
    inner = value.items() if isinstance(value, Mapping) else ()
    for key, held in inner:
        _finite(held, f"{where}, {cut(str(key), 40)}" if "__" not in str(key) else where)
    for held in value if isinstance(value, list) else ():
        _finite(held, where)


def levels(plane: Array) -> tuple[float, float]:
    """Return what transforms take for black and white of an image: 0 and 1, or its own extremes.

    Grey levels beyond the window would be cut off at 0 and 1 otherwise.
    """
    return min(0.0, float(plane.min())), max(1.0, float(plane.max()))


def _albumentations() -> Any:
    """Return the library, imported late and without its question to the network."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _leaves(transform: Any) -> Iterator[Any]:
    """Yield the transforms that a pipeline holds and that hold none themselves."""
    if hasattr(transform, "transforms"):
        for inner in transform.transforms:
            yield from _leaves(inner)
    else:
        yield transform


def _prepared(pipeline: Any) -> Any:
    """Return the pipeline with masks as ours: the nearest label, nothing known of the outside."""
    for leaf in _leaves(pipeline):
        if hasattr(leaf, "mask_interpolation"):
            leaf.mask_interpolation = cv2.INTER_NEAREST
        for word in ("fill_mask", "mask_drop_value"):
            # None: holes in the picture keep their labels.
            if getattr(leaf, word, None) is not None:
                setattr(leaf, word, float(IGNORE))
        if hasattr(leaf, "border_mode") and "mask" in leaf._key2func:
            leaf._key2func["mask"] = _unlabelled_outside(leaf, leaf._key2func["mask"])
    return pipeline


def _unlabelled_outside(leaf: Any, change: Callable[..., Any]) -> Callable[..., Any]:
    """Return what changes a mask with a constant outside, whatever fills up the picture."""

    def changed(mask: Array, **params: Any) -> Array:
        own, leaf.border_mode = leaf.border_mode, cv2.BORDER_CONSTANT
        try:
            result: Array = change(mask, **params)
        finally:
            leaf.border_mode = own
        return result

    return changed


def _reason(error: Exception) -> str:
    """Return what an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "validation error" in lines[0]:
        # pydantic: the first setting that is wrong, and what it should be.
        return cut(f"{lines[1].split('.')[0]}: {lines[2].split(' [type=')[0]}", 160)
    return cut(" ".join(lines) or type(error).__name__, 160)
