"""A few labelled micrographs and encoder weights to a segmentation model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matssl.stages.finetune.settings import FinetuneSettings

__all__ = ["FinetuneSettings", "finetune"]


def finetune(settings: FinetuneSettings, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return its run folder.

    Args:
        settings: of train_finetune.py.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    # Torch is imported here, so that whoever wants the settings alone does not wait for it.
    from matssl.stages.finetune import stage

    return stage.run(settings, argv)
