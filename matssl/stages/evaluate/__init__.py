"""A checkpoint and a folder to scores, masks, pictures and a report; see ``predict.evaluate``."""
