"""Mask files as people save them: some sixty situations, drawn, with what each pixel is."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

# Class index of each pixel, 255 where it is to be ignored.
Truth = list[np.ndarray]
HEIGHT, WIDTH = 96, 128


@dataclass(frozen=True)
class Situation:
    """A set of masks.

    Attributes:
        write: writes the masks into a folder and returns what they mean, in the order of names.
        tolerance: share of the pixels that may be of another class (JPEG, soft edges).
        asks: whether a refusal that names the way out is as right as the classes.
        only_asks: whether only the refusal is right.
        says: a word of the notes.
        flags: of ``find_table``.
    """

    write: Callable[[Path], Truth]
    tolerance: float = 0.0
    asks: bool = False
    only_asks: bool = False
    says: str = ""
    flags: dict[str, str] = field(default_factory=dict)


SITUATIONS: dict[str, Situation] = {}


def situation(**facts: object) -> Callable[[Callable[[Path], Truth]], Callable[[Path], Truth]]:
    """Enter a situation under the name of its function."""

    def enter(write: Callable[[Path], Truth]) -> Callable[[Path], Truth]:
        SITUATIONS[write.__name__] = Situation(write, **facts)  # type: ignore[arg-type]
        return write

    return enter


def blobs(seed: int, number: int = 7, size: tuple[int, int] = (5, 12)) -> np.ndarray:
    """Return uint8 0/1: ellipses, and a corner that is always particle."""
    random = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(number):
        centre = (int(random.integers(0, WIDTH)), int(random.integers(0, HEIGHT)))
        axes = (int(random.integers(*size)), int(random.integers(*size)))
        cv2.ellipse(mask, centre, axes, float(random.integers(0, 180)), 0, 360, 1, -1)
    mask[:14, :20] = 1
    return mask


def phases(seed: int, number: int = 3) -> np.ndarray:
    """Return uint8 0 ... number - 1: blobs of each class over the last."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(1, number):
        mask[blobs(seed + 100 * k, 5) > 0] = k
    # Each class is in each mask.
    for k in range(number):
        mask[70:90, 20 * k : 20 * k + 20] = k
    return mask


def grains(seed: int, number: int = 24) -> np.ndarray:
    """Return uint16 object numbers: small ellipses that do not touch, in no order."""
    random = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), np.uint16)
    places = [(x, y) for y in range(8, HEIGHT, 16) for x in range(8, WIDTH, 16)]
    random.shuffle(places)
    for k, (x, y) in enumerate(places[:number], 1):
        axes = (int(random.integers(3, 7)), int(random.integers(3, 6)))
        cv2.ellipse(mask, (int(x), int(y)), axes, float(random.integers(0, 180)), 0, 360, k, -1)
    return mask


def png(folder: Path, i: int, array: np.ndarray) -> None:
    Image.fromarray(array).save(folder / f"m{i}.png")


def tif(folder: Path, i: int, array: np.ndarray, **tags: object) -> None:
    tifffile.imwrite(folder / f"m{i}.tif", array, metadata=None, **tags)  # type: ignore[arg-type]


def jpeg(array: np.ndarray, quality: int) -> np.ndarray:
    """Return what is left of a grey or colour picture after JPEG."""
    kept = io.BytesIO()
    Image.fromarray(array).save(kept, "JPEG", quality=quality)
    return np.asarray(Image.open(kept))


def soft(array: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(array, (0, 0), sigma)


def palette(folder: Path, i: int, numbers: np.ndarray, colours: list[tuple[int, ...]]) -> None:
    picture = Image.fromarray(numbers.astype(np.uint8), "P")
    picture.putpalette([c for colour in colours for c in colour])
    picture.save(folder / f"m{i}.png")


BLACK, WHITE, RED, GREEN, BLUE = (0,) * 3, (255,) * 3, (255, 0, 0), (0, 255, 0), (0, 0, 255)


def paint(numbers: np.ndarray, colours: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(colours, np.uint8)[numbers]


# --- what works today and must go on working


@situation()
def zero_and_one(f: Path) -> Truth:
    for i in range(3):
        png(f, i, blobs(i))
    return [blobs(i) for i in range(3)]


@situation()
def zero_and_255(f: Path) -> Truth:
    for i in range(3):
        png(f, i, blobs(i) * 255)
    return [blobs(i) for i in range(3)]


@situation()
def class_numbers(f: Path) -> Truth:
    for i in range(3):
        png(f, i, phases(i, 4))
    return [phases(i, 4) for i in range(3)]


@situation()
def four_greys(f: Path) -> Truth:
    for i in range(3):
        png(f, i, phases(i, 4) * 85)
    return [phases(i, 4) for i in range(3)]


@situation(says="ignored")
def numbers_with_255_ignored(f: Path) -> Truth:
    truth = [phases(i, 3) for i in range(3)]
    for i, t in enumerate(truth):
        t[30:60, 100:] = 255
        png(f, i, t)
    return truth


@situation(says="ignored")
def void_set_where_one_mask_has_background_and_void_alone(f: Path) -> Truth:
    truth = [phases(i, 3) for i in range(3)] + [np.zeros((HEIGHT, WIDTH), np.uint8)]
    for i, t in enumerate(truth):
        t[30:60, 100:] = 255
        png(f, i, t)
    return truth


@situation(says="ignored")
def binary_with_255_ignored(f: Path) -> Truth:
    truth = [blobs(i) for i in range(4)]
    for i, t in enumerate(truth):
        if i < 3:
            t[30:60, 100:] = 255
        png(f, i, t)
    return truth


@situation(says="ignored")
def numbers_with_a_gap_and_255_ignored(f: Path) -> Truth:
    truth = [phases(i, 3) for i in range(3)]
    for i, t in enumerate(truth):
        t[30:60, 100:] = 255
        png(f, i, np.where(t == 2, 15, t).astype(np.uint8))
    return truth


@situation(says="class of its own")
def numbers_without_one_beside_255(f: Path) -> Truth:
    truth = [phases(i, 3) for i in range(3)]
    for i, t in enumerate(truth):
        png(f, i, np.array([0, 2, 255], np.uint8)[t])
    return truth


@situation()
def signed_numbers_with_minus_one(f: Path) -> Truth:
    truth = [phases(i, 3) for i in range(2)]
    for i, t in enumerate(truth):
        t[-9:] = 255
        tif(f, i, np.where(t == 255, -1, t.astype(np.int64)))
    return truth


@situation()
def a_thin_rare_crack_beside_its_neighbour_class(f: Path) -> Truth:
    truth = [phases(i, 2) for i in range(3)]
    for i, t in enumerate(truth):
        # One pixel wide, in class 1 alone, and less than a thousandth of the picture.
        t[5, 2:10] = 2
        png(f, i, t)
    return truth


@situation()
def many_class_numbers_of_which_some_are_rare(f: Path) -> Truth:
    truth = []
    for i in range(3):
        t = phases(i, 4)
        for k in range(4, 12):
            t[(10 * k - 38) % 90 : (10 * k - 38) % 90 + 2, 100:104] = k
            t[(10 * k - 33) % 90, 110:112] = k
        truth.append(t)
        png(f, i, t)
    return truth


# --- two annotators, two programs (A14, A17)


@situation(says="decided for each file")
def zero_one_beside_zero_255(f: Path) -> Truth:
    for i in range(4):
        png(f, i, blobs(i) * (255 if i % 2 else 1))
    return [blobs(i) for i in range(4)]


@situation(says="decided for each file")
def one_bit_beside_rgb_black_and_white(f: Path) -> Truth:
    for i in range(4):
        mask = blobs(i)
        if i % 2:
            png(f, i, np.repeat((mask * 255)[..., None], 3, axis=2))
        else:
            Image.fromarray(mask * 255).convert("1").save(f / f"m{i}.png")
    return [blobs(i) for i in range(4)]


@situation(says="decided for each file")
def bool_tiff_beside_8_bit_png(f: Path) -> Truth:
    for i in range(4):
        if i % 2:
            png(f, i, blobs(i) * 255)
        else:
            tif(f, i, blobs(i).astype(bool), photometric="minisblack")
    return [blobs(i) for i in range(4)]


@situation(says="photometric='minisblack' writes it white")
def bool_tiff_as_tifffile_writes_it_unasked(f: Path) -> Truth:
    for i in range(2):
        tifffile.imwrite(f / f"m{i}.tif", blobs(i).astype(bool))
    return [1 - blobs(i) for i in range(2)]


@situation(says="decided for each file")
def mixed_scales_with_an_empty_and_a_full_mask(f: Path) -> Truth:
    truth = [blobs(0), blobs(1), np.zeros_like(blobs(0)), np.ones_like(blobs(0)), blobs(2)]
    for i, t in enumerate(truth):
        png(f, i, t * (255 if i % 2 else 1))
    return truth


@situation(says="decided for each file")
def zero_one_beside_jpeg(f: Path) -> Truth:
    for i in range(4):
        mask = blobs(i)
        png(f, i, jpeg(mask * 255, 75) if i % 2 else mask)
    return [blobs(i) for i in range(4)]


@situation(only_asks=True)
def zero_one_beside_three_greys(f: Path) -> Truth:
    png(f, 0, blobs(0))
    png(f, 1, np.array([0, 128, 255], np.uint8)[phases(1, 3)])
    return []


@situation(only_asks=True)
def class_numbers_beside_zero_255(f: Path) -> Truth:
    png(f, 0, phases(0, 3))
    png(f, 1, blobs(1) * 255)
    return []


@situation(only_asks=True)
def class_numbers_beside_greys(f: Path) -> Truth:
    png(f, 0, phases(0, 3))
    png(f, 1, np.array([0, 128, 255], np.uint8)[phases(1, 3)])
    return []


@situation(only_asks=True)
def one_mask_marks_255_and_most_hold_0_and_255(f: Path) -> Truth:
    marked = blobs(0)
    marked[30:60, 100:] = 255
    png(f, 0, marked)
    for i in range(1, 4):
        png(f, i, blobs(i) * 255)
    return []


@situation()
def eight_bits_beside_sixteen(f: Path) -> Truth:
    for i in range(4):
        if i % 2:
            tif(f, i, blobs(i).astype(np.uint16) * 65535)
        else:
            png(f, i, blobs(i) * 255)
    return [blobs(i) for i in range(4)]


@situation(says="16 bits")
def three_greys_of_8_and_16_bits(f: Path) -> Truth:
    for i in range(4):
        if i % 2:
            tif(f, i, np.array([0, 32768, 65535], np.uint16)[phases(i)])
        else:
            png(f, i, np.array([0, 128, 255], np.uint8)[phases(i)])
    return [phases(i) for i in range(4)]


@situation(says="decided for each file")
def zero_one_beside_16_bits(f: Path) -> Truth:
    for i in range(4):
        tif(f, i, blobs(i).astype(np.uint16) * (65535 if i % 2 else 1))
    return [blobs(i) for i in range(4)]


@situation()
def sixteen_bits_alone(f: Path) -> Truth:
    for i in range(2):
        tif(f, i, blobs(i).astype(np.uint16) * 65535)
    return [blobs(i) for i in range(2)]


@situation()
def whole_numbers_as_floats(f: Path) -> Truth:
    for i in range(2):
        tif(f, i, phases(i).astype(np.float32))
    return [phases(i) for i in range(2)]


@situation()
def big_endian_sixteen_bits(f: Path) -> Truth:
    for i in range(2):
        tif(f, i, phases(i).astype(">u2"), byteorder=">")
    return [phases(i) for i in range(2)]


# --- palettes and colours (A17)


@situation(says="differ in order")
def palettes_in_another_order(f: Path) -> Truth:
    # By code black, green and red are 0, 1 and 2.
    palette(f, 0, phases(0), [BLACK, GREEN, RED])
    palette(f, 1, np.array([0, 2, 1])[phases(1)], [BLACK, RED, GREEN])
    palette(f, 2, np.array([2, 0, 1])[phases(2)], [GREEN, RED, BLACK])
    return [phases(i) for i in range(3)]


@situation(says="differ in order")
def palettes_of_black_and_white_in_another_order(f: Path) -> Truth:
    palette(f, 0, blobs(0), [BLACK, WHITE])
    palette(f, 1, 1 - blobs(1), [WHITE, BLACK])
    return [blobs(i) for i in range(2)]


@situation(says="differ in order")
def a_turned_palette_beside_one_bit(f: Path) -> Truth:
    Image.fromarray(blobs(0) * 255).convert("1").save(f / "m0.png")
    palette(f, 1, 1 - blobs(1), [WHITE, BLACK])
    return [blobs(i) for i in range(2)]


SITUATIONS["a_turned_palette_beside_one_bit_as_binary"] = Situation(
    a_turned_palette_beside_one_bit, flags={"classes": "binary"}, says="differ in order"
)


@situation(says="shows 0 white and 1 black")
def turned_palettes_alone(f: Path) -> Truth:
    for i in range(2):
        palette(f, i, blobs(i), [WHITE, BLACK])
    return [blobs(i) for i in range(2)]


@situation(says="differ in order")
def binary_palettes_in_another_order(f: Path) -> Truth:
    palette(f, 0, blobs(0), [BLACK, RED])
    palette(f, 1, 1 - blobs(1), [RED, BLACK])
    return [blobs(i) for i in range(2)]


SITUATIONS["palettes_in_another_order_as_binary"] = Situation(
    binary_palettes_in_another_order, flags={"classes": "binary"}, says="differ in order"
)


@situation()
def one_palette_for_all(f: Path) -> Truth:
    for i in range(3):
        palette(f, i, phases(i), [RED, BLACK, GREEN])
    return [phases(i) for i in range(3)]


@situation(says="colours count")
def palettes_beside_rgb(f: Path) -> Truth:
    palette(f, 0, phases(0), [BLACK, GREEN, RED])
    png(f, 1, paint(phases(1), [BLACK, GREEN, RED]))
    return [phases(i) for i in range(2)]


@situation(says="colours count")
def reduced_palettes_beside_grey_values(f: Path) -> Truth:
    # A program that shrinks PNG files makes palettes of greys in the order in which it meets them.
    greys = [(85,) * 3, BLACK, WHITE]
    palette(f, 0, np.array([1, 0, 2])[phases(0)], greys)
    png(f, 1, np.array([0, 85, 255], np.uint8)[phases(1)])
    return [phases(i) for i in range(2)]


@situation()
def palettes_beside_class_numbers(f: Path) -> Truth:
    palette(f, 0, phases(0), [BLACK, GREEN, RED])
    png(f, 1, phases(1))
    return [phases(i) for i in range(2)]


@situation()
def a_palette_tiff(f: Path) -> Truth:
    for i in range(2):
        colours = np.zeros((3, 256), np.uint16)
        order = [0, 1, 2] if i else [2, 0, 1]
        colours[:, order] = np.array([BLACK, GREEN, RED], np.uint16).T * 257
        tif(f, i, np.array(order, np.uint8)[phases(i)], photometric="palette", colormap=colours)
    return [phases(i) for i in range(2)]


@situation(says="of the coloured masks")
def one_colour_on_black_beside_one_bit(f: Path) -> Truth:
    png(f, 0, paint(blobs(0), [BLACK, RED]))
    Image.fromarray(blobs(1) * 255).convert("1").save(f / "m1.png")
    return [blobs(i) for i in range(2)]


@situation(only_asks=True)
def class_numbers_beside_colours(f: Path) -> Truth:
    png(f, 0, paint(phases(0), [BLACK, RED, GREEN]))
    png(f, 1, phases(1))
    return []


@situation(says="no mask holds two")
def red_in_one_mask_and_white_in_the_other(f: Path) -> Truth:
    png(f, 0, paint(blobs(0), [BLACK, RED]))
    png(f, 1, blobs(1) * 255)
    return [blobs(0), blobs(1) * 2]


@situation(tolerance=0.004, says="stray colours")
def red_on_black_after_jpeg(f: Path) -> Truth:
    for i in range(3):
        png(f, i, jpeg(paint(blobs(i), [BLACK, RED]), 92))
    return [blobs(i) for i in range(3)]


@situation(tolerance=0.004, says="stray colours", flags={"classes": "a,b"})
def red_on_black_with_soft_edges(f: Path) -> Truth:
    for i in range(3):
        big = cv2.resize(blobs(i), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
        small = cv2.resize(
            paint(big, [BLACK, RED]), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR
        )
        png(f, i, soft(small, 0.8))
    return [blobs(i) for i in range(3)]


@situation(asks=True, tolerance=0.004)
def three_colours_after_jpeg(f: Path) -> Truth:
    for i in range(3):
        png(f, i, jpeg(paint(phases(i), [BLACK, BLUE, RED]), 95))
    return [phases(i) for i in range(3)]


# --- alpha (A17)


@situation(says="alpha channel is the label")
def label_in_alpha_over_one_colour(f: Path) -> Truth:
    for i in range(3):
        png(f, i, np.dstack([paint(np.zeros_like(blobs(i)), [RED]), blobs(i) * 255]))
    return [blobs(i) for i in range(3)]


@situation(says="alpha channel is the label")
def label_in_alpha_with_an_empty_mask(f: Path) -> Truth:
    truth = [blobs(0), np.zeros_like(blobs(0)), blobs(1)]
    for i, t in enumerate(truth):
        png(f, i, np.dstack([paint(np.zeros_like(t), [WHITE]), t * 255]))
    return truth


@situation(says="alpha channel is the label", tolerance=0.004)
def label_in_soft_alpha(f: Path) -> Truth:
    for i in range(3):
        png(f, i, np.dstack([paint(np.zeros_like(blobs(i)), [BLACK]), soft(blobs(i) * 255, 0.8)]))
    return [blobs(i) for i in range(3)]


@situation(says="covers")
def colours_where_alpha_covers(f: Path) -> Truth:
    for i in range(3):
        t = phases(i)
        # What is transparent has the colour of a class.
        png(f, i, np.dstack([paint(t, [GREEN, GREEN, RED]), (t > 0).astype(np.uint8) * 255]))
    return [phases(i) for i in range(3)]


@situation()
def full_alpha_means_nothing(f: Path) -> Truth:
    for i in range(2):
        t = phases(i)
        png(f, i, np.dstack([paint(t, [BLACK, GREEN, RED]), np.full_like(t, 255)]))
    return [phases(i) for i in range(2)]


@situation(says="alpha channel is the label")
def label_in_alpha_over_the_micrograph(f: Path) -> Truth:
    for i in range(2):
        noise = np.random.default_rng(i).normal(90, 20, (HEIGHT, WIDTH, 3)).clip(0, 255)
        png(f, i, np.dstack([noise.astype(np.uint8), blobs(i) * 255]))
    return [blobs(i) for i in range(2)]


@situation(says="alpha channel is the label")
def label_in_the_alpha_of_grey_tiff(f: Path) -> Truth:
    for i in range(2):
        both = np.dstack([np.full_like(blobs(i), 200), blobs(i) * 255])
        tif(f, i, both, photometric="minisblack", extrasamples=["unassalpha"])
    return [blobs(i) for i in range(2)]


SITUATIONS["label_in_alpha_as_binary"] = Situation(
    label_in_alpha_over_one_colour, flags={"classes": "binary"}, says="alpha"
)


# --- soft masks (A15)


def _after_jpeg(quality: int) -> Callable[[Path], Truth]:
    def write(f: Path) -> Truth:
        for i in range(4):
            mask = blobs(i) * 255
            png(f, i, jpeg(mask, quality) if i < 2 else mask)
        return [blobs(i) for i in range(4)]

    return write


for quality in (40, 70, 90, 95, 100):
    SITUATIONS[f"jpeg_{quality}_beside_png"] = Situation(
        _after_jpeg(quality), 0.004, says="half-way" if quality < 100 else ""
    )
    SITUATIONS[f"jpeg_{quality}_as_binary"] = Situation(
        _after_jpeg(quality), 0.004, flags={"classes": "binary"}
    )
    SITUATIONS[f"jpeg_{quality}_cut_by_the_user"] = Situation(
        _after_jpeg(quality), 0.004, flags={"classes": "binary:128"}
    )


@situation(tolerance=0.004, says="half-way")
def jpeg_files_themselves(f: Path) -> Truth:
    for i in range(3):
        Image.fromarray(blobs(i) * 255).save(f / f"m{i}.jpg", quality=80)
    return [blobs(i) for i in range(3)]


@situation(tolerance=0.004, says="half-way")
def colour_jpeg_files_of_black_and_white(f: Path) -> Truth:
    for i in range(3):
        white = np.repeat((blobs(i) * 255)[..., None], 3, axis=2)
        Image.fromarray(white).save(f / f"m{i}.jpg", quality=80)
    return [blobs(i) for i in range(3)]


@situation(only_asks=True)
def class_numbers_in_jpeg(f: Path) -> Truth:
    for i in range(2):
        Image.fromarray(phases(i) * 2).save(f / f"m{i}.jpg", quality=95)
    return []


@situation(tolerance=0.02, says="half-way")
def soft_brush(f: Path) -> Truth:
    for i in range(3):
        png(f, i, soft(blobs(i) * 255, 1.0))
    return [(soft(blobs(i) * 255, 1.0) >= 128).astype(np.uint8) for i in range(3)]


@situation(says="half-way")
def four_steps_of_an_antialiased_line(f: Path) -> Truth:
    truth = []
    for i in range(3):
        big = cv2.resize(blobs(i), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        big = np.roll(big, (1, 1), (0, 1))
        mean = big.reshape(HEIGHT, 2, WIDTH, 2).mean(axis=(1, 3))
        png(f, i, np.rint(mean * 255).astype(np.uint8))
        truth.append((np.rint(mean * 255) >= 128).astype(np.uint8))
    return truth


@situation(says="half-way")
def soft_edges_in_16_bits(f: Path) -> Truth:
    truth = []
    for i in range(3):
        wide = cv2.GaussianBlur(blobs(i).astype(np.uint16) * 65535, (0, 0), 1.0)
        tif(f, i, wide)
        truth.append((wide >= 32768).astype(np.uint8))
    return truth


@situation(tolerance=0.002, says="half-way")
def three_greys_after_jpeg(f: Path) -> Truth:
    for i in range(4):
        png(f, i, jpeg(np.array([0, 128, 255], np.uint8)[phases(i)], 85))
    return [phases(i) for i in range(4)]


@situation(tolerance=0.002, says="half-way")
def four_greys_after_good_jpeg(f: Path) -> Truth:
    for i in range(4):
        png(f, i, jpeg(phases(i, 4) * 85, 95))
    return [phases(i, 4) for i in range(4)]


@situation(only_asks=True)
def three_greys_with_soft_edges(f: Path) -> Truth:
    for i in range(3):
        png(f, i, soft(np.array([0, 128, 255], np.uint8)[phases(i)], 1.0))
    return []


@situation(says="thin lines")
def a_grain_boundary_between_two_phases(f: Path) -> Truth:
    truth = []
    for i in range(3):
        t = blobs(i) * 2
        edge = cv2.dilate(t, np.ones((3, 3), np.uint8)) != t
        t[edge] = 1
        truth.append(t)
        png(f, i, np.array([0, 128, 255], np.uint8)[t])
    return truth


@situation()
def a_network_of_lines_is_a_class(f: Path) -> Truth:
    truth = []
    for i in range(3):
        t = np.zeros((HEIGHT, WIDTH), np.uint8)
        for k in range(6):
            cv2.line(t, (20 * k + i, 0), (20 * k + 15, HEIGHT), 1, 1)
        t[60:80, 20:60] = 2
        truth.append(t)
        png(f, i, np.array([0, 128, 255], np.uint8)[t])
    return truth


@situation(only_asks=True)
def micrographs_instead_of_masks(f: Path) -> Truth:
    for i in range(2):
        noise = np.random.default_rng(i).normal(0, 9, (HEIGHT, WIDTH))
        png(f, i, np.clip(soft(90 + 70.0 * blobs(i) + noise, 0.8), 0, 255).astype(np.uint8))
    return []


@situation(only_asks=True)
def smooth_micrographs_instead_of_masks(f: Path) -> Truth:
    for i in range(2):
        noise = np.random.default_rng(i).normal(0, 9, (HEIGHT, WIDTH))
        png(f, i, np.clip(soft(20 + 210.0 * blobs(i) + noise, 2.0), 0, 255).astype(np.uint8))
    return []


@situation(only_asks=True)
def white_drawn_over_the_micrograph(f: Path) -> Truth:
    for i in range(2):
        noise = np.random.default_rng(i).normal(0, 6, (HEIGHT, WIDTH))
        gray = np.clip(soft(110 + 40.0 * blobs(i + 9) + noise, 1.5), 0, 254).astype(np.uint8)
        png(f, i, np.where(blobs(i, 14) > 0, 255, gray).astype(np.uint8))
    return []


@situation(only_asks=True)
def probabilities_instead_of_masks(f: Path) -> Truth:
    for i in range(2):
        png(f, i, soft(blobs(i) * 255, 9.0))
    return []


# --- objects that are numbered (A16)


@situation(says="number 72 objects")
def numbered_objects(f: Path) -> Truth:
    for i in range(3):
        tif(f, i, grains(i))
    return [(grains(i) > 0).astype(np.uint8) for i in range(3)]


@situation(says="objects")
def numbered_objects_that_touch(f: Path) -> Truth:
    truth = []
    for i in range(2):
        t = np.zeros((HEIGHT, WIDTH), np.uint16)
        for k in range(20):
            t[10 + 20 * (k // 5) : 30 + 20 * (k // 5), 20 * (k % 5) : 20 * (k % 5) + 20] = k + 1
        truth.append((t > 0).astype(np.uint8))
        tif(f, i, t)
    return truth


@situation(says="objects")
def numbered_objects_beyond_255_with_gaps(f: Path) -> Truth:
    for i in range(2):
        tif(f, i, (grains(i) * 37).astype(np.uint16))
    return [(grains(i) > 0).astype(np.uint8) for i in range(2)]


@situation(says="objects")
def numbered_objects_in_colours(f: Path) -> Truth:
    colours = np.random.default_rng(5).integers(40, 255, (30, 3)).astype(np.uint8)
    colours[0] = 0
    for i in range(2):
        png(f, i, colours[grains(i)])
    return [(grains(i) > 0).astype(np.uint8) for i in range(2)]


@situation(says="objects")
def numbered_objects_in_colours_on_white(f: Path) -> Truth:
    colours = np.random.default_rng(5).integers(40, 250, (30, 3)).astype(np.uint8)
    colours[0] = 255
    for i in range(2):
        png(f, i, colours[grains(i)])
    return [(grains(i) > 0).astype(np.uint8) for i in range(2)]


@situation(says="objects")
def numbered_objects_beside_binary_masks(f: Path) -> Truth:
    tif(f, 0, grains(0))
    png(f, 1, blobs(1) * 255)
    png(f, 2, np.zeros_like(blobs(0)))
    return [(grains(0) > 0).astype(np.uint8), blobs(1), np.zeros_like(blobs(0))]


@situation(says="objects")
def few_numbered_objects_and_another_number_in_each(f: Path) -> Truth:
    for i, number in enumerate((3, 5, 2, 6)):
        tif(f, i, grains(i, number))
    return [(grains(i, n) > 0).astype(np.uint8) for i, n in enumerate((3, 5, 2, 6))]


@situation(says="where the values number objects")
def a_few_regions_that_may_be_objects(f: Path) -> Truth:
    for i in range(2):
        tif(f, i, grains(i, 3))
    return [grains(i, 3).astype(np.uint8) for i in range(2)]


@situation(only_asks=True)
def regions_of_which_each_mask_has_as_many(f: Path) -> Truth:
    for i in range(3):
        tif(f, i, grains(i, 5))
    return []


def _five_phases(f: Path) -> Truth:
    regions_of_which_each_mask_has_as_many(f)
    return [grains(i, 5).astype(np.uint8) for i in range(3)]


SITUATIONS["regions_that_the_user_calls_classes"] = Situation(
    _five_phases, flags={"classes": "matrix,a,b,c,d,e"}
)


@situation()
def layers_of_which_each_mask_has_others(f: Path) -> Truth:
    truth = []
    for i, number in enumerate((4, 3, 5)):
        t = np.repeat(np.arange(HEIGHT) * number // HEIGHT, WIDTH).reshape(HEIGHT, WIDTH)
        truth.append(t.astype(np.uint8))
        png(f, i, truth[-1])
    return truth


@situation(says="255 beside object numbers is ignored")
def numbered_objects_with_a_void_border(f: Path) -> Truth:
    truth = []
    for i in range(2):
        t = grains(i).astype(np.uint8)
        edge = (cv2.dilate(t, np.ones((3, 3), np.uint8)) != t) & (t == 0)
        t[edge] = 255
        truth.append(np.where(t == 255, 255, t > 0).astype(np.uint8))
        png(f, i, t)
    return truth


SITUATIONS["numbered_objects_as_binary"] = Situation(numbered_objects, flags={"classes": "binary"})


@situation(only_asks=True)
def grains_without_background(f: Path) -> Truth:
    for i in range(2):
        t = np.arange(1, 25, dtype=np.uint16).reshape(4, 6)
        tif(f, i, np.kron(t, np.ones((24, 20), np.uint16)))
    return []


# --- which end of the scale is white (A18)

IMAGEJ = b"ImageJ=1.54f\n"


@situation(says="inverting table")
def imagej_tables_inverting_and_not(f: Path) -> Truth:
    for i in range(4):
        sense = "minisblack" if i % 2 else "miniswhite"
        tif(f, i, blobs(i) * 255, photometric=sense, description=IMAGEJ)
    return [blobs(i) for i in range(4)]


@situation(says="inverting table")
def imagej_tiff_with_an_inverting_table_beside_its_png(f: Path) -> Truth:
    tif(f, 0, blobs(0) * 255, photometric="miniswhite", description=IMAGEJ)
    # The PNG of ImageJ keeps the numbers and turns the palette.
    palette(f, 1, blobs(1) * 255, [(255 - k,) * 3 for k in range(256)])
    palette(f, 2, blobs(2) * 255, [(k,) * 3 for k in range(256)])
    return [blobs(i) for i in range(3)]


@situation(says="shown")
def white_is_zero_of_other_programs(f: Path) -> Truth:
    for i in range(4):
        mask = blobs(i) * 255
        sense = "minisblack" if i % 2 else "miniswhite"
        tif(f, i, mask if i % 2 else 255 - mask, photometric=sense)
    return [blobs(i) for i in range(4)]


@situation(says="shown")
def one_bit_in_both_senses(f: Path) -> Truth:
    for i in range(4):
        mask = blobs(i).astype(bool)
        sense = "minisblack" if i % 2 else "miniswhite"
        tif(f, i, mask if i % 2 else ~mask, photometric=sense)
    return [blobs(i) for i in range(4)]


@situation(says="stored numbers")
def class_numbers_with_white_is_zero(f: Path) -> Truth:
    for i in range(3):
        tif(f, i, phases(i), photometric="miniswhite")
    return [phases(i) for i in range(3)]


@situation(says="inverting table")
def imagej_class_numbers_with_an_inverting_table(f: Path) -> Truth:
    for i in range(3):
        tif(f, i, phases(i), photometric="miniswhite", description=IMAGEJ)
    return [phases(i) for i in range(3)]


@situation(says="shown")
def sixteen_bits_with_white_is_zero(f: Path) -> Truth:
    for i in range(2):
        tif(f, i, (1 - blobs(i)).astype(np.uint16) * 65535, photometric="miniswhite")
    return [blobs(i) for i in range(2)]


@situation(says="page 1 of 2")
def two_pages(f: Path) -> Truth:
    for i in range(2):
        pages = np.stack([blobs(i) * 255, blobs(i + 5) * 255])
        tif(f, i, pages, photometric="minisblack")
    return [blobs(i) for i in range(2)]


# --- class files with ranges


def _with_classes(text: str, write: Callable[[Path], Truth], **facts: object) -> Situation:
    def both(f: Path) -> Truth:
        (f / "classes.yaml").write_text(text)
        return write(f)

    return Situation(both, **facts)  # type: ignore[arg-type]


RANGES = "classes:\n  matrix: 0-127\n  particle: 128-255\n"
ENDS = "classes:\n  matrix: 0\n  particle: 255\n"
SITUATIONS |= {
    "ranges_after_jpeg": _with_classes(RANGES, _after_jpeg(70), tolerance=0.004),
    "ranges_and_a_list": _with_classes(
        "classes:\n  matrix: [0-100, 101]\n  particle: 102-255\n", soft_brush, tolerance=0.02
    ),
    "ranges_of_three_soft_greys": _with_classes(
        "classes: {a: 0-63, b: 64-191, c: 192-255}\n", three_greys_after_jpeg, tolerance=0.002
    ),
    "ranges_beside_a_mask_of_0_and_1": _with_classes(
        RANGES, zero_one_beside_zero_255, says="scale of classes.yaml"
    ),
    "ends_after_jpeg": _with_classes(ENDS, _after_jpeg(70), tolerance=0.004, says="nearest"),
    "ends_with_soft_edges": _with_classes(ENDS, soft_brush, tolerance=0.02, says="nearest"),
    "ends_beside_a_mask_of_0_and_1": _with_classes(
        ENDS, zero_one_beside_zero_255, says="scale of classes.yaml"
    ),
    "three_ends_with_soft_edges": _with_classes(
        "classes: {a: 0, b: 128, c: 255}\n", three_greys_with_soft_edges, only_asks=True
    ),
    "a_drawn_grey_that_no_class_lists": _with_classes(ENDS, four_greys, only_asks=True),
    "both_white_values": _with_classes(
        "classes:\n  matrix: 0\n  particle: [1, 255]\n", zero_one_beside_zero_255
    ),
    "numbers_and_colours_listed": _with_classes(
        "classes:\n  a: '#000000'\n  b: ['#ff0000', 1]\n  c: ['#00ff00', 2]\n",
        lambda f: class_numbers_beside_colours(f) or [phases(0), phases(1)],
    ),
}
