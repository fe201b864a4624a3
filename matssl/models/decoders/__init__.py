"""Decoders by name; one of our own would get a file here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp

DECODERS: dict[str, Callable[..., Any]] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
}
