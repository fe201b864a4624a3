"""The baselines of an evaluation: fitted on what the model learned from, counted beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE
from matssl.core.machine import Machine
from matssl.core.wording import counted
from matssl.data.layouts import Dataset, Pair
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.metrics.counts import confusion
from matssl.trained.segmenter import Segmenter

if TYPE_CHECKING:
    from matssl.baselines import Baseline


def fitted(
    segmenter: Segmenter,
    dataset: Dataset,
    pairs: Sequence[Pair],
    truth: ClassTable,
    rt: Machine,
    say: Callable[[str], None],
) -> list[Baseline]:
    """Return the baselines fitted on the images that the model learned from.

    None where no evaluated image has a mask, or where the training images are not in the folder.

    Args:
        segmenter: the model.
        dataset: the folder.
        pairs: images of it that are evaluated.
        truth: the model's classes with the values that mean them in these masks.
        rt: how many threads there are.
        say: prints a line.
    """
    if not any(pair.mask for pair in pairs):
        return []
    used = {Path(path).name for path in segmenter.trained_on.images}
    train = [p for p in dataset.split("train") if p.mask]
    train = [p for p in train if (not used or p.image.name in used) and p not in pairs]
    if not train:
        return []
    # Late: a folder without masks needs none of it.
    from matssl import baselines
    from matssl.data import crops

    say(f"fitting baselines on {counted(len(train), 'training image')}")
    data = crops.load(train, segmenter.record, truth)
    classes, tensor = segmenter.table.num_classes, segmenter.record.tensor
    shown = segmenter.record.shown
    grey = baselines.grey_levels([shown(plane) for plane in data.planes], data.masks, classes)
    found = [
        baselines.majority(data.masks, classes),
        # Grey levels are those of the picture itself.
        replace(grey, predict=lambda plane: grey.predict(shown(plane))),
    ]
    network = segmenter.network
    if not network.is_forest:
        # A forest on filters is its own baseline.
        found.append(baselines.forest(tensor, data.planes, data.masks, classes, rt.threads))
    maps = network.maps
    if maps is None:
        # It has no encoder for another.
        return found
    found.append(
        baselines.pixel_classifier(maps.of, maps.multiple, tensor, data.planes, data.masks, classes)
    )
    return found


def counts(
    against: Sequence[Baseline],
    record: Preprocess,
    micrograph: Micrograph,
    mask: NDArray[np.uint8],
    num_classes: int,
) -> dict[str, NDArray[np.int64]]:
    """Return the confusion matrix of each baseline on one image.

    Args:
        against: the baselines.
        record: how the micrograph is prepared.
        micrograph: the image.
        mask: its class indices, uint8 (H, W).
        num_classes: C.
    """
    if not against:
        return {}
    plane = record.plane(micrograph)
    found = {}
    for rival in against:
        guess = rival.predict(plane)
        if guess.shape != mask.shape:
            guess = cv2.resize(guess, mask.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        # What is asked for some pixels alone stands for all of the image.
        asked = guess != IGNORE
        share = np.count_nonzero(asked) / asked.size
        pixels = confusion(
            np.where(asked, mask, np.uint8(IGNORE)),
            np.where(asked, guess, np.uint8(0)),
            num_classes,
        )
        found[rival.name] = np.rint(pixels / share).astype(np.int64)
    return found
