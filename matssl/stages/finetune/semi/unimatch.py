"""UniMatch: Yang et al. 2023 (arXiv:2208.09910): two strong views and one of changed features."""

from __future__ import annotations

from torch import Tensor

from matssl.stages.finetune.semi.base import (
    Answers,
    Pseudo,
    SemiMethod,
    believed_cross_entropy,
)

# Of each strong view, and of the view whose features were dropped.
STRONG, DROPPED = 0.25, 0.5


def loss(answers: Answers, weak: Pseudo, mixtures: tuple[Pseudo, ...]) -> Tensor:
    """Weighted sum of three cross-entropies with what the teacher believes of the weak view.

    ``0.25 L_s1 + 0.25 L_s2 + 0.5 L_fp``, the unlabelled part of Eq. 9. The half that the published
    code takes of the sum with the labelled part is left out: AdamW does not see it.
    """
    assert answers.dropped is not None
    views = zip(answers.strong, mixtures, strict=True)
    strong = sum(STRONG * believed_cross_entropy(logits, pseudo) for logits, pseudo in views)
    return strong + DROPPED * believed_cross_entropy(answers.dropped, weak)


UNIMATCH = SemiMethod(loss, views=2, dropped=True)
