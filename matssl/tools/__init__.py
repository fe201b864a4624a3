"""Small commands: ``python -m matssl.tools.NAME``."""
