"""A contact sheet: many pictures small on one page, each with its name and what was made of it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from matssl import pictures
from matssl.core.run_folder import atomic_write_bytes

# A page that fills a slide; more pictures than that are too small to be judged.
PAGE_WIDTH, MOST = 2400, 60
LARGEST_CELL, GAP, MARGIN = 760, 18, 36
SHAPE = 1.35
CUT, OUTLINE, WRONG = (230, 60, 0), (255, 214, 0), (200, 30, 40)
INK, FAINT, SHADE = (31, 41, 51), (94, 108, 122), (245, 247, 250)


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet.

    Attributes:
        image: uint8 (h, w) or (h, w, 3); None where the file cannot be read.
        title: what stands out below it.
        text: a fainter line below that.
        kept: share of the rows above the cut, 1 where nothing is cut off.
        cut: what stands beside the cut line.
        labels: class of each pixel above the cut, uint8 (rows, w); None for none.
        marks: lines on the image, each (x0, y0, x1, y1) in shares of its width and height.
        wrong: what is wrong with it, in words; "" for nothing.
    """

    image: NDArray[np.uint8] | None
    title: str
    text: str
    kept: float = 1.0
    cut: str = ""
    labels: NDArray[np.uint8] | None = None
    marks: tuple[tuple[float, float, float, float], ...] = ()
    wrong: str = ""


def sheet(cells: Sequence[Cell], path: Path, title: str, text: str, marks: str = "") -> None:
    """Write a contact sheet as PNG, atomically.

    Args:
        cells: at most sixty pictures.
        path: PNG file.
        title: of the page.
        text: below it; what is left out.
        marks: what the lines on the pictures are, for the legend; "" where there are none.

    Raises:
        OSError: the file cannot be written.
    """
    columns = _columns(cells)
    width = min(LARGEST_CELL, (PAGE_WIDTH - 2 * MARGIN - GAP * (columns - 1)) // columns)
    size = int(np.clip(width / 15, 15, 26))
    page_width = max(2 * MARGIN + columns * width + (columns - 1) * GAP, PAGE_WIDTH // 2)
    drawn = [_cell(cell, width, size) for cell in cells]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    legend = _legend(cells, marks)
    lines = _wrapped(text, _font(24), page_width - 2 * MARGIN) if text else []
    head = MARGIN + 52 + 34 * len(lines) + (44 if legend else 0) + 12
    page = Image.new("RGB", (page_width, head + sum(heights) + GAP * len(rows) + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 10), title, fill=INK, font=_font(36, bold=True))
    top = MARGIN + 46
    for line in lines:
        draw.text((MARGIN, top), line, fill=FAINT, font=_font(24))
        top += 34
    _draw_legend(draw, legend, top + 6)
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            page.paste(cell, (MARGIN + column * (width + GAP), top))
        top += height + GAP
    stream = io.BytesIO()
    # Noise hardly shrinks, however long one tries.
    page.save(stream, "PNG", compress_level=2, dpi=(pictures.DPI, pictures.DPI))
    atomic_write_bytes(path, stream.getvalue())


def _columns(cells: Sequence[Cell]) -> int:
    """Return how many pictures stand side by side: a page as wide as a slide."""
    sides = [c.image.shape[1] / c.image.shape[0] for c in cells if c.image is not None]
    shape = float(np.median(sides)) if sides else 1.0
    return max(1, min(len(cells), 10, math.ceil(math.sqrt(len(cells) * SHAPE / shape))))


def _cell(cell: Cell, width: int, size: int) -> Image.Image:
    """Return a picture with its lines and names, ``width`` pixels wide."""
    picture = _blank(width) if cell.image is None else _thumbnail(cell, width, size)
    lines = [(cell.title, INK, _font(size, bold=True)), (cell.text, FAINT, _font(size - 2))]
    if cell.wrong:
        wrong = _font(size - 2, bold=True)
        lines += [(line, WRONG, wrong) for line in _wrapped(cell.wrong, wrong, width)[:3]]
    step = size + 7
    whole = Image.new("RGB", (width, picture.height + 6 + step * len(lines) + 4), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    if cell.wrong:
        draw.rectangle((0, 0, width - 1, picture.height - 1), outline=WRONG, width=5)
    for number, (line, colour, font) in enumerate(lines):
        place = (1, picture.height + 6 + number * step)
        draw.text(place, _elided(line, font, width - 2), fill=colour, font=font)
    return whole


def _blank(width: int) -> Image.Image:
    image = Image.new("RGB", (width, round(0.7 * width)), SHADE)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, *image.size), fill=(205, 212, 220), width=2)
    draw.line((0, image.height, image.width, 0), fill=(205, 212, 220), width=2)
    return image


def _thumbnail(cell: Cell, width: int, size: int) -> Image.Image:
    """Return the picture with the mask's outline, the cut and the marks."""
    assert cell.image is not None
    height = max(24, min(round(width * cell.image.shape[0] / cell.image.shape[1]), 2 * width))
    small = cv2.resize(cell.image, (width, height), interpolation=cv2.INTER_AREA)
    picture = np.repeat(small[..., None], 3, axis=2) if small.ndim == 2 else small.copy()
    cut = round(cell.kept * height)
    if cell.labels is not None:
        _outline(picture[:cut], cell.labels, thick=2 if width >= 300 else 1)
    if cell.kept < 1:
        # What is cut off stays in sight, but pale.
        below = picture[cut:].astype(np.float32)
        picture[cut:] = np.rint(0.55 * below + 0.45 * np.array((255, 226, 214))).astype(np.uint8)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    if cell.kept < 1:
        thick = 3 if width >= 300 else 2
        draw.line((0, cut, width, cut), fill=CUT, width=thick)
        if cell.cut:
            font = _font(size - 1, bold=True)
            place = (width - font.getlength(cell.cut) - 8, cut - size - 8)
            _framed(draw, place, cell.cut, font, CUT)
    for x0, y0, x1, y1 in cell.marks:
        ends = (x0 * width, y0 * height, x1 * width, y1 * height)
        draw.line(ends, fill=CUT, width=4)
        for x, y in ((ends[0], ends[1]), (ends[2], ends[3])):
            draw.line((x, y - 12, x, y + 12), fill=CUT, width=4)
    return image


def _outline(picture: NDArray[np.uint8], labels: NDArray[np.uint8], thick: int) -> None:
    """Draw where classes meet, bright on a dark halo, so that it is seen on any grey."""
    height, width = picture.shape[:2]
    small = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    meets = np.zeros(small.shape, np.uint8)
    meets[:-1] |= small[:-1] != small[1:]
    meets[:, :-1] |= small[:, :-1] != small[:, 1:]
    line = cv2.dilate(meets, np.ones((thick, thick), np.uint8)) > 0
    halo = cv2.dilate(line.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    picture[halo] = picture[halo] // 2
    picture[line] = OUTLINE


def _framed(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, int, int],
) -> None:
    """Write on a plate of the line's colour."""
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    draw.rectangle((left - 5, top - 3, right + 5, bottom + 3), fill=colour)
    draw.text(place, text, fill="white", font=font)


def _legend(cells: Sequence[Cell], marks: str) -> list[tuple[str, tuple[int, int, int]]]:
    entries = []
    if any(cell.kept < 1 for cell in cells):
        entries.append(("cut: what is below is left out", CUT))
    if any(cell.labels is not None for cell in cells):
        entries.append(("where classes of the mask meet", OUTLINE))
    if marks:
        entries.append((marks, CUT))
    if any(cell.wrong for cell in cells):
        entries.append(("needs a look", WRONG))
    return entries


def _draw_legend(
    draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, tuple[int, int, int]]], top: int
) -> None:
    left, font = MARGIN, _font(22)
    for text, colour in entries:
        draw.rectangle((left, top + 9, left + 44, top + 17), fill=colour, outline=FAINT)
        draw.text((left + 54, top), text, fill=INK, font=font)
        left += 54 + int(font.getlength(text)) + 42


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the face that matplotlib brings: it has the signs of units and most letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _elided(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a line that fits, its middle left out: names differ at their ends."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 4 and font.getlength(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}") > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return a text in lines that fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
