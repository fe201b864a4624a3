"""Self-supervised learning and segmentation for micrographs with few labels."""

__version__ = "0.1.0"
