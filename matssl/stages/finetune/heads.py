"""Heads on features that stay as they are: how a forest or a linear one learns, and predicts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matssl.core.arrays import Array
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data import specimens
from matssl.data.crops import Labelled
from matssl.data.preprocess import Preprocess
from matssl.forest import growing, logistic
from matssl.forest.logistic import PENALTIES
from matssl.metrics import counts as counting
from matssl.metrics import overlap
from matssl.models.encoders import build_encoder, channels_last
from matssl.models.pixels import FOREST, Features, PixelClassifier
from matssl.stages import lineage
from matssl.stages.finetune import folds
from matssl.stages.finetune.forest_settings import scales
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.trained.network import Network
from matssl.weights import WeightsReport

# Bytes of predictions that are kept for the next use.
REMEMBERED = 1 << 29


@dataclass(frozen=True)
class Learned:
    """A head that has learned.

    Attributes:
        model: of a checkpoint.
        pixels: that it learned from, of each class.
        importance: share of each feature in telling the classes apart, float64 (F,); sum 1.
        seconds: that it took.
        said: in words, what was chosen on the way.
    """

    model: PixelClassifier
    pixels: tuple[int, ...]
    importance: NDArray[np.float64]
    seconds: float
    said: str


@dataclass(frozen=True)
class Head:
    """How a head learns from labelled images.

    Attributes:
        kind: forest or linear.
        features: what it sees of a pixel.
        record: how planes become what it sees.
        num_classes: of the masks.
        rt: where an encoder computes, and threads.
        trees: of a forest.
        samples: labelled pixels that are learned from at most.
        least: training pixels in a leaf.
        seed: of pixels and trees.
    """

    kind: str
    features: Features
    record: Preprocess
    num_classes: int
    rt: Runtime
    trees: int = growing.TREES
    samples: int = growing.SAMPLES
    least: int = growing.LEAST
    seed: int = 0

    @property
    def text(self) -> str:
        """In words, what it is."""
        parts = []
        if self.features.sigmas:
            sizes = ",".join(f"{sigma:g}" for sigma in self.features.sigmas)
            parts.append(f"{self.features.filters} filters of {sizes} px")
        if self.features.encoder is not None:
            parts.append(f"{self.features.others} features of {self.features.name}")
        forest = self.kind == FOREST
        what = f"random forest of {counted(self.trees, 'tree')}" if forest else "linear classifier"
        return f"{what} on {' and '.join(parts)}"

    def learned(self, data: Labelled) -> Learned:
        """Return what is learned from labelled images.

        Args:
            data: the images; a few labelled pixels suffice.
        """
        start = time.perf_counter()
        rt, features = self.rt, self.features

        def of(image: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
            return features.at(image, places, rt.device, rt.autocast)

        pixels = growing.drawn(
            data.planes,
            data.masks,
            self.num_classes,
            of,
            self.samples,
            self.seed,
            self.record.tensor,
        )
        shape = self.num_classes, features.sigmas, self.record.channels
        said = ""
        if self.kind == FOREST:
            grown = growing.planted(
                pixels, *shape, trees=self.trees, least=self.least, seed=self.seed, jobs=rt.threads
            )
            found, told = PixelClassifier(grown.forest, features), grown.importance
        else:
            groups = [pair.group for pair in data.pairs]
            fitted = logistic.fit(pixels, *shape, groups, self.seed)
            found, told = PixelClassifier(fitted.linear, features), fitted.importance
            said = f"penalty {PENALTIES[len(PENALTIES) // 2]:g}, no held-out pixels to choose it by"
            if fitted.penalty is not None:
                said = f"penalty {fitted.penalty:g}, chosen on held-out pixels of these images"
        seconds = time.perf_counter() - start
        return Learned(found, tuple(pixels.counts.tolist()), told, seconds, said)


def of_settings(
    settings: FinetuneSettings, rt: Runtime, inputs: Inputs, features: Features, kind: str
) -> Head:
    """Return the head of a kind as the flags ask for it."""
    return Head(
        kind,
        features,
        inputs.record,
        inputs.table.num_classes,
        rt,
        settings.trees,
        settings.samples,
        settings.leaf_pixels,
        settings.seed,
    )


def features(
    settings: FinetuneSettings, rt: Runtime, inputs: Inputs
) -> tuple[Features, WeightsReport | None]:
    """Return what the head sees, and what arrived of the encoder's weights; None of random ones.

    Raises:
        UserError: see :func:`matssl.weights.load`.
    """
    seen = settings.seen(settings.started)
    sigmas = () if seen == "encoder" else scales(settings.filters)
    channels = inputs.record.channels
    if seen == "filters":
        return Features(sigmas, channels), None
    torch.manual_seed(settings.seed)
    encoder: nn.Module = build_encoder(settings.encoder, channels)
    source = settings.ssl_weights_path or settings.weights
    report = lineage.start_weights(encoder, source, settings.encoder, inputs.record, False)
    channels_last(encoder).to(rt.device).eval()
    return Features(sigmas, channels, encoder, settings.encoder), report


class Predictor:
    """What a classifier says of the images of a run; of some at once it remembers it."""

    def __init__(self, head: Head, model: PixelClassifier) -> None:
        self.model, self.record = model, head.record
        self.network = Network(model, head.rt.device, head.rt.precision)
        self.known: dict[int, Array] = {}

    def probabilities(self, plane: Array) -> Array:
        """Return class probabilities of a plane, float32 (C, H, W), a copy of its own."""
        found = self.known.get(id(plane))
        if found is None:
            count = self.model.classifier.num_classes
            found = self.network.probabilities(self.record.tensor(plane), count)
            if sum(other.nbytes for other in self.known.values()) < REMEMBERED:
                self.known[id(plane)] = found
        return found.copy()

    def classes(self, plane: Array) -> NDArray[np.uint8]:
        """Return class indices of a plane, uint8 (H, W)."""
        return self.probabilities(plane).argmax(axis=0).astype(np.uint8)

    def confusion(self, data: Labelled) -> NDArray[np.int64]:
        """Return the pooled confusion matrix of labelled images."""
        count = self.model.classifier.num_classes
        total = np.zeros((count, count), np.int64)
        for plane, mask in zip(data.planes, data.masks, strict=True):
            total += counting.confusion(mask, self.classes(plane), count)
        return total


def scores(
    head: Head, predictor: Predictor, inputs: Inputs, held_out: bool
) -> list[NDArray[np.int64]]:
    """Return the confusion matrix of the validation images, or of each held-out part.

    Args:
        head: learns again from the other parts.
        predictor: what was learned from all.
        inputs: the images.
        held_out: whether parts are held out where too few images are labelled to set some aside.
    """
    if inputs.val is not None:
        return [predictor.confusion(inputs.val)]
    if len(inputs.train.planes) >= specimens.MIN_IMAGES_TO_SPLIT or not held_out:
        return []
    return [
        Predictor(head, head.learned(train).model).confusion(held)
        for train, held in folds.parts(inputs.train)
    ]


def mean_iou(each: list[NDArray[np.int64]]) -> float:
    """Return the mean over the parts of their mean IoU; -1 where there is none."""
    best = float(np.nanmean([overlap.miou(one) for one in each])) if each else -1.0
    return best if np.isfinite(best) else -1.0
