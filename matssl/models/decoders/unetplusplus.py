"""U-Net++ of segmentation-models-pytorch."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

from matssl.models.decoders.blocks import of_library

# Of its grid of blocks these have seen all others of their size.
UNET_PLUS_PLUS = of_library(
    smp.UnetPlusPlus, UnetPlusPlusDecoder, ("blocks.x_0_2", "blocks.x_0_3", "blocks.x_0_4")
)
