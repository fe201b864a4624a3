"""Annotations of labelling programs to masks, and back."""
