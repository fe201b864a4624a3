"""Flags of eval_model.py that fit the model to the pictures; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem, flag

# Values of --adapt: none, or whose statistics are measured together.
NONE, FOLDER, SPECIMEN, PICTURE = "none", "folder", "specimen", "picture"


@dataclass(frozen=True, init=False, repr=False, eq=False)
class AdaptSettings:
    """Flags of stages that may adapt a model to pictures without their masks."""

    adapt: str = flag(
        NONE,
        "prediction",
        "measure the BatchNorm statistics anew on the pictures that are predicted, without their "
        "masks: of all together (folder), of each specimen, of each picture alone, or not at all",
        choices=(NONE, FOLDER, SPECIMEN, PICTURE),
    )
    adapt_prior: float | None = flag(
        None,
        "prediction",
        "tiles of the pictures (16 at most) that the statistics of the training weigh as much as; "
        "0: the pictures' own alone",
        auto="64",
        low=0,
        high=1e6,
    )

    def adapt_problems(self) -> list[Problem]:
        """Return what does not go together, one sentence each."""
        if self.adapt_prior is None or self.adapt != NONE:
            return []
        told = f"--adapt_prior has no effect without --adapt {FOLDER}, {SPECIMEN} or {PICTURE}"
        return [Problem(told, ("adapt_prior", "adapt"))]
