"""Snapshots, trained models, and resuming."""
