"""Flags of fine-tuning for rare and thin classes: terms of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem, flag

# Losses with a term for rare or thin classes, keys of matssl.models.losses.LOSSES.
THIN_LOSSES = ("tversky", "focal_tversky", "boundary", "cldice")
# Those with a cross-entropy over all classes, whose labels can be smoothed.
SMOOTHED = ("ce", "dice_ce", *THIN_LOSSES)
# How a class is chosen from probabilities.
ARGMAX, VALIDATION = "argmax", "validation"
TVERSKY = THIN_LOSSES[:2]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class RareSettings:
    """Flags of the loss."""

    loss_share: float | None = flag(
        None,
        "training",
        f"of --loss {', '.join(THIN_LOSSES)}: what the Tversky, boundary or clDice term counts "
        "beside the others; that of the boundary rises to it from the first step to the last",
        auto="1; of the boundary 0.1",
        above=0,
        high=1000,
    )
    tversky_alpha: float = flag(
        0.3, "training", "weight of false pixels in --loss tversky, focal_tversky", above=0, high=10
    )
    tversky_beta: float = flag(
        0.7,
        "training",
        "weight of missed pixels in --loss tversky, focal_tversky",
        above=0,
        high=10,
    )
    label_smoothing: float = flag(
        0.0,
        "training",
        "share of the target in the cross-entropy that is spread over all classes",
        low=0,
        below=1,
    )

    decision: str = flag(
        ARGMAX,
        "training",
        "which class a pixel is said to be: the most likely one (argmax), or (validation) the one "
        "most likely by factors of the classes with the best mean IoU on the validation images, "
        "where they pay on those that did not choose them",
        choices=(ARGMAX, VALIDATION),
    )

    def loss_options(self, loss: str) -> dict[str, float]:
        """Return the options of a loss, by the names of its arguments; defaults are left out.

        Args:
            loss: ``--loss``.
        """
        found: dict[str, float] = {}
        if self.label_smoothing > 0:
            found["smoothing"] = self.label_smoothing
        if self.loss_share is not None:
            found["share"] = self.loss_share
        if loss in TVERSKY:
            found |= {"alpha": self.tversky_alpha, "beta": self.tversky_beta}
        return found

    def loss_problems(self, loss: str, threshold: float | None, beside: str) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            loss: ``--loss``.
            threshold: ``--threshold``.
            beside: ``--average_with``.
        """
        wrong = []
        if self.decision == VALIDATION and threshold is not None:
            told = "--decision validation and --threshold both say where a class is; give one"
            wrong.append(Problem(told, ("decision", "threshold")))
        if self.decision == VALIDATION and beside != "none":
            told = "--decision validation is of a network alone; leave --average_with out"
            wrong.append(Problem(told, ("decision", "average_with")))
        about = ("loss", "loss_function")
        if self.label_smoothing and loss not in SMOOTHED:
            told = f"--label_smoothing acts in the cross-entropy over all classes, not in {loss}"
            wrong.append(Problem(told, ("label_smoothing", *about)))
        if self.loss_share is not None and loss not in THIN_LOSSES:
            told = f"--loss_share acts with --loss {', '.join(THIN_LOSSES)}, not with {loss}"
            wrong.append(Problem(told, ("loss_share", *about)))
        for name in ("tversky_alpha", "tversky_beta"):
            default = RareSettings.__dataclass_fields__[name].default
            if getattr(self, name) != default and loss not in TVERSKY:
                told = f"--{name} acts with --loss {', '.join(TVERSKY)}, not with {loss}"
                wrong.append(Problem(told, (name, *about)))
        return wrong
