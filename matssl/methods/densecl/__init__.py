"""DenseCL: Wang et al. 2021 (arXiv:2011.09157)."""
