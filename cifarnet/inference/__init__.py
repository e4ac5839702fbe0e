"""Trained networks at work. Imports `core` and `images`."""
