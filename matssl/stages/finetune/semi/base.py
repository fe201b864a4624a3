"""What a semi-supervised method is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from matssl.core.labels import IGNORE


@dataclass(frozen=True)
class Pseudo:
    """What the teacher says of unlabelled crops, or of mixtures of them.

    Attributes:
        chance: float32 (B, C, H, W), its probabilities, without gradient.
        labels: int64 (B, H, W), the most likely class where it is believed, else 255.
        known: bool (B, H, W), pixels that show the picture, no mirrored border.
    """

    chance: Tensor
    labels: Tensor
    known: Tensor

    @staticmethod
    def of(chance: Tensor, known: Tensor, thresholds: Tensor) -> Pseudo:
        """Return what is believed of the teacher's probabilities.

        FixMatch, Eq. 4 of Sohn et al. 2020 (arXiv:2001.07685), with a threshold for each class.

        Args:
            chance: (B, C, H, W).
            known: bool (B, H, W).
            thresholds: (C,); a pixel counts whose largest probability reaches that of its class.
        """
        top, said = chance.max(dim=1)
        believed = known & (top >= thresholds.to(top.dtype)[said])
        return Pseudo(chance, said.masked_fill(~believed, IGNORE), known)

    def mixed(self, box: Tensor) -> Pseudo:
        """Return it with what the partner of each crop shows inside a box.

        Crops are partners in pairs: the first and the second, the third and the fourth, ....

        Args:
            box: bool (B, H, W), where the partner is shown.
        """
        other = torch.arange(len(box), device=box.device) ^ 1
        return Pseudo(
            torch.where(box[:, None], self.chance[other], self.chance),
            torch.where(box, self.labels[other], self.labels),
            torch.where(box, self.known[other], self.known),
        )


@dataclass(frozen=True)
class Answers:
    """What the network says of the same crops.

    Attributes:
        strong: logits (B, C, H, W) of each strongly changed view.
        dropped: logits (B, C, H, W) of the weak view with half of the encoder's channels left out;
            None where the method does not ask for them.
    """

    strong: tuple[Tensor, ...]
    dropped: Tensor | None = None


@dataclass(frozen=True)
class SemiMethod:
    """A semi-supervised method: how many views, and a loss of them.

    Attributes:
        loss: of what the network says, what the teacher says of the weak view, and what it says of
            the mixture that each strong view is; a scalar with gradient.
        views: strong views of a crop.
        dropped: whether the weak view is also decoded from half of the encoder's channels.
        weight: of the loss beside that of the labelled crops, when it has risen.
        ramp: share of the steps in which it rises.
        cutmix_p: share of the strong views that are mixtures.
        thresholded: whether it learns from believed pixels alone.
    """

    loss: Callable[[Answers, Pseudo, tuple[Pseudo, ...]], Tensor]
    views: int = 1
    dropped: bool = False
    weight: float = 1.0
    ramp: float = 0.1
    cutmix_p: float = 0.5
    thresholded: bool = True


def believed_cross_entropy(logits: Tensor, pseudo: Pseudo) -> Tensor:
    """Cross-entropy with the believed labels, divided by all pixels that show the picture.

    So that few believed pixels weigh little: FixMatch divides by the batch, believed or not.

    Args:
        logits: (B, C, H, W).
        pseudo: of the same crops.
    """
    full = logits.float()
    losses = F.cross_entropy(full, pseudo.labels, ignore_index=IGNORE, reduction="none")
    return losses.sum() / pseudo.known.sum().clamp_min(1)
