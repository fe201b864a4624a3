"""Mean teacher: Tarvainen and Valpola 2017 (arXiv:1703.01780), for every pixel."""

from __future__ import annotations

from torch import Tensor

from matssl.stages.finetune.semi.base import Answers, Pseudo, SemiMethod


def loss(answers: Answers, weak: Pseudo, mixtures: tuple[Pseudo, ...]) -> Tensor:
    """Mean over the pixels of the squared distance of two sets of probabilities.

    ``mean ||p_S - p_T||^2``, summed over the classes; the network sees the strong view, the teacher
    the weak one.
    """
    (logits,), (pseudo,) = answers.strong, mixtures
    apart = (logits.float().softmax(dim=1) - pseudo.chance).square().sum(dim=1)
    return (apart * pseudo.known).sum() / pseudo.known.sum().clamp_min(1)


# Its weight, 0.1 exp(-5 (1 - t/T)^2), is that of Yu et al. 2019 (arXiv:1907.07034).
MEAN_TEACHER = SemiMethod(loss, weight=0.1, ramp=0.4, cutmix_p=0.0, thresholded=False)
