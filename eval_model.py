"""Evaluate a fine-tuned model on a folder, or predict a folder without masks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core import config
from matssl.core.errors import guard

DESCRIPTION = (
    "Segment the images of a folder with a checkpoint of train_finetune.py. With masks: scores, "
    "intervals, phase fractions and baselines; without: masks and phase fractions. Results and a "
    "report go to experiments/eval/NAME."
)


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    settings = config.parse(config.EvaluateConfig, argv, DESCRIPTION)
    from matssl.stages.evaluate.predict import evaluate

    evaluate(settings, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
