"""The package beneath the commands and the story; CONTRIBUTING.md lists its floors."""
