"""A checkpoint and a folder to scores, masks, pictures and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matssl.core.config import EvaluateConfig


def evaluate(config: EvaluateConfig, argv: Sequence[str] = ()) -> Path:
    """Run the stage, see :func:`matssl.stages.evaluate.predict.evaluate`."""
    # Imported here, so that settings of the stage can be had without torch.
    from matssl.stages.evaluate import predict

    return predict.evaluate(config, argv)
