"""Micrograph files as they are: native bits, pixel size and bar height from the metadata.

``formats`` makes pixels of a file, ``calibration`` reads the makers' metadata, ``bar`` finds a
drawn information bar. Nothing here changes a grey level.
"""

from matssl.data.readers.bar import bar_height
from matssl.data.readers.calibration import parse_pixel_size
from matssl.data.readers.formats import (
    EXTENSIONS,
    Header,
    Micrograph,
    digest,
    find_images,
    from_array,
    header,
    is_image_name,
    natural,
    read,
    read_mask,
    with_pixel_size,
)

__all__ = [
    "EXTENSIONS",
    "Header",
    "Micrograph",
    "bar_height",
    "digest",
    "find_images",
    "from_array",
    "header",
    "is_image_name",
    "natural",
    "parse_pixel_size",
    "read",
    "read_mask",
    "with_pixel_size",
]
