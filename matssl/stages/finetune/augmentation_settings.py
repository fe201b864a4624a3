"""The flag of fine-tuning that hands the changes of crops to albumentations."""

from __future__ import annotations

import os
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import FILES, flag

# Each is a file NAME.yaml beside this one, in the form of what a user may give instead.
PRESETS = ("light", "medium", "heavy")
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "augmentations")
# What a pipeline takes the place of.
REPLACED = ("d4", "brightness", "contrast", "gamma", "illumination", "blur_p", "noise_p")


def augmentation_problem(text: str) -> str:
    """Return what is wrong with ``--augmentation``, "" where nothing is to be seen of it yet."""
    if text in PRESETS or text.lower().endswith(FILES):
        return ""
    return (
        f"--augmentation must be {', '.join(PRESETS)} or a file of albumentations that ends with "
        f".yaml or .json, not {text}"
    )


def leads(text: str) -> str:
    """Say what is wrong with the path of a pipeline."""
    return "" if text in PRESETS else paths.file(text)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class AugmentationSettings:
    """The flag, and where the file lies that it means."""

    augmentation: str | None = flag(
        None,
        "augmentation",
        "a pipeline of albumentations changes the crops, instead of --d4 and the changes of grey "
        f"levels, blur and noise below: {', '.join(PRESETS)}, or a file that albumentations.save "
        "wrote (.yaml, .json)",
        auto="the flags below",
        check=augmentation_problem,
        leads=leads,
    )

    @property
    def augmentation_file(self) -> str | None:
        """The file that is meant, None without one."""
        chosen = self.augmentation
        return os.path.join(FOLDER, f"{chosen}.yaml") if chosen in PRESETS else chosen
