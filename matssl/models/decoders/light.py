"""The decoder of SparK, which is thrown away after the pretraining."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

# Doublings from stride 32 to 1.
BLOCKS = 5


class LightBlock(nn.Module):
    """Doubles the size of a map by a transposed convolution, and halves its channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels, 4, stride=2, padding=1)
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, 2 H, 2 W)."""
        return self.convolutions(self.up(x))


class LightDecoder(nn.Module):
    """Five blocks of halving width, to the first four of which a map is added.

    Tian et al. 2023 (arXiv:2301.03580), 3.3; published width 768.
    """

    def __init__(self, width: int, out_channels: int) -> None:
        """Make a decoder.

        Args:
            width: channels at stride 32; a multiple of 32.
            out_channels: of the image.
        """
        super().__init__()
        widths = [width // 2**n for n in range(BLOCKS + 1)]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.ModuleList(LightBlock(*pair) for pair in pairs)
        self.head = nn.Conv2d(widths[-1], out_channels, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the image (B, out_channels, H, W).

        Args:
            maps: from stride 32 to 4, channels width, width/2, width/4, width/8.
        """
        x: Tensor = maps[0]
        for number, block in enumerate(self.blocks):
            if 0 < number < len(maps):
                x = x + maps[number]
            x = block(x)
        return self.head(x)
