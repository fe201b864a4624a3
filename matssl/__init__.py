"""Self-supervised learning and segmentation for micrographs with few labels.

``from matssl import Segmenter, Encoder, read`` is all that a notebook needs (docs/api.md).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matssl.data.readers import read
    from matssl.trained.encoder import Encoder
    from matssl.trained.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["Encoder", "Segmenter", "__version__", "read"]
# Loaded when they are asked for: the package itself imports neither torch nor numpy.
_HOMES = {
    "Encoder": "matssl.trained.encoder",
    "Segmenter": "matssl.trained.segmenter",
    "read": "matssl.data.readers",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            from importlib import import_module

            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
