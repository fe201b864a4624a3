"""Self-supervised methods: one folder and one line in METHODS each."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matssl.methods.base import SSLMethod
    from matssl.methods.settings import MethodSettings

# Folder and class by name, as words: --help lists the methods without importing torch. A folder
# holds method.py with the class, settings.py with CLASSSettings, and the recipes.
METHODS = {
    "matssl": "matssl.methods.matssl:MatSSL",
    "simclr": "matssl.methods.simclr:SimCLR",
    "mocov2": "matssl.methods.mocov2:MoCoV2",
    "densecl": "matssl.methods.densecl:DenseCL",
    "byol": "matssl.methods.byol:BYOL",
    "pscl": "matssl.methods.pscl:PSCLSimCLR",
    "pscl-simclr": "matssl.methods.pscl:PSCLSimCLR",
    "pscl-moco": "matssl.methods.pscl.moco:PSCLMoCo",
    "vicreg": "matssl.methods.vicreg:VICReg",
    "slotcon": "matssl.methods.slotcon:SlotCon",
    "spark": "matssl.methods.spark:SparK",
}


def method_class(name: str) -> type[SSLMethod]:
    """Return the class of a method in METHODS."""
    folder, attribute = METHODS[name].split(":")
    found: type[SSLMethod] = getattr(importlib.import_module(f"{folder}.method"), attribute)
    return found


def settings_class(name: str) -> type[MethodSettings]:
    """Return the class of the settings of a method in METHODS; does not import torch."""
    folder, attribute = METHODS[name].split(":")
    module = importlib.import_module(f"{folder}.settings")
    found: type[MethodSettings] = getattr(module, f"{attribute}Settings")
    return found


def distinct() -> tuple[str, ...]:
    """Return every method under one name: pscl is another name of pscl-simclr."""
    return tuple({path: name for name, path in METHODS.items()}.values())


def recipes(name: str) -> str:
    """Return the folder of a method's recipes."""
    folder = METHODS[name].split(":")[0].split(".")[2:]
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), *folder)
