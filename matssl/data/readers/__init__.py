"""Micrograph files as they are: native bits, pixel size and bar height from the metadata.

``files`` finds them, ``headers`` judges what they promise, ``tiff`` and ``raster`` decode them,
``photometric`` and ``planes`` make grey levels of what is stored, ``orientation`` turns them
upright, ``formats`` puts a :class:`Micrograph` together. ``calibration`` and ``units`` read the
makers' metadata, ``bar`` finds a drawn information bar. Nothing here changes a grey level.
``mask`` reads the values of a mask file. ``pages`` names the pages of a stack.
"""

from matssl.data.readers.bar import bar_height
from matssl.data.readers.files import (
    EXTENSIONS,
    Listing,
    find_images,
    is_image_name,
    is_junk,
    is_run,
    listing,
    natural,
    size_of,
    unread,
)
from matssl.data.readers.formats import (
    Micrograph,
    digest,
    from_array,
    read,
    stacked,
    with_pixel_size,
)
from matssl.data.readers.headers import Header, header
from matssl.data.readers.mask import RawMask, read_mask
from matssl.data.readers.pages import alike, file_of, frames, page_path, stray
from matssl.data.readers.pages import told as told_page
from matssl.data.readers.units import parse_pixel_size

__all__ = [
    "EXTENSIONS",
    "Header",
    "Listing",
    "Micrograph",
    "RawMask",
    "alike",
    "bar_height",
    "digest",
    "file_of",
    "find_images",
    "frames",
    "from_array",
    "header",
    "is_image_name",
    "is_junk",
    "is_run",
    "listing",
    "natural",
    "page_path",
    "parse_pixel_size",
    "read",
    "read_mask",
    "size_of",
    "stacked",
    "stray",
    "told_page",
    "unread",
    "with_pixel_size",
]
