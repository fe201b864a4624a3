"""FixMatch: Sohn et al. 2020 (arXiv:2001.07685), for every pixel."""

from __future__ import annotations

from torch import Tensor

from matssl.stages.finetune.semi.base import (
    Answers,
    Pseudo,
    SemiMethod,
    believed_cross_entropy,
)


def loss(answers: Answers, weak: Pseudo, mixtures: tuple[Pseudo, ...]) -> Tensor:
    """Cross-entropy of the strong view with what the teacher believes of the weak one (Eq. 4)."""
    (logits,), (pseudo,) = answers.strong, mixtures
    return believed_cross_entropy(logits, pseudo)


FIXMATCH = SemiMethod(loss)
