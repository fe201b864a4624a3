"""Makes the registry's torchvision importable beside a CPU-only torch.

The published torchvision wheel is linked against CUDA libraries. With a torch that has none, its
compiled operators do not load and ``import torchvision`` ends in "operator torchvision::nms does
not exist", because it registers a fake kernel for an operator that nobody defined. timm and
segmentation_models_pytorch import torchvision, so nothing would work. Declaring the two schemas is
enough: matssl never calls these operators, torchvision only wants to hear of them.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# The library object must live as long as the process: dropping it withdraws the definitions.
_library: torch.library.Library | None = None


def ensure() -> None:
    """Declare torchvision's detection operators where they cannot be loaded; else do nothing."""
    global _library
    if torch.version.cuda is not None or _library is not None:
        return
    import importlib.util

    missing = [name for name in _SCHEMAS if not _defined(name)]
    if not missing or importlib.util.find_spec("torchvision") is None or _loads():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        if not _defined(name):
            _library.define(name + _SCHEMAS[name])


def _defined(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _loads() -> bool:
    """Whether torchvision's compiled operators load (they do beside a torch of their own kind)."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    libraries = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):
            return False
    return bool(libraries) and all(_defined(name) for name in _SCHEMAS)
