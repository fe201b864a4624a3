"""A random forest on filters of the picture: no network, seconds to train, any labels."""
