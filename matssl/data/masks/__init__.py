"""Mask files become class indices by one table, found from all masks of a data set.

``table`` is the record and its use, ``discover`` finds it, ``class_file`` reads what a user wrote.
"""

from matssl.data.masks.class_file import CLASS_FILES
from matssl.data.masks.discover import BINARY, find_table
from matssl.data.masks.table import ClassTable, MaskClass, Value, binary_table

__all__ = [
    "BINARY",
    "CLASS_FILES",
    "ClassTable",
    "MaskClass",
    "Value",
    "binary_table",
    "find_table",
]
