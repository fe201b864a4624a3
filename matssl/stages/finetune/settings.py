"""Settings of train_finetune.py: what they are when all is said, and what does not go together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from matssl.core import published
from matssl.core.config import FinetuneConfig as FinetuneSettings
from matssl.core.errors import UserError

if TYPE_CHECKING:
    from matssl.data.preprocess import Preprocess

__all__ = ["FinetuneSettings", "check", "given_weights", "problems", "record", "resolved"]

# Side of a training crop where nothing says another.
CROP_SIZE = 192
# The keys of matssl.models.losses.LOSSES; a test holds that they agree.
LOSSES = ("dice_ce", "dice", "ce", "focal", "bce")
# Values of --class_weights that are no numbers.
NAMED_WEIGHTS = ("none", "balanced")
# Five halvings.
MULTIPLE = 32


def resolved(settings: FinetuneSettings) -> FinetuneSettings:
    """Return the settings with the published spellings in our own fields, and the crop's side.

    Whether they make sense is told by :func:`problems`.
    """
    if settings.pretrained_model:
        named = published.STUDY_WEIGHTS.format(settings.pretrained_model)
        none = settings.pretrained_model == "baseline"
        settings = replace(settings, pretrained="none" if none else named)
    if settings.pretrained:
        none = settings.pretrained == "none"
        settings = replace(settings, ssl_weights_path=None if none else settings.pretrained)
    if settings.loss_function:
        settings = replace(settings, loss=settings.loss_function.lower())
    if settings.custom_lr:
        settings = replace(settings, lr=settings.custom_lr)
    if settings.custom_epochs:
        settings = replace(settings, epochs=settings.custom_epochs)
    if settings.note and settings.name:
        settings = replace(settings, name=f"{settings.name}-{settings.note}", note="")
    return replace(settings, crop_size=_crop_size(settings))


def _crop_size(settings: FinetuneSettings) -> int:
    """Return the side of a crop: that of the resized image at most, as published."""
    if settings.input_size is None or settings.input_size < MULTIPLE:
        return CROP_SIZE if settings.crop_size is None else settings.crop_size
    # A crop larger than the resized image would be filled up with mirrored pixels.
    side = min(settings.crop_size or settings.input_size, settings.input_size)
    return max(MULTIPLE, side - side % MULTIPLE)


def problems(settings: FinetuneSettings) -> list[str]:
    """Return in words all that is wrong with the settings, before any file is looked at.

    Args:
        settings: as :func:`resolved` returns them.
    """
    found = []
    if settings.loss not in LOSSES:
        found.append(f"--loss_function must be BCE, Dice or Focal, not {settings.loss_function}")
    if settings.class_weights != "none" and settings.loss == "dice":
        found.append("--class_weights act in a cross-entropy; --loss dice has none")
    if settings.class_weights not in NAMED_WEIGHTS and not given_weights(settings.class_weights):
        found.append(
            "--class_weights must be none, balanced or numbers above 0, one for each class "
            f"(1,1,10), not {settings.class_weights}"
        )
    if settings.input_size is not None and settings.input_size < MULTIPLE:
        found.append(f"--input_size must be at least {MULTIPLE}, not {settings.input_size}")
    elif not settings.crop_size or settings.crop_size % MULTIPLE or settings.crop_size < 0:
        found.append(f"--crop_size must be a multiple of {MULTIPLE}, not {settings.crop_size}")
    if min(settings.batch_size, settings.val_every, settings.checkpoint_every) < 1:
        found.append("--batch_size, --val_every and --checkpoint_every must be at least 1")
    if not 0 < settings.data_ratio <= 1:
        found.append(f"--data_ratio must be above 0 and at most 1, not {settings.data_ratio:g}")
    if settings.data_ratio < 1 and settings.max_train_images is not None:
        found.append("give --data_ratio or --max_train_images, not both")
    if settings.max_train_images is not None and settings.max_train_images < 1:
        found.append("--max_train_images must be at least 1")
    if settings.steps < 1 and not settings.epochs:
        found.append("nothing to train: give --steps or --epochs of at least 1")
    try:
        record(settings)
    except UserError as error:
        found.append(str(error))
    return found


def check(settings: FinetuneSettings) -> None:
    """Refuse settings with problems.

    Raises:
        UserError: all of them in one line.
    """
    found = problems(settings)
    if found:
        raise UserError("; ".join(found))


def record(settings: FinetuneSettings) -> Preprocess:
    """Return how the images are to be read, before mean and std are measured.

    Raises:
        UserError: a value that is none, or that has no effect.
    """
    # OpenCV comes with it, which --help does without.
    from matssl.data.preprocess import Preprocess

    return Preprocess.chosen(
        channels=settings.in_channels,
        color=settings.color,
        window=settings.window,
        low=settings.low,
        high=settings.high,
        crop_bottom=settings.crop_bottom,
        target_pixel_size=settings.target_pixel_size,
        pixel_size=settings.pixel_size,
        resize=settings.input_size,
    )


def given_weights(class_weights: str) -> tuple[float, ...]:
    """Return the class weights that are given as numbers; empty where they are none above 0."""
    try:
        given = tuple(float(word) for word in class_weights.split(","))
    except ValueError:
        return ()
    return given if all(0 < value < math.inf for value in given) else ()
