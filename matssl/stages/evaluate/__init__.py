"""A checkpoint and a folder to scores, masks, pictures and a report."""

from matssl.stages.evaluate.predict import evaluate

__all__ = ["evaluate"]
