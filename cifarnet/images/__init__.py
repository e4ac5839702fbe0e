"""Reading images into memory; imports core."""
