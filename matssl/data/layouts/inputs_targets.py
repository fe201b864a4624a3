"""``train/inputs`` beside ``train/targets`` (or images and masks, img and gt)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from matssl.data.layouts.images_masks import both_folders, mask_folders
from matssl.data.layouts.pairing import (
    Found,
    Layout,
    by_split,
    folders_in,
    pair_by_name,
    split_name,
)


def _pairs(root: Path, some: bool = False) -> list[Found] | None:
    found: list[Found] = []
    for folder in folders_in(root):
        both = both_folders(folder)
        if both:
            found += pair_by_name(*both, split_name(folder.name), some)
    return by_split(found)


LAYOUT = Layout(
    "train/inputs + train/targets", _pairs, mask_folders, some=partial(_pairs, some=True)
)
