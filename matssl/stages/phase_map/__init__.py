"""A pretraining run and a folder to phase maps and area fractions; see ``loop.phase_map``."""
