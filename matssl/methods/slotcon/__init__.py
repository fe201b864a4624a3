"""SlotCon: Wen et al. 2022 (arXiv:2205.15288)."""
