"""The package behind the commands; CONTRIBUTING.md lists its layers."""
