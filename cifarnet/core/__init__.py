"""Settings, command line, device, ranks, files and log: imports nothing else of this project."""
