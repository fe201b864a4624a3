"""Micrographs with the information bars of several makers drawn below them, and pictures without.

Drawn after what the makers' programs write, without a look at how bars are found: the rows of each
bar are known. ``with_bar(number)`` and ``without_bar(number)`` give the same picture for the same
number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from matssl.core.arrays import Array
from matssl.data import synthetic

Draw = np.random.Generator
SIZES = ((384, 512), (442, 645), (480, 640), (512, 512), (600, 800), (703, 1024), (768, 1024))


@dataclass(frozen=True)
class Drawn:
    """A picture whose bar is known.

    Attributes:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32.
        rows: of the bar; 0 for none.
        what: maker's style or kind of picture, and how it was stored.
        scale_bar: length in pixels of the scale bar, 0 for none.
    """

    pixels: Array
    rows: int
    what: str
    scale_bar: int = 0


def with_bar(number: int, size: tuple[int, int] | None = None) -> Drawn:
    """Return picture ``number`` with a bar of one maker's style, stored in one of many ways.

    Args:
        number: equal numbers give equal pictures.
        size: height and width above the bar; None draws one of ``SIZES``.
    """
    g = np.random.default_rng([19, number])
    drawn = SIZES[int(g.integers(len(SIZES)))]
    height, width = size or drawn
    specimen = _specimen(height, width, g)
    name = list(STYLES)[number % len(STYLES)]
    rows = int(g.integers(max(22, round(0.045 * height)), round(0.14 * height)))
    bar, length = STYLES[name](rows, width, g)
    pixels = np.concatenate([specimen, bar])
    pixels, stored = _stored(pixels, number // len(STYLES), g)
    return Drawn(pixels, rows, f"{name}, {stored}", length)


def without_bar(number: int, size: tuple[int, int] | None = None) -> Drawn:
    """Return picture ``number`` of one of the kinds that could be taken for one with a bar.

    Args:
        number: equal numbers give equal pictures.
        size: height and width; None draws one of ``SIZES``.
    """
    g = np.random.default_rng([91, number])
    drawn = SIZES[int(g.integers(len(SIZES)))]
    height, width = size or drawn
    name = list(PLAIN)[number % len(PLAIN)]
    pixels = PLAIN[name](height, width, g)
    pixels, stored = _stored(pixels, number // len(PLAIN), g)
    return Drawn(pixels, 0, f"{name}, {stored}")


def noisy(drawn: Drawn, number: int) -> Drawn:
    """Return a picture of which each pixel is off by up to two grey levels, as by a conversion.

    Args:
        drawn: of 8 bits.
        number: equal numbers give equal noise.
    """
    shape = (*drawn.pixels.shape[:2], *[1] * (drawn.pixels.ndim - 2))
    noise = np.random.default_rng([29, number]).integers(-2, 3, shape)
    pixels = np.clip(drawn.pixels.astype(int) + noise, 0, 255).astype(np.uint8)
    return Drawn(pixels, drawn.rows, f"{drawn.what}, off by up to 2", drawn.scale_bar)


# --- how a picture is stored ---
def _stored(pixels: NDArray[np.uint8], number: int, g: Draw) -> tuple[Array, str]:
    way = number % 10
    if way in (1, 2, 3, 6):
        quality = int(g.integers(50, 96))
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), f"JPEG {quality}"
    if way == 4:
        return 255 - pixels, "inverted"
    if way == 5:
        tint = g.uniform(0.6, 1.0, 3)
        coloured = np.rint(pixels[..., None] * tint).astype(np.uint8)
        if g.random() < 0.5:
            data = cv2.imencode(".jpg", coloured, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
            return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], "coloured JPEG 85"
        return coloured, "coloured"
    if way == 7:
        if g.random() < 0.5:
            return pixels.astype(np.uint16) * 257, "16 bit"
        # The picture uses 12 of the 16 bits, the bar is drawn in the same levels.
        return pixels.astype(np.uint16) * 16, "12 bit"
    if way == 8:
        scale, offset = float(g.choice([1 / 255, 1.0, 37.5])), float(g.choice([0.0, -4.0]))
        return pixels.astype(np.float32) * np.float32(scale) + np.float32(offset), "float"
    return pixels, "8 bit"


# --- what is above the bar ---
def _specimen(height: int, width: int, g: Draw) -> NDArray[np.uint8]:
    kinds = [*synthetic.KINDS, "powder", "layers", "smooth"]
    kind = kinds[int(g.integers(len(kinds)))]
    if kind in synthetic.KINDS:
        return synthetic.micrograph(kind, height, width, int(g.integers(1 << 30)))[0]
    return {"powder": _powder, "layers": _layers, "smooth": _smooth}[kind](height, width, g)


def _field(height: int, width: int, sigma: float, g: Draw) -> Array:
    step = max(1, int(sigma / 3))
    small = g.standard_normal((height // step + 4, width // step + 4)).astype(np.float32)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step)
    field = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-9)


def _seen(levels: Array, g: Draw, noise: float | None = None) -> NDArray[np.uint8]:
    """Return grey levels 0 to 255 as a detector gives them: blurred, noisy, clipped."""
    blurred = cv2.GaussianBlur(levels.astype(np.float32), (0, 0), float(g.uniform(0.5, 1.0)))
    sigma = float(g.uniform(2, 10)) if noise is None else noise
    return np.rint(np.clip(blurred + g.normal(0, sigma, levels.shape), 0, 255)).astype(np.uint8)


def _powder(height: int, width: int, g: Draw) -> NDArray[np.uint8]:
    """Spheres on black, as powders on a carbon tape."""
    levels = np.full((height, width), float(g.uniform(2, 12)))
    y, x = np.mgrid[:height, :width]
    for _ in range(int(g.integers(10, 40))):
        cy, cx, r = g.uniform(0, height), g.uniform(0, width), g.uniform(10, height / 7)
        d = np.hypot(y - cy, x - cx) / r
        levels = np.where(d < 1, 80 + 100 * d**3, levels)
    return _seen(levels, g, float(g.uniform(1, 5)))


def _layers(height: int, width: int, g: Draw, bottom: str = "any") -> NDArray[np.uint8]:
    """Layers with pores, one upon the other; the lowest flat where that is asked for.

    Args:
        height: rows.
        width: columns.
        g: draws.
        bottom: "dark" for a flat dark substrate, "white" for white resin, "any".
    """
    y, _ = np.mgrid[:height, :width].astype(np.float32)
    edges = np.sort(g.uniform(0.15, 0.7, int(g.integers(1, 4)))) * height
    levels = np.full((height, width), float(g.uniform(60, 200)), np.float32)
    texture = 6 * _field(height, width, 2.0, g)
    for edge in edges:
        rough = float(g.choice([0.0, 0.5, 3.0])) * _field(height, width, 15, g)[:1]
        levels = np.where(y > edge + rough, float(g.uniform(40, 220)), levels)
    levels += texture
    levels[_field(height, width, 4.0, g) > 2.0] = 20
    if bottom != "any":
        start = height * float(g.uniform(0.78, 0.97))
        # A cut along the layers may be as straight as a ruler.
        rough = float(g.choice([0.0, 0.0, 0.4, 2.0])) * _field(height, width, 15, g)[:1]
        flat = float(g.uniform(-15, 25)) if bottom == "dark" else float(g.uniform(235, 275))
        levels = np.where(y > start + rough, flat, levels)
        # Debris and pores in it: not all of it is flat.
        specks = _field(height, width, float(g.uniform(1, 3)), g) > float(g.uniform(2.2, 4.5))
        levels = np.where(specks & (y > start), float(g.uniform(60, 200)), levels)
    return _seen(levels, g, float(g.uniform(0.5, 8)))


def _smooth(height: int, width: int, g: Draw) -> NDArray[np.uint8]:
    """A picture of slow changes and little noise, as a light microscope gives it."""
    return _seen(128 + 40 * _field(height, width, 30, g), g, float(g.uniform(0.5, 3)))


def _gradient(height: int, width: int, g: Draw) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = float(g.choice([0.0, np.pi / 2, g.uniform(0, np.pi)]))
    along = np.cos(angle) * y / height + np.sin(angle) * x / width
    levels = float(g.uniform(-30, 60)) + float(g.uniform(100, 260)) * along
    return _seen(levels, g, float(g.choice([0.0, 0.5, 3.0])))


def _bands(height: int, width: int, g: Draw) -> NDArray[np.uint8]:
    """Polished bands: stripes along the rows, some of them flat, with scratches."""
    levels = np.zeros((height, width), np.float32)
    top = 0
    while top < height:
        rows = int(g.integers(10, height // 5))
        level, grain = float(g.uniform(20, 235)), float(g.choice([0.0, 2.0, 15.0]))
        part = levels[top : top + rows]
        part[:] = level + grain * g.standard_normal((len(part), 1))
        top += rows
    for _ in range(int(g.integers(0, 30))):
        y = int(g.integers(height))
        left, right = sorted(g.integers(0, width, 2).tolist())
        cv2.line(levels, (left, y), (right, y + int(g.integers(-3, 4))), float(g.uniform(0, 255)))
    return _seen(levels, g, float(g.uniform(0.5, 6)))


def _written_on(height: int, width: int, g: Draw) -> NDArray[np.uint8]:
    """A micrograph with writing and a scale bar on the specimen itself: no row is bar alone."""
    picture = _specimen(height, width, g)
    level = int(g.choice([0, 255]))
    _write(picture, "15.0kV  x2,000  10 um", (8, height - 34), 20, level)
    length = int(g.uniform(0.1, 0.25) * width)
    picture[height - 22 : height - 18, width - length - 10 : width - 10] = level
    return picture


PLAIN: dict[str, Callable[[int, int, Draw], NDArray[np.uint8]]] = {
    **{
        kind: lambda h, w, g, kind=kind: synthetic.micrograph(kind, h, w, int(g.integers(1 << 30)))[
            0
        ]
        for kind in synthetic.KINDS
    },
    "powder": _powder,
    "layers on a flat dark substrate": lambda h, w, g: _layers(h, w, g, "dark"),
    "layers on white resin": lambda h, w, g: _layers(h, w, g, "white"),
    "smooth": _smooth,
    "gradient": _gradient,
    "polished bands": _bands,
    "written on": _written_on,
}


# --- bars ---
def _write(
    target: NDArray[np.uint8], text: str, place: tuple[int, int], size: int, level: int
) -> int:
    """Write text in a smooth face and return its width; ``place`` is its upper left corner."""
    image = Image.fromarray(target)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(place, text, fill=level, font=font)
    target[:] = np.asarray(image)
    return int(font.getlength(text))


def _rule(bar: NDArray[np.uint8], top: int, left: int, length: int, thick: int, level: int) -> None:
    bar[top : top + thick, left : left + length] = level


def _frame(bar: NDArray[np.uint8], thick: int, level: int, margin: int = 0) -> None:
    bottom, right = bar.shape[0] - margin, bar.shape[1] - margin
    bar[margin : margin + thick, margin:right] = level
    bar[bottom - thick : bottom, margin:right] = level
    bar[margin:bottom, margin : margin + thick] = level
    bar[margin:bottom, right - thick : right] = level


def _zeiss(rows: int, width: int, g: Draw) -> tuple[NDArray[np.uint8], int]:
    """White or black, a frame around it, writing in two lines beside a scale bar with ends."""
    paper, ink = (255, 0) if g.random() < 0.7 else (0, 255)
    bar = np.full((rows, width), paper, np.uint8)
    size = max(8, int(rows * 0.3))
    length = int(g.uniform(0.08, 0.16) * width)
    _write(bar, "2 um", (14, 3), size, ink)
    top = int(rows * 0.72)
    _rule(bar, top, 12, length, 2, ink)
    bar[top - 3 : top + 5, 12:14] = ink
    bar[top - 3 : top + 5, 10 + length : 12 + length] = ink
    place = 12 + length + 24
    for upper, lower in (("EHT = 15.00 kV", "WD = 8.5 mm"), ("Signal A = SE2", "Mag = 5.00 K X")):
        _write(bar, upper, (place, 3), size, ink)
        _write(bar, lower, (place, rows // 2), size, ink)
        place += 8 * size + 16
    if g.random() < 0.8:
        _frame(bar, int(g.integers(1, 3)), ink, int(g.choice([0, 0, 2])))
    return bar, length


def _fei(rows: int, width: int, g: Draw) -> tuple[NDArray[np.uint8], int]:
    """Black cells with thin rules, a grey heading above a white value, a block for the name."""
    bar = np.zeros((rows, width), np.uint8)
    size = max(7, int(rows * 0.32))
    cells = (
        ("HV", "20.00 kV"),
        ("mag", "5 000 x"),
        ("WD", "10.1 mm"),
        ("det", "ETD"),
        ("HFW", "59 um"),
    )
    place = 4
    for heading, value in cells:
        wide = _write(bar, value, (place + 4, rows // 2 - 1), size, 255) + 12
        _write(bar, heading, (place + 4, 2), size, 180)
        bar[:, place + wide : place + wide + 1] = 140
        place += wide + 2
        if place > 0.6 * width:
            break
    length = int(g.uniform(0.1, 0.2) * width)
    left = width - length - 12
    _rule(bar, rows // 3, left, length, 1, 255)
    bar[rows // 3 - 4 : rows // 3 + 5, left : left + 1] = 255
    bar[rows // 3 - 4 : rows // 3 + 5, left + length - 1 : left + length] = 255
    _write(bar, "20 um", (left + length // 3, rows // 2), size, 255)
    if g.random() < 0.5:
        _frame(bar, 1, int(g.choice([140, 255])))
    return bar, length


def _jeol(rows: int, width: int, g: Draw) -> tuple[NDArray[np.uint8], int]:
    """Black without any rule, one line of large writing and a thick scale bar."""
    bar = np.zeros((rows, width), np.uint8)
    size = int(rows * float(g.uniform(0.45, 0.8)))
    top = max(0, (rows - size) // 2 - 1)
    place = 6 + _write(bar, "SEI 15kV", (6, top), size, 255)
    length = int(g.uniform(0.1, 0.18) * width)
    if place + 2 * length < width:
        _rule(bar, rows // 2, width - length - 16, length, max(2, rows // 12), 255)
        return bar, length
    return bar, 0


def _hitachi(rows: int, width: int, g: Draw) -> tuple[NDArray[np.uint8], int]:
    """Black, one long line of writing and a scale of eleven ticks."""
    paper, ink = (0, 255) if g.random() < 0.8 else (40, 240)
    bar = np.full((rows, width), paper, np.uint8)
    size = int(rows * 0.5)
    _write(bar, "S4800 5.0kV 8.1mm x30.0k SE(U)", (4, rows // 5), size, ink)
    length = int(g.uniform(0.15, 0.22) * width)
    left = width - length - 10
    bar[:, left - 8 :] = paper
    for tick in range(11):
        x = left + round(tick * (length - 1) / 10)
        bar[rows // 4 : rows // 4 + (rows // 3 if tick % 5 == 0 else rows // 5), x : x + 1] = ink
    _write(bar, "1.00um", (left, int(rows * 0.6)), max(7, rows // 3), ink)
    return bar, length - 1


def _tescan(rows: int, width: int, g: Draw) -> tuple[NDArray[np.uint8], int]:
    """White or grey cells with frames, a dark block with the name of the maker."""
    paper = int(g.choice([255, 230, 192]))
    bar = np.full((rows, width), paper, np.uint8)
    size = max(7, int(rows * 0.26))
    edges = [0, int(0.22 * width), int(0.45 * width), int(0.78 * width), width]
    texts = (
        ("SEM HV: 15.0 kV", "View: 208 um"),
        ("WD: 9.8 mm", "Det: BSE"),
        ("", "50 um"),
        ("", ""),
    )
    for left, right, (upper, lower) in zip(edges, edges[1:], texts, strict=False):
        _frame(bar[:, left:right], 1, 60)
        _write(bar[:, left:right], upper, (6, 3), size, 0)
        _write(bar[:, left:right], lower, (6, rows // 2), size, 0)
    length = int(g.uniform(0.14, 0.26) * width)
    left = edges[2] + 12
    _rule(bar, rows // 3, left, length, 2, 0)
    bar[rows // 3 - 3 : rows // 3 + 5, left : left + 2] = 0
    bar[rows // 3 - 3 : rows // 3 + 5, left + length - 2 : left + length] = 0
    if g.random() < 0.6:
        bar[1:-1, edges[3] + 1 : -1] = int(g.integers(20, 90))
    _write(
        bar,
        "TESCAN",
        (edges[3] + 10, rows // 3),
        int(rows * 0.35),
        255 if bar[rows // 2, -5] < 100 else 0,
    )
    return bar, length


def _plain_grey(rows: int, width: int, g: Draw) -> tuple[NDArray[np.uint8], int]:
    """A bar of any grey with a scale bar and its length, as programs of all kinds export it."""
    paper = int(g.integers(0, 256))
    ink = 255 if paper < 128 else 0
    bar = np.full((rows, width), paper, np.uint8)
    length = int(g.uniform(0.1, 0.4) * width)
    left = int(g.choice([10, (width - length) // 2, width - length - 10]))
    _rule(bar, max(3, rows // 4), left, length, max(2, rows // 9), ink)
    if g.random() < 0.7:
        _write(bar, "100 um", (left + 4, rows // 2), max(7, int(rows * 0.4)), ink)
    if g.random() < 0.3:
        _rule(bar, 0, 0, width, int(g.integers(1, 3)), ink)
    return bar, length


STYLES: dict[str, Callable[[int, int, Draw], tuple[NDArray[np.uint8], int]]] = {
    "Zeiss": _zeiss,
    "FEI": _fei,
    "JEOL": _jeol,
    "Hitachi": _hitachi,
    "TESCAN": _tescan,
    "plain": _plain_grey,
}
