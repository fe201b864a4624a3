"""Which pictures to label next: ``python -m matssl.tools.select_images --help``.

The model of train_finetune.py says of each picture (or region of one) how unsure it is; weights of
train_ssl.py, or filters, say which pictures are like which. Labelled pictures, frozen validation
and test images and their copies are never chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.stages.select import settings

SETTINGS = settings.SelectSettings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and choose, or draw the learning curve; returns 0."""
    resolved = settings.resolve(argv, here=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    if resolved.learning_curve:
        from matssl.stages.select.simulation import learning_curve

        learning_curve(resolved, argv)
    else:
        from matssl.stages.select.loop import select

        select(resolved, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
