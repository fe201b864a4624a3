"""Learn from unlabelled micrographs: a folder of images to encoder weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.stages.pretrain import settings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    resolved = settings.resolve(argv, here=True)
    from matssl.stages import published

    notes = published.notes(resolved.run.config, finetune=False)
    environment = published.environment()
    if environment:
        told = ", ".join(f"{k} {v}" for k, v in environment.items())
        # A published learning rate is one of SGD and means nothing in our recipes.
        if resolved.run.recipe == "paper":
            resolved = settings.resolve(argv, environment, here=True)
            notes.append(f"from SSL_* of the environment or .env: {told}")
        else:
            notes.append(f"SSL_* of the environment or .env act with --recipe paper only: {told}")
    for note in notes if not resolved.run.quiet else ():
        print(f"note    {note}", flush=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.stages.pretrain.loop import pretrain

    pretrain(resolved, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
