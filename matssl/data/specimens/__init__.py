"""Which images are of one specimen, and what is drawn by whole specimens.

``grouping`` says it for every command: from ``table`` (``specimens.csv``), an expression, folders,
or ``guess``, which weighs the ``names`` of all files. ``splitting`` cuts images into parts by it.
``sequences`` says which images are frames beside each other.
"""

from matssl.data.specimens.grouping import Grouping, group, pictures
from matssl.data.specimens.sequences import Frame, Sequences
from matssl.data.specimens.splitting import (
    MIN_IMAGES_TO_SPLIT,
    Pair,
    cut_all,
    cut_validation,
    folds,
    grouped_folds,
    one_left,
    take,
    validated_inside,
)
from matssl.data.specimens.table import FILE_NAME, Row, SpecimenTable, read_table, write_table

__all__ = [
    "FILE_NAME",
    "MIN_IMAGES_TO_SPLIT",
    "Frame",
    "Grouping",
    "Pair",
    "Row",
    "Sequences",
    "SpecimenTable",
    "cut_all",
    "cut_validation",
    "folds",
    "group",
    "grouped_folds",
    "one_left",
    "pictures",
    "read_table",
    "take",
    "validated_inside",
    "write_table",
]
