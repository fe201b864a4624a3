"""Fine-tune a segmentation model on a few labelled micrographs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.core.flags import declared
from matssl.stages.finetune import settings
from matssl.stages.finetune.semi_settings import AUTO


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    resolved = settings.resolve(argv, here=True)
    from matssl.stages import published

    notes = published.notes(resolved.config, finetune=True, own=declared(settings.FinetuneSettings))
    for note in notes if not resolved.quiet else ():
        print(f"note    {note}", flush=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    if resolved.folds is not None:
        from matssl.stages.evaluate.held_out import score
        from matssl.stages.finetune.cross import cross_validate

        # Stages know nothing of each other: what scores the folds is handed over.
        cross_validate(resolved, argv, score)
        return 0
    if resolved.stages is not None:
        from matssl.stages.finetune.staged import train_in_stages

        train_in_stages(resolved, argv)
        return 0
    if resolved.ensemble > 1:
        from matssl.stages.finetune.seeds import train_ensemble

        train_ensemble(resolved, argv)
        return 0
    if resolved.semi == AUTO:
        from matssl.stages.finetune.semi.auto import train_both

        train_both(resolved, argv)
        return 0
    from matssl.stages.finetune.loop import finetune

    finetune(resolved, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
