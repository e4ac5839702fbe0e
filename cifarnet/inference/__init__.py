"""Predictions of trained networks; imports images and networks."""
