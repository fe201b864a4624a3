"""Synthetic micrographs with exact masks, hard enough that a grey threshold fails.

Each kind draws a specimen (grey levels and class of every pixel) and images it: blur, noise, uneven
light, now and then an information bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.core.arrays import Array
from matssl.core.errors import UserError

# Information bars of real microscopes take about this share of the height.
BAR_SHARE = 0.07


def micrograph(
    kind: str, height: int, width: int, seed: int, bar: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image uint8 (H, W) and its classes uint8 (H, W).

    Args:
        kind: a key of KINDS.
        height: rows of the specimen; the bar comes below them.
        width: columns.
        seed: equal seeds give equal images.
        bar: whether an information bar is drawn below the image; the mask stays without it.

    Raises:
        UserError: no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind {kind!r} of micrograph; there are: {', '.join(KINDS)}")
    generator = rng.generator(seed, 0, list(KINDS).index(kind), stream=rng.NOISE)
    specimen, mask = KINDS[kind](height, width, generator)
    image = imaged(specimen, generator)
    if bar:
        image = np.concatenate([image, _bar(height, width, generator)])
    return image, mask


def write_dataset(
    folder: Path | str,
    kind: str,
    n_train: int,
    n_val: int,
    n_test: int,
    size: int,
    seed: int,
    bar: bool = False,
) -> None:
    """Write a labelled set in the layout ``train + train_annot`` as PNG files.

    Args:
        folder: made where absent.
        kind: a key of KINDS.
        n_train: training images.
        n_val: validation images.
        n_test: test images.
        size: side in pixels.
        seed: of the first image.
        bar: whether images have an information bar; masks then are lower by it.
    """
    folder = Path(folder)
    number = 0
    for split, count in (("train", n_train), ("val", n_val), ("test", n_test)):
        images, masks = folder / split, folder / f"{split}_annot"
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image, mask = micrograph(kind, size, size, seed * 1000 + number, bar)
            # Every image stands for a specimen of its own.
            name = f"specimen{chr(65 + number % 26)}{number // 26 or ''}_1.png"
            _write(images / name, image)
            _write(masks / name, mask)
            number += 1
    (folder / "classes.yaml").write_text(
        "classes:\n" + "".join(f"  {name}: {i}\n" for i, name in enumerate(CLASS_NAMES[kind])),
        encoding="utf-8",
    )


def write_pool(
    folder: Path | str, n: int, size: int, seed: int, kinds: Sequence[str] | None = None
) -> None:
    """Write unlabelled micrographs of several kinds, some with an information bar, as PNG files.

    Args:
        folder: made where absent.
        n: how many.
        size: side in pixels.
        seed: of the first image.
        kinds: which kinds in turn; all of them when None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(kinds or KINDS)
    for i in range(n):
        kind = names[i % len(names)]
        image, _ = micrograph(kind, size, size, seed * 1000 + i, bar=i % 5 == 4)
        _write(folder / f"{kind}_{i:04d}_1.png", image)


def _polycrystal(height: int, width: int, g: np.random.Generator) -> tuple[Array, Array]:
    """Grains with orientation contrast and etched boundaries; the boundaries are the class.

    The boundaries are darker than their grain, but not darker than a dark grain.
    """
    count = max(6, int(height * width / float(g.uniform(900, 1600))))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    points = np.stack([g.uniform(0, height, count), g.uniform(0, width, count)], axis=1)
    nearest, gap = _voronoi(y + _smooth(height, width, 6, g) * 3, x, points)
    levels = g.uniform(0.35, 0.8, count)
    angles = g.uniform(0, np.pi, count)[nearest]
    etch = 0.03 * np.sin((np.cos(angles) * x + np.sin(angles) * y) * 0.9)
    boundary = gap < 2.2
    specimen = levels[nearest] + etch
    specimen = np.where(boundary, specimen - g.uniform(0.16, 0.24), specimen)
    return specimen, boundary.astype(np.uint8)


def _two_phase(height: int, width: int, g: np.random.Generator) -> tuple[Array, Array]:
    """Fine lamellae beside a speckled phase and small blocky grains: equal grey, other texture."""
    coarse = _smooth(height, width, 22, g)
    other = _smooth(height, width, 22, g)
    mask = np.zeros((height, width), np.uint8)
    mask[coarse > 0.25] = 1
    mask[(other > 0.9) & (coarse <= 0.25)] = 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bend = 9 * _smooth(height, width, 14, g)
    angle = g.uniform(0, np.pi)
    period = g.uniform(5.0, 7.0)
    phase = (np.cos(angle) * x + np.sin(angle) * y + bend) * 2 * np.pi / period
    lamellae = 0.5 + 0.2 * np.sign(np.sin(phase))
    speckle = 0.5 + 0.2 * np.clip(_smooth(height, width, 1.6, g), -1.6, 1.6)
    blocks = 0.5 + 0.22 * np.sign(_smooth(height, width, 3.6, g))
    return np.choose(mask, [speckle, lamellae, blocks]), mask


def _particles(height: int, width: int, g: np.random.Generator) -> tuple[Array, Array]:
    """Touching particles of two sizes in a matrix as bright as they are, seen by their rims."""
    mask = np.zeros((height, width), np.uint8)
    specimen = 0.45 + 0.06 * _smooth(height, width, 2.0, g)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for index, (low, high, share) in enumerate(((9, 17, 0.28), (3, 5, 0.06)), start=1):
        wanted = share * height * width
        for _ in range(600):
            if float((mask == index).sum()) >= wanted:
                break
            radius = g.uniform(low, high)
            cy, cx = g.uniform(0, height), g.uniform(0, width)
            stretch, turn = g.uniform(0.75, 1.0), g.uniform(0, np.pi)
            dy, dx = y - cy, x - cx
            along, across = (
                np.cos(turn) * dx + np.sin(turn) * dy,
                np.cos(turn) * dy - np.sin(turn) * dx,
            )
            distance = np.sqrt((along * stretch) ** 2 + (across / stretch) ** 2) / radius
            inside = (distance < 1) & (mask == 0)
            dome = 0.40 + 0.16 * distance**4 + 0.06 * (-along / radius)
            specimen[inside] = dome[inside]
            mask[inside] = index
    return specimen, mask


def _cracks(height: int, width: int, g: np.random.Generator) -> tuple[Array, Array]:
    """A coarse oxide layer with thin cracks, beside a porous substrate; pores are dark too."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    top = height * g.uniform(0.2, 0.4) + 8 * _smooth(height, width, 18, g)
    bottom = height * g.uniform(0.6, 0.8) + 8 * _smooth(height, width, 18, g)
    mask = ((y > top) & (y < bottom)).astype(np.uint8)
    layer = 0.5 + 0.05 * _smooth(height, width, 1.2, g)
    ground = 0.5 + 0.09 * _smooth(height, width, 4.0, g)
    ground = np.where(_smooth(height, width, 3.0, g) > 1.9, 0.2, ground)
    specimen = np.where(mask == 1, layer, ground)
    lines = np.zeros((height, width), np.uint8)
    for _ in range(int(g.integers(3, 7))):
        cx = g.uniform(0, width)
        cy = g.uniform(0.25 * height, 0.7 * height)
        direction = g.uniform(0, 2 * np.pi)
        for _ in range(60):
            direction += g.normal(0, 0.25)
            nx, ny = cx + 3 * np.cos(direction), cy + 3 * np.sin(direction)
            ends = ((int(cx), int(cy)), (int(nx), int(ny)))
            cv2.line(lines, *ends, 1, int(g.integers(1, 3)))
            cx, cy = nx, ny
    crack = (lines > 0) & (mask == 1)
    specimen = np.where(crack, 0.24, specimen)
    mask[crack] = 2
    return specimen, mask


KINDS: dict[str, Callable[[int, int, np.random.Generator], tuple[Array, Array]]] = {
    "polycrystal": _polycrystal,
    "two_phase": _two_phase,
    "particles": _particles,
    "cracks": _cracks,
}
CLASS_NAMES = {
    "polycrystal": ("grain", "boundary"),
    "two_phase": ("speckled", "lamellar", "blocky"),
    "particles": ("matrix", "large", "small"),
    "cracks": ("substrate", "oxide", "crack"),
}


def imaged(specimen: Array, g: np.random.Generator) -> NDArray[np.uint8]:
    """Return what a microscope makes of a specimen: blur, uneven light, contrast, noise."""
    height, width = specimen.shape
    blurred = cv2.GaussianBlur(specimen.astype(np.float32), (0, 0), float(g.uniform(0.5, 0.9)))
    light = 0.10 * _smooth(height, width, max(height, width) / 3, g)
    gain, offset = g.uniform(0.7, 1.1), g.uniform(-0.08, 0.08)
    noise = g.normal(0, g.uniform(0.03, 0.06), specimen.shape)
    image = (blurred - 0.5) * gain + 0.5 + offset + light + noise
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _bar(height: int, width: int, g: np.random.Generator) -> NDArray[np.uint8]:
    """Return an information bar: black, a white rule on top, a scale bar and some writing."""
    rows = max(12, round(BAR_SHARE * height))
    bar = np.zeros((rows, width), np.uint8)
    bar[0] = 255
    length = int(g.uniform(0.15, 0.25) * width)
    bar[rows // 2 : rows // 2 + 2, width - length - 6 : width - 6] = 255
    text = f"{int(g.integers(5, 30))} kV  x{int(g.integers(1, 50))}00"
    place = (4, rows - max(3, rows // 3))
    cv2.putText(bar, text, place, cv2.FONT_HERSHEY_SIMPLEX, rows / 45, 255, 1)
    return bar


def _smooth(height: int, width: int, sigma: float, g: np.random.Generator) -> Array:
    """Return a random field of unit variance that changes over about ``sigma`` pixels."""
    # Coarse fields are drawn small and enlarged: the same look at a fraction of the time.
    step = max(1, int(sigma / 3))
    shape = (height // step + 8, width // step + 8)
    field = cv2.GaussianBlur(
        g.standard_normal(shape).astype(np.float32),
        (0, 0),
        sigma / step,
        borderType=cv2.BORDER_REFLECT,
    )
    if step > 1:
        large = (shape[1] * step, shape[0] * step)
        field = cv2.resize(field, large, interpolation=cv2.INTER_CUBIC)
    field = field[:height, :width]
    return (field - field.mean()) / (field.std() + 1e-9)


def _voronoi(y: Array, x: Array, points: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the nearest point of each pixel, and how much farther the second one is."""
    best = np.full(y.shape, np.inf, np.float32)
    second = best.copy()
    nearest = np.zeros(y.shape, np.int64)
    for number, (py, px) in enumerate(points):
        distance = np.sqrt((y - py) ** 2 + (x - px) ** 2)
        closer = distance < best
        second = np.where(closer, best, np.minimum(second, distance))
        nearest = np.where(closer, number, nearest)
        best = np.where(closer, distance, best)
    return nearest, second - best


def _write(path: Path, pixels: Array) -> None:
    # imencode and a plain write, since OpenCV's own writer stumbles over some names.
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
