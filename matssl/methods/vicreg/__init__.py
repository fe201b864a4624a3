"""VICReg: Bardes et al. 2022 (arXiv:2105.04906)."""
