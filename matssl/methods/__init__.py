"""Self-supervised methods: one file and one line in METHODS each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matssl.methods.base import SSLMethod

# Names of classes, so that --help can list the methods without importing torch.
METHODS = {
    "matssl": "matssl.methods.matssl:MatSSL",
    "simclr": "matssl.methods.simclr:SimCLR",
    "mocov2": "matssl.methods.mocov2:MoCoV2",
    "densecl": "matssl.methods.densecl:DenseCL",
    "byol": "matssl.methods.byol:BYOL",
    "pscl": "matssl.methods.pscl:PSCLSimCLR",
    "pscl-simclr": "matssl.methods.pscl:PSCLSimCLR",
    "pscl-moco": "matssl.methods.pscl:PSCLMoCo",
    "slotcon": "matssl.methods.slotcon:SlotCon",
    "spark": "matssl.methods.spark:SparK",
}

# Every method under one name: pscl is another name of pscl-simclr.
DISTINCT = tuple(name for name in METHODS if name != "pscl")


def method_class(name: str) -> type[SSLMethod]:
    """Return the class of a method in METHODS."""
    module, attribute = METHODS[name].split(":")
    found: type[SSLMethod] = getattr(importlib.import_module(module), attribute)
    return found
