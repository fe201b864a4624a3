"""The type of arrays whose number type and shape the text beside them says."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
