"""Flags that several commands share; nothing here imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matssl.core import paths
from matssl.core.errors import UserError
from matssl.core.flags import Problem, flag, regex_problem

if TYPE_CHECKING:
    from matssl.core.runtime import Runtime
    from matssl.data.preprocess import Preprocess

PRECISIONS = ("auto", "fp32", "bf16")
LARGEST_SEED = 2**32 - 1
# Folder in which run folders are made where --output_dir says no other.
EXPERIMENTS = "experiments"
# Percentiles that become black and white where nothing else is said.
LEVELS = (0.5, 99.5)
PAGE_HELP = "page of TIFF files that have several, counted from 1"
PAGE_AUTO = "the largest, of equal ones the deepest, then the first"
MOST_PAGES = 1_000_000
# Frames that a network may be given at once.
DEEPEST = 63
DEPTH_HELP = (
    "frames of a sequence that are read together, as channels: each image with as many before as "
    "after it, by frame number (film-001.png, pages of a TIFF, specimens.csv); odd"
)
BAR_HELP = (
    "rows of an information bar to cut off: a number, none, or auto (found in metadata, pixels and "
    "masks; pictures of one size are judged together)"
)
BAR_AUTO = "as the weights were trained; else auto"


MASK_FOLDER_HELP = (
    "folder of the masks, where neither names nor what pictures hold say which; its end may be a "
    "pattern, * for the name of the image: labels/*_seg.png"
)
GROUP_REGEX_HELP = (
    "regular expression whose first group names the specimen in the path of an image from the "
    "folder, without the folders of splits and without the ending; one that begins with ^ is also "
    "sought in the file name alone"
)
SPECIMENS_HELP = (
    "table of the images (columns image, specimen; optional field, magnification, pixel_size) that "
    "says which are of one specimen; beats --group_regex"
)


def device_problem(name: str) -> str:
    """Return what is wrong with a ``--device``, "" where nothing is."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        return ""
    return f"--device must be auto, cpu, cuda or cuda:N, not {name!r}"


def name_problem(name: str) -> str:
    """Return what is wrong with the name of a run, "" where nothing is."""
    if name in (".", "..") or "/" in name or "\\" in name:
        return f"--name {name!r} cannot name a run; use one word without slashes"
    return ""


def bar_problem(rows: str) -> str:
    """Return what is wrong with ``--crop_bottom``, "" where nothing is."""
    if rows in ("auto", "none") or (rows.isascii() and rows.isdigit() and len(rows) < 7):
        return ""
    return f"--crop_bottom must be auto, none or a number of rows, 0 or more, not {rows}"


def group_regex_problem(expression: str) -> str:
    """Return what is wrong with ``--group_regex``, "" where nothing is."""
    # Without a group the whole of what fits is the name.
    return regex_problem("group_regex", expression)


def length_problem(
    name: str, text: str, what: str = "no pixel size", example: str = "12.5nm"
) -> str:
    """Return what is wrong with a flag that is a length with its unit, "" where nothing is.

    Args:
        name: of the flag.
        text: its value.
        what: it is not.
        example: of one.
    """
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-ZµμåÅ]+)\s*", text)
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    # Which units there are is known where they are read.
    if 0 < value < 1e12:
        return ""
    return f"--{name} {text!r} is {what}; write a number and its unit, such as {example}"


def weights_file(source: str) -> str:
    """Return what is wrong with the path of weights, or their name in the model hub."""
    from matssl import hub

    if source in ("none", "imagenet"):
        return ""
    try:
        return "" if hub.locate(source).exists() else f"there is no weights file {source}"
    except UserError as error:
        return str(error)


def pixel_size_problem(text: str) -> str:
    """Return what is wrong with ``--pixel_size``, "" where nothing is."""
    return length_problem("pixel_size", text)


def target_pixel_size_problem(text: str) -> str:
    """Return what is wrong with ``--target_pixel_size``, "" where nothing is."""
    return length_problem("target_pixel_size", text)


def classes_problem(text: str) -> str:
    """Return what is wrong with ``--classes``, "" where nothing is to be seen of it yet."""
    from matssl.core.errors import UserError
    from matssl.data import masks

    try:
        if masks.is_binary(text):
            masks.binary_threshold(text)
    except UserError as error:
        return str(error)
    return ""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ToolSettings:
    """Flags that every tool has."""

    debug: bool = flag(False, "run", "show the traceback of an error")


@dataclass(frozen=True, init=False, repr=False, eq=False)
class RunSettings:
    """Flags that every stage has."""

    name: str | None = flag(
        None,
        "run",
        "name of the run folder",
        auto="from model and data",
        first=True,
        check=name_problem,
    )
    output_dir: str = flag(EXPERIMENTS, "run", "folder in which run folders are made")
    seed: int = flag(0, "run", "seed of every random draw", low=0, high=LARGEST_SEED)
    device: str = flag("auto", "run", "auto, cpu, cuda or cuda:N", check=device_problem)
    gpu_id: int | None = flag(
        None,
        "run",
        "published spelling of --device cuda:N; the CPU where there is no GPU",
        low=0,
        high=255,
    )
    num_workers: int | None = flag(
        None,
        "run",
        "prefetch threads, same bits for any number",
        auto="0 on a CPU, 4 on a GPU",
        low=0,
        high=256,
    )
    threads: int | None = flag(
        None, "run", "CPU threads of torch", auto="all cores, or OMP_NUM_THREADS", low=1, high=1024
    )
    precision: str = flag(
        "auto",
        "run",
        "auto is bf16 where the hardware has it",
        choices=PRECISIONS,
    )
    config: str | None = flag(None, "run", "YAML or JSON file of flags; stronger than the recipe")
    overwrite: bool = flag(False, "run", "replace an existing run folder of this name")
    debug: bool = flag(False, "run", "show the traceback of an error")
    quiet: bool = flag(False, "run", "print only the result")

    def runtime(self) -> Runtime:
        """Return where the stage computes.

        Raises:
            UserError: a GPU is asked for and there is none.
        """
        from matssl.core import runtime

        return runtime.setup(
            device=self.device,
            gpu_id=self.gpu_id,
            threads=self.threads,
            num_workers=self.num_workers,
            precision=self.precision,
            seed=self.seed,
            deterministic=getattr(self, "deterministic", None),
        )


@dataclass(frozen=True, init=False, repr=False, eq=False)
class TrainingSettings:
    """Flags of both trainings."""

    resume: bool = flag(False, "run", "continue the run of this name where it stopped", first=True)
    tensorboard: bool = flag(
        False, "run", "also write TensorBoard events (pip install matssl[track])"
    )
    checkpoint_every: int = flag(200, "training", "steps between two checkpoints", low=1)
    compile: bool = flag(
        False, "run", "compile the network: minutes at the start, faster steps on a GPU"
    )
    deterministic: bool = flag(
        False, "run", "same bits on the same GPU, for some speed (a CPU always has them)"
    )


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LabelSettings:
    """Flags of both stages that read masks."""

    mask_folder: str | None = flag(
        None,
        "data",
        MASK_FOLDER_HELP,
    )
    splits: str | None = flag(
        None,
        "data",
        "json, csv or txt file (or folder of them) that names the images of a split",
        leads=paths.splits,
    )
    classes: str | None = flag(
        None,
        "data",
        "class names in order (a,b,c), a file that names and merges classes (YAML, CSV, or a table "
        "of colours in JSON or Python), or binary: all that is not 0 is one class, or binary:128: "
        "all from that grey value on",
        check=classes_problem,
        leads=paths.class_file,
        commas=True,
    )


@dataclass(frozen=True, init=False, repr=False, eq=False)
class SpecimenSettings:
    """Flags of stages that read a folder as it is: whose specimens, which pixel size."""

    group_regex: str | None = flag(None, "data", GROUP_REGEX_HELP, check=group_regex_problem)
    specimens: str | None = flag(
        None, "data", SPECIMENS_HELP, auto="specimens.csv beside the images, where it lies there"
    )
    pixel_size: str | None = flag(
        None,
        "data",
        "pixel size of all images, for example 12.5nm; beats metadata",
        check=pixel_size_problem,
    )
    page: int | None = flag(
        None,
        "data",
        PAGE_HELP,
        auto=f"as in training; else {PAGE_AUTO}",
        low=1,
        high=MOST_PAGES,
    )
    crop_bottom: str | None = flag(None, "data", BAR_HELP, auto=BAR_AUTO, check=bar_problem)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class TileSettings:
    """Flags of stages that predict whole images in tiles."""

    tile_size: int | None = flag(
        None, "prediction", "tile side in pixels", auto="fitted", low=1, high=65_536
    )
    overlap: int | None = flag(
        None, "prediction", "overlap of tiles in pixels", auto="fitted", low=0, high=65_536
    )
    tta: bool = flag(
        False, "prediction", "average over the eight orientations of each image", first=True
    )


def depth_problem(depth: str) -> str:
    """Return what is wrong with an ``--input_depth``, "" where nothing is."""
    if int(depth) % 2:
        return ""
    return f"--input_depth must be odd, the image and as many on either side, not {depth}"


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ImageSettings:
    """Flags that say how an image file becomes what the network sees."""

    color: str = flag(
        "gray", "images", "real colour becomes luminance unless rgb", choices=("gray", "rgb")
    )
    window: str = flag(
        "standard",
        "images",
        "grey levels shown to the network: percentiles of each image, the full range of its type, "
        "mean -/+ 3 standard deviations of each image, or two fixed values (--low, --high)",
        choices=("percentile", "dtype", "standard", "fixed"),
    )
    low: float = flag(
        LEVELS[0],
        "images",
        "lower percentile, or grey value for --window fixed",
        low=-1e9,
        high=1e9,
    )
    high: float = flag(
        LEVELS[1],
        "images",
        "upper percentile, or grey value for --window fixed",
        low=-1e9,
        high=1e9,
    )
    crop_bottom: str = flag(
        "auto",
        "images",
        BAR_HELP,
        check=bar_problem,
    )
    page: int | None = flag(None, "images", PAGE_HELP, auto=PAGE_AUTO, low=1, high=MOST_PAGES)
    input_depth: int = flag(
        1,
        "images",
        DEPTH_HELP,
        low=1,
        high=DEEPEST,
        check=depth_problem,
    )
    statistics: str | None = flag(
        None,
        "images",
        "JSON file of mean and std by which images are normalised (tools.statistics writes it)",
        auto="measured on the images that are learned from",
        leads=paths.file,
    )
    target_pixel_size: str | None = flag(
        None,
        "images",
        "rescale every image to this pixel size, for example 50nm",
        check=target_pixel_size_problem,
    )
    pixel_size: str | None = flag(
        None,
        "images",
        "pixel size of all images, for example 12.5nm; beats metadata",
        check=pixel_size_problem,
    )
    group_regex: str | None = flag(None, "images", GROUP_REGEX_HELP, check=group_regex_problem)
    specimens: str | None = flag(
        None, "images", SPECIMENS_HELP, auto="specimens.csv beside the images, where it lies there"
    )

    def image_problems(self, in_channels: int) -> list[Problem]:
        """Return what does not go together in the reading of images.

        Args:
            in_channels: of the network.
        """
        wrong, levels = [], ("low", "high", "window")
        depth, named = self.input_depth, ("in_channels", "input_depth")
        if depth == 1 and in_channels not in (1, 3):
            told = f"--in_channels must be 1 or 3, not {in_channels}; --input_depth makes others"
            wrong.append(Problem(told, named))
        elif depth > 1 and in_channels not in (1, depth):
            told = f"--input_depth {depth} makes {depth} channels; leave --in_channels out"
            wrong.append(Problem(told, named))
        if depth > 1 and self.color == "rgb":
            told = "--input_depth reads frames in grey; leave --color rgb out"
            wrong.append(Problem(told, ("input_depth", "color")))
        elif self.color == "rgb" and in_channels == 1:
            wrong.append(Problem("--color rgb needs --in_channels 3", ("in_channels", "color")))
        if self.window in ("percentile", "fixed") and not self.low < self.high:
            told = f"--low {self.low} must be below --high {self.high}"
            wrong.append(Problem(told, levels))
        if self.window in ("standard", "dtype") and (self.low, self.high) != LEVELS:
            wrong.append(Problem("--low and --high act with --window percentile or fixed", levels))
        if self.window == "percentile" and not (0 <= self.low and self.high <= 100):
            told = "--low and --high are percentiles and lie between 0 and 100"
            wrong.append(Problem(told, levels))
        return wrong

    def record(self, in_channels: int, resize: int | None = None) -> Preprocess:
        """Return the preprocessing record these flags ask for.

        Args:
            in_channels: of the network.
            resize: side of a square resize, None for native resolution.

        Raises:
            UserError: a pixel size that is none, or statistics that do not go with the window.
        """
        from pathlib import Path

        from matssl.data.preprocess import Preprocess
        from matssl.data.statistics import read_statistics

        record = Preprocess.chosen(
            color=self.color,
            window=self.window,
            low=self.low,
            high=self.high,
            crop_bottom=self.crop_bottom,
            page=self.page,
            depth=self.input_depth,
            target_pixel_size=self.target_pixel_size,
            pixel_size=self.pixel_size,
            channels=in_channels,
            resize=resize,
        )
        if self.statistics is None:
            return record
        return read_statistics(Path(self.statistics)).given(record)
