"""The three stages: pretraining, fine-tuning, evaluation."""
