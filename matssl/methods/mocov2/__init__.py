"""MoCo v2: Chen et al. 2020 (arXiv:2003.04297)."""
