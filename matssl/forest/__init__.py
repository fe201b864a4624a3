"""Classifiers of pixels on features that stay as they are: a random forest, a linear one."""
