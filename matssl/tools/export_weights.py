"""Write weights for others: ``python -m matssl.tools.export_weights RUN --layout torchvision``.

A file of torch, or of safetensors where --output ends so. Its tensors have a check sum in the
metadata, which other programs pass over and ours compare.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matssl.core.errors import UserError, guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import ToolSettings

if TYPE_CHECKING:
    from torch import Tensor

LAYOUTS = ("torchvision", "timm", "smp", "matssl", "lightly")


@dataclass(frozen=True)
class ExportSettings(ToolSettings):
    """Flags of the command."""

    run: str = flag("", "data", "run folder or weights file", required=True, positional=True)
    layout: str = flag("torchvision", "data", "naming", choices=LAYOUTS)
    output: str | None = flag(
        None, "data", "file to write, .pth or .safetensors", auto="beside the source"
    )
    channels: int | None = flag(None, "data", "input channels", auto="as they are", choices=(1, 3))
    overwrite: bool = flag(False, "run", "replace an existing file")


SETTINGS = ExportSettings


def main(argv: Sequence[str]) -> int:
    """Write the file and say what is in it; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.export_weights")
    source = find_source(Path(args.run))
    output = (
        Path(args.output) if args.output else source.with_name(f"{source.stem}-{args.layout}.pth")
    )
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} exists already; give another --output or --overwrite")
    from matssl import weights

    tensors = export(source, args.layout, args.channels)
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}")
    write(tensors, output)
    print(f"{output}: {len(tensors)} tensors in the layout of {args.layout}, from {source}")
    stem = next(v for k, v in tensors.items() if v.ndim == 4)
    frames = weights.read(source).frames
    if frames > 1 and args.channels is None:
        print(
            f"note    its input channels are {frames} frames, the earliest first; --channels 1 or "
            "3 for programs that give it one picture"
        )
    if stem.shape[1] == 1:
        print("note    one input channel; --channels 3 for programs that expect three")
    return 0


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors with their digest, which stands where other programs look for nothing.

    Args:
        tensors: as :func:`export` gives them.
        path: of safetensors where it ends so, else of torch.
    """
    from collections import OrderedDict

    from matssl.core import checkpoint, digest
    from matssl.core.run_folder import atomic_path, atomic_write_bytes
    from matssl.weights import encoder_file

    described = getattr(tensors, "_metadata", {}).get("", {"version": 1})
    described = {**described, digest.EXPORTED: digest.of_tensors(tensors)}
    if path.suffix == ".safetensors":
        apart = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        del described["version"]
        facts = {
            k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in described.items()
        }
        atomic_write_bytes(path, encoder_file.as_safetensors(apart, facts))
        return
    content = OrderedDict(tensors)
    content._metadata = {"": described}  # type: ignore[attr-defined]
    with atomic_path(path) as temporary:
        checkpoint.store(content, temporary, path)


def find_source(run: Path) -> Path:
    """Return the weights that a run folder or a name of the model hub stands for.

    Raises:
        UserError: there is none.
    """
    from matssl import hub

    source = hub.locate(run)
    if source.is_dir():
        raise UserError(f"{run} holds no best.ckpt, encoder.safetensors or last.ckpt")
    return source


def export(source: Path, layout: str, channels: int | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of a layout.

    Args:
        source: weights of any origin that is read.
        layout: one of LAYOUTS; "smp" keeps decoder and head where there are any, the others take
            the encoder alone.
        channels: input channels; a stem of 3 is summed to 1, one of 1 shared out by thirds, one of
            the frames of a sequence summed before. None: as they are.

    Raises:
        UserError: the encoder is no plain ResNet and no vision transformer, which goes out as timm
            has it alone, or the file cannot be read.
    """
    from matssl import weights
    from matssl.models import vit
    from matssl.models.encoders import build_encoder
    from matssl.weights import layouts

    content = weights.read(source)
    _, found = weights.recognise(content)
    name = layouts.architecture(found) or content.told()
    if name is not None and vit.is_vit(name):
        if layout != "timm":
            raise UserError(f"{source} holds a vision transformer, {name}; give --layout timm")
        rename: Callable[[str], str] = _without_model
    elif name is None or not name.startswith("resnet"):
        raise UserError(
            f"{source} holds neither a plain ResNet nor a vision transformer; its names mean "
            "nothing elsewhere"
        )
    else:
        rename = NAMES[layout]
    # As they are, the channels of a model of sequences are frames; channels by number are colours.
    frames = 1 if channels else content.frames
    channels = channels or next(t for t in found.values() if t.ndim == 4).shape[1]
    encoder = build_encoder(name, channels)
    weights.load(encoder, source, in_channels=channels, frames=frames)
    state = {key: tensor.contiguous() for key, tensor in encoder.state_dict().items()}
    result = {rename(key): tensor for key, tensor in state.items()}
    if layout == "smp":
        averaged = content.below("ema.") or content.tensors
        parts = ("decoder.", "segmentation_head.")
        result |= {k: v for k, v in averaged.items() if k.startswith(parts)}
        if any(name.startswith("decoder.aspp.") for name in result):
            return _with_rates(result)
    return result


def _with_rates(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a DeepLabV3+ with its rates, which are not those of smp and in none.

    They stand where torch keeps the version of a module, which smp passes over.
    """
    from collections import OrderedDict

    from matssl.models.decoders.deeplabv3plus import RATES
    from matssl.weights.whole import RATES_KEY

    result = OrderedDict(tensors)
    result._metadata = {"": {"version": 1, RATES_KEY: list(RATES)}}  # type: ignore[attr-defined]
    return result


def _without_model(name: str) -> str:
    return name.removeprefix("model.")


def _numbered(name: str) -> str:
    from matssl.weights import layouts

    part, _, rest = name.partition(".")
    places = {value: key for key, value in layouts.SEQUENTIAL.items()}
    return f"backbone.{places[part]}.{rest}"


NAMES: dict[str, Callable[[str], str]] = {
    "torchvision": str,
    # timm's plain ResNets have torchvision's names.
    "timm": str,
    "smp": "encoder.{}".format,
    "matssl": "backbone.{}".format,
    "lightly": _numbered,
}


if __name__ == "__main__":
    sys.exit(guard(main))
