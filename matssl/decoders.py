"""Decoders by name: what each needs and can do. Nothing here imports torch, so --help is quick."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from matssl.core.errors import UserError

# Encoder and decoder of the U-Net as it was published; its filters may follow: classic_unet-8-...
CLASSIC = "classic_unet"


class Decoder(NamedTuple):
    """What every command knows of a decoder.

    Attributes:
        title: its name in sentences.
        about: one line for --help.
        kind: where the Kind lies that builds it; of one that does not segment, its class.
        encoder: the one encoder it goes with, which goes with nothing else; None: any.
        own: an encoder of ours, whatever its filters, that goes with the decoders which name it and
            with no other; they go with every encoder.
        filters: how many numbers --decoder_filters takes; 0: none.
        multiple: sides of images are multiples of it, whatever the encoder needs.
        least_batch: samples that a batch of training holds at least.
        dilated: whether its encoder is built with a dilated last stage.
        segments: whether fine-tuning offers it.
        tokens: whether its encoder is a vision transformer.
        fine: whether it has maps at strides 4, 2 and 1, which PSCL compares.
        reconstructs: whether SparK can train it.
        marks: starts of tensors' names that tell it in a raw state dict; none: it is not told.
        unsaid: what such tensors do not say, and what is taken.
    """

    title: str
    about: str
    kind: str
    encoder: str | None = None
    own: str | None = None
    filters: int = 0
    multiple: int = 1
    least_batch: int = 1
    dilated: bool = False
    segments: bool = True
    tokens: bool = False
    fine: bool = False
    reconstructs: bool = True
    marks: tuple[str, ...] = ()
    unsaid: str = ""


DECODERS: dict[str, Decoder] = {
    "unet": Decoder(
        "U-Net",
        "skips from every map of the encoder",
        "matssl.models.decoders.unet:UNET",
        filters=5,
        fine=True,
        marks=("decoder.blocks.0.conv1.",),
    ),
    "unetplusplus": Decoder(
        "U-Net++",
        "nested skips, slower than unet",
        "matssl.models.decoders.unetplusplus:UNET_PLUS_PLUS",
        filters=5,
        multiple=32,
        fine=True,
        marks=("decoder.blocks.x_0_0.",),
    ),
    "small_unet": Decoder(
        "small U-Net",
        "that of PSCL, in one piece with --encoder small_unet",
        "matssl.models.decoders.small_unet:SMALL_UNET",
        encoder="small_unet",
        fine=True,
        reconstructs=False,
    ),
    CLASSIC: Decoder(
        "classic U-Net",
        "that of 2015, transposed convolutions, with --encoder classic_unet or any other",
        "matssl.models.decoders.classic_unet:CLASSIC_UNET",
        own=CLASSIC,
        filters=5,
        reconstructs=False,
    ),
    "classic_unetplusplus": Decoder(
        "classic U-Net++",
        "the same with nested skips",
        "matssl.models.decoders.classic_unet:CLASSIC_UNET_PLUS_PLUS",
        own=CLASSIC,
        filters=5,
        reconstructs=False,
    ),
    "deeplabv3plus": Decoder(
        "DeepLabV3+",
        "pyramid of dilated convolutions, output at a quarter of the size",
        "matssl.models.decoders.deeplabv3plus:DEEPLAB",
        multiple=16,
        least_batch=2,
        dilated=True,
        marks=("decoder.aspp.0.convs.1.0.0.", "decoder.block2."),
        unsaid="output stride 16",
    ),
    "dpt": Decoder(
        "DPT",
        "tokens of four blocks of a vision transformer, class tokens among them, fused",
        "matssl.models.decoders.dpt:DPT",
        filters=5,
        tokens=True,
        reconstructs=False,
    ),
    "light": Decoder(
        "light decoder",
        "that of SparK, thrown away after the pretraining",
        "matssl.models.decoders.light:LightDecoder",
        segments=False,
    ),
}


def segmenting() -> tuple[str, ...]:
    """Return the names of the decoders of segmentation models."""
    return tuple(name for name, decoder in DECODERS.items() if decoder.segments)


def named(names: Iterable[str]) -> str:
    """Return names in a row for a sentence: a, b or c."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def described(names: Iterable[str]) -> str:
    """Return what --help says of some decoders."""
    told = []
    for name in names:
        least = DECODERS[name].least_batch
        batches = f", batches of {least} or more" if least > 1 else ""
        told.append(f"{name}: {DECODERS[name].about}{batches}")
    return "; ".join(told)


def with_encoder(encoder: str, otherwise: str) -> str:
    """Return the decoder that goes with an encoder alone, or another for most of them."""
    own = (name for name, d in DECODERS.items() if encoder in (d.encoder, _joined(encoder, d)))
    return next(own, otherwise)


def _joined(encoder: str, decoder: Decoder) -> str | None:
    """Return the encoder where it is the decoder's own, whatever its filters; else None."""
    own = decoder.own
    return encoder if own and (encoder == own or encoder.startswith(f"{own}-")) else None


def check_pair(encoder: str, decoder: str) -> None:
    """Refuse half of what is one piece.

    Raises:
        UserError: no such decoder, or one of the two goes with another decoder or encoder alone.
    """
    if decoder not in DECODERS:
        raise UserError(f"there is no decoder {decoder!r}; there are: {', '.join(DECODERS)}")
    joined = [name for name, other in DECODERS.items() if _joined(encoder, other)]
    if joined and decoder not in joined:
        raise UserError(
            f"--encoder {encoder} goes with --decoder {named(joined)}, not with {decoder}"
        )
    whole = decoder if joined else with_encoder(encoder, decoder)
    for name in (whole, decoder):
        own = DECODERS[name].encoder
        if own is not None and (own, name) != (encoder, decoder):
            raise UserError(
                f"the {DECODERS[name].title} is one piece: --encoder {own} goes with --decoder "
                f"{name} alone, not {encoder} with {decoder}"
            )


def check_side(name: str, side: int) -> None:
    """Refuse views that a decoder cannot take.

    Raises:
        UserError: the decoder needs multiples and the side is none.
    """
    multiple = DECODERS[name].multiple
    if side % multiple:
        raise UserError(
            f"--decoder {name} takes views whose side is a multiple of {multiple}, not {side}; "
            "change --view_size or take --decoder unet"
        )
