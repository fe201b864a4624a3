"""A fine-tuned model that one can call: a micrograph in, classes and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, decided, roomy, strips
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.lineage import Lineage
from matssl.data import readers
from matssl.data.layouts import Lists
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph
from matssl.measure.field import areas
from matssl.metrics import calibration
from matssl.trained import member
from matssl.trained.member import Engine, Member

Picture = Micrograph | Array | Path | str


@dataclass(frozen=True)
class TrainedOn:
    """What a model learned from, as far as its file tells.

    Attributes:
        dataset: folder of the labelled images.
        splits: file of the splits, None where they were found or cut.
        group_regex: how specimens were named.
        mask_folder: where the masks lay, as the user said it.
        specimens: the table that named them, where one was given.
        seed: of the cut.
        lists: images that were given by name or share.
        images: paths of the training images.
        digests: of their pixels, see :func:`matssl.data.readers.digest`.
    """

    dataset: str | None = None
    splits: str | None = None
    group_regex: str | None = None
    mask_folder: str | None = None
    specimens: str | None = None
    seed: int = 0
    lists: Lists = Lists()
    images: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Prediction:
    """What a segmenter says of a micrograph, at the micrograph's own size.

    Attributes:
        classes: most likely class of each pixel, uint8 (H, W); 255 in the rows of an information
            bar that was cut off.
        probabilities: float32 (C, rows above the bar, W); sums to 1 over the classes, calibrated
            by the model's temperature.
        pixel_size: nm, None where unknown.
        table: names of the classes and their values in masks.
        record: how the micrograph was prepared for the network.
        source: path of the micrograph.
        seen: rows and columns at which the network saw it; other than its own where it was resized.
        temperature: that calibrated the probabilities; 1 where they are as the network gave them.
    """

    classes: NDArray[np.uint8] = field(repr=False)
    probabilities: NDArray[np.float32] = field(repr=False)
    pixel_size: float | None
    table: ClassTable
    record: Preprocess
    source: str
    seen: tuple[int, int]
    temperature: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.table.names

    @property
    def rows(self) -> int:
        """Rows above an information bar."""
        return self.probabilities.shape[1]

    @property
    def resized(self) -> bool:
        """Whether the network saw another size than the micrograph's own."""
        return self.seen != self.probabilities.shape[1:]

    @property
    def fractions(self) -> NDArray[np.float64]:
        """Area fraction of each class, float64 (C,), sum 1."""
        sizes = areas(self.classes, self.table.num_classes)
        return sizes / sizes.sum()


@dataclass(frozen=True)
class Segmenter:
    """A trained model and all it needs to be used.

    Attributes:
        network: what computes.
        record: how images are read and normalised.
        table: names of the classes and their values in masks.
        source: path of the file.
        trained_on: what it learned from.
        lineage: the chain of what it was trained from.
        raw: whether the file is a bare state dict, whose use had to be assumed.
        note: what was assumed, in words.
        temperature: of its probabilities, fitted on validation images; 1 where there were none.
        members: the models of an ensemble, the first of them that of ``network`` and ``record``;
            empty for a single model.
        threshold: of two classes, the second is where the network's own probability is above it;
            None: the most likely class.
        factors: of the network's own probabilities, by which the class is chosen where validation
            images chose them; empty: none.
    """

    network: Engine = field(repr=False)
    record: Preprocess = field(repr=False)
    table: ClassTable
    source: str
    trained_on: TrainedOn = field(default=TrainedOn(), repr=False)
    lineage: Lineage = Lineage()
    raw: bool = False
    note: str = ""
    temperature: float = 1.0
    members: tuple[Member, ...] = field(default=(), repr=False)
    threshold: float | None = None
    factors: tuple[float, ...] = ()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        input_size: int | None = None,
        encoder: str | None = None,
    ) -> Segmenter:
        """Return the model in a file.

        Args:
            path: run folder or checkpoint of train_finetune.py, that of the ensemble of its folds
                too, raw state dict of segmentation-models-pytorch, name in the model hub; or an
                exported model: its folder, its recipe model.json or a network of it.
            device: auto, cpu, cuda or cuda:N.
            precision: fp32, bf16, or auto: bf16 where the hardware multiplies in it.
            threads: CPU threads of torch, for the whole process; None leaves them as they are.
            input_size: side of a square that images are resized to for the network; None keeps
                what the model was trained with.
            encoder: name of the encoder of a raw state dict that does not tell it; ours do.

        Raises:
            UserError: no such file, one that is incomplete or no segmentation model, or no such
                device.
        """
        # Late: torch computes a checkpoint, and an exported model does without it.
        from matssl.trained import exported

        if exported.leads_to_one(path):
            return exported.load(path, device, precision, threads, input_size, encoder)
        from matssl.trained import checkpoints

        return checkpoints.load(path, device, precision, threads, input_size, encoder)

    def predict(
        self,
        micrograph: Picture,
        *,
        tile_size: int | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 1,
        scratch: Path | None = None,
    ) -> Prediction:
        """Return classes and probabilities of a micrograph of any size.

        Args:
            micrograph: from :func:`matssl.read`, a file, or an array (H, W) or (H, W, 3) in R, G, B
                order. A pixel size of its own beats that of the record. Of a model of sequences
                (``record.depth`` above 1) a file, whose neighbours are found beside it, or an array
                (H, W, depth), the earliest frame first.
            tile_size: side of the tiles in pixels; None fits it to the image.
            overlap: of neighbouring tiles in pixels; None takes 64.
            tta: average over the eight orientations; eight times the time.
            batch_size: tiles computed at once; no influence beyond rounding.
            scratch: folder for a file that holds the probabilities of a large image while the
                prediction is in use; None keeps them in memory.

        Raises:
            UserError: the micrograph cannot be read, or the memory does not suffice.
        """
        picture = opened(micrograph, self.record)
        plane = self.record.plane(picture)
        shape = (self.record.kept_rows(picture), picture.pixels.shape[1])
        classes = roomy(picture.pixels.shape[:2], np.uint8)
        classes[shape[0] :] = IGNORE
        alone = Member(self.network, self.record, self.temperature)
        total = None
        for number, one in enumerate(self.members or (alone,)):
            probabilities = one.probabilities(
                plane,
                self.table.num_classes,
                tile_size=tile_size,
                overlap=overlap,
                tta=tta,
                batch_size=batch_size,
                scratch=member.folder(scratch, number) if self.members else scratch,
            )
            probabilities = native(probabilities, shape)
            if self.members:
                calibration.temper(probabilities, one.temperature)
                total = member.add(total, probabilities, one.of)
            else:
                # Of the network's own ones: rounding must not decide between two classes.
                _decide(probabilities, classes, self.threshold, self.factors)
                calibration.temper(probabilities, one.temperature)
                total = probabilities
        assert total is not None
        if self.members:
            _decide(total, classes, self.threshold, self.factors)
        return Prediction(
            classes,
            total,
            picture.pixel_size,
            self.table,
            self.record,
            picture.source,
            (plane.shape[0], plane.shape[1]),
            self.temperature,
        )


def opened(picture: Picture, record: Preprocess) -> Micrograph:
    """Return a picture as a micrograph that a record can be applied to.

    Args:
        picture: micrograph, array or file.
        record: says whether colours are kept, how many frames are read, and the pixel size of what
            has none of its own.

    Raises:
        UserError: the file cannot be read, the array is no picture, or one that lacks the frames
            beside it.
    """
    if isinstance(picture, (str, Path)):
        return record.read(picture)
    if record.depth > 1:
        return _frames(picture, record)
    if isinstance(picture, Micrograph):
        coloured = picture.pixels.ndim == 3 and record.color == "gray"
        known = picture.pixel_size is not None
        if coloured:
            gray = readers.from_array(picture.pixels, source=picture.source)
            picture = replace(picture, pixels=gray.pixels, bits=gray.bits)
        return picture if known else readers.with_pixel_size(picture, record.pixel_size)
    return readers.from_array(np.asarray(picture), record.pixel_size, record.color)


def _frames(picture: Micrograph | Array, record: Preprocess) -> Micrograph:
    """Return frames of a sequence that are in memory.

    Raises:
        UserError: they are not as many as the record reads.
    """
    if isinstance(picture, Micrograph):
        if picture.frames == record.depth:
            return picture
        shape: tuple[int, ...] = picture.pixels.shape
    else:
        picture = np.asarray(picture)
        shape = picture.shape
        if len(shape) == 3 and shape[2] == record.depth:
            levels = (picture[..., number] for number in range(record.depth))
            return readers.stacked([readers.from_array(x, record.pixel_size) for x in levels])
    raise UserError(
        f"the model reads {record.depth} frames of a sequence together, and {shape} is not that; "
        f"give an array (H, W, {record.depth}), the earliest frame first, or the path of a frame "
        "(film-003.png, or film.tif/film-0003.tif for a page)"
    )


def native(probabilities: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return probabilities at the micrograph's own size; scores are never of a resized image."""
    if probabilities.shape[1:] == shape:
        return probabilities
    native = roomy((len(probabilities), *shape), np.float32)
    for plane, own in zip(probabilities, native, strict=True):
        cv2.resize(plane, shape[::-1], dst=own, interpolation=cv2.INTER_LINEAR)
    return native


def _decide(
    probabilities: NDArray[np.float32],
    classes: NDArray[np.uint8],
    threshold: float | None,
    factors: Sequence[float],
) -> None:
    """Write the class of each pixel, in strips so that the index array stays small."""
    for rows in strips(probabilities.shape[1]):
        classes[rows] = decided(probabilities[:, rows], threshold, factors)
