"""Trained models in other formats. Each format is a module with `write` and `read`.

Imports core, settings, images, networks, checkpoints, inference and reporting.
"""
