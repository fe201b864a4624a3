"""Measurement on masks: area fractions, regions, intervals, and their tables; no torch."""
