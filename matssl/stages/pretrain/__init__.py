"""Unlabelled micrographs to encoder weights; ``loop.pretrain`` runs the stage."""
