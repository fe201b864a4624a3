"""A finished encoder that one can call: a micrograph in, feature maps out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from matssl import weights
from matssl.core import checkpoint
from matssl.core.arrays import IN_MEMORY_BYTES, STRIP, roomy, strips
from matssl.core.damage import damage_told
from matssl.core.lineage import Lineage
from matssl.core.parsing import read_settings
from matssl.data.preprocess import STANDARD_HALF_WIDTH, Preprocess
from matssl.models.encoders import build_encoder, encoder_facts, pyramid
from matssl.trained.network import Network
from matssl.trained.segmenter import Picture, opened
from matssl.weights.containers import Content
from matssl.weights.folding import seen

# Mirrored pixels about an image: a network knows its border by the zeros it pads with.
MARGIN = 64
# Sources that are no file.
RANDOM, IMAGENET = "none", "imagenet"
# For weights that do not say how their images were read: grey levels of zero mean and unit variance
# in every image, which is what networks of ImageNet were given.
UNTOLD = Preprocess(std=(0.5 / STANDARD_HALF_WIDTH,), crop_bottom="auto")


@dataclass(frozen=True)
class Encoder:
    """A trained encoder and all it needs to be used.

    Attributes:
        network: what computes; its model gives the pyramid.
        name: of the encoder.
        record: how images are read and normalised.
        source: path of the file.
        lineage: the chain of what it was trained from.
    """

    network: Network
    name: str
    record: Preprocess
    source: str
    lineage: Lineage = Lineage()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        encoder: str = "resnet18",
        in_channels: int | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Encoder:
        """Return the encoder in a file.

        Args:
            path: run folder, encoder.safetensors or checkpoint of either training, other weights
                file, name in the model hub, "imagenet", or "none" for random weights.
            encoder: its name, where the file does not say it.
            in_channels: channels of its input; None takes those of its training, 1 where they are
                not known.
            seed: of random weights.
            device: auto, cpu, cuda or cuda:N.
            precision: fp32, bf16, or auto: bf16 where the hardware multiplies in it.
            threads: CPU threads of torch, for the whole process; None leaves them as they are.

        Raises:
            UserError: no such file, one that cannot be used, or no such device.
        """
        record, name = UNTOLD, encoder
        source: str | Content = str(path)
        if path not in (RANDOM, IMAGENET):
            source = content = weights.read(path)
            record = _record(content)
            name = _told(content) or weights.architecture(content)[0] or encoder
        if in_channels is not None and in_channels != record.channels:
            # Colours are folded into one channel, or one is shared out to three.
            mean, std = (fmean(record.mean),), (fmean(record.std),)
            record = replace(record, depth=1, channels=in_channels)
            record = replace(record, color="gray", mean=mean, std=std)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_encoder(name, record.channels)
        lineage = Lineage()
        if path != RANDOM:
            centre, spread = seen(record)
            lineage = weights.start(
                model,
                source,
                name,
                in_channels=record.channels,
                mean=centre,
                std=spread,
                frames=record.depth,
            ).lineage
        return cls(Network.on(model, device, precision, threads), name, record, str(path), lineage)

    @property
    def multiple(self) -> int:
        """Sides of its input are multiples of it."""
        return encoder_facts(self.network.model).multiple

    def features(self, micrograph: Picture) -> NDArray[np.float32]:
        """Return the features that phases are told apart by, float32 (D, h, w).

        Those of strides 8 and 16 (of the second and third of four stages), each of unit length, on
        the grid of the finer ones. The whole micrograph goes through the network at once.

        Args:
            micrograph: see :meth:`matssl.trained.segmenter.Segmenter.predict`.
        """
        image = self._image(micrograph)
        found = around(lambda x: [self.unit_features(x)], image, self.network, self.multiple)
        return np.ascontiguousarray(found[0])

    def maps(self, micrograph: Picture) -> tuple[NDArray[np.float32], ...]:
        """Return the feature maps of the four stages as they are, float32 (C, h, w) each.

        Args:
            micrograph: see :meth:`matssl.trained.segmenter.Segmenter.predict`.
        """
        image = self._image(micrograph)
        found = around(lambda x: pyramid(self.network.model, x), image, self.network, self.multiple)
        return tuple(np.ascontiguousarray(level) for level in found)

    def unit_features(self, x: Tensor) -> Tensor:
        """Return :meth:`features` of normalised images, (B, C, H, W) to (B, D, h, w)."""
        maps = [level.float() for level in pyramid(self.network.model, x)[1:3]]
        maps[1] = F.interpolate(maps[1], size=maps[0].shape[-2:], mode="bilinear")
        # Fine enough to follow a phase, deep enough to know its texture.
        return torch.cat([F.normalize(level, dim=1) for level in maps], dim=1)

    def _image(self, picture: Picture) -> NDArray[np.float32]:
        return self.record.tensor(self.record.plane(opened(picture, self.record)))


def around(
    maps: Callable[[Tensor], Sequence[Tensor]],
    image: NDArray[np.float32],
    network: Network,
    multiple: int,
) -> list[NDArray[np.float32]]:
    """Return what a network says of the cells of an image, float32 (D, h, w) a map.

    Args:
        maps: input (B, C, H, W) to maps (B, D, h, w) of any strides.
        image: normalised, float32 (C, H, W); it is mirrored about its borders.
        network: where it computes.
        multiple: of the sides of its input.
    """
    height, width = image.shape[1:]
    # Whole cells of margin: 70 pixels where cells have 14.
    margin = MARGIN + -MARGIN % multiple
    wide = mirrored(image, -height % multiple, -width % multiple, margin)
    x = torch.from_numpy(wide)[None].to(network.device)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), network.autocast():
        found = [values.float() for values in maps(x)]
    result = []
    for values in found:
        stride = x.shape[-1] // values.shape[-1]
        first = margin // stride
        inside = values[0, :, first:, first:][:, : -(-height // stride), : -(-width // stride)]
        result.append(inside.cpu().numpy())
    return result


def mirrored(
    image: NDArray[np.float32], more_down: int = 0, more_right: int = 0, margin: int = MARGIN
) -> NDArray[np.float32]:
    """Return (C, H, W) with a mirrored margin on all sides, wider below and on the right."""
    down, right = (margin, margin + more_down), (margin, margin + more_right)
    channels, height, width = image.shape
    if image.nbytes <= IN_MEMORY_BYTES or height < 2 * STRIP:
        return np.pad(image, ((0, 0), down, right), mode="symmetric")
    whole = roomy((channels, height + sum(down), width + sum(right)), image.dtype)
    for rows in strips(height):
        # All but the outermost strips have rows of their own above and below.
        above, below = rows.start == 0, rows.stop == height
        margins = (down[0] if above else 0, down[1] if below else 0)
        first = 0 if above else rows.start + down[0]
        part = np.pad(image[:, rows], ((0, 0), margins, right), mode="symmetric")
        whole[:, first : first + part.shape[1]] = part
    return whole


def _told(content: Content) -> str | None:
    """Return the encoder that a checkpoint of ours names."""
    if not content.facts.get("format") or not isinstance(content.payload, Mapping):
        return None
    for part in ("model", "recipe"):
        described = content.payload.get(part)
        if isinstance(described, Mapping) and described.get("encoder"):
            return str(described["encoder"])
    return None


def _record(content: Content) -> Preprocess:
    """Return how the images of a file's training were read, as far as it is known."""
    own = content.payload if content.facts.get("format") else None
    if isinstance(own, Mapping) and "preprocess" in own:
        with damage_told(content.path):
            return Preprocess.from_dict(own["preprocess"])
    return of_run(Path(content.path)) or UNTOLD


def of_run(path: Path) -> Preprocess | None:
    """Return the record of the run in whose folder a file lies, None where it lies in none."""
    for folder in list(path.parents)[:2]:
        if (folder / "last.ckpt").is_file():
            payload = checkpoint.load(folder / "last.ckpt")
            with damage_told(folder / "last.ckpt"):
                return Preprocess.from_dict(payload["preprocess"])
        if (folder / "config.yaml").is_file():
            run = read_settings(folder / "config.yaml")
            known: dict[str, object] = {
                key: run[key] for key in ("window", "low", "high") if key in run
            }
            with damage_told(folder / "config.yaml"):
                return Preprocess.from_dict(UNTOLD.to_dict() | known)
    return None
