"""A checkpoint and a folder to scores, masks, pictures and a report; see ``predict.evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matssl.trained.network import Network


def load_model(path: str | Path) -> Network:
    """Return the network of a trained model, for scripts that have called it here since the start.

    Raises:
        UserError: see :meth:`matssl.trained.segmenter.Segmenter.load`, which says more of a model;
            or an ensemble, which is no single network, or an exported one.
    """
    # Late: --help imports this package and knows no torch.
    from matssl.core.errors import UserError
    from matssl.trained.network import Network
    from matssl.trained.segmenter import Segmenter

    found = Segmenter.load(path, device="cpu", precision="fp32")
    if found.members:
        raise UserError(
            f"{path} is an ensemble of {len(found.members)} models; use Segmenter.load, or the "
            "best.ckpt of one fold"
        )
    if not isinstance(found.network, Network):
        raise UserError(
            f"{path} is an exported model, which torch does not run; use Segmenter.load"
        )
    return found.network
