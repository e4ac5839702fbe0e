"""Augmenting training images. Imports `core` and `images`."""
