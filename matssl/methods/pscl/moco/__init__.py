"""PSCL-MoCo: keys of a momentum network in a queue."""
