"""Trained networks at work. Imports `images` and `networks`."""
