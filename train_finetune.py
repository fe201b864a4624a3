"""Fine-tune a segmentation model on a few labelled micrographs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core import config
from matssl.core.errors import guard
from matssl.decoders import segmenting

DESCRIPTION = (
    "Train a segmentation model on a folder of images with masks, from pretrained weights or from "
    "random ones. The model and a report go to experiments/finetune/NAME. Next: eval_model.py "
    "--model_path experiments/finetune/NAME/best.ckpt"
)


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and run the stage; returns 0."""
    choices = {"decoder": ("auto", *segmenting())}
    settings = config.parse(config.FinetuneConfig, argv, DESCRIPTION, choices=choices)
    from matssl.stages.finetune import finetune

    finetune(settings, argv)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
