"""Measurement on masks: area fractions, objects, intervals, and their tables; no torch."""
