"""Mask files become class indices by one table, found from all masks of a data set.

``table`` is the record and its use, ``values`` what it lists. ``discover`` finds it: ``survey``
says what one file holds (``edges``, ``instances``), ``conventions`` brings files that differ
together, ``heaps`` reads soft masks. ``class_file`` reads what a user wrote.
"""

from matssl.data.masks.class_file import CLASS_FILES, class_file, class_home
from matssl.data.masks.conventions import files
from matssl.data.masks.discover import (
    BINARY,
    OneClass,
    binary_threshold,
    find_binary,
    find_table,
    is_binary,
)
from matssl.data.masks.instances import numbers
from matssl.data.masks.table import ClassTable, MaskClass, binary_table, plain
from matssl.data.masks.values import Value

__all__ = [
    "BINARY",
    "CLASS_FILES",
    "ClassTable",
    "MaskClass",
    "OneClass",
    "Value",
    "binary_table",
    "binary_threshold",
    "class_file",
    "class_home",
    "files",
    "find_binary",
    "find_table",
    "is_binary",
    "numbers",
    "plain",
]
