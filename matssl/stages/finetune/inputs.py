"""What a fine-tuning starts from: the images by split, the kind of model, the name of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matssl import weights
from matssl.core import run_folder
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder
from matssl.core.wording import counted
from matssl.data import crops, layouts, preprocess, specimens
from matssl.data.augmentation import Pipeline
from matssl.data.crops import CropAugmentation, Labelled
from matssl.data.layouts import Dataset, Lists, Pair
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import sequences
from matssl.decoders import CLASSIC, named, with_encoder
from matssl.models import classic_unet, vit
from matssl.models.segmentation import SegmentationModel, check_input_size
from matssl.stages import resume
from matssl.stages.finetune.objective import Objective, Schedule
from matssl.stages.finetune.semi.pool import Unlabelled
from matssl.stages.finetune.settings import (
    CROP_SIZE,
    NAMED_WEIGHTS,
    FinetuneSettings,
    given_weights,
)
from matssl.stages.finetune.start_settings import AUTO

# Whatever else a folder calls a split is a test of some kind and stays closed.
OPENED = ("train", "val")
# Where neither a flag nor the weights name one.
DEFAULT_ENCODER, DEFAULT_DECODER = "resnet18", "unet"


@dataclass(frozen=True)
class Inputs:
    """The labelled images of a run, decoded.

    Attributes:
        dataset: the folder they come from.
        table: its classes.
        train: images to learn from.
        val: images to validate on; None where there are too few.
        record: how they were read, with mean and standard deviation of the training images.
        pipeline: changes the crops; None where the flags do.
        unlabelled: pictures without labels that are learned from, too; None for none.
    """

    dataset: Dataset
    table: ClassTable
    train: Labelled
    val: Labelled | None
    record: Preprocess
    pipeline: Pipeline | None = None
    unlabelled: Unlabelled | None = None

    @property
    def identity(self) -> list[str]:
        """What tells the images and masks of this run from all others, wherever they lie."""
        return [part.identity() for part in (self.train, self.val) if part is not None]


def find(settings: FinetuneSettings) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Return the data set, the same without images of no label, and what is to be said.

    No test is opened.

    Raises:
        UserError: no labelled training image, or settings that do not fit the folder.
    """
    dataset = layouts.find(
        settings.finetune_dataset,
        splits=settings.splits,
        group_regex=settings.group_regex,
        specimens=settings.specimens,
        pixel_size=settings.pixel_size,
        classes=settings.classes,
        mask_folder=settings.mask_folder,
        seed=settings.seed,
        opened=OPENED,
        lists=lists(settings),
        depth=settings.input_depth,
        page=settings.page,
    )
    if settings.input_depth > 1 and not dataset.grouping.sequences.frames:
        raise UserError(sequences.none(f"--input_depth {settings.input_depth}", dataset.root))
    known, notes = _labelled(dataset)
    # Whatever is chosen of them later, there must be some.
    parted(settings, known)
    assert dataset.table is not None
    check_class_weights(settings.class_weights, dataset.table.num_classes)
    return dataset, known, notes


def parted(
    settings: FinetuneSettings, dataset: Dataset
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return the pairs to train on and those to validate on, as the settings ask for them."""
    return split(
        dataset,
        seed=settings.seed,
        val_fraction=settings.val_fraction,
        data_ratio=settings.data_ratio,
        max_train_images=settings.max_train_images,
    )


def lists(settings: FinetuneSettings) -> Lists:
    """Return which images are given by name or share."""
    cross = settings.folds is not None
    given = settings.training_set, settings.validation_set, settings.auto_split
    return Lists(*given, folds=cross)


def _labelled(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Return the data set without images whose masks have no labelled pixel, and what to say.

    Raises:
        UserError: no training image has one.
    """
    if dataset.table is None:
        return dataset, ()
    opened = [p for p in dataset.pairs if p.split in OPENED and p.mask is not None]
    known = {pair.image for pair in crops.labelled(opened, dataset.table)}
    without = [pair for pair in opened if pair.image not in known]
    if not without:
        return dataset, ()
    if all(pair in without for pair in opened if pair.split == "train"):
        raise UserError(
            f"every pixel of the training masks in {dataset.root} is to be ignored (first: "
            f"{without[0].mask}); label some pixels, name images with labels for training with "
            "--splits, or name the classes with --classes"
        )
    shown = ", ".join(pair.image.name for pair in without[:4])
    more = " ..." if len(without) > 4 else ""
    told = (
        f"{counted(len(without), 'image')} of {len(opened)} without a labelled pixel, left out: "
        f"{shown}{more}"
    )
    rest = tuple(pair for pair in dataset.pairs if pair not in without)
    return replace(dataset, pairs=rest), (told,)


def load(
    dataset: Dataset, train: Sequence[Pair], val: Sequence[Pair], record: Preprocess
) -> Inputs:
    """Return the decoded images.

    Args:
        dataset: from :func:`find`.
        train: pairs to learn from.
        val: pairs to validate on, may be empty.
        record: how they are read; mean and standard deviation are measured.

    Raises:
        UserError: see :func:`matssl.data.crops.load`.
    """
    table = dataset.table
    assert table is not None
    learned = crops.load(train, record, table)
    held = crops.load(val, record, table) if val else None
    return Inputs(dataset, table, learned, held, preprocess.measure(record, learned.planes))


def split(
    dataset: Dataset,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    data_ratio: float = 1.0,
    max_train_images: int | None = None,
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return the pairs to train on and to validate on; the test split stays untouched.

    Args:
        dataset: pairs with their splits.
        seed: of the choice of images.
        val_fraction: share of the training groups that validates where there is no val split.
        data_ratio: share of the training images that is used.
        max_train_images: so many of them, instead.

    Raises:
        UserError: there is no labelled training image.
    """
    train = tuple(pair for pair in dataset.split("train") if pair.mask is not None)
    val = tuple(pair for pair in dataset.split("val") if pair.mask is not None)
    if not train:
        raise UserError(
            f"{dataset.root} has no training images (splits: {', '.join(dataset.splits)}); name "
            "them with --splits"
        )
    wanted = max_train_images
    if data_ratio < 1:
        wanted = max(1, round(data_ratio * len(train)))
    if wanted is not None:
        train = specimens.take(train, wanted, seed)
    if not val and len(train) >= specimens.MIN_IMAGES_TO_SPLIT:
        if len({pair.group for pair in train}) < 2:
            # One specimen: images of it have to validate each other.
            train = tuple(replace(pair, group=pair.image.stem) for pair in train)
        train, val = specimens.cut_validation(train, val_fraction, seed)
    return train, val


def check_class_weights(class_weights: str, num_classes: int) -> None:
    """Refuse given class weights that are more or fewer than the classes.

    Raises:
        UserError: there must be one for each class.
    """
    given = given_weights(class_weights)
    if given and len(given) != num_classes:
        raise UserError(
            f"--class_weights must be none, balanced or {num_classes} numbers above 0, one for "
            f"each class (1,1,10), not {class_weights}"
        )


def architecture(settings: FinetuneSettings, root: Path) -> tuple[str, str]:
    """Return encoder and decoder; "auto" is that of the run to resume, or of the weights.

    Args:
        settings: with the weights the run starts from.
        root: of the run to resume.

    Raises:
        UserError: the weights or the checkpoint cannot be read.
    """
    encoder, decoder = settings.encoder, settings.decoder
    if "auto" not in (encoder, decoder):
        return encoder, decoder
    source = settings.ssl_weights_path or settings.weights
    found: tuple[str | None, str | None] = (None, None)
    if settings.resume:
        before = resume.load(root, "finetune")[0]["recipe"]
        found = str(before["encoder"]), str(before["decoder"])
    elif source not in ("none", "imagenet", AUTO):
        found = weights.architecture(source)
        found = found if settings.pretrained_decoder else (found[0], None)
    if encoder == "auto":
        encoder = found[0] or DEFAULT_ENCODER
    if decoder == "auto":
        decoder = found[1] or with_encoder(encoder, DEFAULT_DECODER)
    return encoder, decoder


def named_encoder(settings: FinetuneSettings, encoder: str) -> str:
    """Return the whole name of an encoder, of which its filters or its blocks are a part.

    Raises:
        UserError: blocks are chosen of an encoder that is no vision transformer.
    """
    if settings.encoder_blocks:
        if not vit.is_vit(encoder):
            raise UserError(
                f"--encoder_blocks acts with vision transformers (dinov2-vit-s14, ...), not with "
                f"--encoder {encoder}"
            )
        return vit.encoder_name(encoder.partition(vit.AT)[0], settings.encoder_blocks)
    filters, batchnorm = settings.encoder_filters, settings.batchnorm
    if encoder != CLASSIC or not (filters or batchnorm):
        return encoder
    return classic_unet.encoder_name(filters or classic_unet.FILTERS, batchnorm)


def schedule(settings: FinetuneSettings, images: int) -> Schedule:
    """Return the steps that the settings ask for, with so many images."""
    return Schedule(
        total_steps=total_steps(settings, images),
        lr=settings.lr,
        shape=settings.schedule,
        warmup=settings.warmup,
        encoder_lr_factor=settings.encoder_lr_factor,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        freeze_encoder_steps=settings.freeze_encoder_steps,
        ema=settings.ema,
        blocks=settings.finetune_blocks,
        layer_decay=settings.layer_decay,
    )


def side_of_images(images: Labelled, model: SegmentationModel) -> int:
    """Return the side of a square that holds every image whole and that a model takes."""
    longest = max(max(mask.shape) for mask in images.masks)
    return longest + -longest % model.trained_multiple


def default_name(settings: FinetuneSettings) -> str:
    """Return a name for the run: what it starts from, the data, the time and the note."""
    start = "random"
    if settings.classifies:
        start = settings.head
    elif settings.ssl_weights_path:
        path = Path(settings.ssl_weights_path)
        start = path.resolve().parent.name if path.stem in ("encoder", "last") else path.stem
    elif settings.weights != "none":
        start = Path(settings.weights).stem
    place = Path(settings.finetune_dataset).resolve()
    # An index stands for the images that it lists.
    data = (place.stem if place.is_file() else place.name).replace(" ", "_")
    note = f"-{settings.note}" if settings.note else ""
    return f"{start}-{data}-{run_folder.today()}{note}"


def largest_batch(settings: FinetuneSettings, images: int, processes: int) -> int:
    """Return the batch size, at most all images where a sample is a whole one, as published."""
    most = max(1, images // processes) * processes
    if settings.input_size is None or settings.rare_class_p > 0:
        return settings.batch_size
    return min(settings.batch_size, most)


def total_steps(settings: FinetuneSettings, images: int) -> int:
    """Return the steps of the plan.

    An epoch sees as many crops as there are images, or a multiple of it; at least one batch.
    """
    return settings.epochs * epoch(settings, images) if settings.epochs else settings.steps


def epoch(settings: FinetuneSettings, images: int) -> int:
    """Return the steps of an epoch."""
    return max(1, round(settings.epoch_views * images / settings.batch_size))


def val_every(settings: FinetuneSettings, images: int) -> int:
    """Return the steps between two validations."""
    own = settings.val_epochs
    return settings.val_every if own is None else own * epoch(settings, images)


def crop_size(settings: FinetuneSettings, model: SegmentationModel) -> int:
    """Return the side of a training crop: that of the resized image at most, as published.

    Before a vision transformer it is raised to a multiple of its patches.

    Args:
        settings: with a size of crops or of images, or neither.
        model: that takes multiples of a side.

    Raises:
        UserError: a size that the model does not take.
    """
    check_input_size(model, settings.input_size)
    if settings.input_size is not None:
        # A crop larger than the resized image would be filled up with mirrored pixels.
        side = min(settings.crop_size or settings.input_size, settings.input_size)
        return max(model.multiple, side - side % model.multiple)
    multiple = model.trained_multiple
    side = CROP_SIZE if settings.crop_size is None else settings.crop_size
    if isinstance(model.encoder, vit.VitEncoder):
        # Sizes of recipes are multiples of 32, which patches of 14 pixels know nothing of.
        return side + -side % multiple
    if side % multiple:
        nearest = named(str(n * multiple) for n in (side // multiple, side // multiple + 1) if n)
        raise UserError(f"--crop_size must be a multiple of {multiple}, not {side}: take {nearest}")
    return side


def crop_augmentation(
    settings: FinetuneSettings, pipeline: Pipeline | None = None
) -> CropAugmentation:
    """Return how crops are drawn and changed, by a pipeline where there is one."""
    assert settings.crop_size is not None
    return CropAugmentation(
        size=settings.crop_size,
        rare_p=settings.rare_class_p,
        d4=settings.d4,
        scale=settings.scale_jitter,
        rotation=settings.rotation,
        brightness=settings.brightness,
        contrast=settings.contrast,
        gamma=settings.gamma,
        illumination=settings.illumination,
        blur_p=settings.blur_p,
        noise_p=settings.noise_p,
        paste_p=settings.copy_paste,
        pipeline=pipeline,
    )


def objective(settings: FinetuneSettings) -> Objective:
    """Return the loss that the settings ask for."""
    chosen: tuple[float, ...] | str | None = settings.class_weights
    if settings.class_weights not in NAMED_WEIGHTS:
        chosen = given_weights(settings.class_weights)
    return Objective(
        settings.loss,
        None if chosen == "none" else chosen,
        l2=settings.l2,
        threshold=settings.threshold,
        counted=settings.scored,
        options=settings.loss_options(settings.loss),
        dropout=settings.decoder_dropout,
    )


def describe(folder: RunFolder, inputs: Inputs) -> None:
    """Write data.csv: each image with its part, group and, where it was opened, what it holds.

    The hash is that of the pixels, as in the data.csv of a pretraining.
    """
    opened: dict[Path, dict[str, object]] = {}
    for name, part in (("train", inputs.train), ("val", inputs.val)):
        if part is None:
            continue
        rows = zip(part.pairs, part.masks, part.facts, part.digests, strict=True)
        for pair, mask, (bits, _), digest in rows:
            height, width = mask.shape
            content = {"height": height, "width": width, "bits": bits, "hash": digest[:16]}
            opened[pair.image] = {"split": name, **content}
    empty = dict.fromkeys(("height", "width", "bits", "hash"), "")
    for pair in inputs.dataset.pairs:
        unopened = "unused" if pair.split in OPENED else pair.split
        content = opened.get(pair.image, {"split": unopened, **empty})
        row = {"image": str(pair.image), "split": content["split"], "group": pair.group}
        folder.append_csv("data.csv", {**row, **content})


def refuse_other_statistics(
    settings: FinetuneSettings, inputs: Inputs, payload: Mapping[str, object], instead: str
) -> None:
    """Refuse to go on where the file of ``--statistics`` has changed.

    Args:
        settings: of the command.
        inputs: as they are read now.
        payload: of the checkpoint.
        instead: what to do for another plan.

    Raises:
        UserError: it has.
    """
    if settings.statistics and payload["preprocess"] != inputs.record.to_dict():
        raise UserError(f"{settings.statistics} changed since this run began; {instead}")
