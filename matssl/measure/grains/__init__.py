"""Grain size after ASTM E112, E930, E1181, E1382 and ISO 643, from arrays; no torch, no files."""
