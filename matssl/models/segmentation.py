"""Encoder and decoder as one model: logits at the size of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.decoders import DECODERS, check_pair, named
from matssl.models import trial, vit
from matssl.models.decoders import Variant, check_tokens, kind
from matssl.models.encoders import DEPTH, REFUSALS, USUAL, check_encoder, encoder_facts, unusable

# Pairs that a model was built of and tried, with their input channels.
_TRIED: set[tuple[str, str, int]] = set()


class Description(TypedDict):
    """What :func:`build_model` makes a model of, as checkpoints keep it.

    The last two are there where they are not the decoder's usual ones.
    """

    encoder: str
    decoder: str
    num_classes: int
    in_channels: int
    decoder_filters: NotRequired[Sequence[int]]
    batchnorm: NotRequired[bool]


class SegmentationModel(nn.Module):
    """A model of segmentation-models-pytorch that takes any image size.

    Attributes:
        encoder: pyramid of features, the part that pretraining gives.
        decoder: from pyramid to full resolution.
        segmentation_head: from decoder channels to class logits.
        description: what :func:`build_model` needs to make it again.
        multiple: images are filled up to sides that are multiples of it.
        trained_multiple: the same in training.
    """

    def __init__(self, model: nn.Module, description: Description) -> None:
        super().__init__()
        # The names are smp's, so that state dicts of smp models fit as they are.
        self.encoder = model.get_submodule("encoder")
        self.decoder = model.get_submodule("decoder")
        self.segmentation_head = model.get_submodule("segmentation_head")
        self.description = description
        # The pyramid of a vision transformer fits every decoder as it is.
        tokens = isinstance(self.encoder, vit.VitEncoder)
        decoding = 1 if tokens else DECODERS[description["decoder"]].multiple
        self.multiple = math.lcm(encoder_facts(self.encoder).multiple, decoding)
        self.trained_multiple: int = getattr(self.encoder, "trained_multiple", self.multiple)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes, H, W) of images (B, C, H, W)."""
        height, width = x.shape[-2:]
        multiple = self.trained_multiple if self.training else self.multiple
        bottom, right = -height % multiple, -width % multiple
        if bottom or right:
            # Mirrored borders look like specimen; zeros would look like a dark phase.
            small = bottom >= height or right >= width
            x = F.pad(x, (0, right, 0, bottom), mode="replicate" if small else "reflect")
        logits = self.segmentation_head(self.decoder(self.encoder(x)))
        result: Tensor = logits[..., :height, :width]
        return result


class BackgroundLogit(nn.Module):
    """Puts a class of logit 0 before that of a binary model with one output.

    The softmax of 0 and x is the sigmoid of x, so that the second class wins where that is above
    one half.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2, H, W) of logits (B, 1, H, W)."""
        return torch.cat([torch.zeros_like(x), x], dim=1)


def build_model(
    encoder: str,
    decoder: str,
    num_classes: int,
    in_channels: int = 1,
    variant: Variant | None = None,
    decoder_filters: Sequence[int] | None = None,
    batchnorm: bool = False,
) -> SegmentationModel:
    """Return a segmentation model with random weights.

    Args:
        encoder: see :func:`matssl.models.encoders.build_encoder`.
        decoder: a key of DECODERS.
        num_classes: channels of the logits.
        in_channels: channels of the input.
        variant: what another's model has chosen of its decoder; None: as ours are.
        decoder_filters: of the decoder's blocks, the deepest first; None: the usual ones.
        batchnorm: behind each convolution of a classic U-Net's decoder.

    Raises:
        UserError: no such encoder or decoder, two that do not go together, or a decoder that cannot
            have such filters.
    """
    built = kind(decoder)
    check_pair(encoder, decoder)
    check_tokens(vit.is_vit(encoder), f"--encoder {encoder}", decoder)
    if decoder_filters or batchnorm:
        check_chosen(decoder, decoder_filters, batchnorm)
        filters = tuple(map(int, decoder_filters)) if decoder_filters else None
        variant = Variant(channels=filters, batchnorm=batchnorm)
    use = f"--decoder {decoder}, {DEPTH} halvings"
    try:
        parts = built.model(encoder, in_channels, num_classes, variant or Variant())
    except REFUSALS as error:
        raise unusable(encoder, in_channels, use, error) from error
    check_encoder(parts.get_submodule("encoder"), encoder, in_channels, DECODERS[decoder].dilated)
    description: Description = {
        "encoder": encoder,
        "decoder": decoder,
        "num_classes": num_classes,
        "in_channels": in_channels,
    }
    if decoder_filters:
        description["decoder_filters"] = list(map(int, decoder_filters))
    if batchnorm:
        description["batchnorm"] = True
    model = SegmentationModel(parts, description)
    if variant is not None or (encoder, decoder, in_channels) not in _TRIED:
        side = 2 * model.multiple
        try:
            (logits,) = trial.attempt(model, (1, in_channels, side, 2 * side))
        except trial.Misfit as misfit:
            raise unusable(encoder, in_channels, use, misfit) from misfit
        assert logits.shape[-2:] == (side, 2 * side)
        _TRIED.add((encoder, decoder, in_channels))
    return model


def check_chosen(decoder: str, filters: Sequence[int] | None, batchnorm: bool) -> None:
    """Refuse what cannot be chosen of a decoder.

    Raises:
        UserError: it has no filters to choose or another number of them, or no BatchNorm to switch.
    """
    known = DECODERS[decoder]
    if batchnorm and known.own is None:
        own = named(name for name, other in DECODERS.items() if other.own)
        raise UserError(f"--batchnorm acts with --decoder {own}, not with {decoder}")
    if filters and not known.filters:
        able = named(name for name, other in DECODERS.items() if other.filters)
        raise UserError(f"--decoder_filters acts with --decoder {able}, not with {decoder}")
    if filters and known.own is None and len(filters) != known.filters:
        raise UserError(
            f"--decoder_filters needs {known.filters} numbers with --decoder {decoder}, the "
            f"deepest first, not {len(filters)}"
        )


def check_input_size(model: SegmentationModel, side: int | None) -> None:
    """Refuse images that are resized to less than the smallest that a model takes.

    Raises:
        UserError: the side is smaller.
    """
    if side is not None and side < model.multiple:
        raise UserError(f"--input_size must be at least {model.multiple}, not {side}")


def check_training(
    model: nn.Module,
    batch_size: int,
    side: int,
    in_channels: int,
    *,
    flag: str,
    frozen: nn.Module | None = None,
) -> None:
    """Refuse batches that a network cannot be trained with, before anything is written.

    A BatchNorm needs two values a channel: a batch of one is too few where a map has one pixel.

    Args:
        model: a segmentation model or an encoder.
        batch_size: samples of a step, over all processes.
        side: of a sample in pixels.
        in_channels: of the model.
        flag: that sets the side, for the message.
        frozen: the part that stays as it is during the whole training.

    Raises:
        UserError: both flags and what would work are named.
    """

    def refusal(count: int, length: int) -> str:
        try:
            trial.attempt(model, (count, in_channels, length, length), True, frozen)
        except trial.Misfit as misfit:
            return str(misfit)
        return ""

    # More samples than two change nothing: they are all alike to a network.
    count = min(batch_size, 2)
    said = refusal(count, side)
    if not said:
        return
    encoder = getattr(model, "encoder", model)
    multiple: int = getattr(model, "multiple", None) or encoder_facts(encoder).multiple
    larger = [(side // multiple + more) * multiple for more in (1, 2, 3)]
    ways = []
    if count == 1 and not refusal(2, side):
        ways.append("--batch_size 2 or more")
    ways += [f"{flag} {length}" for length in larger if not refusal(count, length)][:1]
    raise UserError(
        f"a network cannot be trained with --batch_size {batch_size} and {flag} {side} ({said}); "
        f"take {' or '.join(ways) or f'another --encoder; {USUAL} are usual'}"
    )
