"""Networks: encoders, heads, segmentation models, losses. The only room that knows smp."""

from matssl.core import torchvision_ops

# Must come before the first import of torchvision, which smp and timm bring.
torchvision_ops.ensure()
