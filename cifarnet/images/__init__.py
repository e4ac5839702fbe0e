"""Reading images into memory. Imports `core`."""
