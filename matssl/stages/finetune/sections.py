"""Further flags of fine-tuning: the shape of the network, what is kept, which images are given."""

from __future__ import annotations

import re
from dataclasses import dataclass

from matssl.core.flags import Problem, flag
from matssl.decoders import DECODERS, named

# How a model is chosen among those that were validated.
MONITORS = ("miou", "f1", "loss")


def blocks_problem(text: str) -> str:
    """Return what is wrong with ``--finetune_blocks``, "" where nothing is to be seen of it yet."""
    if text in ("all", "none") or re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", text):
        return ""
    return f"--finetune_blocks must be all, none or numbers of blocks such as 5,6,7, not {text}"


@dataclass(frozen=True, init=False, repr=False, eq=False)
class NetworkSettings:
    """Flags of the network's shape, and of which part of it learns how."""

    encoder_filters: tuple[int, ...] = flag(
        (),
        "model",
        "filters of the levels of --encoder classic_unet, the finest first: four, five or six of "
        "them",
        auto="64 128 256 512 1024",
        low=1,
        high=99_999,
    )
    encoder_blocks: tuple[int, ...] = flag(
        (),
        "model",
        "four blocks of a vision transformer whose tokens the decoder is given, from 0",
        auto="evenly spread (2 5 8 11 of twelve)",
        low=0,
        high=999,
    )
    decoder_filters: tuple[int, ...] = flag(
        (),
        "model",
        "filters of the decoder's blocks, the deepest first, with --decoder "
        f"{named(name for name, d in DECODERS.items() if d.filters)}",
        auto="256 128 64 32 16, of the classic ones 512 256 128 64 32, of dpt 1024 1024 512 256 "
        "and 256 of their fusion",
        low=1,
        high=99_999,
    )
    batchnorm: bool = flag(
        False,
        "model",
        "BatchNorm behind each convolution of classic_unet and classic_unetplusplus",
    )
    whole_model: bool = flag(
        False,
        "model",
        "of fine-tuned weights take the decoder and the head, too: their classes must be those of "
        "the masks, the network the same",
    )
    finetune_blocks: str = flag(
        "all",
        "training",
        "blocks of the encoder that learn: all, none or numbers (6,7), the deepest last; but for "
        "all, every BatchNorm of the encoder stays as it is",
        check=blocks_problem,
        commas=True,
    )
    l2: float = flag(
        0.0,
        "training",
        "this times the sum of squares of the kernels is added to the loss: those of decoder and "
        "head, and of the encoder of small_unet or classic_unet",
        low=0,
        high=1000,
    )

    def network_problems(self, encoder: str, decoder: str) -> list[Problem]:
        """Return what does not go together in the shape of the network.

        Args:
            encoder: ``--encoder``.
            decoder: ``--decoder``.
        """
        wrong = []
        if self.encoder_filters and len(self.encoder_filters) not in (4, 5, 6):
            told = f"--encoder_filters needs 4, 5 or 6 numbers, not {len(self.encoder_filters)}"
            wrong.append(Problem(told, ("encoder_filters",)))
        if self.encoder_filters and encoder != "classic_unet":
            told = f"--encoder_filters acts with --encoder classic_unet, not with {encoder}"
            wrong.append(Problem(told, ("encoder_filters", "encoder")))
        known = DECODERS.get(decoder)
        if self.batchnorm and known is not None and known.own is None:
            own = named(name for name, other in DECODERS.items() if other.own)
            told = f"--batchnorm acts with --decoder {own}, not with {decoder}"
            wrong.append(Problem(told, ("batchnorm", "decoder")))
        return wrong


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ScoreSettings:
    """Flags of the samples of an epoch, and of the model that is kept."""

    whole_images: bool = flag(
        False,
        "training",
        "a sample is a whole image, filled up by mirroring, instead of a crop",
        excludes="crop_size",
    )
    epoch_views: int = flag(
        1, "training", "times each training image comes in an epoch", low=1, high=10_000
    )
    val_epochs: int | None = flag(
        None,
        "training",
        "epochs between two validations, instead of --val_every",
        low=1,
        excludes="val_every",
    )
    monitor: str = flag(
        "miou",
        "training",
        "what the kept model is the best in on the validation images: mean IoU, F1 (of the second "
        "of two classes, else the mean over classes) or the loss without --l2",
        choices=MONITORS,
    )
    threshold: float | None = flag(
        None,
        "training",
        "of two classes, the second is where its probability is above this: in precision, recall "
        "and F1, in masks and in evaluations",
        auto="the most likely class",
        above=0,
        below=1,
    )

    @property
    def scored(self) -> bool:
        """Whether loss, precision, recall and F1 are recorded beside the mean IoU."""
        return self.monitor != "miou" or self.threshold is not None

    def sample_problems(self, input_size: int | None, rare: float, d4: str) -> list[Problem]:
        """Return what does not go together in the samples of a step.

        Args:
            input_size: ``--input_size``.
            rare: ``--rare_class_p``.
            d4: ``--d4``.
        """
        wrong = []
        if self.whole_images and input_size:
            told = "--whole_images are not resized; leave --input_size out"
            wrong.append(Problem(told, ("whole_images", "input_size")))
        for name, word, on in (
            ("whole_images", "--whole_images", self.whole_images),
            ("d4", "--d4 each", d4 == "each"),
        ):
            if on and rare > 0:
                told = f"{word} takes the images in turn and needs --rare_class_p 0"
                wrong.append(Problem(told, (name, "rare_class_p")))
        return wrong


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ListSettings:
    """Flags that give images by name, as unet-compare does; pictures stay whole."""

    training_set: tuple[str, ...] = flag(
        (),
        "data",
        "names of the images to train on; the others validate unless --validation_set or "
        "--auto_split says which. Tiles of one picture stay on one side",
        auto="all but those that validate",
    )
    validation_set: tuple[str, ...] = flag(
        (), "data", "names of the images to validate on; the others train, or --training_set"
    )
    auto_split: float | None = flag(
        None,
        "data",
        "share of the images (of --training_set) that validates; the others train, none tests",
        above=0,
        below=1,
        auto="as the folder says",
    )
    results_dir: str | None = flag(
        None,
        "run",
        "folder of the run itself, with the result files of unet-compare beside ours; it must not "
        "exist",
        auto="OUTPUT_DIR/finetune/NAME",
    )

    @property
    def listed(self) -> bool:
        """Whether images are given by name or share."""
        return bool(self.training_set or self.validation_set or self.auto_split)

    def list_problems(self, splits: str | None, name: str | None) -> list[Problem]:
        """Return what does not go together in lists of images, and in the place of the run.

        Args:
            splits: ``--splits``.
            name: ``--name``.
        """
        wrong = []
        if self.listed and splits:
            told = "--splits already says which images train; leave the other lists out"
            wrong.append(Problem(told, ("splits", "training_set", "validation_set", "auto_split")))
        if self.validation_set and self.auto_split:
            told = "--validation_set and --auto_split both say what validates; give one of them"
            wrong.append(Problem(told, ("validation_set", "auto_split")))
        both = sorted(set(self.training_set) & set(self.validation_set))
        if both:
            told = f"--training_set and --validation_set both name {both[0]}"
            wrong.append(Problem(told, ("training_set", "validation_set")))
        if self.results_dir and name:
            told = "--results_dir is the folder of the run itself; leave --name out"
            wrong.append(Problem(told, ("results_dir", "name")))
        return wrong
