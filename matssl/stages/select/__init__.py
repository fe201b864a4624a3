"""``python -m matssl.tools.select_images``: which pictures are labelled next."""
