"""The numeric cases of checks.json and a small encoder, for the tests of the methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matssl.core import geometry
from matssl.models.encoders import build_encoder

CASES: dict[str, dict[str, Any]] = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "checks.json").read_text())["cases"]
}


def case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a case's inputs, with those of the case it refers to, and what is expected."""
    found = CASES[name]
    inputs = dict(found["inputs"])
    if "same_as" in inputs:
        inputs = {**CASES[inputs["same_as"]]["inputs"], **inputs}
    return inputs, found["expected"]


def view_map(
    top: float,
    left: float,
    height: float,
    width: float,
    flip: bool = False,
    turns: int = 0,
    *,
    size: int,
) -> np.ndarray:
    """Return the (2, 3) map from the pixels of one view to those of its image."""
    box = np.array([[top, left, height, width]])
    return geometry.affines(box, np.array([flip]), np.array([turns]), size)[0]


def small_encoder(in_channels: int = 1) -> nn.Module:
    """Return an encoder of a thirtieth of a ResNet-18, of the same layers, with random weights."""
    encoder = build_encoder("tu-test_resnet", in_channels)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # timm starts the last one of a block at 0, where nothing before it has a gradient.
            nn.init.ones_(layer.weight)
    return encoder


def close(got: Any, expected: Any, tolerance: float = 1e-8) -> None:
    """Assert that numbers agree, absolutely or relatively; 1e-8 is the tolerance of the cases."""
    value = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    np.testing.assert_allclose(value, np.asarray(expected, float), rtol=tolerance, atol=tolerance)
