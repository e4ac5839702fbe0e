"""What the commands and the five top-level files stand on; it imports nothing of them."""
