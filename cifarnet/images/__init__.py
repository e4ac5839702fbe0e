"""Reading images into memory. Imports `core` and `settings`."""
