"""A few labelled micrographs and encoder weights to a segmentation model; see ``loop.finetune``."""
