"""Learn from unlabelled micrographs: a folder of images to encoder weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core import config, published
from matssl.core.errors import guard
from matssl.decoders import DECODERS
from matssl.methods import METHODS

DESCRIPTION = (
    "Pretrain an encoder on a folder of unlabelled micrographs. Weights, pictures and a report go "
    "to experiments/ssl/NAME. Next: train_finetune.py --ssl_weights_path "
    "experiments/ssl/NAME/encoder.safetensors"
)


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    choices = {"model": tuple(METHODS), "decoder": tuple(DECODERS)}
    settings = config.parse(config.PretrainConfig, argv, DESCRIPTION, choices)
    environment = published.environment()
    if environment:
        told = ", ".join(f"{k} {v}" for k, v in environment.items())
        # A published learning rate is one of SGD and means nothing in our recipes.
        if settings.recipe == "paper":
            settings = config.parse(config.PretrainConfig, argv, DESCRIPTION, choices, environment)
            note = f"from SSL_* of the environment or .env: {told}"
        else:
            note = f"SSL_* of the environment or .env act with --recipe paper only: {told}"
        if not settings.quiet:
            print(f"note    {note}", flush=True)
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.stages.pretrain import pretrain

    pretrain(settings, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
