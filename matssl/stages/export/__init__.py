"""Trained models as files that run without torch: written, compared with torch, packed."""
