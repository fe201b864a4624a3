"""Ground floor: errors, configuration, randomness, geometry, run folders, checkpoints."""
