"""Snapshots, weights files and how a run is resumed; imports core."""
