"""What fine-tuning minimises and how: the loss, the weights of the classes, the rate of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matssl.core import optim
from matssl.core.labels import IGNORE
from matssl.models import blocks, losses
from matssl.models.segmentation import SegmentationModel

# A class that no training image holds must not get an infinite weight.
SMALLEST_SHARE = 1e-4


@dataclass(frozen=True)
class Objective:
    """The loss.

    Attributes:
        loss: a key of ``models.losses.LOSSES``.
        class_weights: of the classes in the cross-entropy; None: all alike, "balanced": by the
            inverse root of each class's share.
        l2: of the kernels' sum of squares, which is added.
        threshold: of two classes, the second is where its probability is above; None: the most
            likely one is.
        counted: whether true and false positives of the training samples are counted.
        options: of the loss, such as label smoothing, by the name of its argument.
        dropout: share of the decoder's last channels that a step leaves out.
    """

    loss: str
    class_weights: tuple[float, ...] | str | None = None
    l2: float = 0.0
    threshold: float | None = None
    counted: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    dropout: float = 0.0

    def function(self, progress: float = 1.0) -> Callable[..., Tensor]:
        """Return the loss of logits, class indices and class weights.

        Args:
            progress: share of the training that is over.
        """
        rising = {"progress": progress} if self.loss in losses.RISING else {}
        return partial(losses.LOSSES[self.loss], **self.options, **rising)

    def weights(self, masks: Sequence[NDArray[np.uint8]], num_classes: int) -> Tensor | None:
        """Return the weight of each class, float32 (num_classes,); None where all are alike.

        The loss is a weighted mean, so that only their ratios matter.

        Args:
            masks: (H, W) each, of the training images; class indices or 255.
            num_classes: how many there are.
        """
        if self.class_weights is None:
            return None
        if not isinstance(self.class_weights, str):
            return torch.tensor(self.class_weights)
        pixels = np.zeros(num_classes)
        for mask in masks:
            pixels += np.bincount(mask[mask != IGNORE], minlength=num_classes)[:num_classes]
        share = pixels / pixels.sum()
        values = 1 / np.sqrt(np.maximum(share, SMALLEST_SHARE))
        return torch.tensor(values / (values * share).sum(), dtype=torch.float32)


@dataclass(frozen=True)
class Schedule:
    """How far the weights move, step by step.

    Attributes:
        total_steps: of the whole plan.
        lr: peak learning rate of AdamW.
        shape: of the rate after the warm-up, "cosine" or "constant".
        warmup: share of the steps with rising rate.
        encoder_lr_factor: the encoder's rate relative to the others'.
        layer_decay: rate of each block of the encoder relative to the one above it.
        weight_decay: of tensors with two or more dimensions.
        clip: largest gradient norm; 0: no clipping.
        freeze_encoder_steps: first steps, in which the encoder stays as it is.
        ema: decay of the averaged weights; 0: no averaging.
        blocks: of the encoder that learn, see :func:`matssl.models.blocks.freeze`.
    """

    total_steps: int
    lr: float
    shape: str = "cosine"
    warmup: float = 0.1
    encoder_lr_factor: float = 1.0
    weight_decay: float = 1e-2
    clip: float = 1.0
    freeze_encoder_steps: int = 0
    ema: float = 0.99
    blocks: str = "all"
    layer_decay: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        warmup = round(self.warmup * self.total_steps)
        return optim.learning_rate(self.shape, self.lr, step, self.total_steps, warmup, 1)

    def decay(self, step: int) -> float:
        """Return the share of the averaged weights that a step keeps."""
        # Short runs would keep too much of their random start with the full decay.
        return min(self.ema, (1 + step) / (10 + step)) if self.ema > 0 else 0.0

    def optimizer(self, model: SegmentationModel) -> torch.optim.Optimizer:
        """Return AdamW for the trainable weights of a model.

        With a decay of layers, block k of n learns at decay^(n + 1 - k) times the encoder's rate
        (ELECTRA, Clark et al. 2020, arXiv:2003.10555, and BEiT); what is behind it at the full one.

        Raises:
            UserError: the encoder has no blocks to tell apart.
        """
        factors = {"encoder.": self.encoder_lr_factor}
        if self.layer_decay < 1:
            name = model.description["encoder"]
            found = blocks.told_blocks(model.encoder, name, "--layer_decay 1")
            factors = {
                f"encoder.{key}": self.encoder_lr_factor * self.layer_decay ** (len(found) - k)
                for k, names in enumerate(found)
                for key in names
            }
        groups = optim.parameter_groups(model, self.weight_decay, factors)
        return optim.build_optimizer("adamw", groups, self.lr)
