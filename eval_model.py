"""Evaluate a fine-tuned model on a folder, or predict a folder without masks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.core.flags import declared
from matssl.stages.evaluate import settings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    resolved = settings.resolve(argv, here=True)
    from matssl.stages import published

    notes = published.notes(resolved.config, finetune=True, own=declared(settings.EvaluateSettings))
    for note in notes if not resolved.quiet else ():
        print(f"note    {note}", flush=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.stages.evaluate.predict import evaluate

    evaluate(resolved, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
