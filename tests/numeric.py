"""The numeric cases of checks.json, for the tests of the methods they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matssl.core import geometry

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


def close(got: Any, expected: Any, tolerance: float = 1e-8) -> None:
    """Assert that numbers agree, absolutely or relatively; 1e-8 is the tolerance of the cases."""
    value = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    np.testing.assert_allclose(value, np.asarray(expected, float), rtol=tolerance, atol=tolerance)
