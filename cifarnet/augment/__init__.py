"""Augmentation of training images: one file a step, two engines."""
