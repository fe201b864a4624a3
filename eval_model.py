"""Evaluate a fine-tuned model on a folder, or predict a folder without masks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.stages.evaluate import settings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    resolved = settings.resolve(argv, here=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.stages.evaluate.predict import evaluate

    evaluate(resolved, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
