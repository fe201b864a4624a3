"""Flags of what a fine-tuning begins with: ``--ssl_weights_path auto`` and the look at a start."""

from __future__ import annotations

import os
from dataclasses import dataclass

from matssl.core.flags import Problem, flag
from matssl.stages.settings import weights_file

# Value of --ssl_weights_path for the best start at hand.
AUTO = "auto"


def start_problem(source: str) -> str:
    """Return what is wrong with ``--ssl_weights_path``, "" where nothing is."""
    if source != AUTO:
        return weights_file(source)
    if os.path.lexists(AUTO):
        return (
            "--ssl_weights_path auto takes the best start at hand, but a file called auto lies "
            "here: is that meant? Then say ./auto; else run from another folder"
        )
    return ""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StartSettings:
    """The flag beside ``--ssl_weights_path`` and ``--weights``."""

    check_start: str = flag(
        "auto",
        "model",
        "before training, hold the weights that are given against random ones, ImageNet and own "
        "pretraining runs at hand, and warn where one of them is proven better for these labelled "
        "images; auto: where weights are given (some seconds), none: never",
        choices=("auto", "none"),
    )

    def start_problems(self, source: str | None, classifies: bool) -> list[Problem]:
        """Return what does not go together.

        Args:
            source: value of ``--ssl_weights_path``.
            classifies: whether no network learns.
        """
        if not (classifies and source == AUTO):
            return []
        told = "--ssl_weights_path auto compares networks; with --head forest or linear name a file"
        return [Problem(told, ("ssl_weights_path", "head"))]
