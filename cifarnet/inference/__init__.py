"""Trained networks at work. Imports `core`, `images` and `networks`."""
