"""Finished models that one can call: a segmenter, an encoder, and the network under both."""
