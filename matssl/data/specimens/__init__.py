"""Which images are of one specimen, and what is drawn by whole specimens.

``table`` reads and writes ``specimens.csv``, ``splitting`` cuts images into parts by specimen.
"""

from matssl.data.specimens.splitting import (
    MIN_IMAGES_TO_SPLIT,
    Pair,
    check_regex,
    cut_all,
    cut_validation,
    folds,
    group_of,
    groups_of,
    take,
)
from matssl.data.specimens.table import FILE_NAME, Row, SpecimenTable, read_table, write_table

__all__ = [
    "FILE_NAME",
    "MIN_IMAGES_TO_SPLIT",
    "Pair",
    "Row",
    "SpecimenTable",
    "check_regex",
    "cut_all",
    "cut_validation",
    "folds",
    "group_of",
    "groups_of",
    "read_table",
    "take",
    "write_table",
]
