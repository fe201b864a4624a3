"""BYOL: Grill et al. 2020 (arXiv:2006.07733)."""
