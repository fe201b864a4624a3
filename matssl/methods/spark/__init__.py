"""SparK: Tian et al. 2023 (arXiv:2301.03580), masked modelling for convolutional networks."""
