"""Augmenting training images: one file a step. Imports `core`, `settings` and `images`."""
