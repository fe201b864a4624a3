"""U-Net of segmentation-models-pytorch."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

from matssl.models.decoders.blocks import of_library

UNET = of_library(smp.Unet, UnetDecoder, ("blocks.2", "blocks.3", "blocks.4"))
