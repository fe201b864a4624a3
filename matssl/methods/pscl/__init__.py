"""PSCL, patch-sampled contrastive learning, in its two variants: this one and ``moco``."""
