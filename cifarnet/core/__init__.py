"""Errors, command line, device, seeds, signals, ranks, files, log."""
