"""The small U-Net that PSCL was published with: widths 32 to 256, three poolings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Both parts go by this name.
NAME = "small_unet"
WIDTHS = (32, 64, 128, 256)
# Names of the published files and ours.
_PUBLISHED = {
    "encode.inc.": "encoder.stem.",
    "encode.down1.conv.": "encoder.down1.",
    "encode.down2.conv.": "encoder.down2.",
    "encode.down3.conv.": "encoder.down3.",
    "encode.up": "decoder.up",
    "decode.outc.fc1.": "segmentation_head.0.",
}


class ConvBlock(nn.Module):
    """Two times 3x3 convolution without bias, normalisation and leaky ReLU.

    The decoder's second normalisation is a LayerNorm over the channels of each pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, layer_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        norm = nn.LayerNorm if layer_norm else nn.BatchNorm2d
        self.norm2: nn.Module = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        x = F.leaky_relu_(self.norm1(self.conv1(x)))
        x = self.conv2(x)
        if isinstance(self.norm2, nn.LayerNorm):
            return F.leaky_relu_(self.norm2(x.movedim(1, -1))).movedim(-1, 1)
        return F.leaky_relu_(self.norm2(x))


class UpBlock(nn.Module):
    """Doubles the size of a map, lays it beside the encoder's map of that size, convolves."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1)
        # As many channels come from the encoder as from below.
        self.conv = ConvBlock(2 * out_channels, out_channels, layer_norm=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (B, out_channels, H, W), the size of ``skip``."""
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        # The transposed convolution gives 2H - 1 rows; those that are missing are zeros, published.
        borders = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        joined: Tensor = self.conv(torch.cat([skip, F.pad(x, borders)], dim=1))
        return joined


class SmallUnetEncoder(nn.Module):
    """Feature maps at strides 1, 2, 4 and 8.

    Attributes:
        out_channels: of the four maps.
        in_channels: of the image.
        multiple: images are brought to it as for five halvings. Any side from 8 would do, but the
            borders of a prediction would then be others than those of earlier versions.
        trained_multiple: what is learned from is not: PSCL's images have 376 pixels.
    """

    multiple = 32
    trained_multiple = 8

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.out_channels = WIDTHS
        self.in_channels = in_channels
        self.stem = ConvBlock(in_channels, WIDTHS[0])
        self.down1 = ConvBlock(WIDTHS[0], WIDTHS[1])
        self.down2 = ConvBlock(WIDTHS[1], WIDTHS[2])
        self.down3 = ConvBlock(WIDTHS[2], WIDTHS[3])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the four maps, the finest first, of images (B, C, H, W) of any size from 8."""
        features = [self.stem(x)]
        for block in (self.down1, self.down2, self.down3):
            features.append(block(F.max_pool2d(features[-1], 2)))
        return features


class SmallUnetDecoder(nn.Module):
    """Back to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = UpBlock(WIDTHS[3], WIDTHS[2])
        self.up2 = UpBlock(WIDTHS[2], WIDTHS[1])
        self.up3 = UpBlock(WIDTHS[1], WIDTHS[0])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, 32, H, W) of the encoder's four maps."""
        x = features[3]
        for block, skip in zip((self.up1, self.up2, self.up3), features[2::-1], strict=True):
            x = block(x, skip)
        return x


class SmallUnet(nn.Module):
    """Encoder, decoder and linear layer of each pixel: 2,142,148 parameters for four classes."""

    def __init__(self, in_channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.encoder = SmallUnetEncoder(in_channels)
        self.decoder = SmallUnetDecoder()
        self.segmentation_head = nn.Sequential(nn.Conv2d(WIDTHS[0], classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes, H, W)."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return logits


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of a published PSCL file under the names of :class:`SmallUnet`.

    Args:
        state: of a pretraining file (``encoder_q.encode.*``; its projection heads and its momentum
            network are left out) or of a fine-tuned model (``encode.*``, ``decode.outc.fc1.*``).

    Returns:
        ``encoder.*``, ``decoder.*`` and, of a fine-tuned model, ``segmentation_head.*``; None
        where it is no such file.
    """
    found = {}
    for name, tensor in state.items():
        key = name.removeprefix("encoder_q.")
        for theirs, ours in _PUBLISHED.items():
            if key.startswith(theirs):
                tail = (
                    key.removeprefix(theirs).replace("con1.", "conv1.").replace("con2.", "conv2.")
                )
                found[ours + tail] = tensor
    head = found.get("segmentation_head.0.weight")
    if "encoder.stem.conv1.weight" not in found or "decoder.up3.conv.conv1.weight" not in found:
        return None
    if head is not None:
        # A linear layer of each pixel is a convolution of one pixel.
        found["segmentation_head.0.weight"] = head[:, :, None, None]
    return found
