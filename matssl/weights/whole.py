"""Whole models of segmentation-models-pytorch from raw state dicts: read off their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from matssl.core.errors import UserError
from matssl.decoders import DECODERS, named
from matssl.models.blueprints import blueprint, candidates
from matssl.models.decoders import Variant
from matssl.models.segmentation import Description
from matssl.weights import layouts
from matssl.weights.containers import COUNTERS, Content
from matssl.weights.folding import Input
from matssl.weights.recognition import recognise, smp_input
from matssl.weights.refusals import check_numbers

HEAD = "segmentation_head.0."
# Of DeepLabV3+ in the library, where the file does not say them; ours are smaller.
RATES = (12, 24, 36)
RATES_KEY = "decoder_atrous_rates"
STRIDE_KEY = "encoder_output_stride"
SHOWN = 3


@dataclass(frozen=True)
class Whole:
    """A model of smp in a file.

    Attributes:
        description: what a model of ours is built of.
        variant: what its decoder has chosen.
        state: all tensors of encoder, decoder and head.
        sigmoid: whether the head has one channel, which is the second of two classes.
        input: how its images were normalised, None where the file does not say.
        notes: what was assumed or left, in words.
    """

    description: Description
    variant: Variant
    state: dict[str, Tensor]
    sigmoid: bool
    input: Input | None
    notes: tuple[str, ...]


def segmentation_model(content: Content, encoder: str | None = None) -> Whole:
    """Return the model of smp in a raw state dict.

    Args:
        content: of the file.
        encoder: its name, where the tensors do not tell it.

    Raises:
        UserError: no whole model, a decoder that is not built here, or an encoder that nothing
            names; what it is instead is said.
    """
    prefix = layouts.smp_prefix(content)
    if prefix is None:
        layout = recognise(content)[0]
        raise UserError(
            f"{content.path} holds an encoder ({layout}) and no decoder, so it cannot segment; "
            "fine-tune from it: train_finetune.py --ssl_weights_path"
        )
    tensors = content.below(prefix)
    parts = ("encoder.", "decoder.", "segmentation_head.")
    state = {name: tensor for name, tensor in tensors.items() if name.startswith(parts)}
    name, channels = _encoder(content, state, encoder)
    decoder = _decoder(content, state)
    head = state.get(f"{HEAD}weight")
    if head is None or head.ndim != 4:
        raise UserError(f"{content.path} has no head of classes ({HEAD}weight)")
    variant, notes = _variant(content, decoder, state)
    sigmoid = len(head) == 1
    if sigmoid:
        notes.append(
            "one output channel: a binary model, foreground where its sigmoid is above 0.5"
        )
    # Statistics of images are used, not dropped.
    told = smp_input(content)
    used = {"mean", "std"} if told is not None else set()
    rest = [n for n in content.tensors if n.removeprefix(prefix) not in state and n not in used]
    if rest:
        notes.append(f"not used: {len(rest)} tensors beside the model ({', '.join(rest[:SHOWN])})")
    description: Description = {
        "encoder": name,
        "decoder": decoder,
        "num_classes": len(head),
        "in_channels": channels,
    }
    return Whole(description, variant, state, sigmoid, told, (*content.notes, *notes))


def check_complete(path: str, whole: Whole, wanted: Mapping[str, Tensor]) -> None:
    """Refuse a model of which a tensor has no place, or a place no tensor.

    Args:
        path: of the file.
        whole: the model in it.
        wanted: tensors of the model that was built.

    Raises:
        UserError: the first of them is named.
    """
    state = whole.state
    absent = [k for k in wanted if k not in state and not k.endswith(COUNTERS)]
    left = [k for k in state if k not in wanted and not k.endswith(COUNTERS)]
    misfits = [k for k, v in state.items() if k in wanted and v.shape != wanted[k].shape]
    if absent or left or misfits:
        title = DECODERS[whole.description["decoder"]].title
        raise UserError(
            f"{path} is no {title} on {whole.description['encoder']} as it is built here: "
            f"{len(absent)} tensors are missing, {len(left)} have no place, {len(misfits)} have "
            f"another shape (first: {(absent + left + misfits)[0]}); nothing was loaded"
        )
    check_numbers(path, {k: v for k, v in state.items() if k in wanted}, wanted)


def _encoder(content: Content, state: Mapping[str, Tensor], given: str | None) -> tuple[str, int]:
    """Return the encoder's name and its input channels.

    Raises:
        UserError: nothing names it, or what does is wrong.
    """
    tensors = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    plain = layouts.architecture(tensors)
    told = [given] if given else [name for name in (content.told(), plain) if name]
    for name in dict.fromkeys([*told, *([] if given else candidates(tensors))]):
        channels = _channels(tensors, blueprint(name))
        if channels in (1, 3):
            return name, channels
        if channels is not None:
            raise UserError(
                f"{content.path} holds a model of images with {channels} channels; micrographs "
                "have 1 or 3"
            )
    if given:
        raise UserError(f"{content.path} holds a model whose encoder is not --encoder {given}")
    raise UserError(
        f"{content.path} holds a model of segmentation-models-pytorch on {plain or 'an encoder'} "
        "that its tensors do not name; say it with --encoder (timm's are tu-NAME)"
    )


def _channels(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> int | None:
    """Return the input channels of an encoder, None where it is not the one that ours is.

    Args:
        theirs: tensors of the file's encoder.
        ours: of one for images of three channels.
    """
    names = [k for k in ours if not k.endswith(COUNTERS)]
    if not names or set(names) != {k for k in theirs if not k.endswith(COUNTERS)}:
        return None
    others = [k for k in names if theirs[k].shape != ours[k].shape]
    if not others:
        return 3
    counts = set()
    for key in others:
        a, b = theirs[key].shape, ours[key].shape
        if len(a) != 4 or len(b) != 4 or b[1] != 3 or a[:1] + a[2:] != b[:1] + b[2:]:
            return None
        counts.add(a[1])
    return counts.pop() if len(counts) == 1 else None


def _decoder(content: Content, state: Mapping[str, Tensor]) -> str:
    """Return the name of the decoder.

    Raises:
        UserError: its tensors are of none that is built here.
    """
    told = {known: decoder for known, decoder in DECODERS.items() if decoder.marks}
    for known, decoder in told.items():
        if all(any(name.startswith(mark) for name in state) for mark in decoder.marks):
            return known
    titles = named(d.title for d in told.values())
    raise UserError(f"{content.path} has a decoder that is not the plain one of {titles}")


def _variant(
    content: Content, decoder: str, state: Mapping[str, Tensor]
) -> tuple[Variant, list[str]]:
    """Return what a decoder has chosen and what is to be said of it.

    Raises:
        UserError: the file says an output stride that is not built here.
    """
    if decoder == "deeplabv3plus":
        stride = _said(content, STRIDE_KEY)
        if stride not in (None, 16):
            raise UserError(f"{content.path} has output stride {stride}; 16 is built here")
        rates = _said(content, RATES_KEY)
        if isinstance(rates, str):
            # In the metadata of safetensors all is text.
            rates = [int(word) for word in rates.split(",") if word.strip().isdecimal()]
        if isinstance(rates, Sequence) and len(rates) == 3 and all(type(r) is int for r in rates):
            return Variant(rates=tuple(rates)), [f"rates {', '.join(map(str, rates))}, as it says"]
        return Variant(rates=RATES), [f"rates {', '.join(map(str, RATES))} assumed, as in smp"]
    attention = any(".attention1.attention.cSE." in name for name in state)
    blocks = "blocks.{}" if decoder == "unet" else "blocks.x_0_{}"
    kernels = [state.get(f"decoder.{blocks.format(i)}.conv2.0.weight") for i in range(5)]
    channels = tuple(len(kernel) for kernel in kernels if kernel is not None and kernel.ndim)
    variant = Variant("scse" if attention else None, channels if len(channels) == 5 else None)
    return variant, ["scse attention in its decoder"] if attention else []


def _said(content: Content, key: str) -> object:
    """Return what a file says of its model beside the tensors: a description, or torch's own."""
    payload = content.payload
    if isinstance(payload, Mapping) and key in payload:
        found: object = payload[key]
        return found
    described = getattr(payload, "_metadata", None)
    place = described.get("") if isinstance(described, Mapping) else None
    return place.get(key) if isinstance(place, Mapping) else None
